//! Starting this program again, in the background: for the keeper, and for a server that is a daemon.
//!
//! A `posix_spawn`, never a fork that runs code of ours: the new process has a session of its own
//! from its first instruction, so that no ^C reaches it, and at no moment are the descriptors that
//! it is given in neither process.

use std::env;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use nix::spawn::{PosixSpawnAttr, PosixSpawnFileActions, PosixSpawnFlags, posix_spawn};
use nix::sys::signal::SigSet;
use portpicker::process::Pid;

/// Starts this program with `arguments`, the first of which is its name.
///
/// It gets `streams` as 0 to 2, `kept` under the numbers that they have here, and whatever else this
/// process has open without close-on-exec. When this returns, it has its own copies of them.
pub(crate) fn start(
    arguments: &[CString],
    streams: [BorrowedFd<'_>; 3],
    kept: &[BorrowedFd<'_>],
) -> io::Result<Pid> {
    let mut actions = PosixSpawnFileActions::init()?;
    for (target, fd) in (0..).zip(streams) {
        actions.add_dup2(fd.as_raw_fd(), target)?;
    }
    for fd in kept {
        // Onto itself: that only clears close-on-exec, in the new process.
        actions.add_dup2(fd.as_raw_fd(), fd.as_raw_fd())?;
    }
    let mut attributes = PosixSpawnAttr::init()?;
    // Whatever this process has blocked, `kill` is to work on that one.
    attributes.set_sigmask(&SigSet::empty())?;
    attributes.set_flags(
        PosixSpawnFlags::from_bits_retain(libc::POSIX_SPAWN_SETSID.into())
            | PosixSpawnFlags::POSIX_SPAWN_SETSIGMASK,
    )?;
    let child = posix_spawn(
        &own_program()?,
        &actions,
        &attributes,
        arguments,
        &environment(),
    )?;
    Ok(Pid::new(child.as_raw() as u32).expect("a child has a pid"))
}

/// Returns the program that runs this code.
fn own_program() -> io::Result<PathBuf> {
    let program = env::current_exe()?;
    if program.exists() {
        return Ok(program);
    }
    // It has been replaced or deleted since we were started; this still leads to it.
    Ok(PathBuf::from("/proc/self/exe"))
}

/// Returns this process's environment, which may say how to find its libraries.
fn environment() -> Vec<CString> {
    env::vars_os()
        .map(|(name, value)| [name.into_vec(), value.into_vec()].join(&b'='))
        .filter_map(|variable| CString::new(variable).ok())
        .collect()
}
