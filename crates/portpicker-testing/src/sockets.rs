//! Every way to have a port: addresses, options, bound or listening, connected, in TIME-WAIT.

use std::fmt;
use std::fs;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::str::FromStr;
use std::thread;
use std::time::Instant;

use portpicker::Kind;
use socket2::{Domain, Protocol, Socket, Type};

use crate::exit::DEADLINE;
use crate::network::{OTHER_V4, OTHER_V6};

/// Which options a socket sets before bind(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Options {
    /// None.
    None,
    /// SO_REUSEADDR.
    ReuseAddress,
    /// SO_REUSEPORT.
    ReusePort,
    /// SO_REUSEADDR and SO_REUSEPORT.
    Both,
}

impl Options {
    /// All combinations.
    pub const ALL: [Self; 4] = [Self::None, Self::ReuseAddress, Self::ReusePort, Self::Both];

    /// Returns whether SO_REUSEADDR is among them.
    pub fn reuse_address(self) -> bool {
        matches!(self, Self::ReuseAddress | Self::Both)
    }

    /// Returns whether SO_REUSEPORT is among them.
    pub fn reuse_port(self) -> bool {
        matches!(self, Self::ReusePort | Self::Both)
    }

    /// Sets them on `socket`.
    pub fn set_on(self, socket: &Socket) -> io::Result<()> {
        socket.set_reuse_address(self.reuse_address())?;
        socket.set_reuse_port(self.reuse_port())
    }
}

impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::ReuseAddress => "RA",
            Self::ReusePort => "RP",
            Self::Both => "RA+RP",
        })
    }
}

/// What a socket is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Local {
    /// The address.
    pub address: IpAddr,
    /// Whether an IPv6 socket takes IPv4 as well.
    pub dual: bool,
}

impl Local {
    /// `127.0.0.1`.
    pub const LOOPBACK_V4: Self = Self::only(IpAddr::V4(Ipv4Addr::LOCALHOST));
    /// `::1`.
    pub const LOOPBACK_V6: Self = Self::only(IpAddr::V6(Ipv6Addr::LOCALHOST));
    /// `0.0.0.0`.
    pub const ALL_V4: Self = Self::only(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    /// `::`, without IPv4.
    pub const ALL_V6: Self = Self::only(IpAddr::V6(Ipv6Addr::UNSPECIFIED));
    /// `::`, with IPv4.
    pub const DUAL: Self = Self {
        dual: true,
        ..Self::ALL_V6
    };

    /// The kinds of local addresses that there are in a test's network namespace.
    pub const EVERY: [Self; 9] = [
        Self::LOOPBACK_V4,
        Self::only(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2))),
        Self::only(OTHER_V4),
        Self::ALL_V4,
        Self::LOOPBACK_V6,
        Self::only(OTHER_V6),
        Self::ALL_V6,
        Self::DUAL,
        // IPv4, written as IPv6.
        Self {
            address: IpAddr::V6(Ipv4Addr::LOCALHOST.to_ipv6_mapped()),
            dual: true,
        },
    ];

    const fn only(address: IpAddr) -> Self {
        Self {
            address,
            dual: false,
        }
    }

    /// Returns whether sockets bound to it have to do with IPv4.
    pub fn meets_ipv4(self) -> bool {
        self.address.is_ipv4() || self.dual
    }
}

impl fmt::Display for Local {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dual = if self.dual { "/dual" } else { "" };
        write!(f, "{}{dual}", self.address)
    }
}

/// One way to have a port, such as `tcp ::/dual RA+RP listening`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Binding {
    /// The transport.
    pub kind: Kind,
    /// The address.
    pub local: Local,
    /// The options.
    pub options: Options,
    /// Whether the socket listens; TCP only.
    pub listens: bool,
}

impl Binding {
    /// Returns a TCP socket's binding that does not listen.
    pub fn tcp(local: Local, options: Options) -> Self {
        Self {
            kind: Kind::Tcp,
            local,
            options,
            listens: false,
        }
    }

    /// Returns a listening TCP socket's binding.
    pub fn listening(local: Local, options: Options) -> Self {
        Self {
            listens: true,
            ..Self::tcp(local, options)
        }
    }

    /// Returns a UDP socket's binding.
    pub fn udp(local: Local, options: Options) -> Self {
        Self {
            kind: Kind::Udp,
            ..Self::tcp(local, options)
        }
    }

    /// Returns all of them: nine addresses, four combinations of options, TCP bound, TCP
    /// listening, and UDP.
    pub fn every() -> impl Iterator<Item = Self> {
        Local::EVERY.into_iter().flat_map(|local| {
            Options::ALL.into_iter().flat_map(move |options| {
                [
                    Self::tcp(local, options),
                    Self::listening(local, options),
                    Self::udp(local, options),
                ]
            })
        })
    }

    /// Binds a new socket to `port`.
    pub fn bind(self, port: u16) -> io::Result<Socket> {
        let socket = self.open()?;
        socket.bind(&SocketAddr::new(self.local.address, port).into())?;
        if self.listens {
            socket.listen(16)?;
        }
        Ok(socket)
    }

    /// Returns the socket before bind(2), with its options.
    pub fn open(self) -> io::Result<Socket> {
        let (r#type, protocol) = match self.kind {
            Kind::Tcp => (Type::STREAM, Protocol::TCP),
            Kind::Udp => (Type::DGRAM, Protocol::UDP),
        };
        let domain = Domain::for_address(SocketAddr::new(self.local.address, 0));
        let socket = Socket::new(domain, r#type, Some(protocol))?;
        if self.local.address.is_ipv6() {
            socket.set_only_v6(!self.local.dual)?;
        }
        self.options.set_on(&socket)?;
        Ok(socket)
    }
}

impl fmt::Display for Binding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Tcp => "tcp",
            Kind::Udp => "udp",
        };
        let state = if self.listens { "listening" } else { "bound" };
        write!(f, "{kind} {} {} {state}", self.local, self.options)
    }
}

impl FromStr for Binding {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::every()
            .find(|binding| binding.to_string() == text)
            .ok_or_else(|| format!("`{text}` is not a binding"))
    }
}

/// Returns the local port of `socket`.
pub fn port_of(socket: &Socket) -> u16 {
    let address = socket.local_addr().expect("a socket has a local address");
    address.as_socket().expect("it is an IP socket").port()
}

/// Leaves `port` of 127.0.0.1 in TIME-WAIT, by a server that sets `options` and is the first to
/// close a connection.
pub fn leave_in_time_wait(port: u16, options: Options) {
    let listener = Binding::listening(Local::LOOPBACK_V4, options)
        .bind(port)
        .expect("the port is unused");
    let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("it listens");
    drop(listener.accept().expect("a client has connected"));
    let received = client.read(&mut [0]).expect("the server has closed");
    assert_eq!(received, 0);
    drop((client, listener));

    // The client's last segment is on its way, and no event tells of its arrival.
    let end = Instant::now() + DEADLINE;
    while !is_in_time_wait(port) {
        assert!(Instant::now() < end, "port {port} does not enter TIME-WAIT");
        thread::yield_now();
    }
}

/// Returns whether a connection from `port` of 127.0.0.1 is in TIME-WAIT.
pub fn is_in_time_wait(port: u16) -> bool {
    let table = fs::read_to_string("/proc/thread-self/net/tcp").expect("Linux lists sockets");
    let local = format!(":{port:04X}");
    table.lines().any(|line| {
        let mut fields = line.split_whitespace().skip(1);
        fields
            .next()
            .is_some_and(|address| address.ends_with(&local))
            && fields.nth(1) == Some("06")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::in_network_namespace;
    use std::collections::HashSet;

    #[test]
    fn there_are_108_bindings_and_each_has_its_text() {
        let every: HashSet<_> = Binding::every().collect();
        assert_eq!(every.len(), 108);
        for binding in every {
            assert_eq!(binding.to_string().parse(), Ok(binding));
        }
    }

    #[test]
    fn every_binding_can_be_made() {
        in_network_namespace(|| {
            for binding in Binding::every() {
                let socket = binding.bind(20_000);
                assert!(socket.is_ok(), "{binding}: {socket:?}");
            }
        });
    }

    #[test]
    fn a_port_left_in_time_wait_cannot_be_bound() {
        in_network_namespace(|| {
            leave_in_time_wait(20_000, Options::ReuseAddress);
            let err = Binding::tcp(Local::LOOPBACK_V4, Options::None)
                .bind(20_000)
                .unwrap_err();
            assert_eq!(err.kind(), io::ErrorKind::AddrInUse);
        });
    }
}
