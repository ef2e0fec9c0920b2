//! The process that the caller sees: it passes on what it is sent, and ends as the command has.
//!
//! `portpicker run` is two processes. The one that has started the command keeps its ports, and stays
//! until the last of the processes that came of it has ended, a daemon for example. It has to be
//! there before them, as their ancestor: where Yama restricts ptrace(2), as Ubuntu does, nobody else
//! gets at their sockets. The other one is what the caller waits for.
//!
//! # Safety
//!
//! [`split`] forks, and both processes go on with the code after it. That is sound as long as there is
//! one thread, which `portpicker run` sees to by calling it before all else: nobody can hold a lock
//! that would never be released in the new process.
#![expect(
    unsafe_code,
    reason = "the process that keeps the ports has to be the command's parent"
)]

use std::fs;
use std::io::{self, ErrorKind, PipeReader, PipeWriter, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitCode, ExitStatus};

use nix::unistd::{ForkResult, fork};
use portpicker::process::Pid;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::Failure;
use super::signals::{self, Deputy, Signals};

/// One of the two processes.
#[derive(Debug)]
pub(crate) enum Side {
    /// The one that the caller sees.
    Relay(Relay),
    /// The one that is to start the command, and to say how it has ended.
    Keeper(Report),
}

/// Becomes two processes.
///
/// # Errors
///
/// What pipe(2) and fork(2) report.
pub(crate) fn split() -> io::Result<Side> {
    debug_assert_eq!(fs::read_dir("/proc/self/task")?.count(), 1, "see the top");
    let (reader, writer) = io::pipe()?;
    // SAFETY: there is one thread: see the argument at the top.
    Ok(match unsafe { fork() }? {
        ForkResult::Child => Side::Keeper(Report(writer)),
        ForkResult::Parent { child } => Side::Relay(Relay {
            keeper: Pid::new(child.as_raw() as u32).expect("a child has a pid"),
            report: reader,
        }),
    })
}

/// Where it is said how the command has ended.
#[derive(Debug)]
pub(crate) struct Report(PipeWriter);

impl Report {
    /// Has the caller go on, who may have been killed meanwhile.
    pub(crate) fn send(mut self, status: ExitStatus) {
        _ = self.0.write_all(&status.into_raw().to_ne_bytes());
    }
}

/// Stands in for the command, before the caller.
#[derive(Debug)]
pub(crate) struct Relay {
    keeper: Pid,
    report: PipeReader,
}

impl Relay {
    /// Waits for the report, passing on signals meanwhile. Returns how this process is to end.
    pub(crate) fn wait(mut self, signals: &Signals) -> Result<ExitStatus, Failure> {
        let mut deputy = Deputy::of(self.keeper);
        loop {
            let mut fds = [
                PollFd::new(signals, PollFlags::IN),
                PollFd::new(&self.report, PollFlags::IN),
            ];
            match poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(err) => return Err(Failure::Wait(err.into())),
            }
            let is_over = !fds[1].revents().is_empty();
            while let Some(event) = signals.next().map_err(Failure::Signals)? {
                deputy.pass_on(&event);
            }
            deputy.stop_if_it_has();
            if is_over {
                return self.read();
            }
        }
    }

    fn read(&mut self) -> Result<ExitStatus, Failure> {
        let mut status = [0; size_of::<i32>()];
        match self.report.read_exact(&mut status) {
            Ok(()) => Ok(ExitStatus::from_raw(i32::from_ne_bytes(status))),
            Err(err) if err.kind() == ErrorKind::UnexpectedEof => Err(Failure::Killed),
            Err(err) => Err(Failure::Wait(err)),
        }
    }
}

/// Ends this process as the command has ended.
pub(crate) fn exit_like(status: ExitStatus) -> ExitCode {
    if let Some(signal) = status.signal() {
        signals::die_of(signal);
        // As a shell says it.
        return ExitCode::from(128 + signal as u8);
    }
    ExitCode::from(status.code().unwrap_or(super::FAILED.into()) as u8)
}
