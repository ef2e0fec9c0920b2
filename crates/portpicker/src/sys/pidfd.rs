//! A process, watched through a pidfd: it becomes readable when that very process exits.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::process::{PidfdFlags, pidfd_open};

use crate::process::{OpenError, Pid};

#[derive(Debug)]
pub(crate) struct Watch(OwnedFd);

impl Watch {
    pub(crate) fn open(pid: Pid) -> Result<Self, OpenError> {
        match pidfd_open(pid.to_rustix(), PidfdFlags::empty()) {
            Ok(pidfd) => Ok(Self(pidfd)),
            Err(Errno::SRCH) => Err(OpenError::NoSuchProcess),
            // A thread's number: EINVAL up to Linux 6.15, ENOENT since.
            Err(Errno::INVAL | Errno::NOENT) => Err(OpenError::NotAProcess),
            Err(err) => Err(OpenError::System(err.into())),
        }
    }
}

impl From<OwnedFd> for Watch {
    fn from(pidfd: OwnedFd) -> Self {
        Self(pidfd)
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Tells whether `err` says that there are no pidfds here: Linux before 5.3 (ENOSYS), or a
/// seccomp filter that is older than the call (EPERM).
pub(crate) fn is_refusal(err: &io::Error) -> bool {
    matches!(Errno::from_io_error(err), Some(Errno::NOSYS | Errno::PERM))
}
