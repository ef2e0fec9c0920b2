//! What remains in the background when `portpicker run` returns before all that it has started.
//!
//! A command may leave a daemon behind, or be meant to go on ([`--wait-listening`]). This program
//! then starts itself once more, with the descriptors that keep the ports: it goes on carrying out
//! binds, until the last of the processes has ended. Its descriptors:
//!
//! - 0 to 2: /dev/null;
//! - those named on its command line: the locks, the sockets that hold the ports, and the one that
//!   hangs up with the last process: the supervisor's listener, or the reading end of a pipe.
//!
//! [`--wait-listening`]: super::Arguments::wait_listening

use std::env;
use std::ffi::{CString, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::process::ExitCode;

use portpicker::hand_off::Supervisor;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::again;
use crate::inherited::{Others, adopt};

/// The first argument. Not in the help: nobody should type it.
const COMMAND: &str = "remain";

/// What keeps the ports, and says when they are no longer needed.
#[derive(Debug)]
pub(crate) struct Remainder<'a> {
    /// For people who look at the list of processes.
    pub(crate) ports: Vec<u16>,
    pub(crate) locks: Vec<BorrowedFd<'a>>,
    pub(crate) holders: Vec<BorrowedFd<'a>>,
    pub(crate) end: End<BorrowedFd<'a>>,
}

/// What hangs up when the last process has ended.
#[derive(Clone, Copy, Debug)]
pub(crate) enum End<Fd> {
    /// The supervisor's listener.
    Listener(Fd),
    /// The reading end of a pipe.
    Pipe(Fd),
}

impl<Fd> End<Fd> {
    fn descriptor(&self) -> &Fd {
        let (Self::Listener(fd) | Self::Pipe(fd)) = self;
        fd
    }
}

/// Starts the process that remains. When this returns, it has its own copies of the descriptors.
pub(crate) fn start(remainder: &Remainder<'_>) -> io::Result<()> {
    let dev_null = File::options().read(true).write(true).open("/dev/null")?;
    let streams = [dev_null.as_fd(); 3];
    let mut kept = vec![*remainder.end.descriptor()];
    kept.extend(&remainder.locks);
    kept.extend(&remainder.holders);
    again::start(&arguments(remainder), streams, &kept)?;
    Ok(())
}

/// Returns the command line: readable in a list of processes, parsed by [`inherited`].
fn arguments(remainder: &Remainder<'_>) -> Vec<CString> {
    let text = |items: &mut dyn Iterator<Item = String>| items.collect::<Vec<_>>().join(",");
    let numbers =
        |fds: &[BorrowedFd<'_>]| text(&mut fds.iter().map(|fd| fd.as_raw_fd().to_string()));
    let end = match remainder.end {
        End::Listener(fd) => format!("--listener={}", fd.as_raw_fd()),
        End::Pipe(fd) => format!("--pipe={}", fd.as_raw_fd()),
    };
    [
        "portpicker".to_owned(),
        COMMAND.to_owned(),
        format!(
            "--ports={}",
            text(&mut remainder.ports.iter().map(u16::to_string))
        ),
        format!("--locks={}", numbers(&remainder.locks)),
        format!("--holders={}", numbers(&remainder.holders)),
        end,
    ]
    .into_iter()
    .map(|text| CString::new(text).expect("numbers have no NUL"))
    .collect()
}

/// What the process that remains reads from its command line.
#[derive(Debug)]
pub(crate) struct Inherited {
    locks: Vec<RawFd>,
    holders: Vec<RawFd>,
    end: End<RawFd>,
}

/// Returns what is on the command line if it is one that [`start`] has written.
pub(crate) fn inherited(arguments: &[OsString]) -> Option<Inherited> {
    let [_, command, _ports, locks, holders, end] = arguments else {
        return None;
    };
    let value =
        |argument: &OsString, name: &str| Some(argument.to_str()?.strip_prefix(name)?.to_owned());
    let numbers = |text: String| {
        text.split(',')
            .filter(|part| !part.is_empty())
            .map(|part| part.parse().ok())
            .collect::<Option<Vec<RawFd>>>()
    };
    (command == COMMAND).then_some(())?;
    Some(Inherited {
        locks: numbers(value(locks, "--locks=")?)?,
        holders: numbers(value(holders, "--holders=")?)?,
        end: match value(end, "--listener=") {
            Some(fd) => End::Listener(fd.parse().ok()?),
            None => End::Pipe(value(end, "--pipe=")?.parse().ok()?),
        },
    })
}

/// Keeps the ports until the last process has ended: all that remains to be done.
pub(crate) fn remain(inherited: &Inherited) -> ExitCode {
    let end = *inherited.end.descriptor();
    let all = [&[end][..], &inherited.holders, &inherited.locks].concat();
    let Some(mut holders) = adopt(&all, Others::Close) else {
        return ExitCode::FAILURE;
    };
    // Released last: whoever leases a port then finds it unused.
    let _locks = holders.split_off(1 + inherited.holders.len());
    let end = holders.remove(0);
    // Not in the way of whoever wants to unmount the folder that the command was started in.
    _ = env::set_current_dir(Path::new("/"));
    let result = match inherited.end {
        End::Listener(_) => Supervisor::adopt(end, holders).and_then(|it| it.run(|_| {})),
        End::Pipe(_) => {
            let result = wait_hung_up(&end);
            drop(holders);
            result
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // Nobody reads what it says.
        Err(_) => ExitCode::FAILURE,
    }
}

/// Waits until nobody has the other end of a pipe. Nothing is ever written to it.
fn wait_hung_up(pipe: &OwnedFd) -> io::Result<()> {
    loop {
        match poll(&mut [PollFd::new(pipe, PollFlags::empty())], None) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(err) => return Err(err.into()),
        }
    }
}
