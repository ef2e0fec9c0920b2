//! Clients in containers: in other pid namespaces than the server.

use portpicker_testing::{PID_NAMESPACE, Worker, in_network_namespace, skip};

use crate::client::lease;
use crate::server::{Setup, TestServer};

/// Two shells above the client: one is process 1 of the namespace.
const SHELLS: [&str; 4] = [
    "sh",
    "-c",
    r#"sh -c 'shift; "$@"; exit $?' sh "$@"; exit $?"#,
    "sh",
];

/// Starts a client so many pid namespaces below this one.
fn client_below(namespaces: usize) -> Worker {
    let mut wrapper = Vec::new();
    for _ in 0..namespaces {
        wrapper.push("unshare");
        wrapper.extend(PID_NAMESPACE);
        wrapper.push("--");
    }
    wrapper.extend(SHELLS);
    Worker::spawn_below(&wrapper)
}

fn number(answer: Result<String, String>) -> u32 {
    answer.unwrap().parse().unwrap()
}

/// Returns the numbers of the process that owns `port`: here, and in each namespace below.
fn owners_numbers(server: &TestServer, port: &str) -> Vec<u32> {
    let port: u16 = port.parse().unwrap();
    let list = server.list();
    let lease = list.iter().find(|lease| lease["port"] == port);
    let pid = &lease.unwrap()["pid"];
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    let numbers = line.unwrap().split_whitespace();
    numbers.map(|number| number.parse().unwrap()).collect()
}

#[test]
fn a_client_in_a_container_gets_ports_for_what_it_sees_by_the_numbers_that_it_sees() {
    in_network_namespace(|| {
        let server = TestServer::start("20000-20009");
        for depth in [1, 2] {
            let mut client = client_below(depth);
            let own = number(client.tell("pid"));
            let parent = number(client.tell("parent"));
            assert!(own < 50 && parent < own && parent > 1, "{own}, {parent}");
            let other = number(client.tell("spawn"));
            // Itself, its shell, another process, and the first one, which may end there.
            for wanted in [own, parent, other, 1] {
                let port = client.tell(&format!("ask {wanted}")).unwrap();
                let numbers = owners_numbers(&server, &port);
                assert_eq!(numbers.len(), depth + 1);
                assert_eq!(numbers.last(), Some(&wanted), "{wanted} is {numbers:?}");
            }
            // Not what has such a number here.
            let outside = std::process::id();
            assert_eq!(
                client.tell(&format!("ask {outside}")),
                Err("refused".into())
            );
            let request = format!("request {}", lease(&format!(r#""owner":{outside}"#)));
            let answer = client.tell(&request).unwrap();
            assert!(answer.contains("no-process"), "{answer}");

            // The container ends, and with it all that it had.
            drop(client);
            let mut all = server.connect();
            assert_eq!(
                all.lease(r#""count":10,"wait":40,"owner":"connection""#)
                    .len(),
                10
            );
            drop(all);
            let end = std::time::Instant::now() + crate::LONG;
            while server.count("leased") > 0 {
                assert!(std::time::Instant::now() < end);
            }
        }
    });
}

#[test]
fn a_port_comes_back_when_its_owner_in_a_container_exits() {
    in_network_namespace(|| {
        let server = TestServer::start("20000");
        let mut client = client_below(1);
        let child = number(client.tell("spawn"));
        assert_eq!(client.tell(&format!("ask {child}")), Ok("20000".into()));
        let pid = server.list()[0]["pid"].as_u64().unwrap() as u32;
        let mut waiting = server.connect();
        waiting.send(lease(r#""wait":40"#)).send("\n");
        let exit = portpicker_testing::Exit::of(pid);
        assert_eq!(client.tell(&format!("end {child}")), Ok(String::new()));
        exit.wait();
        assert_eq!(crate::client::ports(&waiting.answer()), [20_000]);
    });
}

#[test]
fn a_client_outside_of_the_servers_container_is_refused_what_the_server_cannot_see() {
    in_network_namespace(|| {
        let server = Setup::new("20000-20009").below(PID_NAMESPACE).start();
        // It has no number there, whatever it says.
        for wanted in [std::process::id(), 2] {
            assert_eq!(server.ask(wanted), None);
        }
        let mut client = server.connect();
        assert_eq!(client.error(&lease("")), "no-process");
        // Its connection can be seen.
        assert_eq!(client.lease(r#""owner":"connection""#).len(), 1);
    });
}

/// What the tests above rely on.
#[test]
fn pid_namespaces_can_be_made() {
    let output = std::process::Command::new("unshare")
        .args(PID_NAMESPACE)
        .args(["--", "true"])
        .output();
    match output {
        Ok(output) if output.status.success() => {}
        Ok(output) => skip("namespaces", &String::from_utf8_lossy(&output.stderr)),
        Err(err) => skip("namespaces", &err.to_string()),
    }
}
