//! Is what happened allowed? A value that is told one event after the other.
//!
//! A port must never be leased to two at a time, must not be leased while a stranger has it bound, and
//! can be bound by whom it is leased to. What is documented to be otherwise is *exempt*, and counted:
//!
//! - While a port server is down, the locks of its leases are free (`docs/design.md`, "Locks go to
//!   systemd's descriptor store…"). Whoever picks by locks meanwhile, from ports that are in its pool
//!   too, may get one that its owner has not bound yet. The lease goes on without its lock then.
//! - What a server grants while it cannot write its state file is forgotten if it is killed before it
//!   can (it says so in its log).
//!
//! An event is told after a lease was made and before it ends, so two leases that both seem to last
//! have both lasted at the moment at which the later one was told; only the end of a process comes
//! another way, and is asked for at that moment.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::time::Duration;

use crate::event::{Event, Id, Source};
use crate::place::{CANDIDATES, Server, has_strangers, is_shared};

/// How many events of a port are shown when something is wrong with it.
const TRACE: usize = 24;

/// How many violations are told; all are counted.
const TOLD: usize = 20;

/// Where in the order of all events something was.
type Position = u64;

/// What is known of an actor at the moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Actor {
    pub(crate) kind: &'static str,
    /// It has exited, or is being killed: its leases may have ended.
    pub(crate) has_ended: bool,
}

/// Something that must not be.
#[derive(Clone, Debug)]
pub(crate) struct Violation {
    pub(crate) what: String,
    /// The last events of the port, if it concerns one.
    pub(crate) trace: Vec<String>,
}

#[derive(Clone, Debug)]
struct Lease {
    id: Id,
    source: Source,
    /// When its pick began. It was made between that and when it was told.
    from: Position,
    told: Position,
    expires: Option<Duration>,
    /// Its server does not know of it any more.
    is_forgotten: bool,
    /// Its server has it without its lock.
    is_unlocked: bool,
    /// Somebody else had it at the same time, which was exempt.
    is_shared: bool,
    /// It was returned by `return_port`. If it is a server's, that goes on keeping it for the process,
    /// which may pick it again without asking anybody.
    is_offered: bool,
}

impl Lease {
    /// Takes over what was known of the same process's lease of the same port.
    fn goes_on_from(&mut self, former: &Self) {
        self.from = self.from.min(former.from);
        self.told = self.told.min(former.told);
        self.is_forgotten |= former.is_forgotten;
        self.is_unlocked |= former.is_unlocked;
        self.is_shared |= former.is_shared;
    }
}

/// What a server has gone through.
#[derive(Debug, Default)]
struct Life {
    is_down: bool,
    up: Position,
    /// Since when it may lack the space for its state file.
    full: Option<Position>,
    /// Until when it has forgotten what it granted.
    forgotten: Option<Position>,
    unlocked: HashSet<u16>,
}

impl Life {
    /// Tells whether it was down at a moment since `from`.
    fn was_down_since(&self, from: Position) -> bool {
        self.is_down || self.up > from
    }
}

/// How often, and how long it took.
#[derive(Clone, Debug, Default)]
pub(crate) struct Picks {
    pub(crate) succeeded: u64,
    pub(crate) ports: u64,
    /// In microseconds.
    pub(crate) took: Vec<u32>,
    pub(crate) failed: BTreeMap<String, u64>,
    pub(crate) bound: u64,
}

/// The oracle.
#[derive(Debug, Default)]
pub(crate) struct Oracle {
    position: Position,
    picking: HashMap<Id, (Position, Duration)>,
    leases: HashMap<u16, Vec<Lease>>,
    /// What strangers have bound: who, and since when.
    squats: HashMap<u16, (Id, Position)>,
    servers: BTreeMap<Server, Life>,
    traces: HashMap<u16, VecDeque<String>>,
    /// Of each kind of actor.
    pub(crate) picks: BTreeMap<&'static str, Picks>,
    pub(crate) did: BTreeMap<String, u64>,
    pub(crate) exempt: BTreeMap<&'static str, u64>,
    pub(crate) violations: Vec<Violation>,
    pub(crate) violation_count: u64,
}

impl Oracle {
    /// Takes the next event, of an actor that is `of(id)` now.
    pub(crate) fn take(&mut self, id: Id, event: Event, of: &dyn Fn(Id) -> Actor) {
        self.position += 1;
        self.trace(id, &event, of);
        match event {
            Event::Picking(time) => _ = self.picking.insert(id, (self.position, time)),
            Event::Leased(source, time, ports) => self.leased(id, source, time, &ports, of),
            Event::None(reason) => {
                self.picking.remove(&id);
                *self.of_kind(id, of).failed.entry(reason).or_default() += 1;
            }
            Event::Bound(_) => self.of_kind(id, of).bound += 1,
            Event::Unbindable(port, why) => self.unbindable(id, port, &why, of),
            Event::Returned(ports) => {
                for port in ports {
                    self.returned(id, port);
                }
            }
            // Whoever ends keepers is told by the soak itself.
            Event::Keeper(..) => {}
            Event::Squats(port) => self.squats(id, port, of),
            Event::Unheld(ports) => {
                for port in ports {
                    for lease in self.leases.entry(port).or_default() {
                        if lease.id == id {
                            lease.source = Source::Lock;
                        }
                    }
                }
            }
            Event::Leaves(port) => {
                if self
                    .squats
                    .get(&port)
                    .is_some_and(|(stranger, _)| *stranger == id)
                {
                    self.squats.remove(&port);
                }
            }
            Event::Did(times, what) => *self.did.entry(what).or_default() += times,
            Event::Trouble(what) => {
                if !of(id).has_ended {
                    self.violation(None, format!("{} {id}: {what}", of(id).kind));
                }
            }
            Event::Down(server) => self.down(server),
            Event::Up(server) => {
                let position = self.position;
                let life = self.servers.entry(server).or_default();
                life.is_down = false;
                life.up = position;
            }
            Event::Unlocked(server, port) => {
                self.servers
                    .entry(server)
                    .or_default()
                    .unlocked
                    .insert(port);
                for lease in self.leases.entry(port).or_default() {
                    lease.is_unlocked |= lease.source.server() == Some(server);
                }
            }
            Event::Jumps(server) => self.end_all(
                |lease| matches!(lease.source, Source::Timed(timed, _) if timed == server),
            ),
            Event::Full => {
                for server in Server::ALL {
                    let position = self.position;
                    let life = self.servers.entry(server).or_default();
                    life.full.get_or_insert(position);
                }
            }
            Event::Whole(server) => self.servers.entry(server).or_default().full = None,
        }
    }

    /// Notes that something was done.
    pub(crate) fn count(&mut self, what: &str) {
        *self.did.entry(what.to_owned()).or_default() += 1;
    }

    /// Notes something that must not be.
    pub(crate) fn violation(&mut self, port: Option<u16>, what: String) {
        self.violation_count += 1;
        if self.violations.len() < TOLD {
            let trace = port.and_then(|port| self.traces.get(&port));
            let trace = trace.into_iter().flatten().cloned().collect();
            self.violations.push(Violation { what, trace });
        }
    }

    /// A stranger has bound a port, and has it still.
    fn squats(&mut self, id: Id, port: u16, of: &dyn Fn(Id) -> Actor) {
        self.squats.insert(port, (id, self.position));
        let holder = self.leases.get(&port).and_then(|leases| {
            let is_held = |lease: &&Lease| lease.source == Source::Hold && !of(lease.id).has_ended;
            leases.iter().find(is_held).map(|lease| lease.id)
        });
        if let Some(holder) = holder {
            let kind = of(holder).kind;
            let what = format!("a stranger has bound {port}, which {kind} {holder} holds");
            self.violation(Some(port), what);
        }
    }

    fn of_kind(&mut self, id: Id, of: &dyn Fn(Id) -> Actor) -> &mut Picks {
        self.picks.entry(of(id).kind).or_default()
    }

    fn leased(
        &mut self,
        id: Id,
        source: Source,
        time: Duration,
        ports: &[u16],
        of: &dyn Fn(Id) -> Actor,
    ) {
        let Some((from, begun)) = self.picking.remove(&id) else {
            return self.violation(None, format!("{id} leases without a pick"));
        };
        let picks = self.of_kind(id, of);
        picks.succeeded += 1;
        picks.ports += ports.len() as u64;
        let took = time.saturating_sub(begun).as_micros();
        picks.took.push(u32::try_from(took).unwrap_or(u32::MAX));

        let expires = match source {
            Source::Timed(_, limit) => Some(begun + limit),
            _ => None,
        };
        for &port in ports {
            let lease = Lease {
                id,
                source,
                from,
                told: self.position,
                expires,
                is_forgotten: false,
                is_unlocked: false,
                is_shared: false,
                is_offered: false,
            };
            self.leased_one(id, port, lease, time, of);
        }
    }

    fn leased_one(
        &mut self,
        id: Id,
        port: u16,
        mut lease: Lease,
        time: Duration,
        of: &dyn Fn(Id) -> Actor,
    ) {
        let is_candidate = (CANDIDATES.0..=CANDIDATES.1).contains(&port);
        let is_possible = lease
            .source
            .server()
            .is_some_and(|server| server.manages(port))
            || lease.source.may_be_lock() && is_candidate;
        if !is_possible {
            self.violation(
                Some(port),
                format!("{id} was given {port}, which was no choice"),
            );
        }
        // What is held cannot have been bound since, either.
        let is_bound = |&(stranger, since): &(Id, Position)| {
            (since < lease.from || lease.source == Source::Hold) && !of(stranger).has_ended
        };
        if self.squats.get(&port).is_some_and(is_bound) {
            let what = format!("{id} was given {port}, which a stranger had bound before and has");
            self.violation(Some(port), what);
        }
        if let Some(server) = lease.source.server() {
            let life = self.servers.entry(server).or_default();
            lease.is_unlocked = lease.from < life.up && life.unlocked.contains(&port);
            lease.is_forgotten = life.forgotten.is_some_and(|end| lease.from < end);
            let is_mortal = matches!(lease.source, Source::Connection(_) | Source::Timed(..));
            if is_mortal && life.was_down_since(lease.from) {
                // It may have ended before it was told.
                return;
            }
        }
        let mut others = self.leases.remove(&port).unwrap_or_default();
        others.retain(|other| {
            if other.id == id && other.is_offered {
                lease.goes_on_from(other);
                return false;
            }
            !of(other.id).has_ended && other.expires.is_none_or(|end| time < end)
        });
        for other in others.iter_mut().filter(|other| !other.is_offered) {
            match self.exemption(port, other, &lease) {
                Some(reason) => {
                    *self.exempt.entry(reason).or_default() += 1;
                    other.is_shared = true;
                    lease.is_shared = true;
                }
                None => {
                    let what = format!(
                        "port {port} is leased to {} {} and to {} {id}",
                        of(other.id).kind,
                        other.id,
                        of(id).kind
                    );
                    self.violation(Some(port), what);
                }
            }
        }
        if !of(id).has_ended {
            others.push(lease);
        }
        self.leases.insert(port, others);
    }

    /// Returns why a port may be leased to both, if it may.
    fn exemption(&self, port: u16, old: &Lease, new: &Lease) -> Option<&'static str> {
        if old.is_forgotten || new.is_forgotten {
            return Some(
                "granted while the disk was full, and forgotten when the server was killed",
            );
        }
        let is_free = |one: &Lease, other: &Lease| {
            one.source.server().is_some_and(|server| {
                is_shared(port, server)
                    && (other.source.may_be_lock() || other.source.server() != Some(server))
                    && (one.is_unlocked || self.was_down_since(server, new.from))
            })
        };
        (is_free(old, new) || is_free(new, old))
            .then_some("picked by its lock while the server that had leased it was down")
    }

    fn was_down_since(&self, server: Server, from: Position) -> bool {
        let life = self.servers.get(&server);
        life.is_some_and(|life| life.was_down_since(from))
    }

    fn unbindable(&mut self, id: Id, port: u16, why: &str, of: &dyn Fn(Id) -> Actor) {
        let lease = self.leases.get(&port).and_then(|leases| {
            leases
                .iter()
                .find(|lease| lease.id == id && !lease.is_offered)
        });
        let Some(lease) = lease.filter(|_| !of(id).has_ended) else {
            return self.count("binds after a lease had ended");
        };
        if has_strangers(port) && lease.source != Source::Hold {
            return self.count("binds that met a stranger");
        }
        // While the locks are free, others may probe the port, too.
        let was_free = Server::ALL.into_iter().any(|server| {
            server.manages(port)
                && is_shared(port, server)
                && self.was_down_since(server, lease.from)
        });
        if lease.is_shared || lease.is_unlocked || lease.is_forgotten || was_free {
            *self
                .exempt
                .entry("could not be bound, in such a case")
                .or_default() += 1;
            return;
        }
        let kind = of(id).kind;
        self.violation(
            Some(port),
            format!("{kind} {id} cannot bind its port {port}: {why}"),
        );
    }

    fn down(&mut self, server: Server) {
        self.end_all(|lease| matches!(lease.source, Source::Connection(owner) if owner == server));
        let position = self.position;
        let life = self.servers.entry(server).or_default();
        life.is_down = true;
        life.unlocked.clear();
        let full = life.full;
        if full.is_some() {
            life.forgotten = Some(position);
        }
        for lease in self.leases.values_mut().flatten() {
            if lease.source.server() == Some(server) {
                // It will be adopted, and its lock be taken, if that is free.
                lease.is_unlocked = false;
                lease.is_forgotten |= full.is_some_and(|full| lease.told > full);
            }
        }
    }

    fn returned(&mut self, id: Id, port: u16) {
        let leases = self.leases.entry(port).or_default();
        leases.retain_mut(|lease| {
            lease.is_offered |= lease.id == id;
            !lease.is_offered || matches!(lease.source, Source::Either(_))
        });
    }

    fn end_all(&mut self, is_it: impl Fn(&Lease) -> bool) {
        for leases in self.leases.values_mut() {
            leases.retain(|lease| !is_it(lease));
        }
    }

    /// Notes the event with each port that it concerns.
    fn trace(&mut self, id: Id, event: &Event, of: &dyn Fn(Id) -> Actor) {
        let ports: Vec<u16> = match event {
            Event::Leased(_, _, ports)
            | Event::Returned(ports)
            | Event::Unheld(ports)
            | Event::Keeper(_, ports) => ports.clone(),
            Event::Bound(port)
            | Event::Unbindable(port, _)
            | Event::Squats(port)
            | Event::Leaves(port)
            | Event::Unlocked(_, port) => vec![*port],
            Event::Down(server) | Event::Up(server) | Event::Jumps(server) => {
                let known = self.traces.keys().copied();
                known.filter(|&port| server.manages(port)).collect()
            }
            Event::Full | Event::Whole(_) => self.traces.keys().copied().collect(),
            _ => return,
        };
        let kind = of(id).kind;
        let since = self.picking.get(&id).map(|(from, _)| *from);
        let since = since.filter(|_| matches!(event, Event::Leased(..)));
        let since = since.map_or(String::new(), |from| format!(" (picking since {from})"));
        let line = format!("{:>8} {kind} {id}: {event:?}{since}", self.position);
        for port in ports {
            let trace = self.traces.entry(port).or_default();
            trace.push_back(line.clone());
            if trace.len() > TRACE {
                trace.pop_front();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tells a history to an oracle: a line for each event, and `N ends` when an actor has ended.
    fn told(history: &str) -> Oracle {
        let mut oracle = Oracle::default();
        let mut ended = HashSet::new();
        for line in history
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
        {
            if let Some(id) = line.strip_suffix(" ends") {
                ended.insert(id.parse::<Id>().unwrap());
                continue;
            }
            let (id, event) = Event::parse(line).unwrap_or_else(|| panic!("`{line}`"));
            oracle.take(id, event, &|id| Actor {
                kind: "actor",
                has_ended: ended.contains(&id),
            });
        }
        oracle
    }

    #[track_caller]
    fn is_fine(history: &str) {
        let oracle = told(history);
        assert_eq!(oracle.violation_count, 0, "{:?}", oracle.violations);
        assert!(oracle.exempt.is_empty(), "{:?}", oracle.exempt);
    }

    #[track_caller]
    fn is_exempt(history: &str) {
        let oracle = told(history);
        assert_eq!(oracle.violation_count, 0, "{:?}", oracle.violations);
        assert!(!oracle.exempt.is_empty());
    }

    #[track_caller]
    fn is_wrong(history: &str) {
        let oracle = told(history);
        assert_eq!(oracle.violation_count, 1, "{:?}", oracle.violations);
        assert_eq!(oracle.violations.len(), 1);
    }

    /// 1 has a port of the candidates, and 2 is given it.
    const FIRST: &str = "1 picking 0\n 1 leased lock 1 20001\n";
    const SECOND: &str = "2 picking 2\n 2 leased lock 3 20001\n";

    #[test]
    fn a_port_is_leased_to_one_at_a_time() {
        is_wrong(&format!("{FIRST} {SECOND}"));
        is_wrong("1 picking 0\n 2 picking 0\n 2 leased lock 1 20001\n 1 leased lock 1 20001");
        // Whoever told it last may have ended: the other had it, too.
        is_wrong(&format!("{FIRST} 2 ends\n {SECOND}"));
        is_wrong("1 picking 0\n 1 leased lock 1 20001 20001");
    }

    #[test]
    fn the_trace_is_of_the_port() {
        let oracle = told(&format!(
            "3 picking 0\n 3 leased lock 0 20002\n {FIRST} {SECOND}"
        ));
        let trace = &oracle.violations[0].trace;
        assert_eq!(trace.len(), 2, "{trace:?}");
        assert!(trace.iter().all(|line| line.contains("20001")), "{trace:?}");
    }

    #[test]
    fn a_port_can_be_leased_again_when_its_lease_has_ended() {
        is_fine(&format!("{FIRST} 1 ends\n {SECOND}"));
        is_fine(&format!("{FIRST} 1 returned 20001\n {SECOND}"));
        is_wrong(&format!("{FIRST} 1 returned 20002\n {SECOND}"));
        is_wrong(&format!("{FIRST} 3 returned 20001\n {SECOND}"));
        // The end of the second one's lease is not that of a third one's.
        is_wrong(&format!(
            "{FIRST} 1 returned 20001\n {SECOND} 1 returned 20001\n 3 picking 4\n 3 leased lock 5 20001"
        ));
    }

    #[test]
    fn nobody_is_given_what_is_not_to_be_had() {
        is_wrong("1 leased lock 0 20001");
        is_wrong("1 picking 0\n 1 leased lock 0 20150");
        is_wrong("1 picking 0\n 1 leased server:shaken 0 20001");
        is_wrong("1 picking 0\n 1 leased either:steady 0 20161");
        is_fine("1 picking 0\n 1 leased either:shaken 0 20001 20161");
    }

    #[test]
    fn a_port_that_a_stranger_has_is_not_leased() {
        is_wrong("9 squats 20000\n 1 picking 0\n 1 leased lock 1 20000");
        is_fine("1 picking 0\n 9 squats 20000\n 1 leased lock 1 20000");
        is_fine("9 squats 20000\n 9 leaves 20000\n 1 picking 0\n 1 leased lock 1 20000");
        is_fine("9 squats 20000\n 9 ends\n 1 picking 0\n 1 leased lock 1 20000");
    }

    #[test]
    fn what_is_held_is_bound_by_nobody_else() {
        let held = "1 picking 0\n 1 leased hold 1 20000\n";
        is_wrong(&format!("{held} 9 squats 20000"));
        is_wrong("1 picking 0\n 9 squats 20000\n 1 leased hold 1 20000");
        is_wrong(&format!("{held} 1 unbindable 20000 why"));
        is_fine(&format!(
            "{held} 1 unheld 20000\n 9 squats 20000\n 1 unbindable 20000 why"
        ));
        is_fine(&format!("{held} 1 ends\n 9 squats 20000"));
        is_wrong(&format!(
            "{held} 1 unheld 20000\n 2 picking 2\n 2 leased lock 3 20000"
        ));
    }

    #[test]
    fn a_leased_port_can_be_bound() {
        is_fine(&format!("{FIRST} 1 bound 20001"));
        is_wrong(&format!("{FIRST} 1 unbindable 20001 why"));
        is_fine(&format!("{FIRST} 1 ends\n 1 unbindable 20001 why"));
        // Strangers may bind it first.
        is_fine("1 picking 0\n 1 leased lock 1 20000\n 1 unbindable 20000 why");
    }

    #[test]
    fn trouble_is_wrong_unless_it_is_that_of_somebody_who_is_killed() {
        is_wrong("1 trouble it hurts");
        is_fine("1 ends\n 1 trouble it hurts");
    }

    /// 1 has a port that the server alone manages, and one that is a candidate, too.
    const GRANTED: &str = "1 picking 0\n 1 leased server:shaken 1 20101 20161\n";

    #[test]
    fn while_a_server_is_down_its_leases_are_not_locked() {
        let meanwhile = "2 picking 2\n 2 leased lock 3 20101\n";
        is_wrong(&format!("{GRANTED} {meanwhile}"));
        is_exempt(&format!("{GRANTED} 0 down shaken\n {meanwhile}"));
        is_exempt(&format!(
            "{GRANTED} 0 down shaken\n 2 picking 2\n 0 up shaken\n 2 leased lock 3 20101"
        ));
        is_wrong(&format!(
            "{GRANTED} 0 down shaken\n 0 up shaken\n {meanwhile}"
        ));
        // Another server's end changes nothing.
        is_wrong(&format!("{GRANTED} 0 down steady\n {meanwhile}"));
        // Told the other way round.
        is_exempt(
            "1 picking 0\n 0 down shaken\n 2 picking 2\n 2 leased lock 3 20101\n
             1 leased server:shaken 1 20101",
        );
        // Two locks exclude each other always.
        is_wrong(&format!("{FIRST} 0 down shaken\n {SECOND}"));
    }

    #[test]
    fn a_server_that_was_down_grants_nothing_twice() {
        let again = "0 down shaken\n 0 up shaken\n 2 picking 2\n 2 leased server:shaken 3";
        is_wrong(&format!("{GRANTED} {again} 20101"));
        is_wrong(&format!("{GRANTED} {again} 20161"));
        is_wrong(&format!(
            "{GRANTED} 0 down shaken\n 2 picking 2\n 0 up shaken\n 2 leased server:shaken 3 20161"
        ));
    }

    #[test]
    fn a_lease_that_was_adopted_without_its_lock_is_not_locked() {
        let restart = "0 down shaken\n 0 unlocked shaken 20101\n 0 up shaken\n";
        let later = "2 picking 2\n 2 leased lock 3";
        is_exempt(&format!("{GRANTED} {restart} {later} 20101"));
        is_wrong(&format!(
            "{GRANTED} {restart} 2 picking 2\n 2 leased server:shaken 3 20101"
        ));
        // The next start may take the lock.
        is_wrong(&format!(
            "{GRANTED} {restart} 0 down shaken\n 0 up shaken\n {later} 20101"
        ));
        // Told when the server was up again.
        is_exempt(&format!(
            "1 picking 0\n {restart} 1 leased server:shaken 1 20101\n {later} 20101"
        ));
    }

    #[test]
    fn what_was_granted_while_the_disk_was_full_is_forgotten_with_the_server() {
        let restart = "0 down shaken\n 0 up shaken\n";
        let later = "2 picking 2\n 2 leased server:shaken 3 20161";
        is_exempt(&format!("0 full\n {GRANTED} {restart} {later}"));
        is_exempt(&format!(
            "1 picking 0\n 0 full\n 0 down shaken\n 1 leased server:shaken 1 20161\n 0 up shaken\n {later}"
        ));
        // What was granted before is not, nor is what was written later.
        is_wrong(&format!("{GRANTED} 0 full\n {restart} {later}"));
        is_wrong(&format!(
            "0 full\n {GRANTED} 0 whole shaken\n {restart} {later}"
        ));
        is_wrong(&format!("0 full\n {GRANTED} {later}"));
        is_wrong(&format!(
            "0 full\n {restart} 0 whole shaken\n {GRANTED} {later}"
        ));
    }

    #[test]
    fn a_bind_may_fail_where_a_lease_may_be_shared() {
        is_wrong(&format!("{GRANTED} 1 unbindable 20101 why"));
        is_exempt(&format!("{GRANTED} 0 down shaken\n 1 unbindable 20101 why"));
        is_exempt(&format!(
            "{GRANTED} 0 down shaken\n 2 picking 2\n 2 leased lock 3 20101\n 2 unbindable 20101 why"
        ));
        // Only the server picks from these.
        is_wrong(&format!("{GRANTED} 0 down shaken\n 1 unbindable 20161 why"));
    }

    #[test]
    fn a_returned_port_that_a_server_keeps_for_the_process_is_as_safe_as_it_was() {
        let first = "1 picking 0\n 1 leased either:shaken 1 20161\n 1 returned 20161\n";
        let again = "1 picking 2\n 1 leased either:shaken 3 20161\n";
        let restart = "0 down shaken\n 0 up shaken\n";
        let other = "2 picking 4\n 2 leased server:shaken 5 20161\n";
        is_fine(&format!("{first} {other}"));
        is_wrong(&format!("{first} {again} {other}"));
        is_wrong(&format!("{first} {restart} {again} {other}"));
        is_exempt(&format!("0 full\n {first} {restart} {again} {other}"));
        is_exempt(&format!("0 full\n {first} {restart} {other} {again}"));
    }

    #[test]
    fn the_lease_of_a_connection_ends_with_its_server() {
        let first = "1 picking 0\n 1 leased connection:shaken 1 20161\n";
        let second = "2 picking 2\n 2 leased server:shaken 3 20161";
        is_wrong(&format!("{first} {second}"));
        is_fine(&format!("{first} 0 down shaken\n 0 up shaken\n {second}"));
        is_wrong(&format!("{first} 0 down steady\n 0 up steady\n {second}"));
        is_fine(&format!(
            "1 picking 0\n 0 down shaken\n 0 up shaken\n 1 leased connection:shaken 1 20161\n {second}"
        ));
    }

    #[test]
    fn a_lease_for_a_time_lasts_as_long_and_ends_then() {
        let first = "1 picking 100\n 1 leased timed:shaken:1000 150 20161\n";
        is_wrong(&format!(
            "{first} 2 picking 200\n 2 leased server:shaken 1099 20161"
        ));
        is_fine(&format!(
            "{first} 2 picking 200\n 2 leased server:shaken 1100 20161"
        ));
        let restart = "0 down shaken\n 0 up shaken\n";
        is_wrong(&format!(
            "{first} {restart} 2 picking 200\n 2 leased server:shaken 300 20161"
        ));
        is_fine(&format!(
            "{first} 0 down shaken\n 0 jumps shaken\n 0 up shaken\n
             2 picking 200\n 2 leased server:shaken 300 20161"
        ));
    }
}
