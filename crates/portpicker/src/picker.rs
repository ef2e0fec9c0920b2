//! Picking ports: what to ask for, and the search for it.

use std::borrow::Cow;
use std::io;
use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use crate::PortSet;
use crate::client::{ServerAddress, request_port};
use crate::error::{Error, Result};
use crate::hold::Hold;
use crate::lease::{Keeping, Lease};
use crate::owned;
use crate::probe::{Answer, Kind, Prober, Scope};
use crate::process::Pid;
use crate::search::{Request, Space, search};

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
}

/// Which port server to ask.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Server {
    /// The one in `PORTSERVER_ADDRESS`, read at each pick; none if that is not set.
    ///
    /// A pick with options that the original protocol cannot express, and one that the server
    /// fails or refuses, goes on without it. That is safe beside the port servers of this project,
    /// which take the same locks; the default candidates avoid the pool of others. To learn why a
    /// server failed, ask it with [`Server::At`].
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
    pub fn wait(mut self, limit: Duration) -> Self {
        self.wait = limit;
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
    /// - [`Error::Socket`] or [`Error::Lock`] if the system fails, for lack of descriptors for
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
        let mut pause = Duration::from_millis(1);
        loop {
            let err = match self.pick_now(request) {
                Err(err @ (Error::Exhausted(_) | Error::Refused { .. })) => err,
                result => return result,
            };
            let left = deadline.map_or(Duration::MAX, |end| {
                end.saturating_duration_since(Instant::now())
            });
            if left.is_zero() {
                return Err(err);
            }
            // Asked again and again, because the kernel has no event for a port that becomes
            // unused. The pauses double, so that a long wait costs a hundredth of a processor.
            thread::sleep(pause.min(left));
            pause = (pause * 2).min(Duration::from_millis(500));
        }
    }

    fn pick_now(&self, request: Request) -> Result<Vec<Hold>> {
        match &self.server {
            Server::At(address) => match self.beyond_original_protocol(request) {
                Some(option) => Err(Error::ServerCannot {
                    address: address.clone(),
                    option,
                }),
                None => self.pick_from_server(address, request),
            },
            Server::Environment if self.beyond_original_protocol(request).is_none() => {
                let asked = match ServerAddress::from_environment() {
                    Ok(Some(address)) => self.pick_from_server(&address, request),
                    Ok(None) => return self.pick_locally(request),
                    Err(err) => Err(err),
                };
                match asked {
                    Err(Error::Refused { .. } | Error::Server { .. })
                        if self.other_owner().is_none() =>
                    {
                        self.pick_locally(request)
                    }
                    result => result,
                }
            }
            Server::Environment | Server::None => self.pick_locally(request),
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

    fn pick_from_server(&self, address: &ServerAddress, request: Request) -> Result<Vec<Hold>> {
        let owner = self.owner.unwrap_or_else(Pid::current);
        let mut picked = Vec::with_capacity(request.count);
        for _ in 0..request.count {
            let port = request_port(address, owner, self.server_timeout)?;
            if owned::has(port) || picked.iter().any(|hold: &Hold| hold.port() == port) {
                let source = bad_grant(port, "which it had granted before");
                return Err(Error::Server {
                    address: address.clone(),
                    source,
                });
            }
            let lease = Lease::new(
                port,
                Keeping::Server {
                    address: address.clone(),
                    owner,
                },
            );
            picked.push(if request.hold {
                match Prober::new(self.scope).probe(port)? {
                    Answer::Free(bound) => Hold::new(lease, bound, self.scope),
                    Answer::Occupied | Answer::Forbidden => {
                        let source = bad_grant(port, "which is in use");
                        return Err(Error::Server {
                            address: address.clone(),
                            source,
                        });
                    }
                }
            } else {
                Hold::without_sockets(lease)
            });
        }
        Ok(picked)
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
        search(request, &space, self.scope, &state.random)
    }
}

fn single<T>(mut picked: Vec<T>) -> T {
    picked.pop().expect("a pick of one port has one")
}

fn bad_grant(port: u16, trouble: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("it granted port {port}, {trouble}"),
    )
}
