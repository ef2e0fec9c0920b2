//! The ports of this process: picked, returned, and reserved.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::Error;
use crate::attempt::{Attempt, Attempts};
use crate::candidates::Candidates;
use crate::error::Result;
use crate::lease::{Grantor, Keeping, Lease};
use crate::occupied::RecentlyOccupied;
use crate::picker::Picker;
use crate::port_bits::PortBits;
use crate::probe::{Answer, Family, Kind, Prober, Scope};
use crate::sys::fork::PerProcess;
use crate::sys::lock::Locker;
use crate::walk::Random;

/// What a process remembers about its ports. A forked child starts with nothing of it.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) random: Random,
    pub(crate) occupied: RecentlyOccupied,
    candidates: Mutex<Option<Arc<Candidates>>>,
    ports: Mutex<Ports>,
}

#[derive(Debug, Default)]
struct Ports {
    /// Picked for the life of the process.
    leases: HashMap<u16, Lease>,
    /// To be offered before all others, in this order. Those that something keeps leased to us
    /// cannot be lost; the others have to be locked again.
    offered: VecDeque<(u16, Option<Keeping>)>,
    /// Granted to us by a port server, and not released.
    granted: HashSet<u16>,
}

static STATE: PerProcess<State> = PerProcess::new();

/// The ports whose locks are in this process.
///
/// A forked child starts with its parent's, and rightly: it shares their locks.
pub(crate) static LOCKED: PortBits = PortBits::new();

pub(crate) fn state() -> &'static State {
    STATE.get()
}

impl State {
    /// Returns the default candidates for the present environment.
    pub(crate) fn candidates(&self) -> Result<Arc<Candidates>> {
        let mut known = lock(&self.candidates);
        match &*known {
            Some(candidates) if candidates.are_current() => Ok(Arc::clone(candidates)),
            _ => Ok(Arc::clone(known.insert(Arc::new(Candidates::find()?)))),
        }
    }
}

/// Keeps `lease` for the life of this process.
pub(crate) fn keep(lease: Lease) {
    let replaced = lock(&state().ports).leases.insert(lease.port(), lease);
    // Dropped only now: a lease that ends may want the mutex.
    drop(replaced);
}

/// Takes note that a port server has granted `port` to this process. Returns whether it may: not
/// if one had before, and the port is in use here.
pub(crate) fn note_grant(port: u16) -> bool {
    let mut ports = lock(&state().ports);
    // A server that forgets its leases when it ends grants them anew. One that is on offer here is
    // nobody's, so it can be.
    let before = ports.offered.len();
    ports
        .offered
        .retain(|(known, keeping)| !matches!(keeping, Some(Keeping::Server(_)) if *known == port));
    let was_offered = ports.offered.len() < before;
    let is_leased = ports.leases.contains_key(&port);
    !is_leased && (ports.granted.insert(port) || was_offered)
}

/// Gives a granted port back to its server, or offers it here if the server cannot take it.
pub(crate) fn drop_grant(port: u16, grantor: Arc<Grantor>) {
    // Before it is released: it may be granted to another thread right after.
    lock(&state().ports).granted.remove(&port);
    if !grantor.release(&[port]) {
        let mut ports = lock(&state().ports);
        ports.granted.insert(port);
        ports
            .offered
            .push_back((port, Some(Keeping::Server(grantor))));
    }
}

/// Offers `port` to this process's next picks.
pub(crate) fn offer(port: u16, keeping: Option<Keeping>) {
    lock(&state().ports).offered.push_back((port, keeping));
}

/// Picks a port that is unused on TCP and UDP, IPv4 and IPv6, and stays this process's.
///
/// Promise 2, *leased*: see [`Lease`]. The lease lasts until the process ends or calls
/// [`return_port`]. In this order:
///
/// 1. a port that was returned or reserved in this process, if it is still unused;
/// 2. the port server in `PORTSERVER_ADDRESS`, if that is set and the server grants one;
/// 3. any candidate (see [`Picker::ports`]).
///
/// Each leased port costs a descriptor of this process, unless a server leased it.
///
/// # Errors
///
/// As for [`Picker::lease`], without those that concern a certain server or owner.
///
/// # Example
///
/// ```
/// use std::net::TcpListener;
///
/// let port = portpicker::pick_unused_port()?;
/// let server = TcpListener::bind(("127.0.0.1", port))?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn pick_unused_port() -> Result<u16> {
    match pick_offered_port()? {
        Some(port) => Ok(port),
        None => Ok(Picker::new().lease()?.into_port()),
    }
}

/// Picks a port that was returned or reserved in this process, if one is still unused.
///
/// The first of the ways of [`pick_unused_port`], for callers that have others of their own.
///
/// # Errors
///
/// [`Error::Socket`] or [`Error::Lock`] if the system fails, for lack of descriptors for
/// example.
///
/// # Example
///
/// ```
/// use portpicker::{pick_offered_port, pick_unused_port, return_port};
///
/// assert_eq!(pick_offered_port()?, None);
/// let port = pick_unused_port()?;
/// return_port(port);
/// assert_eq!(pick_offered_port()?, Some(port));
/// # Ok::<(), portpicker::Error>(())
/// ```
pub fn pick_offered_port() -> Result<Option<u16>> {
    Ok(take_offered()?.map(Lease::into_port))
}

/// Picks `count` ports, all or none. See [`pick_unused_port`].
pub fn pick_unused_ports(count: usize) -> Result<Vec<u16>> {
    let mut leases = Vec::new();
    while leases.len() < count {
        match take_offered() {
            Ok(Some(lease)) => leases.push(lease),
            Ok(None) => break,
            Err(err) => {
                give_back(leases);
                return Err(err);
            }
        }
    }
    match Picker::new().leases(count - leases.len()) {
        Ok(rest) => Ok(leases
            .into_iter()
            .chain(rest)
            .map(Lease::into_port)
            .collect()),
        Err(err) => {
            give_back(leases);
            Err(err)
        }
    }
}

/// Gives back a port that this process had picked, and offers it to the next pick.
///
/// Returns whether it had been picked and not been returned before; otherwise nothing happens.
/// Once returned, the port may be leased by anybody, unless a port server leased it: that one keeps
/// it for this process. Close the sockets that are bound to the port first; a port in use is not
/// offered.
///
/// # Example
///
/// ```
/// let port = portpicker::pick_unused_port()?;
/// assert!(portpicker::return_port(port));
/// assert!(!portpicker::return_port(port), "only once");
/// # Ok::<(), portpicker::Error>(())
/// ```
pub fn return_port(port: u16) -> bool {
    let state = state();
    let Some(lease) = lock(&state.ports).leases.remove(&port) else {
        return false;
    };
    let keeping = lease.end();
    lock(&state.ports).offered.push_back((port, keeping));
    true
}

/// Offers a port from elsewhere to the next picks of this process.
///
/// The caller knows that the port is this process's: it is leased even if somebody has its lock,
/// such as the shell's `portpicker $$`. It is not offered while it is in use. Nothing happens if
/// the process has picked the port already, or has it on offer.
///
/// # Example
///
/// ```
/// # let port = portpicker::Picker::new().lease()?.port();
/// portpicker::add_reserved_port(port);
/// assert_eq!(portpicker::pick_unused_port()?, port);
/// # Ok::<(), portpicker::Error>(())
/// ```
pub fn add_reserved_port(port: u16) {
    let mut ports = lock(&state().ports);
    let is_known =
        ports.leases.contains_key(&port) || ports.offered.iter().any(|&(known, _)| known == port);
    if port != 0 && !is_known {
        ports.offered.push_back((port, Some(Keeping::Elsewhere)));
    }
}

/// Tells whether `port` is unused on TCP and UDP, IPv4 and IPv6, and leased to nobody else.
///
/// Promise 1, *unused*: the answer is true when it is given, and may be false a moment later. A
/// port that this process has leased and not bound is free, and one that its parent had leased when
/// it was forked. A port that is leased to somebody else is not, be it bound or not; so are one that
/// this process holds (see [`Hold`](crate::Hold)), and port 0.
///
/// # Errors
///
/// [`Error::Socket`] or [`Error::Lock`] if the system fails, for lack of descriptors for
/// example.
///
/// # Example
///
/// ```
/// let listener = std::net::TcpListener::bind(("127.0.0.1", 0))?;
/// let port = listener.local_addr()?.port();
/// assert!(!portpicker::is_port_free(port)?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn is_port_free(port: u16) -> Result<bool> {
    if port == 0 {
        return Ok(false);
    }
    // Without the lock, a probe could make the bind of a lease's owner fail.
    let _lock;
    if !is_leased_here(port) {
        match Locker::new().try_lock(port) {
            Ok(Some(taken)) => _lock = taken,
            Ok(None) => return Ok(false),
            Err(source) => return Err(Error::Lock { port, source }),
        }
    }
    probe_port(port)
}

/// Tells whether this process has leased or holds `port`.
///
/// Also if it shares the lease because its parent had it when it was forked. Leases that were made
/// for this process elsewhere, such as those of the shell's `portpicker $$`, are not known.
///
/// # Example
///
/// ```
/// let lease = portpicker::Picker::new().lease()?;
/// assert!(portpicker::is_leased_here(lease.port()));
/// # Ok::<(), portpicker::Error>(())
/// ```
pub fn is_leased_here(port: u16) -> bool {
    if LOCKED.contains(port) {
        return true;
    }
    let ports = lock(&state().ports);
    ports.leases.contains_key(&port) || ports.granted.contains(&port)
}

/// Tells whether `port` is unused on TCP and UDP, IPv4 and IPv6, whoever has leased it.
///
/// Promise 1, *unused*. For a port that the caller knows to be its own, though this library does
/// not: from an environment variable, for example. A probe is a bind of a moment, which may make
/// another's fail; [`is_port_free`] does not do that to the owner of a lease.
///
/// # Errors
///
/// [`Error::Socket`] if the system fails, for lack of descriptors for example.
///
/// # Example
///
/// ```
/// let listener = std::net::TcpListener::bind(("127.0.0.1", 0))?;
/// assert!(!portpicker::probe_port(listener.local_addr()?.port())?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn probe_port(port: u16) -> Result<bool> {
    Ok(port != 0 && matches!(Prober::new(Scope::default()).probe(port)?, Answer::Free(_)))
}

/// Picks a port that is unused for one family and transport, and stays this process's.
///
/// Promise 2, *leased*, as for [`pick_unused_port`], but what other families and transports do
/// with the number is ignored. Where you have the socket, [`bind_port`](crate::bind_port) is
/// better: it needs no promise.
///
/// # Errors
///
/// As for [`Picker::lease`]; [`Error::Socket`] if the system lacks the family.
///
/// # Example
///
/// ```
/// use std::net::UdpSocket;
/// use portpicker::{Family, Kind};
///
/// let port = portpicker::find_unused_port(Family::Ipv4, Kind::Udp)?;
/// let socket = UdpSocket::bind(("127.0.0.1", port))?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn find_unused_port(family: Family, kind: Kind) -> Result<u16> {
    let all = family.unspecified_address();
    Ok(Picker::new().address(all).only(kind).lease()?.into_port())
}

/// Takes the first offered port that is unused, and leases it again.
fn take_offered() -> Result<Option<Lease>> {
    let state = state();
    let count = lock(&state.ports).offered.len();
    if count == 0 {
        return Ok(None);
    }
    let mut attempts = Attempts::new();
    for _ in 0..count {
        // Not locked while probing: threads pick side by side.
        let Some((port, keeping)) = lock(&state.ports).offered.pop_front() else {
            break;
        };
        let Some(keeping) = keeping else {
            match attempts.lease(port)? {
                Attempt::Leased(lease) => return Ok(Some(lease)),
                // Somebody has it now: a candidate like all others.
                _ => continue,
            }
        };
        match Prober::new(Scope::default()).probe(port) {
            Ok(Answer::Free(_)) => return Ok(Some(Lease::new(port, keeping))),
            // It is still ours: to be asked about again next time.
            Ok(Answer::Occupied | Answer::Forbidden) => offer(port, Some(keeping)),
            Err(err) => {
                offer(port, Some(keeping));
                return Err(err);
            }
        }
    }
    Ok(None)
}

/// Offers the ports of `leases` again, which were not enough.
fn give_back(leases: Vec<Lease>) {
    for lease in leases {
        let port = lease.port();
        offer(port, lease.end());
    }
}

/// A panic elsewhere leaves each of these values whole: they change in single steps.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
