//! Processes as owners of leases: their numbers, and their exit.

use std::fmt;
use std::io;
use std::num::NonZeroU32;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::str::FromStr;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::sys;

/// The number of a process: 1 to 2,147,483,647.
///
/// # Example
///
/// ```
/// use portpicker::process::Pid;
///
/// let pid: Pid = "1234".parse()?;
/// assert_eq!(pid.get(), 1234);
/// assert!("-1".parse::<Pid>().is_err());
/// # Ok::<(), portpicker::process::ParsePidError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pid(NonZeroU32);

impl Pid {
    /// The process that starts all others. It cannot own a lease, since it never ends.
    pub const INIT: Self = Self(NonZeroU32::MIN);

    /// Returns the number of this process.
    pub fn current() -> Self {
        Self::new(std::process::id()).expect("the kernel's process ids are in range")
    }

    /// Returns the number of this process's parent, or `None` if that is in another pid
    /// namespace, as for a container's first process.
    pub fn parent() -> Option<Self> {
        rustix::process::getppid().and_then(|pid| Self::new(pid.as_raw_nonzero().get() as u32))
    }

    /// Returns `number` as a process's, or `None` if it is 0 or above 2,147,483,647.
    pub fn new(number: u32) -> Option<Self> {
        (number <= i32::MAX as u32).then_some(Self(NonZeroU32::new(number)?))
    }

    /// Returns the number.
    pub fn get(self) -> u32 {
        self.0.get()
    }

    pub(crate) fn to_rustix(self) -> rustix::process::Pid {
        rustix::process::Pid::from_raw(self.get() as i32).expect("a Pid is never 0")
    }
}

impl fmt::Display for Pid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Pid {
    type Err = ParsePidError;

    fn from_str(text: &str) -> Result<Self, ParsePidError> {
        // `u32::from_str` takes a plus sign; a process id has none.
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        digits
            .then(|| Self::new(text.parse().ok()?))
            .flatten()
            .ok_or_else(|| ParsePidError {
                text: text.to_owned(),
            })
    }
}

/// A text that is not a process id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParsePidError {
    text: String,
}

impl fmt::Display for ParsePidError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "`{}` is not a process id: those are whole numbers from 1 to 2147483647",
            self.text
        )
    }
}

impl std::error::Error for ParsePidError {}

/// Watches one process for its exit.
///
/// By a pidfd where the kernel has them (Linux 5.3), which means that very process, whatever
/// becomes of its number; elsewhere by the number, asked every 100 ms. The latter errs towards
/// seeing an exit too late: a process that has not been reaped, or whose number has been taken by
/// another, counts as running.
///
/// # Example
///
/// ```
/// use std::time::Duration;
/// use portpicker::process::{Pid, Watch};
///
/// let mut child = std::process::Command::new("true").spawn()?;
/// let watch = Watch::open(Pid::new(child.id()).expect("a child has a pid"))?;
/// child.wait()?;
/// assert!(watch.wait(Some(Duration::from_secs(10)))?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # References
///
/// - [pidfd_open(2)](https://man7.org/linux/man-pages/man2/pidfd_open.2.html)
#[derive(Debug)]
pub struct Watch(Mechanism);

#[derive(Debug)]
enum Mechanism {
    Pidfd(sys::pidfd::Watch),
    Poll(sys::poll::Watch),
}

impl Watch {
    /// Starts to watch the process `pid`.
    ///
    /// # Errors
    ///
    /// - [`OpenError::NoSuchProcess`] if no process has this number. One that has exited and waits
    ///   to be reaped has it still.
    /// - [`OpenError::NotAProcess`] if the number is that of a thread.
    /// - [`OpenError::System`] if the kernel would not say, for lack of descriptors for example.
    pub fn open(pid: Pid) -> Result<Self, OpenError> {
        if !cfg!(portpicker_force = "poll") {
            match sys::pidfd::Watch::open(pid) {
                Err(OpenError::System(err)) if sys::pidfd::is_refusal(&err) => {}
                result => return result.map(|watch| Self(Mechanism::Pidfd(watch))),
            }
        }
        sys::poll::Watch::open(pid).map(|watch| Self(Mechanism::Poll(watch)))
    }

    /// Watches the process that `pidfd` refers to.
    pub fn from_pidfd(pidfd: OwnedFd) -> Self {
        Self(Mechanism::Pidfd(sys::pidfd::Watch::from(pidfd)))
    }

    /// Returns the pidfd, or `None` where the process is watched by its number.
    pub fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        match &self.0 {
            Mechanism::Pidfd(watch) => Some(watch.as_fd()),
            Mechanism::Poll(_) => None,
        }
    }

    /// Tells whether the process has exited.
    pub fn has_exited(&self) -> io::Result<bool> {
        self.wait(Some(Duration::ZERO))
    }

    /// Waits until the process exits, at most for `timeout`; for ever if it is `None`.
    ///
    /// Returns whether the process has exited.
    pub fn wait(&self, timeout: Option<Duration>) -> io::Result<bool> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        match &self.0 {
            Mechanism::Pidfd(watch) => wait_readable(watch.as_fd(), deadline),
            Mechanism::Poll(watch) => loop {
                if watch.has_exited()? {
                    return Ok(true);
                }
                match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
                    Some(Duration::ZERO) => return Ok(false),
                    // There is no event here to wait for: this file is the fallback for that.
                    left => std::thread::sleep(
                        left.unwrap_or(sys::poll::INTERVAL).min(sys::poll::INTERVAL),
                    ),
                }
            },
        }
    }
}

/// Waits until `fd`, such as a pidfd, is readable or `deadline` has passed. Returns whether it is.
pub fn wait_readable(fd: BorrowedFd<'_>, deadline: Option<Instant>) -> io::Result<bool> {
    loop {
        let timeout = deadline.map(|deadline| {
            let left = deadline.saturating_duration_since(Instant::now());
            Timespec {
                tv_sec: left.as_secs() as i64,
                tv_nsec: left.subsec_nanos().into(),
            }
        });
        let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
        match poll(&mut fds, timeout.as_ref()) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(rustix::io::Errno::INTR) => {}
            Err(err) => return Err(err.into()),
        }
    }
}

/// Why a process cannot be watched.
#[derive(Debug)]
#[non_exhaustive]
pub enum OpenError {
    /// No process has this number.
    NoSuchProcess,
    /// The number is that of a thread.
    NotAProcess,
    /// The kernel would not say.
    System(io::Error),
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoSuchProcess => "there is no such process",
            Self::NotAProcess => "that is a thread, not a process",
            Self::System(_) => "cannot watch the process",
        })
    }
}

impl std::error::Error for OpenError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::System(err) => Some(err),
            _ => None,
        }
    }
}
