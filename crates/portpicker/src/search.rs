//! The search for unused ports among candidates, in one pass or two.

use std::collections::HashSet;

use crate::PortSet;
use crate::attempt::{Attempt, Attempts};
use crate::error::{Error, Result, Tally};
use crate::hold::Hold;
use crate::lease::Lease;
use crate::occupied::RecentlyOccupied;
use crate::owned::State;
use crate::probe::{Prober, Scope};
use crate::sys::listener::Listeners;
use crate::sys::socket_table::time_wait_ports;
use crate::walk::{self, Random};

/// How many ports to find, and of which shape.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    pub(crate) count: usize,
    /// Whether they must be neighbours.
    pub(crate) contiguous: bool,
    /// Whether they will be held, and not only leased.
    pub(crate) hold: bool,
}

/// After how many occupied candidates it is worth asking who listens at one before it is tried. The
/// first question costs more than that one saves, but where one is occupied, more are.
const CROWD: usize = 1;

/// The ports to search.
#[derive(Debug)]
pub(crate) struct Space<'a> {
    /// `None` if nothing is left of them.
    ports: Option<&'a PortSet>,
    /// To be tried first: each once, none excluded.
    preferred: Vec<u16>,
    exclude: Option<&'a PortSet>,
}

impl<'a> Space<'a> {
    /// Returns the space of `ports`, from which the excluded ones have been taken, and `prefer`,
    /// from which they have not.
    pub(crate) fn new(
        ports: Option<&'a PortSet>,
        prefer: &[u16],
        exclude: Option<&'a PortSet>,
    ) -> Self {
        let mut space = Self {
            ports,
            preferred: Vec::new(),
            exclude,
        };
        for &port in prefer {
            if port != 0 && !space.excludes(port) && !space.preferred.contains(&port) {
                space.preferred.push(port);
            }
        }
        space
    }

    fn len(&self) -> usize {
        let ports = self.ports.map_or(0, PortSet::len);
        let is_outside = |port: &&u16| !self.ports.is_some_and(|ports| ports.contains(**port));
        ports + self.preferred.iter().filter(is_outside).count()
    }

    /// Returns every port of the space once: the preferred ones, then the others in random order.
    fn candidates(&self, random: &Random) -> impl Iterator<Item = u16> {
        let others = self
            .shuffled(random)
            .filter(|port| !self.preferred.contains(port));
        self.preferred.iter().copied().chain(others)
    }

    /// Returns the first port of every block of `count` neighbours, in the same order.
    ///
    /// A block at a preferred port may leave the set of ports, like the preferred port itself.
    fn block_starts(&self, count: usize, random: &Random) -> impl Iterator<Item = u16> {
        let fits = move |port: &u16| {
            let last = usize::from(*port) + count - 1;
            last <= usize::from(u16::MAX) && !(*port..=last as u16).any(|port| self.excludes(port))
        };
        let preferred = self.preferred.iter().copied().filter(fits);
        let others = self.shuffled(random);
        preferred.chain(others.filter(move |&port| {
            self.ports
                .is_some_and(|ports| ports.contains_block(port, count))
        }))
    }

    fn shuffled(&self, random: &Random) -> impl Iterator<Item = u16> {
        let order = walk::cyclic(self.ports.map_or(0, PortSet::len), random);
        order.filter_map(|index| self.ports?.nth(index))
    }

    fn excludes(&self, port: u16) -> bool {
        self.exclude.is_some_and(|set| set.contains(port))
    }
}

/// Finds what `request` asks for in `space`, all or nothing.
pub(crate) fn search(
    request: Request,
    space: &Space<'_>,
    scope: Scope,
    state: &State,
) -> Result<Vec<Hold>> {
    let candidates = space.len();
    // A block at a preferred port may be larger than the space.
    let may_leave_space = request.contiguous && !space.preferred.is_empty();
    if candidates < request.count && !may_leave_space {
        return Err(Error::TooFewCandidates {
            wanted: request.count,
            candidates,
        });
    }
    let tally = Tally {
        wanted: request.count,
        contiguous: request.contiguous,
        candidates,
        ..Tally::default()
    };
    let attempts = Attempts::in_scope(scope);
    // What one transport or address has of a port, others may not have.
    let occupied = (scope == Scope::default()).then_some(&state.occupied);
    if let Some(occupied) = occupied {
        occupied.refresh();
    }
    let mut pass = Pass {
        request,
        space,
        random: &state.random,
        attempts,
        occupied,
        listeners: None,
        time_wait: None,
        tally,
    };
    let mut found = Vec::with_capacity(request.count);
    loop {
        if request.contiguous {
            pass.find_block(&mut found)?;
        } else {
            pass.find_any(&mut found)?;
        }
        if found.len() == request.count {
            return Ok(found);
        }
        // A second pass takes ports in TIME-WAIT, now that there is nothing better: not every
        // server can bind one, and a hold, which sets no options, never can.
        if request.hold || pass.time_wait.is_some() {
            return Err(Error::Exhausted(pass.tally));
        }
        let ports = time_wait_ports();
        if ports.is_empty() {
            return Err(Error::Exhausted(pass.tally));
        }
        pass.time_wait = Some(TimeWait {
            ports,
            prober: Prober::accepting_time_wait(scope),
        });
        pass.tally = tally;
    }
}

/// Tries ports, one after another, and counts how they fare.
#[derive(Debug)]
struct Pass<'a> {
    request: Request,
    space: &'a Space<'a>,
    random: &'a Random,
    attempts: Attempts,
    /// If it is about all addresses and both transports, as this search.
    occupied: Option<&'a RecentlyOccupied>,
    /// Asked once there is a crowd.
    listeners: Option<Listeners>,
    /// In the second pass.
    time_wait: Option<TimeWait>,
    tally: Tally,
}

/// The ports in TIME-WAIT, and how to ask about them.
#[derive(Debug)]
struct TimeWait {
    ports: HashSet<u16>,
    prober: Prober,
}

impl Pass<'_> {
    /// Tries `port`, and adds it to `found` if it can be had. Returns whether it could.
    fn try_port(&mut self, port: u16, found: &mut Vec<Hold>) -> Result<bool> {
        let mut attempt = if self.request.hold {
            self.attempts.hold(port)?
        } else {
            as_hold(self.attempts.lease(port)?)
        };
        if let (Attempt::Occupied, Some(TimeWait { ports, prober })) =
            (&attempt, &mut self.time_wait)
            && ports.contains(&port)
        {
            attempt = as_hold(self.attempts.lease_in_time_wait(port, prober)?);
        }
        match attempt {
            Attempt::Leased(hold) => {
                found.push(hold);
                return Ok(true);
            }
            Attempt::LeasedElsewhere => self.tally.leased += 1,
            Attempt::Occupied => {
                self.tally.occupied += 1;
                if let Some(occupied) = self.occupied {
                    occupied.insert(port);
                }
                if let Some(listeners) = &mut self.listeners {
                    // What is in use here does not listen: asking costs more than it saves.
                    listeners.give_up();
                }
            }
            Attempt::Forbidden => self.tally.forbidden += 1,
        }
        Ok(false)
    }

    /// Tells whether `port` seems to be in use, and should be tried when nothing else is left.
    fn is_unlikely(&mut self, port: u16) -> bool {
        let Some(occupied) = self.occupied else {
            return false;
        };
        if self.space.preferred.contains(&port) {
            return false;
        }
        if occupied.contains(port) {
            return true;
        }
        if self.tally.occupied < CROWD {
            return false;
        }
        let is_listened_at = self.listeners.get_or_insert_with(Listeners::new).have(port);
        if is_listened_at {
            occupied.insert(port);
        }
        is_listened_at
    }

    /// Adds to `found` until it has enough or every candidate was tried.
    fn find_any(&mut self, found: &mut Vec<Hold>) -> Result<()> {
        let (space, random) = (self.space, self.random);
        // In the second pass: not to be counted as somebody else's.
        let found_before: HashSet<u16> = found.iter().map(Hold::port).collect();
        let mut put_off = Vec::new();
        for port in space.candidates(random) {
            if found_before.contains(&port) {
                continue;
            }
            if self.is_unlikely(port) {
                put_off.push(port);
                continue;
            }
            self.try_port(port, found)?;
            if found.len() == self.request.count {
                return Ok(());
            }
        }
        for port in put_off {
            self.try_port(port, found)?;
            if found.len() == self.request.count {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Puts the first block of neighbours that can be had whole into `found`.
    fn find_block(&mut self, found: &mut Vec<Hold>) -> Result<()> {
        let (space, random, count) = (self.space, self.random, self.request.count);
        // Blocks overlap: what was refused once in this pass is not asked about again.
        let mut refused = HashSet::new();
        for start in space.block_starts(count, random) {
            let block = start..=(usize::from(start) + count - 1) as u16;
            if block.clone().any(|port| refused.contains(&port)) {
                continue;
            }
            for port in block {
                if !self.try_port(port, found)? {
                    refused.insert(port);
                    break;
                }
            }
            if found.len() == count {
                break;
            }
            found.clear();
        }
        Ok(())
    }
}

/// Returns a lease in the form of a hold that has let go of its sockets.
fn as_hold(attempt: Attempt<Lease>) -> Attempt<Hold> {
    match attempt {
        Attempt::Leased(lease) => Attempt::Leased(Hold::without_sockets(lease)),
        Attempt::LeasedElsewhere => Attempt::LeasedElsewhere,
        Attempt::Occupied => Attempt::Occupied,
        Attempt::Forbidden => Attempt::Forbidden,
    }
}
