//! The lock of a port: taken without waiting, released by the kernel with its last descriptor.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

#[cfg(target_os = "linux")]
use super::abstract_socket;
use super::lock_file;

/// The lock of one port. Whoever has it may probe the port and lease it.
///
/// Copies of the descriptor, by fork or by passing, are the same lock: it is released when the
/// last of them closes, however its process ended.
#[derive(Debug)]
pub(crate) enum Lock {
    #[cfg(target_os = "linux")]
    AbstractSocket(abstract_socket::Lock),
    File(lock_file::Lock),
}

impl AsFd for Lock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            #[cfg(target_os = "linux")]
            Self::AbstractSocket(lock) => lock.as_fd(),
            Self::File(lock) => lock.as_fd(),
        }
    }
}

/// Takes locks, one attempt after another, by the best mechanism that is not refused here.
///
/// Processes exclude each other only if they use the same mechanism. The choice therefore depends
/// on nothing but what the kernel allows, never on load: running out of descriptors is an error
/// and no reason for the fallback.
#[derive(Debug)]
pub(crate) enum Locker {
    #[cfg(target_os = "linux")]
    AbstractSocket(abstract_socket::Locker),
    File(lock_file::Locker),
}

impl Locker {
    pub(crate) fn new() -> Self {
        #[cfg(target_os = "linux")]
        if !cfg!(portpicker_force = "lock_file") {
            return Self::AbstractSocket(abstract_socket::Locker::default());
        }
        Self::File(lock_file::Locker::default())
    }

    /// Takes the lock of `port`, or returns `None` if somebody has it.
    pub(crate) fn try_lock(&mut self, port: u16) -> io::Result<Option<Lock>> {
        match self {
            #[cfg(target_os = "linux")]
            Self::AbstractSocket(locker) => match locker.try_lock(port) {
                Ok(lock) => Ok(lock.map(Lock::AbstractSocket)),
                Err(err) if abstract_socket::is_refusal(&err) => {
                    *self = Self::File(lock_file::Locker::default());
                    self.try_lock(port)
                }
                Err(err) => Err(err),
            },
            Self::File(locker) => Ok(locker.try_lock(port)?.map(Lock::File)),
        }
    }

    /// Returns the lock of `port` of which `descriptor` is a copy, or `None` if it is not.
    pub(crate) fn adopt(&mut self, port: u16, descriptor: OwnedFd) -> io::Result<Option<Lock>> {
        // If the lock can be taken, the descriptor is none of it: it is of another port, or of
        // another network namespace. It also finds out which mechanism is in use here.
        if self.try_lock(port)?.is_some() {
            return Ok(None);
        }
        match self {
            #[cfg(target_os = "linux")]
            Self::AbstractSocket(_) => {
                Ok(abstract_socket::Lock::adopt(port, descriptor)?.map(Lock::AbstractSocket))
            }
            Self::File(locker) => Ok(locker.adopt(port, descriptor)?.map(Lock::File)),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::process;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// Returns a number that no other test, and hardly another run of the tests, locks. Below
    /// 10,000, since locks of candidates come and go.
    pub(in crate::sys) fn own_port() -> u16 {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        (1 + (process::id() * 16 + count) % 9_999) as u16
    }

    #[test]
    fn a_lock_excludes_until_its_last_descriptor_closes() {
        let port = own_port();
        let mut locker = Locker::new();
        let lock = locker.try_lock(port).unwrap().expect("nobody has it");
        assert!(locker.try_lock(port).unwrap().is_none());
        assert!(Locker::new().try_lock(port).unwrap().is_none());

        let copy = lock.as_fd().try_clone_to_owned().unwrap();
        drop(lock);
        assert!(
            locker.try_lock(port).unwrap().is_none(),
            "the copy is the same lock"
        );
        drop(copy);
        assert!(locker.try_lock(port).unwrap().is_some());
    }

    #[test]
    fn a_copy_of_the_lock_is_adopted_and_nothing_else() {
        let (port, other) = (own_port(), own_port());
        let mut locker = Locker::new();
        let lock = locker.try_lock(port).unwrap().expect("nobody has it");
        let copy = || lock.as_fd().try_clone_to_owned().unwrap();

        assert!(locker.adopt(other, copy()).unwrap().is_none());
        let taken = Locker::new().try_lock(other).unwrap();
        assert!(taken.is_some(), "what was not adopted is not taken");
        assert!(locker.adopt(other, copy()).unwrap().is_none());
        let null = std::fs::File::open("/dev/null").unwrap();
        assert!(locker.adopt(port, null.into()).unwrap().is_none());
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(locker.adopt(port, socket.into()).unwrap().is_none());

        let adopted = locker.adopt(port, copy()).unwrap();
        drop(lock);
        assert!(locker.try_lock(port).unwrap().is_none(), "it is kept");
        drop(adopted);
        assert!(locker.try_lock(port).unwrap().is_some());
    }

    #[test]
    fn a_locker_goes_on_after_a_failed_attempt() {
        let (taken, free) = (own_port(), own_port());
        let mut locker = Locker::new();
        let _taken = locker.try_lock(taken).unwrap().expect("nobody has it");
        assert!(locker.try_lock(taken).unwrap().is_none());
        assert!(locker.try_lock(free).unwrap().is_some());
    }
}
