//! What the processes of a soak do, each by its own way to pick.
//!
//! An actor says on its standard output what it does (`event`), and ends early when its standard input
//! ends: the soak is over then.

use std::collections::VecDeque;
use std::env;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddress, UnixStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use portpicker::process::{Pid, wait_readable};
use portpicker::{Error, Hold, Lease, Picker, PortSet, Refusal};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::time::{ClockId, clock_gettime};
use socket2::{Domain, Protocol, Socket, Type};

use crate::place::{CANDIDATES, Server, has_strangers, range};
use crate::random::Random;

/// The environment variable with the number of an actor.
pub(crate) const ID: &str = "SOAK";

/// How long an actor keeps a port, at most.
const LONGEST: u64 = 800;

/// The families in which is bound. Without IPv6 the library does not see what is bound there.
const FAMILIES: &[Domain] = if cfg!(portpicker_force = "ipv4") {
    &[Domain::IPV4]
} else {
    &[Domain::IPV4, Domain::IPV6]
};

const TRANSPORTS: [Type; 2] = [Type::STREAM, Type::DGRAM];

/// Ways to pick that are this program's own. Each is one process that picks a few times.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
#[expect(missing_docs, reason = "the functions say it")]
pub enum Kind {
    Library,
    Server,
    Environment,
    Original,
    Connection,
    Timed,
    FewDescriptors,
    Served,
    Squatter,
    Stranger,
    Crowd,
    Churn,
    Idle,
}

/// Does what an actor of this kind does.
pub fn act(kind: Kind, seed: u64, server: Server) {
    let mut me = Me {
        id: env::var(ID).unwrap_or_else(|_| "0".to_owned()),
        random: Random::new(seed),
        server,
    };
    let rounds = 1 + me.random.below(5);
    match kind {
        Kind::Library => me.rounds(rounds, Me::library),
        Kind::Server => me.rounds(rounds, Me::server),
        Kind::Environment => me.rounds(rounds, Me::environment),
        Kind::Original => me.rounds(rounds, Me::original),
        Kind::Connection => me.rounds(rounds, Me::connection),
        Kind::Timed => me.rounds(rounds, Me::timed),
        Kind::FewDescriptors => me.few_descriptors(),
        Kind::Served => me.served(),
        Kind::Squatter => me.squatter(),
        Kind::Stranger => me.stranger(),
        Kind::Crowd => me.crowd(),
        Kind::Churn => me.churn(),
        // It is killed when it has been seen that nobody takes it for its predecessor.
        Kind::Idle => loop {
            std::thread::park();
        },
    }
}

/// Binds ports that a shell has leased, keeps them for a while, and returns.
pub fn bind(ports: &[u16], while_: Duration) {
    let me = Me {
        id: env::var(ID).unwrap_or_else(|_| "0".to_owned()),
        random: Random::new(0),
        server: Server::Shaken,
    };
    let sockets: Vec<_> = ports.iter().map(|&port| me.bind(port)).collect();
    me.keep(while_);
    drop(sockets);
}

struct Me {
    id: String,
    random: Random,
    server: Server,
}

impl Me {
    fn say(&self, what: &str) {
        // One write: a line of one actor is never inside of another's.
        let line = format!("{} {what}\n", self.id);
        // If nobody listens, the soak is over.
        _ = io::stdout().write_all(line.as_bytes());
    }

    /// Waits. Returns whether the soak is over.
    fn keep(&self, while_: Duration) -> bool {
        wait_readable(rustix::stdio::stdin(), Some(Instant::now() + while_)).unwrap_or(true)
    }

    fn keep_a_while(&mut self) -> bool {
        let while_ = self.random.millis(0, LONGEST);
        self.keep(while_)
    }

    fn rounds(&mut self, count: usize, round: impl Fn(&mut Self)) {
        for _ in 0..count {
            round(self);
            if self.keep(Duration::ZERO) {
                return;
            }
        }
    }

    /// Picks, and says how it went.
    fn pick<T>(
        &self,
        source: &str,
        pick: impl FnOnce() -> portpicker::Result<T>,
        ports: impl FnOnce(&T) -> Vec<u16>,
    ) -> Option<T> {
        self.say(&format!("picking {}", now().as_micros()));
        match pick() {
            Ok(picked) => {
                self.leased(source, &ports(&picked));
                Some(picked)
            }
            Err(err) => {
                self.failed(&err);
                None
            }
        }
    }

    fn leased(&self, source: &str, ports: &[u16]) {
        let time = now().as_micros();
        self.say(&format!("leased {source} {time} {}", words(ports)));
    }

    fn failed(&self, err: &Error) {
        let reason = match err {
            Error::Exhausted(_) => "exhausted",
            Error::Refused { refusal, .. } => match refusal {
                None => "refused",
                Some(Refusal::Exhausted) => "exhausted",
                Some(Refusal::Stopping) => "the server was stopping",
                Some(Refusal::Failed) => "the system failed the server",
                Some(_) => return self.say(&format!("trouble {err}: {err:?}")),
            },
            Error::Server { source, .. } => {
                return self.say(&format!("none no server: {:?}", source.kind()));
            }
            // A server that is killed hangs up as one does that knows only the original protocol.
            Error::ServerCannot { .. } => "no server: it hung up",
            _ => return self.say(&format!("trouble {err}: {err:?}")),
        };
        self.say(&format!("none {reason}"));
    }

    fn returning(&self, ports: &[u16]) {
        self.say(&format!("returned {}", words(ports)));
    }

    /// Binds a leased port by sockets without options, and says whether that succeeds.
    fn bind(&self, port: u16) -> Vec<Socket> {
        match bind_all(port) {
            Ok(sockets) => {
                self.say(&format!("bound {port}"));
                sockets
            }
            Err(err) if err.kind() == io::ErrorKind::AddrInUse => {
                self.say(&format!("unbindable {port} {err}"));
                Vec::new()
            }
            Err(err) => {
                self.say(&format!("trouble cannot bind port {port}: {err}"));
                Vec::new()
            }
        }
    }

    /// Uses what was leased for a while. Then gives it back, or keeps it until the process ends.
    fn use_leases(&mut self, leases: Vec<Lease>) {
        let ports: Vec<u16> = leases.iter().map(Lease::port).collect();
        let sockets: Vec<_> = ports.iter().map(|&port| self.bind(port)).collect();
        self.keep_a_while();
        drop(sockets);
        if self.random.below(3) == 0 {
            // Not dropped at the end: that would be some time before the end of the process.
            for lease in leases {
                lease.into_port();
            }
        } else {
            self.returning(&ports);
            drop(leases);
        }
    }

    /// As `pick_unused_port` and `return_port` are used.
    fn use_own(&mut self, port: u16) {
        let sockets = self.bind(port);
        self.keep_a_while();
        drop(sockets);
        if self.random.below(3) > 0 {
            self.returning(&[port]);
            portpicker::return_port(port);
        }
    }

    /// Without a server, by every function there is.
    fn library(&mut self) {
        let picker = Picker::new().server(portpicker::Server::None);
        let count = 1 + self.random.below(4);
        let one = |port: &u16| vec![*port];
        match self.random.below(5) {
            0 => {
                if let Some(port) = self.pick("lock", portpicker::pick_unused_port, one) {
                    self.use_own(port);
                }
            }
            1 => {
                if let Some(leases) = self.pick("lock", || picker.leases(count), |it| numbers(it)) {
                    self.use_leases(leases);
                }
            }
            2 => {
                let block = self.pick("lock", || picker.lease_block(count), |it| numbers(it));
                if let Some(leases) = block {
                    self.use_leases(leases);
                }
            }
            3 => {
                let ports: PortSet = range(CANDIDATES).parse().expect("it is a range");
                let picker = picker.ports(ports).wait(Duration::from_secs(1));
                if let Some(leases) = self.pick("lock", || picker.leases(1), |it| numbers(it)) {
                    self.use_leases(leases);
                }
            }
            _ => {
                let ports = |holds: &Vec<Hold>| holds.iter().map(Hold::port).collect();
                if let Some(holds) = self.pick("hold", || picker.holds(count), ports) {
                    self.use_holds(holds);
                }
            }
        }
    }

    /// What is held cannot be bound by anybody; what was held can be.
    fn use_holds(&mut self, holds: Vec<Hold>) {
        for hold in &holds {
            if bind_any(hold.port()) {
                self.say(&format!("trouble port {} was held, and bound", hold.port()));
            }
        }
        self.keep_a_while();
        let ports: Vec<u16> = holds.iter().map(Hold::port).collect();
        self.say(&format!("unheld {}", words(&ports)));
        self.use_leases(holds.into_iter().map(Hold::into_lease).collect());
    }

    /// From a server and nobody else.
    fn server(&mut self) {
        let mut picker = Picker::new().server(portpicker::Server::At(self.server.address()));
        let count = 1 + self.random.below(4);
        if self.random.below(2) == 0 {
            picker = picker.wait(Duration::from_secs(1)).tag("a soak");
        }
        let source = format!("server:{}", self.server.name());
        let is_block = self.random.below(4) == 0;
        let lease = || match is_block {
            true => picker.lease_block(count),
            false => picker.leases(count),
        };
        if let Some(leases) = self.pick(&source, lease, |it| numbers(it)) {
            self.use_leases(leases);
        }
    }

    /// As a program does that knows nothing of servers, and has one in its environment.
    fn environment(&mut self) {
        let source = format!("either:{}", self.server.name());
        let picked = self.pick(&source, portpicker::pick_unused_port, |port| vec![*port]);
        if let Some(port) = picked {
            self.use_own(port);
        }
    }

    /// As the clients of Google's port server do. The lease lasts as long as this process.
    fn original(&mut self) {
        let source = format!("server:{}", self.server.name());
        let address = self.server.address();
        let ask = || portpicker::request_port(&address, Pid::current(), Duration::from_secs(10));
        if let Some(port) = self.pick(&source, ask, |port| vec![*port]) {
            let sockets = self.bind(port);
            self.keep_a_while();
            drop(sockets);
        }
    }

    /// A lease that ends with its connection. Not bound: if its server is killed it ends at once.
    fn connection(&mut self) {
        let source = format!("connection:{}", self.server.name());
        if let Some((ports, stream)) = self.ask(&source, r#""owner":"connection","count":2"#) {
            self.keep_a_while();
            self.returning(&ports);
            drop(stream);
        }
    }

    /// A lease that ends by itself. Not bound: who is stopped for a while may bind too late.
    fn timed(&mut self) {
        let millis = 100 + self.random.below(1000);
        let source = format!("timed:{}:{}", self.server.name(), millis * 1000);
        self.ask(&source, &format!(r#""ttl":{}"#, millis as f64 / 1000.0));
        self.keep(Duration::from_millis(millis as u64 / 2));
    }

    /// Asks for a lease with options that the library has no words for.
    fn ask(&self, source: &str, options: &str) -> Option<(Vec<u16>, UnixStream)> {
        self.say(&format!("picking {}", now().as_micros()));
        let answer = self.try_ask(options);
        let (answer, stream) = match answer {
            Ok(answer) => answer,
            Err(err) => {
                self.say(&format!("none no server: {:?}", err.kind()));
                return None;
            }
        };
        let answer: serde_json::Value = serde_json::from_str(&answer).unwrap_or_default();
        if let Some(leases) = answer["leases"].as_array() {
            let port = |lease: &serde_json::Value| lease["port"].as_u64().unwrap_or(0) as u16;
            let ports: Vec<u16> = leases.iter().map(port).collect();
            self.leased(source, &ports);
            return Some((ports, stream));
        }
        match answer["error"].as_str() {
            Some("exhausted") => self.say("none exhausted"),
            Some("failed") => self.say("none the system failed the server"),
            Some("stopping") => self.say("none the server was stopping"),
            _ => self.say(&format!("trouble the answer is {answer}")),
        }
        None
    }

    fn try_ask(&self, options: &str) -> io::Result<(String, UnixStream)> {
        let mut stream = self.connect()?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        stream.write_all(format!("{{\"v\":1,\"op\":\"lease\",{options}}}\n").as_bytes())?;
        let mut answer = String::new();
        BufReader::new(&stream).read_line(&mut answer)?;
        if answer.ends_with('\n') {
            Ok((answer, stream))
        } else {
            Err(io::ErrorKind::UnexpectedEof.into())
        }
    }

    fn connect(&self) -> io::Result<UnixStream> {
        let address = self.server.address().to_string();
        let name = address.trim_start_matches('@');
        UnixStream::connect_addr(&UnixAddress::from_abstract_name(name)?)
    }

    /// Picks until there are no descriptors left. That is an error, and nothing else.
    fn few_descriptors(&mut self) {
        let maximum = getrlimit(Resource::Nofile).maximum;
        let limit = Rlimit {
            current: Some(12 + self.random.below(12) as u64),
            maximum,
        };
        setrlimit(Resource::Nofile, limit).expect("a limit can be lowered");
        for _ in 0..40 {
            self.say(&format!("picking {}", now().as_micros()));
            match portpicker::pick_unused_port() {
                Ok(port) => self.leased("lock", &[port]),
                Err(Error::Exhausted(_)) => self.say("none exhausted"),
                Err(Error::Socket { .. } | Error::Lock { .. } | Error::HostPorts { .. }) => {
                    self.say("none no descriptors left");
                    break;
                }
                Err(err) => self.failed(&err),
            }
        }
        self.keep_a_while();
    }

    /// The server that `portpicker run` starts: it binds its port and restarts, again and again.
    fn served(&mut self) {
        let ports: Vec<u16> = [env::var("PORT_1"), env::var("PORT_2")]
            .into_iter()
            .filter_map(|port| port.ok()?.parse().ok())
            .collect();
        self.leased("hold", &ports);
        for _ in 0..1 + self.random.below(4) {
            let sockets: Vec<_> = ports.iter().map(|&port| self.bind(port)).collect();
            let is_over = self.keep_a_while();
            drop(sockets);
            if is_over {
                break;
            }
        }
        // They end with this process, and before whoever waits for `portpicker run` sees that end.
        self.say(&format!("returned {}", words(&ports)));
    }

    /// A stranger who binds numbers unasked: of those that are for it.
    fn squatter(&mut self) {
        let ports: Vec<u16> = (CANDIDATES.0..=Server::Steady.pool().1)
            .filter(|&port| has_strangers(port))
            .collect();
        let mut bound = VecDeque::new();
        loop {
            let port = self.random.one_of(&ports);
            let domain = self.random.one_of(FAMILIES);
            let kind = self.random.one_of(&TRANSPORTS);
            let socket = bind_one(domain, kind, port);
            if let Ok(socket) = socket
                && !bound.iter().any(|(other, _)| *other == port)
            {
                self.say(&format!("squats {port}"));
                bound.push_back((port, socket));
            }
            let is_over = self.keep(Duration::from_millis(20));
            if bound.len() > 12 || is_over {
                let leaves = if is_over { bound.len() } else { 1 };
                for (port, socket) in bound.drain(..leaves) {
                    self.say(&format!("leaves {port}"));
                    drop(socket);
                }
            }
            if is_over {
                return;
            }
        }
    }

    /// A stranger who takes what the kernel gives: ports for servers and for connections.
    fn stranger(&mut self) {
        let mut open = VecDeque::new();
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
        let Ok(listener) = listener else { return };
        let address: SocketAddr = listener.local_addr().expect("it is bound");
        let mut count = 0_u64;
        loop {
            for _ in 0..20 {
                let domain = self.random.one_of(FAMILIES);
                let kind = self.random.one_of(&TRANSPORTS);
                if let Ok(socket) = bind_one(domain, kind, 0) {
                    open.push_back(socket);
                }
                if let Ok(client) = std::net::TcpStream::connect(address) {
                    let client = Socket::from(client);
                    // Reset when it is closed, so that none is left in TIME-WAIT.
                    _ = client.set_linger(Some(Duration::ZERO));
                    open.push_back(client);
                    if let Ok((peer, _)) = listener.accept() {
                        open.push_back(peer.into());
                    }
                }
                count += 2;
            }
            while open.len() > 200 {
                open.pop_front();
            }
            if self.keep(Duration::from_millis(5)) || count > 20_000 {
                self.say(&format!("did {count} binds and connections of strangers"));
                return;
            }
        }
    }

    /// Clients who connect and say nothing.
    fn crowd(&mut self) {
        let count = 100 + self.random.below(500);
        let streams: Vec<_> = (0..count).filter_map(|_| self.connect().ok()).collect();
        self.say(&format!("did {count} connections of silent clients"));
        self.keep_a_while();
        drop(streams);
    }

    /// Many processes that do nothing, so that numbers are used again.
    fn churn(&mut self) {
        for _ in 0..300 {
            let mut command = Command::new("true");
            let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
            match child {
                Ok(mut child) => _ = child.wait(),
                Err(err) => return self.say(&format!("none cannot start a process: {err}")),
            }
            if self.keep(Duration::ZERO) {
                return;
            }
        }
        self.say("did 300 processes that end at once");
    }
}

/// Returns the time since the host was started.
fn now() -> Duration {
    let time = clock_gettime(ClockId::Boottime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn numbers(leases: &[Lease]) -> Vec<u16> {
    leases.iter().map(Lease::port).collect()
}

fn words(ports: &[u16]) -> String {
    let words: Vec<_> = ports.iter().map(u16::to_string).collect();
    words.join(" ")
}

/// Binds `port` on both transports and both families, and listens: as servers do that set no options.
fn bind_all(port: u16) -> io::Result<Vec<Socket>> {
    ways()
        .map(|(domain, kind)| bind_one(domain, kind, port))
        .collect()
}

/// Tells whether somebody can bind `port` by any socket.
fn bind_any(port: u16) -> bool {
    ways().any(|(domain, kind)| bind_one(domain, kind, port).is_ok())
}

fn ways() -> impl Iterator<Item = (Domain, Type)> {
    let of_family = |&domain| TRANSPORTS.map(|kind| (domain, kind));
    FAMILIES.iter().flat_map(of_family)
}

fn bind_one(domain: Domain, kind: Type, port: u16) -> io::Result<Socket> {
    let protocol = if kind == Type::STREAM {
        Protocol::TCP
    } else {
        Protocol::UDP
    };
    let socket = Socket::new(domain, kind, Some(protocol))?;
    let address: SocketAddr = if domain == Domain::IPV6 {
        socket.set_only_v6(true)?;
        (Ipv6Addr::UNSPECIFIED, port).into()
    } else {
        (Ipv4Addr::UNSPECIFIED, port).into()
    };
    socket.bind(&address.into())?;
    if kind == Type::STREAM && port != 0 {
        socket.listen(16)?;
    }
    Ok(socket)
}
