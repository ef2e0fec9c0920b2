//! The ports that a pick without a server chooses from, unless it is told otherwise.

use std::env;
use std::ffi::OsString;
use std::io;
use std::ops::RangeInclusive;
use std::path::Path;

use crate::PortSet;
use crate::error::{Error, Result};
use crate::sys::kernel_ports;

/// The environment variable that replaces the default candidates: a [`PortSet`].
pub(crate) const VARIABLE: &str = "PORTPICKER_PORTS";

/// Fewer candidates than this, and the ephemeral range is used as well.
const ENOUGH: usize = 1000;

/// The lowest candidate. TensorFlow's tests, for one, go on picking until they have a port above
/// 10,000.
const LOWEST: u16 = 10_001;

/// Ranges that somebody else hands out: port servers by default, and Kubernetes to its NodePorts.
const OTHER_ALLOCATORS: [RangeInclusive<u16>; 2] = [15_000..=24_999, 30_000..=32_767];

/// Ports above [`LOWEST`] at which people expect a certain service, although `/etc/services` may
/// not name it: a test's server there would meet strangers. The one that browsers refuse to connect
/// to is among them, 10080 ([fetch], "port blocking").
///
/// [fetch]: https://fetch.spec.whatwg.org/#port-blocking
const WELL_KNOWN: [u16; 35] = [
    10_050, 10_051, // Zabbix
    10_080, // Amanda; refused by browsers
    10_248, 10_249, 10_250, 10_255, 10_256, 10_257, 10_259, // Kubernetes' node components
    11_211, // memcached
    11_371, // OpenPGP key servers
    11_434, // Ollama
    12_345, // what people type when they need some port
    13_306, 13_307, // MySQL, forwarded
    25_565, // Minecraft
    25_672, // RabbitMQ between nodes
    26_257, // CockroachDB
    26_379, // Redis Sentinel
    27_015, 27_016, // Steam
    27_017, 27_018, 27_019, // MongoDB
    28_015, 28_017, // RethinkDB, MongoDB's status page
    29_092, // Kafka between containers
    33_060, // MySQL X
    35_729, // LiveReload
    50_051, // gRPC
    51_820, // WireGuard
    61_613, 61_614, 61_616, // ActiveMQ
];

/// The value of [`VARIABLE`] and the candidates that follow from it, kept between picks.
#[derive(Clone, Debug)]
pub(crate) struct Candidates {
    variable: Option<OsString>,
    pub(crate) ports: PortSet,
}

impl Candidates {
    /// Finds the candidates for this environment and this host.
    ///
    /// # Errors
    ///
    /// [`Error::Environment`] if the variable is set to something else than a set of ports,
    /// [`Error::HostPorts`] if the host cannot be asked for its ports.
    pub(crate) fn find() -> Result<Self> {
        let variable = env::var_os(VARIABLE);
        let ports = match &variable {
            Some(value) => {
                value
                    .to_string_lossy()
                    .parse()
                    .map_err(|source| Error::Environment {
                        variable: VARIABLE,
                        source,
                    })?
            }
            _ => {
                let host = Host::ask().map_err(|source| Error::HostPorts { source })?;
                default_candidates(&host)
            }
        };
        Ok(Self { variable, ports })
    }

    /// Tells whether the environment is still as it was when these were found.
    pub(crate) fn are_current(&self) -> bool {
        self.variable == env::var_os(VARIABLE)
    }
}

/// What a host says about its ports.
struct Host {
    ephemeral: RangeInclusive<u16>,
    reserved: Option<PortSet>,
    /// The text of `/etc/services`.
    services: String,
}

impl Host {
    fn ask() -> io::Result<Self> {
        let services = kernel_ports::read_if_there(Path::new("/etc/services"))?;
        Ok(Self {
            ephemeral: kernel_ports::ephemeral_range()?,
            reserved: kernel_ports::reserved_ports()?,
            services: services.unwrap_or_default(),
        })
    }
}

fn default_candidates(host: &Host) -> PortSet {
    let known = WELL_KNOWN
        .into_iter()
        .chain(host.services.lines().filter_map(service_port));
    let excluded = PortSet::from_ranges(OTHER_ALLOCATORS)
        .expect("the ranges are not empty")
        .union(&PortSet::from_ports(known).expect("some ports are well known"));
    let excluded = match &host.reserved {
        Some(reserved) => excluded.union(reserved),
        None => excluded,
    };
    let all = PortSet::from_ranges([LOWEST..=u16::MAX]).expect("the range is not empty");
    let allowed = all.difference(&excluded);
    let outside =
        allowed.as_ref().and_then(
            |allowed| match PortSet::from_ranges([host.ephemeral.clone()]) {
                Some(ephemeral) => allowed.difference(&ephemeral),
                None => Some(allowed.clone()),
            },
        );
    // In the order of how much is given up: first the promise that the kernel gives the port to
    // nobody, then the regard for other services. An administrator can reserve every port.
    match outside {
        Some(outside) if outside.len() >= ENOUGH => outside,
        _ => allowed.unwrap_or(all),
    }
}

/// Reads the port of a line such as `mysql 3306/tcp # a comment`.
pub(crate) fn service_port(line: &str) -> Option<u16> {
    let (text, _comment) = line.split_once('#').unwrap_or((line, ""));
    let (port, _protocol) = text.split_whitespace().nth(1)?.split_once('/')?;
    port.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(ephemeral: RangeInclusive<u16>) -> Host {
        Host {
            ephemeral,
            reserved: None,
            services: String::new(),
        }
    }

    #[test]
    fn candidates_avoid_everything_that_somebody_else_uses() {
        let ports = default_candidates(&Host {
            reserved: Some("12000-12999".parse().unwrap()),
            services: "# a comment\nfoo 14000/tcp bar # 14002/tcp\nbad line\nbaz 14001/udp".into(),
            ..host(32_768..=60_999)
        });
        let avoided = [
            10_000, 10_080, 11_434, 27_017, 12_000, 12_999, 14_000, 14_001, 15_000, 24_999, 30_000,
            32_767, 32_768, 60_999,
        ];
        for port in avoided {
            assert!(!ports.contains(port), "{port}");
        }
        for port in [
            10_001, 11_999, 13_000, 14_002, 14_999, 25_000, 29_999, 61_000, 65_535,
        ] {
            assert!(ports.contains(port), "{port}");
        }
        assert!(ports.len() > 10_000);
    }

    #[test]
    fn a_wide_ephemeral_range_is_used_when_nothing_else_is_left() {
        let ports = default_candidates(&host(1024..=65_535));
        assert!(ports.len() > 40_000);
        assert!(!ports.contains(10_000) && !ports.contains(15_000));

        // 999 outside are not enough.
        let ports = default_candidates(&host(11_004..=65_535));
        assert!(ports.contains(60_000));
    }

    #[test]
    fn an_administrator_who_reserves_everything_is_overruled() {
        let all = Some("1-65535".parse().unwrap());
        let ports = default_candidates(&Host {
            reserved: all,
            ..host(32_768..=60_999)
        });
        assert_eq!(ports.to_string(), "10001-65535");
    }
}
