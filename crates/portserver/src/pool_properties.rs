//! The pool against a model that is too plain to be wrong: any operations, in any order.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::rc::Rc;
use std::time::Duration;

use portpicker::{Attempt, PortSet};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::{Lease, OwnerId, Pool, Refusal, Terms, Time, Wish};

/// The pool: two runs of neighbours, so that blocks have ends.
const PORTS: std::ops::RangeInclusive<u16> = 1..=12;
const POOL: &str = "1-7,9-12";
const USER_LIMIT: usize = 6;

#[derive(Clone, Debug)]
enum Operation {
    Lease {
        wish: Wish,
        owner: u64,
        ttl: Option<u64>,
    },
    Release(u16),
    ReleaseAll(u64),
    Renew(u16, u64),
    /// Some time passes, and what is over is ended.
    Pass(u64),
    /// Somebody else takes the port, or stops.
    Toggle(u16),
    Adopt(u16, u64),
}

fn wish() -> impl Strategy<Value = Wish> {
    let set = vec(PORTS, 0..8).prop_map(PortSet::from_ports);
    (1..6_usize, any::<bool>(), set, vec(PORTS, 0..4)).prop_map(
        |(count, contiguous, ports, prefer)| Wish {
            count,
            contiguous,
            is_partial: false,
            // Parts of the pool, as the server makes sure.
            ports: ports.and_then(|ports| ports.intersection(&POOL.parse().unwrap())),
            prefer: prefer.into_iter().filter(|port| *port != 8).collect(),
        },
    )
}

fn operation() -> impl Strategy<Value = Operation> {
    let any_port = Just(Wish {
        count: 1,
        ..Wish::default()
    });
    let wish = prop_oneof![any_port, wish()];
    prop_oneof![
        5 => (wish, 1..5_u64, option::of(1..2000_u64))
            .prop_map(|(wish, owner, ttl)| Operation::Lease { wish, owner, ttl }),
        3 => PORTS.prop_map(Operation::Release),
        1 => (1..5_u64).prop_map(Operation::ReleaseAll),
        1 => (PORTS, 1..2000_u64).prop_map(|(port, ttl)| Operation::Renew(port, ttl)),
        2 => prop_oneof![1..500_u64, 500..40_000_u64].prop_map(Operation::Pass),
        1 => PORTS.prop_map(Operation::Toggle),
        1 => (PORTS, 1..5_u64).prop_map(|(port, owner)| Operation::Adopt(port, owner)),
    ]
}

/// What a lease is in the model: its owner, and when it ends.
type Known = (u64, Option<Time>);

/// The model: who has what, and in which order the others came back.
#[derive(Debug, Default)]
struct Model {
    leases: BTreeMap<u16, Known>,
    /// The oldest first; with those that rest, in no certain place.
    came_back: Vec<u16>,
    occupied: HashSet<u16>,
    now: Time,
}

/// Two users share the owners.
fn uid(owner: u64) -> u32 {
    (owner % 2) as u32
}

fn terms(owner: u64, ttl: Option<Duration>) -> Terms {
    Terms {
        owner: OwnerId(owner),
        uid: uid(owner),
        ttl,
        names: Vec::new(),
        tag: Some(Rc::from("tag")),
    }
}

impl Model {
    fn of_user(&self, uid_wanted: u32) -> usize {
        let owners = self.leases.values();
        owners
            .filter(|(owner, _)| uid(*owner) == uid_wanted)
            .count()
    }

    fn end(&mut self, ports: Vec<u16>) {
        for port in ports {
            self.leases.remove(&port).unwrap();
            self.came_back.push(port);
        }
    }

    fn ports_where(&self, is_wanted: impl Fn(&Known) -> bool) -> Vec<u16> {
        let leases = self.leases.iter();
        leases
            .filter(|(_, lease)| is_wanted(lease))
            .map(|(port, _)| *port)
            .collect()
    }
}

/// Leases by both, and compares.
fn lease(pool: &mut Pool<u16>, model: &mut Model, wish: &Wish, owner: u64, ttl: Option<Duration>) {
    // What rests does so for a while, and then is the last to come again. For how long is the
    // pool's affair; whatever it tries must be free in the model's books, be wanted, and rest not.
    let mut resting = HashSet::new();
    for &(until, port) in &pool.resting {
        if until > model.now {
            resting.insert(port);
        } else {
            model.came_back.retain(|other| *other != port);
            model.came_back.push(port);
        }
    }
    let mut tried = Vec::new();
    let result = pool.lease(wish, &terms(owner, ttl), model.now, &mut |port| {
        tried.push(port);
        Ok(if model.occupied.contains(&port) {
            Attempt::Occupied
        } else {
            Attempt::Leased(port)
        })
    });
    for port in &tried {
        assert!(
            !model.leases.contains_key(port),
            "{port} is leased, and was tried"
        );
        assert!(!resting.contains(port), "{port} rests, and was tried");
        let is_allowed = wish
            .ports
            .as_ref()
            .is_none_or(|ports| ports.contains(*port));
        let may_follow = wish.contiguous && !wish.prefer.is_empty();
        assert!(
            is_allowed || wish.prefer.contains(port) || may_follow,
            "{port} was not wanted"
        );
    }
    let occupied_tries = tried
        .iter()
        .filter(|port| model.occupied.contains(port))
        .count();
    let different: HashSet<_> = tried
        .iter()
        .filter(|port| model.occupied.contains(port))
        .collect();
    assert_eq!(
        occupied_tries,
        different.len(),
        "an occupied port was tried twice: {tried:?}"
    );

    let can_have: Vec<u16> = model
        .came_back
        .iter()
        .copied()
        .filter(|port| {
            let is_wanted = wish
                .ports
                .as_ref()
                .is_none_or(|ports| ports.contains(*port));
            (is_wanted || wish.prefer.contains(port))
                && !model.occupied.contains(port)
                && !resting.contains(port)
        })
        .collect();
    match result {
        Ok(ports) => {
            assert_eq!(ports.len(), wish.count);
            let different: HashSet<_> = ports.iter().collect();
            assert_eq!(different.len(), wish.count, "{ports:?}");
            assert!(model.of_user(uid(owner)) + wish.count <= USER_LIMIT);
            if wish.contiguous {
                assert!(
                    ports.windows(2).all(|pair| pair[0] + 1 == pair[1]),
                    "{ports:?}"
                );
            } else if wish.ports.is_none() && wish.prefer.is_empty() {
                assert_eq!(ports, can_have[..wish.count], "the oldest come first");
            } else {
                let mut preferred = wish.prefer.clone();
                preferred.retain(|port| can_have.contains(port));
                let mut seen = HashSet::new();
                preferred.retain(|port| seen.insert(*port));
                let others = can_have
                    .iter()
                    .copied()
                    .filter(|port| !preferred.contains(port));
                let expected: Vec<u16> = preferred
                    .iter()
                    .copied()
                    .chain(others)
                    .take(wish.count)
                    .collect();
                assert_eq!(ports, expected, "preferred ones, then the oldest");
            }
            for port in ports {
                let expires = ttl.map(|ttl| model.now + ttl);
                assert!(!model.occupied.contains(&port));
                assert_eq!(
                    model.leases.insert(port, (owner, expires)),
                    None,
                    "{port} twice"
                );
                model.came_back.retain(|other| *other != port);
            }
        }
        Err(Refusal::OverLimit) => {
            assert!(model.of_user(uid(owner)) + wish.count > USER_LIMIT);
            assert_eq!(tried, [0; 0]);
        }
        Err(Refusal::Exhausted) => {
            let starts = can_have.iter().copied().chain(wish.prefer.iter().copied());
            let could = if wish.contiguous {
                // A block that begins with a preferred port may leave the wanted ones.
                starts.into_iter().any(|start| {
                    let is_free = |port: u16| {
                        model.came_back.contains(&port)
                            && !model.occupied.contains(&port)
                            && !resting.contains(&port)
                    };
                    let is_preferred = wish.prefer.contains(&start);
                    (start..start + wish.count as u16).all(|port| {
                        is_free(port)
                            && (is_preferred
                                || wish.ports.as_ref().is_none_or(|ports| ports.contains(port)))
                    })
                })
            } else {
                can_have.len() >= wish.count
            };
            assert!(!could, "refused {wish:?}, and there are {can_have:?}");
        }
        Err(Refusal::Failed(err)) => panic!("nothing fails here: {err}"),
    }
    // Whatever was tried and not leased has gone to the end of the order, in which the pool's
    // word is taken: the order among these is its own affair.
    let leftover: Vec<u16> = tried
        .into_iter()
        .filter(|port| !model.leases.contains_key(port))
        .collect();
    if !leftover.is_empty() {
        model.came_back.sort_by_key(|port| {
            if pool.free.contains(*port) {
                pool.free.stamp(*port)
            } else {
                u64::MAX
            }
        });
    }
}

/// Asserts that the pool's books agree with the model, and with each other.
fn compare(pool: &Pool<u16>, model: &Model) {
    let leases = pool.leases();
    assert!(leases.keys().eq(model.leases.keys()), "{leases:?}");
    for (port, lease) in leases {
        assert_eq!((lease.owner.0, lease.expires), model.leases[port], "{port}");
        assert_eq!(lease.uid, uid(lease.owner.0));
        assert!(!pool.free.contains(*port), "{port} is leased and free");
    }
    assert_eq!(
        leases.len() + pool.free() + pool.resting(),
        pool.ports().len()
    );
    for (_, port) in &pool.resting {
        assert!(
            !leases.contains_key(port) && !pool.free.contains(*port),
            "{port}"
        );
    }
    let mut owners: HashMap<u64, HashSet<u16>> = HashMap::new();
    for (port, (owner, _)) in &model.leases {
        owners.entry(*owner).or_default().insert(*port);
    }
    assert_eq!(pool.owners(), owners.len());
    for (owner, ports) in owners {
        assert!(pool.has_leases(OwnerId(owner)));
        let of_owner = &pool.owners[&OwnerId(owner)];
        assert!(of_owner.len() == ports.len() && of_owner.iter().all(|port| ports.contains(port)));
    }
    for uid in [0, 1] {
        let count = pool.users.get(&uid).copied();
        assert_eq!(count.unwrap_or(0), model.of_user(uid));
        assert_ne!(count, Some(0), "users without leases are forgotten");
    }
    let next = model
        .leases
        .values()
        .filter_map(|(_, expires)| *expires)
        .min();
    assert_eq!(pool.next_expiry(), next);
    let ending = leases
        .values()
        .filter(|lease| lease.expires.is_some())
        .count();
    assert_eq!(pool.expiries.len(), ending);
}

fn apply(pool: &mut Pool<u16>, model: &mut Model, operation: Operation) {
    let millis = Duration::from_millis;
    match operation {
        Operation::Lease { wish, owner, ttl } => {
            lease(pool, model, &wish, owner, ttl.map(millis));
        }
        Operation::Release(port) => {
            let ended = pool.release(port);
            assert_eq!(ended.is_some(), model.leases.contains_key(&port));
            if ended.is_some() {
                model.end(vec![port]);
            }
        }
        Operation::ReleaseAll(owner) => {
            let ended: Vec<u16> = pool
                .release_all(OwnerId(owner))
                .into_iter()
                .map(|(port, _)| port)
                .collect();
            assert_eq!(ended, model.ports_where(|(other, _)| *other == owner));
            model.end(ended);
        }
        Operation::Renew(port, ttl) => {
            let expires = model.now + millis(ttl);
            assert_eq!(pool.renew(port, expires), model.leases.contains_key(&port));
            if let Some((_, end)) = model.leases.get_mut(&port) {
                *end = Some(expires);
            }
        }
        Operation::Pass(time) => {
            model.now += millis(time);
            let ended: Vec<u16> = pool
                .expire(model.now)
                .into_iter()
                .map(|(port, _)| port)
                .collect();
            let now = model.now;
            let mut sorted = ended.clone();
            sorted.sort_unstable();
            assert_eq!(
                sorted,
                model.ports_where(|(_, end)| end.is_some_and(|end| end <= now))
            );
            model.end(ended);
        }
        Operation::Toggle(port) => {
            // Those who have leased a port use it, or not: that is not asked.
            if !model.leases.contains_key(&port) && !model.occupied.remove(&port) {
                model.occupied.insert(port);
            }
        }
        Operation::Adopt(port, owner) => {
            let was_free = pool.free.contains(port);
            let adopted = pool.adopt(
                port,
                Lease {
                    owner: OwnerId(owner),
                    uid: uid(owner),
                    since: model.now,
                    expires: None,
                    name: None,
                    tag: None,
                    kept: None,
                },
            );
            assert_eq!(adopted, was_free);
            if adopted {
                model.leases.insert(port, (owner, None));
                model.came_back.retain(|other| *other != port);
                model.occupied.remove(&port);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn the_pool_agrees_with_the_model(operations in vec(operation(), 1..80)) {
        let mut pool = Pool::new(POOL.parse().unwrap(), Some(USER_LIMIT));
        let mut model = Model {
            came_back: pool.ports().iter().collect(),
            now: Duration::from_secs(1000),
            ..Model::default()
        };
        for operation in operations {
            apply(&mut pool, &mut model, operation);
            compare(&pool, &model);
        }
        // Every lease ends: with its owner, if with nothing else.
        for owner in 1..5 {
            pool.release_all(OwnerId(owner));
        }
        assert_eq!((pool.leases().len(), pool.owners(), pool.users.len()), (0, 0, 0));
        // And every port can be had again, once nobody else uses it and it has rested.
        let later = model.now + Duration::from_secs(60);
        let all = Wish { count: pool.ports().len(), ..Wish::default() };
        let mut unlimited = Terms { uid: 9, ..terms(9, None) };
        unlimited.names = Vec::new();
        pool.user_limit = usize::MAX;
        let ports = pool.lease(&all, &unlimited, later, &mut |port| Ok(Attempt::Leased(port))).unwrap();
        assert_eq!(ports.len(), pool.ports().len());
    }
}
