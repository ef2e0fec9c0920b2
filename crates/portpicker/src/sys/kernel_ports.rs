//! The ports that the kernel uses for itself, or keeps for somebody: from `/proc/sys/net/ipv4`.

use std::fs;
use std::ops::RangeInclusive;

use crate::PortSet;

/// Linux's range unless an administrator has set another.
const DEFAULT_EPHEMERAL: RangeInclusive<u16> = 32768..=60999;

/// Returns the range from which the kernel takes ports for `connect()` and `bind(0)`.
///
/// It is one range for IPv4 and IPv6.
pub(crate) fn ephemeral_range() -> RangeInclusive<u16> {
    fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")
        .ok()
        .and_then(|text| parse_range(&text))
        .unwrap_or(DEFAULT_EPHEMERAL)
}

/// Returns the ports that an administrator has kept from automatic use, for services of their own.
pub(crate) fn reserved_ports() -> Option<PortSet> {
    fs::read_to_string("/proc/sys/net/ipv4/ip_local_reserved_ports")
        .ok()?
        .trim()
        .parse()
        .ok()
}

fn parse_range(text: &str) -> Option<RangeInclusive<u16>> {
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
    }
}
