//! The exit codes of the command: part of its interface, like its options.

use std::process::ExitCode;

use portpicker::Error;

use crate::pick::Failure;

/// How the command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// The ports were printed, or the command did what it was asked to.
    Success = 0,
    /// There is no unused port.
    NoPort = 1,
    /// The command line, or a variable in the environment, is not valid.
    Usage = 2,
    /// The port server could not be reached, or did not answer with a port.
    Server = 3,
    /// The port server refused.
    Refused = 4,
    /// The process that should own the port does not run, or cannot own one.
    Owner = 5,
    /// The system failed: no descriptors left, nowhere to print to, …
    System = 6,
    /// Nothing listens on the port.
    Silent = 7,
}

/// The end of the help.
pub(crate) const HELP: &str = "\
Exit status:
  0  The ports were printed, or whatever else was asked for is done
  1  No unused port was found
  2  The command line or the environment is not valid
  3  The port server could not be reached
  4  The port server refused the request
  5  The owner is not a running process that can own a port
  6  The system failed: no descriptors left, output closed
  7  Nothing listened on the port in time";

impl Exit {
    pub(crate) fn of(failure: &Failure) -> Self {
        match failure {
            Failure::Owner { .. } | Failure::NoParent => Self::Owner,
            Failure::Keeper(_) | Failure::Output(_) => Self::System,
            Failure::NoSuchPage { .. } | Failure::NoServer => Self::Usage,
            Failure::Pick(err) => match err {
                Error::Exhausted(_) | Error::TooFewCandidates { .. } => Self::NoPort,
                Error::Refused { .. } | Error::ServerCannot { .. } | Error::Declined { .. } => {
                    Self::Refused
                }
                Error::Server { .. } => Self::Server,
                Error::OwnerNeedsServer { .. } => Self::Owner,
                Error::Environment { .. } | Error::Host { .. } => Self::Usage,
                // The library may learn new errors before the command does.
                _ => Self::System,
            },
        }
    }
}

impl Exit {
    /// Returns what another run of this program has exited with.
    pub(crate) fn from_code(code: i32) -> Self {
        [
            Self::Success,
            Self::NoPort,
            Self::Usage,
            Self::Server,
            Self::Refused,
            Self::Owner,
        ]
        .into_iter()
        .find(|&exit| exit as i32 == code)
        .unwrap_or(Self::System)
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}
