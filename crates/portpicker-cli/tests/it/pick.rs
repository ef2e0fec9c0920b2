//! `portpicker pick`: what each option does.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};

use crate::support::{Owner, is_leased, pick, portpicker, run};

/// Returns a port that is leased to nobody and unused now.
fn unused() -> u16 {
    portpicker::Picker::new().lease().unwrap().port()
}

#[test]
fn many_ports_are_leased_one_on_each_line() {
    let owner = Owner::start();
    let ended = run(&mut portpicker(&[
        "pick",
        "-n",
        "3",
        "--owner",
        &owner.pid(),
    ]));
    let ports: Vec<u16> = ended
        .stdout
        .lines()
        .map(|line| line.parse().unwrap())
        .collect();
    assert_eq!(ports.len(), 3);
    assert!(ports.iter().all(|&port| is_leased(port)));
}

#[test]
fn contiguous_ports_are_neighbours_in_order() {
    let owner = Owner::start();
    let ports = pick(&owner, &["-n", "5", "--contiguous"]).ports;
    assert!(
        ports.windows(2).all(|pair| pair[1] == pair[0] + 1),
        "{ports:?}"
    );
}

#[test]
fn ports_and_exclude_say_which_may_be_chosen() {
    let owner = Owner::start();
    let port = unused();
    let (set, others) = (format!("{port}-{}", port + 1), (port + 1).to_string());
    assert_eq!(
        pick(&owner, &["--ports", &set, "--exclude", &others]).ports,
        [port]
    );
}

#[test]
fn preferred_ports_are_tried_in_the_order_given() {
    let owner = Owner::start();
    let (a, b) = (unused(), unused());
    let list = format!("{a},{b}");
    assert_eq!(pick(&owner, &["--prefer", &list]).ports, [a]);
    assert_eq!(pick(&owner, &["--prefer", &list]).ports, [b]);
    assert_eq!(
        pick(&owner, &["--prefer", &list]).ports.len(),
        1,
        "and then any other"
    );
}

#[test]
fn one_transport_ignores_the_other() {
    let owner = Owner::start();
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = socket.local_addr().unwrap().port().to_string();
    let pid = owner.pid();
    let refused = |kind: &[&str]| {
        let arguments = [&["pick", "--ports", &port, "--owner", &pid], kind].concat();
        run(&mut portpicker(&arguments)).code
    };
    assert_eq!(refused(&["--udp"]), Some(1));
    assert_eq!(refused(&[]), Some(1));
    assert_eq!(pick(&owner, &["--ports", &port, "--tcp"]).ports.len(), 1);
}

#[test]
fn one_address_ignores_the_others() {
    let owner = Owner::start();
    let listener = TcpListener::bind((Ipv4Addr::new(127, 0, 0, 2), 0)).unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let all = run(&mut portpicker(&[
        "pick",
        "--ports",
        &port,
        "--owner",
        &owner.pid(),
    ]));
    assert_eq!(all.code, Some(1));
    assert_eq!(
        pick(&owner, &["--ports", &port, "--address", "127.0.0.1"])
            .ports
            .len(),
        1
    );
}

#[test]
fn waiting_ends_when_a_port_is_free() {
    let owner = Owner::start();
    let lease = portpicker::Picker::new().lease().unwrap();
    let port = lease.port().to_string();
    let owner_pid = owner.pid();
    let arguments = ["pick", "--ports", &port, "--owner", &owner_pid, "--wait"];
    let none = run(&mut portpicker(&[&arguments[..], &["0.01"]].concat()));
    assert_eq!(none.code, Some(1));

    let waiting = portpicker(&[&arguments[..], &["1000"]].concat())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(lease);
    let output = waiting.wait_with_output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), port);
}

#[test]
fn the_environment_replaces_the_candidates() {
    let owner = Owner::start();
    let port = unused().to_string();
    let mut command = portpicker(&[&owner.pid()]);
    assert_eq!(
        run(command.env("PORTPICKER_PORTS", &port)).stdout.trim(),
        port
    );
}
