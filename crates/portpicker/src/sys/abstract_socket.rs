//! A lock: a name in the abstract namespace of Unix sockets.
//!
//! Such names are scoped by network namespace, exactly like ports. There is no file, no folder,
//! no permission, and no stale state: the name is gone with the last descriptor of its socket.
//! The name is a public interface (`docs/protocol.md`, section 1): every version, and every
//! language, must use the same one.
//!
//! The socket is a stream and never listens, so nobody can send it anything. Names are separate
//! for each socket type: the type is part of the interface too.

use std::ffi::OsStr;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::io::Errno;
use socket2::{Domain, SockAddr, Socket, Type};

/// Returns the address of the lock of `port`: a NUL, `portpicker/`, the port, `/`, and its cube.
///
/// The port in decimal is for people, the cube in hexadecimal for the kernel. That keeps the names
/// of a network namespace in 256 lists by a checksum that adds up their bytes. By the port alone,
/// 50,000 names fall into 87 of these lists, and a bind compares 1,700 names on average; with the
/// cube all lists are used, and it is 214 where even shares would be 195.
fn address(port: u16) -> io::Result<SockAddr> {
    // Not `format!`: the longest, with its NUL, has 30 bytes, and this is tried for each candidate.
    let mut name = [0; 32];
    let mut rest = &mut name[..];
    write!(rest, "\0portpicker/{port}/{:x}", u64::from(port).pow(3))?;
    let length = 32 - rest.len();
    SockAddr::unix(OsStr::from_bytes(&name[..length]))
}

#[derive(Debug)]
pub(crate) struct Lock(Socket);

impl AsFd for Lock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Lock {
    /// Returns the lock of `port` of which `descriptor` is a copy, or `None` if it is not.
    pub(crate) fn adopt(port: u16, descriptor: OwnedFd) -> io::Result<Option<Self>> {
        let socket = Socket::from(descriptor);
        let found = match socket.local_addr() {
            Err(err) if Errno::from_io_error(&err) == Some(Errno::NOTSOCK) => return Ok(None),
            found => found?,
        };
        let is_lock = found.as_abstract_namespace() == address(port)?.as_abstract_namespace()
            && socket.r#type()? == Type::STREAM;
        Ok(is_lock.then_some(Self(socket)))
    }
}

/// Keeps the socket of a failed attempt for the next one: a bind that fails costs a tenth of a
/// new socket, so walking past leased ports costs next to nothing.
#[derive(Debug, Default)]
pub(crate) struct Locker {
    spare: Option<Socket>,
}

impl Locker {
    pub(crate) fn try_lock(&mut self, port: u16) -> io::Result<Option<Lock>> {
        let socket = match self.spare.take() {
            Some(socket) => socket,
            None => Socket::new(Domain::UNIX, Type::STREAM, None)?,
        };
        match socket.bind(&address(port)?) {
            Ok(()) => Ok(Some(Lock(socket))),
            Err(err) if err.kind() == io::ErrorKind::AddrInUse => {
                self.spare = Some(socket);
                Ok(None)
            }
            Err(err) => Err(err),
        }
    }
}

/// Tells whether `err` says that there are no abstract sockets here: not in this kernel or
/// sandbox (EAFNOSUPPORT, EINVAL), or not for us (EACCES, EPERM: seccomp, AppArmor, SELinux).
pub(crate) fn is_refusal(err: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(err),
        Some(Errno::AFNOSUPPORT | Errno::INVAL | Errno::ACCESS | Errno::PERM)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::lock::tests::own_port;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixListener};

    /// The name is a promise to other implementations; this test spells it out.
    #[test]
    fn the_name_is_what_the_protocol_says() {
        let name = |port| {
            address(port)
                .unwrap()
                .as_abstract_namespace()
                .unwrap()
                .to_owned()
        };
        assert_eq!(name(20_001), b"portpicker/20001/746ecaff661");
        assert_eq!(name(65_535), b"portpicker/65535/fffd0002ffff");
        let port = own_port();
        let _lock = Locker::default()
            .try_lock(port)
            .unwrap()
            .expect("nobody has it");
        let name = SocketAddr::from_abstract_name(name(port)).unwrap();
        let err = UnixListener::bind_addr(&name).unwrap_err();
        assert_eq!(err.kind(), io::ErrorKind::AddrInUse);
    }
}
