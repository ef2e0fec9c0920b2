//! `portserver` and `portpicker serve`: a port server, from its command line to its end.

mod arguments;
mod daemon;
mod log;
mod pidfile;
mod state_place;
mod systemd;

use std::error;
use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{self, Path, PathBuf};

use portpicker::PortSet;
use portserver::{Address, Options};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::{error, warn};

pub(crate) use self::arguments::Arguments;
use self::arguments::DETACHED;
use self::daemon::Started;
use self::pidfile::Pidfile;
use self::systemd::{Manager, Passed};
use crate::exit::Exit;
use crate::inherited::{self, Others};
use crate::output;

/// The ports of a server whose command line names none: those of portserver.py.
const DEFAULT_POOL: std::ops::RangeInclusive<u16> = 15_000..=24_999;

/// Where a server listens whose command line does not say: as portserver.py does.
const DEFAULT_ADDRESS: &str = "unittest-portserver";

/// What a server was started with besides its options.
#[derive(Debug)]
pub(crate) struct Beginning {
    arguments: Vec<OsString>,
    /// How many arguments come before the options.
    words: usize,
    passed: io::Result<Vec<(OwnedFd, String)>>,
}

impl Beginning {
    /// Takes what this process inherits. First of all in the process: see [`inherited`].
    pub(crate) fn of(arguments: &[OsString], words: usize) -> Self {
        let passed = match arguments.get(words) {
            Some(first) if first == DETACHED => {
                // The command that started us has looked for systemd's.
                inherited::adopt(&[], Others::Close);
                Ok(Vec::new())
            }
            _ => inherited::from_systemd(),
        };
        Self {
            arguments: arguments.to_owned(),
            words,
            passed,
        }
    }
}

/// Runs a server to its end, or starts one in the background.
pub(crate) fn serve(arguments: Arguments, beginning: Beginning) -> Exit {
    let result = if arguments.daemon && !arguments.detached {
        start_daemon(&beginning)
    } else {
        run(arguments, beginning.passed).map(|()| Exit::Success)
    };
    result.unwrap_or_else(|failure| {
        if log::is_journal() {
            error!("{}", output::chain(&failure));
        } else {
            output::complain_as("portserver", &failure);
        }
        failure.exit()
    })
}

fn start_daemon(beginning: &Beginning) -> Result<Exit, Failure> {
    if !matches!(&beginning.passed, Ok(passed) if passed.is_empty()) {
        return Err(Failure::Activated);
    }
    match daemon::start(&beginning.arguments, beginning.words).map_err(Failure::Daemon)? {
        Started::Listening => Ok(Exit::Success),
        Started::Failed(code) => Ok(Exit::from_code(code)),
    }
}

fn run(arguments: Arguments, passed: io::Result<Vec<(OwnedFd, String)>>) -> Result<(), Failure> {
    let absolute = |path: &Option<PathBuf>| path.as_deref().map(path::absolute).transpose();
    start_log(&arguments)?;
    raise_descriptor_limit();
    let mut passed = passed.and_then(Passed::sort).map_err(Failure::Passed)?;

    let mut options = Options::new(pool(&arguments)?);
    options.addresses = addresses(&arguments, &passed);
    options.access.mode = arguments.socket_mode.unwrap_or(options.access.mode);
    if let Some(owner) = arguments.socket_owner {
        options.access.user = owner.user;
        options.access.group = owner.group;
    }
    options.user_limit = arguments.user_limit.map(usize::from);
    options.http = arguments.http;
    options.state_is_required = arguments.state.is_some();
    options.state = match arguments.state {
        Some(path) => Some(path::absolute(path).map_err(Failure::Folder)?),
        None if arguments.no_state => None,
        None => default_state(&options.addresses, &passed),
    };
    let pidfile = absolute(&arguments.pidfile).map_err(Failure::Folder)?;
    let pidfile = pidfile
        .map(|path| Pidfile::prepare(&path).map_err(|source| Failure::Pidfile { path, source }))
        .transpose()?;

    let manager = Manager::from_environment();
    options.supervisor = Manager::from_environment().map(|manager| Box::new(manager) as Box<_>);
    let lock_names = passed.take_lock_names();
    options.locks = passed.locks;
    options.inherited = passed.sockets;
    let ports = options.ports.len();
    let has_state = options.state.is_some();
    let legacy = portserver::serve(options, || {
        if let Some(pidfile) = &pidfile {
            pidfile.publish();
        }
        if let Some(manager) = &manager {
            manager.ready(ports, &lock_names);
        }
        if arguments.detached
            && let Err(err) = daemon::announce()
        {
            warn!("cannot leave the command that started the server: {err}");
        }
    })
    .map_err(Failure::Server)?;
    // Without a state file, the next server would not know whose leases these are.
    if let Some(manager) = manager
        && has_state
        && !legacy.locks.is_empty()
    {
        manager.store(&legacy.locks);
    }
    Ok(())
}

fn start_log(arguments: &Arguments) -> Result<(), Failure> {
    let open = |path: &Path| -> Result<File, Failure> {
        log::open(path).map_err(|source| Failure::Log {
            path: path.to_owned(),
            source,
        })
    };
    let file = arguments.log.as_deref().map(open).transpose()?;
    let filter = match arguments.detached && file.is_none() {
        // It is the command's stderr, which is read by whoever calls it.
        true => log::only_trouble(),
        false => log::filter(arguments.verbose, arguments.debug),
    };
    log::start(file, filter);
    Ok(())
}

/// Allows this process as many descriptors as it may allow itself: each lease takes one.
///
/// The low limit that is usual protects programs that use select(2).
fn raise_descriptor_limit() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum {
        let raised = Rlimit {
            current: maximum,
            maximum,
        };
        if let Err(err) = setrlimit(Resource::Nofile, raised) {
            warn!("cannot raise the limit on descriptors: {err}");
        }
    }
}

fn pool(arguments: &Arguments) -> Result<PortSet, Failure> {
    match (&arguments.pool, &arguments.lenient_pool) {
        (Some(pool), _) => Ok(pool.clone()),
        (None, Some(text)) => lenient_pool(text).ok_or(Failure::NoPorts),
        (None, None) => Ok(PortSet::from_ranges([DEFAULT_POOL]).expect("the default is not empty")),
    }
}

/// Reads a pool as portserver.py does: what is not understood is left out.
fn lenient_pool(text: &str) -> Option<PortSet> {
    let parts = text
        .split(',')
        .filter_map(|part| match part.parse::<PortSet>() {
            Ok(ports) => Some(ports),
            Err(err) => {
                error!("ignored in the pool: {err}");
                None
            }
        });
    parts.reduce(|pool, ports| pool.union(&ports))
}

fn addresses(arguments: &Arguments, passed: &Passed) -> Vec<Address> {
    let mut addresses = arguments.addresses.clone();
    if addresses.is_empty() && passed.sockets.is_empty() {
        addresses.push(Address::Abstract(DEFAULT_ADDRESS.to_owned()));
    }
    addresses.extend(arguments.tcp.map(Address::Loopback));
    addresses
}

fn default_state(addresses: &[Address], passed: &Passed) -> Option<PathBuf> {
    let name = match (addresses.first(), passed.sockets.first()) {
        (_, Some(socket)) => socket.address(),
        (Some(Address::Path(path)), None) => {
            path::absolute(path).map(|path| path.display().to_string())
        }
        (Some(address), None) => Ok(address.to_string()),
        (None, None) => return None,
    };
    match name.and_then(|name| state_place::default(&name)) {
        Ok(path) => Some(path),
        Err(err) => {
            warn!("no place for a state file: {err}; a server that is killed forgets its leases");
            None
        }
    }
}

/// Why there is no server.
#[derive(Debug)]
pub(crate) enum Failure {
    /// No part of the pool was understood.
    NoPorts,
    /// `--daemon`, although systemd has passed sockets.
    Activated,
    /// What systemd has passed is not for a port server.
    Passed(io::Error),
    /// The working directory is gone.
    Folder(io::Error),
    Pidfile {
        path: PathBuf,
        source: io::Error,
    },
    Log {
        path: PathBuf,
        source: io::Error,
    },
    /// The server in the background cannot be started.
    Daemon(io::Error),
    Server(portserver::Error),
}

impl Failure {
    fn exit(&self) -> Exit {
        match self {
            Self::NoPorts => Exit::NoPort,
            Self::Activated => Exit::Usage,
            Self::Passed(_)
            | Self::Folder(_)
            | Self::Pidfile { .. }
            | Self::Log { .. }
            | Self::Daemon(_)
            | Self::Server(_) => Exit::System,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoPorts => f.write_str("there is no port in the pool"),
            Self::Activated => f.write_str(
                "systemd runs servers in the foreground: leave out --daemon, and use Type=notify",
            ),
            Self::Passed(_) => f.write_str("cannot use what systemd has passed"),
            Self::Folder(_) => f.write_str("cannot tell the working directory"),
            Self::Pidfile { path, .. } => {
                write!(f, "cannot write the pidfile `{}`", path.display())
            }
            Self::Log { path, .. } => write!(f, "cannot log to `{}`", path.display()),
            Self::Daemon(_) => f.write_str("cannot start the server in the background"),
            Self::Server(err) => err.fmt(f),
        }
    }
}

impl error::Error for Failure {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            Self::NoPorts | Self::Activated => None,
            Self::Passed(err) | Self::Folder(err) | Self::Daemon(err) => Some(err),
            Self::Pidfile { source, .. } | Self::Log { source, .. } => Some(source),
            // Its text stands in ours.
            Self::Server(err) => err.source(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_old_pool_leaves_out_what_it_does_not_understand() {
        let pool = |text| lenient_pool(text).map(|pool| pool.to_string());
        assert_eq!(
            pool("1-5,x,7-6,9-70000,0-3, 11-12 ").as_deref(),
            Some("1-5,11-12")
        );
        assert_eq!(pool("3-4,1-2,2-3").as_deref(), Some("1-4"));
        assert_eq!(pool(""), None);
        assert_eq!(pool("0-0,x"), None);
    }
}
