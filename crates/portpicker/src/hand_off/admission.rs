//! Letting one certain socket bind a held port, or listen on it, and nobody else.
//!
//! The socket is the caller's own. The holder's and the visitor's sockets are made to get along for
//! the moment of the call, by one of four means:
//!
//! - *Devices.* The kernel lets two sockets share a port if they are bound to different network
//!   interfaces, so each is bound to another one. Everybody else's sockets are bound to none, which
//!   is in conflict with both: there is no moment in which anybody else gets in. A UDP socket can be
//!   freed from its interface by anybody (connect(2) to AF_UNSPEC), a TCP socket only with
//!   CAP_NET_RAW.
//! - *Devices, for good*, for a TCP socket without CAP_NET_RAW that is to be bound to the loopback
//!   address: anybody may bind a socket to its first interface. The visitor stays on the loopback
//!   interface, where all its clients are anyway, and the holder on one that does not exist. Again,
//!   there is no moment in which anybody else gets in.
//! - *SO_REUSEADDR* on both, for any other TCP socket without CAP_NET_RAW. For that moment anybody else who
//!   sets it may bind the port too. That is of no use to them: they would have to listen in the same
//!   moment, in between our two system calls. If somebody does, our visitor is refused, and tries
//!   again until the other has gone. (A visitor that listened at once, in the moment of its bind,
//!   would leave them less room, and could no longer connect from its port, which a client may want.)
//! - *SO_REUSEPORT* on both, for a visitor that sets it, and that others of its kind are there
//!   before. They are a group, among which the kernel deals connections or datagrams, and whose
//!   members it finds only on the same interface. In that moment others get in who are the same
//!   user's and set it too, with whom the visitor wants to share anyway.
//!
//! What the visitor has set itself is restored.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::fstat;
use rustix::net::netdevice::name_to_index;
use socket2::{Domain, Socket, Type};

use crate::probe::forget_sharing;
use crate::sys::device::{LOOPBACK, device, set_device};

/// Interfaces that no host has: their numbers are given out from 1.
const HOLDER_DEVICE: u32 = 0x7fff_fffe;
const VISITOR_DEVICE: u32 = 0x7fff_fffd;

/// How long a visitor tries again. A command that binds what it has bound already waits as long for
/// its error.
const PATIENCE: Duration = Duration::from_millis(100);
const PAUSE: Duration = Duration::from_micros(200);

/// Binds `visitor` to `address`, on the port that `holder` holds.
pub(crate) fn bind(holder: &Socket, visitor: &Socket, address: SocketAddr) -> io::Result<()> {
    let devices = devices_for(visitor, address)?;
    let visit = Visit::new(holder, visitor, address)?;
    visit.admit(&devices, || {
        if visit.means == Means::Staying {
            visit.rehearse(address)?;
        }
        visitor.bind(&address.into())
    })
}

/// Makes `visitor`, a TCP socket that is bound beside `holder`, listen.
///
/// The kernel looks for conflicts again then.
pub(crate) fn listen(holder: &Socket, visitor: &Socket, backlog: i32) -> io::Result<()> {
    let address = visitor.local_addr()?.as_socket();
    let address = address.ok_or(io::ErrorKind::InvalidInput)?;
    let visit = Visit::new(holder, visitor, address)?;
    visit.admit(&[VISITOR_DEVICE], || visitor.listen(backlog))
}

/// How a holder and a visitor that does not share its port are made to get along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Means {
    /// Interfaces, which both leave afterwards.
    Devices,
    /// Interfaces on which both stay.
    Staying,
    /// SO_REUSEADDR.
    ReuseAddress,
}

/// A socket that is to get along with the one that holds its port.
struct Visit<'s> {
    holder: &'s Socket,
    visitor: &'s Socket,
    is_udp: bool,
    /// Whether the visitor sets SO_REUSEPORT.
    is_sharing: bool,
    means: Means,
}

impl<'s> Visit<'s> {
    fn new(holder: &'s Socket, visitor: &'s Socket, address: SocketAddr) -> io::Result<Self> {
        let is_udp = holder.r#type()? == Type::DGRAM;
        let means = match permission() {
            _ if is_udp => Means::Devices,
            Permission::Change => Means::Devices,
            Permission::Set
                if address.ip().to_canonical().is_loopback() || device(visitor)? != 0 =>
            {
                Means::Staying
            }
            Permission::Set | Permission::Nothing => Means::ReuseAddress,
        };
        Ok(Self {
            holder,
            visitor,
            is_udp,
            is_sharing: visitor.reuse_port()?,
            means,
        })
    }

    /// `devices`: interfaces for the visitor, one of which has its address.
    fn admit(&self, devices: &[u32], call: impl Fn() -> io::Result<()>) -> io::Result<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            let result = match self.is_sharing {
                true => self.admit_sharing(devices, &call),
                false => self.admit_alone(devices, &call),
            };
            match result {
                // Somebody was faster, or the command itself has the address already.
                Err(err)
                    if is_in_use(&err)
                        && self.means == Means::ReuseAddress
                        && Instant::now() < end =>
                {
                    thread::sleep(PAUSE);
                }
                result => return result,
            }
        }
    }

    /// Lets a visitor in that sets SO_REUSEPORT.
    fn admit_sharing(&self, devices: &[u32], call: &impl Fn() -> io::Result<()>) -> io::Result<()> {
        // The first of its kind needs nobody's consent. The kernel would remember that it sets the
        // option, and let the next one in who does without looking at the holder, also when the
        // visitor has gone.
        self.visitor.set_reuse_port(false)?;
        let visitors_own = self.visitor.reuse_address()?;
        if self.is_udp {
            // Which would let it in beside others, and not into their group.
            self.visitor.set_reuse_address(false)?;
        }
        let alone = self.admit_alone(devices, call);
        self.visitor.set_reuse_address(visitors_own)?;
        self.visitor.set_reuse_port(true)?;
        match alone {
            Err(err) if !is_in_use(&err) => Err(err),
            Err(_) if self.are_of_one_user() => self.by_reuse_port(call),
            // Beside others, though not of their group.
            Err(_) => self.admit_alone(devices, call),
            Ok(()) => Ok(()),
        }
    }

    fn admit_alone(&self, devices: &[u32], call: &impl Fn() -> io::Result<()>) -> io::Result<()> {
        match self.means {
            Means::Devices => self.by_device(devices, call),
            Means::Staying => self.by_staying(call),
            Means::ReuseAddress => self.by_reuse_address(call),
        }
    }

    fn by_staying(&self, call: &impl Fn() -> io::Result<()>) -> io::Result<()> {
        self.put_holder_away()?;
        call()
    }

    /// Makes sure that the visitor can be bound to `address`, and puts it onto the loopback interface,
    /// which it cannot leave again: it may be bound to something else if this fails.
    fn rehearse(&self, address: SocketAddr) -> io::Result<()> {
        if device(self.visitor)? != 0 {
            return Ok(());
        }
        let twin = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        if address.is_ipv6() {
            twin.set_only_v6(self.visitor.only_v6()?)?;
        }
        twin.set_reuse_address(self.visitor.reuse_address()?)?;
        twin.set_reuse_port(self.visitor.reuse_port()?)?;
        set_device(&twin, LOOPBACK)?;
        twin.bind(&address.into())?;
        drop(twin);
        set_device(self.visitor, LOOPBACK)
    }

    fn by_device(&self, devices: &[u32], call: &impl Fn() -> io::Result<()>) -> io::Result<()> {
        self.put_holder_away()?;
        let result = match (devices, device(self.visitor)?) {
            ([_, ..], 0) => self.on_one_of(devices, call),
            // It is on one by its own wish, and stays there.
            _ => call(),
        };
        // A UDP holder stays where it is beside a visitor that shares its port, for the kernel could
        // give it datagrams that are meant for the visitor. Bound to no interface that there is, it
        // gets none, and still nobody else may bind the port.
        if !(self.is_udp && self.is_sharing) {
            self.leave_device(self.holder)?;
        }
        result
    }

    /// Makes the call with the visitor on one of `devices` for as long as it takes.
    fn on_one_of(&self, devices: &[u32], call: &impl Fn() -> io::Result<()>) -> io::Result<()> {
        let mut result = Err(io::ErrorKind::AddrNotAvailable.into());
        for &index in devices {
            set_device(self.visitor, index)?;
            result = call();
            self.leave_device(self.visitor)?;
            match &result {
                // Another one has the address. (Or none: that is the last one's answer too.)
                Err(err) if is_elsewhere(err) => {}
                _ => break,
            }
        }
        result
    }

    /// Puts the holder onto its interface, if it is not there yet.
    fn put_holder_away(&self) -> io::Result<()> {
        match device(self.holder)? {
            0 => set_device(self.holder, HOLDER_DEVICE),
            _ => Ok(()),
        }
    }

    fn leave_device(&self, socket: &Socket) -> io::Result<()> {
        if self.is_udp {
            Ok(rustix::net::connect_unspec(socket)?)
        } else {
            set_device(socket, 0)
        }
    }

    fn by_reuse_address(&self, call: &impl Fn() -> io::Result<()>) -> io::Result<()> {
        let visitors_own = self.visitor.reuse_address()?;
        self.visitor.set_reuse_address(true)?;
        // A fresh time slice: the moment is a microsecond long, unless we have to wait in it.
        thread::yield_now();
        self.holder.set_reuse_address(true)?;
        let result = call();
        self.holder.set_reuse_address(false)?;
        self.visitor.set_reuse_address(visitors_own)?;
        result
    }

    fn by_reuse_port(&self, call: &impl Fn() -> io::Result<()>) -> io::Result<()> {
        // Elsewhere, so that the holder does not become one of the group.
        if self.is_udp || self.means == Means::Staying {
            self.put_holder_away()?;
        }
        thread::yield_now();
        if self.means != Means::Staying {
            self.holder.set_reuse_port(true)?;
        }
        let result = call();
        if !self.is_udp
            && let Some(local) = self.holder.local_addr()?.as_socket()
        {
            forget_sharing(local.port());
        }
        self.holder.set_reuse_port(false)?;
        result
    }

    fn are_of_one_user(&self) -> bool {
        let user = |socket: &Socket| fstat(socket).ok().map(|stat| stat.st_uid);
        user(self.holder) == user(self.visitor)
    }
}

/// Returns interfaces that a socket may be bound to which is to be bound to `address`.
fn devices_for(visitor: &Socket, address: SocketAddr) -> io::Result<Vec<u32>> {
    match address.ip() {
        // It says its interface itself, and the socket is bound to that for good.
        IpAddr::V6(address) if is_link_local(address) => Ok(Vec::new()),
        // The kernel asks whether that very interface has the address. It knows best which does.
        IpAddr::V6(address) if !address.is_unspecified() => interfaces(visitor),
        _ => Ok(vec![VISITOR_DEVICE]),
    }
}

fn is_link_local(address: Ipv6Addr) -> bool {
    // ff01::/16 and ff02::/16: groups on one interface or one link.
    address.is_unicast_link_local() || matches!(address.segments()[0], 0xff01 | 0xff02)
}

fn is_in_use(err: &io::Error) -> bool {
    err.kind() == io::ErrorKind::AddrInUse
}

/// What bind(2) says of an address that an interface does not have.
fn is_elsewhere(err: &io::Error) -> bool {
    err.kind() == io::ErrorKind::AddrNotAvailable || err.raw_os_error() == Some(libc::ENODEV)
}

/// Returns the numbers of the interfaces in the visitor's network namespace.
fn interfaces(visitor: &Socket) -> io::Result<Vec<u32>> {
    // Two lines of title; the loopback interface is the first.
    let table = fs::read_to_string("/proc/thread-self/net/dev")?;
    let names = table.lines().filter_map(|line| line.split_once(':'));
    Ok(names
        .filter_map(|(name, _)| name_to_index(visitor, name.trim()).ok())
        .collect())
}

/// What this process may do with the interfaces of TCP sockets.
#[derive(Clone, Copy, Debug)]
enum Permission {
    /// Bind sockets to them, and free them again: CAP_NET_RAW.
    Change,
    /// Bind sockets to them, once: Linux 5.7.
    Set,
    /// Nothing.
    Nothing,
}

fn permission() -> Permission {
    static PERMISSION: OnceLock<Permission> = OnceLock::new();
    *PERMISSION.get_or_init(|| {
        let Ok(socket) = Socket::new(Domain::IPV4, Type::STREAM, None) else {
            return Permission::Nothing;
        };
        match set_device(socket.as_fd(), VISITOR_DEVICE) {
            Err(_) => Permission::Nothing,
            Ok(()) if set_device(socket.as_fd(), 0).is_err() => Permission::Set,
            Ok(()) => Permission::Change,
        }
    })
}
