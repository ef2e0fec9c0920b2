//! What if the call is wrong, or made by an unusual thread?
//!
//! # Safety
//!
//! What is tried here no safe wrapper lets through: pointers that point nowhere, lengths that are
//! wrong, descriptors that are none. `bind(2)` and `listen(2)` read at most what they are given, and
//! answer with an error what cannot be read.
//!
//! The thread that outlives its process's first one runs in a forked child: see `fork.rs`. The first
//! one ends there by exit(2) itself, which runs no destructors and frees no stack, so that what the
//! other one borrows lives on.
#![expect(unsafe_code, reason = "only a wrong call shows how it is answered")]

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::{ptr, thread};

use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, fork, pipe};
use portpicker_testing::worker::Answer;
use portpicker_testing::{Binding, Local, Options, Worker};
use socket2::Socket;

use super::{PORT, handed_off, port_and_binding, with_and_without_net_raw};

/// The commands of a worker that need unsafe code.
pub(super) fn command(line: &str) -> Option<Answer<String>> {
    let (command, argument) = line.split_once(' ').unwrap_or((line, ""));
    Some(match command {
        "raw_bind" => Ok(RawBind::parse(argument).make()),
        "raw_listen" => Ok(raw_listen(argument)),
        "without_first_thread" => Ok(bind_without_first_thread(argument)),
        "with_own_descriptors" => {
            let (port, binding) = port_and_binding(argument);
            // In a thread of its own, which has a table of descriptors of its own then.
            let bind = move || {
                // SAFETY: it changes nothing but what this thread shares with others.
                assert_eq!(unsafe { libc::unshare(libc::CLONE_FILES) }, 0);
                binding.bind(port).map(drop)
            };
            outcome(thread::spawn(bind).join().expect("no panic"))
        }
        _ => return None,
    })
}

pub(super) fn outcome(result: io::Result<()>) -> Answer<String> {
    match result {
        Ok(()) => Ok(String::new()),
        Err(err) => Err(err.to_string()),
    }
}

/// A call of bind(2), whatever it is given.
struct RawBind {
    socket: String,
    address: String,
    length: u32,
}

impl RawBind {
    fn new(socket: &str, address: impl Into<String>, length: u32) -> Self {
        Self {
            socket: socket.to_owned(),
            address: address.into(),
            length,
        }
    }

    /// With the length that the address has.
    fn whole(socket: &str, address: &[u8]) -> Self {
        Self::new(socket, hex(address), address.len() as u32)
    }

    fn parse(text: &str) -> Self {
        let mut words = text.split(' ');
        let mut next = || words.next().expect("three words").to_owned();
        Self {
            socket: next(),
            address: next(),
            length: next().parse().expect("a length"),
        }
    }

    fn text(&self) -> String {
        format!("raw_bind {} {} {}", self.socket, self.address, self.length)
    }

    /// Makes the call, and says what comes of it.
    fn make(&self) -> String {
        let (socket, fd) = open(&self.socket);
        // The bytes are the last of a page, after which there is nothing.
        let page = Page::new();
        let pointer = match self.address.as_str() {
            "null" => ptr::null(),
            "nowhere" => 8 as *const u8,
            address => page.put_last(&from_hex(address)),
        };
        let bind = || {
            // SAFETY: see the top of this file.
            match unsafe { libc::bind(fd, pointer.cast(), self.length) } {
                0 => "good".to_owned(),
                _ => io::Error::last_os_error().to_string(),
            }
        };
        let local = |socket: &Option<Socket>| {
            let local = socket.as_ref()?.local_addr().ok()?.as_socket()?;
            Some(format!("{} {}", local.ip(), local.port() != 0))
        };
        let first = bind();
        // A socket is bound once.
        format!("{first}; {}; {:?}", bind(), local(&socket))
    }
}

/// Opens what `text` names, and returns its number.
fn open(text: &str) -> (Option<Socket>, RawFd) {
    let options = Options::None;
    let socket = match text {
        "tcp4" => Binding::tcp(Local::LOOPBACK_V4, options).open(),
        "tcp6" => Binding::tcp(Local::DUAL, options).open(),
        "tcp6only" => Binding::tcp(Local::LOOPBACK_V6, options).open(),
        "udp4" => Binding::udp(Local::LOOPBACK_V4, options).open(),
        "udp6" => Binding::udp(Local::DUAL, options).open(),
        "free4" => Binding::udp(Local::LOOPBACK_V4, options)
            .open()
            .inspect(|it| {
                it.set_freebind_v4(true).expect("whoever likes may");
            }),
        "file" => File::open("/dev/null").map(|file| OwnedFd::from(file).into()),
        number => return (None, number.parse().expect("a number")),
    };
    let socket = socket.expect("it can be opened");
    let fd = socket.as_raw_fd();
    (Some(socket), fd)
}

/// A page of memory with nothing behind it.
struct Page(*mut u8);

impl Page {
    const SIZE: usize = 4096;

    fn new() -> Self {
        let map = |address, protection, more| {
            // SAFETY: new memory, or a part of that.
            let at = unsafe {
                let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | more;
                libc::mmap(address, 2 * Self::SIZE, protection, flags, -1, 0)
            };
            assert_ne!(at, libc::MAP_FAILED);
            at
        };
        let start = map(ptr::null_mut(), libc::PROT_READ | libc::PROT_WRITE, 0);
        // SAFETY: the second of the two pages, which nobody uses.
        unsafe { libc::munmap(start.byte_add(Self::SIZE), Self::SIZE) };
        Self(start.cast())
    }

    fn put_last(&self, bytes: &[u8]) -> *const u8 {
        assert!(bytes.len() <= Self::SIZE);
        // SAFETY: within the page, which is ours to write.
        unsafe {
            let at = self.0.add(Self::SIZE - bytes.len());
            ptr::copy_nonoverlapping(bytes.as_ptr(), at, bytes.len());
            at
        }
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: nobody has a pointer to it any more that is still used.
        unsafe { libc::munmap(self.0.cast(), Self::SIZE) };
    }
}

/// Returns the bytes of a `sockaddr_in` or `sockaddr_in6`, with `family` in the place of its own.
fn address(family: i32, ip: IpAddr, port: u16) -> Vec<u8> {
    let mut bytes = (family as u16).to_ne_bytes().to_vec();
    bytes.extend(port.to_be_bytes());
    match ip {
        IpAddr::V4(ip) => {
            bytes.extend(ip.octets());
            bytes.extend([0; 8]);
        }
        IpAddr::V6(ip) => {
            bytes.extend([0; 4]);
            bytes.extend(ip.octets());
            bytes.extend([0; 4]);
        }
    }
    bytes
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks(2);
    digits
        .map(|pair| {
            let pair = std::str::from_utf8(pair).expect("digits");
            u8::from_str_radix(pair, 16).expect("digits")
        })
        .collect()
}

/// Returns all the wrong calls of bind(2), and some that are right, for `port`.
fn calls(port: u16) -> Vec<RawBind> {
    use libc::{AF_INET, AF_INET6, AF_UNIX, AF_UNSPEC};
    let v4 = |ip: Ipv4Addr| address(AF_INET, ip.into(), port);
    let v6 = |ip: Ipv6Addr| address(AF_INET6, ip.into(), port);
    let mut calls = vec![
        RawBind::new("tcp4", "null", 16),
        RawBind::new("tcp4", "null", 0),
        RawBind::new("tcp6", "nowhere", 28),
        RawBind::whole("999", &v4(Ipv4Addr::LOCALHOST)),
        RawBind::whole("-1", &v4(Ipv4Addr::LOCALHOST)),
        RawBind::whole("file", &v4(Ipv4Addr::LOCALHOST)),
        // Others' addresses: those that are kept for documentation.
        RawBind::whole("tcp4", &v4(Ipv4Addr::new(192, 0, 2, 7))),
        RawBind::whole("udp4", &v4(Ipv4Addr::new(192, 0, 2, 7))),
        RawBind::whole("free4", &v4(Ipv4Addr::new(192, 0, 2, 7))),
        RawBind::whole("tcp6", &v6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7))),
        RawBind::whole("udp6", &v6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7))),
        RawBind::whole("udp6", &v6(Ipv4Addr::new(192, 0, 2, 7).to_ipv6_mapped())),
        // A neighbour's, without the interface.
        RawBind::whole("udp6", &v6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 7))),
        RawBind::whole("tcp6only", &v6(Ipv4Addr::LOCALHOST.to_ipv6_mapped())),
    ];
    for socket in ["tcp4", "tcp6", "tcp6only", "udp4", "udp6"] {
        for family in [AF_UNSPEC, AF_UNIX, AF_INET, AF_INET6, 77] {
            for ip in [
                IpAddr::from(Ipv4Addr::LOCALHOST),
                Ipv4Addr::UNSPECIFIED.into(),
                Ipv6Addr::LOCALHOST.into(),
                Ipv6Addr::UNSPECIFIED.into(),
            ] {
                calls.push(RawBind::whole(socket, &address(family, ip, port)));
            }
        }
        let ip = if socket.ends_with('4') {
            v4(Ipv4Addr::LOCALHOST)
        } else {
            v6(Ipv6Addr::LOCALHOST)
        };
        for length in (0..=33).chain([110, 127, 128, 129, 4096, u32::MAX]) {
            // There is as much as is said, and less.
            let mut long = ip.clone();
            long.resize(ip.len().max(length.min(4096) as usize), 0);
            long.truncate(length.min(4096) as usize);
            calls.push(RawBind::new(socket, format!("{}", NonEmpty(&long)), length));
            calls.push(RawBind::new(socket, hex(&ip), length));
        }
    }
    calls
}

/// Bytes as a word, which there must be.
struct NonEmpty<'b>(&'b [u8]);

impl std::fmt::Display for NonEmpty<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_empty() { "00" } else { "" })?;
        f.write_str(&hex(self.0))
    }
}

with_and_without_net_raw! {
    fn every_call_of_bind_is_answered_as_the_kernel_answers_it() {
        let mut command = handed_off();
        let mut other = Worker::spawn();
        for (call, same) in calls(PORT).iter().zip(calls(PORT + 1)) {
            let expected = other.tell(&same.text());
            assert_eq!(command.tell(&call.text()), expected, "{}", call.text());
        }
    }

    fn every_call_of_listen_is_answered_as_the_kernel_answers_it() {
        let mut command = handed_off();
        let mut other = Worker::spawn();
        for socket in ["tcp4", "tcp6", "udp4", "udp6", "file", "999", "-1"] {
            for backlog in [0, 1, -1, i32::MAX, i32::MIN] {
                for is_bound in [false, true] {
                    let line = |port| format!("raw_listen {socket} {backlog} {is_bound} {port}");
                    let expected = other.tell(&line(PORT + 1));
                    assert_eq!(command.tell(&line(PORT)), expected, "{}", line(PORT));
                }
            }
        }
    }
}

/// Calls listen(2), on a socket that is bound or not.
fn raw_listen(argument: &str) -> String {
    let words: Vec<&str> = argument.split(' ').collect();
    let [socket, backlog, is_bound, port] = words[..] else {
        panic!("four words");
    };
    let (socket, fd) = open(socket);
    if is_bound == "true"
        && let Some(socket) = &socket
    {
        let port = port.parse().expect("a port");
        let any: IpAddr = match socket.domain().map(i32::from) {
            Ok(libc::AF_INET) => Ipv4Addr::UNSPECIFIED.into(),
            _ => Ipv6Addr::UNSPECIFIED.into(),
        };
        // A file is none the worse for it.
        _ = socket.bind(&std::net::SocketAddr::new(any, port).into());
    }
    let listen = || {
        // SAFETY: two numbers, and nothing is done to a descriptor that is no socket.
        match unsafe { libc::listen(fd, backlog.parse().expect("a number")) } {
            0 => "good".to_owned(),
            _ => io::Error::last_os_error().to_string(),
        }
    };
    let answers = [listen(), listen()];
    let listens = socket.and_then(|socket| socket.is_listener().ok());
    format!("{answers:?} {listens:?}")
}

/// Binds in a thread of a process whose first thread has ended.
fn bind_without_first_thread(argument: &str) -> String {
    let (port, binding) = port_and_binding(argument);
    let (answer, write) = pipe().expect("a pipe can be made");
    // SAFETY: see the top of this file.
    match unsafe { fork() }.expect("a process can fork") {
        ForkResult::Parent { child } => {
            drop(write);
            let mut text = String::new();
            File::from(answer)
                .read_to_string(&mut text)
                .expect("a pipe can be read");
            waitpid(child, None).expect("it is our child");
            text
        }
        ForkResult::Child => {
            let first = std::process::id();
            thread::spawn(move || {
                let stat = format!("/proc/self/task/{first}/stat");
                while !fs::read_to_string(&stat).is_ok_and(|stat| stat.contains(") Z ")) {
                    thread::yield_now();
                }
                let text = binding
                    .bind(port)
                    .map_or_else(|err| err.to_string(), |_| String::new());
                _ = File::from(write).write_all(text.as_bytes());
                // SAFETY: it takes any number, and runs none of the parent's destructors.
                unsafe { libc::_exit(0) }
            });
            // SAFETY: this thread alone ends, with its stack in place.
            unsafe { libc::syscall(libc::SYS_exit, 0) };
            unreachable!("it has exited")
        }
    }
}
