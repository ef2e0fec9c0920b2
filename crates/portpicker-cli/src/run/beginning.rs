//! Becoming a command that somebody else supervises.
//!
//! A program that cannot install the filter between fork and exec itself, such as a Python
//! interpreter, starts this one, which installs it, sends the listener through a socket that it has
//! inherited, and becomes the command.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use portpicker::hand_off::Preparation;

use super::Failure;
use crate::inherited::{Others, adopt, parse_number};
use crate::output;

/// The first argument. Not in the help: nobody should type it.
const COMMAND: &str = "begin";

/// Which command is to begin, and where its listener goes.
#[derive(Debug)]
pub(crate) struct Beginning {
    pub(crate) socket: RawFd,
    program: OsString,
    arguments: Vec<OsString>,
}

/// Returns what is on a command line such as `portpicker begin --socket=5 PROGRAM ARGUMENT…`.
pub(crate) fn inherited(arguments: &[OsString]) -> Option<Beginning> {
    let [_, command, socket, program, arguments @ ..] = arguments else {
        return None;
    };
    (command == COMMAND).then_some(())?;
    Some(Beginning {
        socket: parse_number(socket.to_str()?.strip_prefix("--socket=")?)?,
        program: program.clone(),
        arguments: arguments.to_vec(),
    })
}

/// Becomes the command.
pub(crate) fn begin(beginning: Beginning) -> ExitCode {
    let begun = match adopt(&[beginning.socket], Others::Leave).as_deref() {
        Some([socket]) => Preparation::begin(socket),
        _ => Err(std::io::Error::from_raw_os_error(libc::EBADF)),
    };
    let failure = match begun {
        Ok(()) => Failure::Command {
            source: Command::new(&beginning.program)
                .args(&beginning.arguments)
                .exec(),
            program: beginning.program,
        },
        Err(err) => Failure::Supervisor(err),
    };
    output::complain(&failure);
    ExitCode::from(failure.exit())
}
