//! Clients that are silent, slow, or loud: memory is bounded, others are served, and they are gone
//! in the end.

use std::io::Write;
use std::process;
use std::thread;
use std::time::{Duration, Instant};

use portpicker_testing::in_network_namespace;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::client::{Client, lease};
use crate::server::TestServer;
use crate::{LONG, number, report};

/// How long the server waits for a client that says nothing.
const PATIENCE: Duration = Duration::from_secs(10);

/// Lets this process, and servers that it starts, have as many descriptors as they may. Returns how
/// many.
pub(crate) fn raise_descriptor_limit() -> usize {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit {
        current: maximum,
        maximum,
    };
    setrlimit(Resource::Nofile, limit).unwrap();
    maximum.map_or(usize::MAX, |limit| limit as usize)
}

/// Asks for ports by both protocols, and returns how long the slowest answer took.
fn slowest_of_others(server: &TestServer) -> Duration {
    let mut slowest = Duration::ZERO;
    for _ in 0..100 {
        let started = Instant::now();
        let port = server.ask_for_this().unwrap();
        let mut client = server.connect();
        client.ok(&format!(r#"{{"v":1,"op":"release","ports":[{port}]}}"#));
        slowest = slowest.max(started.elapsed());
    }
    slowest
}

/// A bound for the slowest of many answers that says something and holds on a busy machine.
const PROMPT: Duration = Duration::from_millis(1000);

fn wait_for_clients(server: &TestServer, count: u64) {
    let end = Instant::now() + LONG;
    let mut client = server.connect();
    loop {
        let stats = client.ok(r#"{"v":1,"op":"stats"}"#);
        if stats["clients"] == count + 1 {
            return;
        }
        assert!(Instant::now() < end, "{stats}");
    }
}

#[test]
fn thousands_of_silent_clients_cost_little_and_are_closed() {
    in_network_namespace(|| {
        // The server leaves three quarters of its descriptors to what is not a connection.
        let most = raise_descriptor_limit() / 4 - 200;
        let silent = number("PORTPICKER_SILENT", 5000).min(most);
        let server = TestServer::start("20000-20009");
        slowest_of_others(&server);
        let before = server.resident();

        let started = Instant::now();
        let mut clients: Vec<Client> = (0..silent).map(|_| server.connect()).collect();
        wait_for_clients(&server, silent as u64);
        let each = (server.resident() - before) as f64 / silent as f64;
        let slowest = slowest_of_others(&server);
        report(&format!(
            "{silent} silent clients: {each:.1} KiB each; slowest of others {slowest:?}"
        ));
        assert!(each < 8.0, "{each} KiB each");
        assert!(slowest < PROMPT, "{slowest:?}");

        for client in &mut clients {
            assert_eq!(client.end(), b"");
        }
        let closed = started.elapsed();
        assert!(closed >= PATIENCE, "{closed:?}");
        wait_for_clients(&server, 0);
        assert_eq!(server.count("client_errors"), 0);
    });
}

/// More than may be connected at one time: the oldest go at once, and nobody else waits for them.
#[test]
fn silent_clients_are_closed_when_others_need_their_places() {
    in_network_namespace(|| {
        let limit = raise_descriptor_limit();
        let silent = limit / 4 + 1000;
        let server = TestServer::start("20000-20009");
        let started = Instant::now();
        let mut clients: Vec<Client> = Vec::with_capacity(silent);
        for _ in 0..silent {
            clients.push(server.connect());
        }
        assert_eq!(clients[0].end(), b"", "the oldest");
        let slowest = slowest_of_others(&server);
        assert!(started.elapsed() < PATIENCE, "or their time is over anyway");
        assert!(slowest < PROMPT, "{slowest:?}");
        report(&format!(
            "{silent} silent clients at a limit of {limit}: slowest of others {slowest:?}"
        ));
    });
}

#[test]
fn a_client_that_sends_a_byte_a_second_is_not_waited_for() {
    in_network_namespace(|| {
        let server = TestServer::start("20000-20009");
        let started = Instant::now();
        // By the extended protocol it has ten seconds for a line.
        let mut slow: Vec<Client> = (0..50).map(|_| server.connect()).collect();
        let mut bytes = br#"{"v":1,"op":"hello"}"#.iter().cycle();
        let mut open = slow.len();
        while open > 0 {
            assert!(started.elapsed() < LONG);
            let byte = [*bytes.next().unwrap()];
            open = slow
                .iter_mut()
                .filter_map(|client| client.try_send(&byte).ok())
                .count();
            // By the original one it is over after a tenth of a second.
            let mut original = server.connect();
            assert_eq!(original.send("1").end(), b"");
            assert!(slowest_of_others(&server) < PROMPT);
            // The client's own pace, not a wait for something.
            thread::sleep(Duration::from_secs(1));
        }
        assert!(started.elapsed() >= PATIENCE);
        assert_eq!(server.count("clients"), 1);
    });
}

#[test]
fn a_hundred_megabytes_without_a_newline_are_not_read() {
    in_network_namespace(|| {
        let server = TestServer::start("20000-20009");
        slowest_of_others(&server);
        let before = server.resident();
        let chunk = vec![b'1'; 1 << 20];
        for first in ["1", "{"] {
            thread::scope(|scope| {
                for _ in 0..20 {
                    scope.spawn(|| {
                        let mut client = server.connect();
                        let mut writer = client.writer();
                        writer.write_all(first.as_bytes()).unwrap();
                        let sent = (0..100)
                            .take_while(|_| writer.write_all(&chunk).is_ok())
                            .count();
                        assert!(sent < 3, "{sent} MB");
                        let answer = client.end();
                        assert_eq!(answer.is_empty(), first == "1");
                    });
                }
                assert!(slowest_of_others(&server) < PROMPT);
            });
        }
        let more = server.resident().saturating_sub(before);
        report(&format!("40 × 100 MB without a newline: {more} KiB more"));
        assert!(more < 8 * 1024, "{more} KiB");
    });
}

#[test]
fn lines_that_do_not_end_cost_no_more_than_the_longest_line() {
    in_network_namespace(|| {
        const CLIENTS: usize = 300;
        let server = TestServer::start("20000-20009");
        slowest_of_others(&server);
        let before = server.resident();
        let most = [b"{".as_slice(), &[b' '; 65_000]].concat();
        let mut clients: Vec<Client> = (0..CLIENTS).map(|_| server.connect()).collect();
        for client in &mut clients {
            client.send(&most);
        }
        assert!(slowest_of_others(&server) < PROMPT);
        let each = server.resident().saturating_sub(before) / CLIENTS;
        report(&format!("a line that does not end: {each} KiB"));
        assert!(each < 200, "{each} KiB");
        for client in &mut clients {
            assert_eq!(client.end(), b"");
        }
    });
}

#[test]
fn random_bytes_are_answered_or_not_and_change_nothing() {
    in_network_namespace(|| {
        let server = TestServer::start("20000-20009");
        slowest_of_others(&server);
        let before = server.resident();
        let seed = number("PORTPICKER_SEED", process::id() as usize) as u64;
        report(&format!("PORTPICKER_SEED={seed}"));
        let mut state = seed;
        let mut random = move |end: usize| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 33) as usize % end
        };
        let request = lease(r#""count":2,"ports":"1-10","wait":0,"tag":"x","owner":"connection""#);
        for _ in 0..number("PORTPICKER_RANDOM", 3000) {
            let mut bytes: Vec<u8> = match random(3) {
                0 => (0..random(300)).map(|_| random(256) as u8).collect(),
                // What begins as a request should.
                1 => [
                    b"{".as_slice(),
                    &vec![random(256) as u8; random(300)],
                    b"\n",
                ]
                .concat(),
                _ => format!("{request}\n{request}\n").into(),
            };
            for _ in 0..random(4) {
                if !bytes.is_empty() {
                    let index = random(bytes.len());
                    bytes[index] = random(256) as u8;
                }
            }
            // By chance the number of a process, which root may ask for.
            let text = String::from_utf8_lossy(&bytes);
            if text.trim().parse::<u32>().is_ok() {
                continue;
            }
            let mut client = server.connect();
            _ = client.try_send(&bytes);
            _ = client.try_half_close();
            client.end();
        }
        assert!(slowest_of_others(&server) < PROMPT);
        wait_for_clients(&server, 0);
        assert_eq!(server.count("leased"), 0);
        let more = server.resident().saturating_sub(before);
        assert!(more < 4 * 1024, "{more} KiB");
    });
}

#[test]
fn a_client_that_does_not_read_its_answers_is_closed() {
    in_network_namespace(|| {
        let server = TestServer::start("20000-21009");
        server
            .connect()
            .lease(r#""count":1000,"tag":"long, so that the answers are long""#);
        let started = Instant::now();
        let before = server.resident();
        let client = server.connect();
        let mut writer = client.writer();
        let requests = "{\"v\":1,\"op\":\"list\"}\n".repeat(100);
        thread::scope(|scope| {
            scope.spawn(|| while writer.write_all(requests.as_bytes()).is_ok() {});
            assert!(slowest_of_others(&server) < PROMPT);
        });
        assert!(started.elapsed() >= PATIENCE);
        let more = server.resident().saturating_sub(before);
        assert!(more < 8 * 1024, "{more} KiB");
        assert!(slowest_of_others(&server) < PROMPT);
    });
}

/// One connection can keep the server busy with legal requests; others get their turn in between.
#[test]
fn the_most_expensive_requests_do_not_keep_others_waiting() {
    in_network_namespace(|| {
        let server = TestServer::start("1024-65000");
        let many: Vec<String> = (10_000..20_500_u16).map(|port| port.to_string()).collect();
        let prefer = format!(r#""prefer":[{}],"count":1000"#, many.join(","));
        let held = {
            let mut client = server.connect();
            client.lease(r#""owner":"connection","count":1000,"ports":"2000-2999""#);
            client
        };
        for (what, members) in [
            ("prefer", format!(r#"{prefer},"owner":"connection""#)),
            (
                "prefer, none there",
                format!(r#"{prefer},"ports":"2000-2999""#),
            ),
            (
                "a block",
                r#""owner":"connection","contiguous":true,"count":1000"#.into(),
            ),
            (
                "a block, none there",
                r#""contiguous":true,"count":1000,"ports":"1900-3100""#.into(),
            ),
        ] {
            let mut client = server.connect();
            let started = Instant::now();
            client.tell(&lease(&members));
            report(&format!("{what}: {:?}", started.elapsed()));
            assert!(
                started.elapsed() < 2 * PROMPT,
                "{what}: {:?}",
                started.elapsed()
            );
        }
        drop(held);
    });
}
