//! The server's state, and what it does with a request. The loop around it does the I/O with clients.

mod refusal;
mod remember;

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

use portpicker::process::Pid;
use portpicker::{Attempts, Lease as Lock, PortSet};
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tracing::warn;

use self::refusal::{chain, denied, exhausted, failed, stopping};
use crate::ahead::Ahead;
use crate::owners::Owners;
use crate::peer::{Denied, Peer, Process};
use crate::pool::{FIRST_REST, Lease, OwnerId, Pool, Refusal, Terms, Time, Wish};
use crate::proc;
use crate::state::{StateFile, seconds};
use crate::stats::Stats;
use crate::wire::{Code, Failure, LeaseRequest, ListedLease, Numbers, Owner, Request};

/// The most requests that wait for ports at one time.
const MAX_WAITING: usize = 1000;

/// How long to wait until a state file that could not be written is tried again.
const STATE_RETRY: Duration = Duration::from_secs(1);

/// How often to try the lock of a lease that was adopted without it.
const LOCK_RETRY: Duration = Duration::from_secs(1);

/// How often owners are asked whether they live, where the kernel does not say when they exit.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Everything that the server knows.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) pool: Pool<Lock>,
    pub(crate) stats: Stats,
    owners: Owners,
    attempts: Attempts,
    state: Option<StateFile>,
    /// When the state file may be tried again.
    state_retry: Option<Time>,
    /// The ports whose leases were adopted while somebody else had their locks.
    unlocked: BTreeSet<u16>,
    /// When those locks may be tried again.
    lock_retry: Option<Time>,
    waiting: VecDeque<Waiter>,
    next_waiter: u64,
    clients: usize,
    is_stopping: bool,
    /// Whether the system has failed a request since the last one that was granted.
    is_failing: bool,
    started: Instant,
    /// By the clock, for people and their graphs.
    started_at: SystemTime,
}

/// A connection, as far as the server is concerned.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) peer: Peer,
    /// What owns the leases of the connection, once it has asked for one.
    owner: Option<OwnerId>,
}

impl Client {
    pub(crate) fn new(peer: Peer) -> Self {
        Self { peer, owner: None }
    }
}

/// An answer, or the promise of one.
#[derive(Debug)]
pub(crate) enum Outcome {
    Now(Result<Value, Failure>),
    Later(Waiting),
    /// All leases, in so many steps that others are served meanwhile.
    List,
}

/// A request that waits in the queue.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) id: u64,
    pub(crate) deadline: Instant,
    pub(crate) answer: oneshot::Receiver<Result<Value, Failure>>,
}

#[derive(Debug)]
struct Waiter {
    id: u64,
    wish: Wish,
    scope: Scope,
    claim: Claim,
    answer: oneshot::Sender<Result<Value, Failure>>,
}

/// What a request looks at when it probes.
type Scope = (Option<portpicker::Kind>, Option<std::net::IpAddr>);

/// For whom ports are to be leased, before they are.
#[derive(Debug)]
struct Claim {
    owner: ClaimOwner,
    uid: u32,
    ttl: Option<Duration>,
    names: Vec<Box<str>>,
    tag: Option<Rc<str>>,
}

#[derive(Debug)]
enum ClaimOwner {
    /// Not watched by the owners yet.
    Process(Process),
    Connection(OwnerId),
}

impl Claim {
    /// Returns the claim, unless its process has exited while it waited: its number may be another
    /// owner's by now, who would be charged with the lease.
    fn living(self) -> Result<Self, Failure> {
        if let ClaimOwner::Process(process) = &self.owner
            && process.watch.has_exited().map_err(failed)?
        {
            return Err(denied(Denied::NoProcess, Owner::Process(process.pid)));
        }
        Ok(self)
    }
}

/// Returns the time since the host was started.
pub(crate) fn now() -> Time {
    let time = clock_gettime(ClockId::Boottime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

impl Server {
    pub(crate) fn new(ports: PortSet, user_limit: Option<usize>) -> io::Result<Self> {
        Ok(Self {
            pool: Pool::new(ports, user_limit),
            stats: Stats::default(),
            owners: Owners::new()?,
            attempts: Attempts::new(),
            state: None,
            state_retry: None,
            unlocked: BTreeSet::new(),
            lock_retry: None,
            waiting: VecDeque::new(),
            next_waiter: 0,
            clients: 0,
            is_stopping: false,
            is_failing: false,
            started: Instant::now(),
            started_at: SystemTime::now(),
        })
    }

    /// Answers a request of the original protocol: a port, or nothing.
    pub(crate) fn lease_original(&mut self, client: &Client, pid: Option<Pid>) -> Option<u16> {
        let result = match pid {
            Some(pid) => self.claim(client, Owner::Process(pid)).and_then(|claim| {
                let wish = Wish {
                    count: 1,
                    ..Wish::default()
                };
                self.lease_now(&wish, (None, None), claim)
            }),
            None => Err(Failure::new(
                Code::NoProcess,
                "no process has such a number",
            )),
        };
        match result {
            Ok(ports) => Some(ports[0]),
            Err(failure) => {
                self.count(&failure);
                tracing::debug!("refused: {}", failure.message);
                None
            }
        }
    }

    /// Answers a request of the extended protocol.
    pub(crate) fn answer(&mut self, client: &mut Client, request: Request) -> Outcome {
        let result = match request {
            Request::Hello => Ok(json!({
                "server": concat!("portserver ", env!("CARGO_PKG_VERSION")),
                "versions": [crate::wire::VERSION],
            })),
            Request::Stats => Ok(json!(self.numbers())),
            Request::List => return Outcome::List,
            Request::Renew { ports, owner, ttl } => self
                .may_change(client, &ports, owner)
                .map(|()| self.renew(&ports, ttl)),
            Request::Release { ports, owner } => self
                .may_change(client, &ports, owner)
                .map(|()| self.release(&ports)),
            Request::Lease(request) => match self.lease(client, *request) {
                Ok(outcome) => return outcome,
                Err(failure) => Err(failure),
            },
        };
        if let Err(failure) = &result {
            self.count(failure);
        }
        Outcome::Now(result)
    }

    /// Counts a request that failed.
    pub(crate) fn count(&mut self, failure: &Failure) {
        if failure.code.is_client_error() {
            self.stats.client_errors += 1;
        } else {
            self.stats.refuse(failure.code.name());
        }
        // Once: each request may fail for the same reason until something ends.
        if failure.code == Code::Failed && !std::mem::replace(&mut self.is_failing, true) {
            warn!("a request failed: {}; serving goes on", failure.message);
        }
    }

    fn lease(&mut self, client: &mut Client, request: LeaseRequest) -> Result<Outcome, Failure> {
        if request.owner == Owner::Connection && client.owner.is_none() {
            client.owner = Some(self.owners.new_id());
        }
        let claim = Claim {
            ttl: request.ttl,
            names: request.names,
            tag: request.tag.map(Rc::from),
            ..self.claim(client, request.owner)?
        };
        let wish = self.wish(
            &request.ports,
            &request.exclude,
            request.prefer,
            request.count,
        )?;
        let wish = Wish {
            contiguous: request.contiguous,
            is_partial: request.only.is_some() || request.address.is_some(),
            ..wish
        };
        let scope = (request.only, request.address);

        // Those who wait come first.
        let ahead = Ahead::of(self.waiting.iter().map(|waiter| &waiter.wish));
        let claim = match ahead.leaves(&wish, self.pool.ports()) {
            None => claim,
            Some(left) => match self.try_lease(&left, scope, claim)? {
                Ok(answer) => return Ok(Outcome::Now(Ok(answer))),
                Err(claim) => claim,
            },
        };
        if request.wait.is_zero() {
            return Err(exhausted(&self.pool));
        }
        if self.waiting.len() >= MAX_WAITING {
            return Err(Failure::new(
                Code::Busy,
                "too many requests wait for ports already",
            ));
        }
        let (sender, answer) = oneshot::channel();
        self.next_waiter += 1;
        let id = self.next_waiter;
        self.waiting.push_back(Waiter {
            id,
            wish,
            scope,
            claim,
            answer: sender,
        });
        Ok(Outcome::Later(Waiting {
            id,
            deadline: Instant::now() + request.wait,
            answer,
        }))
    }

    /// Ends the wait of a request whose time is over, or whose client has hung up.
    pub(crate) fn stop_waiting(&mut self, id: u64) -> Failure {
        self.waiting.retain(|waiter| waiter.id != id);
        let failure = exhausted(&self.pool);
        self.count(&failure);
        // It may have been in the way of others.
        self.serve_waiting();
        failure
    }

    /// Leases freed ports to those who wait, in their order: a later request gets what no earlier
    /// one could.
    pub(crate) fn serve_waiting(&mut self) {
        let mut still_waiting: VecDeque<Waiter> = VecDeque::new();
        let mut ahead = Ahead::default();
        for mut waiter in std::mem::take(&mut self.waiting) {
            if waiter.answer.is_closed() {
                continue;
            }
            let Some(left) = ahead.leaves(&waiter.wish, self.pool.ports()) else {
                still_waiting.push_back(waiter);
                continue;
            };
            let result = waiter.claim.living();
            let result = result.and_then(|claim| self.try_lease(&left, waiter.scope, claim));
            let result = match result {
                Ok(Ok(answer)) => Ok(answer),
                Ok(Err(claim)) => {
                    waiter.claim = claim;
                    ahead.add(&waiter.wish);
                    still_waiting.push_back(waiter);
                    continue;
                }
                Err(failure) => {
                    self.count(&failure);
                    Err(failure)
                }
            };
            // If the client has hung up meanwhile, its connection's end is yet to be seen; the
            // lease then ends with its owner as always.
            _ = waiter.answer.send(result);
        }
        self.waiting = still_waiting;
    }

    /// Leases ports now. If there are none, the claim comes back.
    fn try_lease(
        &mut self,
        wish: &Wish,
        scope: Scope,
        claim: Claim,
    ) -> Result<Result<Value, Claim>, Failure> {
        if self.is_stopping {
            return Err(stopping());
        }
        let names = claim.names.clone();
        match self.lease_or_return(wish, scope, claim)? {
            Err(claim) => Ok(Err(claim)),
            Ok(ports) => {
                let mut names = names.into_iter();
                let leases: Vec<Value> = ports
                    .iter()
                    .map(|port| match names.next() {
                        Some(name) => json!({ "port": port, "name": name }),
                        None => json!({ "port": port }),
                    })
                    .collect();
                Ok(Ok(json!({ "leases": leases })))
            }
        }
    }

    fn lease_now(&mut self, wish: &Wish, scope: Scope, claim: Claim) -> Result<Vec<u16>, Failure> {
        if self.is_stopping {
            return Err(stopping());
        }
        let ahead = Ahead::of(self.waiting.iter().map(|waiter| &waiter.wish));
        let Some(left) = ahead.leaves(wish, self.pool.ports()) else {
            return Err(exhausted(&self.pool));
        };
        match self.lease_or_return(&left, scope, claim)? {
            Ok(ports) => Ok(ports),
            Err(_) => Err(exhausted(&self.pool)),
        }
    }

    fn lease_or_return(
        &mut self,
        wish: &Wish,
        scope: Scope,
        claim: Claim,
    ) -> Result<Result<Vec<u16>, Claim>, Failure> {
        let (owner, process) = match &claim.owner {
            ClaimOwner::Connection(id) => (*id, None),
            ClaimOwner::Process(process) => {
                // Before anything is leased: its number may be that of an owner that has exited,
                // whose exit is not yet seen.
                if let Some(former) = self.owners.exit_of(process.pid) {
                    self.reclaim(former);
                }
                match self.owners.id_of(process.pid) {
                    Some(id) => (id, None),
                    None => (self.owners.new_id(), Some(process)),
                }
            }
        };
        let terms = Terms {
            owner,
            uid: claim.uid,
            ttl: claim.ttl,
            names: claim.names.clone(),
            tag: claim.tag.clone(),
        };
        let mut scoped;
        let attempts = match scope {
            (None, None) => &mut self.attempts,
            (only, address) => {
                scoped = Attempts::within(only, address);
                &mut scoped
            }
        };
        let mut tried = 0;
        let result = self.pool.lease(wish, &terms, now(), &mut |port| {
            tried += 1;
            attempts.lease(port)
        });
        self.stats.tried_for_last = tried;
        match result {
            Ok(ports) => {
                let is_new = process.is_some();
                if is_new && let ClaimOwner::Process(process) = claim.owner {
                    self.owners.watch_as(owner, process).map_err(|err| {
                        self.pool.release_all(owner);
                        failed(err)
                    })?;
                }
                self.stats.granted += ports.len() as u64;
                self.is_failing = false;
                self.save(&ports);
                Ok(Ok(ports))
            }
            Err(Refusal::Exhausted) => Ok(Err(claim)),
            Err(Refusal::OverLimit) => Err(Failure::new(
                Code::OverLimit,
                format!("user {} has as many leases as a user may have", claim.uid),
            )),
            Err(Refusal::Failed(err)) => Err(failed(io::Error::other(chain(&err)))),
        }
    }

    /// Finds out for whom a request is.
    fn claim(&self, client: &Client, owner: Owner) -> Result<Claim, Failure> {
        let (owner, uid) = match owner {
            Owner::Connection => {
                let id = client.owner.expect("it was given one before");
                let uid = client
                    .peer
                    .uid()
                    .ok_or_else(|| denied(Denied::Invisible, owner))?;
                (ClaimOwner::Connection(id), uid)
            }
            Owner::Peer => {
                let process = client.peer.itself().map_err(|err| denied(err, owner))?;
                let uid = process.uid;
                (ClaimOwner::Process(process), uid)
            }
            Owner::Process(pid) => {
                let process = client.peer.find(pid).map_err(|err| denied(err, owner))?;
                let uid = process.uid;
                (ClaimOwner::Process(process), uid)
            }
        };
        Ok(Claim {
            owner,
            uid,
            ttl: None,
            names: Vec::new(),
            tag: None,
        })
    }

    /// Turns the sets of a request into parts of the pool.
    fn wish(
        &self,
        ports: &Option<PortSet>,
        exclude: &Option<PortSet>,
        prefer: Vec<u16>,
        count: usize,
    ) -> Result<Wish, Failure> {
        let nothing_left = || Failure::new(Code::Exhausted, "none of these ports is in the pool");
        let pool = self.pool.ports();
        let mut allowed = None;
        if let Some(ports) = ports {
            allowed = Some(pool.intersection(ports).ok_or_else(nothing_left)?);
        }
        if let Some(exclude) = exclude {
            let rest = allowed.as_ref().unwrap_or(pool).difference(exclude);
            allowed = Some(rest.ok_or_else(nothing_left)?);
        }
        let is_excluded = |port| exclude.as_ref().is_some_and(|set| set.contains(port));
        let prefer: Vec<u16> = prefer
            .into_iter()
            .filter(|&port| pool.contains(port) && !is_excluded(port))
            .collect();
        let most = allowed.as_ref().unwrap_or(pool).len() + prefer.len();
        if count > most {
            // No wait would help.
            let message =
                format!("{count} ports wanted, but the pool has no more than {most} of these");
            return Err(Failure::new(Code::Exhausted, message));
        }
        Ok(Wish {
            count,
            ports: allowed,
            prefer,
            ..Wish::default()
        })
    }

    fn renew(&mut self, ports: &[u16], ttl: Duration) -> Value {
        let expires = now().saturating_add(ttl);
        for &port in ports {
            self.pool.renew(port, expires);
        }
        self.save(ports);
        json!({})
    }

    fn release(&mut self, ports: &[u16]) -> Value {
        let ended: Vec<_> = ports
            .iter()
            .filter_map(|&port| Some((port, self.pool.release(port)?)))
            .collect();
        self.stats.released += ended.len() as u64;
        self.after_end(ended);
        json!({})
    }

    /// Makes sure that all `ports` are leased and that the client may end their leases.
    ///
    /// If an owner is named, the leases must be its: between a client's request and its last look
    /// at them, a port may have become another process's.
    fn may_change(
        &self,
        client: &Client,
        ports: &[u16],
        owner: Option<Owner>,
    ) -> Result<(), Failure> {
        let owner = match owner {
            None => None,
            Some(Owner::Connection) => Some(client.owner),
            Some(owner) => match self.claim(client, owner)?.owner {
                ClaimOwner::Process(process) => Some(self.owners.id_of(process.pid)),
                ClaimOwner::Connection(id) => Some(Some(id)),
            },
        };
        for port in ports {
            let lease = self.pool.leases().get(port);
            let is_meant = |lease: &&Lease<Lock>| owner.is_none_or(|id| id == Some(lease.owner));
            let Some(lease) = lease.filter(is_meant) else {
                return Err(Failure::new(
                    Code::NotLeased,
                    format!("port {port} is not leased"),
                ));
            };
            if !client
                .peer
                .uid()
                .is_some_and(|uid| uid == 0 || uid == lease.uid)
            {
                let message = format!("port {port} is leased to another user");
                return Err(Failure::new(Code::Forbidden, message));
            }
        }
        Ok(())
    }

    /// Ends the leases of owners that have exited.
    pub(crate) fn take_exits(&mut self) {
        let learned = Instant::now();
        for (owner, unseen) in self.owners.take_exits() {
            self.reclaim(owner);
            self.stats.reclaim_delay.add(unseen + learned.elapsed());
        }
        self.serve_waiting();
    }

    fn reclaim(&mut self, owner: OwnerId) {
        let ended = self.pool.release_all(owner);
        self.stats.reclaimed += ended.len() as u64;
        self.save_end(ended.iter().map(|(port, _)| *port));
    }

    /// Ends what a connection owned.
    pub(crate) fn disconnect(&mut self, client: Client) {
        if let Some(owner) = client.owner {
            self.reclaim(owner);
            self.serve_waiting();
        }
    }

    /// Does what has become due. Returns how long until there is something again.
    pub(crate) fn do_due(&mut self) -> Option<Duration> {
        let time = now();
        let expired = self.pool.expire(time);
        self.stats.expired += expired.len() as u64;
        if !expired.is_empty() {
            self.after_end(expired);
        }
        if self.owners.must_be_polled() {
            self.take_exits();
        }
        self.serve_waiting();
        self.rewrite_state(time);
        self.lock_unlocked(time);

        // A port that has rested matters only to those who wait.
        let rested = self.pool.next_rested().filter(|_| !self.waiting.is_empty());
        // For those who look at less than a whole port, ports do not rest.
        let is_partial = |waiter: &Waiter| waiter.wish.is_partial;
        let retry = self
            .waiting
            .iter()
            .any(is_partial)
            .then(|| time + FIRST_REST);
        let polling = self.owners.must_be_polled().then(|| time + POLL_INTERVAL);
        [
            self.pool.next_expiry(),
            rested,
            retry,
            self.state_retry,
            self.lock_retry,
            polling,
        ]
        .into_iter()
        .flatten()
        .min()
        // Never zero: time is given in whole steps, and may just not have come.
        .map(|at| at.saturating_sub(now()).max(Duration::from_millis(1)))
    }

    fn after_end(&mut self, ended: Vec<(u16, Lease<Lock>)>) {
        let owners: BTreeSet<OwnerId> = ended.iter().map(|(_, lease)| lease.owner).collect();
        self.save_end(ended.iter().map(|(port, _)| *port));
        drop(ended);
        for owner in owners {
            self.forget_if_idle(owner);
        }
        self.serve_waiting();
    }

    fn forget_if_idle(&mut self, owner: OwnerId) {
        if !self.pool.has_leases(owner) {
            self.owners.forget(owner);
        }
    }

    pub(crate) fn numbers(&self) -> Numbers {
        Numbers {
            pool: self.pool.ports().len(),
            free: self.pool.free(),
            leased: self.pool.leases().len(),
            resting: self.pool.resting(),
            owners: self.pool.owners(),
            clients: self.clients,
            waiting: self.waiting.len(),
            granted: self.stats.granted,
            refused: self.stats.refused.clone(),
            released: self.stats.released,
            reclaimed: self.stats.reclaimed,
            expired: self.stats.expired,
            client_errors: self.stats.client_errors,
            uptime: self.started.elapsed().as_secs_f64(),
        }
    }

    /// Returns the leases of `first` and the ports above it, ascending.
    pub(crate) fn leases_from(&self, first: u16) -> impl Iterator<Item = ListedLease> {
        let time = now();
        let listed = move |(&port, lease): (&u16, &Lease<Lock>)| {
            let pid = self.owners.pid(lease.owner).map(Pid::get);
            ListedLease {
                port,
                pid,
                uid: lease.uid,
                command: pid.and_then(proc::command),
                age: seconds(time.saturating_sub(lease.since)),
                expires: lease.expires.map(|end| seconds(end.saturating_sub(time))),
                name: lease.name.as_deref().map(str::to_owned),
                tag: lease.tag.as_deref().map(str::to_owned),
            }
        };
        self.pool.leases().range(first..).map(listed)
    }

    /// Returns the descriptors of all locks, with their ports.
    pub(crate) fn locks(&self) -> impl Iterator<Item = (u16, std::os::fd::BorrowedFd<'_>)> {
        self.pool
            .leases()
            .iter()
            .filter_map(|(&port, lease)| Some((port, lease.kept.as_ref()?.descriptor()?)))
    }

    /// Tells whether the connection of `client` owns a lease.
    pub(crate) fn owns_leases(&self, client: &Client) -> bool {
        client
            .owner
            .is_some_and(|owner| self.pool.has_leases(owner))
    }

    pub(crate) fn connected(&mut self) {
        self.clients += 1;
    }

    pub(crate) fn disconnected(&mut self) {
        self.clients -= 1;
    }

    /// Leases nothing from now on, and sends everybody away who waits.
    pub(crate) fn stop(&mut self) {
        self.is_stopping = true;
        for waiter in std::mem::take(&mut self.waiting) {
            _ = waiter.answer.send(Err(stopping()));
        }
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.is_stopping
    }

    pub(crate) fn started_at(&self) -> SystemTime {
        self.started_at
    }

    /// Tells whether there is a state file that lacks something.
    pub(crate) fn state_is_behind(&self) -> bool {
        self.state.as_ref().is_some_and(StateFile::is_behind)
    }

    pub(crate) fn owners(&self) -> &Owners {
        &self.owners
    }
}
