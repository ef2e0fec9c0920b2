//! A lock: a name in the abstract namespace of Unix sockets.
//!
//! Such names are scoped by network namespace, exactly like ports. There is no file, no folder,
//! no permission, and no stale state: the name is gone with the last descriptor of its socket.
//! The name is a public interface (`docs/protocol.md`, section 1): every version, and every
//! language, must use the same one.
//!
//! The socket is a stream and never listens, so nobody can send it anything. Names are separate
//! for each socket type: the type is part of the interface too.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use socket2::{Domain, SockAddr, Socket, Type};

/// What comes before the port number in the name of the lock, after the NUL.
const PREFIX: &str = "\0portpicker/";

#[derive(Debug)]
pub(crate) struct Lock(Socket);

impl AsFd for Lock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
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
        match socket.bind(&SockAddr::unix(format!("{PREFIX}{port}"))?) {
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
    use rustix::io::Errno;
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
    fn the_name_is_portpicker_slash_port() {
        let port = own_port();
        let _lock = Locker::default()
            .try_lock(port)
            .unwrap()
            .expect("nobody has it");
        let name = SocketAddr::from_abstract_name(format!("portpicker/{port}")).unwrap();
        let err = UnixListener::bind_addr(&name).unwrap_err();
        assert_eq!(err.kind(), io::ErrorKind::AddrInUse);
    }
}
