//! `kill -9` at any moment: is a port lost, or granted twice?

use std::collections::HashMap;
use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::Instant;

use portpicker_testing::in_network_namespace;

use crate::client::{Client, Owner, ask, lease, port, ports};
use crate::server::{Setup, TestServer};
use crate::{LONG, number, report};

/// How many ports there are, and how many of them the clients have at most: all but a few.
const PORTS: usize = 60;
const CLIENTS: usize = 4;
const OWNERS_EACH: usize = 7;

/// What the clients know of each other.
#[derive(Debug, Default)]
struct Living {
    /// Who has been granted each port, and has not been killed.
    owners: Mutex<HashMap<u16, u32>>,
    grants: AtomicUsize,
    refusals: AtomicUsize,
    /// Connections that a killed server has left.
    broken: AtomicUsize,
    is_over: AtomicBool,
}

impl Living {
    fn granted(&self, ports: &[u16], owner: u32) {
        let mut owners = self.owners.lock().unwrap();
        for &port in ports {
            if let Some(other) = owners.insert(port, owner) {
                panic!("port {port} was granted to {owner}, and {other} is alive and has it");
            }
        }
        drop(owners);
        self.grants.fetch_add(1, Relaxed);
    }

    fn about_to_die(&self, owner: u32) {
        self.owners
            .lock()
            .unwrap()
            .retain(|_, &mut pid| pid != owner);
    }
}

/// Numbers that look random, and are the same for the same seed.
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        // Numerical Recipes' linear congruential generator; its high bits are good enough.
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % end
    }
}

/// Asks once. A server that is away or dies is an error; a refusal is `None`.
fn try_ask(owner: u32, extended: bool) -> io::Result<Option<Vec<u16>>> {
    let mut client = Client::try_connect(&crate::server::address())?;
    if !extended {
        client.try_send(format!("{owner}\n").as_bytes())?;
        let answer = client.try_end()?;
        // Nothing is a refusal, or the end of a server: a client cannot tell, and asks again.
        return Ok(port(&answer).map(|port| vec![port]));
    }
    let request = lease(&format!(r#""owner":{owner},"count":2,"tag":"a test""#));
    client.try_send(format!("{request}\n").as_bytes())?;
    client.try_half_close()?;
    let answer = client.try_end()?;
    if !answer.ends_with(b"\n") {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let answer: serde_json::Value = serde_json::from_slice(&answer).unwrap();
    if answer["ok"] == true {
        return Ok(Some(ports(&answer)));
    }
    assert_eq!(answer["error"], "exhausted", "{answer}");
    Ok(None)
}

/// Starts owners, asks for ports for them, and kills them, until it is over.
fn be_a_client(living: &Living, mut random: Random) {
    let mut owners: Vec<Owner> = Vec::new();
    while !living.is_over.load(Relaxed) {
        if owners.len() == OWNERS_EACH || (!owners.is_empty() && random.below(3) == 0) {
            let owner = owners.swap_remove(random.below(owners.len()));
            living.about_to_die(owner.pid());
            owner.kill();
            continue;
        }
        let owner = Owner::start();
        let extended = random.below(2) == 0;
        // Until it has a port: every failure can be tried again.
        while !living.is_over.load(Relaxed) {
            match try_ask(owner.pid(), extended) {
                Ok(Some(ports)) => {
                    living.granted(&ports, owner.pid());
                    break;
                }
                Ok(None) => _ = living.refusals.fetch_add(1, Relaxed),
                Err(_) => {
                    living.broken.fetch_add(1, Relaxed);
                    thread::yield_now();
                }
            }
        }
        owners.push(owner);
    }
    for owner in owners {
        living.about_to_die(owner.pid());
        owner.kill();
    }
}

#[test]
fn a_server_killed_200_times_under_load_loses_no_port_and_grants_none_twice() {
    in_network_namespace(|| {
        let kills = number("PORTPICKER_KILLS", 200);
        let seed = number("PORTPICKER_SEED", std::process::id() as usize);
        report(&format!("PORTPICKER_SEED={seed}"));
        let mut random = Random(seed as u64);
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        let last = 20_000 + PORTS - 1;
        let setup = Setup::new(&format!("20000-{last}")).state(&state);
        let living = Living::default();

        let mut server = setup.start();
        thread::scope(|scope| {
            for client in 0..CLIENTS {
                let random = Random((seed + client) as u64);
                scope.spawn(|| be_a_client(&living, random));
            }
            let over = Over(&living);
            for _ in 0..kills {
                let enough = living.grants.load(Relaxed) + random.below(20);
                let end = Instant::now() + LONG;
                while living.grants.load(Relaxed) < enough {
                    assert!(Instant::now() < end, "no grants: {living:?}");
                    thread::yield_now();
                }
                server.kill();
                if random.below(4) == 0 {
                    // Also while it starts and adopts: after some line of its log.
                    server.restart_and_kill_after_lines(random.below(4));
                }
                server.restart();
            }
            drop(over);
        });
        report(&format!("{living:?}"));
        assert!(living.grants.load(Relaxed) >= kills);

        // All owners are gone, whoever of the servers granted what.
        let all = server
            .connect()
            .lease(&format!(r#""count":{PORTS},"wait":30"#));
        assert_eq!(all.len(), PORTS);
        for line in server.log.lines() {
            assert!(!line.contains("dropped"), "{line}");
        }
    });
}

/// Lets the clients end, also if the test fails.
struct Over<'a>(&'a Living);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.is_over.store(true, Relaxed);
    }
}

#[test]
fn leases_go_on_after_a_kill_with_all_that_was_known_of_them() {
    in_network_namespace(|| {
        let folder = tempfile::tempdir().unwrap();
        let setup = Setup::new("20000-20009")
            .limit(6)
            .state(&folder.path().join("state"));
        let mut server = setup.start();
        let (stays, goes) = (Owner::start(), Owner::start());
        let mut client = server.connect();
        client.lease(&format!(
            r#""owner":{},"names":["a","b"],"tag":"tagged","ttl":1000"#,
            stays.pid()
        ));
        client.lease(&format!(r#""owner":{}"#, goes.pid()));
        client.lease(r#""ttl":0.001"#);
        client.lease(r#""owner":"connection""#);
        let before: Vec<_> = server.list().into_iter().take(2).collect();
        server.kill();
        goes.kill();
        server.restart();

        let after = server.list();
        assert_eq!(after.len(), 2, "{after:?}");
        for (before, after) in before.iter().zip(&after) {
            for name in ["port", "pid", "uid", "command", "name", "tag"] {
                assert_eq!(before[name], after[name]);
            }
            let number = |lease: &serde_json::Value, name: &str| lease[name].as_f64().unwrap();
            assert!(number(before, "age") < number(after, "age"));
            assert!(number(before, "expires") > number(after, "expires"));
        }
        // Locked: nobody else leases it. Limited: they count.
        assert_library_refused(20_000);
        let mut client = server.connect();
        assert_eq!(client.lease(r#""count":4"#).len(), 4);
        assert_eq!(client.error(&lease("")), "over-limit");
        client.ok(r#"{"v":1,"op":"release","ports":[20000,20001]}"#);
        assert_eq!(client.lease(r#""count":2"#).len(), 2);
    });
}

fn assert_library_refused(port: u16) {
    let lease = portpicker::Picker::new()
        .server(portpicker::Server::None)
        .ports(portpicker::PortSet::from_ports([port]).unwrap())
        .lease();
    assert!(lease.is_err(), "{lease:?}");
}

#[test]
fn leases_go_on_after_an_orderly_end_too() {
    in_network_namespace(|| {
        let folder = tempfile::tempdir().unwrap();
        let setup = Setup::new("20000-20001").state(&folder.path().join("state"));
        let server = setup.clone().start();
        let owner = Owner::start();
        assert_eq!(server.ask(owner.pid()), Some(20_000));
        let (status, _) = server.terminate();
        assert_eq!(status.code(), Some(0));
        let server = setup.start();
        assert_eq!(server.list()[0]["pid"], owner.pid());
        assert_eq!(server.ask_for_this(), Some(20_001));
        assert_eq!(server.ask_for_this(), None);
        owner.kill();
        assert_eq!(server.connect().lease(r#""wait":30"#), [20_000]);
    });
}

#[test]
fn a_port_that_somebody_leased_while_the_server_was_away_stays_with_its_owner_too() {
    in_network_namespace(|| {
        let folder = tempfile::tempdir().unwrap();
        let setup = Setup::new("20000-20001").state(&folder.path().join("state"));
        let mut server = setup.start();
        let owner = Owner::start();
        assert_eq!(server.ask(owner.pid()), Some(20_000));
        server.kill();
        let picker = portpicker::Picker::new().server(portpicker::Server::None);
        let other = picker.ports("20000".parse().unwrap()).lease().unwrap();
        server.restart();
        server.log.wait_for("port 20000: leased by somebody else");
        owner.kill();
        // The server's lease is over; the other one is not.
        let granted = [(); 2].map(|()| server.ask_for_this());
        assert_eq!(granted, [Some(20_001), None]);
        drop(other);
        assert_eq!(server.connect().lease(r#""wait":40"#), [20_000]);
    });
}

#[test]
fn a_lease_has_its_lock_again_when_whoever_took_it_while_the_server_was_away_lets_go_of_it() {
    in_network_namespace(|| {
        let folder = tempfile::tempdir().unwrap();
        let setup = Setup::new("20000").state(&folder.path().join("state"));
        let mut server = setup.start();
        let owner = Owner::start();
        assert_eq!(server.ask(owner.pid()), Some(20_000));
        server.kill();
        let mut attempts = portpicker::Attempts::new();
        let other = attempts.adopt(20_000).unwrap().expect("it is free");
        server.restart();
        drop(other);
        server.log.wait_for("port 20000: locked again");
        assert!(attempts.adopt(20_000).unwrap().is_none());
    });
}

#[test]
fn without_a_state_file_nothing_in_use_is_granted_after_a_kill() {
    in_network_namespace(|| {
        let mut server = TestServer::start("20000-20001");
        let port = server.ask_for_this().unwrap();
        let _used = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
        server.kill();
        server.restart();
        let pid = std::process::id().to_string();
        assert_eq!(ask(server.address(), &pid), Some(20_001));
        assert_eq!(ask(server.address(), &pid), None);
    });
}
