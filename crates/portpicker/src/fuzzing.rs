//! What fuzz targets call: everything that reads bytes from outside, with what must hold for any.
//!
//! The targets are in `fuzz/`, with a corpus; the tests here run the corpus, and mutations of it that
//! are the same each time.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde_json::Value;

use crate::candidates::service_port;
use crate::error::Refusal;
use crate::hand_off::parse_address;
use crate::probe::Kind;
use crate::process::Pid;
use crate::protocol::extended::{self, MAX_COUNT, Unsuccessful, Wish};
use crate::protocol::original::{self, Answer, MAX_ANSWER};
use crate::sys::{kernel_ports, notification, socket_table};
use crate::{PortSet, ServerAddress};

/// Reads an answer of the original protocol, in pieces of any size.
pub fn original(bytes: &[u8]) {
    // As `docs/protocol.md` has it; 0 is a refusal.
    let line = bytes
        .iter()
        .take(MAX_ANSWER)
        .position(|&byte| byte == b'\n')
        .map(|end| bytes[..end].trim_ascii());
    let expected = match line {
        None => bytes.is_empty().then_some(0),
        Some(digits) => number(digits).and_then(|number| u16::try_from(number).ok()),
    };
    for size in [1, 7, MAX_ANSWER - 1, MAX_ANSWER, usize::MAX] {
        let answer = piecewise(bytes, size, |come, ended, _| {
            original::parse_answer(come, ended)
        });
        let port = match answer {
            Ok(Answer::Port(port)) => Some(port),
            Ok(Answer::Refusal) => Some(0),
            Err(err) => {
                assert!(is_printable(&err.to_string()));
                None
            }
        };
        assert_eq!(port, expected, "in pieces of {size}");
    }
}

/// Hands `bytes` to `parse` as they come from a socket, `size` at a time: all that have come, whether
/// that is all there is, and how many there were the time before.
fn piecewise<T>(
    bytes: &[u8],
    size: usize,
    mut parse: impl FnMut(&[u8], bool, usize) -> Option<T>,
) -> T {
    let mut before = 0;
    while before < bytes.len() {
        let end = bytes.len().min(before.saturating_add(size));
        if let Some(parsed) = parse(&bytes[..end], false, before) {
            return parsed;
        }
        before = end;
    }
    parse(bytes, true, before).expect("nothing more has to come")
}

/// Reads decimal digits, and nothing else.
fn number(digits: &[u8]) -> Option<u64> {
    let is_number = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    is_number.then(|| {
        digits.iter().fold(0_u64, |number, digit| {
            number
                .saturating_mul(10)
                .saturating_add(u64::from(digit - b'0'))
        })
    })
}

fn is_printable(text: &str) -> bool {
    !text.chars().any(char::is_control)
}

/// Reads a request of the extended protocol and, after a newline, its answer. Returns the request as
/// the client sends it.
///
/// The answer is read as one to that request, and to all others that there are.
pub fn extended(bytes: &[u8]) -> Vec<u8> {
    let end = bytes.iter().position(|&byte| byte == b'\n');
    let (request, answer) = bytes.split_at(end.map_or(bytes.len(), |end| end + 1));
    let wished = Wished::parse(request);
    let wish = wished.wish();
    let sent = wish.request();
    assert_eq!(
        sent.iter().position(|&byte| byte == b'\n'),
        Some(sent.len() - 1)
    );

    let Some(line) = read_line(answer) else {
        return sent;
    };
    match wish.parse_answer(line) {
        Ok(ports) => {
            assert_eq!(ports.len(), wish.count);
            for (index, &port) in ports.iter().enumerate() {
                assert!(port != 0 && !ports[..index].contains(&port));
                assert!(wish.exclude.is_none_or(|set| !set.contains(port)));
                let is_inside = wish.ports.is_none_or(|set| set.contains(port));
                assert!(is_inside || !wish.prefer.is_empty());
            }
            assert!(!wish.contiguous || ports.is_sorted_by(|a, b| b - a == 1));
        }
        Err(unsuccessful) => check(&unsuccessful),
    }
    match extended::parse_list(line) {
        Ok(leases) => {
            assert!(leases.iter().all(|lease| lease.port != 0));
            assert!(leases.is_sorted_by(|a, b| a.port < b.port));
        }
        Err(unsuccessful) => check(&unsuccessful),
    }
    if let Err(unsuccessful) = extended::parse_released(line) {
        check(&unsuccessful);
    }
    sent
}

/// Reads the first line of an answer, in pieces of any size.
fn read_line(bytes: &[u8]) -> Option<&[u8]> {
    const LIMIT: usize = 250;
    let ends = [1, 7, LIMIT, usize::MAX].map(|size| {
        piecewise(bytes, size, |come, ended, before| {
            extended::end_of_line(come, before, LIMIT, ended)
        })
    });
    assert!(ends.iter().all(|end| *end == ends[0]));
    let end = ends[0].as_ref().ok()?;
    let line = &bytes[..*end];
    assert!(line.len() <= LIMIT);
    assert!(line.len() == bytes.len() || line.ends_with(b"\n"));
    Some(line)
}

fn check(unsuccessful: &Unsuccessful) {
    match unsuccessful {
        Unsuccessful::Bad(answer) => assert!(is_printable(&answer.to_string())),
        Unsuccessful::Failed(failure) => {
            assert!(is_printable(&failure.reason));
            assert!((1..=500).contains(&failure.reason.chars().count()));
        }
    }
}

/// Tells whether `answer`, a server's, is one that the client understands.
pub fn understands(answer: &[u8]) -> bool {
    match extended::parse_released(answer) {
        Ok(()) => true,
        Err(Unsuccessful::Failed(failure)) => failure.refusal != Refusal::Other,
        Err(Unsuccessful::Bad(_)) => false,
    }
}

/// What a [`Wish`] borrows, and the rest of it.
#[derive(Debug, Default)]
struct Wished {
    count: usize,
    contiguous: bool,
    ports: Option<PortSet>,
    exclude: Option<PortSet>,
    prefer: Vec<u16>,
    only: Option<Kind>,
    address: Option<IpAddr>,
    owner: Option<Pid>,
    wait: Duration,
    tag: Option<String>,
}

impl Wished {
    /// Takes the members of a request that a program could ask for.
    fn parse(request: &[u8]) -> Self {
        let members: Value = serde_json::from_slice(request).unwrap_or_default();
        let text = |name: &str| members[name].as_str();
        let set = |name: &str| text(name)?.parse().ok();
        let number = |value: &Value| u32::try_from(value.as_u64()?).ok();
        let ports = members["prefer"].as_array().into_iter().flatten();
        Self {
            count: number(&members["count"])
                .map_or(1, |count| (count as usize).clamp(1, MAX_COUNT)),
            contiguous: members["contiguous"] == true,
            ports: set("ports"),
            exclude: set("exclude"),
            prefer: ports
                .filter_map(|port| u16::try_from(number(port)?).ok())
                .collect(),
            only: match text("only") {
                Some("tcp") => Some(Kind::Tcp),
                Some("udp") => Some(Kind::Udp),
                _ => None,
            },
            address: text("address").and_then(|address| address.parse().ok()),
            owner: number(&members["owner"]).and_then(Pid::new),
            wait: members["wait"]
                .as_f64()
                .and_then(|wait| Duration::try_from_secs_f64(wait).ok())
                .unwrap_or_default(),
            tag: text("tag").map(str::to_owned),
        }
    }

    fn wish(&self) -> Wish<'_> {
        Wish {
            count: self.count,
            contiguous: self.contiguous,
            ports: self.ports.as_ref(),
            exclude: self.exclude.as_ref(),
            prefer: &self.prefer,
            only: self.only,
            address: self.address,
            owner: self.owner,
            wait: self.wait,
            tag: self.tag.as_deref(),
        }
    }
}

/// Reads sets of ports, with semicolons between them.
pub fn port_set(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let sets: Vec<PortSet> = text.split(';').filter_map(one_port_set).collect();
    for pair in sets.windows(2) {
        let (a, b) = (&pair[0], &pair[1]);
        let (both, rest) = (a.intersection(b), a.difference(b));
        let len = |set: &Option<PortSet>| set.as_ref().map_or(0, PortSet::len);
        assert_eq!(a.union(b).len() + len(&both), a.len() + b.len());
        assert_eq!(len(&both) + len(&rest), a.len());
        assert_eq!(both, b.intersection(a));
        assert!(rest.is_none_or(|rest| rest.intersection(b).is_none() && a.union(&rest) == *a));
        assert!(both.is_none_or(|both| both.difference(b).is_none() && a.union(&both) == *a));
    }
}

fn one_port_set(text: &str) -> Option<PortSet> {
    let set = match text.parse::<PortSet>() {
        Ok(set) => set,
        Err(err) => {
            assert!(text.split(',').any(|part| part.trim() == err.part()));
            assert!(!err.to_string().is_empty());
            return None;
        }
    };
    let is_known = |c: char| c.is_ascii_digit() || c == ',' || c == '-' || c.is_whitespace();
    assert!(text.chars().all(is_known));
    for port in text.split([',', '-']) {
        let port = number(port.trim().as_bytes()).expect("every part is a number");
        assert!(set.contains(u16::try_from(port).expect("no port is larger")));
    }
    let printed = set.to_string();
    assert!(printed.len() <= text.len());
    assert_eq!(printed.parse(), Ok(set.clone()));

    let ranges: Vec<_> = set.ranges().collect();
    assert!(ranges.is_sorted_by(|a, b| *b.start() > 1 && *a.end() < b.start() - 1));
    for range in &ranges {
        let (first, last) = (*range.start(), *range.end());
        assert!(0 < first && first <= last);
        assert!(set.contains(first) && set.contains(last));
        assert!(!set.contains(first - 1));
        assert!(last.checked_add(1).is_none_or(|next| !set.contains(next)));
        assert!(set.contains_block(first, range.len()));
        assert!(!set.contains_block(first, range.len() + 1));
    }
    let count: usize = ranges.iter().map(ExactSizeIterator::len).sum();
    assert_eq!(set.len(), count);
    assert_eq!(set.nth(0), ranges.first().map(|range| *range.start()));
    let last = ranges.last().map(|range| *range.end());
    assert_eq!(set.nth(set.len() - 1), last);
    assert_eq!(set.nth(set.len()), None);
    Some(set)
}

/// Reads the address of a port server, and the number of a process.
pub fn words(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let name = text.strip_prefix('@').unwrap_or(text);
    let is_good = (1..=107).contains(&name.len()) && !name.contains('\0');
    match text.parse::<ServerAddress>() {
        Ok(address) => {
            assert!(is_good);
            assert_eq!(address.to_string(), text);
            let address = address.to_socket_address().expect("it is an address");
            let found = match name.len() == text.len() {
                true => address
                    .as_pathname()
                    .map(|path| path.as_os_str().as_encoded_bytes()),
                false => address.as_abstract_namespace(),
            };
            assert_eq!(found, Some(name.as_bytes()));
        }
        Err(err) => assert!(!is_good && is_printable(&err.to_string())),
    }
    let expected = number(bytes).and_then(|number| u32::try_from(number).ok());
    assert_eq!(text.parse().ok(), expected.and_then(Pid::new));
}

/// Reads what the kernel says about sockets, ports, and processes, and `/etc/services`.
pub fn proc(bytes: &[u8]) {
    let text = &*String::from_utf8_lossy(bytes);
    let hexadecimal = |digits: &str| u32::from_str_radix(digits, 16).ok();
    let decimal = |digits: &str| digits.trim().parse::<u32>().ok();
    for line in text.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        if let Some((port, state)) = socket_table::parse_line(line) {
            assert_eq!(state, fields[3]);
            let (_, digits) = fields[1].rsplit_once(':').expect("it has a port");
            assert_eq!(hexadecimal(digits), Some(port.into()));
        }
        if let Some(port) = service_port(line) {
            let (digits, _protocol) = fields[1].split_once('/').expect("it has a protocol");
            assert_eq!(decimal(digits), Some(port.into()));
            assert!(!digits.contains('#') && !fields[0].contains('#'));
        }
    }
    if let Some(range) = kernel_ports::parse_range(text) {
        assert!(!range.is_empty());
        let numbers = text.split_whitespace().map(decimal);
        let ends = [*range.start(), *range.end()].map(|port| Some(port.into()));
        assert!(numbers.eq(ends));
    }
    let reserved = kernel_ports::parse_reserved(text);
    // The kernel's set may have port 0 in it. Otherwise it prints it as we do.
    assert_eq!(
        kernel_ports::parse_reserved(&format!("0,{}", text.trim())),
        reserved
    );
    if !text.trim().contains(char::is_whitespace)
        && let Ok(set) = text.parse()
    {
        assert_eq!(reserved, Some(set));
    }
    if let Some(process) = notification::parse_process(text) {
        let mut values = text.lines().filter_map(|line| line.strip_prefix("Tgid:"));
        assert!(values.any(|value| decimal(value) == Some(process)));
    }
}

/// Reads a socket address from the memory of a program.
pub fn socket_address(bytes: &[u8]) {
    let family = |number: i32| bytes.starts_with(&(number as u16).to_ne_bytes());
    // As Linux reads it.
    let is_v4 = (16..=128).contains(&bytes.len())
        && (family(libc::AF_INET) || family(libc::AF_UNSPEC) && bytes[4..8] == [0; 4]);
    let is_v6 = (24..=128).contains(&bytes.len()) && family(libc::AF_INET6);
    let address = parse_address(bytes);
    assert_eq!(address.is_some(), is_v4 || is_v6);
    let Some(address) = address else {
        return;
    };
    assert_eq!(address.is_ipv4(), is_v4);
    assert_eq!(bytes[2..4], address.port().to_be_bytes());
    match address {
        SocketAddr::V4(address) => assert_eq!(bytes[4..8], address.ip().octets()),
        SocketAddr::V6(address) => {
            assert_eq!(bytes[4..8], address.flowinfo().to_ne_bytes());
            assert_eq!(bytes[8..24], address.ip().octets());
            let scope = bytes.get(24..28).unwrap_or(&[0; 4]);
            assert_eq!(scope, address.scope_id().to_ne_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use portpicker_testing::corpus;

    #[test]
    fn original_answers() {
        corpus::run("original", super::original);
    }

    #[test]
    fn extended_answers() {
        corpus::run("extended", |bytes| drop(super::extended(bytes)));
    }

    #[test]
    fn sets_of_ports() {
        corpus::run("port_set", super::port_set);
    }

    #[test]
    fn addresses_and_numbers() {
        corpus::run("words", super::words);
    }

    #[test]
    fn proc_files() {
        corpus::run("proc", super::proc);
    }

    #[test]
    fn socket_addresses() {
        corpus::run("socket_address", super::socket_address);
    }
}
