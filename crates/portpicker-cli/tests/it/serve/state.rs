//! The state file: where it is, and what the next server makes of it.

use std::fs;

use portpicker_testing::in_network_namespace;
use rustix::process::Signal;

use super::{Place, Running, ask, exists, own_pid};
use crate::support::{Owner, run};

fn files(folder: &str) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".state"))
        .collect();
    names.sort();
    names
}

#[test]
fn leases_go_on_after_a_kill_and_end_with_their_owners() {
    in_network_namespace(|| {
        let place = Place::new();
        let (lasting, passing) = (Owner::start(), Owner::start());
        let server = place.start(&["--pool", "20000-20001"]);
        let kept = ask(place.name(), lasting.pid()).unwrap();
        let freed = ask(place.name(), passing.pid()).unwrap();
        server.end(Signal::KILL);
        passing.kill();

        let server = place.start(&["--pool", "20000-20001"]);
        assert!(
            server.log.concat().contains("adopted 1 leases"),
            "{:?}",
            server.log
        );
        assert_eq!(ask(place.name(), own_pid()), Some(freed));
        assert_eq!(ask(place.name(), own_pid()), None, "{kept} is still leased");
        server.stop();
    });
}

/// Nothing is granted that is still somebody's, only because we cannot watch them.
#[test]
fn a_server_that_cannot_take_over_all_leases_does_not_start() {
    in_network_namespace(|| {
        let place = Place::new();
        let options = ["--pool", "20000-20099"];
        let server = place.start(&options);
        let owners: Vec<_> = (0..40).map(|_| Owner::start()).collect();
        for owner in &owners {
            assert!(ask(place.name(), owner.pid()).is_some());
        }
        server.end(Signal::KILL);
        // Its file is the one by default, without which it would serve, too.
        let script = format!(
            "ulimit -n 40; exec $portserver --address {} --pool 20000-20099",
            place.name()
        );
        let ended = run(&mut place.shell(&script));
        assert_eq!(ended.code, Some(6), "{}", ended.stderr);
        let message = ended.stderr.lines().last().unwrap();
        let (what, why) = message.split_once("state file `").unwrap();
        assert_eq!(what, "portserver: cannot take over the leases in the ");
        assert!(
            why.ends_with(": Too many open files (os error 24)"),
            "{why}"
        );

        let server = place.start(&options);
        assert!(server.log.concat().contains("adopted 40 leases"));
        server.stop();
    });
}

#[test]
fn servers_at_different_addresses_have_different_files() {
    let place = Place::new();
    let (first, second) = (place.path("first"), place.path("second"));
    let folder = place.path("portserver");
    let first = Running::start(&mut place.server(&["--address", &first]));
    let second = Running::start(&mut place.server(&["--address", &second]));
    assert_eq!(files(&folder).len(), 2, "{:?}", files(&folder));
    for log in [first.stop(), second.stop()] {
        assert!(!log.contains("WARN"), "{log}");
    }
}

#[test]
fn systemd_says_where_the_file_is() {
    let place = Place::new();
    for variable in ["RUNTIME_DIRECTORY", "STATE_DIRECTORY"] {
        let folder = place.path(variable);
        fs::create_dir(&folder).unwrap();
        let mut command = place.server(&["--address", place.name()]);
        command.env(variable, format!("{folder}:/nonexistent"));
        Running::start(&mut command).stop();
        assert_eq!(files(&folder).len(), 1);
    }
    assert!(!exists(&place.path("portserver")));
}

#[test]
fn without_a_place_it_serves_with_a_warning() {
    in_network_namespace(|| {
        let place = Place::new();
        for folder in ["/nonexistent", "/dev/null"] {
            let options = ["--address", place.name(), "--pool", "20000"];
            let mut command = place.server(&options);
            command.env("XDG_RUNTIME_DIR", folder);
            let server = Running::start(&mut command);
            assert!(server.log[0].contains("WARN no place for a state file"));
            assert_eq!(ask(place.name(), own_pid()), Some(20_000));
            server.stop();
        }
        // A folder that somebody else can write to is none.
        let shared = place.path("portserver");
        fs::create_dir(&shared).unwrap();
        fs::set_permissions(&shared, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        let server = place.start(&[]);
        assert!(
            server.log[0].contains("not a folder of this user alone"),
            "{:?}",
            server.log
        );
        server.stop();
        assert_eq!(files(&shared), [""; 0]);
    });
}

#[test]
fn no_state_leaves_nothing() {
    let place = Place::new();
    place.start(&["--no-state"]).stop();
    assert!(!exists(&place.path("portserver")));
}

#[test]
fn a_state_file_that_was_asked_for_and_cannot_be_used_is_an_error() {
    let place = Place::new();
    fs::create_dir(place.path("folder")).unwrap();
    let in_use = Running::start(&mut place.server(&["--address", place.name(), "--state", "used"]));
    for (path, reason) in [
        (
            "/nonexistent/state",
            "No such file or directory (os error 2)",
        ),
        ("folder", "Is a directory (os error 21)"),
        ("used", "another server uses it"),
    ] {
        let ended = run(&mut place.server(&["--address", "other", "--state", path]));
        assert_eq!(ended.code, Some(6), "{}", ended.stderr);
        let message = ended.stderr.lines().last().unwrap();
        assert!(
            message.starts_with("portserver: cannot use the state file `/"),
            "{message}"
        );
        assert!(
            message.ends_with(&format!("{path}`: {reason}")),
            "{message}"
        );
        assert!(!exists(&place.path("other")), "the socket is removed again");
    }
    in_use.stop();
}
