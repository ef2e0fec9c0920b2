//! Which lock is the cheapest, of those that the kernel releases when their process ends?
//!
//! Taken and released when nobody has it; tried in vain when somebody has it; and both again while
//! thousands are held, since a test farm holds thousands.
//!
//! Not among them: locks on the bytes of one file, one byte for each port. An attempt walks through
//! all that are held: 341 µs with 10,000.

use std::cell::Cell;
use std::fs::{self, File, TryLockError};
use std::io;
use std::iter;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process;
use std::slice;

use rustix::io::Errno;
use rustix::net::addr::SocketAddrArg;
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, Protocol, SocketAddrUnix, SocketFlags, SocketType};
use rustix::net::{bind, ipproto, socket_with};

use crate::side_by_side::{Contender, Effort, Times, compare};
use crate::wildcard;

/// A way to lock a number until its descriptor closes.
struct Mechanism<'a> {
    name: &'static str,
    /// Who excludes whom, and what that takes.
    scope: &'static str,
    try_lock: TryLock<'a>,
}

/// Returns `None` if somebody has the lock.
type TryLock<'a> = Box<dyn Fn(u16) -> io::Result<Option<OwnedFd>> + 'a>;

pub(crate) fn compare_locks(effort: Effort, numbers: &[u16]) -> io::Result<()> {
    let folder = Folder::new()?;
    let (mechanisms, missing): (Vec<_>, Vec<_>) = mechanisms(&folder)
        .into_iter()
        .partition(|mechanism| (mechanism.try_lock)(numbers[0]).is_ok());
    let (rounds, batch) = effort.choose((500, 20), (5, 5));
    let few = time_attempts(rounds, batch, &mechanisms, &numbers[..2]);
    let many = format!("{} held", numbers.len() * 99 / 100);
    println!("a lock, taken and released                  1 held    {many:>14}");
    println!("                                      free   taken      free   taken   scope");
    for (row, mechanism) in mechanisms.iter().enumerate() {
        let many = time_attempts(rounds, batch, slice::from_ref(mechanism), numbers);
        print!("  {:<32}", mechanism.name);
        print!("{:8.2}{:8.2}", few.micros(2 * row), few.micros(2 * row + 1));
        print!("  {:8.2}{:8.2}", many.micros(0), many.micros(1));
        println!("   {}", mechanism.scope);
    }
    for Mechanism { name, .. } in missing {
        println!("  {name:<32}   not on this system");
    }
    Ok(())
}

/// Returns two rows for each mechanism: the time to take and release a free lock, and that of an
/// attempt at a taken one. The first hundredth of `numbers` is free, the others are taken.
fn time_attempts(
    rounds: usize,
    batch: usize,
    mechanisms: &[Mechanism<'_>],
    numbers: &[u16],
) -> Times {
    let (free, taken) = numbers.split_at(numbers.len().div_ceil(100));
    let mut held = Vec::new();
    let mut contenders: Vec<Contender<'_>> = Vec::new();
    for Mechanism { try_lock, .. } in mechanisms {
        let lock = move |number: &u16| try_lock(*number).expect("it worked before");
        held.extend(taken.iter().map(lock));
        let mut free = iter::repeat(free).flatten().map(lock);
        contenders.push(Box::new(move || {
            drop(free.next().flatten().expect("nobody has it"));
        }));
        let mut taken = iter::repeat(taken).flatten().map(lock);
        contenders.push(Box::new(move || {
            assert!(taken.next().flatten().is_none(), "it is held");
        }));
    }
    compare(rounds, batch, &mut contenders)
}

fn mechanisms(folder: &Folder) -> Vec<Mechanism<'_>> {
    const UNIX: AddressFamily = AddressFamily::UNIX;
    let id = process::id();
    let decimal = move |number| unix(format!("portpicker-bench-{id}/{number}"));
    let spread = move |number| {
        let cube = u64::from(number).pow(3);
        unix(format!("portpicker-bench-{id}/{number}/{cube:x}"))
    };
    let netlink = move |number| SocketAddrNetlink::new((id << 16) | u32::from(number), 0);
    vec![
        Mechanism {
            name: "abstract stream, N and N^3 hex",
            scope: "network namespace",
            try_lock: socket_lock(UNIX, SocketType::STREAM, None, spread),
        },
        Mechanism {
            name: "abstract stream, N",
            // The kernel keeps them in 256 lists, by the sum of their bytes.
            scope: "network namespace; N alone spreads over 52 lists of 256",
            try_lock: socket_lock(UNIX, SocketType::STREAM, None, decimal),
        },
        Mechanism {
            name: "abstract datagram, N",
            scope: "the same",
            try_lock: socket_lock(UNIX, SocketType::DGRAM, None, decimal),
        },
        Mechanism {
            name: "abstract seqpacket, N",
            scope: "the same",
            try_lock: socket_lock(UNIX, SocketType::SEQPACKET, None, decimal),
        },
        Mechanism {
            name: "netlink, NETLINK_USERSOCK",
            scope: "network namespace; refused by many sandboxes, shown by no tool",
            try_lock: socket_lock(
                AddressFamily::NETLINK,
                SocketType::RAW,
                Some(netlink::USERSOCK),
                netlink,
            ),
        },
        Mechanism {
            name: "UDP-Lite port",
            scope: "network namespace; not in every kernel",
            try_lock: socket_lock(
                AddressFamily::INET6,
                SocketType::DGRAM,
                Some(ipproto::UDPLITE),
                wildcard,
            ),
        },
        Mechanism {
            name: "flock on a file of its own",
            scope: "folder, which somebody must make and everybody must see",
            try_lock: Box::new(|number| folder.try_lock(number)),
        },
    ]
}

fn unix(name: String) -> SocketAddrUnix {
    SocketAddrUnix::new_abstract_name(name.as_bytes()).expect("the name is short")
}

/// Returns a lock that is a socket bound to an address of its own. The socket of a failed attempt
/// serves for the next one, as it does in the library.
fn socket_lock<'a, A: SocketAddrArg>(
    family: AddressFamily,
    kind: SocketType,
    protocol: Option<Protocol>,
    address: impl Fn(u16) -> A + 'a,
) -> TryLock<'a> {
    let spare = Cell::new(None);
    Box::new(move |number| {
        let socket = match spare.take() {
            Some(socket) => socket,
            None => socket_with(family, kind, SocketFlags::CLOEXEC, protocol)?,
        };
        match bind(&socket, &address(number)) {
            Ok(()) => Ok(Some(socket)),
            Err(Errno::ADDRINUSE) => {
                spare.set(Some(socket));
                Ok(None)
            }
            Err(err) => Err(err.into()),
        }
    })
}

/// A folder of lock files, removed in the end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> io::Result<Self> {
        let path = PathBuf::from(format!("/dev/shm/portpicker-bench-{}", process::id()));
        fs::create_dir(&path)?;
        Ok(Self(path))
    }

    fn try_lock(&self, number: u16) -> io::Result<Option<OwnedFd>> {
        let path = self.0.join(number.to_string());
        let file = File::options().create(true).append(true).open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file.into())),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(err)) => Err(err),
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // At worst, empty files stay in a folder with a telling name.
        let _ = fs::remove_dir_all(&self.0);
    }
}
