//! What a pick costs, beside the system calls that it cannot do without.
//!
//! ```text
//! cargo bench -p portpicker                 # all tables, half a minute
//! cargo bench -p portpicker -- --quick      # does it still work? a second
//! ```
//!
//! 1. Is a pick more than its own lock and probes? They are measured bare, in the same run.
//! 2. What does a pick cost when most of the candidates are leased, or in use?
//! 3. Which lock is the cheapest, of those that the kernel releases? See `locks`.
//!
//! It binds numbers outside the default ephemeral range only, and nothing listens.
#![expect(clippy::print_stdout, reason = "the tables are the purpose")]

mod locks;
mod side_by_side;

use std::env;
use std::error::Error;
use std::io;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::fd::OwnedFd;

use portpicker::{Lease, Picker, PortSet};
use rustix::io::Errno;
use rustix::net::{AddressFamily, Protocol, SocketAddrUnix, SocketFlags, SocketType};
use rustix::net::{bind, ipproto, socket_with, sockopt};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use side_by_side::{Contender, Effort, Times, compare, micros_per_call};

type Result<T = ()> = std::result::Result<T, Box<dyn Error>>;

/// The numbers that are locked, bound, and picked from: default candidates on most hosts.
const PORTS: &str = "10101-14999,25000-29999";

fn main() -> Result {
    for variable in ["PORTSERVER_ADDRESS", "PORTPICKER_PORTS"] {
        if env::var_os(variable).is_some() {
            return Err(format!("{variable} is set: this would measure something else").into());
        }
    }
    let is_same = is_locked_bare(&Picker::new().lease()?)?;
    assert!(is_same, "the bare lock is not the library's");

    let effort = Effort::from_arguments();
    let mut ports: Vec<u16> = PORTS.parse::<PortSet>()?.iter().collect();
    ports.retain(|&port| portpicker::is_port_free(port).unwrap_or(false));
    shuffle(&mut ports);
    // Each leased or occupied port costs a descriptor.
    let limit = raise_descriptor_limit()?.saturating_sub(100);
    ports.truncate(effort.choose(limit, limit.min(1000)));

    println!("medians in µs; ratios of times that were taken in turns, and their quartiles\n");
    fresh_port(effort, &ports)?;
    same_port(effort)?;
    crowded_candidates(effort, &ports)?;
    locks::compare_locks(effort, &ports)?;
    Ok(())
}

fn fresh_port(effort: Effort, ports: &[u16]) -> Result {
    let picker = Picker::new();
    let picks: io::Result<Vec<BarePick>> = ports.iter().map(|&port| BarePick::new(port)).collect();
    let picks = picks?;
    let mut next = picks.iter().cycle();
    let mut contenders: [Contender<'_>; 3] = [
        Box::new(|| next.next().expect("it is a cycle").run()),
        Box::new(|| drop(picker.lease().expect("some candidates are unused"))),
        Box::new(|| drop(picker.hold().expect("some candidates are unused"))),
    ];
    let times = compare(effort.choose(2000, 20), 20, &mut contenders);
    let names = ["bare", "Picker::lease, dropped", "Picker::hold, dropped"];
    print_beside_bare("a pick of another port each time", &names, &times);
    Ok(())
}

/// `return_port` offers its port to the next pick, which has to lock and probe it again.
fn same_port(effort: Effort) -> Result {
    let port = portpicker::pick_unused_port()?;
    assert!(portpicker::return_port(port));
    let bare = BarePick::new(port)?;
    let mut contenders: [Contender<'_>; 2] = [
        Box::new(|| bare.run()),
        Box::new(|| {
            let picked = portpicker::pick_unused_port().expect("some candidates are unused");
            assert!(portpicker::return_port(picked));
        }),
    ];
    let times = compare(effort.choose(2000, 20), 20, &mut contenders);
    let names = ["bare", "pick_unused_port, return_port"];
    print_beside_bare("a pick of the same port each time", &names, &times);
    Ok(())
}

fn print_beside_bare(title: &str, names: &[&str], times: &Times) {
    println!("{title:<36}    µs    ratio                goal");
    for (row, name) in names.iter().enumerate() {
        let (micros, ratio) = (times.micros(row), times.ratio(row, 0).to_string());
        let goal = if row == 0 { "" } else { "1.15" };
        println!("  {name:<32} {micros:7.2}  {ratio:<20}  {goal}");
    }
    println!();
}

/// Leases, then binds, more and more of the candidates, and picks from what is left.
fn crowded_candidates(effort: Effort, ports: &[u16]) -> Result {
    const SHARES: [usize; 8] = [0, 10, 25, 50, 75, 90, 95, 99];
    let candidates = PortSet::from_ports(ports.iter().copied()).ok_or("no port is unused")?;
    let picker = Picker::new().ports(candidates);
    let pick = || drop(picker.lease().expect("some candidates are unused"));
    let batch = effort.choose(100, 5);
    let mut leased = Times::new(SHARES.len());
    let mut occupied = Times::new(SHARES.len());
    let rounds = effort.choose(30, 2);
    for _ in 0..rounds {
        let mut leases = Vec::new();
        for (row, share) in SHARES.into_iter().enumerate() {
            leases.extend(picker.leases(ports.len() * share / 100 - leases.len())?);
            leased.record(row, micros_per_call(batch, pick));
        }
    }
    // After all of the others: for a second, picks try last what they have found occupied.
    for _ in 0..rounds {
        let mut sockets = Vec::new();
        for (row, share) in SHARES.into_iter().enumerate() {
            for &port in &ports[sockets.len()..ports.len() * share / 100] {
                match bound(SocketType::STREAM, ipproto::TCP, &wildcard(port)) {
                    // Bound by us or by somebody else, it is occupied.
                    socket @ (Ok(_) | Err(Errno::ADDRINUSE)) => sockets.push(socket),
                    Err(err) => return Err(err.into()),
                }
            }
            // The first picks meet each occupied candidate once; what is measured is the rest.
            micros_per_call(effort.choose(3000, 5), pick);
            occupied.record(row, micros_per_call(batch, pick));
        }
    }
    print!("a pick from {} candidates of which", ports.len());
    println!("   … are leased                 … are occupied                 goal");
    for (row, share) in SHARES.into_iter().enumerate() {
        print!("{share:34} %");
        for times in [&leased, &occupied] {
            let ratio = times.ratio(row, 0).to_string();
            print!("  {:7.2} {ratio:<22}", times.micros(row));
        }
        println!("{}", if share == 95 { "5.00" } else { "" });
    }
    println!();
    Ok(())
}

/// The system calls of one pick, in the library's order, and nothing else.
struct BarePick {
    lock: SocketAddrUnix,
    port: SocketAddrV6,
}

impl BarePick {
    fn new(port: u16) -> io::Result<Self> {
        Ok(Self {
            lock: lock_address(port)?,
            port: wildcard(port),
        })
    }

    fn run(&self) {
        let flags = SocketFlags::CLOEXEC;
        let lock = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None);
        let lock = lock.expect("there are sockets");
        let probe = || -> rustix::io::Result<_> {
            bind(&lock, &self.lock)?;
            let tcp = bound(SocketType::STREAM, ipproto::TCP, &self.port)?;
            Ok((tcp, bound(SocketType::DGRAM, ipproto::UDP, &self.port)?))
        };
        match probe() {
            Ok(sockets) => drop(sockets),
            // It was free at the start; some other test may be running.
            Err(Errno::ADDRINUSE) => {}
            Err(err) => panic!("{}: {err}", self.port),
        }
    }
}

/// Returns the address of the library's own lock (`docs/protocol.md`, section 1).
///
/// With another one, the bare pick would compare something else, and disturb leases of others.
fn lock_address(port: u16) -> io::Result<SocketAddrUnix> {
    let name = format!("portpicker/{port}/{:x}", u64::from(port).pow(3));
    Ok(SocketAddrUnix::new_abstract_name(name.as_bytes())?)
}

/// Tells whether the bare lock sees that `lease` has it.
fn is_locked_bare(lease: &Lease) -> io::Result<bool> {
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    let is_taken = bind(&socket, &lock_address(lease.port())?) == Err(Errno::ADDRINUSE);
    Ok(is_taken || cfg!(portpicker_force = "lock_file"))
}

fn wildcard(port: u16) -> SocketAddrV6 {
    SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, port, 0, 0)
}

/// Returns a socket that is bound to `address`, IPv4 included.
fn bound(
    kind: SocketType,
    protocol: Protocol,
    address: &SocketAddrV6,
) -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::INET6, kind, flags, Some(protocol))?;
    sockopt::set_ipv6_v6only(&socket, false)?;
    bind(&socket, address)?;
    Ok(socket)
}

/// Raises the limit on open files as far as it goes, and returns it.
fn raise_descriptor_limit() -> io::Result<usize> {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let current = maximum.unwrap_or(65_536);
    let limit = Rlimit {
        current: Some(current),
        maximum,
    };
    setrlimit(Resource::Nofile, limit)?;
    Ok(current as usize)
}

/// Brings `ports` into an order that looks random and is always the same.
fn shuffle(ports: &mut [u16]) {
    ports.sort_unstable_by_key(|&port| u32::from(port).wrapping_mul(2_654_435_769));
}
