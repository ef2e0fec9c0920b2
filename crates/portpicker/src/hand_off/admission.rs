//! Letting one certain socket bind a held port, or listen on it, and nobody else.
//!
//! The socket is the caller's own. The holder's and the visitor's sockets are made to get along for
//! the moment of the call, by one of two means:
//!
//! - *Devices.* The kernel lets two sockets share a port if they are bound to different network
//!   interfaces, so each is bound to another one, neither of which need exist. Everybody else's
//!   sockets are bound to none, which is in conflict with both: there is no moment in which anybody
//!   else gets in. A UDP socket can be freed from its interface by anybody (connect(2) to
//!   AF_UNSPEC), a TCP socket only with CAP_NET_RAW.
//! - *SO_REUSEADDR* on both. For that moment anybody else who sets it may bind the port too. On TCP
//!   that is of no use to them: they would have to listen in the same moment, in between our two
//!   system calls. If somebody does, our visitor is refused, and tries again until the other has
//!   gone.
//!
//! What the visitor has set itself is restored.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use crate::sys::device::{device, set_device};

/// Interfaces that no host has: their numbers are given out from 1.
const HOLDER_DEVICE: u32 = 0x7fff_fffe;
const VISITOR_DEVICE: u32 = 0x7fff_fffd;

/// How long a visitor tries again. A command that binds what it has bound already waits as long for
/// its error.
const PATIENCE: Duration = Duration::from_millis(100);
const PAUSE: Duration = Duration::from_micros(200);

/// Binds `visitor` to `address`, on the port that `holder` holds.
pub(crate) fn bind(holder: &Socket, visitor: &Socket, address: SocketAddr) -> io::Result<()> {
    admit(holder, visitor, Some(address), || {
        visitor.bind(&address.into())
    })
}

/// Makes `visitor`, which is bound beside `holder`, listen.
pub(crate) fn listen(holder: &Socket, visitor: &Socket, backlog: i32) -> io::Result<()> {
    // The kernel looks for conflicts again when a socket starts to listen.
    let address = visitor.local_addr()?.as_socket();
    admit(holder, visitor, address, || visitor.listen(backlog))
}

fn admit(
    holder: &Socket,
    visitor: &Socket,
    address: Option<SocketAddr>,
    call: impl Fn() -> io::Result<()>,
) -> io::Result<()> {
    let is_udp = holder.r#type()? == Type::DGRAM;
    if (is_udp || may_change_devices())
        && device(visitor).is_ok_and(|device| device == 0)
        && let Some(visitors) = visitors_device(address)
    {
        return by_device(holder, visitor, visitors, is_udp, call);
    }
    by_reuse_address(holder, visitor, call)
}

fn by_device(
    holder: &Socket,
    visitor: &Socket,
    visitors: u32,
    is_udp: bool,
    call: impl FnOnce() -> io::Result<()>,
) -> io::Result<()> {
    let leave_device = |socket: &Socket| {
        if is_udp {
            Ok(rustix::net::connect_unspec(socket)?)
        } else {
            set_device(socket, 0)
        }
    };
    if device(holder)? == 0 {
        set_device(holder, HOLDER_DEVICE)?;
    }
    let result = set_device(visitor, visitors).and_then(|()| {
        let result = call();
        leave_device(visitor)?;
        result
    });
    // A UDP holder stays where it is beside a visitor that shares its port, for the kernel could
    // give it datagrams that are meant for the visitor. Bound to no interface that there is, it gets
    // none.
    if !(is_udp && visitor.reuse_port().unwrap_or(false)) {
        leave_device(holder)?;
    }
    result
}

fn by_reuse_address(
    holder: &Socket,
    visitor: &Socket,
    call: impl Fn() -> io::Result<()>,
) -> io::Result<()> {
    let visitors_own = visitor.reuse_address()?;
    visitor.set_reuse_address(true)?;
    let end = Instant::now() + PATIENCE;
    let result = loop {
        // A fresh time slice: the moment is a microsecond long, unless we have to wait in it.
        thread::yield_now();
        holder.set_reuse_address(true)?;
        let result = call();
        holder.set_reuse_address(false)?;
        match result {
            // Somebody was faster, or the command itself has the address already.
            Err(err) if err.kind() == io::ErrorKind::AddrInUse && Instant::now() < end => {
                thread::sleep(PAUSE);
            }
            result => break result,
        }
    };
    visitor.set_reuse_address(visitors_own)?;
    result
}

/// Returns an interface that a socket which is bound to `address` may be bound to.
fn visitors_device(address: Option<SocketAddr>) -> Option<u32> {
    match address?.ip() {
        IpAddr::V6(address) if !address.is_unspecified() && address.to_ipv4_mapped().is_none() => {
            // The kernel asks whether that very interface has the address.
            interface_of(address)
        }
        _ => Some(VISITOR_DEVICE),
    }
}

/// Returns the interface that has an IPv6 address, from if_inet6 in [proc(5)].
///
/// [proc(5)]: https://man7.org/linux/man-pages/man5/proc.5.html
fn interface_of(address: Ipv6Addr) -> Option<u32> {
    let digits: String = address
        .octets()
        .map(|octet| format!("{octet:02x}"))
        .concat();
    let table = fs::read_to_string("/proc/thread-self/net/if_inet6").ok()?;
    table.lines().find_map(|line| {
        let index = line.strip_prefix(&digits)?.split_whitespace().next()?;
        u32::from_str_radix(index, 16).ok()
    })
}

/// Tells whether this process may free a TCP socket from its interface.
fn may_change_devices() -> bool {
    static MAY: OnceLock<bool> = OnceLock::new();
    *MAY.get_or_init(|| {
        let try_it = || {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            set_device(socket.as_fd(), VISITOR_DEVICE)?;
            set_device(socket.as_fd(), 0)
        };
        try_it().is_ok()
    })
}
