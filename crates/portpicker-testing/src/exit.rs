//! The exit of a process, as an event.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// How long an event may take that surely comes. Only a failure waits so long.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// Watches one process for its exit, by a pidfd: independently of the library's own watch.
///
/// The kernel closes the descriptors of a process before it says that the process has exited, so
/// all that they kept is free by then.
#[derive(Debug)]
pub struct Exit(OwnedFd);

impl Exit {
    /// Watches the process `pid`, which must exist.
    pub fn of(pid: u32) -> Self {
        let pid = Pid::from_raw(pid as i32).expect("a process id is not 0");
        Self(pidfd_open(pid, PidfdFlags::empty()).expect("the process exists"))
    }

    /// Returns whether the process has exited.
    pub fn has_happened(&self) -> bool {
        wait_until_readable(self.0.as_fd(), Duration::ZERO)
    }

    /// Waits until the process has exited.
    pub fn wait(&self) {
        assert!(self.happens_within(DEADLINE), "the process does not exit");
    }

    /// Sends SIGKILL to the process, if it is still there, and waits until it has exited.
    pub fn kill(&self) {
        match pidfd_send_signal(&self.0, Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => self.wait(),
            Err(err) => panic!("cannot kill: {err}"),
        }
    }

    /// Returns whether the process exits before `limit` has passed, or had exited before.
    pub fn happens_within(&self, limit: Duration) -> bool {
        wait_until_readable(self.0.as_fd(), limit)
    }
}

/// Waits until `fd` is readable or at its end. Returns whether it is before `limit` has passed.
pub(crate) fn wait_until_readable(fd: BorrowedFd<'_>, limit: Duration) -> bool {
    let end = Instant::now() + limit;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: left.subsec_nanos().into(),
        };
        let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(count) => return count > 0,
            Err(Errno::INTR) => {}
            Err(err) => panic!("poll: {err}"),
        }
    }
}
