//! The ports that the kernel uses for itself, or keeps for somebody: from `/proc/sys/net/ipv4`.

use std::fs;
use std::io;
use std::ops::RangeInclusive;
use std::path::Path;

use crate::PortSet;

/// Linux's range unless an administrator has set another.
const DEFAULT_EPHEMERAL: RangeInclusive<u16> = 32768..=60999;

/// Returns the range from which the kernel takes ports for `connect()` and `bind(0)`.
///
/// It is one range for IPv4 and IPv6. Where the kernel does not say, it is Linux's default.
pub(crate) fn ephemeral_range() -> io::Result<RangeInclusive<u16>> {
    let text = read_if_there(Path::new("/proc/sys/net/ipv4/ip_local_port_range"))?;
    Ok(text
        .and_then(|text| parse_range(&text))
        .unwrap_or(DEFAULT_EPHEMERAL))
}

/// Returns the ports that an administrator has kept from automatic use, for services of their own.
pub(crate) fn reserved_ports() -> io::Result<Option<PortSet>> {
    let text = read_if_there(Path::new("/proc/sys/net/ipv4/ip_local_reserved_ports"))?;
    Ok(text.and_then(|text| parse_reserved(&text)))
}

/// Not a [`PortSet`]'s text: that is wrong as a whole if one part of it is, and the kernel's may have
/// port 0 in it.
pub(crate) fn parse_reserved(text: &str) -> Option<PortSet> {
    PortSet::from_ranges(text.trim().split(',').filter_map(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse().ok()?..=last.parse().ok()?)
    }))
}

/// Returns the text of a file that may be missing, or not for us to read.
///
/// Other errors are errors: a process that is out of descriptors must not take this host for one
/// with other ports.
pub(crate) fn read_if_there(path: &Path) -> io::Result<Option<String>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(err) => match err.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => Ok(None),
            _ => Err(err),
        },
    }
}

pub(crate) fn parse_range(text: &str) -> Option<RangeInclusive<u16>> {
    let mut numbers = text.split_whitespace().map(str::parse);
    match (numbers.next(), numbers.next(), numbers.next()) {
        (Some(Ok(first)), Some(Ok(last)), None) if first <= last => Some(first..=last),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_kernel_writes_and_nothing_else() {
        assert_eq!(parse_range("32768\t60999\n"), Some(32768..=60999));
        for text in ["", "1", "2 1", "1 2 3", "a b", "1 70000"] {
            assert_eq!(parse_range(text), None, "{text:?}");
        }
        let reserved = |text| parse_reserved(text).map(|ports| ports.to_string());
        assert_eq!(
            reserved("8080,9000-9009\n").as_deref(),
            Some("8080,9000-9009")
        );
        assert_eq!(reserved("0-10,8080\n").as_deref(), Some("1-10,8080"));
        assert_eq!((reserved("\n"), reserved("0\n")), (None, None));
    }
}
