//! Binding a socket that the caller already has to a port that the kernel chooses.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};

use socket2::{Domain, SockRef, Type};

use crate::error::{Error, Result};
use crate::sys::exclusive::{has_reuse_port, set_exclusive};

/// Binds `socket` to a port of `host` that nobody else uses, and returns the port.
///
/// Stronger than every promise of a pick: the port is bound, and the caller's, until the caller
/// closes the socket. Prefer it where your code takes a socket. The kernel chooses the port, from
/// the ephemeral range.
///
/// `host` is a name or an address, such as `"localhost"`; its first address of the socket's family
/// is used.
///
/// # Errors
///
/// - [`Error::UnfitSocket`] if it is a TCP socket with SO_REUSEADDR or SO_REUSEPORT set, since
///   others could then share the port, or if it is neither an IPv4 nor an IPv6 socket.
/// - [`Error::Host`] if `host` has no address of the socket's family.
/// - [`Error::Socket`] if the bind fails: the address is not one of this host's, the socket is
///   bound already, or the ephemeral range is exhausted.
///
/// # Platform behavior
///
/// On Windows the socket gets SO_EXCLUSIVEADDRUSE, without which anybody could take the port over.
///
/// # Example
///
/// ```
/// use socket2::{Domain, Socket, Type};
///
/// let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
/// let port = portpicker::bind_port(&socket, "localhost")?;
/// socket.listen(128)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # References
///
/// - `test.support.socket_helper.bind_port` of CPython, whose meaning this has.
pub fn bind_port<'s>(socket: impl Into<SockRef<'s>>, host: &str) -> Result<u16> {
    let socket = socket.into();
    let host_error = |source| Error::Host {
        host: host.to_owned(),
        source,
    };
    let is_v4 = match socket.domain().map_err(host_error)? {
        Domain::IPV4 => true,
        Domain::IPV6 => false,
        _ => {
            return Err(Error::UnfitSocket {
                reason: "the socket is neither IPv4 nor IPv6",
            });
        }
    };
    let address = (host, 0)
        .to_socket_addrs()
        .map_err(host_error)?
        .find(|address| address.is_ipv4() == is_v4)
        .ok_or_else(|| host_error(no_such_family(is_v4)))?;
    bind_unshared(&socket, address)
}

fn bind_unshared(socket: &SockRef<'_>, address: SocketAddr) -> Result<u16> {
    let failed = |call| {
        move |source| Error::Socket {
            call,
            address: address.ip(),
            source,
        }
    };
    if socket.r#type().map_err(failed("getsockopt"))? == Type::STREAM {
        if socket.reuse_address().map_err(failed("getsockopt"))? {
            return Err(Error::UnfitSocket {
                reason: "the TCP socket has SO_REUSEADDR set: others could share its port",
            });
        }
        if has_reuse_port(socket) {
            return Err(Error::UnfitSocket {
                reason: "the TCP socket has SO_REUSEPORT set: others could share its port",
            });
        }
        set_exclusive(socket).map_err(failed("setsockopt"))?;
    }
    socket.bind(&address.into()).map_err(failed("bind"))?;
    let bound = socket.local_addr().map_err(failed("getsockname"))?;
    Ok(bound
        .as_socket()
        .expect("an IP socket has an IP address")
        .port())
}

fn no_such_family(is_v4: bool) -> io::Error {
    let family = if is_v4 { "IPv4" } else { "IPv6" };
    io::Error::new(
        io::ErrorKind::AddrNotAvailable,
        format!("it has no {family} address"),
    )
}
