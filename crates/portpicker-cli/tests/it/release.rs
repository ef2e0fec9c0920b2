//! `portpicker release` and `pick` with a server of this project: what is leased, and until when.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};

use expect_test::{expect, expect_file};
use portpicker_testing::in_network_namespace;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::{Ended, Owner, pick, portpicker, run};

/// A server at `@server`, in the network namespace of the test.
struct Server {
    child: Child,
    _folder: TempDir,
}

impl Server {
    /// Starts a server of the ports `pool`, and waits until it listens.
    fn start(pool: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut child = portpicker(&["serve", "--address", "@server", "--pool", pool])
            .env("XDG_RUNTIME_DIR", folder.path())
            .env_remove("STATE_DIRECTORY")
            .current_dir(folder.path())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
        while !log.next().unwrap().unwrap().contains("managing") {}
        // Its log is read to the end, so that it never waits for somebody to read it.
        std::thread::spawn(move || log.for_each(drop));
        Self {
            child,
            _folder: folder,
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// Runs the command with the server in its environment.
fn command(arguments: &[&str]) -> Ended {
    run(portpicker(arguments).env("PORTSERVER_ADDRESS", "@server"))
}

/// Returns the leases of the server.
fn leases() -> Vec<Value> {
    let ended = command(&["status", "--json"]);
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
    let report: Value = serde_json::from_str(&ended.stdout).unwrap();
    report["leases"].as_array().unwrap().clone()
}

#[test]
fn ports_are_given_back_all_or_none() {
    in_network_namespace(|| {
        let _server = Server::start("20000-20003");
        let owner = Owner::start();
        pick(&owner, &["-n", "3", "--server", "@server"]);
        let none = command(&["release", "20000", "20003"]);
        assert_eq!((none.code, none.stdout.as_str()), (Some(4), ""));
        expect![[r#"
            portpicker: the port server at `@server` refused to release the ports: port 20003 is not leased
        "#]]
        .assert_eq(&none.stderr);
        assert_eq!(leases().len(), 3);

        let released = command(&["release", "20000-20001", "20001"]);
        let silence = (Some(0), "", "");
        assert_eq!(
            (
                released.code,
                released.stdout.as_str(),
                released.stderr.as_str()
            ),
            silence
        );
        assert_eq!(leases().len(), 1);
    });
}

#[test]
fn every_option_of_a_pick_is_served_and_the_lease_outlives_the_command() {
    in_network_namespace(|| {
        let _server = Server::start("20000-20009");
        let owner = Owner::start();
        let with = |options: &[&str]| {
            let picked = pick(&owner, &[options, &["--server", "@server"]].concat());
            assert_eq!(picked.server.as_deref(), Some("@server"));
            picked.ports
        };
        assert_eq!(with(&["--prefer", "20005", "--tag", "ci 17"]), [20_005]);
        assert_eq!(with(&["--ports", "20004-20005", "--tcp"]), [20_004]);
        let block = ["-n", "3", "--contiguous", "--exclude", "20000"];
        assert_eq!(with(&block), [20_001, 20_002, 20_003]);
        assert_eq!(with(&["--ports", "20008", "--hold", "100"]), [20_008]);
        assert_eq!(
            with(&["--ports", "20009", "--address", "127.0.0.1"]),
            [20_009]
        );

        let leases = leases();
        assert_eq!(leases.len(), 7);
        for lease in &leases {
            assert_eq!(lease["pid"].to_string(), owner.pid());
            assert_eq!(lease["command"], "cat");
        }
        assert_eq!(leases[4]["tag"], "ci 17");
        assert!(
            std::net::TcpListener::bind("127.0.0.1:20008").is_ok(),
            "through the door"
        );
        let bare =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        let held = "127.0.0.1:20008".parse::<std::net::SocketAddr>().unwrap();
        assert!(bare.bind(&held.into()).is_err(), "held");
    });
}

#[test]
fn a_wait_ends_with_the_lease_that_is_in_the_way() {
    in_network_namespace(|| {
        let _server = Server::start("20000");
        let (first, second) = (Owner::start(), Owner::start());
        pick(&first, &["--server", "@server"]);
        let pid = second.pid();
        let arguments = ["pick", "--server", "@server", "--owner", &pid, "--wait"];
        let none = run(&mut portpicker(&[&arguments[..], &["0.01"]].concat()));
        assert_eq!(none.code, Some(4));
        expect![[r#"
            portpicker: the port server at `@server` refused a port to process OWNER: not enough unused ports: of 1 in the pool, 1 are leased and 0 in use
        "#]]
        .assert_eq(&none.stderr.replace(&pid, "OWNER"));

        let waiting = portpicker(&[&arguments[..], &["1000"]].concat())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        first.kill();
        let output = waiting.wait_with_output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "20000\n");
    });
}

#[test]
fn what_the_server_refuses_is_picked_without_it_and_waited_for_once() {
    in_network_namespace(|| {
        let _server = Server::start("20000");
        let owner = Owner::start();
        let pid = owner.pid();
        let pick = ["pick", "--owner", &pid, "--wait", "1000"];
        assert_eq!(command(&pick).stdout, "20000\n");
        // The server would have to wait for it until the owner exits.
        let ended = command(&pick);
        assert_eq!(ended.code, Some(0));
        assert_ne!(ended.stdout, "20000\n");
        assert!(
            ended.stderr.ends_with("; picking without it\n"),
            "{ended:?}"
        );
    });
}

#[test]
fn ports_that_could_not_be_printed_are_given_back() {
    in_network_namespace(|| {
        let _server = Server::start("20000-20001");
        let owner = Owner::start();
        let full = std::fs::File::options()
            .write(true)
            .open("/dev/full")
            .unwrap();
        let mut command = portpicker(&["pick", "-n", "2", "--owner", &owner.pid()]);
        let status = command
            .args(["--server", "@server"])
            .stdout(full)
            .stderr(Stdio::null())
            .status()
            .unwrap();
        assert_eq!(status.code(), Some(6));
        assert!(leases().is_empty());
    });
}

#[test]
fn every_trouble_of_a_release_says_what_and_has_its_exit_code() {
    let mut text = String::new();
    for arguments in [
        &["release", "--server", "@portpicker-tests-nobody"][..],
        &["release", "20000"],
        &["release", "70000"],
        &["release", "20000", "--server", "@portpicker-tests-nobody"],
    ] {
        let ended = run(&mut portpicker(arguments));
        assert_eq!(ended.stdout, "");
        let first = ended.stderr.lines().next().unwrap();
        text += &format!("{first} => {}\n", ended.code.unwrap());
    }
    let server = portpicker_testing::FakeServer::start(vec![]);
    let address = server.address().to_string();
    let ended = run(&mut portpicker(&["release", "20000", "--server", &address]));
    let message = ended.stderr.replace(&address, "@server");
    text += &format!("{} => {}\n", message.trim_end(), ended.code.unwrap());
    expect![[r#"
        error: the following required arguments were not provided: => 2
        portpicker: no port server is named: use --server or PORTSERVER_ADDRESS => 2
        error: invalid value '70000' for '<PORT>...': `70000`: the highest port is 65535 => 2
        portpicker: cannot talk to the port server at `@portpicker-tests-nobody`: Connection refused (os error 111) => 3
        portpicker: the port server at `@server` speaks the original protocol, which cannot ask for the release of a port => 4
    "#]].assert_eq(&text);
}

#[test]
fn help_of_release_is_as_it_was_read_and_found_good() {
    let short = run(&mut portpicker(&["release", "-h"])).stdout;
    assert!(short.lines().count() <= 24 && short.lines().all(|line| line.chars().count() <= 80));
    expect_file!["../snapshots/release-help-short.txt"].assert_eq(&short);
    let long = run(&mut portpicker(&["release", "--help"])).stdout;
    expect_file!["../snapshots/release-help.txt"].assert_eq(&long);
}
