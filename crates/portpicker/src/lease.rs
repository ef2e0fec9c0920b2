//! A port that nobody else is given.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};

use crate::client::ServerAddress;
use crate::owned;
use crate::process::Pid;
use crate::sys::lock::Lock;

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
/// A lease made by a port server ends with its owner; dropped by the owner, its port is offered to
/// this process's next [`pick_unused_port`](crate::pick_unused_port), since the original protocol
/// cannot give it back.
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
    Server { address: ServerAddress, owner: Pid },
    /// Whoever told us about the port with `add_reserved_port`.
    Elsewhere,
}

impl Lease {
    pub(crate) fn new(port: u16, keeping: Keeping) -> Self {
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
            Some(Keeping::Server { address, .. }) => Some(address),
            _ => None,
        }
    }

    /// Ends the lease as far as this process can, and returns what still keeps it, if anything.
    pub(crate) fn end(mut self) -> Option<Keeping> {
        self.keeping
            .take()
            .filter(|keeping| !matches!(keeping, Keeping::Lock(_)))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // Only the owner may offer the port again: a forked child that drops its copy is not.
        if let Some(keeping @ Keeping::Server { owner, .. }) = self.keeping.take()
            && owner == Pid::current()
        {
            owned::offer(self.port, Some(keeping));
        }
    }
}

impl fmt::Display for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.port.fmt(f)
    }
}
