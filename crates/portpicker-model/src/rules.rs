//! What can happen next, and what comes of it.

use stateright::{Model, Property};

use crate::properties;
use crate::state::{
    Identity, Lease, MOST, Pick, Port, Process, STRANGER, Server, Stage, State, Way,
};

/// A world: what there is in it, and which rule is broken there.
#[derive(Clone, Debug)]
pub struct Rules {
    /// How many processes there are at one time.
    pub processes: usize,
    /// How many processes may have the same number, one after another.
    pub generations: usize,
    /// How many ports there are.
    pub ports: usize,
    /// How many picks may be under way at one time.
    pub picks: usize,
    /// The ports that the library and the command choose from.
    pub candidates: &'static [Port],
    /// The ports that the server manages. There is no server if there is none.
    pub pool: &'static [Port],
    /// How the server ends. It is started again.
    pub ending: Ending,
    /// Whether commands pick too.
    pub has_commands: bool,
    /// Whether processes fork.
    pub has_forks: bool,
    /// Whether strangers bind ports.
    pub has_strangers: bool,
    /// The rule that is broken.
    pub fault: Option<Fault>,
}

/// How the server ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Not at all.
    Never,
    /// By SIGTERM, below systemd: its locks go to the descriptor store.
    Stopped,
    /// By SIGKILL: the kernel releases its locks.
    Killed,
}

/// A rule that is broken on purpose: a model is worth what it catches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A lock excludes nobody.
    NoLock,
    /// A port is probed first, and locked when it is found free.
    ProbeBeforeLock,
    /// A port is leased whatever the probe says.
    NoProbe,
    /// The keeper is started without the lock.
    KeeperWithoutLock,
    /// The keeper watches a number, not a process.
    KeeperByNumber,
    /// The owner is told before the lease is in the state file.
    AnswerBeforeState,
    /// The server takes nothing over from the state file.
    NoAdoption,
    /// The server takes a lease over for whoever has the owner's number.
    AdoptWithoutIdentity,
    /// The server leaves locks in the store that it has taken over.
    StoreKeepsLocks,
    /// The server does without the locks that others had when it took the leases over.
    NeverLockAgain,
    /// The server ends a lease though its owner lives.
    ReclaimBeforeExit,
    /// The server never ends a lease.
    NeverReclaim,
    /// The server leases to whoever has the number of a process that has exited while it waited.
    LeaseByNumber,
}

/// One step of somebody. Picks are named by their place among the picks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// A process is started, with a number that may have been another's.
    Start(usize),
    /// The first process forks the second, which does not execute another program.
    Fork(usize, usize),
    /// A process exits, or is killed.
    Exit(usize),
    /// An owner binds its port, or a stranger any.
    Bind(usize, Port),
    /// Whoever has bound a port closes the socket.
    Unbind(Port),
    /// `Attempts::adopt`, in the process or in a command for it: takes the lock of a candidate.
    Lock(usize, Way, Port),
    /// A client asks the server in the name of a process.
    Ask(usize),
    /// `Server::claim`: the server reads the request, and opens the owner's pidfd.
    Claim(usize),
    /// `Server::serve_waiting`, `Attempts::adopt`: the server takes the lock of a free port.
    Serve(usize, Port),
    /// `Prober::probe`: binds the port. If it is in use, the lock is released.
    Probe(usize),
    /// `Attempts::attempt`: closes the sockets, which makes the lease. Then `Keeper::start`, or
    /// `Pool::lease`.
    Lease(usize),
    /// `Server::save`: writes the lease to the state file.
    Save(usize),
    /// The owner is told. A command that has told it exits.
    Tell(usize),
    /// A command is killed, or the server's client.
    Abandon(usize),
    /// `return_port`, or the end of a `Lease`.
    Return(usize, Port),
    /// `keeper::keep`: sees the owner's exit, and exits.
    KeeperEnds(Port),
    /// `Server::reclaim`: sees the owner's exit, and ends the lease.
    Reclaim(Port),
    /// `Server::lock_unlocked`: takes the lock of a lease that was adopted without it.
    LockAgain(Port),
    /// See [`Ending`].
    ServerEnds,
    /// `Server::adopt`: the server is started, and takes leases over.
    ServerStarts,
}

/// An action that is not possible ends in this.
fn when(condition: bool) -> Option<()> {
    condition.then_some(())
}

impl Rules {
    fn has(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    /// Tells whether a bind of the lock of `port` fails: whether anybody has a descriptor of it.
    pub fn is_locked(&self, state: &State, port: Port) -> bool {
        let locks_first = !self.has(Fault::ProbeBeforeLock);
        let by_pick = |pick: Pick| match pick.stage {
            // The server's are with the server.
            _ if pick.way == Way::Server => false,
            Stage::Locked(locked) | Stage::Probing(locked) => locked == port && locks_first,
            Stage::Leased(locked) => locked == port,
            _ => false,
        };
        let by_process = |process: &Process| process.locks[port];
        let by_keeper = state.keepers[port].is_some() && !self.has(Fault::KeeperWithoutLock);
        let is_locked = state.server.locks[port]
            || state.store[port]
            || by_keeper
            || state.processes.iter().any(by_process)
            || state.picks().any(by_pick);
        is_locked && !self.has(Fault::NoLock)
    }

    /// Takes one step; `None` if it is not possible.
    fn step(&self, state: &mut State, action: Action) -> Option<()> {
        match action {
            Action::Start(number) => {
                let process = &mut state.processes[number];
                when(!process.lives && process.generation < self.generations)?;
                process.generation += 1;
                process.lives = true;
            }
            Action::Fork(parent, child) => {
                let generation = state.processes[child].generation + 1;
                when(self.has_forks && state.processes[parent].lives)?;
                when(!state.processes[child].lives && generation <= self.generations)?;
                let mut copy = Process {
                    generation,
                    ..state.processes[parent]
                };
                // The server and a keeper watch the parent alone.
                copy.leases = copy
                    .leases
                    .map(|way| way.filter(|&way| way == Way::Library));
                let parent = state.with_number(parent);
                for pick in state.picks() {
                    // Another thread is in the midst of a pick.
                    if let Stage::Locked(port) | Stage::Probing(port) = pick.stage {
                        copy.locks[port] |= pick.way == Way::Library && pick.owner == parent;
                    }
                }
                state.processes[child] = copy;
            }
            Action::Exit(number) => {
                when(state.processes[number].lives)?;
                let exited = state.with_number(number);
                // The kernel closes all that the process has open before anybody can see the exit.
                state.processes[number] = Process {
                    generation: exited.generation,
                    ..Process::default()
                };
                let goes_on = |pick: &Pick| pick.way != Way::Library || pick.owner != exited;
                state.picks = state.picks.map(|pick| pick.filter(goes_on));
                state.bound = state.bound.map(|by| by.filter(|&by| by != number));
            }
            Action::Bind(number, port) => {
                when(match number {
                    STRANGER => self.has_strangers,
                    number => state.processes[number].leases[port].is_some(),
                })?;
                when(!state.is_in_use(port))?;
                state.bound[port] = Some(number);
            }
            Action::Unbind(port) => _ = state.bound[port].take()?,
            Action::Lock(number, way, port) => {
                when(way == Way::Library || self.has_commands)?;
                // Whoever finds it taken walks on, and nothing has changed.
                when(!self.is_locked(state, port) || self.has(Fault::ProbeBeforeLock))?;
                self.begin(state, number, way, Stage::Locked(port))?;
            }
            Action::Ask(number) => {
                when(state.server.is_up)?;
                self.begin(state, number, Way::Server, Stage::Asked)?;
            }
            Action::Claim(place) => {
                let pick = state.picks[place]?;
                when(pick.stage == Stage::Asked && !state.server_is_busy())?;
                let stage = Stage::Waiting;
                let is_owner = state.lives(pick.owner);
                state.picks[place] = is_owner.then_some(Pick { stage, ..pick });
            }
            Action::Serve(place, port) => {
                let pick = state.picks[place]?;
                when(pick.stage == Stage::Waiting && !state.server_is_busy())?;
                when(state.server.leases[port].is_none() && !self.is_locked(state, port))?;
                let stage = Stage::Locked(port);
                // It may have exited while it waited.
                let is_owner = state.lives(pick.owner) || self.has(Fault::LeaseByNumber);
                state.picks[place] = is_owner.then_some(Pick { stage, ..pick });
                state.server.locks[port] = is_owner;
            }
            Action::Probe(place) => {
                let Stage::Locked(port) = state.picks[place]?.stage else {
                    return None;
                };
                let is_free = !state.is_in_use(port) || self.has(Fault::NoProbe);
                let pick = state.picks[place].as_mut()?;
                match (is_free, pick.way) {
                    (true, _) => pick.stage = Stage::Probing(port),
                    (false, Way::Server) => {
                        pick.stage = Stage::Waiting;
                        state.server.locks[port] = false;
                    }
                    // The next candidate: another pick.
                    (false, _) => state.picks[place] = None,
                }
            }
            Action::Lease(place) => self.lease(state, place)?,
            Action::Save(place) => {
                let pick = state.picks[place].as_mut()?;
                let Stage::Leased(port) = pick.stage else {
                    return None;
                };
                when(pick.way == Way::Server)?;
                pick.stage = Stage::Saved(port);
                state.file[port] = Some(pick.owner);
            }
            Action::Tell(place) => {
                let Pick { owner, way, stage } = state.picks[place].take()?;
                match (way, stage) {
                    (Way::Server, Stage::Saved(_)) if self.has(Fault::AnswerBeforeState) => {}
                    (Way::Server, Stage::Saved(port)) => tell(state, owner, way, port),
                    (Way::Command, Stage::Leased(port)) => tell(state, owner, way, port),
                    _ => return None,
                }
            }
            Action::Abandon(place) => {
                let pick = state.picks[place].take()?;
                // The server sees it only when it looks again.
                let is_served = pick.way == Way::Server
                    && !matches!(pick.stage, Stage::Asked | Stage::Waiting | Stage::Saved(_));
                when(pick.way != Way::Library && !is_served)?;
            }
            Action::Return(number, port) => match state.processes[number].leases[port].take()? {
                Way::Library => state.processes[number].locks[port] = false,
                // There is no way to tell a keeper.
                Way::Command => return None,
                // A server that is away does not hear of it, and keeps the port for the owner.
                Way::Server => {
                    when(!state.server_is_busy())?;
                    let owner = state.with_number(number);
                    if state.server.leases[port].is_some_and(|lease| lease.owner == owner) {
                        end(state, port);
                    }
                }
            },
            Action::KeeperEnds(port) => {
                let watched = state.keepers[port].take()?.watched;
                when(match self.has(Fault::KeeperByNumber) {
                    true => !state.processes[watched.number].lives,
                    false => !state.lives(watched),
                })?;
            }
            Action::Reclaim(port) => {
                let lease = state.server.leases[port]?;
                let may_end = !state.lives(lease.watched) || self.has(Fault::ReclaimBeforeExit);
                when(may_end && !self.has(Fault::NeverReclaim) && !state.server_is_busy())?;
                end(state, port);
            }
            Action::LockAgain(port) => {
                when(state.server.leases[port].is_some() && !state.server_is_busy())?;
                when(!self.is_locked(state, port) && !self.has(Fault::NeverLockAgain))?;
                state.server.locks[port] = true;
            }
            Action::ServerEnds => {
                when(state.server.is_up && self.ending != Ending::Never)?;
                let server = std::mem::take(&mut state.server);
                if self.ending == Ending::Stopped {
                    when(!state.server_is_busy())?;
                    state.store = server.locks;
                }
                // Whoever has no answer sees the connection end, and may ask again.
                let goes_on = |pick: &Pick| pick.way != Way::Server;
                state.picks = state.picks.map(|pick| pick.filter(goes_on));
            }
            Action::ServerStarts => {
                when(!state.server.is_up && !self.pool.is_empty())?;
                state.server.is_up = true;
                self.pool.iter().for_each(|&port| self.adopt(state, port));
            }
        }
        Some(())
    }

    fn begin(&self, state: &mut State, number: usize, way: Way, stage: Stage) -> Option<()> {
        when(state.processes[number].lives && state.picks().count() < self.picks)?;
        let owner = state.with_number(number);
        let place = state.picks.iter().position(Option::is_none)?;
        state.picks[place] = Some(Pick { owner, way, stage });
        Some(())
    }

    fn lease(&self, state: &mut State, place: usize) -> Option<()> {
        let Pick { owner, way, stage } = state.picks[place]?;
        let Stage::Probing(port) = stage else {
            return None;
        };
        state.picks[place] = None;
        if self.has(Fault::ProbeBeforeLock) && self.is_locked(state, port) {
            return Some(());
        }
        state.leased_in_use |= state.bound[port].is_some();
        let mut lease = Lease {
            owner,
            watched: owner,
        };
        match way {
            Way::Library => {
                state.processes[owner.number].locks[port] = true;
                tell(state, owner, way, port);
                return Some(());
            }
            Way::Command => state.keepers[port] = Some(lease),
            Way::Server => {
                let namesake = state.with_number(owner.number);
                let mut known = state.server.leases.iter().flatten();
                if self.has(Fault::LeaseByNumber) && known.any(|known| known.watched == namesake) {
                    lease.watched = namesake;
                }
                state.server.leases[port] = Some(lease);
                if self.has(Fault::AnswerBeforeState) {
                    tell(state, owner, way, port);
                }
            }
        }
        let stage = Stage::Leased(port);
        state.picks[place] = Some(Pick { owner, way, stage });
        Some(())
    }

    fn adopt(&self, state: &mut State, port: Port) {
        let was_stored = std::mem::take(&mut state.store[port]);
        if let Some(owner) = state.file[port].take() {
            let watched = match self.has(Fault::AdoptWithoutIdentity) {
                true => state.with_number(owner.number),
                false => owner,
            };
            if state.lives(watched) && !self.has(Fault::NoAdoption) {
                // Whether or not somebody has the lock, and whether or not the port is in use.
                state.server.locks[port] = was_stored || !self.is_locked(state, port);
                state.server.leases[port] = Some(Lease { owner, watched });
                state.file[port] = Some(owner);
            }
        }
        state.store[port] = was_stored && self.has(Fault::StoreKeepsLocks);
    }
}

/// The process knows the port to be its own from now on, if it still can.
fn tell(state: &mut State, owner: Identity, way: Way, port: Port) {
    if state.lives(owner) {
        state.leased_twice |= state.ways(port).count() > 0;
        state.processes[owner.number].leases[port] = Some(way);
    }
}

/// Ends a lease of the server: in its pool, in the state file, and then in the kernel. In one step:
/// a kill after the second releases the lock as well.
fn end(state: &mut State, port: Port) {
    state.server.leases[port] = None;
    state.file[port] = None;
    state.server.locks[port] = false;
}

impl Model for Rules {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let mut processes = [Process::default(); MOST];
        for process in &mut processes[..self.processes] {
            (process.generation, process.lives) = (1, true);
        }
        vec![State {
            processes,
            picks: [None; MOST],
            keepers: [None; MOST],
            server: Server {
                is_up: !self.pool.is_empty(),
                ..Server::default()
            },
            file: [None; MOST],
            store: [false; MOST],
            bound: [None; MOST],
            leased_twice: false,
            leased_in_use: false,
        }]
    }

    /// Names everything that could be thought of; most is not possible in a given state.
    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for number in 0..self.processes {
            actions.extend([
                Action::Start(number),
                Action::Exit(number),
                Action::Ask(number),
            ]);
            actions.extend((0..self.processes).map(|child| Action::Fork(number, child)));
            for port in 0..self.ports {
                actions.extend([Action::Bind(number, port), Action::Return(number, port)]);
            }
            for &port in self.candidates {
                actions.push(Action::Lock(number, Way::Library, port));
                actions.push(Action::Lock(number, Way::Command, port));
            }
        }
        for place in (0..MOST).filter(|&place| state.picks[place].is_some()) {
            actions.extend([
                Action::Claim(place),
                Action::Probe(place),
                Action::Lease(place),
            ]);
            actions.extend([
                Action::Save(place),
                Action::Tell(place),
                Action::Abandon(place),
            ]);
            actions.extend(self.pool.iter().map(|&port| Action::Serve(place, port)));
        }
        for port in 0..self.ports {
            actions.extend([Action::Bind(STRANGER, port), Action::Unbind(port)]);
            actions.extend([Action::KeeperEnds(port), Action::Reclaim(port)]);
            actions.push(Action::LockAgain(port));
        }
        actions.extend([Action::ServerEnds, Action::ServerStarts]);
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = *last;
        self.step(&mut state, action)?;
        // Those that there are first.
        state.picks.sort_by(|one, other| other.cmp(one));
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::of(self)
    }
}
