//! The ports that the server manages, and their leases: a value that does no I/O and is told the
//! time.
//!
//! Each port is in one of three states. *Free*: in the order in which it came back. *Leased*.
//! *Resting*: free, but in use by somebody when it was last probed, or leased without us; it is
//! not tried again for a while, so that a refusal costs the same however many such ports there are.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::rc::Rc;
use std::time::Duration;

use portpicker::{Attempt, PortSet};

use crate::free_order::FreeOrder;

/// The time since the host was started.
pub(crate) type Time = Duration;

/// What a lease is owned by: a process, or a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct OwnerId(pub(crate) u64);

/// For how long a port rests that was occupied for the first time; twice as long each next time.
pub(crate) const FIRST_REST: Duration = Duration::from_millis(250);

/// The longest that a port rests.
const LONGEST_REST: Duration = Duration::from_secs(30);

/// A lease. `K` is what keeps it: the lock.
#[derive(Debug)]
pub(crate) struct Lease<K> {
    pub(crate) owner: OwnerId,
    /// The user whose limit it counts for.
    pub(crate) uid: u32,
    pub(crate) since: Time,
    pub(crate) expires: Option<Time>,
    pub(crate) name: Option<Box<str>>,
    pub(crate) tag: Option<Rc<str>>,
    /// `None` if somebody else had the lock when the lease was adopted.
    pub(crate) kept: Option<K>,
}

/// Which ports are wanted. The sets are parts of the pool.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wish {
    pub(crate) count: usize,
    pub(crate) contiguous: bool,
    /// Only these; all if there is no set.
    pub(crate) ports: Option<PortSet>,
    /// These first, in this order.
    pub(crate) prefer: Vec<u16>,
    /// Whether one transport or one address will do. A port may be good enough then that rests
    /// because it is in use elsewhere; and one that is not good enough need not rest.
    pub(crate) is_partial: bool,
}

/// For whom, and for how long.
#[derive(Clone, Debug)]
pub(crate) struct Terms {
    pub(crate) owner: OwnerId,
    pub(crate) uid: u32,
    pub(crate) ttl: Option<Duration>,
    /// None, or one for each port.
    pub(crate) names: Vec<Box<str>>,
    pub(crate) tag: Option<Rc<str>>,
}

/// Why nothing was leased.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// There are not enough ports.
    Exhausted,
    /// The user has too many leases.
    OverLimit,
    /// The system failed.
    Failed(portpicker::Error),
}

/// The pool.
#[derive(Debug)]
pub(crate) struct Pool<K> {
    ports: PortSet,
    free: FreeOrder,
    leases: BTreeMap<u16, Lease<K>>,
    owners: HashMap<OwnerId, BTreeSet<u16>>,
    /// How many leases each user has.
    users: HashMap<u32, usize>,
    /// How many leases a user may have.
    user_limit: usize,
    expiries: BTreeSet<(Time, u16)>,
    resting: BTreeSet<(Time, u16)>,
    /// The same, by port.
    resting_until: HashMap<u16, Time>,
    /// How long each port rested last that has been occupied since it was leased last.
    rests: HashMap<u16, Duration>,
    /// Where the search for the next block begins.
    block_cursor: u16,
}

impl<K> Pool<K> {
    pub(crate) fn new(ports: PortSet, user_limit: Option<usize>) -> Self {
        let mut free = FreeOrder::new();
        for port in ports.iter() {
            free.push(port);
        }
        Self {
            ports,
            free,
            leases: BTreeMap::new(),
            owners: HashMap::new(),
            users: HashMap::new(),
            user_limit: user_limit.unwrap_or(usize::MAX),
            expiries: BTreeSet::new(),
            resting: BTreeSet::new(),
            resting_until: HashMap::new(),
            rests: HashMap::new(),
            block_cursor: 0,
        }
    }

    pub(crate) fn ports(&self) -> &PortSet {
        &self.ports
    }

    pub(crate) fn free(&self) -> usize {
        self.free.len()
    }

    pub(crate) fn resting(&self) -> usize {
        self.resting.len()
    }

    pub(crate) fn owners(&self) -> usize {
        self.owners.len()
    }

    /// Returns all leases in ascending order of their ports.
    pub(crate) fn leases(&self) -> &BTreeMap<u16, Lease<K>> {
        &self.leases
    }

    /// Tells whether `owner` has a lease.
    pub(crate) fn has_leases(&self, owner: OwnerId) -> bool {
        self.owners.contains_key(&owner)
    }

    /// Leases what `wish` says, all or none; `attempt` locks and probes a port.
    ///
    /// Returns the ports: in ascending order if they had to be neighbours.
    pub(crate) fn lease(
        &mut self,
        wish: &Wish,
        terms: &Terms,
        now: Time,
        attempt: &mut dyn FnMut(u16) -> portpicker::Result<Attempt<K>>,
    ) -> Result<Vec<u16>, Refusal> {
        let has = self.users.get(&terms.uid).copied().unwrap_or(0);
        if has.saturating_add(wish.count) > self.user_limit {
            return Err(Refusal::OverLimit);
        }
        self.wake(now);
        let mut taken = Vec::with_capacity(wish.count);
        let result = match wish {
            _ if wish.count > self.free.len() && !wish.is_partial => Ok(()),
            Wish {
                contiguous: true, ..
            } => self.take_block(wish, now, attempt, &mut taken),
            Wish {
                ports: None,
                prefer,
                is_partial: false,
                ..
            } if prefer.is_empty() => self.take_oldest(wish, now, attempt, &mut taken),
            _ => {
                let candidates = self.candidates(wish);
                self.take(candidates, wish, now, attempt, &mut taken)
            }
        };
        if result.is_err() || taken.len() < wish.count {
            self.put_back(taken);
            return Err(result.err().map_or(Refusal::Exhausted, Refusal::Failed));
        }
        let mut names = terms.names.iter().cloned();
        let ports = taken.iter().map(|&(port, _)| port).collect();
        for (port, kept) in taken {
            self.insert(
                port,
                Lease {
                    owner: terms.owner,
                    uid: terms.uid,
                    since: now,
                    expires: terms.ttl.map(|ttl| now.saturating_add(ttl)),
                    name: names.next(),
                    tag: terms.tag.clone(),
                    kept: Some(kept),
                },
            );
        }
        Ok(ports)
    }

    /// Takes over a lease that was made before. Returns whether `port` is in the pool and was free.
    pub(crate) fn adopt(&mut self, port: u16, lease: Lease<K>) -> bool {
        let was_free = self.free.remove(port);
        if was_free {
            self.insert(port, lease);
        }
        was_free
    }

    /// Tells whether `port` is leased without its lock.
    pub(crate) fn lacks_lock(&self, port: u16) -> bool {
        let lease = self.leases.get(&port);
        lease.is_some_and(|lease| lease.kept.is_none())
    }

    /// Keeps the lease of `port`, if there is one, by `kept` from now on.
    pub(crate) fn keep(&mut self, port: u16, kept: K) {
        if let Some(lease) = self.leases.get_mut(&port) {
            lease.kept = Some(kept);
        }
    }

    /// Ends the lease of `port`, and returns it if there was one.
    pub(crate) fn release(&mut self, port: u16) -> Option<Lease<K>> {
        let lease = self.leases.remove(&port)?;
        if let Some(expires) = lease.expires {
            self.expiries.remove(&(expires, port));
        }
        if let Some(ports) = self.owners.get_mut(&lease.owner) {
            ports.remove(&port);
            if ports.is_empty() {
                self.owners.remove(&lease.owner);
            }
        }
        if let Some(count) = self.users.get_mut(&lease.uid) {
            *count -= 1;
            if *count == 0 {
                self.users.remove(&lease.uid);
            }
        }
        self.free.push(port);
        Some(lease)
    }

    /// Ends all leases of `owner`, and returns them.
    pub(crate) fn release_all(&mut self, owner: OwnerId) -> Vec<(u16, Lease<K>)> {
        let ports = self.owners.get(&owner).cloned().unwrap_or_default();
        ports
            .into_iter()
            .filter_map(|port| Some((port, self.release(port)?)))
            .collect()
    }

    /// Lets the lease of `port` end at `expires`. Returns whether there is one.
    pub(crate) fn renew(&mut self, port: u16, expires: Time) -> bool {
        let Some(lease) = self.leases.get_mut(&port) else {
            return false;
        };
        if let Some(before) = lease.expires.replace(expires) {
            self.expiries.remove(&(before, port));
        }
        self.expiries.insert((expires, port));
        true
    }

    /// Ends the leases whose time is over, and returns them.
    pub(crate) fn expire(&mut self, now: Time) -> Vec<(u16, Lease<K>)> {
        let over: Vec<u16> = self
            .expiries
            .iter()
            .take_while(|(time, _)| *time <= now)
            .map(|&(_, port)| port)
            .collect();
        over.into_iter()
            .filter_map(|port| Some((port, self.release(port)?)))
            .collect()
    }

    /// Returns when the next lease expires.
    pub(crate) fn next_expiry(&self) -> Option<Time> {
        self.expiries.first().map(|&(time, _)| time)
    }

    /// Returns when the next port has rested.
    pub(crate) fn next_rested(&self) -> Option<Time> {
        self.resting.first().map(|&(time, _)| time)
    }

    fn insert(&mut self, port: u16, lease: Lease<K>) {
        if let Some(expires) = lease.expires {
            self.expiries.insert((expires, port));
        }
        self.rests.remove(&port);
        self.owners.entry(lease.owner).or_default().insert(port);
        *self.users.entry(lease.uid).or_default() += 1;
        self.leases.insert(port, lease);
    }

    /// Puts the ports that have rested to the end of the free order.
    fn wake(&mut self, now: Time) {
        while let Some(&(until, port)) = self.resting.first()
            && until <= now
        {
            self.resting.pop_first();
            self.resting_until.remove(&port);
            self.free.push(port);
        }
    }

    fn rest(&mut self, port: u16, now: Time) {
        let rest = self
            .rests
            .get(&port)
            .map_or(FIRST_REST, |last| (*last * 2).min(LONGEST_REST));
        self.free.remove(port);
        self.rests.insert(port, rest);
        let until = now.saturating_add(rest);
        self.resting.insert((until, port));
        self.resting_until.insert(port, until);
    }

    /// Returns the free ports that `wish` allows: the preferred ones, then the oldest first.
    fn candidates(&self, wish: &Wish) -> Vec<u16> {
        let set = wish.ports.as_ref().unwrap_or(&self.ports);
        let mut seen = HashSet::new();
        let is_new = |port: &u16| self.may_be_tried(*port, wish) && seen.insert(*port);
        let mut preferred: Vec<u16> = wish.prefer.iter().copied().filter(is_new).collect();
        let mut others: Vec<u16> = set
            .iter()
            .filter(|port| self.may_be_tried(*port, wish) && !seen.contains(port))
            .collect();
        others.sort_unstable_by_key(|&port| self.free.stamp(port));
        preferred.extend(others);
        preferred
    }

    fn take_oldest(
        &mut self,
        wish: &Wish,
        now: Time,
        attempt: &mut dyn FnMut(u16) -> portpicker::Result<Attempt<K>>,
        taken: &mut Vec<(u16, K)>,
    ) -> portpicker::Result<()> {
        while taken.len() < wish.count
            && let Some(port) = self.free.first()
        {
            self.take_one(port, wish, now, attempt, taken)?;
        }
        Ok(())
    }

    fn take(
        &mut self,
        candidates: Vec<u16>,
        wish: &Wish,
        now: Time,
        attempt: &mut dyn FnMut(u16) -> portpicker::Result<Attempt<K>>,
        taken: &mut Vec<(u16, K)>,
    ) -> portpicker::Result<()> {
        for port in candidates {
            if taken.len() == wish.count {
                break;
            }
            self.take_one(port, wish, now, attempt, taken)?;
        }
        Ok(())
    }

    /// Takes the first block of neighbours that can be had whole, beginning where the last one
    /// ended, so that blocks too come back as late as possible.
    fn take_block(
        &mut self,
        wish: &Wish,
        now: Time,
        attempt: &mut dyn FnMut(u16) -> portpicker::Result<Attempt<K>>,
        taken: &mut Vec<(u16, K)>,
    ) -> portpicker::Result<()> {
        let set = wish.ports.as_ref().unwrap_or(&self.ports);
        let mut others: Vec<u16> = set.iter().collect();
        let cursor = others.partition_point(|&port| port < self.block_cursor);
        others.rotate_left(cursor);
        let allowed = set.clone();
        let preferred: HashSet<u16> = wish.prefer.iter().copied().collect();
        // No block that begins within these can be had: its end is missing.
        let mut gap = 0..=0;
        for start in wish.prefer.iter().copied().chain(others) {
            let Some(last) = start.checked_add((wish.count - 1) as u16) else {
                continue;
            };
            let is_preferred = preferred.contains(&start);
            if !is_preferred && gap.contains(&start) {
                continue;
            }
            let mut block = start..=last;
            let missing = block.clone().find(|&port| {
                !self.may_be_tried(port, wish) || !(is_preferred || allowed.contains(port))
            });
            if let Some(missing) = missing {
                gap = start..=missing;
                continue;
            }
            while taken.len() < wish.count
                && let Some(port) = block.next()
            {
                if !self.take_one(port, wish, now, attempt, taken)? {
                    gap = start..=port;
                    break;
                }
            }
            if taken.len() == wish.count {
                self.block_cursor = last.wrapping_add(1);
                return Ok(());
            }
            self.put_back(std::mem::take(taken));
        }
        Ok(())
    }

    /// Tells whether `port` is not leased, and worth an attempt for `wish`.
    fn may_be_tried(&self, port: u16, wish: &Wish) -> bool {
        let is_resting = || self.resting_until.contains_key(&port);
        self.free.contains(port) || (wish.is_partial && is_resting())
    }

    /// Tries a port. Returns whether it is taken now; otherwise it rests.
    fn take_one(
        &mut self,
        port: u16,
        wish: &Wish,
        now: Time,
        attempt: &mut dyn FnMut(u16) -> portpicker::Result<Attempt<K>>,
        taken: &mut Vec<(u16, K)>,
    ) -> portpicker::Result<bool> {
        match attempt(port)? {
            Attempt::Leased(kept) => {
                self.free.remove(port);
                if let Some(until) = self.resting_until.remove(&port) {
                    self.resting.remove(&(until, port));
                }
                taken.push((port, kept));
                Ok(true)
            }
            Attempt::LeasedElsewhere | Attempt::Occupied | Attempt::Forbidden => {
                if !wish.is_partial {
                    self.rest(port, now);
                }
                Ok(false)
            }
        }
    }

    fn put_back(&mut self, taken: Vec<(u16, K)>) {
        for (port, kept) in taken {
            drop(kept);
            self.free.push(port);
        }
    }
}

#[cfg(test)]
#[path = "pool_properties.rs"]
mod properties;

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Time = Duration::from_secs(1000);

    fn pool(ports: &str) -> Pool<u16> {
        Pool::new(ports.parse().unwrap(), None)
    }

    fn terms(owner: u64) -> Terms {
        Terms {
            owner: OwnerId(owner),
            uid: 7,
            ttl: None,
            names: Vec::new(),
            tag: None,
        }
    }

    fn free(port: u16) -> portpicker::Result<Attempt<u16>> {
        Ok(Attempt::Leased(port))
    }

    fn any(pool: &mut Pool<u16>, count: usize) -> Option<Vec<u16>> {
        let wish = Wish {
            count,
            ..Wish::default()
        };
        pool.lease(&wish, &terms(1), NOW, &mut free).ok()
    }

    #[test]
    fn a_port_comes_back_as_late_as_possible() {
        let mut pool = pool("1-3");
        assert_eq!(any(&mut pool, 1), Some(vec![1]));
        pool.release(1).unwrap();
        assert_eq!(any(&mut pool, 3), Some(vec![2, 3, 1]));
        assert_eq!(any(&mut pool, 1), None);
    }

    #[test]
    fn several_ports_are_leased_all_or_none() {
        let mut pool = pool("1-3");
        assert_eq!(any(&mut pool, 4), None);
        let wish = Wish {
            count: 3,
            ..Wish::default()
        };
        let mut one_is_occupied = |port| {
            Ok(if port == 2 {
                Attempt::Occupied
            } else {
                Attempt::Leased(port)
            })
        };
        assert!(
            pool.lease(&wish, &terms(1), NOW, &mut one_is_occupied)
                .is_err()
        );
        assert_eq!(
            (pool.leases().len(), pool.free(), pool.resting()),
            (0, 2, 1)
        );
    }

    #[test]
    fn an_occupied_port_rests_longer_each_time() {
        let mut pool = pool("1");
        let wish = Wish {
            count: 1,
            ..Wish::default()
        };
        let mut now = NOW;
        let mut asked = 0;
        for rest in [250, 500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000] {
            let mut occupied = |_| {
                asked += 1;
                Ok(Attempt::Occupied)
            };
            assert!(pool.lease(&wish, &terms(1), now, &mut occupied).is_err());
            // A refusal in between asks nobody.
            assert!(pool.lease(&wish, &terms(1), now, &mut occupied).is_err());
            assert_eq!(pool.next_rested(), Some(now + Duration::from_millis(rest)));
            now = pool.next_rested().unwrap();
        }
        assert_eq!(asked, 9);
        assert!(pool.lease(&wish, &terms(1), now, &mut free).is_ok());
    }

    #[test]
    fn a_wish_narrows_the_pool_and_names_the_first_to_try() {
        let mut pool = pool("1-10");
        let ports = Some("4-6".parse().unwrap());
        let wish = Wish {
            count: 2,
            ports: ports.clone(),
            prefer: vec![6, 9],
            ..Wish::default()
        };
        assert_eq!(
            pool.lease(&wish, &terms(1), NOW, &mut free).unwrap(),
            [6, 9]
        );
        let wish = Wish {
            count: 1,
            ports,
            ..Wish::default()
        };
        assert_eq!(pool.lease(&wish, &terms(1), NOW, &mut free).unwrap(), [4]);
        assert_eq!(pool.lease(&wish, &terms(1), NOW, &mut free).unwrap(), [5]);
        assert!(pool.lease(&wish, &terms(1), NOW, &mut free).is_err());
    }

    #[test]
    fn a_port_that_rests_is_tried_for_a_wish_that_looks_at_less() {
        let mut pool = pool("1-2");
        let mut occupied = |_| Ok(Attempt::Occupied);
        let whole = Wish {
            count: 1,
            ..Wish::default()
        };
        let partial = Wish {
            is_partial: true,
            ..whole.clone()
        };
        assert!(pool.lease(&partial, &terms(1), NOW, &mut occupied).is_err());
        assert_eq!(
            (pool.free(), pool.resting()),
            (2, 0),
            "it says nothing about the whole port"
        );
        assert!(pool.lease(&whole, &terms(1), NOW, &mut occupied).is_err());
        assert_eq!((pool.free(), pool.resting()), (0, 2));
        assert!(pool.lease(&whole, &terms(1), NOW, &mut free).is_err());
        assert!(pool.lease(&partial, &terms(1), NOW, &mut free).is_ok());
        let block = Wish {
            count: 2,
            contiguous: true,
            ..partial
        };
        assert!(pool.lease(&block, &terms(1), NOW, &mut free).is_err());
        pool.release(1).or_else(|| pool.release(2)).unwrap();
        assert_eq!(
            pool.lease(&block, &terms(1), NOW, &mut free).unwrap(),
            [1, 2]
        );
        assert_eq!(
            (pool.free(), pool.resting(), pool.next_rested()),
            (0, 0, None)
        );
    }

    #[test]
    fn a_block_is_made_of_free_neighbours() {
        let mut pool = pool("1-4,6-9");
        let wish = Wish {
            count: 3,
            contiguous: true,
            ..Wish::default()
        };
        let mut block = || pool.lease(&wish, &terms(1), NOW, &mut free).ok();
        assert_eq!(block(), Some(vec![1, 2, 3]));
        assert_eq!(block(), Some(vec![6, 7, 8]));
        assert_eq!(block(), None);
    }

    #[test]
    fn leases_end_with_their_owner_or_their_time() {
        let mut pool = pool("1-4");
        let wish = Wish {
            count: 1,
            ..Wish::default()
        };
        let ttl = Some(Duration::from_secs(5));
        pool.lease(&wish, &terms(1), NOW, &mut free).unwrap();
        pool.lease(&wish, &terms(2), NOW, &mut free).unwrap();
        pool.lease(&wish, &Terms { ttl, ..terms(2) }, NOW, &mut free)
            .unwrap();
        pool.lease(&wish, &Terms { ttl, ..terms(2) }, NOW, &mut free)
            .unwrap();
        assert!(pool.renew(4, NOW + Duration::from_secs(9)));
        assert_eq!(pool.next_expiry(), Some(NOW + Duration::from_secs(5)));

        let expired = pool.expire(NOW + Duration::from_secs(5));
        assert_eq!(
            expired.iter().map(|(port, _)| *port).collect::<Vec<_>>(),
            [3]
        );
        let ended = pool.release_all(OwnerId(2));
        assert_eq!(
            ended.iter().map(|(port, _)| *port).collect::<Vec<_>>(),
            [2, 4]
        );
        assert!(pool.has_leases(OwnerId(1)) && !pool.has_leases(OwnerId(2)));
        assert_eq!(pool.next_expiry(), None);
        assert_eq!(pool.free(), 3);
    }

    #[test]
    fn a_user_has_no_more_leases_than_the_limit() {
        let mut pool = Pool::new("1-9".parse().unwrap(), Some(2));
        let wish = |count| Wish {
            count,
            ..Wish::default()
        };
        assert!(matches!(
            pool.lease(&wish(3), &terms(1), NOW, &mut free),
            Err(Refusal::OverLimit)
        ));
        pool.lease(&wish(2), &terms(1), NOW, &mut free).unwrap();
        assert!(pool.lease(&wish(1), &terms(2), NOW, &mut free).is_err());
        let other = Terms { uid: 8, ..terms(3) };
        assert!(pool.lease(&wish(1), &other, NOW, &mut free).is_ok());
        pool.release(1).unwrap();
        assert!(pool.lease(&wish(1), &terms(1), NOW, &mut free).is_ok());
    }
}
