//! `portpicker status`: the table, the JSON, and what goes wrong. The servers are fake.

use expect_test::{expect, expect_file};
use portpicker_testing::{Act, FakeServer};
use serde_json::Value;

use crate::support::{Ended, portpicker, run};

/// A user id that no system gives to anybody.
const NOBODY: u32 = 4_000_000_001;

/// Runs the command against a server that answers `answer`.
fn status(answer: &str, options: &[&str]) -> Ended {
    let server = FakeServer::start(vec![Act::answer(answer)]);
    let address = server.address().to_string();
    let mut command = portpicker(&[&["status"], options].concat());
    let mut ended = run(command.env("PORTSERVER_ADDRESS", &address));
    for text in [&mut ended.stdout, &mut ended.stderr] {
        *text = text.replace(&address, "@server");
    }
    ended
}

fn leases(leases: &str) -> String {
    format!("{{\"ok\":true,\"leases\":[{leases}]}}\n").replace("UID", &NOBODY.to_string())
}

fn table(of: &str) -> String {
    let ended = status(&leases(of), &[]);
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
    ended.stdout
}

#[test]
fn a_lease_is_a_line_with_what_is_known_of_it() {
    let one = r#"{"port":15000,"pid":1234,"uid":0,"command":"cargo","age":3.2,"tag":"ci 17"}"#;
    expect![[r#"
         PORT   PID  USER  AGE  COMMAND  TAG
        15000  1234  root   3s  cargo    ci 17
    "#]]
    .assert_eq(&table(one));
}

#[test]
fn columns_are_as_wide_as_they_must_be() {
    let many = r#"
        {"port":80,"pid":1,"uid":0,"command":"a","age":0,"name":"http"},
        {"port":15000,"pid":4194303,"uid":UID,"command":"a-very-long-command-name-indeed","age":86400,
         "expires":90},
        {"port":15001,"pid":null,"uid":0,"command":null,"age":3661,"tag":"a longer text for people"}"#
        .replace('\n', "");
    expect![[r#"
         PORT      PID  USER          AGE  EXPIRES  COMMAND                   NAME  TAG
           80        1  root           0s        -  a                         http  -
        15000  4194303  4000000001  1d00h    1m30s  a-very-long-command-nam…  -     -
        15001        -  root        1h01m        -  -                         -     a longer text for people
    "#]]
    .assert_eq(&table(&many));
}

#[test]
fn two_hundred_leases_have_their_columns_in_line() {
    let row = |index: u32| {
        let (port, pid) = (9_900 + index, 7_u32.pow(index % 8));
        format!(r#"{{"port":{port},"pid":{pid},"uid":0,"command":"c{pid}","age":{pid},"tag":"t"}}"#)
    };
    let text = table(&(0..200).map(row).collect::<Vec<_>>().join(","));
    assert_eq!(text.lines().count(), 201);
    let column = text.lines().next().unwrap().find("TAG").unwrap();
    for line in text.lines().skip(1) {
        assert_eq!(
            line.find('t').unwrap().max(column),
            line.rfind('t').unwrap()
        );
        assert_eq!(line.rfind('t'), Some(column), "{line}");
    }
}

#[test]
fn no_leases_are_no_table() {
    let ended = status(&leases(""), &[]);
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), ""));
    expect![[r#"
        portpicker: the port server at `@server` has no leases
    "#]]
    .assert_eq(&ended.stderr);
}

#[test]
fn texts_of_other_users_cannot_command_the_terminal() {
    let text = table(r#"{"port":1,"pid":2,"uid":0,"command":"\u001b[2J","age":0,"tag":"a\nb"}"#);
    assert_eq!(text.lines().count(), 2);
    assert!(!text.contains('\u{1b}'), "{text:?}");
}

#[test]
fn json_has_everything() {
    let two = r#"{"port":80,"pid":7,"uid":0,"command":"a","age":1.5,"name":"http","tag":"t"},
        {"port":81,"pid":null,"uid":UID,"command":null,"age":0,"expires":2.5}"#
        .replace('\n', "");
    let ended = status(&leases(&two), &["--json"]);
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
    let found: Value = serde_json::from_str(&ended.stdout).unwrap();
    let expected = serde_json::json!({"server": "@server", "leases": [
        {"port": 80, "pid": 7, "uid": 0, "user": "root", "command": "a", "age": 1.5,
         "expires": null, "name": "http", "tag": "t"},
        {"port": 81, "pid": null, "uid": NOBODY, "user": null, "command": null, "age": 0.0,
         "expires": 2.5, "name": null, "tag": null},
    ]});
    assert_eq!(found, expected);
    let none = status(&leases(""), &["--json"]);
    assert_eq!(none.stdout, "{\"server\":\"@server\",\"leases\":[]}\n");
    assert_eq!(none.stderr, "");
}

#[test]
fn every_trouble_says_what_and_has_its_exit_code() {
    let mut text = String::new();
    for answer in [
        "",
        "15000\n",
        "{\"ok\":true}\n",
        "{\"ok\":true",
        "{\"ok\":false,\"error\":\"failed\",\"message\":\"too many open files\"}\n",
    ] {
        let ended = status(answer, &[]);
        assert_eq!(ended.stdout, "");
        text += &format!("{} => {}\n", ended.stderr.trim_end(), ended.code.unwrap());
    }
    for arguments in [
        &["status"][..],
        &["status", "--server", "@portpicker-tests-nobody"],
        &["status", "--server", ""],
    ] {
        let ended = run(&mut portpicker(arguments));
        assert_eq!(ended.stdout, "");
        let first = ended.stderr.lines().next().unwrap();
        text += &format!("{first} => {}\n", ended.code.unwrap());
    }
    expect![[r#"
        portpicker: the port server at `@server` speaks the original protocol, which cannot ask for a list of its leases => 4
        portpicker: cannot talk to the port server at `@server`: it answered `15000`, which is not a JSON object => 3
        portpicker: cannot talk to the port server at `@server`: it answered `{"ok":true}`, which is not a list of leases => 3
        portpicker: cannot talk to the port server at `@server`: it answered `{"ok":true`, which breaks off => 3
        portpicker: the port server at `@server` refused to list its leases: too many open files => 4
        portpicker: no port server is named: use --server or PORTSERVER_ADDRESS => 2
        portpicker: cannot talk to the port server at `@portpicker-tests-nobody`: Connection refused (os error 111) => 3
        error: invalid value '' for '--server <ADDRESS>': `` is not a server address: those are the path of a socket or `@name`, of at most 107 bytes => 2
    "#]].assert_eq(&text);
}

#[test]
fn help_of_status_is_as_it_was_read_and_found_good() {
    let short = run(&mut portpicker(&["status", "-h"])).stdout;
    assert!(short.lines().count() <= 24 && short.lines().all(|line| line.chars().count() <= 80));
    expect_file!["../snapshots/status-help-short.txt"].assert_eq(&short);
    let long = run(&mut portpicker(&["status", "--help"])).stdout;
    expect_file!["../snapshots/status-help.txt"].assert_eq(&long);
}
