//! Histories: the real library, commands, keepers, and server, in any order, against books that say
//! who has which port.
//!
//! A history is a list of operations, each done to its end before the next; those that make no sense
//! when their turn comes are passed over, so that every part of a history is one too, and a failure
//! shrinks to a short one. After each operation, and at the end, all that the books say must be true:
//!
//! - no port is leased that somebody has, or that is in use;
//! - each lease is locked, and each port that is nobody's is not;
//! - the server's list is the books' list;
//! - who is refused a port could not have one;
//! - an owner can bind its port, and when it exits, whoever leased its ports, they can be leased again;
//! - at the end, all of them.
//!
//! `PROPTEST_CASES` says how many histories there are in each test, `PORTPICKER_SEED` which ones.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io::{Read, Write};
use std::time::{Duration, Instant};

use portpicker::process::Pid;
use portpicker::{Attempts, Error, Kind, Lease, Picker, PortSet, Server, ServerAddress, client};
use portpicker_testing::{Binding, Local, Options, OwnProcess, Worker, skip};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestRunner};
use rustix::process::Signal;
use socket2::Socket;

use super::{Place, Running, connect};
use crate::support::{self, portpicker, run};

/// Longer than an exit may go unseen.
const PATIENCE: Duration = Duration::from_secs(10);

/// How many processes own ports.
const OWNERS: usize = 3;

/// After which number the kernel looks for the next process's.
const LAST_PID: &str = "/proc/sys/kernel/ns_last_pid";

/// Whether exits are polled, by the number: see the Makefile's fallbacks.
const POLLS: bool = cfg!(portpicker_force = "poll");

/// Which ports there are.
#[derive(Clone, Copy, Debug)]
struct Layout {
    /// What the library and the command choose from.
    candidates: &'static str,
    pool: &'static str,
    /// Whether the server is killed.
    has_kills: bool,
}

#[derive(Clone, Copy, Debug)]
enum Operation {
    /// An owner picks by the library. All but the first one ask the server before.
    Pick(usize),
    /// The test's own process does.
    PickHere,
    DropHere(usize),
    /// The command picks for an owner, without the server, and leaves a keeper.
    Command(usize, usize),
    /// A client asks for an owner, by the original protocol.
    Ask(usize),
    /// And for several ports at once, by the extended one.
    Lease(usize, usize),
    /// A client asks, and the server is killed before it may have answered.
    AskAndKill(usize),
    /// An owner returns a port that it has picked.
    Return(usize, usize),
    /// A client releases a port for its owner.
    Release(usize),
    Bind(usize, usize),
    Unbind(usize),
    /// An owner is killed, and replaced by another one: of the same number?
    Exit(usize, bool),
    /// A stranger binds a port, or closes it.
    Stranger(usize),
    Kill,
    Start,
}

fn operation() -> impl Strategy<Value = Operation> {
    let owner = || 0..OWNERS;
    let some = || 0..8_usize;
    prop_oneof![
        4 => owner().prop_map(Operation::Pick),
        1 => Just(Operation::PickHere),
        1 => some().prop_map(Operation::DropHere),
        2 => (owner(), 1..3_usize).prop_map(|(owner, count)| Operation::Command(owner, count)),
        3 => owner().prop_map(Operation::Ask),
        2 => (owner(), 1..4_usize).prop_map(|(owner, count)| Operation::Lease(owner, count)),
        2 => owner().prop_map(Operation::AskAndKill),
        3 => (owner(), some()).prop_map(|(owner, which)| Operation::Return(owner, which)),
        2 => some().prop_map(Operation::Release),
        3 => (owner(), some()).prop_map(|(owner, which)| Operation::Bind(owner, which)),
        1 => owner().prop_map(Operation::Unbind),
        3 => (owner(), any::<bool>()).prop_map(|(owner, same)| Operation::Exit(owner, same)),
        2 => (0..10_usize).prop_map(Operation::Stranger),
        2 => Just(Operation::Kill),
        4 => Just(Operation::Start),
    ]
}

/// Who has a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Here,
    Owner(usize),
}

/// How a lease was made, and so what keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Library,
    Keeper,
    /// By the server, for an owner that asked it.
    Picked,
    /// The same, returned: the owner's next pick may have it again, and nobody else.
    Offered,
    /// By the server, for a client.
    Asked,
}

impl Way {
    fn is_by_server(self) -> bool {
        matches!(self, Self::Picked | Self::Offered | Self::Asked)
    }
}

struct World {
    layout: Layout,
    candidates: PortSet,
    pool: PortSet,
    place: Place,
    address: ServerAddress,
    server: Option<Running>,
    owners: Vec<Worker>,
    here: Vec<Lease>,
    strangers: HashMap<u16, Socket>,
    /// The books.
    leases: BTreeMap<u16, (Who, Way)>,
    /// Which owner has bound which ports.
    bound: BTreeMap<u16, usize>,
    /// Owners for whom a port may have been leased without anybody having heard of it.
    unheard: BTreeSet<usize>,
    /// Ports that rest in the server's pool, perhaps.
    may_rest: BTreeSet<u16>,
    /// What was done, and came of it.
    story: String,
}

impl Drop for World {
    #[expect(
        clippy::print_stdout,
        reason = "the ports are not in the list of operations"
    )]
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("what has happened:\n{}", self.story);
        }
    }
}

impl World {
    fn new(layout: Layout) -> Self {
        let place = Place::new();
        let mut world = Self {
            layout,
            candidates: layout.candidates.parse().unwrap(),
            pool: layout.pool.parse().unwrap(),
            address: place.name().parse().unwrap(),
            place,
            server: None,
            owners: Vec::new(),
            here: Vec::new(),
            strangers: HashMap::new(),
            leases: BTreeMap::new(),
            bound: BTreeMap::new(),
            unheard: BTreeSet::new(),
            may_rest: BTreeSet::new(),
            story: String::new(),
        };
        world.start();
        world.owners = (0..OWNERS).map(|owner| world.spawn(owner)).collect();
        world
    }

    fn spawn(&self, owner: usize) -> Worker {
        let variables = [
            ("PORTPICKER_PORTS", self.layout.candidates),
            ("PORTSERVER_ADDRESS", self.place.name()),
        ];
        let count = if owner == 0 { 1 } else { 2 };
        Worker::spawn_with(&variables[..count])
    }

    /// Starts an owner with the number `pid`, which is free, if numbers can be chosen here.
    fn spawn_as(&self, owner: usize, pid: u32) -> Worker {
        let choose = || fs::write(LAST_PID, (pid - 1).to_string());
        let end = Instant::now() + PATIENCE;
        while choose().is_ok() && Instant::now() < end {
            let worker = self.spawn(owner);
            if worker.pid() == pid {
                return worker;
            }
        }
        self.spawn(owner)
    }

    fn do_one(&mut self, operation: Operation) {
        self.story += &format!("{operation:?}\n");
        match operation {
            Operation::Kill | Operation::AskAndKill(_) if !self.layout.has_kills => {}
            Operation::Pick(owner) => self.pick(owner),
            Operation::PickHere => match self.library().lease() {
                Ok(lease) => {
                    self.granted(lease.port(), Who::Here, Way::Library);
                    self.here.push(lease);
                }
                Err(err) => self.refused_by_library(1, &format!("{err:?}")),
            },
            Operation::DropHere(which) => {
                if !self.here.is_empty() {
                    let lease = self.here.remove(which % self.here.len());
                    self.leases.remove(&lease.port());
                }
            }
            Operation::Command(owner, count) => self.command(owner, count),
            Operation::Ask(owner) => self.ask(owner, None),
            Operation::Lease(owner, count) => self.ask(owner, Some(count)),
            Operation::AskAndKill(owner) => self.ask_and_kill(owner),
            Operation::Return(owner, which) => {
                let picked = [Way::Library, Way::Picked];
                let Some(port) = self.choose(owner, which, &picked) else {
                    return;
                };
                assert!(self.owners[owner].return_port(port), "{port} was picked");
                match self.leases[&port] {
                    (who, Way::Picked) => _ = self.leases.insert(port, (who, Way::Offered)),
                    _ => _ = self.leases.remove(&port),
                }
            }
            Operation::Release(which) => {
                let owner = which % OWNERS;
                if let Some(port) = self.choose(owner, which, &[Way::Asked])
                    && self.server.is_some()
                {
                    client::release(&self.address, &[port], PATIENCE).unwrap();
                    self.leases.remove(&port);
                }
            }
            Operation::Bind(owner, which) => {
                let any = [Way::Library, Way::Keeper, Way::Picked, Way::Asked];
                let Some(port) = self.choose(owner, which, &any) else {
                    return;
                };
                let is_free = !self.is_bound(port);
                let result = self.owners[owner].bind(port, binding());
                assert_eq!(result.is_ok(), is_free, "{port}: {result:?}");
                if is_free {
                    self.bound.insert(port, owner);
                }
            }
            Operation::Unbind(owner) => {
                self.owners[owner].unbind();
                self.bound.retain(|_, by| *by != owner);
            }
            Operation::Exit(owner, with_same_number) => {
                let with_same_number = with_same_number && !POLLS;
                let pid = self.owners[owner].pid();
                let replace = |world: &mut Self| match with_same_number {
                    true => world.spawn_as(owner, pid),
                    false => world.spawn(owner),
                };
                self.exit(owner, replace);
            }
            Operation::Stranger(which) => {
                let ports: Vec<u16> = self.candidates.union(&self.pool).iter().collect();
                let port = ports[which % ports.len()];
                if self.strangers.remove(&port).is_none() {
                    let is_free = !self.is_bound(port);
                    let result = binding().bind(port);
                    assert_eq!(result.is_ok(), is_free, "{port}: {result:?}");
                    self.strangers
                        .extend(result.ok().map(|socket| (port, socket)));
                }
            }
            Operation::Kill => self.kill(),
            Operation::Start => {
                if self.server.is_none() {
                    self.start();
                }
            }
        }
    }

    fn library(&self) -> Picker {
        let picker = Picker::new().server(Server::None);
        picker.ports(self.candidates.clone())
    }

    fn pick(&mut self, owner: usize) {
        self.about_to_ask();
        match self.owners[owner].pick() {
            Ok(port) if self.leases.get(&port) == Some(&(Who::Owner(owner), Way::Offered)) => {
                assert!(!self.is_bound(port), "{port} is in use");
                self.leases.insert(port, (Who::Owner(owner), Way::Picked));
            }
            Ok(port) => {
                let way = match self.listed().contains_key(&port) {
                    true => Way::Picked,
                    false => Way::Library,
                };
                self.granted(port, Who::Owner(owner), way);
            }
            Err(err) => self.refused_by_library(1, &err),
        }
    }

    fn command(&mut self, owner: usize, count: usize) {
        let (pid, text) = (self.owners[owner].pid().to_string(), count.to_string());
        let ports = self.layout.candidates;
        let options = [
            "--no-server",
            "--ports",
            ports,
            "-n",
            &text,
            "--owner",
            &pid,
        ];
        let ended = run(&mut portpicker(&[&["pick"], &options[..]].concat()));
        if ended.code == Some(0) {
            let ports: Vec<u16> = ended
                .stdout
                .lines()
                .map(|line| line.parse().unwrap())
                .collect();
            assert_eq!(ports.len(), count);
            for port in ports {
                self.granted(port, Who::Owner(owner), Way::Keeper);
            }
        } else {
            self.refused_by_library(count, &ended.stderr);
        }
    }

    /// Asks for one port by the original protocol, or for so many by the extended one.
    fn ask(&mut self, owner: usize, count: Option<usize>) {
        self.about_to_ask();
        let pid = Pid::new(self.owners[owner].pid()).unwrap();
        let result = match count {
            None => portpicker::request_port(&self.address, pid, PATIENCE).map(|port| vec![port]),
            Some(count) => {
                let picker = Picker::new().server(Server::At(self.address.clone()));
                // The tag asks for the extended protocol.
                let leases = picker.owner(pid).tag("a history").leases(count);
                // They go on when these are dropped, since they are another's.
                leases.map(|leases| leases.iter().map(Lease::port).collect())
            }
        };
        match result {
            Ok(ports) => {
                assert_eq!(ports.len(), count.unwrap_or(1));
                for port in ports {
                    self.granted(port, Who::Owner(owner), Way::Asked);
                }
            }
            Err(Error::Refused { .. }) => {
                let is_free =
                    |port: &u16| !self.leases.contains_key(port) && !self.may_rest.contains(port);
                let free: Vec<u16> = self.pool.iter().filter(is_free).collect();
                assert!(
                    free.len() < count.unwrap_or(1),
                    "refused, and {free:?} are free"
                );
            }
            Err(err) => assert!(self.server.is_none(), "{err:?}"),
        }
    }

    fn ask_and_kill(&mut self, owner: usize) {
        self.about_to_ask();
        if self.server.is_none() {
            return;
        }
        let mut stream = connect(self.place.name()).unwrap();
        let request = format!("{}\n", self.owners[owner].pid());
        stream.write_all(request.as_bytes()).unwrap();
        self.kill();
        let mut answer = String::new();
        // A reset is an end too.
        _ = stream.read_to_string(&mut answer);
        match answer.strip_suffix('\n') {
            Some(port) => self.granted(port.parse().unwrap(), Who::Owner(owner), Way::Asked),
            None => _ = self.unheard.insert(owner),
        }
    }

    fn kill(&mut self) {
        if let Some(server) = self.server.take() {
            server.end(Signal::KILL);
        }
    }

    fn start(&mut self) {
        self.may_rest.clear();
        self.server = Some(self.place.start(&["--pool", self.layout.pool]));
        // What nobody has heard of goes on as well, or was never made.
        for (port, pid) in self.listed() {
            let owner = self.owners.iter().position(|owner| owner.pid() == pid);
            if let Some(owner) = owner.filter(|owner| self.unheard.contains(owner))
                && !self.leases.contains_key(&port)
            {
                self.leases.insert(port, (Who::Owner(owner), Way::Asked));
            }
        }
        self.unheard.clear();
    }

    fn exit(&mut self, owner: usize, replace: impl FnOnce(&mut Self) -> Worker) {
        // Killed and reaped by being dropped, before its successor is started.
        drop(self.owners.remove(owner));
        let successor = replace(self);
        self.owners.insert(owner, successor);
        self.unheard.remove(&owner);
        self.bound.retain(|_, by| *by != owner);
        let is_its = |(who, _): &(Who, Way)| *who == Who::Owner(owner);
        let ended: Vec<u16> = self
            .leases
            .iter()
            .filter(|(_, lease)| is_its(lease))
            .map(|(&port, _)| port)
            .collect();
        for port in ended {
            self.leases.remove(&port);
            assert!(
                wait_until(|| !is_locked(port)),
                "{port} is still leased, and its owner gone"
            );
        }
    }

    /// Returns one of the ports of `owner` that were leased in one of these ways.
    fn choose(&self, owner: usize, which: usize, ways: &[Way]) -> Option<u16> {
        let is_one = |(who, way): &(Who, Way)| *who == Who::Owner(owner) && ways.contains(way);
        let mut ports = self.leases.iter().filter(|(_, lease)| is_one(lease));
        let count = ports.clone().count();
        ports.nth(which % count.max(1)).map(|(&port, _)| port)
    }

    fn is_bound(&self, port: u16) -> bool {
        self.bound.contains_key(&port) || self.strangers.contains_key(&port)
    }

    /// A port that the server finds in use now, or leased without it, rests for a while.
    fn about_to_ask(&mut self) {
        let rests = |port: &u16| {
            let is_others = |(_, way): &(Who, Way)| !way.is_by_server();
            self.is_bound(*port) || self.leases.get(port).is_some_and(is_others)
        };
        let resting: Vec<u16> = self.pool.iter().filter(rests).collect();
        self.may_rest.extend(resting);
    }

    fn granted(&mut self, port: u16, who: Who, way: Way) {
        self.story += &format!("  {port}: {who:?}, {way:?}\n");
        let ports = if way.is_by_server() {
            &self.pool
        } else {
            &self.candidates
        };
        assert!(ports.contains(port), "{port} is not among {ports}");
        assert!(!self.is_bound(port), "{port} is leased, and in use");
        let before = self.leases.insert(port, (who, way));
        assert_eq!(
            before, None,
            "{port} is leased to {who:?} ({way:?}) as well"
        );
    }

    fn refused_by_library(&self, count: usize, reason: &str) {
        let is_free = |port: &u16| !self.leases.contains_key(port) && !self.is_bound(*port);
        let free: Vec<u16> = self.candidates.iter().filter(is_free).collect();
        assert!(
            free.len() < count,
            "refused, and {free:?} are free: {reason}"
        );
    }

    /// Returns the ports of the server's list, and their owners; none if it is away.
    fn listed(&self) -> BTreeMap<u16, u32> {
        if self.server.is_none() {
            return BTreeMap::new();
        }
        let leases = client::list(&self.address, PATIENCE).unwrap().into_iter();
        leases
            .map(|lease| (lease.port, lease.owner.unwrap().get()))
            .collect()
    }

    /// Compares the world with the books.
    fn compare(&mut self) {
        let books: BTreeMap<u16, u32> = self
            .leases
            .iter()
            .filter(|(_, (_, way))| way.is_by_server() && self.server.is_some())
            .map(|(&port, (who, _))| match *who {
                Who::Owner(owner) => (port, self.owners[owner].pid()),
                Who::Here => unreachable!("process 1 owns nothing of the server's"),
            })
            .collect();
        let agrees = wait_until(|| self.listed() == books);
        assert!(
            agrees,
            "the books: {books:?}, the server: {:?}",
            self.listed()
        );
        for port in self.candidates.union(&self.pool).iter() {
            let lease = self.leases.get(&port).copied();
            let is_unlocked = |(_, way): (Who, Way)| way.is_by_server() && self.server.is_none();
            let has_lock = lease.is_some_and(|lease| !is_unlocked(lease));
            assert_eq!(is_locked(port), has_lock, "the lock of {port}: {lease:?}");
            for (owner, worker) in self.owners.iter_mut().enumerate() {
                if has_lock && lease.is_some_and(|(who, _)| who != Who::Owner(owner)) {
                    let is_free = worker.is_port_free(port);
                    assert_eq!(is_free, Ok(false), "{port} asked by {owner}: {lease:?}");
                }
            }
        }
    }

    /// Ends all owners. Every port can be leased again then, by everybody.
    fn finish(mut self) {
        if self.server.is_none() {
            self.start();
            self.compare();
        }
        self.strangers.clear();
        self.here.clear();
        self.leases.retain(|_, (who, _)| *who != Who::Here);
        for owner in 0..OWNERS {
            self.exit(owner, |world| world.spawn(owner));
        }
        self.compare();
        let owner = support::Owner::start();
        let all = Picker::new()
            .server(Server::At(self.address.clone()))
            .owner(owner.pid().parse().unwrap())
            // For those who look at one transport, ports do not rest.
            .only(Kind::Tcp)
            .wait(PATIENCE)
            .leases(self.pool.len())
            .expect("the whole pool can be leased");
        assert_eq!(all.len(), self.pool.len());
        owner.kill();
        let all = self.library().wait(PATIENCE).leases(self.candidates.len());
        all.expect("all candidates can be leased");
    }
}

fn binding() -> Binding {
    Binding::listening(Local::DUAL, Options::None)
}

/// Tells whether somebody has the lock of `port`.
fn is_locked(port: u16) -> bool {
    Attempts::new().adopt(port).unwrap().is_none()
}

/// Waits until something is so that comes by itself. Returns whether it is.
fn wait_until(mut is_so: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + PATIENCE;
    loop {
        let is_over = Instant::now() > end;
        if is_so() || is_over {
            return !is_over;
        }
        std::thread::yield_now();
    }
}

fn number(name: &str) -> Option<u32> {
    Some(std::env::var(name).ok()?.parse().expect("it is a number"))
}

/// Goes through some histories, in a network and with process numbers of their own.
fn go_through(layout: Layout, seed: u32, cases: u32) {
    if let Err(err) = fs::read_to_string(LAST_PID).and_then(|last| fs::write(LAST_PID, last.trim()))
    {
        let what = "serve::histories, as far as numbers are used again";
        skip(what, &format!("{LAST_PID}: {err}"));
    }
    let config = Config {
        cases,
        failure_persistence: None,
        max_shrink_iters: 50,
        max_shrink_time: 20_000,
        rng_seed: RngSeed::Fixed(seed.into()),
        ..Config::default()
    };
    let histories = vec(operation(), 1..50);
    let result = TestRunner::new(config).run(&histories, |history| {
        let mut world = World::new(layout);
        for operation in history {
            world.do_one(operation);
            world.compare();
        }
        world.finish();
        Ok(())
    });
    if let Err(failure) = result {
        panic!("PORTPICKER_SEED={seed}: {failure}");
    }
}

/// Calls `batch` with seeds and numbers of histories, until there were enough: a process of a test's
/// own has a minute, and histories no end.
fn in_batches(batch: impl Fn(OwnProcess, u32, u32)) {
    const BATCH: &str = "PORTPICKER_BATCH";
    const EACH: u32 = 10;
    let cases = number("PROPTEST_CASES").unwrap_or(40);
    let first = number("PORTPICKER_SEED").unwrap_or_else(std::process::id);
    // In its own process, a test is told which batch to run.
    let seeds = match number(BATCH) {
        Some(seed) => vec![seed],
        None => (0..cases.div_ceil(EACH))
            .map(|number| first.wrapping_add(number))
            .collect(),
    };
    for seed in seeds {
        let process = OwnProcess::new().env(BATCH, seed.to_string());
        batch(process.pid_namespace(), seed, EACH.min(cases));
    }
}

#[test]
fn all_ways_to_pick_from_the_same_ports_agree() {
    in_batches(|process, seed, cases| {
        process.run(|| {
            let layout = Layout {
                candidates: "20000-20005",
                pool: "20002-20007",
                has_kills: false,
            };
            go_through(layout, seed, cases);
        });
    });
}

#[test]
fn all_ways_to_pick_agree_though_the_server_is_killed() {
    in_batches(|process, seed, cases| {
        process.run(|| {
            let layout = Layout {
                candidates: "20000-20003",
                pool: "20004-20009",
                has_kills: true,
            };
            go_through(layout, seed, cases);
        });
    });
}
