//! The supervisor: it carries out a command's binds and listens on ports that are held for it.

use std::collections::HashSet;
use std::error;
use std::fmt;
use std::io;
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::Command;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::sockopt::socket_cookie;
use socket2::{Domain, Protocol, Socket};

use super::admission;
use crate::hold::Hold;
use crate::lease::Lease;
use crate::probe::Kind;
use crate::sys::notification::{self, Call, CallKind, Listener, Request, Verdict};

/// A command that is about to be started with a supervisor.
#[derive(Debug)]
pub struct Preparation(Request);

impl Preparation {
    /// Tells whether a command of this process can be supervised, as far as can be known before.
    ///
    /// # Errors
    ///
    /// What stands in the way. After [`StepDown::NoCopies`], a supervisor is of use all the same:
    /// it lets go of a port at the very moment that the command binds it.
    pub fn is_possible() -> Result<(), StepDown> {
        notification::is_permitted().map_err(StepDown::NoNotification)?;
        notification::may_copy_descriptors().map_err(|errno| StepDown::NoCopies(errno.into()))
    }

    /// Prepares `command`, so that its calls are asked about once it is started.
    ///
    /// # Errors
    ///
    /// What socketpair(2) reports. Starting the command fails with what seccomp(2) reports: ask
    /// [`is_possible`](Self::is_possible) first.
    pub fn new(command: &mut Command) -> io::Result<Self> {
        Request::prepare(command).map(Self)
    }

    /// Returns the supervisor of the command, which has been started, for the ports in `holds`.
    ///
    /// # Errors
    ///
    /// What recvmsg(2) reports, or [`io::ErrorKind::UnexpectedEof`] if the command has not started.
    pub fn supervisor(self, holds: Vec<Hold>) -> io::Result<Supervisor> {
        let (mut leases, mut holders) = (Vec::new(), Vec::new());
        for hold in holds {
            let (lease, bound) = hold.into_parts();
            for (kind, socket) in [(Kind::Tcp, bound.tcp), (Kind::Udp, bound.udp)] {
                holders.extend(socket.map(|socket| Holder {
                    port: lease.port(),
                    kind,
                    socket,
                }));
            }
            leases.push(lease);
        }
        Ok(Supervisor {
            listener: self.0.listener()?,
            holders,
            leases,
            untold: HashSet::new(),
        })
    }
}

/// Carries out the binds and listens of a command and all its descendants.
///
/// Until it is asked to ([`answer`](Self::answer)), the callers wait. Once it is dropped, their
/// calls fail with ENOSYS: keep it as long as any of them runs.
#[derive(Debug)]
#[must_use = "binds fail once the supervisor is dropped"]
pub struct Supervisor {
    listener: Listener,
    // In this order: the sockets close before the locks are released, so that whoever leases a port
    // next finds it unused.
    holders: Vec<Holder>,
    leases: Vec<Lease>,
    /// Sockets that were bound for callers who were gone, or interrupted, when they were to be told.
    /// An interrupted caller asks again.
    untold: HashSet<u64>,
}

/// A socket that holds a port for one transport.
#[derive(Debug)]
struct Holder {
    port: u16,
    kind: Kind,
    socket: Socket,
}

/// What a call to [`Supervisor::answer`] came to.
#[derive(Debug)]
#[non_exhaustive]
pub enum Answered {
    /// A call was answered that has nothing to do with the ports.
    Other,
    /// A bind or a listen on this port was carried out, or failed as it would have by itself.
    Port(u16),
    /// A port was let go of, or all of them, because the command's own bind comes next. What was
    /// let go of is only leased from now on.
    SteppedDown(StepDown),
    /// None of the command's processes is left.
    Ended,
}

/// Why a hand-off cannot be what it should.
#[derive(Debug)]
#[non_exhaustive]
pub enum StepDown {
    /// We cannot be asked about the command's calls.
    ///
    /// `EBUSY`: somebody else is: a container's runtime, or another hand-off that this process is
    /// below. `ENOSYS`, `EINVAL`: the kernel is older than 5.0, or runs on another architecture.
    /// `EPERM`, `EACCES`: a sandbox forbids it.
    NoNotification(io::Error),
    /// We cannot get at the command's sockets.
    ///
    /// `ENOSYS`: the kernel is older than 5.6. `EPERM`: a sandbox forbids it, or the command has
    /// become another user's, or may not be looked into (ptrace(2), "Ptrace access mode checking").
    NoCopies(io::Error),
}

impl fmt::Display for StepDown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoNotification(err) if err.raw_os_error() == Some(libc::EBUSY) => {
                "somebody else supervises the calls of this process already"
            }
            Self::NoNotification(_) => "cannot supervise the command's calls",
            Self::NoCopies(_) => "cannot get at the command's sockets",
        })
    }
}

impl error::Error for StepDown {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            Self::NoNotification(err) | Self::NoCopies(err) => Some(err),
        }
    }
}

impl Supervisor {
    /// Takes over from a supervisor in another process, which has passed its descriptors on.
    ///
    /// `listener` is what [`AsFd`] gives there, `holders` what [`holders`](Self::holders) does. The
    /// leases are the caller's business.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::InvalidInput`] if one of `holders` is not a socket bound to a port.
    pub fn adopt(listener: OwnedFd, holders: Vec<OwnedFd>) -> io::Result<Self> {
        let holder = |fd: OwnedFd| -> Option<Holder> {
            let socket = Socket::from(fd);
            Some(Holder {
                port: local_port(&socket)?,
                kind: kind(&socket)?,
                socket,
            })
        };
        let holders: Option<Vec<Holder>> = holders.into_iter().map(holder).collect();
        Ok(Self {
            listener: Listener::from_descriptor(listener),
            holders: holders.ok_or(io::ErrorKind::InvalidInput)?,
            leases: Vec::new(),
            untold: HashSet::new(),
        })
    }

    /// Returns the descriptors of the sockets that hold the ports.
    pub fn holders(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.holders.iter().map(|holder| holder.socket.as_fd())
    }

    /// Returns the leases of the ports.
    pub fn leases(&self) -> &[Lease] {
        &self.leases
    }

    /// Answers calls until none of the command's processes is left.
    ///
    /// `on_step_down` is told why a port is only leased from then on.
    ///
    /// # Errors
    ///
    /// What poll(2) or the listener reports.
    pub fn run(mut self, mut on_step_down: impl FnMut(&StepDown)) -> io::Result<()> {
        loop {
            match self.answer()? {
                Answered::Other | Answered::Port(_) => {}
                Answered::SteppedDown(reason) => on_step_down(&reason),
                Answered::Ended => return Ok(()),
            }
        }
    }

    /// Waits for a call, and answers it.
    ///
    /// The supervisor's descriptor (it is [`AsFd`]) is readable or hung up when this would not
    /// wait.
    ///
    /// # Errors
    ///
    /// What poll(2) or the listener reports.
    pub fn answer(&mut self) -> io::Result<Answered> {
        let call = loop {
            let mut fds = [PollFd::from_borrowed_fd(
                self.listener.as_fd(),
                PollFlags::IN,
            )];
            match poll(&mut fds, None) {
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(err) => return Err(err.into()),
            }
            if fds[0].revents().contains(PollFlags::IN) {
                if let Some(call) = self.listener.next()? {
                    break call;
                }
            } else if fds[0].revents().contains(PollFlags::HUP) {
                return Ok(Answered::Ended);
            }
        };
        let visit = match call.kind {
            CallKind::Bind {
                fd,
                address,
                length,
            } => self.bind(&call, fd, address, length),
            CallKind::Listen { fd, backlog } => self.listen(&call, fd, backlog),
        };
        let Visit::CarriedOut(port, socket, result) = visit else {
            self.listener.answer(&call, &Verdict::Continue)?;
            return Ok(match visit {
                Visit::LetGo(reason) => Answered::SteppedDown(reason),
                _ => Answered::Other,
            });
        };
        let is_good = result.is_ok();
        let is_told = self.listener.answer(&call, &Verdict::Made(result))?;
        if is_good && !is_told {
            // The next call for this socket is the same one, made again.
            self.untold.extend(socket_cookie(&socket));
        }
        Ok(Answered::Port(port))
    }

    /// Carries out a bind, if it is to one of the ports.
    fn bind(&mut self, call: &Call, fd: i32, address: u64, length: u32) -> Visit {
        // A copy, which the caller cannot change while we look at it.
        let address = match call.memory(address, length) {
            Ok(bytes) => parse_address(&bytes),
            Err(errno) if is_callers_own(errno) => None,
            Err(errno) => return self.let_go(None, errno),
        };
        let Some(address) = address else {
            return Visit::Other;
        };
        let port = address.port();
        if !self.has(port) {
            return Visit::Other;
        }
        let (socket, kind) = match self.socket(call, fd) {
            Ok(Some(found)) => found,
            Ok(None) => return Visit::Other,
            Err(errno) if is_callers_own(errno) => return Visit::Other,
            Err(errno) => return self.let_go(Some(port), errno),
        };
        let was_bound = socket_cookie(&socket).is_ok_and(|cookie| self.untold.remove(&cookie));
        let result = match self.holder(port, kind) {
            _ if was_bound => Ok(()),
            Some(holder) => admission::bind(holder, &socket, address),
            None => socket.bind(&address.into()),
        };
        Visit::CarriedOut(port, socket, errno(result))
    }

    /// Carries out a listen, if the socket is bound to one of the ports.
    fn listen(&self, call: &Call, fd: i32, backlog: i32) -> Visit {
        // If we cannot get at it, it was not bound by us.
        let Ok(Some((socket, Kind::Tcp))) = self.socket(call, fd) else {
            return Visit::Other;
        };
        let Some(port) = local_port(&socket).filter(|&port| self.has(port)) else {
            return Visit::Other;
        };
        // Made a second time, because the caller was interrupted, it does no harm.
        let result = match self.holder(port, Kind::Tcp) {
            Some(holder) => admission::listen(holder, &socket, backlog),
            None => socket.listen(backlog),
        };
        Visit::CarriedOut(port, socket, errno(result))
    }

    fn has(&self, port: u16) -> bool {
        port != 0 && self.holders.iter().any(|holder| holder.port == port)
    }

    fn holder(&self, port: u16, kind: Kind) -> Option<&Socket> {
        self.holders
            .iter()
            .find(|holder| (holder.port, holder.kind) == (port, kind))
            .map(|holder| &holder.socket)
    }

    /// Returns a copy of the caller's socket, if it is one that ports are for.
    fn socket(&self, call: &Call, fd: i32) -> Result<Option<(Socket, Kind)>, Errno> {
        let socket = Socket::from(call.descriptor(fd)?);
        // Only now is it sure that it was the caller's, and not that of a process that has its
        // number since.
        if !self.listener.is_waiting(call) {
            return Err(Errno::SRCH);
        }
        Ok(kind(&socket).map(|kind| (socket, kind)))
    }

    /// Lets go of `port`, or of all if it is not known which the caller wants, so that the caller's
    /// own bind succeeds.
    fn let_go(&mut self, port: Option<u16>, errno: Errno) -> Visit {
        let before = self.holders.len();
        self.holders
            .retain(|holder| port.is_some_and(|port| holder.port != port));
        if self.holders.len() == before {
            return Visit::Other;
        }
        Visit::LetGo(StepDown::NoCopies(errno.into()))
    }
}

impl AsFd for Supervisor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

/// What became of a call.
enum Visit {
    /// Nothing: it concerns none of the ports.
    Other,
    /// It was carried out on this copy of the caller's socket.
    CarriedOut(u16, Socket, Result<(), Errno>),
    /// It is left to the caller, for whom a port was let go of.
    LetGo(StepDown),
}

/// Tells whether `errno` is what comes of the caller's own mistakes or end. The kernel knows best
/// how to answer those.
fn is_callers_own(errno: Errno) -> bool {
    matches!(errno, Errno::BADF | Errno::FAULT | Errno::SRCH)
}

fn errno(result: io::Result<()>) -> Result<(), Errno> {
    result.map_err(|err| Errno::from_io_error(&err).unwrap_or(Errno::IO))
}

/// Returns the transport of a socket for TCP or UDP.
fn kind(socket: &Socket) -> Option<Kind> {
    if !matches!(socket.domain(), Ok(Domain::IPV4 | Domain::IPV6)) {
        return None;
    }
    match socket.protocol().ok()?? {
        // Go listens with multipath TCP since its version 1.24.
        Protocol::TCP | Protocol::MPTCP => Some(Kind::Tcp),
        Protocol::UDP => Some(Kind::Udp),
        _ => None,
    }
}

fn local_port(socket: &Socket) -> Option<u16> {
    Some(socket.local_addr().ok()?.as_socket()?.port())
}

/// Reads what a caller has given for a socket address; `None` if it is not one of IPv4 or IPv6.
fn parse_address(bytes: &[u8]) -> Option<SocketAddr> {
    let (family, rest) = bytes.split_first_chunk()?;
    let (port, rest) = rest.split_first_chunk()?;
    let port = u16::from_be_bytes(*port);
    match i32::from(u16::from_ne_bytes(*family)) {
        libc::AF_INET if bytes.len() >= size_of::<libc::sockaddr_in>() => {
            let address: &[u8; 4] = rest.first_chunk()?;
            Some(SocketAddrV4::new((*address).into(), port).into())
        }
        libc::AF_INET6 if bytes.len() >= size_of::<libc::sockaddr_in6>() => {
            let (flow, rest) = rest.split_first_chunk()?;
            let (address, rest): (&[u8; 16], _) = rest.split_first_chunk()?;
            let scope = rest.first_chunk()?;
            let flow = u32::from_ne_bytes(*flow);
            let scope = u32::from_ne_bytes(*scope);
            Some(SocketAddrV6::new((*address).into(), port, flow, scope).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_the_kernel_reads_them() {
        for text in [
            "127.0.0.1:80",
            "[::1]:20001",
            "0.0.0.0:65535",
            "[fe80::1%3]:7",
        ] {
            let address: SocketAddr = text.parse().unwrap();
            let bytes = bytes_of(address);
            assert_eq!(parse_address(&bytes), Some(address));
            for short in 0..bytes.len() {
                assert_eq!(
                    parse_address(&bytes[..short]),
                    None,
                    "{text}, {short} bytes"
                );
            }
        }
        assert_eq!(parse_address(&[1, 0, b'/', b'x', 0, 0]), None, "a path");
    }

    /// As in ip(7) and ipv6(7).
    fn bytes_of(address: SocketAddr) -> Vec<u8> {
        let family = if address.is_ipv4() {
            libc::AF_INET
        } else {
            libc::AF_INET6
        };
        let mut bytes = (family as u16).to_ne_bytes().to_vec();
        bytes.extend(address.port().to_be_bytes());
        match address {
            SocketAddr::V4(address) => {
                bytes.extend(address.ip().octets());
                bytes.extend([0; 8]);
            }
            SocketAddr::V6(address) => {
                bytes.extend(address.flowinfo().to_ne_bytes());
                bytes.extend(address.ip().octets());
                bytes.extend(address.scope_id().to_ne_bytes());
            }
        }
        bytes
    }
}
