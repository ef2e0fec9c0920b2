//! The extended protocol: every operation, every error code.

use std::io::Write;
use std::net::Shutdown;
use std::process;
use std::time::{Duration, Instant};

use portpicker_testing::in_network_namespace;
use serde_json::{Value, json};

use crate::LONG;
use crate::client::{Client, Owner, ask, lease, ports};
use crate::server::{Setup, TestServer};

/// Waits until `list` shows no lease any more: for ends that take no request.
fn wait_until_empty(server: &TestServer) {
    let end = Instant::now() + LONG;
    while !server.list().is_empty() {
        assert!(Instant::now() < end, "{:?}", server.list());
        std::thread::yield_now();
    }
}

#[test]
fn hello_says_who_and_which_versions() {
    in_network_namespace(|| {
        let server = TestServer::start("20000");
        let answer = server.connect().ok(r#"{"v":1,"op":"hello"}"#);
        assert!(
            answer["server"]
                .as_str()
                .unwrap()
                .starts_with("portserver ")
        );
        assert_eq!(answer["versions"], json!([1]));
        assert_eq!(answer.as_object().unwrap().len(), 3, "{answer}");
    });
}

#[test]
fn every_error_has_its_code() {
    in_network_namespace(|| {
        let server = Setup::new("20000-20004").limit(4).start();
        let mut client = server.connect();
        let long_tag = "t".repeat(201);
        let long_name = "n".repeat(65);
        for (code, line) in [
            ("bad-request", "{".to_owned()),
            ("bad-request", "{}".to_owned()),
            ("bad-request", r#"{"v":1}"#.to_owned()),
            ("bad-request", r#"{"op":"hello"}"#.to_owned()),
            ("bad-request", r#"{"v":1,"op":"hello","x":1}"#.to_owned()),
            ("bad-request", r#"{"v":1,"op":7}"#.to_owned()),
            ("bad-request", lease(r#""count":0"#)),
            ("bad-request", lease(r#""count":1001"#)),
            ("bad-request", lease(r#""count":1.5"#)),
            ("bad-request", lease(r#""count":2,"names":["a"]"#)),
            ("bad-request", lease(r#""names":["a","a"]"#)),
            ("bad-request", lease(r#""names":[""]"#)),
            ("bad-request", lease(&format!(r#""names":["{long_name}"]"#))),
            ("bad-request", lease(&format!(r#""tag":"{long_tag}""#))),
            ("bad-request", lease(r#""ports":"2-1""#)),
            ("bad-request", lease(r#""ports":"""#)),
            ("bad-request", lease(r#""exclude":"all""#)),
            ("bad-request", lease(r#""prefer":[65536]"#)),
            ("bad-request", lease(r#""only":"sctp""#)),
            ("bad-request", lease(r#""address":"localhost""#)),
            ("bad-request", lease(r#""owner":0"#)),
            ("bad-request", lease(r#""owner":-1"#)),
            ("bad-request", lease(r#""owner":2147483648"#)),
            ("bad-request", lease(r#""owner":"me""#)),
            ("bad-request", lease(r#""ttl":0"#)),
            ("bad-request", lease(r#""ttl":-1"#)),
            ("bad-request", lease(r#""wait":3601"#)),
            ("bad-request", lease(r#""wait":-0.1"#)),
            ("bad-request", lease(r#""portz":"1""#)),
            ("bad-request", r#"{"v":1,"op":"release"}"#.to_owned()),
            (
                "bad-request",
                r#"{"v":1,"op":"release","ports":[]}"#.to_owned(),
            ),
            (
                "bad-request",
                r#"{"v":1,"op":"renew","ports":[20000]}"#.to_owned(),
            ),
            ("bad-version", r#"{"v":0,"op":"hello"}"#.to_owned()),
            ("bad-version", r#"{"v":2,"op":"hello"}"#.to_owned()),
            ("bad-version", r#"{"v":1.5,"op":"hello"}"#.to_owned()),
            ("bad-op", r#"{"v":1,"op":"Lease"}"#.to_owned()),
            ("exhausted", lease(r#""ports":"1-10""#)),
            ("exhausted", lease(r#""exclude":"1-65535""#)),
            ("no-process", lease(r#""owner":1"#)),
            ("no-process", lease(r#""owner":2147483647"#)),
            ("over-limit", lease(r#""count":5"#)),
            (
                "not-leased",
                r#"{"v":1,"op":"release","ports":[20000]}"#.to_owned(),
            ),
            (
                "not-leased",
                r#"{"v":1,"op":"release","ports":[1]}"#.to_owned(),
            ),
            (
                "not-leased",
                r#"{"v":1,"op":"renew","ports":[20000],"ttl":1}"#.to_owned(),
            ),
        ] {
            assert_eq!(client.error(&line), code, "{line}");
        }
        // A failure ends nothing, and leases nothing.
        assert_eq!(client.lease("").len(), 1);
        assert_eq!(server.count("leased"), 1);
        assert_eq!(server.count("client_errors"), 36);
        let refused = &server.stats()["refused"];
        for (code, count) in [
            ("exhausted", 2),
            ("no-process", 2),
            ("not-leased", 3),
            ("over-limit", 1),
        ] {
            assert_eq!(refused[code], count, "{refused}");
        }
    });
}

#[test]
fn a_version_that_is_not_spoken_is_refused_with_those_that_are() {
    in_network_namespace(|| {
        let server = TestServer::start("20000");
        let mut client = server.connect();
        let answer = client.tell(r#"{"v":9,"op":"from the future","id":"x","new":true}"#);
        assert_eq!(
            (&answer["error"], &answer["versions"]),
            (&json!("bad-version"), &json!([1]))
        );
        assert_eq!(answer["id"], "x");
        client.ok(r#"{"v":1,"op":"hello"}"#);
    });
}

#[test]
fn ids_come_back_and_answers_come_in_order() {
    in_network_namespace(|| {
        let server = TestServer::start("20000-20009");
        let mut client = server.connect();
        let ids = [
            json!(7),
            json!("x"),
            json!([1, {"a": null}]),
            json!({"b": 2.5}),
            Value::Null,
        ];
        // All at once, the last one in two pieces.
        let mut bytes = String::new();
        for id in &ids {
            bytes += &format!(r#"{{"v":1,"op":"stats","id":{id}}}"#);
            bytes.push('\n');
        }
        bytes += &lease("");
        let (first, second) = bytes.split_at(bytes.len() - 5);
        client.send(first);
        for id in &ids {
            let answer = client.answer();
            assert_eq!((&answer["ok"], &answer["id"]), (&json!(true), id));
        }
        let answer = client.send(second).send("\n").answer();
        assert_eq!(ports(&answer), [20_000]);
        assert_eq!(answer.get("id"), None);
        // An id comes back with a failure, too.
        assert_eq!(client.tell(r#"{"v":1,"op":"x","id":8}"#)["id"], 8);
    });
}

#[test]
fn many_requests_at_once_are_all_answered_also_if_the_client_says_no_more() {
    in_network_namespace(|| {
        const MANY: usize = 2000;
        let server = TestServer::start("20000");
        let mut client = server.connect();
        let mut writer = client.writer();
        let requests = "{\"v\":1,\"op\":\"hello\"}\n".repeat(MANY);
        let answers = std::thread::scope(|scope| {
            scope.spawn(|| {
                writer.write_all(requests.as_bytes()).unwrap();
                writer.shutdown(Shutdown::Write).unwrap();
            });
            client.end()
        });
        assert_eq!(answers.iter().filter(|&&byte| byte == b'\n').count(), MANY);
    });
}

#[test]
fn a_line_that_is_too_long_or_no_text_ends_the_connection() {
    in_network_namespace(|| {
        let server = TestServer::start("20000");
        // The longest one is read.
        let mut client = server.connect();
        let head = r#"{"v":1,"op":"hello","id":""#;
        let pad = "x".repeat(65_536 - head.len() - 3);
        let line = format!("{head}{pad}\"}}");
        assert_eq!(line.len() + 1, 65_536);
        assert_eq!(client.ok(&line)["id"], pad);

        let mut client = server.connect();
        let answer = client.send(format!("{head}x{pad}\"}}")).answer();
        assert_eq!(
            (&answer["error"], &answer["closing"]),
            (&json!("bad-request"), &json!(true))
        );
        assert_eq!(client.end(), b"");

        let mut client = server.connect();
        let answer = client.send(b"{\"v\":1,\"op\":\"\xff\"}\n").answer();
        assert_eq!(answer["error"], "bad-request", "{answer}");
        assert_eq!(
            answer["closing"], true,
            "docs/protocol.md: if it is not UTF-8, the server closes"
        );
        assert_eq!(client.end(), b"");
    });
}

#[test]
fn several_ports_are_leased_all_or_none() {
    in_network_namespace(|| {
        let server = TestServer::start("20000-20009");
        let mut client = server.connect();
        assert_eq!(client.error(&lease(r#""count":11"#)), "exhausted");
        assert_eq!(client.lease(r#""count":4"#).len(), 4);
        assert_eq!(client.error(&lease(r#""count":7"#)), "exhausted");
        assert_eq!(server.count("leased"), 4);

        // Also if a port in use is seen only while they are being leased.
        let _bound = std::net::TcpListener::bind("127.0.0.1:20007").unwrap();
        assert_eq!(client.error(&lease(r#""count":6"#)), "exhausted");
        assert_eq!(server.count("leased"), 4);
        assert_eq!(client.lease(r#""count":5"#).len(), 5);
        assert_all_in_pool(&server);

        // Releases too.
        let request = r#"{"v":1,"op":"release","ports":[20000,20007]}"#;
        assert_eq!(client.error(request), "not-leased");
        assert_eq!(server.count("leased"), 9);
    });
}

/// Asserts that each port of the pool is in one state.
fn assert_all_in_pool(server: &TestServer) {
    let stats = server.stats();
    let number = |name: &str| stats[name].as_u64().unwrap();
    assert_eq!(
        number("free") + number("leased") + number("resting"),
        number("pool")
    );
}

#[test]
fn a_wish_can_name_ports_and_how_they_are_to_lie() {
    in_network_namespace(|| {
        let server = TestServer::start("20000-20019,20030-20049");
        let mut client = server.connect();
        assert_eq!(
            client.lease(r#""ports":"20005-20006,30000","count":2"#),
            [20_005, 20_006]
        );
        assert_eq!(client.lease(r#""exclude":"20000-20005""#), [20_007]);
        assert_eq!(client.lease(r#""prefer":[60000,20015,20040]"#), [20_015]);
        let block = client.lease(r#""contiguous":true,"count":15"#);
        assert_eq!(block, (20_030..20_045).collect::<Vec<_>>());
        let more = r#""contiguous":true,"count":15"#;
        assert_eq!(client.error(&lease(more)), "exhausted");
        let names = r#""names":["http","grpc"],"contiguous":true"#;
        let answer = client.ok(&lease(names));
        let first = answer["leases"][0]["port"].as_u64().unwrap();
        assert_eq!(
            answer["leases"],
            json!([
                {"port": first, "name": "http"}, {"port": first + 1, "name": "grpc"}
            ])
        );
    });
}

#[test]
fn what_the_other_transport_or_address_does_may_be_ignored() {
    in_network_namespace(|| {
        let server = TestServer::start("20000-20001");
        let _udp = std::net::UdpSocket::bind("127.0.0.1:20000").unwrap();
        let mut client = server.connect();
        assert_eq!(client.lease(r#""only":"tcp","ports":"20000""#), [20_000]);
        let _tcp = std::net::TcpListener::bind("127.0.0.2:20001").unwrap();
        let elsewhere = r#""address":"127.0.0.1","ports":"20001""#;
        assert_eq!(client.lease(elsewhere), [20_001]);
    });
}

#[test]
fn list_shows_what_was_leased_to_whom() {
    in_network_namespace(|| {
        let server = TestServer::start("20000-20009");
        let owner = Owner::start();
        let mut client = server.connect();
        client.lease(&format!(
            r#""owner":{},"names":["a","b"],"tag":"a build","ttl":1000"#,
            owner.pid()
        ));
        client.lease(r#""owner":"connection""#);
        server.ask_for_this();
        let list = server.list();
        assert_eq!(list.len(), 4);
        let uid = rustix::process::getuid().as_raw();
        for (index, lease) in list.iter().enumerate() {
            assert_eq!(lease["port"], 20_000 + index, "ascending");
            assert_eq!(lease["uid"], uid);
            assert!(lease["age"].as_f64().unwrap() >= 0.0);
            let members: Vec<_> = lease
                .as_object()
                .unwrap()
                .keys()
                .map(String::as_str)
                .collect();
            let expected = [
                "age", "command", "expires", "name", "pid", "port", "tag", "uid",
            ];
            assert_eq!(members.len(), expected.len());
            assert!(
                expected.iter().all(|name| members.contains(name)),
                "{lease}"
            );
        }
        assert_eq!(
            (&list[0]["name"], &list[1]["name"]),
            (&json!("a"), &json!("b"))
        );
        assert_eq!(
            (&list[0]["pid"], &list[0]["command"]),
            (&json!(owner.pid()), &json!("cat"))
        );
        assert_eq!(list[1]["tag"], "a build");
        let expires = list[0]["expires"].as_f64().unwrap();
        assert!((900.0..=1000.0).contains(&expires), "{expires}");
        assert_eq!(
            (&list[2]["name"], &list[2]["tag"]),
            (&Value::Null, &Value::Null)
        );
        assert_eq!(
            (&list[3]["pid"], &list[3]["expires"]),
            (&json!(process::id()), &Value::Null)
        );
    });
}

#[test]
fn stats_count_everything() {
    in_network_namespace(|| {
        let server = TestServer::start("20000-20009");
        let mut client = server.connect();
        let owner = Owner::start();
        client.lease(&format!(r#""count":2,"owner":{}"#, owner.pid()));
        let mine = client.lease(r#""count":3"#);
        client.ok(&format!(
            r#"{{"v":1,"op":"release","ports":[{}]}}"#,
            mine[0]
        ));
        client.lease(r#""ttl":0.001"#);
        owner.kill();
        // The time, and the exit, are seen as soon as they come, but without a request.
        let end = Instant::now() + LONG;
        let stats = loop {
            let stats = client.ok(r#"{"v":1,"op":"stats"}"#);
            if stats["expired"] == 1 && stats["reclaimed"] == 2 {
                break stats;
            }
            assert!(Instant::now() < end, "{stats}");
        };
        for (name, count) in [
            ("pool", 10),
            ("free", 8),
            ("leased", 2),
            ("resting", 0),
            ("owners", 1),
            ("clients", 1),
            ("waiting", 0),
            ("granted", 6),
            ("released", 1),
            ("client_errors", 0),
        ] {
            assert_eq!(stats[name], count, "{name}: {stats}");
        }
        assert_eq!(stats["refused"], json!({}));
        assert!(stats["uptime"].as_f64().unwrap() > 0.0);
    });
}

#[test]
fn a_connections_leases_end_with_it() {
    in_network_namespace(|| {
        let server = TestServer::start("20000-20001");
        let mut client = server.connect();
        assert_eq!(client.lease(r#""owner":"connection","count":2"#).len(), 2);
        assert_eq!(server.ask_for_this(), None);
        drop(client);
        assert_eq!(server.connect().lease(r#""wait":30,"count":2"#).len(), 2);

        // Those that it asked for, for others, do not.
        wait_until_not(&server, "clients", 2);
        assert_eq!(server.count("leased"), 2);
    });
}

/// Waits until a number of `stats` is another one.
fn wait_until_not(server: &TestServer, name: &str, number: u64) {
    let end = Instant::now() + LONG;
    while server.count(name) == number {
        assert!(Instant::now() < end);
    }
}

#[test]
fn a_lease_ends_when_its_time_is_over_unless_it_is_renewed() {
    in_network_namespace(|| {
        let server = TestServer::start("20000-20001");
        let mut client = server.connect();
        let started = Instant::now();
        let ttl = Duration::from_millis(300);
        client.lease(r#""ttl":0.3,"count":2"#);
        client.ok(r#"{"v":1,"op":"renew","ports":[20001],"ttl":1000}"#);
        // Nobody asks for anything while it runs out.
        let mut other = server.connect();
        assert_eq!(other.lease(r#""wait":30"#), [20_000]);
        assert!(started.elapsed() >= ttl);
        assert_eq!(server.count("expired"), 1);
        // Renewing a lease that never ended gives it an end.
        client.ok(r#"{"v":1,"op":"renew","ports":[20000,20001],"ttl":0.01}"#);
        wait_until_empty(&server);
        assert_eq!(server.count("expired"), 3);
    });
}

#[test]
fn a_released_port_is_the_last_to_come_again() {
    in_network_namespace(|| {
        let server = TestServer::start("20000-20002");
        let mut client = server.connect();
        assert_eq!(client.lease(""), [20_000]);
        client.ok(r#"{"v":1,"op":"release","ports":[20000,20000]}"#);
        assert_eq!(server.count("released"), 1, "named twice, released once");
        let again = client.lease(r#""count":3"#);
        assert_eq!(again, [20_001, 20_002, 20_000]);
    });
}

#[test]
fn both_protocols_lease_from_one_pool() {
    in_network_namespace(|| {
        let server = TestServer::start("20000-20001");
        let mut client = server.connect();
        assert_eq!(client.lease(""), [20_000]);
        assert_eq!(server.ask_for_this(), Some(20_001));
        assert_eq!(client.error(&lease("")), "exhausted");
        client.ok(r#"{"v":1,"op":"release","ports":[20000,20001]}"#);
        assert_eq!(
            ask(server.address(), &process::id().to_string()),
            Some(20_000)
        );
    });
}

#[test]
fn a_server_that_stops_sends_those_who_wait_away_and_grants_nothing() {
    in_network_namespace(|| {
        let server = TestServer::start("20000");
        let mut client = server.connect();
        assert_eq!(client.lease(r#""owner":"connection""#), [20_000]);
        let mut waiting: Vec<Client> = (0..3).map(|_| server.connect()).collect();
        for client in &mut waiting {
            client.send(lease(r#""wait":3000"#)).send("\n");
        }
        let end = Instant::now() + LONG;
        while server.count("waiting") < 3 {
            assert!(Instant::now() < end);
        }
        let (status, _) = server.terminate();
        assert_eq!(status.code(), Some(0));
        for client in &mut waiting {
            assert_eq!(client.answer()["error"], "stopping");
        }
    });
}
