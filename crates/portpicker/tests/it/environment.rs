//! What do the environment variables do?

use std::time::Duration;

use portpicker::{Error, Picker, Server, pick_unused_port};
use portpicker_testing::{Act, FakeServer, OwnProcess, Worker, in_network_namespace};

use crate::set;

#[test]
fn the_candidates_are_those_in_the_environment() {
    OwnProcess::new()
        .env("PORTPICKER_PORTS", "20000-20001, 20003")
        .network_namespace()
        .run(|| {
            let mut ports = portpicker::pick_unused_ports(3).unwrap();
            ports.sort_unstable();
            assert_eq!(ports, [20_000, 20_001, 20_003]);
            match pick_unused_port() {
                Err(Error::Exhausted(tally)) => assert_eq!(tally.candidates, 3),
                other => panic!("{other:?}"),
            }
        });
}

#[test]
fn a_picker_with_ports_of_its_own_does_not_look_at_the_environment() {
    OwnProcess::new()
        .env("PORTPICKER_PORTS", "nonsense")
        .network_namespace()
        .run(|| {
            let picker = Picker::new().ports(set("20000"));
            assert_eq!(picker.lease().unwrap().port(), 20_000);
            assert!(Picker::new().lease().is_err());
        });
}

#[test]
fn a_variable_that_is_not_a_set_of_ports_is_an_error_that_says_why() {
    in_network_namespace(|| {
        for (value, part) in [
            ("all", "all"),
            ("20000-", "20000-"),
            ("20000,65536", "65536"),
            ("0", "0"),
            ("30000-20000", "30000-20000"),
            ("20000,,20001", ""),
        ] {
            let mut worker = Worker::spawn_with(&[("PORTPICKER_PORTS", value)]);
            for answer in [worker.pick().map(drop), worker.pick_many(2).map(drop)] {
                let err = answer.unwrap_err();
                assert!(
                    err.contains(r#"variable: "PORTPICKER_PORTS""#),
                    "{value}: {err}"
                );
                assert!(err.contains(&format!("part: {part:?}")), "{value}: {err}");
            }
        }
    });
}

#[test]
fn the_message_names_the_variable_and_its_source_the_part() {
    OwnProcess::new()
        .env("PORTPICKER_PORTS", "20000,x")
        .run(|| {
            let err = pick_unused_port().unwrap_err();
            assert_eq!(err.to_string(), "PORTPICKER_PORTS is not a set of ports");
            let source = std::error::Error::source(&err).unwrap().to_string();
            assert!(source.starts_with("`x` is neither"), "{source}");
        });
}

#[test]
fn the_server_in_the_environment_is_asked() {
    OwnProcess::new()
        .env("PORTSERVER_ADDRESS", "@in-the-environment")
        .network_namespace()
        .run(|| {
            let answers = ["20000\n", "", "20001\n", "20002\n", "20003\n"];
            let server =
                FakeServer::start_as("in-the-environment", answers.map(Act::answer).into());
            assert_eq!(pick_unused_port().unwrap(), 20_000);
            assert_eq!(portpicker::pick_unused_ports(2).unwrap(), [20_001, 20_002]);
            let lease = Picker::new().lease().unwrap();
            assert_eq!(lease.port(), 20_003);
            assert_eq!(lease.server(), Some(&server.address()));
            let own = std::process::id().to_string();
            let both = r#"{"count":2,"op":"lease","v":1}"#;
            assert_eq!(server.requests(), [&own, both, &own, &own, &own]);
        });
}

#[test]
fn a_pick_that_the_server_cannot_express_goes_on_without_it() {
    OwnProcess::new()
        .env("PORTSERVER_ADDRESS", "@in-the-environment")
        .network_namespace()
        .run(|| {
            let server = FakeServer::start_as("in-the-environment", vec![]);
            let picker = Picker::new();
            for lease in [
                picker.clone().ports(set("20000")).lease(),
                picker.clone().exclude(set("20000")).lease(),
                picker.clone().prefer([20_000]).lease(),
                picker.clone().only(portpicker::Kind::Tcp).lease(),
                picker.clone().server(Server::None).lease(),
            ] {
                assert_eq!(lease.unwrap().server(), None);
            }
            assert_eq!(picker.lease_block(2).unwrap().len(), 2);
            drop(server);
        });
}

#[test]
fn a_server_that_fails_or_refuses_is_done_without() {
    in_network_namespace(|| {
        let no_path = format!("/nonexistent/{}", "x".repeat(50));
        let too_long = "x".repeat(200);
        let servers = [
            FakeServer::start(vec![]),
            FakeServer::start(vec![Act::answer("0\n")]),
            FakeServer::start(vec![Act::answer("garbage\n")]),
            FakeServer::start(vec![Act::answer("65536\n")]),
            FakeServer::start(vec![Act::answer("2000")]),
            FakeServer::start(vec![vec![Act::Read, Act::Flood(b'1')]]),
        ];
        let addresses = servers.iter().map(|server| server.address().to_string());
        let others = ["", "@nobody-is-here", "/", &no_path, "@", &too_long];
        for address in addresses.chain(others.map(str::to_owned)) {
            let mut worker = Worker::spawn_with(&[
                ("PORTSERVER_ADDRESS", &address),
                ("PORTPICKER_PORTS", "20000"),
            ]);
            assert_eq!(worker.pick(), Ok(20_000), "{address:?}");
        }
    });
}

#[test]
fn a_silent_server_is_done_without_when_its_time_is_over() {
    OwnProcess::new()
        .env("PORTSERVER_ADDRESS", "@silent")
        .env("PORTPICKER_PORTS", "20000")
        .network_namespace()
        .run(|| {
            let server = FakeServer::start_as(
                "silent",
                vec![
                    vec![Act::Silence],
                    vec![Act::Read, Act::Silence],
                    vec![Act::Read, Act::send("1500"), Act::Silence],
                ],
            );
            let picker = Picker::new().server_timeout(Duration::from_millis(50));
            for _ in 0..3 {
                let lease = picker.lease().unwrap();
                assert_eq!((lease.port(), lease.server()), (20_000, None));
            }
            assert_eq!(server.requests().len(), 2);
        });
}
