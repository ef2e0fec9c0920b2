//! What if the port server is slow, silent, or lies?

use std::io::ErrorKind;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use portpicker::process::Pid;
use portpicker::{
    Error, Kind, Picker, Server, ServerAddress, is_port_free, pick_unused_port, request_port,
    return_port,
};
use portpicker_testing::{
    Act, Binding, BusyServer, Descriptors, FakeServer, Local, Options, OwnProcess, Worker,
    in_network_namespace,
};

use crate::set;

/// Enough for every answer that comes at all.
const LONG: Duration = Duration::from_secs(60);

/// Enough to see that an answer does not come.
const SHORT: Duration = Duration::from_millis(50);

fn ask(server: &FakeServer, timeout: Duration) -> portpicker::Result<u16> {
    request_port(&server.address(), Pid::current(), timeout)
}

/// Returns the kind and the message of the source of an [`Error::Server`].
fn server_error<T: std::fmt::Debug>(result: portpicker::Result<T>) -> (ErrorKind, String) {
    match result {
        Err(Error::Server { source, .. }) => (source.kind(), source.to_string()),
        other => panic!("{other:?}"),
    }
}

/// Returns what `ask` returns, from a thread that is left behind if it never does.
fn in_time<T: Send + 'static>(ask: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || sender.send(ask()));
    let result = receiver.recv_timeout(Duration::from_secs(10));
    result.expect("the timeout has passed long ago")
}

fn picker(server: &FakeServer) -> Picker {
    Picker::new()
        .server(Server::At(server.address()))
        .server_timeout(LONG)
}

#[test]
fn the_request_is_the_owners_pid_and_the_answer_a_port() {
    for start in [FakeServer::start, FakeServer::start_at_path] {
        let server = start(vec![
            Act::answer("15000\n"),
            Act::answer_in_bytes("65535\n"),
            // The original server closes; one that does not is not waited for.
            vec![Act::Read, Act::send("1\n"), Act::Silence],
            vec![Act::Read, Act::send("2\n"), Act::HalfClose, Act::Silence],
        ]);
        for port in [15_000, 65_535, 1] {
            assert_eq!(ask(&server, LONG).unwrap(), port);
        }
        let owner = Pid::new(1234).unwrap();
        assert_eq!(request_port(&server.address(), owner, LONG).unwrap(), 2);
        let own = std::process::id().to_string();
        assert_eq!(server.requests(), [&own, &own, &own, "1234"]);
    }
}

#[test]
fn a_refusal_is_silence_or_0() {
    let server = FakeServer::start(vec![
        Act::answer(""),
        Act::answer("0\n"),
        vec![Act::Read, Act::HalfClose, Act::Silence],
    ]);
    for _ in 0..3 {
        match ask(&server, LONG) {
            Err(Error::Refused { address, owner, .. }) => {
                assert_eq!(address, server.address());
                assert_eq!(owner, Pid::current());
            }
            other => panic!("{other:?}"),
        }
    }
}

/// Whether the request was sent before or after, and then never read, is a matter of luck.
#[test]
fn hanging_up_at_once_is_a_refusal_too() {
    let server = FakeServer::start((0..50).map(|_| vec![]).collect());
    for _ in 0..50 {
        let err = ask(&server, LONG).unwrap_err();
        assert!(matches!(err, Error::Refused { .. }), "{err:?}");
    }
}

#[test]
fn an_answer_that_is_no_port_is_invalid() {
    let answers = [
        "garbage\n",
        "65536\n",
        "99999999999999999999\n",
        "-1\n",
        "15000.0\n",
        "0x10\n",
        "\n",
        "15000 15001\n",
        "{\"port\": 15000}\n",
        "\u{fffd}\n",
    ];
    let server = FakeServer::start(answers.map(Act::answer).into());
    for answer in answers {
        let (kind, message) = server_error(ask(&server, LONG));
        assert_eq!(kind, ErrorKind::InvalidData, "{answer:?}: {message}");
        assert!(message.ends_with("which is not a port"), "{message}");
    }
}

#[test]
fn bytes_that_are_no_text_are_invalid_and_shown_safely() {
    let server = FakeServer::start(vec![vec![Act::Read, Act::Send(vec![0xff, 0x1b, b'\n'])]]);
    let (kind, message) = server_error(ask(&server, LONG));
    assert_eq!(kind, ErrorKind::InvalidData);
    assert!(message.contains(r"\xff\x1b"), "{message}");
}

/// 1500 of 15000 is a port as well, and the wrong one.
#[test]
fn half_an_answer_is_invalid() {
    let server = FakeServer::start(vec![
        Act::answer("1500"),
        vec![Act::Read, Act::send("1500"), Act::HalfClose, Act::Silence],
    ]);
    for _ in 0..2 {
        let (kind, message) = server_error(ask(&server, LONG));
        assert_eq!(kind, ErrorKind::InvalidData);
        assert!(message.ends_with("which breaks off"), "{message}");
    }
}

#[test]
fn endless_bytes_are_invalid() {
    let server = FakeServer::start(vec![
        vec![Act::Read, Act::Flood(b'1')],
        vec![Act::Read, Act::Flood(b' ')],
        vec![Act::Flood(0)],
    ]);
    for _ in 0..3 {
        assert_eq!(server_error(ask(&server, LONG)).0, ErrorKind::InvalidData);
    }
}

#[test]
fn no_answer_in_time_is_an_error() {
    let server = FakeServer::start(vec![
        vec![Act::Silence],
        vec![Act::Read, Act::Silence],
        vec![Act::Read, Act::send("1500"), Act::Silence],
    ]);
    for _ in 0..3 {
        let (kind, message) = server_error(ask(&server, SHORT));
        assert_eq!(kind, ErrorKind::TimedOut);
        assert_eq!(message, "no answer in time");
    }
}

/// A byte now and then does not prolong the exchange: in all they would come to an answer.
#[test]
fn the_deadline_is_for_the_whole_answer() {
    let mut script = vec![Act::Read];
    for byte in b"00000000000000000015000\n" {
        script.extend([Act::Idle(SHORT / 4), Act::Send(vec![*byte])]);
    }
    let server = FakeServer::start(vec![script]);
    let (kind, message) = server_error(ask(&server, SHORT));
    assert_eq!(
        (kind, &*message),
        (ErrorKind::TimedOut, "no answer in time")
    );
}

#[test]
fn a_server_that_does_not_accept_is_given_up_in_time() {
    let server = BusyServer::new();
    let address = server.address();
    let result = in_time(move || request_port(&address, Pid::current(), SHORT));
    assert_eq!(server_error(result).0, ErrorKind::TimedOut);
}

#[test]
fn no_time_at_all_is_too_little() {
    let server = FakeServer::start(vec![Act::answer("15000\n")]);
    let result = ask(&server, Duration::ZERO);
    assert_eq!(server_error(result).0, ErrorKind::TimedOut);
}

/// A socket's timeout counts in microseconds, and 0 of them means for ever: less than one must
/// not be rounded down to that.
#[test]
fn less_than_a_microsecond_is_not_for_ever() {
    let busy = BusyServer::new();
    for nanoseconds in (1..=999).step_by(10) {
        let address = busy.address();
        let timeout = Duration::from_nanos(nanoseconds);
        let result = in_time(move || request_port(&address, Pid::current(), timeout));
        assert_eq!(server_error(result).0, ErrorKind::TimedOut);
    }
}

#[test]
fn every_endless_timeout_is_possible() {
    let server = FakeServer::start(vec![Act::answer("15000\n")]);
    assert_eq!(ask(&server, Duration::MAX).unwrap(), 15_000);
}

#[test]
fn an_unreachable_server_is_an_error_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nobody");
    let stale = folder.path().join("stale");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    for (address, expected) in [
        ("@portpicker-testing/nobody", ErrorKind::ConnectionRefused),
        (path.to_str().unwrap(), ErrorKind::NotFound),
        (stale.to_str().unwrap(), ErrorKind::ConnectionRefused),
    ] {
        let address: ServerAddress = address.parse().unwrap();
        let err = request_port(&address, Pid::current(), LONG).unwrap_err();
        assert_eq!(
            err.to_string(),
            format!("cannot talk to the port server at `{address}`")
        );
        assert_eq!(server_error::<u16>(Err(err)).0, expected, "{address}");
    }
}

#[test]
fn a_failed_exchange_leaks_no_descriptor() {
    OwnProcess::new().run(|| {
        let server = FakeServer::start(vec![
            Act::answer("garbage\n"),
            vec![Act::Read, Act::Flood(b'1')],
            Act::answer(""),
            vec![Act::Silence],
        ]);
        let before = Descriptors::count();
        for _ in 0..4 {
            assert!(ask(&server, SHORT).is_err());
        }
        // With the thread ends the last descriptor of the server's side.
        drop(server);
        assert_eq!(Descriptors::count(), before - 1, "the listener");

        let busy = BusyServer::new();
        let before = Descriptors::count();
        assert!(request_port(&busy.address(), Pid::current(), SHORT).is_err());
        assert_eq!(Descriptors::count(), before);
    });
}

#[test]
fn a_certain_server_is_the_only_way() {
    in_network_namespace(|| {
        let server = FakeServer::start(vec![Act::answer(""), Act::answer("garbage\n")]);
        let err = picker(&server).lease().unwrap_err();
        assert!(matches!(err, Error::Refused { .. }), "{err:?}");
        let err = picker(&server).lease().unwrap_err();
        assert!(matches!(err, Error::Server { .. }), "{err:?}");
    });
}

#[test]
fn a_certain_server_that_speaks_only_the_original_protocol_cannot_be_asked_for_more() {
    in_network_namespace(|| {
        let server = FakeServer::start(vec![]);
        let plain = picker(&server);
        for (result, expected) in [
            (plain.clone().ports(set("20000")).lease(), "a set of ports"),
            (
                plain.clone().exclude(set("20000")).lease(),
                "excluded ports",
            ),
            (plain.clone().prefer([20_000]).lease(), "preferred ports"),
            (plain.clone().only(Kind::Udp).lease(), "one transport"),
            (
                plain.clone().address([127, 0, 0, 1].into()).lease(),
                "one local address",
            ),
            (
                plain.lease_block(2).map(|mut block| block.remove(0)),
                "a contiguous block",
            ),
        ] {
            match result {
                Err(Error::ServerCannot { option, .. }) => assert_eq!(option, expected),
                other => panic!("{other:?}"),
            }
        }
    });
}

#[test]
fn a_lease_for_another_process_needs_a_server() {
    in_network_namespace(|| {
        let owner = Pid::parent().unwrap();
        match Picker::new().owner(owner).lease() {
            Err(Error::OwnerNeedsServer { owner: named }) => assert_eq!(named, owner),
            other => panic!("{other:?}"),
        }
        let server = FakeServer::start(vec![
            Act::answer("20000\n"),
            Act::answer(""),
            Act::answer("20001\n"),
        ]);
        let picker = picker(&server).owner(owner);
        drop(picker.lease().unwrap());
        let err = picker.lease().unwrap_err();
        assert!(matches!(err, Error::Refused { .. }), "{err:?}");
        assert_eq!(server.requests(), vec![owner.to_string(); 2]);

        // It is the owner's, and not for this process to give away or to offer.
        assert_eq!(picker.lease().unwrap().into_port(), 20_001);
        assert!(pick_unused_port().unwrap() != 20_000);
    });
}

#[test]
fn a_refused_lease_for_another_process_is_not_picked_without_the_server() {
    OwnProcess::new()
        .env("PORTSERVER_ADDRESS", "@refuses")
        .network_namespace()
        .run(|| {
            let server = FakeServer::start_as("refuses", vec![Act::answer("")]);
            let picker = Picker::new().owner(Pid::parent().unwrap());
            let err = picker.lease().unwrap_err();
            assert!(matches!(err, Error::Refused { .. }), "{err:?}");
            drop(server);
            let err = picker.lease().unwrap_err();
            assert!(matches!(err, Error::Server { .. }), "{err:?}");
        });
}

#[test]
fn a_port_from_a_server_is_offered_again_when_it_is_returned() {
    in_network_namespace(|| {
        let server = FakeServer::start(vec![Act::answer("20000\n"), Act::answer("20001\n")]);
        let port = picker(&server).lease().unwrap().into_port();
        assert!(is_port_free(port).unwrap());
        assert!(return_port(port));
        assert!(!return_port(port));
        assert_eq!(
            pick_unused_port().unwrap(),
            port,
            "the server keeps it for us"
        );

        drop(picker(&server).lease().unwrap());
        assert_eq!(
            pick_unused_port().unwrap(),
            20_001,
            "a dropped lease is offered too"
        );
    });
}

/// The port servers of this project take the same locks as the library.
#[test]
fn a_port_from_a_server_may_be_locked_by_it() {
    in_network_namespace(|| {
        let mut process = Worker::spawn();
        assert_eq!(process.lease(&set("20000"), 1), Ok(vec![20_000]));
        let server = FakeServer::start(vec![Act::answer("20000\n")]);
        let port = picker(&server).lease().unwrap().into_port();
        assert!(is_port_free(port).unwrap());
        assert!(return_port(port));
        assert_eq!(pick_unused_port().unwrap(), port);
    });
}

#[test]
fn a_port_from_a_server_can_be_held() {
    in_network_namespace(|| {
        let server = FakeServer::start(vec![Act::answer("20000\n"), Act::answer("20001\n")]);
        let hold = picker(&server).hold().unwrap();
        for binding in crate::every_binding() {
            assert!(binding.bind(hold.port()).is_err(), "{binding}");
        }
        assert_eq!(hold.lease().server(), Some(&server.address()));
        assert!(hold.lease().descriptor().is_none());

        let _in_use = Binding::udp(Local::ALL_V4, Options::None).bind(20_001);
        let (kind, message) = server_error(picker(&server).hold());
        assert_eq!(kind, ErrorKind::InvalidData);
        assert!(message.contains("20001"), "{message}");
    });
}

#[test]
fn a_server_that_grants_one_port_twice_in_a_pick_is_an_error() {
    in_network_namespace(|| {
        let server = FakeServer::start(vec![Act::answer("20000\n"), Act::answer("20000\n")]);
        let (kind, message) = server_error(picker(&server).leases(2));
        assert_eq!(kind, ErrorKind::InvalidData);
        assert!(message.contains("20000"), "{message}");
    });
}

#[test]
fn a_server_that_grants_a_port_that_this_process_has_picked_is_an_error() {
    in_network_namespace(|| {
        let server = FakeServer::start(vec![Act::answer("20000\n"), Act::answer("20000\n")]);
        let port = picker(&server).lease().unwrap().into_port();
        let (kind, _) = server_error(picker(&server).lease());
        assert_eq!(kind, ErrorKind::InvalidData);
        assert!(return_port(port), "it is still ours");
    });
}

#[test]
fn a_server_that_grants_a_port_whose_lease_this_process_has_is_an_error() {
    in_network_namespace(|| {
        let server = FakeServer::start(vec![Act::answer("20000\n"), Act::answer("20000\n")]);
        let _lease = picker(&server).lease().unwrap();
        let (kind, _) = server_error(picker(&server).lease());
        assert_eq!(kind, ErrorKind::InvalidData);
    });
}

#[test]
fn a_port_that_a_lying_server_grants_after_its_return_is_not_picked_twice() {
    in_network_namespace(|| {
        let server = FakeServer::start(vec![Act::answer("20000\n"), Act::answer("20000\n")]);
        let port = picker(&server).lease().unwrap().into_port();
        assert!(return_port(port));
        // Either is right: an error, or the port, which is on offer no more then.
        if let Ok(lease) = picker(&server).lease() {
            assert_eq!(lease.into_port(), port);
            assert_ne!(pick_unused_port().unwrap(), port);
        }
    });
}

#[test]
fn a_lying_server_in_the_environment_is_done_without() {
    OwnProcess::new()
        .env("PORTSERVER_ADDRESS", "@lies")
        .env("PORTPICKER_PORTS", "30000-30001")
        .network_namespace()
        .run(|| {
            let answers = ["", "20000\n", "20000\n"];
            let server = FakeServer::start_as("lies", answers.map(Act::answer).into());
            let leases = Picker::new().leases(2).unwrap();
            let mut ports: Vec<_> = leases.iter().map(|lease| lease.port()).collect();
            ports.sort_unstable();
            assert_eq!(ports, [30_000, 30_001]);
            // Once for both, once for each, and once to give the first back.
            assert_eq!(server.requests().len(), 4);
        });
}
