//! What people read, compared with files: `UPDATE_EXPECT=1` writes them anew.

use expect_test::{ExpectFile, expect_file};

use crate::support::{Ended, Owner, portpicker, run};

pub(crate) fn help(arguments: &[&str], expected: ExpectFile) {
    let Ended {
        code,
        stdout,
        stderr,
    } = run(&mut portpicker(arguments));
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    expected.assert_eq(&stdout);
}

#[test]
fn short_help_fits_a_screen_of_24_lines_and_80_columns() {
    for arguments in [
        &["-h"][..],
        &["pick", "-h"],
        &["completions", "-h"],
        &["manual", "-h"],
        &["run", "-h"],
        &["wait", "-h"],
    ] {
        let text = run(&mut portpicker(arguments)).stdout;
        assert!(
            text.lines().count() <= 24,
            "{arguments:?}: {} lines",
            text.lines().count()
        );
        for line in text.lines() {
            assert!(line.chars().count() <= 80, "{line}");
        }
    }
}

#[test]
fn help_is_as_it_was_read_and_found_good() {
    help(&["-h"], expect_file!["../snapshots/help-short.txt"]);
    help(&["--help"], expect_file!["../snapshots/help.txt"]);
    help(
        &["pick", "-h"],
        expect_file!["../snapshots/pick-help-short.txt"],
    );
    help(
        &["pick", "--help"],
        expect_file!["../snapshots/pick-help.txt"],
    );
}

#[test]
fn every_error_says_what_and_why_and_has_its_exit_code() {
    let owner = Owner::start();
    // No number that the messages have anyway, such as 65535.
    let ports = "61001-64999".parse().unwrap();
    let lease = portpicker::Picker::new().ports(ports).lease().unwrap();
    let leased = lease.port().to_string();
    let owner = owner.pid();
    let commands: Vec<Vec<&str>> = vec![
        vec!["0"],
        vec!["1"],
        vec!["-7"],
        vec!["abc"],
        vec!["99999999999999999999"],
        vec!["4194304"],
        vec![""],
        vec![&owner, "soon"],
        vec![&owner, "-1"],
        vec![&owner, "1", "2"],
        vec!["pick", "-n", "0"],
        vec!["pick", "-n", "70000"],
        vec!["pick", "--ports", "5-3"],
        vec![
            "pick",
            "--ports",
            "20000",
            "--exclude",
            "20000",
            "--owner",
            &owner,
        ],
        vec![
            "pick",
            "--ports",
            "20000-20001",
            "-n",
            "3",
            "--owner",
            &owner,
        ],
        vec!["pick", "--ports", &leased, "--owner", &owner],
        vec!["pick", "--address", "localhost"],
        vec!["pick", "--address", "192.0.2.1", "--owner", &owner],
        vec!["pick", "--tcp", "--udp"],
        vec!["pick", "--server", "@a", "--no-server"],
        vec!["pick", "--server", "", "--owner", &owner],
        vec![
            "pick",
            "--server",
            "@portpicker-tests-nobody",
            "--owner",
            &owner,
        ],
        vec![
            "pick",
            "--server",
            "@nobody",
            "--contiguous",
            "--owner",
            &owner,
        ],
        vec!["manual", "nothing"],
        vec!["completions", "nothing"],
    ];
    let mut text = String::new();
    for arguments in commands {
        let Ended {
            code,
            stdout,
            stderr,
        } = run(&mut portpicker(&arguments));
        assert_eq!(stdout, "", "{arguments:?}: no port");
        let line = format!(
            "$ portpicker {}\n{stderr}=> {}\n\n",
            arguments.join(" "),
            code.unwrap()
        );
        text += &line.replace(&owner, "OWNER").replace(&leased, "LEASED");
    }
    let environment = run(portpicker(&[&owner]).env("PORTPICKER_PORTS", "20000,"));
    text += &format!(
        "$ PORTPICKER_PORTS=20000, portpicker OWNER\n{}=> {}\n",
        environment.stderr,
        environment.code.unwrap()
    );
    expect_file!["../snapshots/errors.txt"].assert_eq(&text);
}

#[test]
fn a_process_that_waits_to_be_reaped_owns_nothing() {
    if cfg!(portpicker_force = "poll") {
        // Without pidfds it is taken for one that runs.
        return;
    }
    let zombie = Zombie::make();
    let ended = run(&mut portpicker(&[&zombie.pid()]));
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(5), ""));
    assert!(ended.stderr.ends_with("it has exited\n"), "{ended:?}");
}

/// A process that has exited and was not waited for.
struct Zombie(std::process::Child);

impl Zombie {
    fn make() -> Self {
        let mut child = std::process::Command::new("true")
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        // At the end of its output it may still be exiting; its state says when it has.
        std::io::copy(&mut child.stdout.take().unwrap(), &mut std::io::sink()).unwrap();
        let stat = format!("/proc/{}/stat", child.id());
        while !std::fs::read_to_string(&stat).unwrap().contains(") Z ") {
            std::thread::yield_now();
        }
        Self(child)
    }

    fn pid(&self) -> String {
        self.0.id().to_string()
    }
}

impl Drop for Zombie {
    fn drop(&mut self) {
        self.0.wait().unwrap();
    }
}

#[test]
fn running_out_of_descriptors_is_said_and_leaks_nothing() {
    let owner = Owner::start();
    for limit in 3..=12 {
        let script = format!(
            "ulimit -n {limit}; exec portpicker pick -n 20 --owner {}",
            owner.pid()
        );
        let ended = run(&mut crate::support::shell(&script));
        // With the lowest limits the program cannot even be loaded, which exits with 127.
        if ended.code != Some(127) {
            assert_eq!(ended.code, Some(6), "{ended:?}");
            assert!(
                ended.stderr.contains("ulimit -n") || ended.stderr.contains("keeper"),
                "{ended:?}"
            );
        }
        assert_eq!(ended.stdout, "");
    }
    let ended = run(&mut crate::support::shell(&format!(
        "ulimit -n 40; exec portpicker pick -n 20 --owner {}",
        owner.pid()
    )));
    assert_eq!(
        (ended.code, ended.stdout.lines().count()),
        (Some(0), 20),
        "40 are enough"
    );
}
