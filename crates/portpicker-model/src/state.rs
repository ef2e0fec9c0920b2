//! What the kernel, the processes, and the state file know at one moment.

/// An index: there are few ports.
pub type Port = usize;

/// The most ports, processes, and picks that there can be.
pub const MOST: usize = 3;

/// Who binds ports unasked: a number that no process has.
pub const STRANGER: usize = MOST;

/// A process, as the inode of a pidfd tells it from all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    /// Its process id.
    pub number: usize,
    /// Which of the processes that had this number, one after another.
    pub generation: usize,
}

/// What has a process id, or had it last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Process {
    /// See [`Identity`].
    pub generation: usize,
    /// Whether it has not exited.
    pub lives: bool,
    /// How each port was leased that it knows to be its own.
    pub leases: [Option<Way>; MOST],
    /// The locks of which it has a descriptor.
    pub locks: [bool; MOST],
}

/// How a port is picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Way {
    /// By the owner itself, with the library.
    Library,
    /// By the command, `portpicker PID`, which leaves a keeper.
    Command,
    /// By the server, for a client that need not be the owner.
    Server,
}

/// A pick that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pick {
    /// For whom.
    pub owner: Identity,
    /// By whom.
    pub way: Way,
    /// How far it is.
    pub stage: Stage,
}

/// How far a pick is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stage {
    /// The server has not read the request.
    Asked,
    /// The server knows for whom it is, and has no port for it yet.
    Waiting,
    /// The lock is taken.
    Locked(Port),
    /// The probe has bound the port.
    Probing(Port),
    /// The keeper is started, or the lease is in the server's pool. Nobody has been told.
    Leased(Port),
    /// The lease is in the state file as well.
    Saved(Port),
}

/// A lease, as a keeper or the server knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Lease {
    /// For whom it was made.
    pub owner: Identity,
    /// Whose exit ends it: the same process, as long as no rule is broken.
    pub watched: Identity,
}

/// The server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Server {
    /// Whether it runs.
    pub is_up: bool,
    /// The leases in its pool.
    pub leases: [Option<Lease>; MOST],
    /// The locks that it has.
    pub locks: [bool; MOST],
}

/// Everything that there is to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// By number.
    pub processes: [Process; MOST],
    /// In order, so that the same picks are the same state.
    pub picks: [Option<Pick>; MOST],
    /// The keeper of each port. It has the lock.
    pub keepers: [Option<Lease>; MOST],
    /// The server, if there is one.
    pub server: Server,
    /// The server's state file: the owner of each port.
    pub file: [Option<Identity>; MOST],
    /// systemd's descriptor store: the locks in it.
    pub store: [bool; MOST],
    /// Which process has bound each port, or a stranger.
    pub bound: [Option<usize>; MOST],
    /// Whether a port was ever leased that was leased already.
    pub leased_twice: bool,
    /// Whether a port was ever leased that was in use.
    pub leased_in_use: bool,
}

impl State {
    /// Returns whoever has this number now, or had it last.
    pub fn with_number(&self, number: usize) -> Identity {
        let generation = self.processes[number].generation;
        Identity { number, generation }
    }

    /// Tells whether a process has not exited.
    pub fn lives(&self, identity: Identity) -> bool {
        self.processes[identity.number].lives && self.with_number(identity.number) == identity
    }

    /// Returns the picks that are under way.
    pub fn picks(&self) -> impl Iterator<Item = Pick> {
        self.picks.into_iter().flatten()
    }

    /// Tells whether a bind of `port` fails.
    pub fn is_in_use(&self, port: Port) -> bool {
        let is_probing = |pick: Pick| pick.stage == Stage::Probing(port);
        self.bound[port].is_some() || self.picks().any(is_probing)
    }

    /// Returns how `port` was leased, to each living process that knows it to be its own.
    pub fn ways(&self, port: Port) -> impl Iterator<Item = Way> {
        self.processes
            .into_iter()
            .filter_map(move |process| process.leases[port])
    }

    /// Tells whether the server is between a lock and the state file, where it does nothing else.
    pub fn server_is_busy(&self) -> bool {
        self.picks().any(|pick| {
            use Stage::{Leased, Locked, Probing};
            pick.way == Way::Server && matches!(pick.stage, Locked(_) | Probing(_) | Leased(_))
        })
    }
}
