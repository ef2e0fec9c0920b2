//! The texts, compared with files: `UPDATE_EXPECT=1` writes them anew.

use expect_test::expect_file;

use crate::messages::help;
use crate::support::{portpicker, run};

#[test]
fn help_is_as_it_was_read_and_found_good() {
    help(
        &["run", "-h"],
        expect_file!["../../snapshots/run-help-short.txt"],
    );
    help(
        &["run", "--help"],
        expect_file!["../../snapshots/run-help.txt"],
    );
    help(
        &["wait", "-h"],
        expect_file!["../../snapshots/wait-help-short.txt"],
    );
    help(
        &["wait", "--help"],
        expect_file!["../../snapshots/wait-help.txt"],
    );
}

#[test]
fn every_error_says_what_and_why_and_has_its_exit_code() {
    // No number that the messages have anyway, such as 65535.
    let ports = "61001-64999".parse().unwrap();
    let lease = portpicker::Picker::new().ports(ports).lease().unwrap();
    let leased = lease.port().to_string();
    let end = ["--", "true"];
    let commands: Vec<Vec<&str>> = vec![
        vec!["run"],
        vec!["run", "--"],
        [&["run", "-n", "0"][..], &end].concat(),
        [&["run", "-n", "2", "--name", "a"][..], &end].concat(),
        [&["run", "--name", "a b"][..], &end].concat(),
        [&["run", "--name", ""][..], &end].concat(),
        [&["run", "--name", "a", "--name", "a"][..], &end].concat(),
        [&["run", "--name", "a-b", "--name", "A_B"][..], &end].concat(),
        [&["run", "--hand-off", "maybe"][..], &end].concat(),
        [&["run", "--listen", "--hand-off", "lease"][..], &end].concat(),
        [&["run", "--json"][..], &end].concat(),
        [&["run", "--wait-listening", "soon"][..], &end].concat(),
        [&["run", "--ports", "5-3"][..], &end].concat(),
        [&["run", "--ports", &leased][..], &end].concat(),
        [&["run", "--address", "192.0.2.1"][..], &end].concat(),
        [&["run", "--server", "@portpicker-tests-nobody"][..], &end].concat(),
        [&["run", "--wait-listening", "60"][..], &end].concat(),
        vec![
            "run",
            "--wait-listening",
            "0",
            "--ports",
            "20000-29999",
            "--",
            "tail",
            "-f",
            "/dev/null",
        ],
        vec!["run", "--", "/nonexistent"],
        vec!["run", "--", "/"],
        vec!["wait"],
        vec!["wait", "0"],
        vec!["wait", "65536"],
        vec!["wait", "http"],
        vec!["wait", "80", "soon"],
        vec!["wait", &leased, "0"],
        vec!["wait", &leased, "0", "true"],
    ];
    let mut text = String::new();
    for arguments in commands {
        let ended = run(&mut portpicker(&arguments));
        assert_eq!(ended.stdout, "", "{arguments:?}");
        let (stderr, code) = (ended.stderr, ended.code.unwrap());
        let line = format!(
            "$ portpicker {}\n{stderr}=> {code}\n\n",
            arguments.join(" ")
        );
        text += &without_ports(&line.replace(&leased, "LEASED"));
    }
    expect_file!["../../snapshots/run-errors.txt"].assert_eq(&text);
}

/// Replaces the number of a port that was picked.
fn without_ports(text: &str) -> String {
    let words = text
        .split_inclusive(char::is_whitespace)
        .collect::<Vec<_>>();
    let is_port = |index: usize| {
        index > 0
            && words[index - 1] == "port "
            && words[index]
                .trim()
                .parse::<u16>()
                .is_ok_and(|port| port >= 20_000)
    };
    let number = |word: &str| word.replace(word.trim(), "PORT");
    let replaced = (0..words.len()).map(|index| match is_port(index) {
        true => number(words[index]),
        false => words[index].to_owned(),
    });
    replaced.collect()
}
