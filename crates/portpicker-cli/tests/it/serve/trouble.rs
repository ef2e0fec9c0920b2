//! What goes wrong: at the start with a message and an exit code, later without an end.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::time::{Duration, Instant};

use expect_test::expect_file;
use portpicker_testing::{in_network_namespace, skip};
use rustix::process::Signal;

use super::{Place, Running, ask, connect, is_root, own_pid};
use crate::support::{Owner, run};

#[test]
fn every_error_at_the_start_says_what_and_why() {
    let place = Place::new();
    let server = place.start(&["--no-state"]);
    let live = place.name();
    let occupied = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let occupied = occupied.local_addr().unwrap().port().to_string();
    let commands: Vec<Vec<&str>> = vec![
        vec!["--pool", "5-3"],
        vec!["--pool", ""],
        vec!["--pool", "0"],
        vec!["--pool", "1", "--portserver_static_pool", "1"],
        vec!["--portserver_static_pool", "5-3,x"],
        vec!["--address", ""],
        vec!["--address", live],
        vec!["--address", "/nonexistent/socket"],
        vec!["--tcp", "70000"],
        vec!["--tcp", &occupied],
        vec!["--socket-mode", "9"],
        vec!["--socket-owner", "no-such-user"],
        vec!["--socket-owner", "root:no-such-group"],
        vec!["--user-limit", "0"],
        vec!["--state", "a", "--no-state"],
        vec!["--http", "localhost:1"],
        vec!["--http", "192.0.2.1:1"],
        vec!["--pidfile", "/nonexistent/pid"],
        vec!["--log", "/nonexistent/log"],
        vec!["--unknown"],
        vec!["argument"],
    ];
    let mut text = String::new();
    for options in commands {
        let mut command = place.server(&options);
        if !options.contains(&"--address") {
            command.args(["--address", "socket"]);
        }
        let ended = run(command.arg("--state=state"));
        assert_eq!(ended.stdout, "");
        // Log lines have the time.
        let stderr: String = ended
            .stderr
            .split_inclusive('\n')
            .filter(|line| !line.contains("Z INFO "))
            .map(|line| match line.split_once("Z ERROR ") {
                Some((_, rest)) => format!("TIME ERROR {rest}"),
                None => line.to_owned(),
            })
            .collect();
        text += &format!(
            "$ portserver {}\n{}=> {}\n\n",
            options.join(" "),
            stderr,
            ended.code.unwrap()
        )
        .replace(live, "@LIVE")
        .replace(&occupied, "OCCUPIED");
    }
    server.stop();
    expect_file!["../../snapshots/serve-errors.txt"].assert_eq(&text);
}

#[test]
fn without_permission_it_says_so() {
    const NAME: &str = "serve::trouble::without_permission_it_says_so";
    if !is_root() {
        return skip(NAME, "only root can become somebody else");
    }
    let place = Place::new();
    let closed = place.path("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    fs::set_permissions(
        place.folder.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    // Others may not come as far as where the server was built.
    let program = place.path("portserver-for-others");
    fs::copy(super::PORTSERVER, &program).unwrap();
    let socket = format!("{closed}/socket");
    let state = format!("{closed}/state");
    for (options, message) in [
        (
            ["--address", &socket],
            format!("cannot listen at `{socket}`"),
        ),
        (
            ["--state", &state],
            format!("cannot use the state file `{state}`"),
        ),
        (
            ["--pidfile", &socket],
            format!("cannot write the pidfile `{socket}`"),
        ),
        (["--log", &socket], format!("cannot log to `{socket}`")),
    ] {
        let mut command = place.program(
            "setpriv",
            &["--reuid=65534", "--regid=65534", "--clear-groups", &program],
        );
        command.args(options);
        if options[0] != "--address" {
            command.args(["--address", place.name()]);
        }
        let ended = run(&mut command);
        assert_eq!(ended.code, Some(6), "{}", ended.stderr);
        assert_eq!(
            ended.stderr.lines().last().unwrap(),
            format!("portserver: {message}: Permission denied (os error 13)"),
        );
    }
}

/// Returns a script that runs `rest` where `disk` is a disk of 16 KiB.
fn with_tiny_disk(rest: &str) -> String {
    format!("mkdir disk; mount -t tmpfs -o size=16k none disk; {rest}")
}

/// Returns whether a disk can be made, or else skips the test `name`.
fn can_mount(place: &Place, name: &str) -> bool {
    let script = "unshare --mount sh -c 'mount -t tmpfs none /mnt'";
    let ended = run(&mut place.shell(script));
    if ended.code != Some(0) {
        skip(name, &ended.stderr);
    }
    ended.code == Some(0)
}

#[test]
fn a_full_disk_at_the_start_is_an_error_if_the_state_was_asked_for() {
    const NAME: &str =
        "serve::trouble::a_full_disk_at_the_start_is_an_error_if_the_state_was_asked_for";
    in_network_namespace(|| {
        let place = Place::new();
        if !can_mount(&place, NAME) {
            return;
        }
        let script = with_tiny_disk(
            "cat /dev/zero > disk/filler 2>/dev/null || true; \
             $portserver --address $name --state disk/state || echo $?",
        );
        let mut command = place.program("unshare", &["--mount", "sh", "-euc", &script]);
        command
            .env("portserver", super::PORTSERVER)
            .env("name", place.name());
        let ended = run(&mut command);
        assert_eq!(ended.stdout, "6\n", "{}", ended.stderr);
        assert!(
            ended
                .stderr
                .ends_with("disk/state`: No space left on device (os error 28)\n"),
            "{}",
            ended.stderr
        );
    });
}

#[test]
fn a_disk_that_fills_up_is_said_once_and_does_not_end_the_service() {
    const NAME: &str =
        "serve::trouble::a_disk_that_fills_up_is_said_once_and_does_not_end_the_service";
    in_network_namespace(|| {
        let place = Place::new();
        if !can_mount(&place, NAME) {
            return;
        }
        let script = with_tiny_disk(
            "exec $portserver --address $name --state disk/state --pool 20000-20999",
        );
        let mut command = place.program("unshare", &["--mount", "sh", "-euc", &script]);
        command
            .env("portserver", super::PORTSERVER)
            .env("name", place.name());
        let mut server = Running::start(&mut command);
        // As the server sees it, in its mount namespace.
        let disk = format!("/proc/{}/root{}", server.pid(), place.path("disk"));
        let filler = format!("{disk}/filler");
        _ = fs::write(&filler, [0; 65_536]);
        let owner = Owner::start();
        for _ in 0..200 {
            assert!(ask(place.name(), owner.pid()).is_some());
        }
        server.wait_for("WARN cannot write the state file");
        fs::remove_file(&filler).unwrap();
        owner.kill();
        server.wait_for("is whole again");
        let (code, log) = server.end(Signal::TERM);
        assert_eq!(code, Some(0));
        assert_eq!(log.matches("WARN").count(), 1, "{log}");
    });
}

fn with_60_descriptors(place: &Place) -> Running {
    let script = format!(
        "ulimit -n 60; exec $portserver --address {} --pool 20000-20999",
        place.name()
    );
    Running::start(&mut place.shell(&script))
}

#[test]
fn it_serves_on_when_descriptors_run_out() {
    in_network_namespace(|| {
        let place = Place::new();
        let mut server = with_60_descriptors(&place);
        assert!(
            server
                .log
                .concat()
                .contains("60 descriptors are not enough")
        );
        let owner = Owner::start();
        let granted = (0..100)
            .take_while(|_| ask(place.name(), owner.pid()).is_some())
            .count();
        assert!((5..55).contains(&granted), "{granted}");
        server.wait_for("WARN a request failed: ");
        assert_eq!(ask(place.name(), owner.pid()), None);
        let silent: Vec<_> = (0..14).map(|_| connect(place.name()).unwrap()).collect();
        server.wait_for("WARN cannot accept connections: Too many open files");
        owner.kill();
        drop(silent);
        // The exit of the owner is seen at any moment now.
        while ask(place.name(), own_pid()).is_none() {
            std::thread::yield_now();
        }
        let log = server.stop();
        assert_eq!(log.matches("WARN").count(), 3, "{log}");
    });
}

/// Leases have taken most descriptors, so those run out before there is no room for connections.
#[test]
fn silent_clients_keep_nobody_out_when_descriptors_run_out() {
    in_network_namespace(|| {
        let place = Place::new();
        let mut server = with_60_descriptors(&place);
        let owner = Owner::start();
        let granted: Vec<_> = (0..100)
            .map_while(|_| ask(place.name(), owner.pid()))
            .collect();
        let silent: Vec<_> = (0..40).map(|_| connect(place.name()).unwrap()).collect();
        server.wait_for("WARN cannot accept connections: Too many open files");
        let started = Instant::now();
        for _ in 0..5 {
            let mut stream = connect(place.name()).unwrap();
            stream.write_all(b"{\"v\":1,\"op\":\"stats\"}\n").unwrap();
            let mut answer = String::new();
            BufReader::new(stream).read_line(&mut answer).unwrap();
            assert!(
                answer.contains(&format!("\"leased\":{}", granted.len())),
                "{answer}"
            );
        }
        let took = started.elapsed();
        assert!(
            took < Duration::from_secs(8),
            "{took:?}: or their time is over anyway"
        );
        drop(silent);
        let log = server.stop();
        assert_eq!(log.matches("WARN cannot accept").count(), 1, "{log}");
    });
}

#[test]
fn it_goes_on_when_connections_run_out() {
    in_network_namespace(|| {
        let place = Place::new();
        let script = format!(
            "ulimit -n 60; exec $portserver --address {} --pool 20000-20999",
            place.name()
        );
        let server = Running::start(&mut place.shell(&script));
        // More than it accepts: the rest waits outside.
        let silent: Vec<_> = (0..40).map(|_| connect(place.name()).unwrap()).collect();
        drop(silent);
        assert!(ask(place.name(), own_pid()).is_some());
        let log = server.stop();
        assert!(!log.contains("cannot accept"), "{log}");
    });
}

#[test]
fn the_limit_on_descriptors_is_raised() {
    let place = Place::new();
    let script = format!(
        "ulimit -Sn 100; exec $portserver --address {}",
        place.name()
    );
    let server = Running::start(&mut place.shell(&script));
    let limits = fs::read_to_string(format!("/proc/{}/limits", server.pid())).unwrap();
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"))
        .unwrap();
    let numbers: Vec<&str> = line["Max open files".len()..].split_whitespace().collect();
    assert_eq!(numbers[0], numbers[1], "{line}");
    server.stop();
}
