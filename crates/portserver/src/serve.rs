//! The server's loop: it accepts, waits for exits and times, and stops when it is told to.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use portpicker::{Lease, PortSet};
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, Semaphore, SemaphorePermit};
use tokio::task::{LocalSet, spawn_local};
use tracing::{error, info, warn};

use crate::connection;
use crate::http;
use crate::listen::{Access, Address, Inherited, Listener, SocketFile, listen};
use crate::peer::Peer;
use crate::server::{Client, Server};
use crate::silent::Silent;
use crate::state::StateFile;

/// The most connections at one time, if there are descriptors for four times as many.
const MAX_CLIENTS: usize = 16_384;

/// The descriptors that the server needs for itself, about.
const OWN_DESCRIPTORS: usize = 48;

/// How long connections may go on when the server is told to stop.
const FAREWELL: Duration = Duration::from_secs(1);

/// How long to wait for something to end when a connection could not be accepted.
const ACCEPT_RETRY: Duration = Duration::from_secs(1);

/// How long accepting must have worked before it is logged again that it does not.
const ACCEPT_QUIET: Duration = Duration::from_secs(60);

/// The errors that say that descriptors have run out: of the process, and of the system.
const SHORTAGES: [Option<i32>; 2] = [
    Some(Errno::MFILE.raw_os_error()),
    Some(Errno::NFILE.raw_os_error()),
];

/// How the server is to run.
#[derive(Debug)]
#[non_exhaustive]
pub struct Options {
    /// The ports that it manages.
    pub ports: PortSet,
    /// Where it listens.
    pub addresses: Vec<Address>,
    /// Who may connect to the paths among the addresses.
    pub access: Access,
    /// Sockets that listen already: from systemd, for example.
    pub inherited: Vec<Inherited>,
    /// Locks that a former server has left.
    pub locks: HashMap<u16, Lease>,
    /// How many leases a user may have; any number if there is none.
    pub user_limit: Option<usize>,
    /// Where the leases are remembered; nowhere if there is none.
    pub state: Option<PathBuf>,
    /// Whether the server should rather not start than do without its state file.
    pub state_is_required: bool,
    /// Where metrics are served over HTTP, to everybody who can connect; nowhere if there is none.
    /// With port 0 the kernel chooses one, and the log tells which.
    pub http: Option<SocketAddr>,
    /// Who is told how the server does, if somebody is.
    pub supervisor: Option<Box<dyn Supervisor>>,
}

/// Somebody who is told how the server does: a service manager, for example.
pub trait Supervisor: fmt::Debug {
    /// Called once, when the server begins to stop.
    fn stopping(&mut self);

    /// Returns how often [`alive`](Self::alive) is to be called; never if that is `None`.
    fn interval(&self) -> Option<Duration>;

    /// Called now and then from the loop that serves the clients, so not if that is stuck.
    fn alive(&mut self);
}

impl Options {
    /// Returns options for a server of `ports` that listens nowhere yet.
    pub fn new(ports: PortSet) -> Self {
        Self {
            ports,
            addresses: Vec::new(),
            access: Access::default(),
            inherited: Vec::new(),
            locks: HashMap::new(),
            user_limit: None,
            state: None,
            state_is_required: true,
            http: None,
            supervisor: None,
        }
    }
}

/// What a server that ends leaves to the next one.
#[derive(Debug)]
pub struct Legacy {
    /// A copy of each lock, by port. The leases go on as long as somebody keeps these.
    pub locks: Vec<(u16, OwnedFd)>,
}

/// Why a server does not start, or ended.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// It cannot listen at an address.
    Listen {
        /// The address.
        address: Address,
        /// What the system reported.
        source: io::Error,
    },
    /// It cannot serve HTTP at an address.
    Http {
        /// The address.
        address: SocketAddr,
        /// What the system reported.
        source: io::Error,
    },
    /// It has nowhere to listen.
    NoAddress,
    /// The state file cannot be used.
    State {
        /// The file.
        path: PathBuf,
        /// What the system reported.
        source: io::Error,
    },
    /// The leases in the state file cannot be taken over. Without them, ports that are still in use
    /// would be granted.
    Adopt {
        /// The file.
        path: PathBuf,
        /// What the system reported.
        source: io::Error,
    },
    /// The system failed.
    System(io::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Listen { address, .. } => write!(f, "cannot listen at `{address}`"),
            Self::Http { address, .. } => write!(f, "cannot serve HTTP at `{address}`"),
            Self::NoAddress => f.write_str("there is no address to listen at"),
            Self::State { path, .. } => write!(f, "cannot use the state file `{}`", path.display()),
            Self::Adopt { path, .. } => write!(
                f,
                "cannot take over the leases in the state file `{}`",
                path.display()
            ),
            Self::System(_) => f.write_str("cannot start the server"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Listen { source, .. }
            | Self::Http { source, .. }
            | Self::State { source, .. }
            | Self::Adopt { source, .. }
            | Self::System(source) => Some(source),
            Self::NoAddress => None,
        }
    }
}

/// What the tasks of the server share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) server: RefCell<Server>,
    /// Something may be due earlier than it was.
    pub(crate) changed: Notify,
    /// The connections that have said nothing yet.
    pub(crate) silent: Silent,
    room: Semaphore,
    /// When accepting a connection failed last.
    accept_failed_at: Cell<Option<Instant>>,
    /// A connection has ended, and with it what it took of the system.
    ended: Notify,
}

impl Shared {
    /// Waits until there is room for one more connection.
    ///
    /// Thousands of clients that say nothing must not keep others out until their time is over.
    async fn make_room(&self) -> SemaphorePermit<'_> {
        if self.room.available_permits() == 0 {
            self.silent.close_oldest();
        }
        self.room.acquire().await.expect("it is never closed")
    }
}

/// Runs a server until SIGINT or SIGTERM.
///
/// `ready` is called once, when the server listens and has adopted what a former one has left.
///
/// # Errors
///
/// [`Error`] if it cannot start; nothing has been changed then. Once it serves, it goes on.
pub fn serve(options: Options, ready: impl FnOnce()) -> Result<Legacy, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::System)?;
    LocalSet::new().block_on(&runtime, run(options, ready))
}

async fn run(options: Options, ready: impl FnOnce()) -> Result<Legacy, Error> {
    // First, so that no signal is lost from here on.
    let signals = Signals::install().map_err(Error::System)?;
    let mut server = Server::new(options.ports, options.user_limit).map_err(Error::System)?;
    let mut listeners = Vec::new();
    for address in &options.addresses {
        let opened = listen(address, options.access).map_err(|source| Error::Listen {
            address: address.clone(),
            source,
        })?;
        listeners.extend(opened);
    }
    for inherited in options.inherited {
        match inherited.address() {
            Ok(address) => info!("listening at {address}, as it was handed over"),
            Err(err) => warn!("listening at a socket that was handed over: {err}"),
        }
        listeners.push(inherited.into());
    }
    if listeners.is_empty() {
        return Err(Error::NoAddress);
    }
    let http = match options.http {
        Some(address) => {
            let bound = TcpListener::bind(address);
            Some(bound.map_err(|source| Error::Http { address, source })?)
        }
        None => None,
    };
    if let Some(path) = options.state {
        let result = match StateFile::open(&path) {
            Ok((state, found)) => {
                for dropped in &found.dropped {
                    warn!("state file `{}`: dropped {dropped}", path.display());
                }
                server
                    .adopt(found.leases, options.locks)
                    .map_err(|source| Error::Adopt {
                        path: path.clone(),
                        source,
                    })?;
                server.remember_in(state)
            }
            Err(err) => Err(err),
        };
        match result {
            Ok(()) => {}
            Err(source) if options.state_is_required => return Err(Error::State { path, source }),
            Err(err) => warn!(
                "cannot use the state file `{}`: {err}; a server that is killed forgets its leases",
                path.display()
            ),
        }
    }
    let max_clients = max_clients(server.pool.ports().len(), listeners.len());
    let listening = listeners.len();
    info!("managing {} ports", server.pool.ports().len());

    let shared = Rc::new(Shared {
        server: RefCell::new(server),
        changed: Notify::new(),
        silent: Silent::default(),
        room: Semaphore::new(max_clients),
        accept_failed_at: Cell::new(None),
        ended: Notify::new(),
    });
    let supervisor = options
        .supervisor
        .map(|supervisor| Rc::new(RefCell::new(supervisor)));
    let mut files = Vec::new();
    for listener in listeners {
        files.extend(start(listener, &shared).map_err(Error::System)?);
    }
    if let Some(listener) = http {
        http::start(listener, &shared).map_err(Error::System)?;
    }
    spawn_local(see_exits(Rc::clone(&shared)));
    spawn_local(do_due(Rc::clone(&shared)));
    if let Some(supervisor) = &supervisor {
        spawn_local(tell_alive(Rc::clone(supervisor)));
    }
    ready();
    signals.wait_for_end(&shared).await;

    if let Some(supervisor) = supervisor {
        supervisor.borrow_mut().stopping();
    }
    shared.server.borrow_mut().stop();
    // Whoever is being served gets the answer, but nobody can keep the server from ending. Each
    // listener has room for one that has not come yet.
    let all = u32::try_from(max_clients - listening).expect("it is a small number");
    _ = tokio::time::timeout(FAREWELL, shared.room.acquire_many(all)).await;
    log_statistics(&shared.server.borrow());
    drop(files);
    let server = shared.server.borrow();
    let locks = server
        .locks()
        .filter_map(|(port, lock)| Some((port, lock.try_clone_to_owned().ok()?)));
    Ok(Legacy {
        locks: locks.collect(),
    })
}

/// Starts to accept at `listener`. Returns the file to remove at the end, if there is one.
fn start(listener: Listener, shared: &Rc<Shared>) -> io::Result<Option<SocketFile>> {
    let shared = Rc::clone(shared);
    match listener {
        Listener::Unix { listener, path } => {
            listener.set_nonblocking(true)?;
            let listener = tokio::net::UnixListener::from_std(listener)?;
            let next = async move || Ok(listener.accept().await?.0);
            spawn_local(accept(shared, next, |stream| Peer::of(stream)));
            Ok(path)
        }
        Listener::Tcp(listener) => {
            listener.set_nonblocking(true)?;
            let listener = tokio::net::TcpListener::from_std(listener)?;
            let next = async move || Ok(listener.accept().await?.0);
            spawn_local(accept(shared, next, |_| Ok(Peer::Unknown)));
            Ok(None)
        }
    }
}

/// Attends to each connection that `next` accepts, as far as there is room.
async fn accept<S>(
    shared: Rc<Shared>,
    next: impl AsyncFn() -> io::Result<S>,
    peer_of: impl Fn(&S) -> io::Result<Peer>,
) where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + 'static,
{
    loop {
        let room = shared.make_room().await;
        let stream = match next().await {
            Ok(stream) => stream,
            Err(err) => {
                accept_failed(&err, &shared).await;
                continue;
            }
        };
        let peer = loop {
            match peer_of(&stream) {
                // The connection took the last descriptor, and its process takes one, too.
                Err(err) if SHORTAGES.contains(&err.raw_os_error()) => {
                    accept_failed(&err, &shared).await;
                }
                peer => break peer,
            }
        };
        match peer {
            Ok(peer) => {
                // `attend` gives it back.
                room.forget();
                spawn_local(attend(stream, peer, Rc::clone(&shared)));
            }
            Err(err) => warn!("cannot tell who has connected: {err}"),
        }
    }
}

/// Serves one connection, and makes room for the next.
async fn attend<S>(stream: S, peer: Peer, shared: Rc<Shared>)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    shared.server.borrow_mut().connected();
    connection::serve(stream, Client::new(peer), Rc::clone(&shared)).await;
    shared.server.borrow_mut().disconnected();
    shared.room.add_permits(1);
    shared.ended.notify_one();
}

/// Waits until accepting may work again. Clients stay in the backlog meanwhile.
pub(crate) async fn accept_failed(err: &io::Error, shared: &Shared) {
    let now = Instant::now();
    let last = shared.accept_failed_at.replace(Some(now));
    if last.is_none_or(|last| now - last > ACCEPT_QUIET) {
        warn!("cannot accept connections: {err}; trying again as others end, and each second");
    }
    // Where leases have most descriptors, the rest is gone before there is no room for connections.
    // Those that were accepted just now are not among the silent before they have been looked at.
    tokio::task::yield_now().await;
    shared.silent.close_oldest();
    _ = tokio::time::timeout(ACCEPT_RETRY, shared.ended.notified()).await;
}

/// Returns how many connections may be open at a time, and says if that leaves less than a
/// descriptor for each port.
fn max_clients(ports: usize, listeners: usize) -> usize {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let max_clients = (limit / 4).min(MAX_CLIENTS).max(listeners + 1);
    let for_leases = limit.saturating_sub(max_clients + OWN_DESCRIPTORS);
    if ports > for_leases {
        warn!(
            "{limit} descriptors are not enough to lease all {ports} ports at once: each takes \
             one, and each owner another; see `ulimit -n`, or LimitNOFILE= in systemd's unit"
        );
    }
    max_clients
}

/// Tells the supervisor that the loop goes on.
async fn tell_alive(supervisor: Rc<RefCell<Box<dyn Supervisor>>>) {
    let Some(interval) = supervisor.borrow().interval() else {
        return;
    };
    let mut ticks = tokio::time::interval(interval);
    loop {
        ticks.tick().await;
        supervisor.borrow_mut().alive();
    }
}

/// Ends leases when their owners exit.
async fn see_exits(shared: Rc<Shared>) {
    let fd = {
        let server = shared.server.borrow();
        std::os::fd::AsFd::as_fd(server.owners()).try_clone_to_owned()
    };
    #[expect(
        deprecated,
        reason = "its successor is unsafe, for types that are not an OwnedFd"
    )]
    let registered = fd.and_then(|fd| AsyncFd::with_interest(fd, Interest::READABLE));
    let fd = match registered {
        Ok(fd) => fd,
        Err(err) => return error!("cannot see owners exit: {err}"),
    };
    loop {
        match fd.readable().await {
            Ok(mut ready) => {
                shared.server.borrow_mut().take_exits();
                ready.clear_ready();
                // Between the two, another may have exited, whose event is cleared now.
                shared.server.borrow_mut().take_exits();
            }
            Err(err) => return error!("cannot see owners exit: {err}"),
        }
    }
}

/// Does what is due at a time.
async fn do_due(shared: Rc<Shared>) {
    loop {
        let next = shared.server.borrow_mut().do_due();
        match next {
            Some(wait) => _ = tokio::time::timeout(wait, shared.changed.notified()).await,
            None => shared.changed.notified().await,
        }
    }
}

/// The signals that mean something to the server.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    statistics: Signal,
}

impl Signals {
    fn install() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            statistics: signal(SignalKind::user_defined1())?,
        })
    }

    async fn wait_for_end(mut self, shared: &Shared) {
        loop {
            tokio::select! {
                _ = self.interrupt.recv() => return info!("interrupted"),
                _ = self.terminate.recv() => return info!("told to end"),
                _ = self.statistics.recv() => log_statistics(&shared.server.borrow()),
            }
        }
    }
}

/// Logs the statistics of portserver.py, in its words and its order.
fn log_statistics(server: &Server) {
    let stats = &server.stats;
    info!("client-request-errors {}", stats.client_errors);
    info!("denied-allocations {}", stats.denied());
    info!("num-ports-managed {}", server.pool.ports().len());
    info!(
        "num-ports-checked-for-last-request {}",
        stats.tried_for_last
    );
    info!("total-allocations {}", stats.granted);
}
