//! One attempt at one port: lock first, then probe.

use std::net::IpAddr;
use std::os::fd::OwnedFd;

use crate::error::{Error, Result};
use crate::hold::Hold;
use crate::lease::{Keeping, Lease};
use crate::probe::{Answer, Bound, Kind, Prober, Scope};
use crate::sys::lock::Locker;

/// Attempts to lease certain ports, one after another.
///
/// For programs that decide themselves which port to try next, such as port servers; everybody
/// else wants a [`Picker`](crate::Picker). An attempt at a port that is leased or occupied costs
/// less on a value that has failed before, since its sockets are used again.
///
/// # Example
///
/// ```
/// use portpicker::{Attempt, Attempts};
///
/// # let port = portpicker::Picker::new().lease()?.port();
/// let mut attempts = Attempts::new();
/// let Attempt::Leased(lease) = attempts.lease(port)? else { panic!("somebody has it") };
/// assert!(matches!(attempts.lease(port)?, Attempt::LeasedElsewhere));
/// # Ok::<(), portpicker::Error>(())
/// ```
#[derive(Debug)]
pub struct Attempts {
    scope: Scope,
    locker: Locker,
    prober: Prober,
}

/// How an attempt at a port ended.
#[derive(Debug)]
pub enum Attempt<T> {
    /// It is leased to us.
    Leased(T),
    /// Somebody else has leased it.
    LeasedElsewhere,
    /// It is in use: bound, connected, or in TIME-WAIT.
    Occupied,
    /// The system keeps it from us: a privileged port, or one that a security module denies.
    Forbidden,
}

impl Default for Attempts {
    fn default() -> Self {
        Self::new()
    }
}

impl Attempts {
    /// Returns attempts at ports that are unused on TCP and UDP, on all local addresses.
    pub fn new() -> Self {
        Self::within(None, None)
    }

    /// Returns attempts that look at one transport only, or at one local address only.
    ///
    /// `0.0.0.0` means all addresses of IPv4, and `::` all of IPv6.
    pub fn within(only: Option<Kind>, address: Option<IpAddr>) -> Self {
        Self::in_scope(Scope { only, address })
    }

    pub(crate) fn in_scope(scope: Scope) -> Self {
        Self {
            scope,
            locker: Locker::new(),
            prober: Prober::new(scope),
        }
    }

    /// Tries to lease `port`. Promise 2, *leased*: see [`Lease`].
    ///
    /// # Errors
    ///
    /// [`Error::Socket`] or [`Error::Lock`] if the system fails, for lack of descriptors for
    /// example.
    pub fn lease(&mut self, port: u16) -> Result<Attempt<Lease>> {
        self.attempt(port, |lease, bound, _| {
            // Closed at once, so that many leases cost no more descriptors than their locks.
            drop(bound);
            lease
        })
    }

    /// Tries to hold `port`. Promise 3, *held*: see [`Hold`].
    ///
    /// # Errors
    ///
    /// As for [`lease`](Self::lease).
    pub fn hold(&mut self, port: u16) -> Result<Attempt<Hold>> {
        self.attempt(port, Hold::new)
    }

    /// Leases `port` whether or not it is in use, or returns `None` if somebody has leased it.
    ///
    /// For a lease that was made before and whose lock was lost: a port server that starts again
    /// adopts its leases so.
    ///
    /// # Errors
    ///
    /// [`Error::Lock`] if the system fails.
    pub fn adopt(&mut self, port: u16) -> Result<Option<Lease>> {
        match self.locker.try_lock(port) {
            Ok(lock) => Ok(lock.map(|lock| Lease::new(port, Keeping::Lock(lock)))),
            Err(source) => Err(Error::Lock { port, source }),
        }
    }

    /// Takes over the lease of `port` of which `descriptor` is a copy: see [`Lease::descriptor`].
    ///
    /// For a lease that was never let go of: by a process that has passed its descriptor on, or
    /// left it with a service manager. Returns `None` if it is not the lock of that port, in this
    /// network namespace.
    ///
    /// # Errors
    ///
    /// [`Error::Lock`] if the system fails.
    ///
    /// # Example
    ///
    /// ```
    /// use portpicker::{Attempts, Picker};
    ///
    /// let lease = Picker::new().server(portpicker::Server::None).lease()?;
    /// let copy = lease.descriptor().expect("no server has it").try_clone_to_owned()?;
    /// let port = lease.port();
    /// drop(lease);
    /// let lease = Attempts::new().adopt_descriptor(port, copy)?.expect("nobody let go of it");
    /// assert_eq!(lease.port(), port);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn adopt_descriptor(&mut self, port: u16, descriptor: OwnedFd) -> Result<Option<Lease>> {
        match self.locker.adopt(port, descriptor) {
            Ok(lock) => Ok(lock.map(|lock| Lease::new(port, Keeping::Lock(lock)))),
            Err(source) => Err(Error::Lock { port, source }),
        }
    }

    /// Tries to lease `port`, which is known to be in TIME-WAIT, for a server with SO_REUSEADDR.
    pub(crate) fn lease_in_time_wait(
        &mut self,
        port: u16,
        prober: &mut Prober,
    ) -> Result<Attempt<Lease>> {
        let Some(lease) = self.adopt(port)? else {
            return Ok(Attempt::LeasedElsewhere);
        };
        Ok(match prober.probe(port)? {
            Answer::Free(_) => Attempt::Leased(lease),
            Answer::Occupied => Attempt::Occupied,
            Answer::Forbidden => Attempt::Forbidden,
        })
    }

    fn attempt<T>(
        &mut self,
        port: u16,
        finish: impl FnOnce(Lease, Bound, Scope) -> T,
    ) -> Result<Attempt<T>> {
        // The lock comes first, so that a probe never gets in the way of a lease's owner.
        let Some(lease) = self.adopt(port)? else {
            return Ok(Attempt::LeasedElsewhere);
        };
        Ok(match self.prober.probe(port)? {
            Answer::Free(bound) => Attempt::Leased(finish(lease, bound, self.scope)),
            Answer::Occupied => Attempt::Occupied,
            Answer::Forbidden => Attempt::Forbidden,
        })
    }
}
