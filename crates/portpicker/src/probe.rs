//! Asking the kernel whether a port is unused, now.
//!
//! One TCP and one UDP socket are bound to the port, on the IPv6 wildcard address with IPv4
//! included, without options, and without listening. That is enough to meet every holder of the
//! port on every address, listening or not, whatever options it has set; fewer binds, or any
//! option, would miss some (`tests/it/kernel.rs` shows it for the running kernel).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};

use crate::error::{Error, Result};
use crate::sys::device::{LOOPBACK, set_device};

/// A transport protocol, each with port numbers of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// TCP: stream sockets.
    Tcp,
    /// UDP: datagram sockets.
    Udp,
}

/// A family of addresses, each with port numbers of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

impl Family {
    /// Returns the address that stands for all of the family's: `0.0.0.0` or `::`.
    pub(crate) fn unspecified_address(self) -> IpAddr {
        match self {
            Self::Ipv4 => ALL_V4,
            Self::Ipv6 => ALL_V6,
        }
    }
}

/// What has to be unused for a port to count as unused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Scope {
    /// One transport instead of both.
    pub(crate) only: Option<Kind>,
    /// One local address instead of all. The wildcard address of a family means all of that
    /// family, and none of the other.
    pub(crate) address: Option<IpAddr>,
}

impl Scope {
    /// Returns the local address that stands for the scope in messages.
    pub(crate) fn local_address(self) -> IpAddr {
        self.address.unwrap_or(ALL_V6)
    }
}

/// The kernel's answer.
#[derive(Debug)]
pub(crate) enum Answer {
    /// The port was free, and is bound by these sockets now: dropped, they were a probe; kept,
    /// they are a hold.
    Free(Bound),
    /// Somebody has bound it, is connected from it, or was so a moment ago (TIME-WAIT).
    Occupied,
    /// The system keeps it from us: privileged, reserved, or denied by a security module.
    Forbidden,
}

/// Sockets that are bound to one port, exclusively, and do not listen.
#[derive(Debug, Default)]
pub(crate) struct Bound {
    pub(crate) tcp: Option<Socket>,
    pub(crate) udp: Option<Socket>,
}

/// Probes ports, one after another.
///
/// Keeps the TCP socket of a failed attempt for the next one: a bind that fails costs a tenth of
/// a new socket.
#[derive(Debug)]
pub(crate) struct Prober {
    scope: Scope,
    /// Whether the TCP socket may share the port with connections in TIME-WAIT.
    accept_time_wait: bool,
    spare: Option<Unbound>,
}

impl Prober {
    pub(crate) fn new(scope: Scope) -> Self {
        Self {
            scope,
            accept_time_wait: false,
            spare: None,
        }
    }

    /// Returns a prober that calls a port in TIME-WAIT free.
    ///
    /// Its TCP socket sets SO_REUSEADDR, which misses one holder besides: a socket with the same
    /// option that does not listen. Ask only about ports that are known to be in TIME-WAIT.
    pub(crate) fn accepting_time_wait(scope: Scope) -> Self {
        Self {
            scope,
            accept_time_wait: true,
            spare: None,
        }
    }

    /// Probes `port`. The caller must have its lock, so that the probe is in nobody's way.
    pub(crate) fn probe(&mut self, port: u16) -> Result<Answer> {
        let mut bound = Bound::default();
        if self.scope.only != Some(Kind::Udp) {
            match self.unbound_tcp()?.bind(port)? {
                Ok(socket) => bound.tcp = Some(socket),
                Err((answer, unbound)) => {
                    self.spare = Some(unbound);
                    return Ok(answer);
                }
            }
        }
        if self.scope.only != Some(Kind::Tcp) {
            match Unbound::open(self.scope, Kind::Udp)?.bind(port)? {
                Ok(socket) => bound.udp = Some(socket),
                Err((answer, _)) => return Ok(answer),
            }
        }
        Ok(Answer::Free(bound))
    }

    fn unbound_tcp(&mut self) -> Result<Unbound> {
        if let Some(spare) = self.spare.take() {
            return Ok(spare);
        }
        let unbound = Unbound::open(self.scope, Kind::Tcp)?;
        if self.accept_time_wait {
            let address = unbound.address;
            unbound
                .socket
                .set_reuse_address(true)
                .map_err(|source| Error::Socket {
                    call: "setsockopt",
                    address,
                    source,
                })?;
        }
        Ok(unbound)
    }
}

/// Binds `port` with a new socket, or returns `None` if it cannot be had.
pub(crate) fn bind_one(scope: Scope, kind: Kind, port: u16) -> Result<Option<Socket>> {
    Ok(Unbound::open(scope, kind)?.bind(port)?.ok())
}

/// Makes the kernel forget that a visitor, who was let in beside a hold, would have shared the port.
///
/// Linux keeps in the port's entry that the last one to bind had set SO_REUSEPORT, and its address,
/// and lets the next one of the same user who sets it too pass unchecked there (`fastreuseport`).
/// Whoever binds without that option clears it, at whatever address: so, at one that is kept for
/// documentation (RFC 5737, RFC 3849), where no server is in the way. Whoever binds *with* that option
/// at least has that address remembered, which nobody wants, unless it was the wildcard address of
/// both families.
///
/// The hold must still let in who sets SO_REUSEADDR, or SO_REUSEPORT, or this is refused too.
pub(crate) fn forget_sharing(port: u16) {
    let passer_by = |address: IpAddr, is_sharing: bool| -> io::Result<()> {
        let domain = if address.is_ipv4() {
            Domain::IPV4
        } else {
            Domain::IPV6
        };
        let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(is_sharing)?;
        // Out of the way of a hold that is on another one. Needs Linux 5.7 or CAP_NET_RAW.
        _ = set_device(&socket, LOOPBACK);
        // Not an address of this host's.
        match address {
            IpAddr::V4(_) => socket.set_freebind_v4(true)?,
            IpAddr::V6(_) => {
                socket.set_only_v6(true)?;
                socket.set_freebind_v6(true)?;
            }
        }
        socket.bind(&SocketAddr::new(address, port).into())
    };
    for is_sharing in [false, true] {
        // One may be refused where a family is missing, or a server has all of its addresses.
        let passed = [IpAddr::V4(NOBODY_V4), IpAddr::V6(NOBODY_V6)]
            .map(|address| passer_by(address, is_sharing).is_ok());
        if passed.contains(&true) {
            break;
        }
    }
}

/// A new socket, and the address that it is to be bound to.
#[derive(Debug)]
struct Unbound {
    socket: Socket,
    address: IpAddr,
}

impl Unbound {
    /// Opens a socket for `scope`: one for IPv6 and IPv4 together unless that says otherwise.
    ///
    /// No SO_REUSEADDR: with it, two UDP sockets that both set it share a port on Linux, and a TCP
    /// port that somebody holds without listening passes bind and listen. Either would be called
    /// free.
    fn open(scope: Scope, kind: Kind) -> Result<Self> {
        match scope.address {
            Some(address) => Self::open_at(address, kind, true),
            None if cfg!(portpicker_force = "ipv4") => Self::open_at(ALL_V4, kind, true),
            None => match Self::open_at(ALL_V6, kind, false) {
                // A kernel without IPv6: IPv4 is all there is to be in use.
                Err(Error::Socket { source, .. }) if is_unsupported_family(&source) => {
                    Self::open_at(ALL_V4, kind, true)
                }
                result => result,
            },
        }
    }

    fn open_at(address: IpAddr, kind: Kind, only_this_family: bool) -> Result<Self> {
        let (r#type, protocol) = match kind {
            Kind::Tcp => (Type::STREAM, Protocol::TCP),
            Kind::Udp => (Type::DGRAM, Protocol::UDP),
        };
        let failed = |call| {
            move |source| Error::Socket {
                call,
                address,
                source,
            }
        };
        let domain = if address.is_ipv4() {
            Domain::IPV4
        } else {
            Domain::IPV6
        };
        let socket = Socket::new(domain, r#type, Some(protocol)).map_err(failed("socket"))?;
        if address.is_ipv6() {
            // Always said: the system's default differs from host to host.
            socket
                .set_only_v6(only_this_family)
                .map_err(failed("setsockopt"))?;
        }
        Ok(Self { socket, address })
    }

    /// Binds the socket to `port`, or returns it with the reason why the port is not free.
    fn bind(self, port: u16) -> Result<std::result::Result<Socket, (Answer, Self)>> {
        match self
            .socket
            .bind(&SocketAddr::new(self.address, port).into())
        {
            Ok(()) => Ok(Ok(self.socket)),
            Err(err) if err.kind() == io::ErrorKind::AddrInUse => Ok(Err((Answer::Occupied, self))),
            // EACCES: below `ip_unprivileged_port_start`, or an excluded range on Windows. EPERM:
            // the word of a control group or of a security module.
            Err(err) if err.kind() == io::ErrorKind::PermissionDenied => {
                Ok(Err((Answer::Forbidden, self)))
            }
            Err(source) => Err(Error::Socket {
                call: "bind",
                address: self.address,
                source,
            }),
        }
    }
}

const NOBODY_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const NOBODY_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
const ALL_V4: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
const ALL_V6: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

fn is_unsupported_family(err: &io::Error) -> bool {
    // std has no ErrorKind for it.
    err.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error())
}
