//! The keeper: a process in the background that keeps a script's ports leased.
//!
//! `portpicker $$` prints a number and exits, but the lease must last as long as the shell. So it
//! starts itself once more, with the descriptors that are the lease, and the copy does nothing but
//! wait for the owner's exit and then exit too, which ends the lease. Its descriptors:
//!
//! - 0: a pidfd of the owner, or /dev/null where there are none; 1 and 2: /dev/null;
//! - those named on its command line: the locks, and with `--hold` the bound sockets.

use std::collections::HashSet;
use std::env;
use std::ffi::{CString, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use portpicker::process::{Pid, Watch, wait_readable};
use rustix::process::Signal;

use crate::again;
use crate::inherited::{Others, adopt, numbers, parse_numbers};

/// The first argument of a keeper. Not in the help: nobody should type it.
const COMMAND: &str = "keep";

/// What a keeper is to do.
#[derive(Debug)]
pub(crate) struct Duties<'a> {
    pub(crate) owner: Pid,
    pub(crate) watch: &'a Watch,
    /// For people who look at the list of processes.
    pub(crate) ports: Vec<u16>,
    /// What keeps the ports leased.
    pub(crate) locks: Vec<BorrowedFd<'a>>,
    /// What keeps the ports held.
    pub(crate) sockets: Vec<BorrowedFd<'a>>,
    /// How long the ports are to be held.
    pub(crate) hold: Duration,
}

/// A keeper that was started.
#[derive(Debug)]
pub(crate) struct Keeper {
    pid: Pid,
}

impl Keeper {
    /// Starts a keeper; none if there is nothing to keep, because a port server does.
    ///
    /// When this returns, the keeper has its own copies of the descriptors.
    pub(crate) fn start(duties: &Duties<'_>) -> io::Result<Option<Self>> {
        if duties.locks.is_empty() && duties.sockets.is_empty() {
            return Ok(None);
        }
        let dev_null = File::options().read(true).write(true).open("/dev/null")?;
        let stdin = duties.watch.pidfd().unwrap_or_else(|| dev_null.as_fd());
        let kept: Vec<BorrowedFd<'_>> = duties
            .locks
            .iter()
            .chain(&duties.sockets)
            .copied()
            .collect();
        let streams = [stdin, dev_null.as_fd(), dev_null.as_fd()];
        let pid = again::start(&arguments(duties), streams, &kept)?;
        Ok(Some(Self { pid }))
    }

    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// Ends the keeper, and with it the leases.
    pub(crate) fn dismiss(self) {
        if let Some(pid) = rustix::process::Pid::from_raw(self.pid.get() as i32) {
            // It is our child and has not been waited for, so the number is its own. An error
            // means that it has ended already.
            _ = rustix::process::kill_process(pid, Signal::TERM);
        }
    }
}

/// Returns the command line of a keeper: readable in a list of processes, parsed by [`inherited`].
fn arguments(duties: &Duties<'_>) -> Vec<CString> {
    let ports: Vec<String> = duties.ports.iter().map(u16::to_string).collect();
    [
        "portpicker".to_owned(),
        COMMAND.to_owned(),
        format!("--owner={}", duties.owner),
        format!("--ports={}", ports.join(",")),
        format!("--locks={}", numbers(&duties.locks)),
        format!("--sockets={}", numbers(&duties.sockets)),
        format!("--hold={}", duties.hold.as_secs_f64()),
        format!("--pidfd={}", duties.watch.pidfd().is_some()),
    ]
    .into_iter()
    .map(|text| CString::new(text).expect("numbers have no NUL"))
    .collect()
}

/// What a keeper reads from its command line.
#[derive(Debug)]
pub(crate) struct Inherited {
    owner: Pid,
    locks: Vec<RawFd>,
    sockets: Vec<RawFd>,
    hold: Duration,
    /// Whether descriptor 0 is a pidfd of the owner.
    has_pidfd: bool,
}

/// Returns the duties on the command line if it is a keeper's.
///
/// `None` for every other command line, and for one that [`Keeper::start`] has not written.
pub(crate) fn inherited(arguments: &[OsString]) -> Option<Inherited> {
    let [_, command, owner, ports, locks, sockets, hold, pidfd] = arguments else {
        return None;
    };
    let value = |argument: &OsString, name: &str| {
        Some(
            argument
                .to_str()?
                .strip_prefix(name)?
                .strip_prefix('=')?
                .to_owned(),
        )
    };
    (command == COMMAND).then_some(())?;
    value(ports, "--ports")?;
    let inherited = Inherited {
        owner: value(owner, "--owner")?.parse().ok()?,
        locks: parse_numbers(&value(locks, "--locks")?)?,
        sockets: parse_numbers(&value(sockets, "--sockets")?)?,
        hold: Duration::try_from_secs_f64(value(hold, "--hold")?.parse().ok()?).ok()?,
        has_pidfd: value(pidfd, "--pidfd")?.parse().ok()?,
    };
    let all = inherited.descriptors();
    let distinct: HashSet<RawFd> = all.iter().copied().collect();
    (distinct.len() == all.len() && all.iter().all(|&fd| fd > 2)).then_some(inherited)
}

impl Inherited {
    /// Returns the locks, and then the sockets.
    pub(crate) fn descriptors(&self) -> Vec<RawFd> {
        [&self.locks[..], &self.sockets].concat()
    }
}

/// Keeps what was inherited until the owner exits: all that a keeper does.
pub(crate) fn keep(inherited: Inherited) -> ExitCode {
    let Some((locks, sockets)) = take(&inherited) else {
        return ExitCode::FAILURE;
    };
    // Not in the way of whoever wants to unmount the folder that the script was started in.
    _ = env::set_current_dir(Path::new("/"));

    let hold_end = Instant::now().checked_add(inherited.hold);
    let wait = |deadline: Option<Instant>| match inherited.has_pidfd {
        true => wait_readable(rustix::stdio::stdin(), deadline),
        false => match Watch::open(inherited.owner) {
            Ok(watch) => {
                watch.wait(deadline.map(|end| end.saturating_duration_since(Instant::now())))
            }
            // It exited before it could be watched.
            Err(_) => Ok(true),
        },
    };
    let is_over = |waited: io::Result<bool>| waited.unwrap_or(true);
    if !sockets.is_empty() && is_over(wait(hold_end)) {
        return ExitCode::SUCCESS;
    }
    drop(sockets);
    if !locks.is_empty() {
        is_over(wait(None));
    }
    ExitCode::SUCCESS
}

/// Takes the locks and the sockets that were inherited. `None` if a descriptor is not there.
fn take(inherited: &Inherited) -> Option<(Vec<OwnedFd>, Vec<OwnedFd>)> {
    let mut locks = adopt(&inherited.descriptors(), Others::Close)?;
    let sockets = locks.split_off(inherited.locks.len());
    Some((locks, sockets))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command_line(text: &str) -> Vec<OsString> {
        text.split(' ').map(OsString::from).collect()
    }

    const GOOD: &str =
        "portpicker keep --owner=7 --ports=1,2 --locks=3,4 --sockets= --hold=1.5 --pidfd=true";

    #[test]
    fn a_keeper_reads_what_it_was_started_with() {
        let inherited = inherited(&command_line(GOOD)).unwrap();
        assert_eq!(inherited.owner.get(), 7);
        assert_eq!((inherited.locks, inherited.sockets), (vec![3, 4], vec![]));
        assert_eq!(inherited.hold, Duration::from_millis(1500));
        assert!(inherited.has_pidfd);
    }

    #[test]
    fn nothing_else_makes_a_keeper() {
        let bad = [
            "portpicker",
            "portpicker 7",
            "portpicker keep",
            &GOOD.replace("keep", "pick"),
            &GOOD.replace("--owner=7", "--owner=0"),
            &GOOD.replace("--locks=3,4", "--locks=3,3"),
            &GOOD.replace("--sockets=", "--sockets=4"),
            &GOOD.replace("--locks=3,4", "--locks=2"),
            &GOOD.replace("--locks=3,4", "--locks=x"),
            &GOOD.replace("--hold=1.5", "--hold=-1"),
        ];
        for text in bad {
            assert!(inherited(&command_line(text)).is_none(), "{text}");
        }
    }
}
