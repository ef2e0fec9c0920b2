//! How is a command told its ports, and how does it end?

use std::collections::HashSet;
use std::fs;
use std::net::{Ipv4Addr, TcpStream};

use portpicker_testing::{Act, FakeServer};

use super::{SERVER, is_bindable};
use crate::support::{Talking, is_leased, portpicker, run, shell};

/// Runs `portpicker run` with these arguments; returns the words that the command says.
fn words(arguments: &[&str]) -> Vec<String> {
    let ended = run(&mut portpicker(&[&["run"], arguments].concat()));
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
    ended.stdout.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn ports_with_names_are_in_the_environment_and_the_arguments() {
    let script = "echo $PORT $PORT_HTTP $PORT_MY_DB $1 $2 $3";
    let words = words(&[
        "--name",
        "http",
        "--name",
        "my-db",
        "--",
        "sh",
        "-c",
        script,
        "sh",
        "{}",
        "{http}",
        "x{my-db}y",
    ]);
    let [first, http, db, braces, braces_http, braces_db] = &words[..] else {
        panic!("{words:?}");
    };
    assert_eq!([first, braces, braces_http], [http, http, http]);
    assert_eq!(*braces_db, format!("x{db}y"));
    assert_ne!(http, db);
}

#[test]
fn ports_without_names_have_numbers() {
    let script = "echo $PORT $PORT_1 $PORT_2 $PORT_3 $1 $2 ${PORT_4-none}";
    let words = words(&["-n", "3", "--", "sh", "-c", script, "sh", "{1}", "{3}"]);
    let [first, one, two, three, braces_one, braces_three, none] = &words[..] else {
        panic!("{words:?}");
    };
    assert_eq!([first, braces_one, none], [one, one, "none"]);
    assert_eq!(braces_three, three);
    assert_eq!(HashSet::from([one, two, three]).len(), 3);
}

#[test]
fn braces_that_are_no_ports_and_literal_arguments_stay() {
    let json = r#"{"a":{"b":1}}"#;
    assert_eq!(words(&["--", "echo", json, "{other}"]), [json, "{other}"]);
    assert_eq!(
        words(&["--literal", "--", "echo", "{}", "{1}"]),
        ["{}", "{1}"]
    );
}

#[test]
fn the_ports_are_as_wanted() {
    let ports = words(&["-n", "3", "--contiguous", "--", "echo", "{1}", "{2}", "{3}"]);
    let ports: Vec<u16> = ports.iter().map(|port| port.parse().unwrap()).collect();
    assert!(
        ports.windows(2).all(|pair| pair[1] == pair[0] + 1),
        "{ports:?}"
    );

    let unused = portpicker::Picker::new()
        .lease()
        .unwrap()
        .port()
        .to_string();
    assert_eq!(
        words(&["--ports", &unused, "--", "echo", "{}"]),
        [unused.as_str()]
    );
    let chosen = shell("PORTPICKER_PORTS=$1 exec portpicker run -- echo {}")
        .args(["sh", &unused])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8(chosen.stdout).unwrap().trim(), unused);
}

#[test]
fn a_port_server_in_the_environment_is_asked() {
    let server = FakeServer::start(vec![Act::answer("15007\n")]);
    let mut command = portpicker(&["run", "--hand-off", "lease", "--", "sh", "-c", "echo $PORT"]);
    let ended = run(command.env("PORTSERVER_ADDRESS", server.address().to_string()));
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), "15007\n"));
}

#[test]
fn the_status_is_that_of_the_command() {
    for code in [0, 1, 2, 42, 125, 127, 255] {
        let script = format!("exit {code}");
        let ended = run(&mut portpicker(&["run", "--", "sh", "-c", &script]));
        assert_eq!(ended.code, Some(code));
        assert_eq!((ended.stdout, ended.stderr), Default::default());
    }
}

#[test]
fn what_cannot_be_run_has_the_status_that_env_gives_it() {
    let folder = tempfile::tempdir().unwrap();
    let plain = folder.path().join("plain");
    fs::write(&plain, "echo not a program").unwrap();
    let plain = plain.to_str().unwrap();
    for hand_off in ["auto", "door", "lease"] {
        for (program, code) in [
            ("/", 126),
            (plain, 126),
            ("/nonexistent", 127),
            ("nosuch", 127),
        ] {
            let ended = run(&mut portpicker(&[
                "run",
                "--hand-off",
                hand_off,
                "--",
                program,
            ]));
            assert_eq!(ended.code, Some(code), "{program} {hand_off}: {ended:?}");
            assert!(
                ended.stderr.starts_with("portpicker: cannot run `"),
                "{ended:?}"
            );
        }
    }
    for (program, code) in [("/", 126), ("/nonexistent", 127)] {
        let ended = run(&mut portpicker(&["run", "--listen", "--", program]));
        assert_eq!(ended.code, Some(code), "{program} --listen: {ended:?}");
    }
}

#[test]
fn stdin_and_stdout_are_the_commands() {
    let mut cat = Talking::start(&mut portpicker(&["run", "--", "cat"]));
    cat.say("hello");
    assert_eq!(cat.line(), "hello");
    assert!(cat.finish().success());
}

#[test]
fn the_command_inherits_no_descriptors() {
    let listing = "ls /proc/self/fd";
    let plain = run(&mut shell(listing)).stdout;
    let ended = run(&mut shell(&format!("portpicker run -- {listing}")));
    assert_eq!(ended.stdout, plain);
}

#[test]
fn the_port_is_held_until_the_command_has_ended_and_then_is_free_at_once() {
    for mode in ["auto", "strict", "door"] {
        let script = "echo $PORT; read line";
        let arguments = ["run", "--hand-off", mode, "--", "sh", "-c", script];
        let mut command = Talking::start(&mut portpicker(&arguments));
        let port = command.line().parse().unwrap();
        assert!(is_leased(port), "{mode}");
        assert!(!is_bindable(port), "{mode}");
        command.finish();
        // Without waiting for anything.
        assert!(is_bindable(port), "{mode}");
        assert!(!is_leased(port), "{mode}");
    }
}

#[test]
fn a_server_without_options_restarts_as_often_as_it_likes() {
    let mut server = Talking::start(&mut portpicker(&["run", "--", "python3", "-c", SERVER]));
    for _ in 0..10 {
        assert_eq!(server.line(), "listening");
        server.say("again");
    }
    assert_eq!(server.line(), "listening");
    assert!(server.finish().success());
}

#[test]
fn a_server_is_reached() {
    let script = format!("import os; print(os.environ['PORT']){SERVER}");
    let mut server = Talking::start(&mut portpicker(&["run", "--", "python3", "-c", &script]));
    let port: u16 = server.line().parse().unwrap();
    assert_eq!(server.line(), "listening");
    assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok());
    assert!(server.finish().success());
}

#[test]
fn a_port_that_cannot_be_had_is_a_failure_of_our_own() {
    let lease = portpicker::Picker::new().lease().unwrap();
    let port = lease.port().to_string();
    let ended = run(&mut portpicker(&[
        "run", "--ports", &port, "--", "echo", "{}",
    ]));
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(125), ""));
}
