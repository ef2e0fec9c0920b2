//! The library as the client of the real server, which runs in a thread of the test.
//!
//! Every test has a network namespace, and with it all ports and all names, to itself; and a
//! process, since the server installs signal handlers and runs until the process ends.
#![expect(
    clippy::unwrap_used,
    reason = "a test that meets what it does not expect has failed"
)]

use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use portpicker::process::Pid;
use portpicker::{
    Error, Kind, Picker, PortSet, Refusal, Server, ServerAddress, client, pick_unused_port,
    pick_unused_ports, return_port,
};
use portpicker_testing::{Binding, Local, OwnProcess, in_network_namespace};
use portserver::Options;

/// Longer than anything that happens, for waits that end with an event.
const LONG: Duration = Duration::from_secs(45);

fn set(text: &str) -> PortSet {
    text.parse().expect("it is a set of ports")
}

fn address() -> ServerAddress {
    "@server".parse().expect("it is an address")
}

/// Starts a server of `ports` at `@server`, and returns when it listens.
fn serve(ports: &str) {
    serve_with_limit(ports, None);
}

fn serve_with_limit(ports: &str, user_limit: Option<usize>) {
    let ports = set(ports);
    let (ready, is_ready) = mpsc::channel();
    thread::spawn(move || {
        let mut options = Options::new(ports);
        options.addresses = vec!["@server".parse().expect("it is an address")];
        options.user_limit = user_limit;
        let ended = portserver::serve(options, move || ready.send(()).expect("the test goes on"));
        panic!("the server has ended: {ended:?}");
    });
    is_ready.recv().expect("the server listens");
}

fn picker() -> Picker {
    Picker::new().server(Server::At(address()))
}

/// Returns the ports that the server has leased, and to whom.
fn listed() -> Vec<(u16, Option<Pid>)> {
    let leases = client::list(&address(), LONG).unwrap();
    leases
        .iter()
        .map(|lease| (lease.port, lease.owner))
        .collect()
}

/// Returns why `result` was refused.
fn refusal<T: std::fmt::Debug>(result: portpicker::Result<T>) -> Refusal {
    match result {
        Err(Error::Refused {
            refusal: Some(refusal),
            ..
        }) => refusal,
        other => panic!("{other:?}"),
    }
}

/// A process that owns ports until it is dropped.
struct Owner(Child);

impl Owner {
    fn start() -> Self {
        // It reads a pipe that nobody writes to, so it ends with the test, whatever happens.
        let mut cat = Command::new("cat");
        cat.stdin(Stdio::piped()).stdout(Stdio::null());
        Self(cat.spawn().unwrap())
    }

    fn pid(&self) -> Pid {
        Pid::new(self.0.id()).unwrap()
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn every_option_is_served() {
    in_network_namespace(|| {
        serve("20000-20009");
        let us = Some(Pid::current());
        let preferred = picker().prefer([20_005]).lease().unwrap();
        assert_eq!(preferred.port(), 20_005);
        assert_eq!(preferred.server(), Some(&address()));
        let one = picker()
            .ports(set("20004-20005"))
            .tag("one")
            .lease()
            .unwrap();
        assert_eq!(one.port(), 20_004);
        let block = picker().exclude(set("20000")).lease_block(3).unwrap();
        assert_eq!(block[0].port(), 20_001);
        assert_eq!(listed().len(), 5);
        assert!(listed().iter().all(|&(_, owner)| owner == us));
        let tags: Vec<_> = client::list(&address(), LONG)
            .unwrap()
            .into_iter()
            .filter_map(|lease| Some((lease.port, lease.tag?)))
            .collect();
        assert_eq!(tags, [(20_004, "one".to_owned())]);

        let _udp = Binding::udp(Local::ALL_V4, portpicker_testing::Options::None).bind(20_000);
        let rest = picker().ports(set("20000"));
        drop(rest.clone().only(Kind::Tcp).lease().unwrap());
        assert_eq!(refusal(rest.lease()), Refusal::Exhausted);
        let local = picker().ports(set("20006")).address([127, 0, 0, 1].into());
        assert_eq!(local.lease().unwrap().port(), 20_006);
    });
}

#[test]
fn several_ports_are_all_or_none() {
    in_network_namespace(|| {
        serve("20000-20002");
        assert_eq!(refusal(picker().leases(4)), Refusal::Exhausted);
        assert_eq!(listed(), []);
        let leases = picker().leases(3).unwrap();
        assert_eq!(listed().len(), 3);
        drop(leases);
        assert_eq!(listed(), []);
    });
}

#[test]
fn a_dropped_lease_is_the_servers_again_by_whichever_protocol_it_was_made() {
    in_network_namespace(|| {
        serve("20000");
        for _ in 0..3 {
            assert_eq!(picker().lease().unwrap().port(), 20_000);
            assert_eq!(picker().tag("ci").hold().unwrap().port(), 20_000);
        }
        assert_eq!(listed(), []);
    });
}

#[test]
fn picks_of_this_process_stay_leased_and_a_returned_one_comes_first() {
    OwnProcess::new()
        .env("PORTSERVER_ADDRESS", "@server")
        .env("PORTPICKER_PORTS", "30000")
        .network_namespace()
        .run(|| {
            serve("20000-20002");
            let first = pick_unused_port().unwrap();
            let mut all = pick_unused_ports(2).unwrap();
            all.push(first);
            all.sort_unstable();
            assert_eq!(all, [20_000, 20_001, 20_002]);
            assert!(return_port(first));
            assert_eq!(listed().len(), 3, "it is kept for this process");
            assert_eq!(pick_unused_port().unwrap(), first);
            assert_eq!(pick_unused_port().unwrap(), 30_000, "and then without it");
        });
}

#[test]
fn a_lease_for_another_process_outlives_its_value_and_ends_with_that_process() {
    in_network_namespace(|| {
        serve("20000-20001");
        let owner = Owner::start();
        let pid = owner.pid();
        drop(picker().owner(pid).leases(2).unwrap());
        assert_eq!(listed(), [(20_000, Some(pid)), (20_001, Some(pid))]);
        assert_eq!(refusal(picker().tag("ci").lease()), Refusal::Exhausted);
        drop(owner);
        // The server sees the exit, and lets us go on.
        assert_eq!(picker().wait(LONG).leases(2).unwrap().len(), 2);
    });
}

#[test]
fn a_wait_ends_when_a_port_comes_back() {
    in_network_namespace(|| {
        serve("20000");
        let lease = picker().lease().unwrap();
        let waiting = thread::spawn(|| picker().wait(LONG).lease().map(|lease| lease.port()));
        // However far the thread is, this is the event that it waits for.
        drop(lease);
        assert_eq!(waiting.join().unwrap().unwrap(), 20_000);

        let _lease = picker().lease().unwrap();
        let (begin, limit) = (Instant::now(), Duration::from_millis(100));
        let result = picker().wait(limit).lease();
        assert_eq!(refusal(result), Refusal::Exhausted);
        assert!(begin.elapsed() >= limit);
    });
}

#[test]
fn every_refusal_says_why() {
    in_network_namespace(|| {
        serve_with_limit("20000-20009", Some(2));
        let picker = picker().tag("ci");
        let init = picker.clone().owner(Pid::INIT).lease();
        assert_eq!(refusal(init), Refusal::NoProcess);
        let gone = Owner::start().pid();
        assert_eq!(
            refusal(picker.clone().owner(gone).lease()),
            Refusal::NoProcess
        );
        let elsewhere = picker.clone().ports(set("30000")).lease();
        assert_eq!(refusal(elsewhere), Refusal::Exhausted);
        assert_eq!(refusal(picker.leases(3)), Refusal::OverLimit);
        let too_many = picker.exclude(set("1")).leases(1001);
        assert_eq!(refusal(too_many), Refusal::BadRequest);
    });
}

#[test]
fn a_release_is_all_or_none() {
    in_network_namespace(|| {
        serve("20000-20001");
        let owner = Owner::start();
        drop(picker().owner(owner.pid()).tag("ci").lease().unwrap());
        let release = |ports: &[u16]| client::release(&address(), ports, LONG);
        match release(&[20_000, 20_001]) {
            Err(Error::Declined {
                refusal, reason, ..
            }) => {
                assert_eq!(refusal, Refusal::NotLeased);
                assert_eq!(reason, "port 20001 is not leased");
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(listed().len(), 1);
        release(&[20_000]).unwrap();
        assert_eq!(listed(), []);
    });
}

/// A request longer than the server takes is refused, and the answer is read although the server
/// hangs up.
#[test]
fn a_request_that_is_too_long_is_refused() {
    in_network_namespace(|| {
        serve("20000");
        let result = picker().prefer(1..=65_535).lease();
        assert_eq!(refusal(result), Refusal::BadRequest);
    });
}

#[test]
fn many_leases_are_listed_whole() {
    in_network_namespace(|| {
        serve("20000-21999");
        let owner = Owner::start();
        let tag = "ß".repeat(100);
        for _ in 0..2 {
            drop(picker().owner(owner.pid()).tag(&tag).leases(1000).unwrap());
        }
        let leases = client::list(&address(), LONG).unwrap();
        assert_eq!(leases.len(), 2000);
        assert!(
            leases
                .iter()
                .all(|lease| lease.tag.as_deref() == Some(&tag))
        );
        assert!(leases.is_sorted_by_key(|lease| lease.port));
        assert_eq!(leases[0].command.as_deref(), Some("cat"));
    });
}
