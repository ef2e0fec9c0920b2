//! A port server that speaks the extended protocol: what is it asked, and is its answer believed?

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use portpicker::process::Pid;
use portpicker::{Error, Kind, Picker, Refusal, Server, client, pick_unused_port, return_port};
use portpicker_testing::{
    Act, Binding, FakeServer, Local, Options, OwnProcess, Worker, in_network_namespace,
};

use crate::set;

/// Enough for every answer that comes at all.
const LONG: Duration = Duration::from_secs(60);

/// Enough to see that an answer does not come.
const SHORT: Duration = Duration::from_millis(50);

/// What a server answers to a release.
const RELEASED: &str = "{\"ok\":true}\n";

fn picker(server: &FakeServer) -> Picker {
    Picker::new()
        .server(Server::At(server.address()))
        .server_timeout(LONG)
}

/// Returns the answer that grants `ports`.
fn grant(ports: &[u16]) -> Vec<Act> {
    let leases: Vec<String> = ports
        .iter()
        .map(|port| format!("{{\"port\":{port}}}"))
        .collect();
    Act::answer(format!(
        "{{\"ok\":true,\"leases\":[{}]}}\n",
        leases.join(",")
    ))
}

fn refuse(code: &str, message: &str) -> Vec<Act> {
    Act::answer(format!(
        "{{\"ok\":false,\"error\":\"{code}\",\"message\":\"{message}\"}}\n"
    ))
}

/// Returns the kind and the message of the source of an [`Error::Server`].
fn server_error<T: std::fmt::Debug>(result: portpicker::Result<T>) -> (ErrorKind, String) {
    match result {
        Err(Error::Server { source, .. }) => (source.kind(), source.to_string()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn each_option_is_asked_for() {
    in_network_namespace(|| {
        type With = fn(Picker) -> Picker;
        let cases: Vec<(With, &str)> = vec![
            (
                |picker| picker.ports(set("20000-20009")),
                r#""ports":"20000-20009""#,
            ),
            (
                |picker| picker.exclude(set("20001")),
                r#""exclude":"20001""#,
            ),
            (
                |picker| picker.prefer([20_003, 20_000]),
                r#""prefer":[20003,20000]"#,
            ),
            (|picker| picker.only(Kind::Udp), r#""only":"udp""#),
            (
                |picker| picker.address([127, 0, 0, 1].into()),
                r#""address":"127.0.0.1""#,
            ),
            (
                |picker| picker.wait(Duration::from_millis(1500)),
                r#""wait":1."#,
            ),
            (|picker| picker.tag("ci"), r#""tag":"ci""#),
            (
                |picker| picker.tag("ci").owner(Pid::parent().unwrap()),
                r#""owner":"#,
            ),
        ];
        for (with, member) in cases {
            let server = FakeServer::start(vec![grant(&[20_000]), Act::answer(RELEASED)]);
            let lease = with(picker(&server)).lease().unwrap();
            assert_eq!(lease.port(), 20_000);
            assert_eq!(lease.server(), Some(&server.address()));
            let requests = server.requests();
            assert_eq!(requests.len(), 1);
            assert!(requests[0].contains(member), "{requests:?}");
            assert!(requests[0].contains(r#""op":"lease""#), "{requests:?}");
        }
    });
}

#[test]
fn a_pick_without_options_is_one_request_of_the_original_protocol() {
    in_network_namespace(|| {
        let server = FakeServer::start(vec![Act::answer("20000\n")]);
        let _lease = picker(&server).lease().unwrap();
        assert_eq!(server.requests(), [std::process::id().to_string()]);
    });
}

#[test]
fn several_ports_are_one_request() {
    in_network_namespace(|| {
        let server = FakeServer::start(vec![grant(&[20_005, 20_001]), grant(&[20_007, 20_008])]);
        let leases = picker(&server).leases(2).unwrap();
        assert_eq!([leases[0].port(), leases[1].port()], [20_005, 20_001]);
        let block = picker(&server).lease_block(2).unwrap();
        assert_eq!([block[0].port(), block[1].port()], [20_007, 20_008]);
        assert_eq!(
            server.requests(),
            [
                r#"{"count":2,"op":"lease","v":1}"#,
                r#"{"contiguous":true,"count":2,"op":"lease","v":1}"#,
            ]
        );
    });
}

#[test]
fn a_server_of_the_original_protocol_is_asked_for_several_ports_one_by_one() {
    in_network_namespace(|| {
        let answers = ["", "20000\n", "20001\n"];
        let server = FakeServer::start(answers.map(Act::answer).into());
        let leases = picker(&server).tag("ci").leases(2).unwrap();
        assert_eq!([leases[0].port(), leases[1].port()], [20_000, 20_001]);
        let own = std::process::id().to_string();
        assert_eq!(server.requests()[1..], [own.clone(), own]);
    });
}

/// The request is long enough for the server to hang up while it is being sent.
#[test]
fn a_server_that_hangs_up_without_listening_speaks_only_the_original_protocol() {
    in_network_namespace(|| {
        let server = FakeServer::start(vec![vec![]]);
        let result = picker(&server).prefer(1..=65_535).lease();
        assert!(
            matches!(result, Err(Error::ServerCannot { .. })),
            "{result:?}"
        );
    });
}

#[test]
fn a_server_that_speaks_another_version_is_asked_by_the_original_protocol() {
    in_network_namespace(|| {
        let server = FakeServer::start(vec![
            refuse("bad-version", "only 2"),
            Act::answer("20000\n"),
            Act::answer("20001\n"),
        ]);
        assert_eq!(picker(&server).leases(2).unwrap().len(), 2);
    });
}

#[test]
fn a_refusal_says_why_to_programs_and_people() {
    in_network_namespace(|| {
        let server = FakeServer::start(vec![
            refuse("over-limit", "user 7 has 10 leases"),
            refuse("too-late", ""),
        ]);
        let picker = picker(&server).tag("ci");
        let err = picker.lease().unwrap_err();
        assert!(err.to_string().ends_with(": user 7 has 10 leases"), "{err}");
        match err {
            Error::Refused {
                owner,
                refusal,
                reason,
                ..
            } => {
                assert_eq!(owner, Pid::current());
                assert_eq!(refusal, Some(Refusal::OverLimit));
                assert_eq!(reason.as_deref(), Some("user 7 has 10 leases"));
            }
            other => panic!("{other:?}"),
        }
        let err = picker.lease().unwrap_err();
        assert!(err.to_string().ends_with(": too-late"), "{err}");
    });
}

#[test]
fn waiting_is_the_servers_and_not_counted_as_silence() {
    in_network_namespace(|| {
        let mut late = grant(&[20_000]);
        late.insert(1, Act::Idle(SHORT * 4));
        let server = FakeServer::start(vec![late]);
        let picker = picker(&server).server_timeout(SHORT).wait(LONG);
        assert_eq!(picker.lease().unwrap().port(), 20_000);
    });
}

#[test]
fn what_waiting_cannot_help_is_refused_at_once() {
    in_network_namespace(|| {
        // If it were asked again, the answer would be another.
        for code in [
            "exhausted",
            "no-process",
            "forbidden",
            "bad-request",
            "stopping",
        ] {
            let server = FakeServer::start(vec![refuse(code, "x"), grant(&[20_000])]);
            let err = picker(&server).wait(LONG).lease().unwrap_err();
            assert!(matches!(err, Error::Refused { .. }), "{code}: {err:?}");
        }
    });
}

#[test]
fn a_server_that_has_no_room_for_more_who_wait_is_asked_again() {
    in_network_namespace(|| {
        let server = FakeServer::start(vec![refuse("busy", "x"), grant(&[20_000])]);
        let lease = picker(&server).wait(LONG).lease().unwrap();
        assert_eq!(lease.port(), 20_000);
    });
}

#[test]
fn what_the_server_in_the_environment_refuses_is_picked_without_it() {
    OwnProcess::new()
        .env("PORTSERVER_ADDRESS", "@extended")
        .network_namespace()
        .run(|| {
            let server = FakeServer::start_as(
                "extended",
                vec![
                    grant(&[20_001]),
                    refuse("exhausted", "x"),
                    Act::answer("nonsense\n"),
                    Act::answer(""),
                ],
            );
            let picker = Picker::new().ports(set("20001-20002")).wait(SHORT);
            let granted = picker.lease().unwrap();
            assert_eq!(granted.server(), Some(&server.address()));
            assert!(
                !server.requests()[0].contains("wait"),
                "there is another way"
            );
            for _ in 0..3 {
                let lease = picker.clone().exclude(set("20001")).lease().unwrap();
                assert_eq!((lease.port(), lease.server()), (20_002, None));
            }
        });
}

#[test]
fn a_dropped_lease_is_released_and_offered_to_nobody() {
    in_network_namespace(|| {
        let server = FakeServer::start(vec![
            grant(&[20_000, 20_001]),
            Act::answer(RELEASED),
            refuse("not-leased", "x"),
            grant(&[20_000, 20_001]),
        ]);
        drop(picker(&server).leases(2).unwrap());
        // Only if they are still this process's.
        let pid = std::process::id();
        let release = |port| format!(r#"{{"op":"release","owner":{pid},"ports":[{port}],"v":1}}"#);
        assert_eq!(server.requests()[1..], [release(20_000), release(20_001)]);
        assert!(![20_000, 20_001].contains(&pick_unused_port().unwrap()));
        // The server may grant them anew.
        assert_eq!(picker(&server).leases(2).unwrap().len(), 2);
    });
}

#[test]
fn a_lease_of_the_original_protocol_is_released_too_where_the_server_can() {
    in_network_namespace(|| {
        let server = FakeServer::start(vec![Act::answer("20000\n"), Act::answer(RELEASED)]);
        drop(picker(&server).lease().unwrap());
        assert_eq!(server.requests().len(), 2);
        assert_ne!(pick_unused_port().unwrap(), 20_000);
    });
}

#[test]
fn a_returned_port_stays_leased_and_comes_first() {
    in_network_namespace(|| {
        let server = FakeServer::start(vec![grant(&[20_000])]);
        let port = picker(&server).tag("ci").lease().unwrap().into_port();
        assert!(return_port(port));
        assert_eq!(pick_unused_port().unwrap(), port);
        assert_eq!(server.requests().len(), 1);
    });
}

#[test]
fn a_lease_of_another_process_is_not_released_with_its_value() {
    in_network_namespace(|| {
        let server = FakeServer::start(vec![grant(&[20_000])]);
        let owner = Pid::parent().unwrap();
        drop(picker(&server).owner(owner).tag("ci").lease().unwrap());
        assert_eq!(server.requests().len(), 1);
    });
}

#[test]
fn a_forked_child_does_not_release_what_its_parent_has() {
    in_network_namespace(|| {
        let server = FakeServer::start(vec![Act::answer("20000\n")]);
        let mut worker = Worker::spawn();
        let command = format!("drop_in_forked_child {}", server.address());
        assert_eq!(worker.tell(&command), Ok("20000".into()));
        assert_eq!(server.requests().len(), 1);
    });
}

/// A server that hangs costs one timeout, and not one for each port.
#[test]
fn leases_can_be_dropped_when_the_server_is_silent() {
    in_network_namespace(|| {
        let server = FakeServer::start(vec![
            grant(&[20_000, 20_001, 20_002]),
            vec![Act::Read, Act::Silence],
        ]);
        let leases = picker(&server).leases(3).unwrap();
        let begin = Instant::now();
        drop(leases);
        assert!(begin.elapsed() < LONG / 6, "{:?}", begin.elapsed());
        assert_eq!(server.requests().len(), 2);
    });
}

#[test]
fn a_port_that_cannot_be_held_gives_back_all_of_the_pick() {
    in_network_namespace(|| {
        let _in_use = Binding::udp(Local::ALL_V4, Options::None).bind(20_001);
        for owner in [Pid::current(), Pid::parent().unwrap()] {
            let server = FakeServer::start(vec![
                grant(&[20_000, 20_001]),
                Act::answer(RELEASED),
                Act::answer(RELEASED),
            ]);
            let (kind, message) = server_error(picker(&server).owner(owner).holds(2));
            assert_eq!(kind, ErrorKind::InvalidData);
            assert!(message.contains("20001"), "{message}");
            let released = server.requests()[1..].concat();
            assert!(released.contains("20000") && released.contains("20001"));
        }
    });
}

#[test]
fn what_is_no_answer_is_an_error_within_the_deadline() {
    in_network_namespace(|| {
        let cases: Vec<(Vec<Act>, ErrorKind)> = vec![
            (Act::answer("20000\n"), ErrorKind::InvalidData),
            (Act::answer("{\"ok\":true}\n"), ErrorKind::InvalidData),
            (
                Act::answer("{\"ok\":true,\"leases\":["),
                ErrorKind::InvalidData,
            ),
            (grant(&[20_000, 20_001]), ErrorKind::InvalidData),
            (grant(&[19_999]), ErrorKind::InvalidData),
            (vec![Act::Read, Act::Flood(b'{')], ErrorKind::InvalidData),
            (
                vec![Act::Read, Act::send("{\"ok\""), Act::Silence],
                ErrorKind::TimedOut,
            ),
            (vec![Act::Read, Act::Silence], ErrorKind::TimedOut),
        ];
        for (script, expected) in cases {
            let name = format!("{script:?}");
            let server = FakeServer::start(vec![script]);
            let picker = picker(&server).server_timeout(match expected {
                ErrorKind::TimedOut => SHORT,
                _ => LONG,
            });
            let (kind, message) = server_error(picker.ports(set("20000-20001")).lease());
            assert_eq!(kind, expected, "{name}: {message}");
        }
    });
}

#[test]
fn a_port_that_this_process_has_is_not_believed() {
    in_network_namespace(|| {
        let server = FakeServer::start(vec![grant(&[20_000]), grant(&[20_000])]);
        let picker = picker(&server).tag("ci");
        let _lease = picker.lease().unwrap();
        assert_eq!(server_error(picker.lease()).0, ErrorKind::InvalidData);
    });
}

#[test]
fn leases_are_listed() {
    let server = FakeServer::start(vec![
        Act::answer(
            r#"{"ok":true,"leases":[{"port":5,"pid":7,"uid":0,"command":"sh","age":1,
"#,
        ),
        Act::answer(
            "{\"ok\":true,\"leases\":[{\"port\":5,\"pid\":7,\"uid\":1,\"age\":2.5,\"tag\":\"t\"}]}\n",
        ),
        Act::answer(""),
        refuse("failed", "out of descriptors"),
    ]);
    let list = || client::list(&server.address(), LONG);
    assert_eq!(server_error(list()).0, ErrorKind::InvalidData);
    let leases = list().unwrap();
    assert_eq!(leases.len(), 1);
    assert_eq!((leases[0].port, leases[0].owner), (5, Pid::new(7)));
    assert_eq!(leases[0].tag.as_deref(), Some("t"));
    let err = list().unwrap_err();
    assert!(matches!(err, Error::ServerCannot { .. }), "{err:?}");
    let err = list().unwrap_err();
    assert!(err.to_string().ends_with(": out of descriptors"), "{err}");
    assert_eq!(server.requests()[0], r#"{"op":"list","v":1}"#);
}

#[test]
fn ports_are_released_by_whoever_may() {
    let server = FakeServer::start(vec![
        Act::answer(RELEASED),
        refuse("forbidden", "port 6 is leased to another user"),
        Act::answer(""),
    ]);
    let release = || client::release(&server.address(), &[5, 6], LONG);
    release().unwrap();
    match release() {
        Err(Error::Declined { refusal, .. }) => assert_eq!(refusal, Refusal::Forbidden),
        other => panic!("{other:?}"),
    }
    assert!(matches!(release(), Err(Error::ServerCannot { .. })));
    assert_eq!(
        server.requests()[0],
        r#"{"op":"release","ports":[5,6],"v":1}"#
    );
}
