//! Do many who pick at the same time get different ports?

use std::collections::HashSet;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;

use portpicker::{Attempt, Attempts};
use portpicker_testing::worker::pick_at_once;
use portpicker_testing::{
    Binding, Local, Options, OwnProcess, Worker, in_network_namespace, network,
};

const PROCESSES: usize = 16;
const EACH: usize = 200;

/// Asserts that there are as many different ports as picks, all above 10,000.
fn assert_all_different(picked: &[Vec<u16>]) {
    let picks = picked.iter().flatten().count();
    let different: HashSet<u16> = picked.iter().flatten().copied().collect();
    assert_eq!(picks, PROCESSES * EACH);
    assert_eq!(different.len(), picks, "some ports were picked twice");
    assert!(different.iter().all(|port| *port > 10_000));
}

fn workers(environment: &[(&str, &str)]) -> Vec<Worker> {
    (0..PROCESSES)
        .map(|_| Worker::spawn_with(environment))
        .collect()
}

/// On the host itself, with whatever else is going on there.
#[test]
fn sixteen_processes_that_pick_200_ports_each_at_once_get_3200_different_ones() {
    assert_all_different(&pick_at_once(&mut workers(&[]), EACH));
}

#[test]
fn sixteen_processes_that_pick_at_once_stay_outside_the_ephemeral_range() {
    in_network_namespace(|| {
        let range = 12_000..=60_000;
        network::set_ephemeral_range(range.clone());
        let picked = pick_at_once(&mut workers(&[]), EACH);
        assert_all_different(&picked);
        for port in picked.into_iter().flatten() {
            assert!(!range.contains(&port), "{port}");
        }
    });
}

/// With as many candidates as picks, every process meets every other one's leases.
#[test]
fn sixteen_processes_that_pick_3200_ports_of_3200_get_them_all() {
    in_network_namespace(|| {
        let mut workers = workers(&[("PORTPICKER_PORTS", "20000-23199")]);
        assert_all_different(&pick_at_once(&mut workers, EACH));
        let refusal = workers[0].pick().unwrap_err();
        assert!(refusal.contains("leased: 3200, occupied: 0"), "{refusal}");
    });
}

#[test]
fn ports_lie_outside_the_ephemeral_range_wherever_that_is() {
    in_network_namespace(|| {
        network::set_ephemeral_range(10_001..=60_000);
        for port in portpicker::pick_unused_ports(200).unwrap() {
            assert!(port > 60_000, "{port}");
        }
    });
}

#[test]
fn threads_that_pick_at_once_get_different_ports() {
    const THREADS: usize = 8;
    OwnProcess::new().run(|| {
        let barrier = Barrier::new(THREADS);
        let ports: Vec<u16> = thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS)
                .map(|_| {
                    scope.spawn(|| {
                        barrier.wait();
                        let ports = (0..50).map(|_| portpicker::pick_unused_port().unwrap());
                        ports.collect::<Vec<_>>()
                    })
                })
                .collect();
            threads
                .into_iter()
                .flat_map(|thread| thread.join().unwrap())
                .collect()
        });
        let different: HashSet<_> = ports.iter().collect();
        assert_eq!(different.len(), THREADS * 50);
    });
}

/// A port that one thread returns is offered to one other, not to all.
#[test]
fn threads_that_pick_and_return_at_once_never_share_a_port() {
    const THREADS: usize = 8;
    OwnProcess::new()
        .env("PORTPICKER_PORTS", "20000-20015")
        .network_namespace()
        .run(|| {
            let owned = std::sync::Mutex::new(HashSet::new());
            let barrier = Barrier::new(THREADS);
            thread::scope(|scope| {
                for _ in 0..THREADS {
                    scope.spawn(|| {
                        barrier.wait();
                        for _ in 0..100 {
                            let port = portpicker::pick_unused_port().unwrap();
                            assert!(owned.lock().unwrap().insert(port), "{port} is another's");
                            owned.lock().unwrap().remove(&port);
                            assert!(portpicker::return_port(port));
                        }
                    });
                }
            });
        });
}

/// A probe is a bind. Whoever tries to lease a port that is leased must not come as far.
#[test]
fn attempts_at_a_leased_port_are_never_in_the_way_of_its_owner() {
    in_network_namespace(|| {
        let Ok(Attempt::Leased(lease)) = Attempts::new().lease(20_000) else {
            panic!("nobody else is here");
        };
        let (barrier, is_over) = (Barrier::new(3), AtomicBool::new(false));
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let mut attempts = Attempts::new();
                    barrier.wait();
                    while !is_over.load(Relaxed) {
                        let attempt = attempts.lease(20_000).unwrap();
                        assert!(matches!(attempt, Attempt::LeasedElsewhere), "{attempt:?}");
                    }
                });
            }
            barrier.wait();
            let binding = Binding::listening(Local::DUAL, Options::None);
            let results: Vec<_> = (0..2000).map(|_| binding.bind(20_000).map(drop)).collect();
            is_over.store(true, Relaxed);
            let failed = results.into_iter().find_map(Result::err);
            assert!(failed.is_none(), "{failed:?}");
        });
        drop(lease);
    });
}
