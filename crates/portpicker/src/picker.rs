//! Picking ports: what to ask for, and the search for it.

use std::borrow::Cow;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::PortSet;
use crate::error::{Error, Refusal, Result};
use crate::exchange::{self, Spoken, request_port};
use crate::hold::Hold;
use crate::lease::{Grantor, Keeping, Lease};
use crate::owned;
use crate::probe::{Answer, Kind, Prober, Scope};
use crate::process::Pid;
use crate::protocol::extended::{MAX_COUNT, MAX_WAIT, Wish};
use crate::search::{Request, Space, search};
use crate::server_address::ServerAddress;

/// Picks ports: any one by default, or such as its options describe.
///
/// Several ports are picked all or none. Options that contradict each other are no error: the
/// pick finds nothing then, and says why.
///
/// # Example
///
/// ```
/// use portpicker::{Kind, Picker};
///
/// // Four neighbours for TCP, out of a range of one's own.
/// let block = Picker::new()
///     .ports("25000-29999".parse()?)
///     .only(Kind::Tcp)
///     .lease_block(4)?;
/// assert_eq!(block[3].port(), block[0].port() + 3);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
#[must_use = "a picker does nothing until it is asked for a lease or a hold"]
pub struct Picker {
    ports: Option<PortSet>,
    exclude: Option<PortSet>,
    prefer: Vec<u16>,
    scope: Scope,
    server: Server,
    server_timeout: Duration,
    owner: Option<Pid>,
    wait: Duration,
    stop_waiting: Option<Arc<AtomicBool>>,
    tag: Option<String>,
}

/// Which port server to ask.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Server {
    /// The one in `PORTSERVER_ADDRESS`, read at each pick; none if that is not set.
    ///
    /// A pick that the server fails or refuses goes on without it, and so does one with options
    /// that the original protocol cannot express, if the server speaks nothing else. That is safe
    /// beside the port servers of this project, which take the same locks; the default candidates
    /// avoid the pool of others. To learn why a server failed, or to wait in its queue, ask it with
    /// [`Server::At`].
    #[default]
    Environment,
    /// This one, and no other way: what it fails or refuses is an error.
    At(ServerAddress),
    /// None.
    None,
}

impl Default for Picker {
    fn default() -> Self {
        Self::new()
    }
}

impl Picker {
    /// Returns a picker of any port that is unused on TCP and UDP, on all local addresses.
    pub fn new() -> Self {
        Self {
            ports: None,
            exclude: None,
            prefer: Vec::new(),
            scope: Scope::default(),
            server: Server::Environment,
            server_timeout: Duration::from_secs(10),
            owner: None,
            wait: Duration::ZERO,
            stop_waiting: None,
            tag: None,
        }
    }

    /// Picks from `ports` only, instead of the default candidates.
    ///
    /// The default, unless `PORTPICKER_PORTS` replaces it: the ports from 10001 up, without the
    /// ephemeral range, port servers' default pool (15000–24999), Kubernetes' node ports
    /// (30000–32767), and those that the kernel, browsers, `/etc/services`, or common usage
    /// reserve for something else.
    pub fn ports(mut self, ports: PortSet) -> Self {
        self.ports = Some(ports);
        self
    }

    /// Never picks one of `ports`. Added to what was excluded before.
    pub fn exclude(mut self, ports: PortSet) -> Self {
        self.exclude = Some(match self.exclude {
            Some(before) => before.union(&ports),
            None => ports,
        });
        self
    }

    /// Tries these first, in this order. They need not be among the candidates.
    ///
    /// For a block, a preferred port is its first one.
    pub fn prefer(mut self, ports: impl IntoIterator<Item = u16>) -> Self {
        self.prefer.extend(ports);
        self
    }

    /// Picks for one transport: what the other one's port of that number does is ignored.
    pub fn only(mut self, kind: Kind) -> Self {
        self.scope.only = Some(kind);
        self
    }

    /// Picks for one local address: what is bound to others is ignored.
    ///
    /// `0.0.0.0` means all addresses of IPv4, and `::` all of IPv6, without those of the other
    /// family.
    pub fn address(mut self, address: IpAddr) -> Self {
        self.scope.address = Some(address);
        self
    }

    /// Decides which port server to ask. The default is [`Server::Environment`].
    pub fn server(mut self, server: Server) -> Self {
        self.server = server;
        self
    }

    /// Bounds each exchange with a port server. The default is 10 seconds: a full
    /// `portserver.py` takes a quarter of a second for each waiting client.
    pub fn server_timeout(mut self, timeout: Duration) -> Self {
        self.server_timeout = timeout;
        self
    }

    /// Asks the server for a port that belongs to another process, until that one exits.
    ///
    /// Only a server can do that; without one the pick fails with [`Error::OwnerNeedsServer`].
    /// The default owner is this process.
    pub fn owner(mut self, owner: Pid) -> Self {
        self.owner = Some(owner);
        self
    }

    /// Waits up to `limit` for a port if there is none now. The default is not to wait.
    ///
    /// A server of this project that is the only way ([`Server::At`], or another process as the
    /// owner) has a fair queue for those who wait. Everywhere else, the wait is to ask now and
    /// then.
    pub fn wait(mut self, limit: Duration) -> Self {
        self.wait = limit;
        self
    }

    /// Ends a wait as if its time were over, soon after `flag` is set by another thread.
    ///
    /// Soon is half a second at most; in a server's queue it is when the server answers.
    pub fn stop_waiting_if(mut self, flag: Arc<AtomicBool>) -> Self {
        self.stop_waiting = Some(flag);
        self
    }

    /// Says what the ports are for, to people who look at a port server's leases.
    ///
    /// At most 200 bytes; what is longer is cut off. Servers that speak only the original protocol
    /// are not told, and without a server nobody is.
    pub fn tag(mut self, text: impl Into<String>) -> Self {
        self.tag = Some(text.into());
        self
    }

    /// Picks a port. Promise 2, *leased*: see [`Lease`].
    ///
    /// # Errors
    ///
    /// - [`Error::Exhausted`] or [`Error::TooFewCandidates`] if there is no port to be had. When
    ///   nothing else is left, ports in TIME-WAIT are leased too; a server must set SO_REUSEADDR
    ///   to bind one.
    /// - [`Error::Refused`], [`Error::Server`], or [`Error::ServerCannot`] if a certain server
    ///   was to be asked.
    /// - [`Error::OwnerNeedsServer`] if there is no server for an owner that needs one.
    /// - [`Error::Environment`] if `PORTPICKER_PORTS` is not a set of ports.
    /// - [`Error::Socket`], [`Error::Lock`], or [`Error::HostPorts`] if the system fails, for lack of descriptors for
    ///   example, or because the address is not one of this host's.
    pub fn lease(&self) -> Result<Lease> {
        Ok(single(self.leases(1)?))
    }

    /// Picks `count` ports, all or none. See [`lease`](Self::lease).
    pub fn leases(&self, count: usize) -> Result<Vec<Lease>> {
        let request = Request {
            count,
            contiguous: false,
            hold: false,
        };
        Ok(self
            .pick(request)?
            .into_iter()
            .map(Hold::into_lease)
            .collect())
    }

    /// Picks `count` neighbouring ports, in ascending order. See [`lease`](Self::lease).
    pub fn lease_block(&self, count: usize) -> Result<Vec<Lease>> {
        let request = Request {
            count,
            contiguous: true,
            hold: false,
        };
        Ok(self
            .pick(request)?
            .into_iter()
            .map(Hold::into_lease)
            .collect())
    }

    /// Picks a port and holds it. Promise 3, *held*: see [`Hold`].
    ///
    /// # Errors
    ///
    /// As for [`lease`](Self::lease), but for ports in TIME-WAIT, which cannot be held. A port from
    /// a server that somebody has bound is [`Error::Server`].
    pub fn hold(&self) -> Result<Hold> {
        Ok(single(self.holds(1)?))
    }

    /// Picks and holds `count` ports, all or none. See [`hold`](Self::hold).
    pub fn holds(&self, count: usize) -> Result<Vec<Hold>> {
        self.pick(Request {
            count,
            contiguous: false,
            hold: true,
        })
    }

    /// Picks and holds `count` neighbouring ports, in ascending order. See [`hold`](Self::hold).
    pub fn hold_block(&self, count: usize) -> Result<Vec<Hold>> {
        self.pick(Request {
            count,
            contiguous: true,
            hold: true,
        })
    }

    /// Picks what `request` says, waiting if the picker may.
    fn pick(&self, request: Request) -> Result<Vec<Hold>> {
        if request.count == 0 {
            return Ok(Vec::new());
        }
        let deadline = Instant::now().checked_add(self.wait);
        let left = || {
            deadline.map_or(Duration::MAX, |end| {
                end.saturating_duration_since(Instant::now())
            })
        };
        let mut pause = Duration::from_millis(1);
        let mut is_original = false;
        loop {
            let patience = left();
            let err = match self.pick_now(request, patience, &mut is_original) {
                Err(err) if may_pass(&err, patience) => err,
                result => return result,
            };
            let left = left();
            // Nothing else is told by the flag, so its order does not matter.
            let is_told_to_stop = |flag: &Arc<AtomicBool>| flag.load(Ordering::Relaxed);
            if left.is_zero() || self.stop_waiting.as_ref().is_some_and(is_told_to_stop) {
                return Err(err);
            }
            // Asked again and again, because the kernel has no event for a port that becomes
            // unused. The pauses double, so that a long wait costs a hundredth of a processor.
            thread::sleep(pause.min(left));
            pause = (pause * 2).min(Duration::from_millis(500));
        }
    }

    /// Picks what `request` says. If a server is the only way, it may wait as long as `patience`.
    ///
    /// `is_original` is set when a server turns out to speak only the original protocol.
    fn pick_now(
        &self,
        request: Request,
        patience: Duration,
        is_original: &mut bool,
    ) -> Result<Vec<Hold>> {
        match &self.server {
            Server::At(address) => self.pick_from_server(address, request, patience, is_original),
            Server::Environment => {
                let has_other_way = self.other_owner().is_none();
                let asked = match ServerAddress::from_environment() {
                    Ok(None) => return self.pick_locally(request),
                    Ok(Some(address)) => {
                        let patience = if has_other_way {
                            Duration::ZERO
                        } else {
                            patience
                        };
                        self.pick_from_server(&address, request, patience, is_original)
                    }
                    Err(err) => Err(err),
                };
                match asked {
                    Err(
                        Error::Refused { .. } | Error::Server { .. } | Error::ServerCannot { .. },
                    ) if has_other_way => self.pick_locally(request),
                    result => result,
                }
            }
            Server::None => self.pick_locally(request),
        }
    }

    /// Returns the owner if it is not this process.
    fn other_owner(&self) -> Option<Pid> {
        self.owner.filter(|&owner| owner != Pid::current())
    }

    /// Returns an option that the original protocol has no words for.
    fn beyond_original_protocol(&self, request: Request) -> Option<&'static str> {
        match self {
            _ if request.contiguous => Some("a contiguous block"),
            Self { ports: Some(_), .. } => Some("a set of ports"),
            Self {
                exclude: Some(_), ..
            } => Some("excluded ports"),
            Self { prefer, .. } if !prefer.is_empty() => Some("preferred ports"),
            Self { scope, .. } if scope.only.is_some() => Some("one transport"),
            Self { scope, .. } if scope.address.is_some() => Some("one local address"),
            _ => None,
        }
    }

    /// Asks a server, by whichever protocol is needed and spoken there.
    fn pick_from_server(
        &self,
        address: &ServerAddress,
        request: Request,
        patience: Duration,
        is_original: &mut bool,
    ) -> Result<Vec<Hold>> {
        let grantor = Arc::new(Grantor::new(
            address.clone(),
            self.owner.unwrap_or_else(Pid::current),
        ));
        let option = self.beyond_original_protocol(request);
        // What the original protocol can do as well, if less well.
        let is_better =
            (2..=MAX_COUNT).contains(&request.count) || !patience.is_zero() || self.tag.is_some();
        if (option.is_some() || is_better) && !*is_original {
            match self.lease_by_extended_protocol(&grantor, address, request, patience)? {
                Some(leases) => return self.finish(leases, request, address, &grantor),
                None => *is_original = true,
            }
        }
        if let Some(option) = option {
            return Err(Error::ServerCannot {
                address: address.clone(),
                option,
            });
        }
        let mut leases = Vec::with_capacity(request.count);
        for _ in 0..request.count {
            let port = request_port(address, grantor.owner(), self.server_timeout)?;
            leases.push(granted(port, &grantor, &leases, address)?);
        }
        self.finish(leases, request, address, &grantor)
    }

    /// Asks for all ports at once; `None` if the server speaks only the original protocol.
    fn lease_by_extended_protocol(
        &self,
        grantor: &Arc<Grantor>,
        address: &ServerAddress,
        request: Request,
        patience: Duration,
    ) -> Result<Option<Vec<Lease>>> {
        let wish = Wish {
            count: request.count,
            contiguous: request.contiguous,
            ports: self.ports.as_ref(),
            exclude: self.exclude.as_ref(),
            prefer: &self.prefer,
            only: self.scope.only,
            address: self.scope.address,
            owner: self.other_owner(),
            wait: patience,
            tag: self.tag.as_deref(),
        };
        let ports = match exchange::lease(address, &wish, self.server_timeout)? {
            Spoken::Done(ports) => ports,
            Spoken::Failed(failure) => {
                return Err(Error::Refused {
                    address: address.clone(),
                    owner: grantor.owner(),
                    refusal: Some(failure.refusal),
                    reason: Some(failure.reason),
                });
            }
            Spoken::NotAtAll => return Ok(None),
        };
        let mut leases = Vec::with_capacity(ports.len());
        for port in ports {
            leases.push(granted(port, grantor, &leases, address)?);
        }
        Ok(Some(leases))
    }

    /// Holds the ports of `leases`, if they are to be held: all or none.
    fn finish(
        &self,
        leases: Vec<Lease>,
        request: Request,
        address: &ServerAddress,
        grantor: &Grantor,
    ) -> Result<Vec<Hold>> {
        if !request.hold {
            return Ok(leases.into_iter().map(Hold::without_sockets).collect());
        }
        let ports: Vec<u16> = leases.iter().map(Lease::port).collect();
        let mut prober = Prober::new(self.scope);
        let hold = |lease: Lease| match prober.probe(lease.port())? {
            Answer::Free(bound) => Ok(Hold::new(lease, bound, self.scope)),
            Answer::Occupied | Answer::Forbidden => Err(Error::Server {
                address: address.clone(),
                source: bad_grant(lease.port(), "which is in use"),
            }),
        };
        let held: Result<Vec<Hold>> = leases.into_iter().map(hold).collect();
        // Our own leases have been dropped, and with that released. Those of another process would
        // stay until it exits, though nobody tells it of them.
        if held.is_err() && !grantor.is_for_us() {
            grantor.release(&ports);
        }
        held
    }

    fn pick_locally(&self, request: Request) -> Result<Vec<Hold>> {
        if let Some(owner) = self.other_owner() {
            return Err(Error::OwnerNeedsServer { owner });
        }
        let state = owned::state();
        let default;
        let ports = match &self.ports {
            Some(ports) => ports,
            None => {
                default = state.candidates()?;
                &default.ports
            }
        };
        let ports = match &self.exclude {
            None => Some(Cow::Borrowed(ports)),
            Some(exclude) => ports.difference(exclude).map(Cow::Owned),
        };
        let space = Space::new(ports.as_deref(), &self.prefer, self.exclude.as_ref());
        search(request, &space, self.scope, state)
    }
}

fn single<T>(mut picked: Vec<T>) -> T {
    picked.pop().expect("a pick of one port has one")
}

/// Returns the lease of a port that a server has granted, unless that cannot be true.
fn granted(
    port: u16,
    grantor: &Arc<Grantor>,
    before: &[Lease],
    address: &ServerAddress,
) -> Result<Lease> {
    let is_new = !before.iter().any(|lease| lease.port() == port)
        && (!grantor.is_for_us() || owned::note_grant(port));
    if is_new {
        Ok(Lease::new(port, Keeping::Server(Arc::clone(grantor))))
    } else {
        Err(Error::Server {
            address: address.clone(),
            source: bad_grant(port, "which it had granted before"),
        })
    }
}

/// Tells whether a pick that failed so may succeed later. `patience` is how long a server was asked
/// to wait.
fn may_pass(err: &Error, patience: Duration) -> bool {
    match err {
        Error::Exhausted(_) => true,
        Error::Refused { refusal, .. } => match refusal {
            // The original protocol: it may be anything.
            None => true,
            Some(Refusal::Busy | Refusal::OverLimit) => true,
            // The server has waited, or knows that it would be in vain.
            Some(Refusal::Exhausted) => patience > MAX_WAIT,
            Some(_) => false,
        },
        _ => false,
    }
}

fn bad_grant(port: u16, trouble: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("it granted port {port}, {trouble}"),
    )
}
