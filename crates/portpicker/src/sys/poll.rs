//! A process, watched by its number alone: asked now and then whether it still exists.
//!
//! It errs in the safe direction, keeping a port too long rather than leasing it twice. If the
//! number is reused between two questions, the exit goes unnoticed and the lease lasts as long as
//! the newcomer. A process that has exited but has not been reaped still answers.

use std::io;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::test_kill_process;

use crate::process::{OpenError, Pid};

/// How long to wait between two questions.
pub(crate) const INTERVAL: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(crate) struct Watch(Pid);

impl Watch {
    pub(crate) fn open(pid: Pid) -> Result<Self, OpenError> {
        let watch = Self(pid);
        match watch.has_exited() {
            Ok(true) => Err(OpenError::NoSuchProcess),
            Ok(false) => Ok(watch),
            Err(err) => Err(OpenError::System(err)),
        }
    }

    pub(crate) fn has_exited(&self) -> io::Result<bool> {
        match test_kill_process(self.0.to_rustix()) {
            // EPERM: it exists, and it is another user's.
            Ok(()) | Err(Errno::PERM) => Ok(false),
            Err(Errno::SRCH) => Ok(true),
            Err(err) => Err(err.into()),
        }
    }
}
