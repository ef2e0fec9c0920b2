//! Who gets a port that comes back?

use std::process;
use std::time::{Duration, Instant};

use portpicker_testing::in_network_namespace;
use serde_json::json;

use crate::LONG;
use crate::client::{Client, Owner, lease, ports};
use crate::server::TestServer;

/// Sends a request that has to wait, and returns when it does.
fn wait_with(server: &TestServer, members: &str) -> Client {
    let before = server.count("waiting");
    let mut client = server.connect();
    client.send(lease(members)).send("\n");
    wait_for_waiting(server, before + 1);
    client
}

fn wait_for_waiting(server: &TestServer, count: u64) {
    let end = Instant::now() + LONG;
    while server.count("waiting") != count {
        assert!(Instant::now() < end, "{}", server.stats());
    }
}

/// Waits until the server has done what earlier requests gave it to do.
fn wait_until_asleep(server: &TestServer) {
    let stat = format!("/proc/{}/stat", server.pid());
    let end = Instant::now() + LONG;
    while !std::fs::read_to_string(&stat).unwrap().contains(") S ") {
        assert!(Instant::now() < end);
    }
}

/// Leases ports to a connection: they come back when it is dropped.
fn hold(server: &TestServer, members: &str) -> Client {
    let mut client = server.connect();
    client.ok(&lease(&format!(r#""owner":"connection",{members}"#)));
    client
}

const FOR_LONG: &str = r#""wait":3000,"owner":"connection""#;

#[test]
fn those_who_wait_are_served_in_their_order() {
    in_network_namespace(|| {
        let server = TestServer::start("20000");
        let mut last = hold(&server, r#""count":1"#);
        let waiting: Vec<Client> = (0..20).map(|_| wait_with(&server, FOR_LONG)).collect();
        for mut client in waiting {
            drop(last);
            assert_eq!(ports(&client.answer()), [20_000]);
            last = client;
        }
    });
}

#[test]
fn nobody_overtakes_who_wants_much() {
    in_network_namespace(|| {
        let server = TestServer::start("20000-20003");
        let mut held: Vec<_> = (0..4).map(|_| hold(&server, r#""count":1"#)).collect();
        let mut much = wait_with(&server, &format!(r#"{FOR_LONG},"count":3"#));
        let mut little = wait_with(&server, FOR_LONG);
        held.pop();
        held.pop();
        let end = Instant::now() + LONG;
        while server.count("free") != 2 {
            assert!(Instant::now() < end);
        }
        // Neither by the extended protocol nor by the original one.
        assert_eq!(server.connect().error(&lease("")), "exhausted");
        assert_eq!(server.ask_for_this(), None);
        held.pop();
        assert_eq!(ports(&much.answer()).len(), 3);
        assert_eq!(server.count("waiting"), 1);
        held.pop();
        assert_eq!(ports(&little.answer()), [20_000]);
    });
}

#[test]
fn who_waits_for_some_ports_is_not_in_the_way_of_who_wants_others() {
    in_network_namespace(|| {
        let server = TestServer::start("20000-20003");
        let held = hold(&server, r#""ports":"20000""#);
        let mut waiting = wait_with(&server, &format!(r#"{FOR_LONG},"ports":"20000""#));
        // Who wants a certain one, who wants any, who cannot say, and who waits too.
        assert_eq!(server.connect().lease(r#""ports":"20001""#), [20_001]);
        assert_eq!(server.connect().lease(""), [20_002]);
        assert_eq!(server.ask_for_this(), Some(20_003));
        let mut any = wait_with(&server, FOR_LONG);
        server
            .connect()
            .ok(r#"{"v":1,"op":"release","ports":[20001]}"#);
        assert_eq!(ports(&any.answer()), [20_001]);
        drop(held);
        assert_eq!(ports(&waiting.answer()), [20_000]);
    });
}

/// Nobody tells the server that a stranger has closed a socket, and here nobody else asks it anything.
#[test]
fn a_port_that_a_stranger_lets_go_of_is_seen_for_any_wish() {
    in_network_namespace(|| {
        let server = TestServer::start("20000");
        for scope in ["", r#","only":"tcp""#, r#","address":"127.0.0.1""#] {
            let stranger = std::net::TcpListener::bind("127.0.0.1:20000").unwrap();
            let mut waiting = wait_with(&server, &format!("{FOR_LONG}{scope}"));
            wait_until_asleep(&server);
            drop(stranger);
            assert_eq!(ports(&waiting.answer()), [20_000], "{scope}");
            drop(waiting);
            let end = Instant::now() + LONG;
            while server.count("leased") != 0 {
                assert!(Instant::now() < end);
            }
        }
    });
}

#[test]
fn who_hangs_up_does_not_wait_any_more() {
    in_network_namespace(|| {
        let server = TestServer::start("20000");
        let held = hold(&server, r#""count":1"#);
        let first = wait_with(&server, FOR_LONG);
        let mut second = wait_with(&server, FOR_LONG);
        drop(first);
        wait_for_waiting(&server, 1);
        drop(held);
        assert_eq!(ports(&second.answer()), [20_000]);
    });
}

#[test]
fn who_hangs_up_while_in_the_way_lets_the_next_one_pass() {
    in_network_namespace(|| {
        let server = TestServer::start("20000-20001");
        let _held = hold(&server, r#""count":1"#);
        let much = wait_with(&server, &format!(r#"{FOR_LONG},"count":2"#));
        let mut little = wait_with(&server, FOR_LONG);
        drop(much);
        assert_eq!(ports(&little.answer()), [20_001]);
    });
}

#[test]
fn a_wait_ends_with_its_time() {
    in_network_namespace(|| {
        let server = TestServer::start("20000");
        let _held = hold(&server, r#""count":1"#);
        let started = Instant::now();
        assert_eq!(server.connect().error(&lease(r#""wait":0.2"#)), "exhausted");
        assert!(started.elapsed() >= Duration::from_millis(200));
        assert_eq!(server.count("waiting"), 0);
        assert_eq!(server.stats()["refused"], json!({ "exhausted": 1 }));
    });
}

#[test]
fn a_port_that_is_in_use_is_had_when_it_no_longer_is() {
    in_network_namespace(|| {
        let server = TestServer::start("20000");
        let bound = std::net::TcpListener::bind("127.0.0.1:20000").unwrap();
        let mut waiting = wait_with(&server, FOR_LONG);
        drop(bound);
        assert_eq!(ports(&waiting.answer()), [20_000]);
    });
}

#[test]
fn a_port_comes_back_by_exit_by_release_and_by_its_time() {
    in_network_namespace(|| {
        let server = TestServer::start("20000");
        let owner = Owner::start();
        assert_eq!(server.ask(owner.pid()), Some(20_000));
        let mut by_exit = wait_with(&server, r#""wait":3000"#);
        owner.kill();
        assert_eq!(ports(&by_exit.answer()), [20_000]);

        let mut by_release = wait_with(&server, r#""wait":3000,"ttl":0.2"#);
        by_exit.ok(r#"{"v":1,"op":"release","ports":[20000]}"#);
        assert_eq!(ports(&by_release.answer()), [20_000]);

        let mut by_time = server.connect();
        assert_eq!(by_time.lease(r#""wait":3000"#), [20_000]);
        assert_eq!(server.count("expired"), 1);
    });
}

/// Nobody says anything after the port came back by an exit, so only the server's own clock ends
/// the lease.
#[test]
fn the_time_of_a_lease_that_was_waited_for_ends_without_a_request() {
    in_network_namespace(|| {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        let server = crate::server::Setup::new("20000").state(&state).start();
        let owner = Owner::start();
        assert_eq!(server.ask(owner.pid()), Some(20_000));
        let mut waiting = wait_with(&server, r#""wait":3000,"ttl":0.1"#);
        owner.kill();
        assert_eq!(ports(&waiting.answer()), [20_000]);
        // The end of the second lease, as the server writes it down. No request: that would wake it.
        let end = Instant::now() + Duration::from_secs(20);
        while std::fs::read_to_string(&state)
            .unwrap()
            .matches(r#"{"end""#)
            .count()
            < 2
        {
            assert!(Instant::now() < end, "the lease does not end");
            std::thread::yield_now();
        }
    });
}

#[test]
fn requests_that_come_while_one_waits_are_answered_after_it() {
    in_network_namespace(|| {
        let server = TestServer::start("20000");
        let held = hold(&server, r#""count":1"#);
        let mut waiting = wait_with(&server, r#""wait":3000,"id":1"#);
        waiting.send("{\"v\":1,\"op\":\"hello\",\"id\":2}\n");
        drop(held);
        assert_eq!(waiting.answer()["id"], 1);
        assert_eq!(waiting.answer()["id"], 2);
    });
}

#[test]
fn an_owner_that_exits_while_a_request_waits_for_it_keeps_no_port() {
    in_network_namespace(|| {
        let server = TestServer::start("20000");
        let held = hold(&server, r#""count":1"#);
        let owner = Owner::start();
        let members = format!(r#""wait":3000,"owner":{}"#, owner.pid());
        let _for_owner = wait_with(&server, &members);
        let mut next = wait_with(&server, FOR_LONG);
        owner.kill();
        drop(held);
        assert_eq!(ports(&next.answer()), [20_000]);
        assert_eq!(server.list()[0]["pid"], serde_json::Value::Null);
    });
}

#[test]
fn no_more_than_a_thousand_wait() {
    in_network_namespace(|| {
        let server = TestServer::start("20000-20001");
        let held = hold(&server, r#""count":2"#);
        let mut waiting: Vec<Client> = (0..1000).map(|_| wait_with(&server, FOR_LONG)).collect();
        assert_eq!(server.connect().error(&lease(r#""wait":1"#)), "busy");
        assert_eq!(server.stats()["refused"], json!({ "busy": 1 }));
        assert_eq!(server.ask(process::id()), None);
        // All of them are served in the end: two at a time.
        drop(held);
        for client in &mut waiting {
            assert_eq!(ports(&client.answer()).len(), 1);
            client.half_close();
        }
    });
}
