//! What fuzz targets call: everything that reads bytes from outside, with what must hold for any.
//!
//! The targets are in `fuzz/`, with a corpus; the tests here run the corpus, and mutations of it that
//! are the same each time.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::os::fd::RawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use crate::arguments::parse_seconds;
use crate::inherited::{parse_count, parse_names};
use crate::keeper;
use crate::run::names::{Name, NamedPorts};
use crate::run::{beginning, passing};

/// Reads a command line, an argument on each line, and the first of them as LISTEN_FDS and
/// LISTEN_FDNAMES.
pub fn inherited(bytes: &[u8]) {
    let lines = bytes.split(|&byte| byte == b'\n');
    let arguments: Vec<OsString> = lines
        .map(|line| OsString::from_vec(line.to_vec()))
        .collect();

    // What this program starts itself as; the rest of `pass` and `begin` is another program's.
    let descriptors = [
        (
            "keep",
            keeper::inherited(&arguments).map(|it| it.descriptors()),
        ),
        ("pass", passing::inherited(&arguments).map(|it| it.sockets)),
        (
            "begin",
            beginning::inherited(&arguments).map(|it| vec![it.socket]),
        ),
    ];
    for (command, descriptors) in descriptors {
        if let Some(descriptors) = descriptors {
            assert_eq!(arguments[1], command);
            let end = match command {
                "keep" => arguments.len(),
                _ => 3,
            };
            check(&arguments[2..end], descriptors);
        }
    }

    let [count, names] = [0, 1].map(|index| {
        let argument = arguments
            .get(index)
            .map_or(OsStr::new(""), OsString::as_os_str);
        argument.to_str().unwrap_or_default()
    });
    if let Some(passed) = parse_count(count) {
        assert_eq!(passed.start, 3);
        assert_eq!(count.parse(), Ok(passed.len()));
    }
    let named: Vec<&str> = parse_names(names).take(names.len() + 2).collect();
    assert!(named.iter().all(|name| !name.contains(':')));
    assert_eq!(
        named.join(":").trim_end_matches(':'),
        names.trim_end_matches(':')
    );
}

/// Checks that `descriptors` are those on the command line, written as this program writes them.
fn check(arguments: &[OsString], mut descriptors: Vec<RawFd>) {
    let mut named: Vec<RawFd> = Vec::new();
    for argument in arguments.iter().filter_map(|argument| argument.to_str()) {
        let Some((name, numbers)) = argument.split_once('=') else {
            continue;
        };
        let are_descriptors = [
            "--guests",
            "--holders",
            "--hosts",
            "--listener",
            "--locks",
            "--pipe",
            "--socket",
            "--sockets",
        ];
        if are_descriptors.contains(&name) && !numbers.is_empty() {
            let written = |fd: &RawFd| fd.to_string();
            let fds: Vec<RawFd> = numbers
                .split(',')
                .map(|number| number.parse().expect("it is a descriptor"))
                .collect();
            assert!(fds.iter().map(written).eq(numbers.split(',')));
            named.extend(fds);
        }
    }
    named.sort_unstable();
    descriptors.sort_unstable();
    assert_eq!(descriptors, named);
}

/// Reads names of ports, with commas between them, and after a newline an argument in which they may
/// be; and a number of seconds.
pub fn words(bytes: &[u8]) {
    let end = bytes.iter().position(|&byte| byte == b'\n');
    let (first, rest) = bytes.split_at(end.unwrap_or(bytes.len()));
    let argument = rest.strip_prefix(b"\n").unwrap_or_default();
    let Ok(first) = str::from_utf8(first) else {
        return;
    };
    if let Ok(duration) = parse_seconds(first) {
        let seconds: f64 = first.parse().expect("it is a number");
        assert!(
            seconds >= 0.0 && (duration.as_secs_f64() - seconds).abs() <= seconds * 1e-9 + 1e-9
        );
    }

    let names: Vec<Name> = first
        .split(',')
        .filter_map(|name| name.parse().ok())
        .collect();
    if NamedPorts::clash(&names).is_some() {
        return;
    }
    // Those without names are called by their numbers.
    let count = if names.is_empty() { 3 } else { names.len() };
    let ports: Vec<u16> = (60_001..).take(count).collect();
    let ports = NamedPorts::new(&names, &ports);
    let variables: Vec<(String, String)> = ports.environment().collect();
    let is_plain = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    assert!(variables.iter().all(|(name, _)| name.chars().all(is_plain)));
    let different: HashSet<&String> = variables.iter().map(|(name, _)| name).collect();
    assert_eq!(different.len(), variables.len());
    assert_eq!(
        replaced(&ports, argument),
        ports.replace(OsStr::from_bytes(argument)).as_bytes()
    );
}

/// Replaces the ports in `argument`, one byte after the other.
fn replaced(ports: &NamedPorts, mut argument: &[u8]) -> Vec<u8> {
    let first = ports.iter().take(1).map(|(_, port)| ("", port));
    let marks: Vec<(String, u16)> = first
        .chain(ports.iter())
        .map(|(name, port)| (format!("{{{name}}}"), port))
        .collect();
    let mut replaced = Vec::new();
    while let [byte, rest @ ..] = argument {
        let mark = marks
            .iter()
            .find(|(mark, _)| argument.starts_with(mark.as_bytes()));
        argument = match mark {
            Some((mark, port)) => {
                replaced.extend(port.to_string().bytes());
                &argument[mark.len()..]
            }
            None => {
                replaced.push(*byte);
                rest
            }
        };
    }
    replaced
}

#[cfg(test)]
mod tests {
    use portpicker_testing::corpus;

    #[test]
    fn inherited_descriptors() {
        corpus::run("inherited", super::inherited);
    }

    #[test]
    fn names_and_seconds() {
        corpus::run("words", super::words);
    }
}
