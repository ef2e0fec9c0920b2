//! The search for unused ports among candidates: lock first, then probe.

use std::collections::HashSet;

use crate::PortSet;
use crate::error::{Error, Result, Tally};
use crate::hold::Hold;
use crate::lease::{Keeping, Lease};
use crate::probe::{Answer, Bound, Prober, Scope};
use crate::sys::lock::Locker;
use crate::sys::time_wait::time_wait_ports;
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
    random: &Random,
) -> Result<Vec<Hold>> {
    let candidates = space.len();
    if candidates < request.count {
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
    let mut attempts = Attempts::new(scope, request.hold, tally);
    let mut found = Vec::with_capacity(request.count);
    loop {
        if request.contiguous {
            attempts.find_block(space, request.count, &mut found, random)?;
        } else {
            attempts.find_any(space, request.count, &mut found, random)?;
        }
        if found.len() == request.count {
            return Ok(found);
        }
        // A second pass takes ports in TIME-WAIT, now that there is nothing better: not every
        // server can bind one, and a hold, which sets no options, never can.
        let tally = attempts.tally;
        if request.hold || attempts.time_wait.is_some() {
            return Err(Error::Exhausted(tally));
        }
        let ports = time_wait_ports();
        if ports.is_empty() {
            return Err(Error::Exhausted(tally));
        }
        attempts.time_wait = Some(TimeWait {
            ports,
            prober: Prober::accepting_time_wait(scope),
        });
        attempts.tally = Tally {
            leased: 0,
            occupied: 0,
            forbidden: 0,
            ..tally
        };
    }
}

/// Locks and probes ports, one after another, and counts how they fare.
#[derive(Debug)]
pub(crate) struct Attempts {
    scope: Scope,
    hold: bool,
    locker: Locker,
    prober: Prober,
    time_wait: Option<TimeWait>,
    tally: Tally,
}

/// The ports in TIME-WAIT, and how to ask about them.
#[derive(Debug)]
struct TimeWait {
    ports: HashSet<u16>,
    prober: Prober,
}

impl Attempts {
    pub(crate) fn new(scope: Scope, hold: bool, tally: Tally) -> Self {
        Self {
            scope,
            hold,
            locker: Locker::new(),
            prober: Prober::new(scope),
            time_wait: None,
            tally,
        }
    }

    /// Leases `port`, or returns `None` if it is leased or in use.
    ///
    /// What comes back is bound only if it is to be held: the sockets of a lease close at once, so
    /// that many leases cost no more descriptors than their locks.
    pub(crate) fn try_port(&mut self, port: u16) -> Result<Option<Hold>> {
        let lock = match self.locker.try_lock(port) {
            Ok(Some(lock)) => lock,
            Ok(None) => {
                self.tally.leased += 1;
                return Ok(None);
            }
            Err(source) => return Err(Error::Lock { port, source }),
        };
        let answer = match (self.prober.probe(port)?, &mut self.time_wait) {
            (Answer::Occupied, Some(TimeWait { ports, prober })) if ports.contains(&port) => {
                prober.probe(port)?
            }
            (answer, _) => answer,
        };
        match answer {
            Answer::Free(bound) => {
                let lease = Lease::new(port, Keeping::Lock(lock));
                let bound = if self.hold { bound } else { Bound::default() };
                return Ok(Some(Hold::new(lease, bound, self.scope)));
            }
            Answer::Occupied => self.tally.occupied += 1,
            Answer::Forbidden => self.tally.forbidden += 1,
        }
        Ok(None)
    }

    /// Adds to `found` until it has `count` ports or every candidate was tried.
    fn find_any(
        &mut self,
        space: &Space<'_>,
        count: usize,
        found: &mut Vec<Hold>,
        random: &Random,
    ) -> Result<()> {
        for port in space.candidates(random) {
            if let Some(hold) = self.try_port(port)? {
                found.push(hold);
                if found.len() == count {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Puts the first block of `count` neighbours that can be had whole into `found`.
    fn find_block(
        &mut self,
        space: &Space<'_>,
        count: usize,
        found: &mut Vec<Hold>,
        random: &Random,
    ) -> Result<()> {
        // Blocks overlap: what was refused once in this pass is not asked about again.
        let mut refused = HashSet::new();
        for start in space.block_starts(count, random) {
            let block = start..=(usize::from(start) + count - 1) as u16;
            if block.clone().any(|port| refused.contains(&port)) {
                continue;
            }
            for port in block {
                match self.try_port(port)? {
                    Some(hold) => found.push(hold),
                    None => {
                        refused.insert(port);
                        break;
                    }
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
