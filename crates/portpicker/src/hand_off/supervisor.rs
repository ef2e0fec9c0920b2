//! The supervisor: it carries out a command's binds and listens on ports that are held for it.

use std::collections::HashSet;
use std::error;
use std::fmt;
use std::io;
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::Command;
use std::thread;
use std::time::Instant;

use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::sockopt::socket_cookie;
use socket2::{Domain, Protocol, Socket};

use super::{admission, guest};
use crate::hold::Hold;
use crate::lease::Lease;
use crate::probe::Kind;
use crate::process::wait_readable;
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
        notification::may_look_into_others().map_err(StepDown::NoCopies)
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

    /// Returns a preparation of a command that is started by other means than [`Command`], and the
    /// descriptor that [`begin`](Self::begin) needs there.
    ///
    /// # Errors
    ///
    /// What socketpair(2) reports.
    pub fn elsewhere() -> io::Result<(Self, OwnedFd)> {
        let (request, socket) = Request::elsewhere()?;
        Ok((Self(request), socket))
    }

    /// Has this process supervised from now on, and what it becomes or starts: for a program that
    /// becomes the command (execve(2)).
    ///
    /// # Errors
    ///
    /// What seccomp(2) or sendmsg(2) reports.
    pub fn begin(socket: impl AsFd) -> io::Result<()> {
        notification::begin(socket.as_fd())
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
        Supervisor::new(self.0.listener()?, holders, leases)
    }
}

/// Carries out the binds and listens of a command and all its descendants.
///
/// Until it is asked to ([`answer`](Self::answer)), the callers wait. Once it is dropped, their
/// calls fail with ENOSYS: keep it as long as any of them runs.
#[derive(Debug)]
#[must_use = "binds fail once the supervisor is dropped"]
pub struct Supervisor {
    /// Where the listener is waited for, and the ends of guests.
    events: OwnedFd,
    listener: Listener,
    // In this order: the sockets close before the locks are released, so that whoever leases a port
    // next finds it unused.
    holders: Vec<Holder>,
    _leases: Vec<Lease>,
    guests: Vec<Guest>,
    is_strict: bool,
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

impl Holder {
    /// Returns what `socket` holds, if it is bound to a port.
    fn new(socket: Socket) -> Option<Self> {
        Some(Self {
            port: local_port(&socket).filter(|&port| port != 0)?,
            kind: kind(&socket)?,
            socket,
        })
    }
}

/// A port of another supervisor's, which is below this one and cannot be asked itself.
#[derive(Debug)]
struct Guest {
    holder: Holder,
    /// A pidfd of the process whose hold it is. With it, it ends.
    host: OwnedFd,
}

/// The most holds that others may entrust to one supervisor: each takes two of its descriptors.
const MAX_GUESTS: usize = 256;

/// What a call to [`Supervisor::answer`] came to.
#[derive(Debug)]
#[non_exhaustive]
pub enum Answered {
    /// Nothing that concerns the ports: another call was answered, or the caller was gone.
    Other,
    /// A bind or a listen on this port was carried out, or failed as it would have by itself.
    Port(u16),
    /// A port was let go of, or all of them, because the command's own bind comes next. What was
    /// let go of is only leased from now on.
    SteppedDown(StepDown),
    /// A bind could not be carried out, and was left to meet the hold, since the supervisor is
    /// [strict](Supervisor::strict), or the hold was [entrusted](super::entrust) to it.
    Refused(StepDown),
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
    /// below. `ENOBUFS`: that one has no room for the ports (see [`entrust`](super::entrust)). `ENOSYS`,
    /// `EINVAL`: the kernel is older than 5.0, or runs on another architecture.
    /// `EPERM`, `EACCES`: a sandbox forbids it.
    NoNotification(io::Error),
    /// We cannot get at the command's sockets.
    ///
    /// `ENOSYS`: the kernel is older than 5.6. `EPERM`: a sandbox or Yama forbids it, or the command has
    /// become another user's, or may not be looked into (ptrace(2), "Ptrace access mode checking").
    NoCopies(io::Error),
}

impl fmt::Display for StepDown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoNotification(err) if err.raw_os_error() == Some(libc::EBUSY) => {
                "somebody else supervises the calls of this process already"
            }
            Self::NoNotification(err) if err.raw_os_error() == Some(libc::ENOBUFS) => {
                "the supervisor above has no room for the ports"
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
    fn new(listener: Listener, holders: Vec<Holder>, leases: Vec<Lease>) -> io::Result<Self> {
        let events = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(
            &events,
            &listener,
            epoll::EventData::new_u64(LISTENER),
            epoll::EventFlags::IN,
        )?;
        Ok(Self {
            events,
            listener,
            holders,
            _leases: leases,
            guests: Vec::new(),
            is_strict: false,
            untold: HashSet::new(),
        })
    }

    /// Lets go of no port: where the command's bind cannot be carried out, it meets the hold, and
    /// fails with EADDRINUSE.
    pub fn strict(mut self) -> Self {
        self.is_strict = true;
        self
    }

    /// Returns the sockets that hold the ports.
    pub fn holders(&self) -> Vec<BorrowedFd<'_>> {
        self.holders.iter().map(|it| it.socket.as_fd()).collect()
    }

    /// Tells whether none of the command's processes is left.
    pub fn has_ended(&self) -> bool {
        self.listener.has_hung_up()
    }

    /// Answers calls until none of the command's processes is left.
    ///
    /// `on_step_down` is told why a port is only leased from then on.
    ///
    /// # Errors
    ///
    /// What the listener reports.
    pub fn run(mut self, mut on_step_down: impl FnMut(&StepDown)) -> io::Result<()> {
        loop {
            match self.answer()? {
                // Of what was refused, the command is told.
                Answered::Other | Answered::Port(_) | Answered::Refused(_) => {}
                Answered::SteppedDown(reason) => on_step_down(&reason),
                Answered::Ended => return Ok(()),
            }
        }
    }

    /// Answers calls in a thread of its own, until none of the command's processes is left.
    ///
    /// # Errors
    ///
    /// What starting a thread reports.
    pub fn run_in_background(self) -> io::Result<()> {
        thread::Builder::new()
            .name("portpicker".to_owned())
            .spawn(move || {
                // There is nobody to tell. If it fails, the command's binds fail.
                _ = self.run(|_| {});
            })?;
        Ok(())
    }

    /// Waits until something happens, and answers a call if that is what it is.
    ///
    /// The supervisor's descriptor (it is [`AsFd`]) is readable or hung up when this would not
    /// wait.
    ///
    /// # Errors
    ///
    /// What the listener reports.
    pub fn answer(&mut self) -> io::Result<Answered> {
        let mut events = Vec::with_capacity(8);
        while epoll::wait(&self.events, spare_capacity(&mut events), None) == Err(Errno::INTR) {}
        if events.iter().any(|event| event.data.u64() == GUEST) {
            self.see_guests_off();
        }
        let Some(event) = events.iter().find(|event| event.data.u64() == LISTENER) else {
            return Ok(Answered::Other);
        };
        // Copied out: the structure is packed.
        let flags = event.flags;
        if !flags.contains(epoll::EventFlags::IN) {
            return Ok(Answered::Ended);
        }
        let Some(call) = self.listener.next()? else {
            return Ok(Answered::Other);
        };
        let visit = match call.kind {
            CallKind::Bind {
                fd,
                address,
                length,
            } => self.bind(&call, fd, address, length),
            CallKind::Listen { fd, backlog } => match guest::Wish::from_backlog(backlog) {
                Some(wish) => self.grant(&call, fd, wish),
                None => self.listen(&call, fd, backlog),
            },
        };
        let (port, socket, result) = match visit {
            Visit::CarriedOut(port, socket, result) => (port, socket, result),
            Visit::Granted(result) => {
                self.listener.answer(&call, &Verdict::Made(result))?;
                return Ok(Answered::Other);
            }
            Visit::LetGo(reason) => {
                self.listener.answer(&call, &Verdict::Continue)?;
                return Ok(Answered::SteppedDown(reason));
            }
            Visit::Refused(reason) => {
                self.listener.answer(&call, &Verdict::Continue)?;
                return Ok(Answered::Refused(reason));
            }
            Visit::Other => {
                self.listener.answer(&call, &Verdict::Continue)?;
                return Ok(Answered::Other);
            }
        };
        let is_good = result.is_ok();
        let cookie = socket_cookie(&socket);
        // Before the caller goes on: when it closes its socket, that is to be the last copy.
        drop(socket);
        let is_told = self.listener.answer(&call, &Verdict::Made(result))?;
        if is_good && !is_told {
            // The next call for this socket is the same one, made again.
            self.untold.extend(cookie);
        }
        Ok(Answered::Port(port))
    }

    /// Carries out a bind, if it is to one of the ports.
    fn bind(&mut self, call: &Call, fd: i32, address: u64, length: u32) -> Visit {
        // A copy, which the caller cannot change while we look at it.
        let address = match call.memory(address, length) {
            Ok(bytes) => parse_address(&bytes),
            Err(errno) if is_callers_own(errno) => None,
            Err(errno) => return self.let_go(call, None, errno),
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
            Err(errno) => return self.let_go(call, Some(port), errno),
        };
        let was_bound = socket_cookie(&socket).is_ok_and(|cookie| self.untold.remove(&cookie));
        if was_bound {
            return Visit::CarriedOut(port, socket, Ok(()));
        }
        let is_bound = local_port(&socket).is_some_and(|port| port != 0);
        let is_fit = socket
            .domain()
            .is_ok_and(|it| it == Domain::for_address(address));
        match self.holder(port, kind) {
            Some(holder) if is_fit && !is_bound => {
                let result = admission::bind(holder, &socket, address);
                Visit::CarriedOut(port, socket, errno(result))
            }
            // Nothing is held, or nothing is to be had: the kernel knows best what to answer.
            _ => Visit::Other,
        }
    }

    /// Carries out a listen, if the socket is bound to one of the ports.
    fn listen(&self, call: &Call, fd: i32, backlog: i32) -> Visit {
        // If we cannot get at it, it was not bound by us.
        let Ok(Some((socket, Kind::Tcp))) = self.socket(call, fd) else {
            return Visit::Other;
        };
        let Some(port) = local_port(&socket) else {
            return Visit::Other;
        };
        match self.holder(port, Kind::Tcp) {
            // Who listens already, because the caller was interrupted or wants another backlog, needs
            // nobody to step aside, and must not leave its interface for a moment.
            Some(holder) if !socket.is_listener().unwrap_or(false) => {
                let result = admission::listen(holder, &socket, backlog);
                Visit::CarriedOut(port, socket, errno(result))
            }
            _ => Visit::Other,
        }
    }

    /// Does what a process that holds ports itself wishes: see [`guest`].
    fn grant(&mut self, call: &Call, fd: i32, wish: guest::Wish) -> Visit {
        // Whatever comes of it, the call itself is never made: the socket must not listen.
        Visit::Granted(self.try_grant(call, fd, wish))
    }

    fn try_grant(&mut self, call: &Call, fd: i32, wish: guest::Wish) -> Result<(), Errno> {
        let socket = Socket::from(call.descriptor(fd)?);
        let host = call.process()?;
        if !self.listener.is_waiting(call) {
            return Err(Errno::SRCH);
        }
        let Some(holder) = Holder::new(socket) else {
            // Somebody asks whether we are here.
            return Ok(());
        };
        match wish {
            guest::Wish::Entrust if self.guests.len() >= MAX_GUESTS => Err(Errno::NOBUFS),
            guest::Wish::Entrust => self.welcome(host, holder),
            guest::Wish::Withdraw => {
                let cookie = socket_cookie(&holder.socket)?;
                self.guests
                    .retain(|guest| socket_cookie(&guest.holder.socket) != Ok(cookie));
                Ok(())
            }
        }
    }

    fn welcome(&mut self, host: OwnedFd, holder: Holder) -> Result<(), Errno> {
        epoll::add(
            &self.events,
            &host,
            epoll::EventData::new_u64(GUEST),
            epoll::EventFlags::IN,
        )?;
        self.guests.push(Guest { holder, host });
        Ok(())
    }

    /// Lets go of the ports of guests that have ended.
    fn see_guests_off(&mut self) {
        self.guests.retain(|guest| {
            let has_ended = wait_readable(guest.host.as_fd(), Some(Instant::now()));
            !has_ended.unwrap_or(true)
        });
    }

    fn has(&self, port: u16) -> bool {
        port != 0 && self.all_holders().any(|holder| holder.port == port)
    }

    fn all_holders(&self) -> impl Iterator<Item = &Holder> {
        let guests = self.guests.iter().map(|guest| &guest.holder);
        self.holders.iter().chain(guests)
    }

    fn holder(&self, port: u16, kind: Kind) -> Option<&Socket> {
        self.all_holders()
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
    /// own bind succeeds. Or, if that is not wanted, has it fail.
    fn let_go(&mut self, call: &Call, port: Option<u16>, errno: Errno) -> Visit {
        if !self.listener.is_waiting(call) {
            // Not the caller is out of reach, but who has its number since.
            return Visit::Other;
        }
        let reason = StepDown::NoCopies(errno.into());
        if self.is_strict {
            return Visit::Refused(reason);
        }
        let before = self.holders.len();
        self.holders
            .retain(|holder| port.is_some_and(|port| holder.port != port));
        // What a guest holds is the guest's to let go of.
        let has_guest = |guest: &Guest| port.is_none_or(|port| guest.holder.port == port);
        if self.holders.len() < before {
            Visit::LetGo(reason)
        } else if self.guests.iter().any(has_guest) {
            Visit::Refused(reason)
        } else {
            Visit::Other
        }
    }
}

impl AsFd for Supervisor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }
}

/// What events are about.
const LISTENER: u64 = 0;
const GUEST: u64 = 1;

/// What became of a call.
enum Visit {
    /// Nothing: it concerns none of the ports.
    Other,
    /// It was carried out on this copy of the caller's socket.
    CarriedOut(u16, Socket, Result<(), Errno>),
    /// It was a wish of one who has ports itself.
    Granted(Result<(), Errno>),
    /// It is left to the caller, for whom a port was let go of.
    LetGo(StepDown),
    /// It is left to the caller, and to fail.
    Refused(StepDown),
}

/// Tells whether `errno` is what comes of the caller's own mistakes or end. The kernel knows best
/// how to answer those.
fn is_callers_own(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::BADF | Errno::FAULT | Errno::INVAL | Errno::SRCH
    )
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

/// Reads what a caller has given for a socket address; `None` if it is not one of IPv4 or IPv6, as
/// the kernel takes them.
pub(crate) fn parse_address(bytes: &[u8]) -> Option<SocketAddr> {
    let (family, rest) = bytes.split_first_chunk()?;
    let (port, rest) = rest.split_first_chunk()?;
    let port = u16::from_be_bytes(*port);
    match i32::from(u16::from_ne_bytes(*family)) {
        _ if bytes.len() > size_of::<libc::sockaddr_storage>() => None,
        // Without a family, the address that stands for all is taken for one of IPv4.
        family @ (libc::AF_INET | libc::AF_UNSPEC)
            if bytes.len() >= size_of::<libc::sockaddr_in>() =>
        {
            let address: &[u8; 4] = rest.first_chunk()?;
            (family == libc::AF_INET || *address == [0; 4])
                .then(|| SocketAddrV4::new((*address).into(), port).into())
        }
        libc::AF_INET6 => {
            let (flow, rest) = rest.split_first_chunk()?;
            let (address, rest): (&[u8; 16], _) = rest.split_first_chunk()?;
            let flow = u32::from_ne_bytes(*flow);
            // There was none in RFC 2133, and it may still be left out.
            let scope = rest
                .first_chunk()
                .map_or(0, |scope| u32::from_ne_bytes(*scope));
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
            let scope = if address.is_ipv6() { 4 } else { 0 };
            for short in 0..bytes.len() - scope {
                assert_eq!(
                    parse_address(&bytes[..short]),
                    None,
                    "{text}, {short} bytes"
                );
            }
            for long in bytes.len()..=128 {
                let mut bytes = bytes.clone();
                bytes.resize(long, 0xff);
                assert_eq!(parse_address(&bytes), Some(address), "{text}, {long} bytes");
            }
            assert_eq!(parse_address(&[bytes, vec![0; 128]].concat()), None);
        }
        assert_eq!(parse_address(&[1, 0, b'/', b'x', 0, 0]), None, "a path");
    }

    #[test]
    fn an_address_may_lack_what_the_kernel_can_do_without() {
        let mut bytes = bytes_of("[::1%3]:7".parse().unwrap());
        for length in 24..28 {
            let address = parse_address(&bytes[..length]);
            assert_eq!(address, "[::1]:7".parse().ok(), "{length} bytes");
        }
        bytes = bytes_of("0.0.0.0:7".parse().unwrap());
        bytes[..2].fill(0);
        assert_eq!(parse_address(&bytes), "0.0.0.0:7".parse().ok());
        bytes[7] = 1;
        assert_eq!(parse_address(&bytes), None);
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
