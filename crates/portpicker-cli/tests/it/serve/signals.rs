//! Signals, and what is logged.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::process::Stdio;

use portpicker_testing::{Exit, in_network_namespace};
use rustix::process::Signal;

use super::{Place, Running, ask, connect, own_pid};

const STATISTICS: [&str; 5] = [
    "client-request-errors 1",
    "denied-allocations 2",
    "num-ports-managed 2",
    "num-ports-checked-for-last-request 0",
    "total-allocations 2",
];

/// Makes the numbers what they are above.
fn use_it(place: &Place) {
    for (pid, is_granted) in [
        (own_pid().to_string(), true),
        (own_pid().to_string(), true),
        (own_pid().to_string(), false),
        ("1".to_owned(), false),
        ("nonsense".to_owned(), false),
    ] {
        assert_eq!(ask(place.name(), &pid).is_some(), is_granted, "{pid}");
    }
}

#[test]
fn sigusr1_logs_five_numbers_in_their_order() {
    in_network_namespace(|| {
        let place = Place::new();
        let server = place.start(&["--pool", "20000-20001"]);
        use_it(&place);
        for _ in 0..2 {
            server.signal(Signal::USR1);
            let lines =
                STATISTICS.map(|_| server.lines.recv_timeout(crate::support::LONG).unwrap());
            for (line, expected) in lines.iter().zip(STATISTICS) {
                assert!(line.ends_with(&format!(" INFO {expected}")), "{line}");
            }
        }
        server.stop();
    });
}

#[test]
fn sigint_and_sigterm_end_it_with_statistics() {
    in_network_namespace(|| {
        for signal in [Signal::INT, Signal::TERM] {
            let place = Place::new();
            let server = place.start(&["--pool", "20000-20001"]);
            use_it(&place);
            let (code, log) = server.end(signal);
            assert_eq!(code, Some(0));
            let lines: Vec<&str> = log.lines().collect();
            for (line, expected) in lines[lines.len() - 5..].iter().zip(STATISTICS) {
                assert!(line.ends_with(expected), "{log}");
            }
        }
    });
}

#[test]
fn a_client_that_stays_connected_does_not_keep_it_from_ending() {
    let place = Place::new();
    let server = place.start(&[]);
    let mut silent = connect(place.name()).unwrap();
    let mut speaking = connect(place.name()).unwrap();
    speaking.write_all(b"{\"v\":1,").unwrap();
    server.stop();
    assert_eq!(std::io::Read::read(&mut silent, &mut [0]).unwrap_or(0), 0);
}

#[test]
fn people_get_the_time_and_journald_the_priority() {
    let place = Place::new();
    let server = place.start(&["--pool", "20000"]);
    let log = server.stop();
    for line in log.lines() {
        let (time, rest) = line.split_once(' ').unwrap();
        assert!(time.ends_with('Z') && time.contains("T"), "{line}");
        assert!(rest.starts_with("INFO "), "{line}");
    }

    let path = place.path("stderr");
    let file = File::create(&path).unwrap();
    let data = file.metadata().unwrap();
    let mut child = place
        .server(&[
            "--address",
            place.name(),
            "--portserver_static_pool",
            "20000,x",
        ])
        .env("JOURNAL_STREAM", format!("{}:{}", data.dev(), data.ino()))
        .env("NOTIFY_SOCKET", "")
        .stderr(Stdio::from(file))
        .spawn()
        .unwrap();
    let exit = Exit::of(child.id());
    // It listens when it has written the pid; here that is known when it answers.
    while connect(place.name()).is_err() {
        assert!(!exit.has_happened());
        std::thread::yield_now();
    }
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), Signal::TERM).unwrap();
    assert!(child.wait().unwrap().success());
    let log = std::fs::read_to_string(&path).unwrap();
    assert!(log.starts_with("<3>ignored in the pool"), "{log}");
    assert!(log.contains("\n<6>managing 1 ports\n"), "{log}");
}

#[test]
fn verbose_says_why_requests_are_refused_and_nothing_says_their_tags() {
    in_network_namespace(|| {
        let place = Place::new();
        let mut server = place.start(&["--pool", "20000", "--verbose"]);
        assert_eq!(ask(place.name(), "1"), None);
        let line = server.wait_for("DEBUG refused");
        assert!(line.contains("process 1 never ends"), "{line}");
        server.stop();

        let mut server = place.start(&["--pool", "20000", "--debug"]);
        let mut stream = connect(place.name()).unwrap();
        for ports in ["20000", "30000"] {
            let request =
                format!("{{\"v\":1,\"op\":\"lease\",\"tag\":\"s3cret\",\"ports\":\"{ports}\"}}\n");
            stream.write_all(request.as_bytes()).unwrap();
            assert!(std::io::Read::read(&mut stream, &mut [0; 4096]).unwrap() > 0);
        }
        drop(stream);
        server.signal(Signal::USR1);
        server.wait_for("total-allocations 1");
        let log = server.stop();
        assert!(!log.contains("s3cret"), "{log}");
    });
}

#[test]
fn a_log_file_is_added_to() {
    let place = Place::new();
    let path = place.path("log");
    std::fs::write(&path, "before\n").unwrap();
    for signal in [Signal::TERM, Signal::INT] {
        let server = Running::spawn(&mut place.server(&[
            "--address",
            place.name(),
            "--log",
            &path,
            "--no-state",
        ]));
        while connect(place.name()).is_err() {
            std::thread::yield_now();
        }
        let (code, stderr) = server.end(signal);
        assert_eq!((code, stderr.as_str()), (Some(0), ""));
    }
    let log = std::fs::read_to_string(&path).unwrap();
    assert!(log.starts_with("before\n"));
    assert_eq!(
        log.matches("INFO managing 10000 ports\n").count(),
        2,
        "{log}"
    );
}
