//! A port that nobody can bind.

use std::fmt;
use std::io;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};

use socket2::Socket;

use crate::error::{Error, Result};
use crate::lease::Lease;
use crate::probe::{self, Bound, Kind, Scope};

/// A lease whose sockets stay bound, so that nobody at all can bind the port.
///
/// Promise 3, *held*: promise 2 (see [`Lease`]), and the kernel refuses the port to every other
/// bind on every address, with whatever options, and never gives it out for `bind(0)` or
/// `connect()`. The sockets do not listen: a connection attempt is refused, as on an unused port.
///
/// A hold ends in one of three ways:
///
/// - its own sockets become the server: [`listen`](Self::listen), [`take_tcp`](Self::take_tcp),
///   [`take_udp`](Self::take_udp). The port is never free in between.
/// - a server in this process or another binds the port beside it, through the door:
///   [`open_door`](Self::open_door).
/// - it is let go: [`into_lease`](Self::into_lease), or dropped. After `into_lease` the port is
///   still leased but no longer held.
///
/// # Example
///
/// ```
/// use std::net::TcpListener;
/// use portpicker::Picker;
///
/// let mut hold = Picker::new().hold()?;
/// let address = ("127.0.0.1", hold.port());
/// assert!(TcpListener::bind(address).is_err(), "held");
///
/// // std sets SO_REUSEADDR, so it may come in through the open door.
/// hold.open_door()?;
/// let server = TcpListener::bind(address)?;
/// hold.shut_door()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
#[must_use = "a hold ends when it is dropped"]
pub struct Hold {
    // In this order: the sockets close before the lock is released, so that whoever leases the
    // port next finds it unused.
    bound: Bound,
    lease: Lease,
    scope: Scope,
}

impl Hold {
    pub(crate) fn new(lease: Lease, bound: Bound, scope: Scope) -> Self {
        Self {
            bound,
            lease,
            scope,
        }
    }

    /// Returns a hold that has let go of its sockets already.
    pub(crate) fn without_sockets(lease: Lease) -> Self {
        Self::new(lease, Bound::default(), Scope::default())
    }

    /// Returns the port.
    pub fn port(&self) -> u16 {
        self.lease.port()
    }

    /// Returns the lease. The port is no longer held: its owner may bind it with any options.
    pub fn into_lease(self) -> Lease {
        self.lease
    }

    /// Returns the lease, to ask it who keeps it.
    pub fn lease(&self) -> &Lease {
        &self.lease
    }

    /// Makes the held TCP socket listen and returns it.
    ///
    /// It accepts connections to all addresses that the hold was made for: on the default hold
    /// IPv4 and IPv6. `backlog` is how many connections may wait to be accepted, at most what the
    /// system allows (`net.core.somaxconn`).
    ///
    /// The rest of the hold goes on: the lease, and the UDP socket.
    ///
    /// # Errors
    ///
    /// [`Error::Socket`] with what listen(2) reports; the socket is kept then. Or with
    /// [`io::ErrorKind::NotFound`] if the hold has no TCP socket: it was made for UDP, or the
    /// socket was taken before.
    pub fn listen(&mut self, backlog: i32) -> Result<TcpListener> {
        let tcp = self
            .bound
            .tcp
            .take()
            .ok_or_else(|| self.failed("listen")(no_tcp_socket()))?;
        match tcp.listen(backlog) {
            Ok(()) => Ok(tcp.into()),
            Err(err) => {
                self.bound.tcp = Some(tcp);
                Err(self.failed("listen")(err))
            }
        }
    }

    /// Takes the TCP socket out of the hold: bound, without options, and not listening.
    ///
    /// `None` if there is none (any more). The standard library's type is only the vessel here:
    /// accepting from it is an error until somebody calls listen(2).
    pub fn take_tcp(&mut self) -> Option<TcpListener> {
        self.bound.tcp.take().map(TcpListener::from)
    }

    /// Takes the UDP socket out of the hold, ready to receive. `None` if there is none (any more).
    ///
    /// Datagrams that were sent to the port while it was held wait in it.
    pub fn take_udp(&mut self) -> Option<UdpSocket> {
        self.bound.udp.take().map(UdpSocket::from)
    }

    /// Lets servers that set SO_REUSEADDR bind the port and listen, while the hold goes on.
    ///
    /// Most servers set it on TCP: Rust's, Go's, and Node's standard libraries, Java, asyncio,
    /// nginx. Servers that do not set it are refused still. Nor are others who set it told from
    /// the server that is meant: the first to listen has the port. The kernel still gives it to
    /// nobody by itself.
    ///
    /// UDP has no such option that servers would set, so the UDP socket is closed: for UDP the
    /// port is leased, and not held, until the door is shut.
    ///
    /// # Errors
    ///
    /// [`Error::Socket`] with what setsockopt(2) reports.
    pub fn open_door(&mut self) -> Result<()> {
        if let Some(tcp) = &self.bound.tcp {
            tcp.set_reuse_address(true)
                .map_err(self.failed("setsockopt"))?;
        }
        self.bound.udp = None;
        Ok(())
    }

    /// Shuts the door again: nobody else gets in, and a server that listens goes on listening.
    ///
    /// Shut it when the server listens: a server that has bound and not yet listened cannot
    /// listen any more. A server that sets SO_REUSEPORT as well shares its own address with sockets
    /// of the same user that set it, door or no door. The UDP port is held again unless somebody has bound it.
    ///
    /// # Errors
    ///
    /// [`Error::Socket`] with what setsockopt(2) reports, or if a UDP socket cannot be made.
    pub fn shut_door(&mut self) -> Result<()> {
        if let Some(tcp) = &self.bound.tcp {
            probe::forget_sharing(self.port());
            tcp.set_reuse_address(false)
                .map_err(self.failed("setsockopt"))?;
        }
        if self.bound.udp.is_none() && self.scope.only != Some(Kind::Tcp) {
            self.bound.udp = probe::bind_one(self.scope, Kind::Udp, self.port())?;
        }
        Ok(())
    }

    /// Returns the descriptors of the sockets that hold the port; not that of the lease.
    ///
    /// Whoever has a copy of them shares the hold.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        [&self.bound.tcp, &self.bound.udp]
            .into_iter()
            .flatten()
            .map(Socket::as_fd)
    }

    /// Returns the lease, and the sockets that hold the port.
    pub(crate) fn into_parts(self) -> (Lease, Bound) {
        (self.lease, self.bound)
    }

    fn failed(&self, call: &'static str) -> impl FnOnce(io::Error) -> Error + use<> {
        let address = self.scope.local_address();
        move |source| Error::Socket {
            call,
            address,
            source,
        }
    }
}

fn no_tcp_socket() -> io::Error {
    io::Error::new(
        io::ErrorKind::NotFound,
        "the hold has no TCP socket (any more)",
    )
}

impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lease.fmt(f)
    }
}
