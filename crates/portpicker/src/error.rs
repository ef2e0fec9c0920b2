//! What can go wrong, as situations that a caller can act on.

use std::error;
use std::fmt;
use std::io;
use std::net::IpAddr;

use crate::port_set::ParsePortSetError;
use crate::process::Pid;
use crate::server_address::ServerAddress;

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

/// Why there is no port, or why a question about one could not be answered.
///
/// An occupied port is not an error: [`is_port_free`](crate::is_port_free) answers `false`, and a
/// pick goes on to the next candidate.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// Every candidate was tried, and none, or not enough of them, could be had.
    Exhausted(Tally),
    /// There are fewer candidates than ports wanted, so trying is pointless.
    TooFewCandidates {
        /// How many ports were asked for, in one block or not.
        wanted: usize,
        /// How many the set of ports without the excluded ones has.
        candidates: usize,
    },
    /// The port server answered, and leased no port.
    ///
    /// The original protocol does not say why: the process does not exist or may not own ports,
    /// or the server's pool is exhausted.
    Refused {
        /// Where the server is.
        address: ServerAddress,
        /// The process that the port was asked for.
        owner: Pid,
        /// Why, for programs; `None` in the original protocol.
        refusal: Option<Refusal>,
        /// Why, for people, in the server's words; `None` in the original protocol.
        reason: Option<String>,
    },
    /// The port server answered, and did not do something else than leasing a port.
    Declined {
        /// Where the server is.
        address: ServerAddress,
        /// What it was asked to do, in words.
        request: &'static str,
        /// Why, for programs.
        refusal: Refusal,
        /// Why, for people, in the server's words.
        reason: String,
    },
    /// The port server could not be reached, broke off, or did not answer as it should.
    Server {
        /// Where the server should be.
        address: ServerAddress,
        /// What the socket reported: [`io::ErrorKind::TimedOut`] if the deadline passed,
        /// [`io::ErrorKind::InvalidData`] if the answer is none.
        source: io::Error,
    },
    /// The server speaks the original protocol, which cannot express what was asked for.
    ServerCannot {
        /// Where the server is.
        address: ServerAddress,
        /// The option, or whatever else it was, in words.
        option: &'static str,
    },
    /// A lease for another process was asked for, and there is no port server to keep it.
    ///
    /// A lease without a server lasts as long as the process that made it.
    OwnerNeedsServer {
        /// The process that should own the port.
        owner: Pid,
    },
    /// A system call failed for another reason than the port being occupied.
    Socket {
        /// The system call, by its manual page's name: `"socket"`, `"bind"`, …
        call: &'static str,
        /// The local address that it was made for.
        address: IpAddr,
        /// What the system call reported.
        source: io::Error,
    },
    /// The lock of a port could not be tried.
    Lock {
        /// The port.
        port: u16,
        /// What the system reported.
        source: io::Error,
    },
    /// The host cannot be asked which ports it uses for itself: out of descriptors, for example.
    HostPorts {
        /// What the system reported.
        source: io::Error,
    },
    /// The socket given to [`bind_port`](crate::bind_port) is not fit for it.
    UnfitSocket {
        /// What is wrong with it, in words.
        reason: &'static str,
    },
    /// The host given to [`bind_port`](crate::bind_port) has no address of the socket's family.
    Host {
        /// The host.
        host: String,
        /// What the resolver reported.
        source: io::Error,
    },
    /// An environment variable is set to something that cannot be used.
    Environment {
        /// The variable's name.
        variable: &'static str,
        /// What is wrong with its value.
        source: ParsePortSetError,
    },
}

/// Why a port server refused, as far as a program can act on it.
///
/// # References
///
/// - `docs/protocol.md`, section 3.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Refusal {
    /// The request is not as the server wants it: too many ports at once, for example.
    BadRequest,
    /// The server does not speak this version of the protocol.
    BadVersion,
    /// The server does not know this operation.
    BadOp,
    /// There are not enough unused ports.
    Exhausted,
    /// The owner is not a running process, or is process 1.
    NoProcess,
    /// The owner, or the lease, is another user's.
    Forbidden,
    /// The user has as many leases as one may have.
    OverLimit,
    /// A port is not leased.
    NotLeased,
    /// As many clients wait as may wait.
    Busy,
    /// The server is about to end.
    Stopping,
    /// The system failed the server.
    Failed,
    /// Something that this version of the library does not know.
    Other,
}

impl Refusal {
    /// Reads a code of the extended protocol.
    pub(crate) fn from_code(code: &str) -> Self {
        match code {
            "bad-request" => Self::BadRequest,
            "bad-version" => Self::BadVersion,
            "bad-op" => Self::BadOp,
            "exhausted" => Self::Exhausted,
            "no-process" => Self::NoProcess,
            "forbidden" => Self::Forbidden,
            "over-limit" => Self::OverLimit,
            "not-leased" => Self::NotLeased,
            "busy" => Self::Busy,
            "stopping" => Self::Stopping,
            "failed" => Self::Failed,
            _ => Self::Other,
        }
    }
}

/// How the candidates of a pick fared in its last pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Tally {
    /// How many ports were wanted.
    pub wanted: usize,
    /// Whether they had to be neighbours.
    pub contiguous: bool,
    /// How many candidates there were.
    pub candidates: usize,
    /// How many were leased to somebody, in this process or another.
    pub leased: usize,
    /// How many were in use: bound, connected, or in TIME-WAIT.
    pub occupied: usize,
    /// How many the system keeps from us (EACCES): privileged or reserved ports.
    pub forbidden: usize,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.wanted, self.contiguous) {
            (1, _) => f.write_str("no unused port")?,
            (wanted, true) => write!(f, "no {wanted} neighbouring unused ports")?,
            (wanted, false) => write!(f, "not {wanted} unused ports")?,
        }
        let Self {
            candidates,
            leased,
            occupied,
            forbidden,
            ..
        } = self;
        let plural = if *candidates == 1 { "" } else { "s" };
        write!(
            f,
            " among {candidates} candidate{plural}: {leased} leased, {occupied} in use"
        )?;
        if *forbidden > 0 {
            write!(f, ", {forbidden} not permitted")?;
        }
        Ok(())
    }
}

impl fmt::Display for Error {
    // Lower-case fragments that read well after `portpicker: `. They never include the source:
    // whoever prints the chain adds it, once.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exhausted(tally) => tally.fmt(f),
            Self::TooFewCandidates {
                wanted,
                candidates: 0,
            } => {
                write!(f, "{wanted} wanted, but no port is left: all are excluded")
            }
            Self::TooFewCandidates { wanted, candidates } => {
                write!(
                    f,
                    "{wanted} ports wanted, but only {candidates} to choose from"
                )
            }
            Self::Refused {
                address,
                owner,
                reason,
                ..
            } => write!(
                f,
                "the port server at `{address}` refused a port to process {owner}: {}",
                reason
                    .as_deref()
                    .unwrap_or("it may have exited, or all ports are leased")
            ),
            Self::Declined {
                address,
                request,
                reason,
                ..
            } => write!(
                f,
                "the port server at `{address}` refused to {request}: {reason}"
            ),
            Self::Server { address, .. } => {
                write!(f, "cannot talk to the port server at `{address}`")
            }
            Self::ServerCannot { address, option } => write!(
                f,
                "the port server at `{address}` speaks the original protocol, which cannot ask \
                 for {option}"
            ),
            Self::OwnerNeedsServer { owner } => write!(
                f,
                "a lease for another process ({owner}) needs a port server: without one, a port \
                 belongs to the process that picks it"
            ),
            Self::Socket {
                call,
                address,
                source,
            } => {
                write!(
                    f,
                    "{call}(2) failed for local address {address}{}",
                    hint(source)
                )
            }
            Self::Lock { port, source } => {
                write!(f, "cannot try the lock of port {port}{}", hint(source))
            }
            Self::HostPorts { source } => {
                write!(
                    f,
                    "cannot find out which ports this host uses for itself{}",
                    hint(source)
                )
            }
            Self::UnfitSocket { reason } => f.write_str(reason),
            Self::Host { host, .. } => write!(f, "cannot bind to `{host}`"),
            Self::Environment { variable, .. } => write!(f, "{variable} is not a set of ports"),
        }
    }
}

/// Says what to do about `source`, where that is known.
fn hint(source: &io::Error) -> &'static str {
    match rustix::io::Errno::from_io_error(source) {
        Some(rustix::io::Errno::MFILE) => {
            " (each leased port takes a descriptor: raise the limit with `ulimit -n`)"
        }
        Some(rustix::io::Errno::ADDRNOTAVAIL) => " (which is not one of this host's)",
        _ => "",
    }
}

impl error::Error for Error {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            Self::Server { source, .. }
            | Self::Socket { source, .. }
            | Self::Lock { source, .. }
            | Self::HostPorts { source }
            | Self::Host { source, .. } => Some(source),
            Self::Environment { source, .. } => Some(source),
            _ => None,
        }
    }
}
