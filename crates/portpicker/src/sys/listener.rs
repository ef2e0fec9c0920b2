//! Asking the kernel for the listener of one port: [sock_diag(7)].
//!
//! It changes nothing and is in nobody's way, so that it needs no lock, and costs a third of a lock
//! and a probe. It sees less than they do: who listens on TCP, at all addresses or at 127.0.0.1.
//!
//! [sock_diag(7)]: https://man7.org/linux/man-pages/man7/sock_diag.7.html

use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::OnceLock;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
};

/// Asks who listens, one port after another.
#[derive(Debug)]
pub(crate) struct Listeners {
    /// `None` if there is nobody to ask.
    socket: Option<OwnedFd>,
}

impl Listeners {
    /// Returns somebody to ask, who says of no port that anybody listens there if the kernel or a
    /// sandbox refuses it.
    pub(crate) fn new() -> Self {
        static IS_ANSWERED: OnceLock<bool> = OnceLock::new();
        let open = || {
            let protocol = Some(netlink::SOCK_DIAG);
            let (family, flags) = (AddressFamily::NETLINK, SocketFlags::CLOEXEC);
            socket_with(family, SocketType::RAW, flags, protocol).ok()
        };
        // A kernel whose module for TCP is missing would look for it each time.
        let is_answered = |socket: &OwnedFd| {
            *IS_ANSWERED.get_or_init(|| ask(socket, 0, NLM_F_DUMP) == Ok(NLMSG_DONE))
        };
        Self {
            socket: open().filter(is_answered),
        }
    }

    /// Tells whether somebody listens at `port`. If nobody does, it may be in use all the same.
    pub(crate) fn have(&mut self, port: u16) -> bool {
        let Some(socket) = &self.socket else {
            return false;
        };
        match ask(socket, port, 0) {
            Ok(answer) => answer == SOCK_DIAG_BY_FAMILY,
            Err(Errno::NOENT) => false,
            Err(_) => {
                self.give_up();
                false
            }
        }
    }

    /// Asks nobody from now on.
    pub(crate) fn give_up(&mut self) {
        self.socket = None;
    }
}

// From the kernel's include/uapi/linux/{netlink,sock_diag,inet_diag}.h.
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 0x01;
const NLM_F_DUMP: u16 = 0x300;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const INET_DIAG_NOCOOKIE: [u8; 8] = [0xff; 8];

/// Asks for the listener of `port` on TCP at 127.0.0.1, and returns the type of the answer: a
/// message about the socket, or the end of a list that is empty if a list was asked for.
///
/// A listener at all addresses is one for that too, also if its socket is one for IPv6.
fn ask(socket: impl AsFd, port: u16, flags: u16) -> Result<u16, Errno> {
    let request = request(port, flags);
    send(&socket, &request, SendFlags::empty())?;
    let mut answer = [0; 256];
    // It is there when send(2) returns.
    let (_, length) = recv(&socket, &mut answer, RecvFlags::DONTWAIT)?;
    let answer = answer.get(..length).ok_or(Errno::MSGSIZE)?;
    parse(answer).ok_or(Errno::BADMSG)?
}

/// A netlink header, and a `struct inet_diag_req_v2`: all zero, but for these fields.
fn request(port: u16, flags: u16) -> [u8; 72] {
    let mut request = [0; 72];
    let mut put = |at: usize, bytes: &[u8]| request[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &72_u32.to_ne_bytes());
    put(4, &SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    put(6, &(NLM_F_REQUEST | flags).to_ne_bytes());
    put(16, &[libc::AF_INET as u8, libc::IPPROTO_TCP as u8]);
    // Where the states are that a list is to have: none.
    put(24, &port.to_be_bytes());
    // From here to here.
    put(28, &Ipv4Addr::LOCALHOST.octets());
    put(44, &Ipv4Addr::LOCALHOST.octets());
    put(64, &INET_DIAG_NOCOOKIE);
    request
}

/// Returns the type of a message, or the error that it reports; `None` if it is too short.
fn parse(message: &[u8]) -> Option<Result<u16, Errno>> {
    let kind = u16::from_ne_bytes(message.get(4..6)?.try_into().ok()?);
    if !matches!(kind, NLMSG_ERROR | NLMSG_DONE) {
        return Some(Ok(kind));
    }
    let error = i32::from_ne_bytes(message.get(16..20)?.try_into().ok()?);
    Some(match error {
        0 => Ok(kind),
        error => Err(Errno::from_raw_os_error(error.wrapping_neg())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use socket2::{Domain, Socket, Type};
    use std::net::{SocketAddr, TcpListener};

    /// Returns whom to ask, or `None` if the test of this name has to be skipped.
    fn asked(test: &str) -> Option<Listeners> {
        let listeners = Listeners::new();
        if listeners.socket.is_none() {
            let test = format!("sys::listener::tests::{test}");
            portpicker_testing::skip(&test, "the kernel has no tcp_diag, or may not be asked");
            return None;
        }
        Some(listeners)
    }

    #[test]
    fn who_listens_is_seen() {
        let Some(mut listeners) = asked("who_listens_is_seen") else {
            return;
        };
        for address in ["127.0.0.1:0", "0.0.0.0:0", "[::]:0"] {
            let address: SocketAddr = address.parse().unwrap();
            let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
            if address.is_ipv6() {
                socket.set_only_v6(false).unwrap();
            }
            socket.bind(&address.into()).unwrap();
            let port = socket.local_addr().unwrap().as_socket().unwrap().port();
            assert!(!listeners.have(port), "{address} is only bound");
            socket.listen(1).unwrap();
            assert!(listeners.have(port), "{address} is listened at");
        }
    }

    #[test]
    fn who_has_given_up_sees_nobody() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let Some(mut listeners) = asked("who_has_given_up_sees_nobody") else {
            return;
        };
        assert!(listeners.have(port));
        listeners.give_up();
        assert!(!listeners.have(port));
    }

    #[test]
    fn answers_that_are_cut_short_are_none() {
        let error = |errno: i32| {
            let mut message = [0; 36];
            message[4..6].copy_from_slice(&NLMSG_ERROR.to_ne_bytes());
            message[16..20].copy_from_slice(&(-errno).to_ne_bytes());
            message
        };
        assert_eq!(parse(&error(libc::ENOENT)), Some(Err(Errno::NOENT)));
        assert_eq!(parse(&error(0)), Some(Ok(NLMSG_ERROR)));
        for length in 0..20 {
            assert_eq!(parse(&error(libc::ENOENT)[..length]), None, "{length}");
        }
    }
}
