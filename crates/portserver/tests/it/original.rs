//! The protocol of Google's clients: which bytes, which answer?

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process;

use portpicker_testing::in_network_namespace;
use rustix::process::Signal;

use crate::client::{Client, Owner, port};
use crate::server::{Setup, TestServer};
use crate::{LONG, POLLS};

/// What a request leads to: an answer, and a count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Result {
    Port,
    /// Nothing is sent: the process is not one that can own a port.
    Denied,
    /// Nothing is sent: that was no request.
    ClientError,
}

/// How a client sends its request, and what that is called.
type Way = (&'static str, fn(&mut Client, &[u8]));

const WAYS: [Way; 4] = [
    ("at once", |client, bytes| {
        client.send(bytes);
    }),
    ("at once, half-closed", |client, bytes| {
        client.send(bytes).half_close();
    }),
    ("in pieces", |client, bytes| {
        for byte in bytes {
            // It may have closed.
            _ = client.try_send(&[*byte]);
        }
    }),
    ("in pieces, half-closed", |client, bytes| {
        for byte in bytes {
            _ = client.try_send(&[*byte]);
        }
        // The server may have closed.
        _ = client.try_half_close();
    }),
];

/// Sends `bytes` in every way, and asserts that the result is `expected` each time.
fn assert_results(server: &TestServer, bytes: &[u8], expected: Result) {
    let shown = bytes.escape_ascii();
    for (way, send) in WAYS {
        let before = server.stats();
        let mut client = server.connect();
        send(&mut client, bytes);
        let answer = client.end();
        let after = server.stats();
        let more = |name: &str| after[name].as_u64().unwrap() - before[name].as_u64().unwrap();
        let denied = |stats: &serde_json::Value| -> u64 {
            let refused = stats["refused"].as_object().unwrap();
            refused.values().map(|count| count.as_u64().unwrap()).sum()
        };
        let result = match (
            more("granted"),
            denied(&after) - denied(&before),
            more("client_errors"),
        ) {
            (1, 0, 0) => Result::Port,
            (0, 1, 0) => Result::Denied,
            (0, 0, 1) => Result::ClientError,
            counts => panic!("`{shown}` {way}: {counts:?}"),
        };
        assert_eq!(result, expected, "`{shown}` {way}");
        assert_eq!(
            port(&answer).is_some(),
            result == Result::Port,
            "`{shown}` {way}"
        );
    }
}

#[test]
fn a_number_with_or_without_newline_gets_a_port_however_it_comes() {
    in_network_namespace(|| {
        let server = TestServer::start("20000-20099");
        let pid = process::id();
        for request in [
            format!("{pid}\n"),
            format!("{pid}"),
            format!("{pid}\r\n"),
            format!(" +{pid} \n"),
            format!("{pid:019}\n"),
            format!("{pid:020}"),
        ] {
            assert_results(&server, request.as_bytes(), Result::Port);
        }
    });
}

#[test]
fn a_process_that_cannot_own_a_port_is_denied_without_a_byte() {
    in_network_namespace(|| {
        let server = TestServer::start("20000-20099");
        let dead = Owner::start();
        let dead_pid = dead.pid();
        dead.kill();
        for request in [
            "0\n".to_owned(),
            "-1\n".to_owned(),
            "-2147483648\n".to_owned(),
            "1\n".to_owned(),
            "2147483647\n".to_owned(),
            "2147483648\n".to_owned(),
            "4294967297\n".to_owned(),
            "999999999999999999\n".to_owned(),
            format!("{dead_pid}\n"),
        ] {
            assert_results(&server, request.as_bytes(), Result::Denied);
        }
        let mut zombie = Owner::start();
        zombie.become_zombie();
        let expected = if POLLS { Result::Port } else { Result::Denied };
        assert_results(&server, format!("{}\n", zombie.pid()).as_bytes(), expected);
    });
}

#[test]
fn everything_else_is_a_client_error_and_gets_no_byte() {
    in_network_namespace(|| {
        let server = TestServer::start("20000-20099");
        let pid = process::id();
        for request in [
            b"\n".to_vec(),
            b"port, please\n".to_vec(),
            b"12 34\n".to_vec(),
            b"12a\n".to_vec(),
            b"1.0\n".to_vec(),
            b"0x10\n".to_vec(),
            b"--5\n".to_vec(),
            b"\0\n".to_vec(),
            b"\xff\xfe\n".to_vec(),
            b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            // 21 bytes are one too many, whatever is in them.
            format!("{pid:020}\n").into_bytes(),
            format!("{pid:021}").into_bytes(),
            vec![b'1'; 10_000],
        ] {
            assert_results(&server, &request, Result::ClientError);
        }

        // Nothing at all.
        let before = server.count("client_errors");
        assert_eq!(server.connect().half_close().end(), b"");
        assert_eq!(server.count("client_errors"), before + 1);
    });
}

#[test]
fn a_connection_carries_one_request() {
    in_network_namespace(|| {
        let server = TestServer::start("20000-20099");
        let pid = process::id();

        // Two in one piece are no number.
        assert_eq!(server.connect().send(format!("{pid}\n{pid}\n")).end(), b"");
        assert_eq!(server.count("client_errors"), 1);

        // One after the other: the first is answered, and that is the end.
        let mut client = server.connect();
        let answer = client.send(format!("{pid}\n")).end();
        assert!(port(&answer).is_some());
        assert!(client.try_send(format!("{pid}\n").as_bytes()).is_err());
        assert_eq!(server.count("granted"), 1);
    });
}

#[test]
fn a_client_that_hangs_up_without_its_answer_harms_nobody() {
    in_network_namespace(|| {
        let server = TestServer::start("20000-20999");
        for _ in 0..200 {
            server.connect().send(format!("{}\n", process::id()));
        }
        assert!(server.ask_for_this().is_some());
    });
}

#[test]
fn ports_come_in_their_order_and_a_full_pool_refuses() {
    in_network_namespace(|| {
        let server = TestServer::start("20000-20002");
        for port in 20_000..20_003 {
            assert_eq!(server.ask_for_this(), Some(port));
        }
        assert_eq!(server.ask_for_this(), None);
        assert_eq!(server.stats()["refused"]["exhausted"], 1);
    });
}

#[test]
fn a_port_in_use_is_not_granted() {
    in_network_namespace(|| {
        let server = TestServer::start("20000-20001");
        let _bound = std::net::UdpSocket::bind("127.0.0.1:20000").unwrap();
        assert_eq!(server.ask_for_this(), Some(20_001));
        assert_eq!(server.ask_for_this(), None);
    });
}

#[test]
fn clients_by_tcp_are_served_with_the_same_text() {
    in_network_namespace(|| {
        let server = Setup::new("20000-20009").tcp(19_999).start();
        for host in ["127.0.0.1", "::1"] {
            if host == "::1" && !portpicker_testing::network::has_ipv6() {
                continue;
            }
            let ask = |request: &str| {
                let mut client = TcpStream::connect((host, 19_999)).unwrap();
                client.set_read_timeout(Some(LONG)).unwrap();
                client.write_all(request.as_bytes()).unwrap();
                let mut answer = Vec::new();
                client.read_to_end(&mut answer).unwrap();
                port(&answer)
            };
            assert!(ask(&format!("{}\n", process::id())).is_some());
            assert_eq!(ask("1\n"), None);
            assert_eq!(ask("hello\n"), None);
        }
        assert_eq!(server.count("granted"), server.count("leased"));
    });
}

#[test]
fn statistics_are_logged_in_the_words_of_the_original() {
    in_network_namespace(|| {
        let server = TestServer::start("20000-20001");
        assert!(server.ask_for_this().is_some());
        assert_eq!(crate::client::ask(server.address(), "1"), None);
        assert_eq!(crate::client::ask(server.address(), "x"), None);
        server.signal(Signal::USR1);
        let last = server.log.wait_for("total-allocations");
        assert_eq!(last, "info: total-allocations 1");

        let expected = [
            "info: client-request-errors 1",
            "info: denied-allocations 1",
            "info: num-ports-managed 2",
            "info: num-ports-checked-for-last-request 1",
            "info: total-allocations 1",
        ];
        let lines = server.log.lines();
        assert_eq!(lines[lines.len() - 5..], expected);

        let (status, log) = server.terminate();
        assert_eq!(status.code(), Some(0));
        assert_eq!(log[log.len() - 5..], expected);
    });
}
