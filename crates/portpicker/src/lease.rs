//! A port that nobody else is given.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::client;
use crate::error::Error;
use crate::owned;
use crate::process::Pid;
use crate::server_address::ServerAddress;
use crate::sys::lock::Lock;

/// How long a server may take to release a dropped lease.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(1);

/// A port that no other lease on this host has, until this one is dropped.
///
/// Promise 2, *leased*: the port was unused when it was picked, nobody who picks through this
/// library, its command, or a port server of this project is given it, and, unless it was asked for
/// from the ephemeral range, the kernel gives it to nobody by itself. A stranger who binds the
/// number unasked is not kept from it: that takes a [`Hold`](crate::Hold).
///
/// The port is not bound: its owner may bind it with any options. Made without a server, the lease
/// is a descriptor of this process. A forked child has a copy and keeps the lease as long as
/// it lives; a program started by `exec` has none. However the process ends, the kernel ends the
/// lease.
///
/// One moment is left: a program that another thread starts just when this one picks has copies of
/// the probe's sockets until its exec, so a bind right after the pick may find the port in use: once
/// in 700 picks beside 350 starts a second. Pick before you start programs, or use a
/// [`Hold`](crate::Hold).
///
/// A lease made by a port server ends with its owner. Dropped by the owner, it is released at the
/// server: that takes a round trip, at most a second, and a server that fails it keeps the port
/// until the owner exits. A server that speaks the original protocol cannot take a port back; then
/// it is offered to this process's next [`pick_unused_port`](crate::pick_unused_port). Dropped by
/// anybody else, such as a forked child or the process that asked for it in the owner's name, the
/// lease goes on.
///
/// # Example
///
/// ```
/// use std::net::TcpListener;
/// use portpicker::Picker;
///
/// let lease = Picker::new().lease()?;
/// let server = TcpListener::bind(("127.0.0.1", lease.port()))?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
#[must_use = "a lease ends when it is dropped"]
pub struct Lease {
    port: u16,
    keeping: Option<Keeping>,
}

/// What keeps the port leased.
#[derive(Debug)]
pub(crate) enum Keeping {
    /// The lock, which is ours.
    Lock(Lock),
    /// A port server, as long as the owner lives.
    Server(Arc<Grantor>),
    /// Whoever told us about the port with `add_reserved_port`.
    Elsewhere,
}

/// The port server that granted the ports of a pick, and to whom.
#[derive(Debug)]
pub(crate) struct Grantor {
    address: ServerAddress,
    owner: Pid,
    /// Whether it has failed to take a port back. It is not asked for the others of the pick then:
    /// a thousand leases must not take a thousand timeouts to drop.
    has_failed: AtomicBool,
}

impl Grantor {
    pub(crate) fn new(address: ServerAddress, owner: Pid) -> Self {
        Self {
            address,
            owner,
            has_failed: AtomicBool::new(false),
        }
    }

    /// Returns the process that the ports were granted to.
    pub(crate) fn owner(&self) -> Pid {
        self.owner
    }

    /// Tells whether the ports are this process's: a forked child's are not.
    pub(crate) fn is_for_us(&self) -> bool {
        self.owner == Pid::current()
    }

    /// Releases `ports` at the server, which need not succeed. Returns whether the server can.
    pub(crate) fn release(&self, ports: &[u16]) -> bool {
        // Nothing hangs on the order: at worst one more release is tried.
        if self.has_failed.load(Ordering::Relaxed) {
            return true;
        }
        match client::release_if_owned(&self.address, ports, Some(self.owner), RELEASE_TIMEOUT) {
            Ok(()) => true,
            Err(Error::ServerCannot { .. }) => false,
            Err(Error::Declined { .. }) => true,
            Err(_) => {
                self.has_failed.store(true, Ordering::Relaxed);
                true
            }
        }
    }
}

impl Lease {
    pub(crate) fn new(port: u16, keeping: Keeping) -> Self {
        if let Keeping::Lock(_) = keeping {
            owned::LOCKED.insert(port);
        }
        Self {
            port,
            keeping: Some(keeping),
        }
    }

    /// Returns the port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Keeps the lease for the life of this process, and returns its port.
    ///
    /// [`return_port`](crate::return_port) ends it earlier.
    pub fn into_port(self) -> u16 {
        let port = self.port;
        owned::keep(self);
        port
    }

    /// Returns the descriptor that keeps the lease: whoever has a copy of it shares the lease.
    ///
    /// `None` if the lease was made by a port server, which keeps it as long as the owner lives.
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        match &self.keeping {
            Some(Keeping::Lock(lock)) => Some(lock.as_fd()),
            _ => None,
        }
    }

    /// Returns the address of the port server that made the lease, if one did.
    pub fn server(&self) -> Option<&ServerAddress> {
        match &self.keeping {
            Some(Keeping::Server(grantor)) => Some(&grantor.address),
            _ => None,
        }
    }

    /// Ends the lease as far as this process can, and returns what still keeps it, if anything.
    pub(crate) fn end(mut self) -> Option<Keeping> {
        self.take_keeping()
            .filter(|keeping| !matches!(keeping, Keeping::Lock(_)))
    }
}

impl Lease {
    fn take_keeping(&mut self) -> Option<Keeping> {
        let keeping = self.keeping.take();
        if let Some(Keeping::Lock(_)) = keeping {
            // Before the lock is released: after that, the port may be somebody else's.
            owned::LOCKED.remove(self.port);
        }
        keeping
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(Keeping::Server(grantor)) = self.take_keeping()
            && grantor.is_for_us()
        {
            owned::drop_grant(self.port, grantor);
        }
    }
}

impl fmt::Display for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.port.fmt(f)
    }
}
