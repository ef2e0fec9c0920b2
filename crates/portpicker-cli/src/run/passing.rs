//! Passing sockets to a command as systemd does: LISTEN_FDS, LISTEN_PID, and LISTEN_FDNAMES.
//!
//! LISTEN_PID is the command's own pid, which is known only once it runs. So this program starts
//! itself with the sockets, sets the variables, and becomes the command.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{self, Command, ExitCode};

use rustix::io::FdFlags;

use super::Failure;
use super::names::NamedPorts;
use crate::inherited;
use crate::output;

/// The first argument. Not in the help: nobody should type it.
const COMMAND: &str = "pass";

/// Returns a command that becomes `command`, with `sockets` called by the names of `ports`.
pub(crate) fn command(
    command: &Command,
    sockets: &[OwnedFd],
    ports: &NamedPorts,
) -> io::Result<Command> {
    for socket in sockets {
        rustix::io::fcntl_setfd(socket, FdFlags::empty())?;
    }
    let names: Vec<&str> = ports.names().collect();
    let mut passing = Command::new(env::current_exe()?);
    passing
        .arg0("portpicker")
        .arg(COMMAND)
        .arg(format!("--sockets={}", inherited::numbers(sockets)))
        .arg(format!("--names={}", names.join(":")))
        .arg(command.get_program())
        .args(command.get_args());
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            passing.env(name, value);
        }
    }
    Ok(passing)
}

/// What is to be passed, and to which command.
#[derive(Debug)]
pub(crate) struct Passed {
    pub(crate) sockets: Vec<RawFd>,
    names: String,
    program: OsString,
    arguments: Vec<OsString>,
}

/// Returns what is on the command line if it is one that [`command`] has written.
pub(crate) fn inherited(arguments: &[OsString]) -> Option<Passed> {
    let [_, command, sockets, names, program, arguments @ ..] = arguments else {
        return None;
    };
    let value =
        |argument: &OsStr, name: &str| Some(argument.to_str()?.strip_prefix(name)?.to_owned());
    (command == COMMAND).then_some(())?;
    Some(Passed {
        sockets: inherited::parse_numbers(&value(sockets, "--sockets=")?)?,
        names: value(names, "--names=")?,
        program: program.clone(),
        arguments: arguments.to_vec(),
    })
}

/// Becomes the command.
pub(crate) fn pass(passed: &Passed) -> ExitCode {
    let source = match inherited::pass_on(&passed.sockets) {
        Ok(()) => Command::new(&passed.program)
            .args(&passed.arguments)
            .env("LISTEN_FDS", passed.sockets.len().to_string())
            .env("LISTEN_PID", process::id().to_string())
            .env("LISTEN_FDNAMES", &passed.names)
            // systemd's, if it has passed sockets to us: it names our process, not the command's.
            .env_remove("LISTEN_PIDFDID")
            .exec(),
        Err(err) => err,
    };
    let failure = Failure::Command {
        program: passed.program.clone(),
        source,
    };
    output::complain(&failure);
    ExitCode::from(failure.exit())
}
