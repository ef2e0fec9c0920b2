//! The keeper: it keeps what it has until the owner exits, and is in nobody's way.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use portpicker::process::Pid;
use rustix::process::{Signal, kill_process, kill_process_group};

use crate::support::{
    LONG, Owner, is_leased, pick, portpicker, run, shell, wait_until_unused, watch,
};
use crate::terminal::Terminal;

#[test]
fn the_lease_and_the_keeper_end_with_the_owner() {
    let owner = Owner::start();
    let picked = pick(&owner, &["-n", "3"]);
    let keeper = watch(picked.keeper.unwrap());
    assert!(!keeper.has_exited().unwrap());
    assert!(picked.ports.iter().all(|&port| is_leased(port)));

    owner.kill();
    assert!(keeper.wait(Some(LONG)).unwrap(), "the keeper ends");
    for port in picked.ports {
        wait_until_unused(port);
    }
}

#[test]
fn one_keeper_keeps_all_ports_of_a_call() {
    let owner = Owner::start();
    let picked = pick(&owner, &["-n", "50"]);
    assert_eq!(picked.ports.len(), 50);
    let keeper = picked.keeper.unwrap();
    settle(keeper);
    let sockets = descriptors(keeper)
        .iter()
        .filter(|link| link.starts_with("socket:"))
        .count();
    if cfg!(portpicker_force = "lock_file") {
        assert_eq!(sockets, 0);
    } else {
        assert_eq!(sockets, 50);
    }
}

#[test]
fn killing_the_keeper_ends_the_lease_and_nothing_else() {
    let owner = Owner::start();
    let picked = pick(&owner, &[]);
    let keeper = picked.keeper.unwrap();
    let watched = watch(keeper);
    kill_process(to_rustix(keeper), Signal::TERM).unwrap();
    assert!(watched.wait(Some(LONG)).unwrap());
    wait_until_unused(picked.ports[0]);
    // The owner has noticed nothing, and can have other ports.
    pick(&owner, &[]);
}

/// A test runner that reads a pipe to its end must not wait for the keeper.
#[test]
fn the_keeper_closes_what_else_it_inherited() {
    let owner = Owner::start();
    // Descriptors 1 and 7 of the command are the pipe that `run` reads until nobody has it open.
    let script = format!("exec 7>&1; portpicker pick --json --owner {}", owner.pid());
    let ended = run(&mut shell(&script));
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let json: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    let keeper = Pid::new(json["keeper"].as_u64().unwrap() as u32).unwrap();
    assert!(!watch(keeper).has_exited().unwrap(), "and yet it lives");
}

#[test]
fn the_keeper_is_not_in_the_way_of_an_unmount() {
    let owner = Owner::start();
    let keeper = pick(&owner, &[]).keeper.unwrap();
    settle(keeper);
    assert_eq!(
        fs::read_link(format!("/proc/{keeper}/cwd"))
            .unwrap()
            .to_str(),
        Some("/")
    );
}

#[test]
fn a_signal_to_the_shells_process_group_does_not_reach_the_keeper() {
    // `setsid` gives the script a group of its own, so that the signal does not reach the tests.
    let mut script = Command::new("setsid")
        .args([
            "sh",
            "-c",
            &format!(
                "{} pick --json --owner $$; read line",
                env!("CARGO_BIN_EXE_portpicker")
            ),
        ])
        .env_remove("PORTSERVER_ADDRESS")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(script.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let json: serde_json::Value = serde_json::from_str(&line).unwrap();
    let keeper = watch(Pid::new(json["keeper"].as_u64().unwrap() as u32).unwrap());

    let group = rustix::process::Pid::from_raw(json["owner"].as_i64().unwrap() as i32).unwrap();
    kill_process_group(group, Signal::TSTP).unwrap();
    kill_process_group(group, Signal::CONT).unwrap();
    kill_process_group(group, Signal::INT).unwrap();
    // The shell ends by the signal, and only then, and therefore, the keeper.
    script.wait().unwrap();
    assert!(keeper.wait(Some(LONG)).unwrap());
}

#[test]
fn an_interrupt_from_the_terminal_does_not_reach_the_keeper() {
    let owner = Owner::start();
    let mut terminal = Terminal::open();
    let script = format!(
        "trap 'echo interrupted' INT; {} pick --json --owner {}; while :; do read line; done",
        env!("CARGO_BIN_EXE_portpicker"),
        owner.pid()
    );
    let mut session = terminal.start(&script);
    let json: serde_json::Value = serde_json::from_str(&terminal.line_with("{")).unwrap();
    let keeper = Pid::new(json["keeper"].as_u64().unwrap() as u32).unwrap();

    terminal.type_in(b"\x03");
    terminal.line_with("interrupted");
    assert!(!watch(keeper).has_exited().unwrap());

    session.kill().unwrap();
    session.wait().unwrap();
}

#[test]
fn numbers_that_nobody_has_read_are_not_kept() {
    let owner = Owner::start();
    let port = portpicker::Picker::new()
        .lease()
        .unwrap()
        .port()
        .to_string();
    let mut command = portpicker(&["pick", "--ports", &port, "--owner", &owner.pid()]);
    let output = command.stdout(File::options().write(true).open("/dev/full").unwrap());
    assert_eq!(
        output.stderr(Stdio::null()).status().unwrap().code(),
        Some(6)
    );
    wait_until_unused(port.parse().unwrap());
}

#[test]
fn when_the_time_is_over_the_port_is_leased_and_no_longer_held() {
    let owner = Owner::start();
    let picked = pick(&owner, &["--hold", "0.05"]);
    let (port, keeper) = (picked.ports[0], picked.keeper.unwrap());
    // Ended by an event: somebody without SO_REUSEADDR can bind only when the sockets are closed.
    let address: std::net::SocketAddr = ([127, 0, 0, 1], port).into();
    let plain = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    while plain.bind(&address.into()).is_err() {
        std::thread::yield_now();
    }
    assert!(!watch(keeper).has_exited().unwrap());
    assert!(is_leased(port));
}

/// Waits until the keeper has nothing more to do: the folder is the last thing that it changes.
fn settle(keeper: Pid) {
    let cwd = format!("/proc/{keeper}/cwd");
    while fs::read_link(&cwd).unwrap().as_os_str() != "/" {
        std::thread::yield_now();
    }
}

fn descriptors(pid: Pid) -> Vec<String> {
    fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .map(|entry| {
            fs::read_link(entry.unwrap().path())
                .unwrap()
                .display()
                .to_string()
        })
        .collect()
}

fn to_rustix(pid: Pid) -> rustix::process::Pid {
    rustix::process::Pid::from_raw(pid.get() as i32).unwrap()
}
