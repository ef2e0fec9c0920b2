//! `--daemon`: a server in the background, and a command that returns when it listens.
//!
//! The command starts itself again, with the writing end of a pipe as stdout. The server writes a
//! byte to it when it listens, and lets go of all that it has of the command; until then, stderr is
//! the command's, so that the reason why it does not start can be read there.

use std::env;
use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;

use portpicker::process::Pid;
use rustix::process::{WaitOptions, waitpid};

use super::arguments::DETACHED;
use crate::again;

/// How a server in the background has started.
#[derive(Debug)]
pub(crate) enum Started {
    Listening,
    /// It has said why not, and has exited with this status.
    Failed(i32),
}

/// Starts the server that `arguments` describe, from the program's name to the last, and waits until
/// it listens or has ended.
///
/// `words` is how many of them come before the options.
pub(crate) fn start(arguments: &[OsString], words: usize) -> io::Result<Started> {
    let (mut readiness, ready) = io::pipe()?;
    let dev_null = File::open("/dev/null")?;
    let (words, options) = arguments.split_at(words);
    let arguments = words
        .iter()
        .chain([&OsString::from(DETACHED)])
        .chain(options)
        .map(|argument| CString::new(argument.clone().into_vec()))
        .collect::<Result<Vec<_>, _>>()?;
    let stderr = io::stderr();
    let pid = again::start(
        &arguments,
        [dev_null.as_fd(), ready.as_fd(), stderr.as_fd()],
        &[],
    )?;
    drop(ready);
    // It has the pipe until it listens or ends, whatever happens to it.
    match readiness.read(&mut [0])? {
        0 => Ok(Started::Failed(status_of(pid)?)),
        _ => Ok(Started::Listening),
    }
}

fn status_of(pid: Pid) -> io::Result<i32> {
    let pid = rustix::process::Pid::from_raw(pid.get() as i32);
    let (_, status) = waitpid(pid, WaitOptions::empty())?.expect("it has waited");
    status.exit_status().ok_or_else(|| {
        let signal = status.terminating_signal().unwrap_or_default();
        io::Error::other(format!("it was ended by signal {signal}"))
    })
}

/// Says that the server listens, and lets go of what it has of the command that started it.
pub(crate) fn announce() -> io::Result<()> {
    // The folder may be unmounted; all paths are absolute by now.
    env::set_current_dir("/")?;
    let null = File::options().write(true).open("/dev/null")?;
    rustix::stdio::dup2_stderr(&null)?;
    // An error means that the command is gone: nobody waits any more.
    _ = io::stdout()
        .write_all(b"\n")
        .and_then(|()| io::stdout().flush());
    rustix::stdio::dup2_stdout(&null)?;
    Ok(())
}
