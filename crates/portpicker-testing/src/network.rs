//! The network namespace that a test has to itself: its addresses and sysctls.

use std::fmt::Display;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, UdpSocket};
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use rustix::net::{recv, sendto, socket_with};

use crate::exit::DEADLINE;

/// A local IPv4 address that is not a loopback address.
pub const OTHER_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 99, 0, 1));

/// A local IPv6 address that is not the loopback address.
pub const OTHER_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x99));

/// Whether this process's network is its own, to do with as it likes.
static IS_OWN: AtomicBool = AtomicBool::new(false);

/// Sets a sysctl of the network namespace, such as `ipv4/ip_local_port_range`.
///
/// # Panics
///
/// Outside of [`in_network_namespace`](crate::in_network_namespace): it would be the host's.
pub fn set_sysctl(name: &str, value: impl Display) {
    assert!(
        IS_OWN.load(Ordering::Relaxed),
        "a test must not change the host's network"
    );
    fs::write(format!("/proc/sys/net/{name}"), value.to_string())
        .unwrap_or_else(|err| panic!("cannot set {name} to {value}: {err}"));
}

/// Makes `range` the one from which the kernel takes ports for `bind(0)` and `connect()`.
pub fn set_ephemeral_range(range: RangeInclusive<u16>) {
    let (first, last) = range.into_inner();
    set_sysctl("ipv4/ip_local_port_range", format!("{first} {last}"));
}

/// Turns IPv6 off, except for what is bound already.
pub fn disable_ipv6() {
    set_sysctl("ipv6/conf/all/disable_ipv6", 1);
}

/// Returns whether sockets can be bound to IPv6 addresses now.
pub fn has_ipv6() -> bool {
    TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok()
}

/// Brings the loopback device of a new network namespace up, and adds the other addresses.
///
/// For processes below [`namespace_wrapper`](crate::namespace_wrapper) only: elsewhere it changes
/// the host's network.
///
/// # Panics
///
/// If the network cannot be changed.
pub fn set_up() {
    let netlink = Netlink::open().expect("netlink sockets can be made");
    netlink
        .bring_up(LOOPBACK)
        .expect("loopback can be brought up");
    netlink
        .add_address(LOOPBACK, OTHER_V4)
        .expect("addresses can be added");
    match netlink.add_address(LOOPBACK, OTHER_V6) {
        // Not the kernel's or its administrator's wish.
        Err(_) if !has_ipv6() => {}
        result => {
            result.expect("IPv6 addresses can be added");
            for address in [IpAddr::V6(Ipv6Addr::LOCALHOST), OTHER_V6] {
                wait_until_reached(address);
            }
        }
    }
    IS_OWN.store(true, Ordering::Relaxed);
}

/// Waits until what is sent to `address` arrives: a moment after the address has been added, and of
/// that moment only those are told who have subscribed to addresses.
fn wait_until_reached(address: IpAddr) {
    let end = Instant::now() + DEADLINE;
    let socket = UdpSocket::bind((address, 0)).expect("the address has been added");
    socket.set_nonblocking(true).expect("a socket has modes");
    let itself = socket.local_addr().expect("a socket has an address");
    while socket.send_to(b"!", itself).is_err() || socket.recv(&mut [0]).is_err() {
        assert!(Instant::now() < end, "{address} is not reached");
        thread::yield_now();
    }
}

/// The first device of every network namespace.
const LOOPBACK: u32 = 1;

/// A socket for changes of the network configuration: rtnetlink(7).
struct Netlink(OwnedFd);

// From the kernel's include/uapi/linux/{netlink,rtnetlink,if_addr,if}.h.
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST_ACK: u16 = 1 | 4;
const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const IFF_UP: u32 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
/// Usable at once, without asking the neighbours whether they have it (IPv6).
const IFA_F_NODAD: u8 = 2;
const AF_UNSPEC: u8 = 0;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

impl Netlink {
    fn open() -> io::Result<Self> {
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            None, // NETLINK_ROUTE is 0
        )?;
        Ok(Self(socket))
    }

    fn bring_up(&self, device: u32) -> io::Result<()> {
        // struct ifinfomsg
        let mut message = vec![AF_UNSPEC, 0, 0, 0];
        message.extend(device.to_ne_bytes());
        message.extend(IFF_UP.to_ne_bytes()); // flags
        message.extend(IFF_UP.to_ne_bytes()); // which of them change
        self.request(RTM_NEWLINK, &message)
    }

    fn add_address(&self, device: u32, address: IpAddr) -> io::Result<()> {
        let (family, bytes) = match address {
            IpAddr::V4(address) => (AF_INET, address.octets().to_vec()),
            IpAddr::V6(address) => (AF_INET6, address.octets().to_vec()),
        };
        // struct ifaddrmsg, and two attributes
        let mut message = vec![family, bytes.len() as u8 * 8, IFA_F_NODAD, 0];
        message.extend(device.to_ne_bytes());
        for attribute in [IFA_LOCAL, IFA_ADDRESS] {
            message.extend((bytes.len() as u16 + 4).to_ne_bytes());
            message.extend(attribute.to_ne_bytes());
            message.extend(&bytes);
        }
        self.request(RTM_NEWADDR, &message)
    }

    /// Sends one message and waits for its acknowledgement.
    fn request(&self, kind: u16, message: &[u8]) -> io::Result<()> {
        const HEADER: usize = 16;
        // struct nlmsghdr
        let mut request = Vec::with_capacity(HEADER + message.len());
        request.extend(((HEADER + message.len()) as u32).to_ne_bytes());
        request.extend(kind.to_ne_bytes());
        request.extend(NLM_F_REQUEST_ACK.to_ne_bytes());
        request.extend([0; 8]); // sequence number and port: one request at a time
        request.extend(message);
        let kernel = SocketAddrNetlink::new(0, 0);
        sendto(&self.0, &request, SendFlags::empty(), &kernel)?;

        let mut answer = [0; 1024];
        let (length, _) = recv(&self.0, answer.as_mut_slice(), RecvFlags::empty())?;
        let answer = &answer[..length];
        assert!(
            answer.len() >= HEADER + 4,
            "the kernel acknowledges requests"
        );
        assert_eq!(answer[4..6], NLMSG_ERROR.to_ne_bytes());
        let negative_errno =
            i32::from_ne_bytes(answer[HEADER..HEADER + 4].try_into().expect("four bytes"));
        match negative_errno {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(-errno)),
        }
    }
}
