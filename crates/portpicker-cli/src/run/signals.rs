//! The signals of `portpicker run`: what it passes on to its command.
//!
//! # Safety
//!
//! [`CommandExt::pre_exec`] runs a closure in the forked child of a program that may have threads.
//! The one here calls sigprocmask(2) with a value of its own, and nothing else.
#![expect(
    unsafe_code,
    reason = "a command inherits the signals that are blocked, and nothing else can unblock them"
)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use portpicker::process::Pid;

/// Signals that people send to a job, and that mean its command.
const PASSED_ON: [Signal; 10] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
    Signal::SIGWINCH,
    Signal::SIGCONT,
    Signal::SIGTSTP,
];

/// This process's signals, as events.
#[derive(Debug)]
pub(crate) struct Signals {
    events: SignalFd,
    /// What was blocked before.
    inherited: SigSet,
}

/// What a signal means.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A child's state has changed.
    Child,
    /// The command should have this.
    PassOn(Signal),
    /// The terminal has stopped its foreground: the command too, and now it is our turn.
    Stop,
    /// Nothing: the terminal has sent it to the command as well.
    Nothing,
}

impl Signals {
    /// Blocks the signals, so that they become events.
    pub(crate) fn block() -> io::Result<Self> {
        let mut all: SigSet = PASSED_ON.into_iter().collect();
        all.add(Signal::SIGCHLD);
        let inherited = all.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        Ok(Self {
            events: SignalFd::with_flags(&all, flags)?,
            inherited,
        })
    }

    /// Has `command` start with the signals blocked that were blocked before.
    pub(crate) fn restore_in(&self, command: &mut Command) {
        let mask = self.inherited;
        let restore = move || Ok(mask.thread_set_mask()?);
        // SAFETY: it calls only the kernel, with a value that was copied into it.
        unsafe { command.pre_exec(restore) };
    }

    /// Returns the next event that is there already.
    pub(crate) fn next(&self) -> io::Result<Option<Event>> {
        let Some(info) = self.events.read_signal()? else {
            return Ok(None);
        };
        let signal = Signal::try_from(info.ssi_signo as i32)?;
        // The kernel sends what is typed at the terminal to all of the foreground: us, and the
        // command. What a process has sent is for us alone.
        let is_typed = info.ssi_code > 0;
        Ok(Some(match signal {
            Signal::SIGCHLD => Event::Child,
            Signal::SIGTSTP if is_typed => Event::Stop,
            _ if is_typed => Event::Nothing,
            _ => Event::PassOn(signal),
        }))
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }
}

/// Sends `signal` to the process `pid`, if it is still there.
pub(crate) fn send(pid: Pid, signal: Signal) {
    _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.get() as i32), signal);
}

/// Stops this process, until somebody continues it.
pub(crate) fn stop() {
    _ = nix::sys::signal::raise(Signal::SIGSTOP);
}

/// Ends this process by `signal`, as another was ended, so that whoever waits for us sees the same.
///
/// Returns if the signal does not end processes.
pub(crate) fn die_of(signal: i32) {
    let Ok(signal) = Signal::try_from(signal) else {
        return;
    };
    // The command has left its core, if any: ours is of no use.
    _ = nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, 0, 0);
    _ = SigSet::from(signal).thread_unblock();
    _ = nix::sys::signal::raise(signal);
}
