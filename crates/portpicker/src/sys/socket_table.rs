//! The kernel's tables of sockets: `/proc/net/tcp`, `tcp6`, `udp`, and `udp6`.
//!
//! TCP sockets that are bound and do not listen are not in them.

use std::collections::HashSet;
use std::fs;
use std::io;

use crate::probe::Kind;

/// `TCP_TIME_WAIT` in the kernel's `include/net/tcp_states.h`.
const TIME_WAIT: &str = "06";
/// `TCP_LISTEN`.
const LISTEN: &str = "0A";
/// `TCP_CLOSE`, which is what a UDP socket is in that is not connected.
const UNCONNECTED: &str = "07";

/// Returns the local ports that connections in TIME-WAIT have, and no other TCP socket that the
/// kernel lists, in this network namespace.
///
/// Empty where the kernel has no such table, so that no port is taken for what it may not be.
pub(crate) fn time_wait_ports() -> HashSet<u16> {
    let (mut waiting, mut others) = (HashSet::new(), HashSet::new());
    for table in ["tcp", "tcp6"] {
        let text = read(table).unwrap_or_default();
        for (port, state) in text.lines().filter_map(parse_line) {
            if state == TIME_WAIT {
                waiting.insert(port)
            } else {
                others.insert(port)
            };
        }
    }
    &waiting - &others
}

/// Tells whether a socket waits for connections to `port`, or for datagrams, in this network
/// namespace, other than those whose inodes are in `ours`.
pub(crate) fn is_listening(port: u16, kind: Kind, ours: &[u64]) -> io::Result<bool> {
    let (tables, state) = match kind {
        Kind::Tcp => (["tcp", "tcp6"], LISTEN),
        Kind::Udp => (["udp", "udp6"], UNCONNECTED),
    };
    for table in tables {
        let text = match read(table) {
            // A kernel without IPv6.
            Err(err) if err.kind() == io::ErrorKind::NotFound && table.ends_with('6') => continue,
            result => result?,
        };
        let is_others = |line: &str| {
            parse_line(line) == Some((port, state))
                && parse_inode(line).is_none_or(|inode| !ours.contains(&inode))
        };
        if text.lines().any(is_others) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn read(table: &str) -> io::Result<String> {
    fs::read_to_string(format!("/proc/thread-self/net/{table}"))
}

/// Returns the local port and the state of a line such as `0: 0100007F:1F90 0100007F:8C4A 06 …`.
pub(crate) fn parse_line(line: &str) -> Option<(u16, &str)> {
    let mut fields = line.split_whitespace();
    let local = fields.nth(1)?;
    let state = fields.nth(1)?;
    let (_, port) = local.rsplit_once(':')?;
    Some((u16::from_str_radix(port, 16).ok()?, state))
}

/// Returns the inode of the socket on a line: what fstat(2) says of its descriptors.
fn parse_inode(line: &str) -> Option<u64> {
    line.split_whitespace().nth(9)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_local_ports_and_states() {
        let header = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when";
        let waiting = "   1: 0100007F:1F90 0100007F:8C4A 06 00000000:00000000 03:00001670";
        let listening = "   0: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000";
        let v6 = "   2: 00000000000000000000000001000000:2710 \
                  00000000000000000000000001000000:C001 06 00000000:00000000 03:00000A2B";
        assert_eq!(parse_line(waiting), Some((8080, TIME_WAIT)));
        assert_eq!(parse_line(v6), Some((10_000, TIME_WAIT)));
        assert_eq!(parse_line(listening), Some((80, "0A")));
        for line in [header, "", "0: 06 06", "0: zz:zz x:y 06"] {
            assert_eq!(parse_line(line), None, "{line:?}");
        }
    }
}
