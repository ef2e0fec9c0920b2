//! `portpicker [PID [SECONDS]]` and `portpicker pick`: a pick for another process.

use std::error;
use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use portpicker::process::{OpenError, Pid, Watch};
use portpicker::{Error, Hold, Lease, Picker, Server, ServerAddress, client};
use serde::Serialize;

use crate::arguments::{DropIn, PickOptions};
use crate::keeper::{Duties, Keeper};
use crate::output;
use crate::which_server;

/// What is to be picked, for whom, and how it is to be printed.
#[derive(Debug)]
pub(crate) struct Request {
    picker: Picker,
    count: usize,
    contiguous: bool,
    /// The parent process if there is none.
    owner: Option<Pid>,
    server: Server,
    hold: Duration,
    json: bool,
}

impl From<DropIn> for Request {
    fn from(arguments: DropIn) -> Self {
        Self {
            picker: Picker::new(),
            count: 1,
            contiguous: false,
            owner: arguments.owner,
            server: Server::Environment,
            hold: arguments.hold.unwrap_or_default(),
            json: false,
        }
    }
}

impl From<PickOptions> for Request {
    fn from(options: PickOptions) -> Self {
        Self {
            picker: options.wanted.picker(),
            count: options.count.into(),
            contiguous: options.wanted.contiguous,
            owner: options.owner,
            server: options.wanted.server(),
            hold: options.hold.unwrap_or_default(),
            json: options.json,
        }
    }
}

/// Picks what `request` says, has it kept, and prints it.
pub(crate) fn pick(request: &Request) -> Result<(), Failure> {
    let owner = match request.owner {
        Some(owner) => owner,
        None => Pid::parent().ok_or(Failure::NoParent)?,
    };
    let watch = watch(owner)?;
    let mut picked = request.pick_for(owner)?;
    picked.open_doors()?;
    let keeper = Keeper::start(&Duties {
        owner,
        watch: &watch,
        ports: picked.leases().map(Lease::port).collect(),
        locks: picked.leases().filter_map(Lease::descriptor).collect(),
        sockets: picked.sockets(),
        hold: request.hold,
    })
    .map_err(Failure::Keeper)?;

    let text = request.report(&picked, owner, keeper.as_ref());
    output::print(text.as_bytes()).map_err(|err| {
        // Nobody has learnt the numbers, so nobody needs them kept.
        if let Some(keeper) = keeper {
            keeper.dismiss();
        }
        picked.give_back();
        Failure::Output(err)
    })
}

/// Starts to watch the process that is to own the ports.
fn watch(owner: Pid) -> Result<Watch, Failure> {
    let refused = |reason| Failure::Owner { owner, reason };
    if owner == Pid::INIT {
        return Err(refused(BadOwner::Init));
    }
    let watch = Watch::open(owner).map_err(|err| refused(BadOwner::Unwatchable(err)))?;
    match watch.has_exited() {
        Ok(false) => Ok(watch),
        Ok(true) => Err(refused(BadOwner::Exited)),
        Err(err) => Err(refused(BadOwner::Unwatchable(OpenError::System(err)))),
    }
}

impl Request {
    fn pick_for(&self, owner: Pid) -> Result<Picked, Failure> {
        let by_server = |address| self.picker.clone().server(Server::At(address)).owner(owner);
        let without = || self.pick_with(&self.picker.clone().server(Server::None));
        let address = match &self.server {
            Server::At(address) => return self.pick_with(&by_server(address.clone())),
            Server::Environment => ServerAddress::from_environment(),
            _ => Ok(None),
        };
        let asked = match address {
            Ok(None) => return without(),
            // It is not waited for, since there is another way. That one waits, and sees what the
            // server gets back as well.
            Ok(Some(address)) => self.pick_with(&by_server(address).wait(Duration::ZERO)),
            Err(err) => Err(Failure::Pick(err)),
        };
        match asked {
            Err(Failure::Pick(err @ (Error::Refused { .. } | Error::Server { .. }))) => {
                output::warn(&err, "picking without it");
                without()
            }
            Err(Failure::Pick(Error::ServerCannot { .. })) => without(),
            result => result,
        }
    }

    /// Picks with `picker`. Where a server does the keeping, the ports are the owner's at once;
    /// otherwise they are this process's until the keeper has them.
    fn pick_with(&self, picker: &Picker) -> Result<Picked, Failure> {
        match (self.hold.is_zero(), self.contiguous) {
            (true, false) => picker.leases(self.count).map(Picked::Leases),
            (true, true) => picker.lease_block(self.count).map(Picked::Leases),
            (false, false) => picker.holds(self.count).map(Picked::Holds),
            (false, true) => picker.hold_block(self.count).map(Picked::Holds),
        }
        .map_err(Failure::Pick)
    }

    fn report(&self, picked: &Picked, owner: Pid, keeper: Option<&Keeper>) -> String {
        let ports = picked.leases().map(Lease::port);
        if !self.json {
            return ports.map(|port| format!("{port}\n")).collect();
        }
        let report = Report {
            ports: ports.collect(),
            owner: owner.get(),
            server: picked
                .leases()
                .find_map(Lease::server)
                .map(ServerAddress::to_string),
            keeper: keeper.map(|keeper| keeper.pid().get()),
        };
        serde_json::to_string(&report).expect("numbers and texts can be written as JSON") + "\n"
    }
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Report {
    ports: Vec<u16>,
    owner: u32,
    server: Option<String>,
    keeper: Option<u32>,
}

/// The ports that were found.
#[derive(Debug)]
enum Picked {
    Leases(Vec<Lease>),
    Holds(Vec<Hold>),
}

impl Picked {
    fn leases(&self) -> impl Iterator<Item = &Lease> {
        let (leases, holds): (&[Lease], &[Hold]) = match self {
            Self::Leases(leases) => (leases, &[]),
            Self::Holds(holds) => (&[], holds),
        };
        leases.iter().chain(holds.iter().map(Hold::lease))
    }

    fn sockets(&self) -> Vec<BorrowedFd<'_>> {
        match self {
            Self::Leases(_) => Vec::new(),
            Self::Holds(holds) => holds.iter().flat_map(Hold::descriptors).collect(),
        }
    }

    /// Gives the ports back to the server that leased them, as far as it can take them.
    fn give_back(&self) {
        if let Some(address) = self.leases().find_map(Lease::server) {
            let ports: Vec<u16> = self.leases().map(Lease::port).collect();
            // If it fails, they are given back when their owner exits.
            _ = client::release(address, &ports, which_server::TIMEOUT);
        }
    }

    /// Lets the owner's server in while the ports are held: the keeper cannot know the moment.
    fn open_doors(&mut self) -> Result<(), Failure> {
        match self {
            Self::Leases(_) => Ok(()),
            Self::Holds(holds) => holds
                .iter_mut()
                .try_for_each(Hold::open_door)
                .map_err(Failure::Pick),
        }
    }
}

/// Why the command did not do what it was asked to.
#[derive(Debug)]
pub(crate) enum Failure {
    /// There are no ports.
    Pick(Error),
    /// The process cannot own ports.
    Owner { owner: Pid, reason: BadOwner },
    /// No owner was named, and the parent process cannot be.
    NoParent,
    /// The ports cannot be kept.
    Keeper(io::Error),
    /// The ports, or whatever was asked for, cannot be printed.
    Output(io::Error),
    /// No port server was named, and there is no other way.
    NoServer,
    /// There is no such manual page.
    NoSuchPage { page: String },
}

/// Why a process cannot own ports.
#[derive(Debug)]
pub(crate) enum BadOwner {
    /// It never exits.
    Init,
    /// It has exited, and waits to be reaped.
    Exited,
    /// It does not exist, or cannot be watched.
    Unwatchable(OpenError),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pick(err) => err.fmt(f),
            Self::Owner { owner, reason } => {
                write!(f, "process {owner} cannot own a port: ")?;
                match reason {
                    BadOwner::Init => f.write_str("it never exits, so the lease would never end"),
                    BadOwner::Exited => f.write_str("it has exited"),
                    BadOwner::Unwatchable(err) => err.fmt(f),
                }
            }
            Self::NoParent => f.write_str(
                "the parent process is not in this pid namespace: say which process owns the port",
            ),
            Self::Keeper(_) => f.write_str("cannot start the keeper of the ports"),
            Self::Output(_) => f.write_str("cannot write to the standard output"),
            Self::NoServer => {
                f.write_str("no port server is named: use --server or PORTSERVER_ADDRESS")
            }
            Self::NoSuchPage { page } => write!(
                f,
                "there is no manual page for `{page}`: try `pick`, `serve`, or `status`"
            ),
        }
    }
}

impl error::Error for Failure {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            // Their texts stand in ours.
            Self::Pick(err) => err.source(),
            Self::Owner {
                reason: BadOwner::Unwatchable(err),
                ..
            } => err.source(),
            Self::Owner { .. } | Self::NoParent | Self::NoServer | Self::NoSuchPage { .. } => None,
            Self::Keeper(err) | Self::Output(err) => Some(err),
        }
    }
}
