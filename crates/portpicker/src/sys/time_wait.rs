//! The ports that are in TIME-WAIT, from `/proc/net/tcp` and `tcp6`.

use std::collections::HashSet;
use std::fs;

/// `TCP_TIME_WAIT` in the kernel's `include/net/tcp_states.h`.
const TIME_WAIT: &str = "06";

/// Returns the local ports of all connections in TIME-WAIT in this network namespace.
///
/// Empty where the kernel has no such table, so that no port is taken for what it may not be.
pub(crate) fn time_wait_ports() -> HashSet<u16> {
    ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"]
        .into_iter()
        .filter_map(|table| fs::read_to_string(table).ok())
        .flat_map(|table| table.lines().filter_map(parse_line).collect::<Vec<_>>())
        .collect()
}

/// Reads a line such as `0: 0100007F:1F90 0100007F:8C4A 06 …`; the port is in hexadecimal.
fn parse_line(line: &str) -> Option<u16> {
    let mut fields = line.split_whitespace();
    let local = fields.nth(1)?;
    let state = fields.nth(1)?;
    let (_, port) = local.rsplit_once(':')?;
    (state == TIME_WAIT).then(|| u16::from_str_radix(port, 16).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_local_ports_in_time_wait_only() {
        let header = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when";
        let waiting = "   1: 0100007F:1F90 0100007F:8C4A 06 00000000:00000000 03:00001670";
        let listening = "   0: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000";
        let v6 = "   2: 00000000000000000000000001000000:2710 \
                  00000000000000000000000001000000:C001 06 00000000:00000000 03:00000A2B";
        assert_eq!(parse_line(waiting), Some(8080));
        assert_eq!(parse_line(v6), Some(10_000));
        for line in [header, listening, "", "0: 06 06", "0: zz:zz x:y 06"] {
            assert_eq!(parse_line(line), None, "{line:?}");
        }
    }
}
