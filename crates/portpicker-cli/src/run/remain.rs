//! What remains in the background when `portpicker run` returns before all that it has started.
//!
//! A command may leave a daemon behind, or be meant to go on ([`--wait-listening`]). This program
//! then starts itself once more, with the descriptors that keep the ports: it goes on carrying out
//! binds, until the last of the processes has ended. Its descriptors:
//!
//! - 0 to 2: /dev/null;
//! - those named on its command line: the locks, and what else keeps the ports ([`Keep`]).
//!
//! [`--wait-listening`]: super::Arguments::wait_listening

use std::env;
use std::ffi::{CString, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::process::ExitCode;

use portpicker::hand_off::{Descriptors, Supervisor, entrust};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::again;
use crate::inherited::{Others, adopt, numbers, parse_number, parse_numbers};

/// The first argument. Not in the help: nobody should type it.
const COMMAND: &str = "remain";

/// What keeps the ports beside their locks, and says when they are no longer needed.
#[derive(Debug)]
pub(crate) enum Keep<Fd> {
    /// Binds are to be carried out, until the listener hangs up.
    Supervise(Descriptors<Fd>),
    /// There is nothing to do, until the pipe hangs up.
    Wait {
        pipe: Fd,
        holders: Vec<Fd>,
        /// Whether a supervisor above us is to carry out binds.
        are_entrusted: bool,
    },
}

/// Starts the process that remains. When this returns, it has its own copies of the descriptors.
///
/// `ports` are for people who look at the list of processes.
pub(crate) fn start(
    ports: &[u16],
    locks: &[BorrowedFd<'_>],
    keep: &Keep<BorrowedFd<'_>>,
) -> io::Result<()> {
    let dev_null = File::options().read(true).write(true).open("/dev/null")?;
    let streams = [dev_null.as_fd(); 3];
    let mut kept = locks.to_vec();
    let listed: Vec<String> = ports.iter().map(u16::to_string).collect();
    let mut arguments = vec![
        "portpicker".to_owned(),
        COMMAND.to_owned(),
        format!("--ports={}", listed.join(",")),
        format!("--locks={}", numbers(locks)),
    ];
    match keep {
        Keep::Supervise(descriptors) => {
            let (hosts, guests): (Vec<_>, Vec<_>) = descriptors.guests.iter().copied().unzip();
            arguments.push(format!("--listener={}", numbers(&[descriptors.listener])));
            arguments.push(format!("--holders={}", numbers(&descriptors.holders)));
            arguments.push(format!("--hosts={}", numbers(&hosts)));
            arguments.push(format!("--guests={}", numbers(&guests)));
            arguments.push(format!("--strict={}", descriptors.is_strict));
            kept.push(descriptors.listener);
            kept.extend(&descriptors.holders);
            kept.extend(hosts);
            kept.extend(guests);
        }
        Keep::Wait {
            pipe,
            holders,
            are_entrusted,
        } => {
            arguments.push(format!("--pipe={}", numbers(&[*pipe])));
            arguments.push(format!("--holders={}", numbers(holders)));
            arguments.push(format!("--entrusted={are_entrusted}"));
            kept.push(*pipe);
            kept.extend(holders);
        }
    }
    let arguments: Vec<CString> = arguments
        .into_iter()
        .map(|text| CString::new(text).expect("numbers have no NUL"))
        .collect();
    again::start(&arguments, streams, &kept)?;
    Ok(())
}

/// What the process that remains reads from its command line.
#[derive(Debug)]
pub(crate) struct Inherited {
    locks: Vec<RawFd>,
    keep: Keep<RawFd>,
}

/// Returns what is on the command line if it is one that [`start`] has written.
pub(crate) fn inherited(arguments: &[OsString]) -> Option<Inherited> {
    let [_, command, ports, locks, rest @ ..] = arguments else {
        return None;
    };
    (command == COMMAND).then_some(())?;
    let value =
        |argument: &OsString, name: &str| Some(argument.to_str()?.strip_prefix(name)?.to_owned());
    let one = |argument: &OsString, name: &str| parse_number(&value(argument, name)?);
    let many = |argument: &OsString, name: &str| parse_numbers(&value(argument, name)?);
    value(ports, "--ports=")?;
    let keep = match rest {
        [listener, holders, hosts, guests, strict] => {
            let (hosts, guests) = (many(hosts, "--hosts=")?, many(guests, "--guests=")?);
            (hosts.len() == guests.len()).then_some(())?;
            Keep::Supervise(Descriptors {
                listener: one(listener, "--listener=")?,
                holders: many(holders, "--holders=")?,
                guests: hosts.into_iter().zip(guests).collect(),
                is_strict: value(strict, "--strict=")?.parse().ok()?,
            })
        }
        [pipe, holders, entrusted] => Keep::Wait {
            pipe: one(pipe, "--pipe=")?,
            holders: many(holders, "--holders=")?,
            are_entrusted: value(entrusted, "--entrusted=")?.parse().ok()?,
        },
        _ => return None,
    };
    Some(Inherited {
        locks: many(locks, "--locks=")?,
        keep,
    })
}

impl Inherited {
    /// Returns the locks, and then what else there is, in the order in which [`take`] takes it.
    pub(crate) fn descriptors(&self) -> Vec<RawFd> {
        let mut all = self.locks.clone();
        match &self.keep {
            Keep::Supervise(descriptors) => {
                all.push(descriptors.listener);
                all.extend(&descriptors.holders);
                let guests = descriptors.guests.iter();
                all.extend(guests.flat_map(|&(host, socket)| [host, socket]));
            }
            Keep::Wait { pipe, holders, .. } => {
                all.push(*pipe);
                all.extend(holders);
            }
        }
        all
    }
}

/// Keeps the ports until the last process has ended: all that remains to be done.
pub(crate) fn remain(inherited: Inherited) -> ExitCode {
    // Whoever leases a port when we are done finds it unused: the locks are released last.
    let Some((_locks, keep)) = take(inherited) else {
        return ExitCode::FAILURE;
    };
    // Not in the way of whoever wants to unmount the folder that the command was started in.
    _ = env::set_current_dir(Path::new("/"));
    let result = match keep {
        Keep::Supervise(descriptors) => {
            Supervisor::adopt(descriptors).and_then(|it| it.run(|_| {}))
        }
        Keep::Wait {
            pipe,
            holders,
            are_entrusted,
        } => {
            if are_entrusted {
                // It did it for the process that we come after. If it no longer does, the ports are
                // held, and not bound again.
                _ = entrust(&holders);
            }
            wait_hung_up(&pipe)
        }
    };
    // Nobody reads what is wrong.
    result.map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS)
}

/// Takes what was inherited. `None` if a descriptor is not there.
fn take(inherited: Inherited) -> Option<(Vec<OwnedFd>, Keep<OwnedFd>)> {
    let mut adopted = adopt(&inherited.descriptors(), Others::Close)?.into_iter();
    let Inherited { locks, keep } = inherited;
    let mut next = || adopted.next().expect("as many as were named");
    let locks = locks.iter().map(|_| next()).collect();
    let keep = match keep {
        Keep::Supervise(descriptors) => Keep::Supervise(Descriptors {
            listener: next(),
            holders: descriptors.holders.iter().map(|_| next()).collect(),
            guests: descriptors
                .guests
                .iter()
                .map(|_| (next(), next()))
                .collect(),
            is_strict: descriptors.is_strict,
        }),
        Keep::Wait {
            holders,
            are_entrusted,
            ..
        } => Keep::Wait {
            pipe: next(),
            holders: holders.iter().map(|_| next()).collect(),
            are_entrusted,
        },
    };
    Some((locks, keep))
}

/// Tells whether nobody has the other end of a pipe. Nothing is ever written to it.
pub(crate) fn has_hung_up(pipe: impl AsFd) -> bool {
    let mut fds = [PollFd::new(&pipe, PollFlags::empty())];
    poll(&mut fds, Some(&Timespec::default())) == Ok(1)
}

fn wait_hung_up(pipe: &OwnedFd) -> io::Result<()> {
    loop {
        match poll(&mut [PollFd::new(pipe, PollFlags::empty())], None) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(err) => return Err(err.into()),
        }
    }
}
