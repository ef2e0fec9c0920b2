//! The signals of `portpicker run`: what it passes on to its command.
//!
//! # Safety
//!
//! - [`CommandExt::pre_exec`] runs a closure in the forked child of a program that may have threads.
//!   The one here calls sigprocmask(2) and sigaction(2) with values of its own, and nothing else.
//! - [`signal`] is given no handler, only SIG_DFL and SIG_IGN: no code of ours runs in a signal.
#![expect(
    unsafe_code,
    reason = "a command inherits which signals are blocked and ignored, and nothing else can change that"
)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use portpicker::process::Pid;
use rustix::process::{getpgid, getpgrp, getpid, getsid};

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
    /// Whether our parent ignores the ends of its children, and had us do so.
    ignored_children: bool,
}

/// What a signal means.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A child's state has changed.
    Child,
    /// The command should have this.
    PassOn(Signal),
    /// The terminal has sent this to all of its foreground: to the command too, if it is still there.
    Typed(Signal),
    /// The terminal stops its foreground: the command too, if it likes, and then it is our turn.
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
        // Ignored, it lets children vanish before anybody has asked how they have ended.
        // SAFETY: no handler.
        let children = unsafe { signal(Signal::SIGCHLD, SigHandler::SigDfl) }?;
        Ok(Self {
            events: SignalFd::with_flags(&all, flags)?,
            inherited,
            ignored_children: matches!(children, SigHandler::SigIgn),
        })
    }

    /// Has `command` start with the signals blocked and ignored that were so before.
    pub(crate) fn restore_in(&self, command: &mut Command) {
        let (mask, ignores_children) = (self.inherited, self.ignored_children);
        let restore = move || {
            if ignores_children {
                // SAFETY: no handler.
                unsafe { signal(Signal::SIGCHLD, SigHandler::SigIgn) }?;
            }
            Ok(mask.thread_set_mask()?)
        };
        // SAFETY: it calls only the kernel, with values that were copied into it.
        unsafe { command.pre_exec(restore) };
    }

    /// Leaves signals to do what they do from now on, but that children vanish when they end.
    pub(crate) fn release(self) -> io::Result<()> {
        // What has been sent already was meant for the command.
        while self.next()?.is_some() {}
        // SAFETY: no handler.
        unsafe { signal(Signal::SIGCHLD, SigHandler::SigIgn) }?;
        Ok(SigSet::empty().thread_set_mask()?)
    }

    /// Returns the next event that is there already.
    pub(crate) fn next(&self) -> io::Result<Option<Event>> {
        let Some(info) = self.events.read_signal()? else {
            return Ok(None);
        };
        let signal = Signal::try_from(info.ssi_signo as i32)?;
        // What a process has sent is for us alone.
        let is_kernels = info.ssi_code > 0;
        Ok(Some(match signal {
            Signal::SIGCHLD => Event::Child,
            Signal::SIGTSTP if is_kernels => Event::Stop,
            // What is typed at the terminal, and its size, all of the foreground is told: us, and the
            // command.
            Signal::SIGINT | Signal::SIGQUIT if is_kernels => Event::Typed(signal),
            Signal::SIGWINCH if is_kernels => Event::Nothing,
            // That the terminal is gone as well, but for the leader of its session, who is told alone.
            Signal::SIGHUP | Signal::SIGCONT if is_kernels && !leads_session() => Event::Nothing,
            _ => Event::PassOn(signal),
        }))
    }
}

fn leads_session() -> bool {
    getsid(None) == Ok(getpid())
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }
}

/// This process in the place of another, a child of it: what it is sent is for that one, and it stops
/// when that one does.
#[derive(Debug)]
pub(crate) struct Deputy {
    of: Pid,
    /// Whether this process was told to stop, and its child as well.
    is_to_stop: bool,
}

impl Deputy {
    pub(crate) fn of(child: Pid) -> Self {
        Self {
            of: child,
            is_to_stop: false,
        }
    }

    /// Passes on what `event` says, if the child is to be told.
    pub(crate) fn pass_on(&mut self, event: &Event) {
        match *event {
            Event::PassOn(signal) => {
                send(self.of, signal);
                match signal {
                    Signal::SIGTSTP => self.is_to_stop = true,
                    Signal::SIGCONT => self.is_to_stop = false,
                    _ => {}
                }
            }
            Event::Typed(signal) => {
                if has_left_group(self.of) {
                    send(self.of, signal);
                }
            }
            Event::Stop => self.is_to_stop = true,
            Event::Child | Event::Nothing => {}
        }
    }

    /// Stops this process until somebody continues it, if it is to, and its child has stopped: that
    /// may as well ignore what it was told.
    pub(crate) fn stop_if_it_has(&mut self) {
        if self.is_to_stop && has_stopped(self.of) {
            _ = nix::sys::signal::raise(Signal::SIGSTOP);
            self.is_to_stop = false;
        }
    }
}

/// Sends `signal` to the process `pid`, if it is still there.
pub(crate) fn send(pid: Pid, signal: Signal) {
    _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.get() as i32), signal);
}

/// Tells whether the process `pid` has left our process group, and with it the terminal's foreground:
/// by setsid(2), for example.
fn has_left_group(pid: Pid) -> bool {
    let pid = rustix::process::Pid::from_raw(pid.get() as i32);
    getpgid(pid).is_ok_and(|group| group != getpgrp())
}

/// Tells whether the process `pid`, a child of ours, has stopped.
fn has_stopped(pid: Pid) -> bool {
    let pid = nix::unistd::Pid::from_raw(pid.get() as i32);
    let stopped = WaitPidFlag::WSTOPPED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    matches!(waitid(Id::Pid(pid), stopped), Ok(WaitStatus::Stopped(..)))
}

/// Buries those of our children that have ended, but for `child`, whose status is wanted.
pub(crate) fn bury_all_but(child: Pid) {
    let child = nix::unistd::Pid::from_raw(child.get() as i32);
    let ended = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG;
    while let Ok(status) = waitid(Id::All, ended | WaitPidFlag::WNOWAIT)
        && let Some(pid) = status.pid()
        // It has ended since it was looked at: the next signal is about it.
        && pid != child
    {
        _ = waitid(Id::Pid(pid), ended);
    }
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
    // Rust ignores SIGPIPE, and has handlers for SIGSEGV and SIGBUS.
    // SAFETY: no handler.
    _ = unsafe { nix::sys::signal::signal(signal, SigHandler::SigDfl) };
    _ = SigSet::from(signal).thread_unblock();
    _ = nix::sys::signal::raise(signal);
}
