//! Descriptors that come by inheritance: from systemd, or from the process that started this one.
//!
//! # Safety
//!
//! A process is told the numbers of the descriptors that it inherits, on its command line or in its
//! environment, and they become its own here. That is sound because [`adopt`] is called first of all
//! in the process, and once: no Rust object exists yet that could be cheated of a descriptor, and no
//! thread that could open one, or read the environment, meanwhile. A number that is not open, or is
//! named twice, was not written by whoever starts such processes; nothing is touched then.
#![expect(
    unsafe_code,
    reason = "descriptors that come by inheritance have no owner yet"
)]

use std::collections::HashSet;
use std::env;
use std::fs;
use std::io;
use std::iter;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::process;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::FdFlags;

/// The first descriptor that systemd passes: `SD_LISTEN_FDS_START`.
pub(crate) const FIRST_OF_SYSTEMD: RawFd = 3;

/// What is to be done with the descriptors above 2 that are not adopted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Others {
    Leave,
    /// Whatever else the parent had open, a pipe that somebody reads to its end for example, would
    /// stay open as long as this process lives.
    Close,
}

/// Takes ownership of the descriptors `fds`, which programs started by this one do not inherit.
///
/// `None` if one of them is not there, is named twice, or is 0 to 2, and for every call but the
/// first.
pub(crate) fn adopt(fds: &[RawFd], others: Others) -> Option<Vec<OwnedFd>> {
    static IS_OVER: AtomicBool = AtomicBool::new(false);
    let known: HashSet<RawFd> = fds.iter().copied().collect();
    let are_good = known.len() == fds.len() && known.iter().all(|&fd| fd > 2 && is_open(fd));
    if !are_good || IS_OVER.swap(true, Ordering::Relaxed) {
        return None;
    }
    let own = |fd: RawFd| {
        // SAFETY: open, named once, and nobody's: see the argument at the top.
        unsafe { OwnedFd::from_raw_fd(fd) }
    };
    let adopted: Vec<OwnedFd> = fds.iter().copied().map(own).collect();
    for fd in &adopted {
        // It can only fail for a number that is not open.
        _ = rustix::io::fcntl_setfd(fd, FdFlags::CLOEXEC);
    }
    if others == Others::Close {
        let others = open_above_2().into_iter().filter(|fd| !known.contains(fd));
        others.for_each(|fd| drop(own(fd)));
    }
    Some(adopted)
}

/// What this process was started with, above 2, and is for what it starts itself.
#[derive(Debug)]
pub(crate) struct Inherited(Vec<RawFd>);

impl Inherited {
    /// Returns what is there. To be called before this process opens anything.
    pub(crate) fn at_start() -> Self {
        Self(open_above_2())
    }

    /// Closes all of it.
    pub(crate) fn close(self) {
        for fd in self.0 {
            // SAFETY: it was open before this process had opened anything, and nobody has closed it
            // since, so it cannot have become anybody's.
            drop(unsafe { OwnedFd::from_raw_fd(fd) });
        }
    }
}

fn open_above_2() -> Vec<RawFd> {
    let listed: Vec<RawFd> = fs::read_dir("/proc/self/fd")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    // Asked once more: the listing had a descriptor too, which is closed by now.
    let is_there = |fd: &RawFd| *fd > 2 && is_open(*fd);
    listed.into_iter().filter(is_there).collect()
}

/// Takes what systemd has passed to this process, with the names that it has there.
///
/// Afterwards the environment says nothing about it any more, so that nobody takes it twice. Empty
/// if systemd has passed nothing to this very process.
pub(crate) fn from_systemd() -> io::Result<Vec<(OwnedFd, String)>> {
    let variable = |name| env::var(name).unwrap_or_default();
    if variable("LISTEN_PID") != process::id().to_string() {
        return Ok(Vec::new());
    }
    let (count, names) = (variable("LISTEN_FDS"), variable("LISTEN_FDNAMES"));
    for name in ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"] {
        // SAFETY: there is no other thread: see the argument at the top.
        unsafe { env::remove_var(name) };
    }
    let bad = || io::Error::new(io::ErrorKind::InvalidInput, "LISTEN_FDS is not right");
    let passed = parse_count(&count).ok_or_else(bad)?;
    let fds: Vec<RawFd> = passed.clone().take_while(|&fd| is_open(fd)).collect();
    if fds.len() != passed.len() {
        return Err(bad());
    }
    let adopted = adopt(&fds, Others::Leave).ok_or_else(bad)?;
    let names = parse_names(&names).map(str::to_owned);
    Ok(adopted.into_iter().zip(names).collect())
}

/// Reads LISTEN_FDS: the numbers of the descriptors that systemd has passed, open or not.
pub(crate) fn parse_count(text: &str) -> Option<Range<RawFd>> {
    Some(FIRST_OF_SYSTEMD..FIRST_OF_SYSTEMD.checked_add_unsigned(text.parse().ok()?)?)
}

/// Reads LISTEN_FDNAMES: a name for each descriptor, however many there are.
pub(crate) fn parse_names(text: &str) -> impl Iterator<Item = &str> {
    text.split(':').chain(iter::repeat(""))
}

/// Writes descriptors as [`parse_numbers`] reads them.
pub(crate) fn numbers(fds: &[impl AsRawFd]) -> String {
    let numbers: Vec<String> = fds.iter().map(|fd| fd.as_raw_fd().to_string()).collect();
    numbers.join(",")
}

/// Reads the descriptors on a command line: what [`numbers`] writes, and nothing else.
pub(crate) fn parse_numbers(text: &str) -> Option<Vec<RawFd>> {
    let fds: Vec<RawFd> = text
        .split_terminator(',')
        .map(|number| number.parse().ok())
        .collect::<Option<_>>()?;
    (numbers(&fds) == text).then_some(fds)
}

/// The same for a single one.
pub(crate) fn parse_number(text: &str) -> Option<RawFd> {
    match parse_numbers(text)?[..] {
        [fd] => Some(fd),
        _ => None,
    }
}

/// Moves the descriptors `fds`, which were inherited, to where systemd passes them: from 3 on. They
/// are inherited by what this process becomes.
pub(crate) fn pass_on(fds: &[RawFd]) -> io::Result<()> {
    let bad = || io::Error::from_raw_os_error(libc::EBADF);
    let adopted = adopt(fds, Others::Leave).ok_or_else(bad)?;
    let end = FIRST_OF_SYSTEMD + fds.len() as RawFd;
    // Out of the way first: one may have the number that another is to get.
    let moved: Vec<OwnedFd> = adopted
        .iter()
        .map(|fd| rustix::io::fcntl_dupfd_cloexec(fd, end))
        .collect::<Result<_, _>>()?;
    drop(adopted);
    for (fd, target) in moved.iter().zip(FIRST_OF_SYSTEMD..) {
        // SAFETY: whatever has this number was inherited too, and nobody in this process has taken
        // it: see the argument at the top.
        if unsafe { libc::dup2(fd.as_raw_fd(), target) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

fn is_open(fd: RawFd) -> bool {
    // SAFETY: asking about a number that is not open is what fcntl(2) answers with EBADF; nothing
    // is read, written, or closed.
    rustix::io::fcntl_getfd(unsafe { BorrowedFd::borrow_raw(fd) }).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The good case needs a process in which nothing is open: the keeper's and the server's tests.
    #[test]
    fn bad_numbers_are_not_touched() {
        for fds in [&[0][..], &[2], &[-1], &[1_000_000]] {
            assert!(adopt(fds, Others::Close).is_none(), "{fds:?}");
        }
        let file = fs::File::open("/dev/null").unwrap();
        let fd = file.as_raw_fd();
        assert!(adopt(&[fd, fd], Others::Close).is_none());
        assert!(is_open(fd));
    }
}
