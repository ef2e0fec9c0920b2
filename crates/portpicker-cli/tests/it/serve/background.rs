//! `--daemon` and `--pidfile`.

use std::fs;

use portpicker_testing::Exit;
use rustix::process::{Pid, Signal, kill_process};

use super::{Place, connect, exists};
use crate::support::run;

/// A server in the background, ended when this is dropped.
struct Daemon {
    pid: u32,
    exit: Exit,
}

impl Daemon {
    fn in_file(path: &str) -> Self {
        let pid = pid_in(path);
        Self {
            pid,
            exit: Exit::of(pid),
        }
    }

    fn end(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.pid as i32).unwrap(), signal).unwrap();
        self.exit.wait();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if !self.exit.has_happened() {
            self.exit.kill();
        }
    }
}

fn pid_in(path: &str) -> u32 {
    let text = fs::read_to_string(path).unwrap();
    text.strip_suffix('\n').unwrap().parse().unwrap()
}

#[test]
fn a_daemon_listens_and_has_a_pidfile_when_the_command_returns() {
    for first in [None, Some("serve")] {
        let place = Place::new();
        let pidfile = place.path("pid");
        let options = ["--daemon", "--address", place.name(), "--pidfile", "pid"];
        let options: Vec<&str> = first.into_iter().chain(options).collect();
        let program = match first {
            None => super::PORTSERVER,
            Some(_) => crate::support::PORTPICKER,
        };
        // Its output ends, though the server goes on: it has nothing of the command.
        let ended = run(&mut place.program(program, &options));
        assert_eq!(
            (ended.code, ended.stdout.as_str(), ended.stderr.as_str()),
            (Some(0), "", "")
        );
        let daemon = Daemon::in_file(&pidfile);
        connect(place.name()).unwrap();
        let cwd = fs::read_link(format!("/proc/{}/cwd", daemon.pid)).unwrap();
        assert_eq!(cwd.to_str(), Some("/"));
        daemon.end(Signal::TERM);
        assert!(!exists(&pidfile), "it is removed at the end");
    }
}

#[test]
fn a_daemon_keeps_no_descriptor_of_whoever_started_it() {
    let place = Place::new();
    let script = format!(
        "exec 9>&1; $portserver --daemon --address {} --pidfile pid",
        place.name()
    );
    // A descriptor that it kept would keep the output from ending.
    assert_eq!(run(&mut place.shell(&script)).code, Some(0));
    let daemon = Daemon::in_file(&place.path("pid"));
    let session = rustix::process::getsid(Pid::from_raw(daemon.pid as i32)).unwrap();
    assert_eq!(session.as_raw_nonzero().get(), daemon.pid as i32);
}

#[test]
fn a_daemon_that_does_not_start_says_why() {
    let place = Place::new();
    let options = ["--daemon", "--address", place.name(), "--pidfile", "pid"];
    assert_eq!(run(&mut place.server(&options)).code, Some(0));
    let daemon = Daemon::in_file(&place.path("pid"));

    let ended = run(&mut place.server(&options));
    assert_eq!(ended.code, Some(6));
    assert_eq!(
        ended.stderr,
        format!(
            "portserver: cannot listen at `{}`: Address already in use (os error 98)\n",
            place.name()
        )
    );
    assert_eq!(pid_in(&place.path("pid")), daemon.pid);

    let none = run(&mut place.server(&["--daemon", "--portserver_static_pool", "x"]));
    assert_eq!(none.code, Some(1), "{}", none.stderr);
    let ended = run(&mut place.server(&["--daemon", "--pool", "x"]));
    assert_eq!(ended.code, Some(2));
}

#[test]
fn a_daemon_logs_to_a_file() {
    let place = Place::new();
    let options = [
        "--daemon",
        "--address",
        place.name(),
        "--pidfile",
        "pid",
        "--log",
        "log",
    ];
    let ended = run(&mut place.server(&options));
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
    Daemon::in_file(&place.path("pid")).end(Signal::INT);
    let log = fs::read_to_string(place.path("log")).unwrap();
    assert!(log.contains("INFO managing 10000 ports"), "{log}");
    assert!(log.ends_with("INFO total-allocations 0\n"), "{log}");
}

#[test]
fn a_pidfile_that_is_anothers_by_now_is_not_removed() {
    let place = Place::new();
    let pidfile = place.path("pid");
    // A pid of a former start is no obstacle: nothing listens.
    fs::write(&pidfile, "1\n").unwrap();
    let (first, second) = (place.path("first"), place.path("second"));
    let start = |address| {
        let options = [
            "--daemon",
            "--no-state",
            "--address",
            address,
            "--pidfile",
            &pidfile,
        ];
        assert_eq!(run(&mut place.server(&options)).code, Some(0));
        Daemon::in_file(&pidfile)
    };
    let first = start(&first);
    let second = start(&second);
    first.end(Signal::TERM);
    assert_eq!(pid_in(&pidfile), second.pid);
    second.end(Signal::TERM);
    assert!(!exists(&pidfile));
}

#[test]
fn a_pidfile_that_cannot_be_written_is_an_error() {
    let place = Place::new();
    for (path, reason) in [
        ("/nonexistent/pid", "No such file or directory (os error 2)"),
        ("/", "is a directory"),
    ] {
        for daemon in [&["--daemon"][..], &[]] {
            let options = [&["--address", place.name(), "--pidfile", path], daemon].concat();
            let ended = run(&mut place.server(&options));
            assert_eq!(ended.code, Some(6));
            assert_eq!(
                ended.stderr,
                format!("portserver: cannot write the pidfile `{path}`: {reason}\n")
            );
        }
    }
}
