//! `portpicker [PID [SECONDS]]`: as python_portpicker's command.

use std::collections::HashSet;
use std::net::TcpListener;
use std::process::Stdio;
use std::thread;

use portpicker_testing::Worker;

use crate::support::{Ended, Owner, is_leased, portpicker, run, shell, wait_until_unused};

fn only_port(ended: &Ended) -> u16 {
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
    ended.stdout.strip_suffix('\n').unwrap().parse().unwrap()
}

#[test]
fn a_port_and_a_newline_are_all_that_is_printed() {
    let owner = Owner::start();
    let port = only_port(&run(&mut portpicker(&[&owner.pid()])));
    assert!(port > 10_000);
    assert!(is_leased(port));
    TcpListener::bind(("127.0.0.1", port)).expect("leased, not held");
}

#[test]
fn the_parent_is_the_owner_unless_another_is_named() {
    // The shell lives on until its input ends, so the lease must be there when it has printed.
    let mut child = shell("portpicker; read line")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let stdout = child.stdout.take().unwrap();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line).unwrap();
    let port: u16 = line.trim().parse().unwrap();
    assert!(is_leased(port));

    child.kill().unwrap();
    child.wait().unwrap();
    wait_until_unused(port);
}

#[test]
fn command_substitution_returns_although_the_owner_lives() {
    let ended = run(&mut shell(
        "port=$(portpicker $$); echo \"$port\"; echo \"$port\"",
    ));
    let lines: Vec<_> = ended.stdout.lines().collect();
    assert_eq!((lines.len(), lines[0]), (2, lines[1]), "{ended:?}");
}

#[test]
fn with_seconds_servers_that_set_reuse_address_get_in_and_others_do_not() {
    let owner = Owner::start();
    let port = only_port(&run(&mut portpicker(&[&owner.pid(), "1000"])));

    let plain = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let address: std::net::SocketAddr = ([127, 0, 0, 1], port).into();
    plain.bind(&address.into()).expect_err("held");
    // The standard library sets SO_REUSEADDR.
    TcpListener::bind(address).expect("the door is open");
    std::net::UdpSocket::bind(address).expect("UDP is leased and not held");
}

/// The reference gives 35 % of its numbers to more than one of the processes in this test.
#[test]
fn sixteen_processes_with_two_hundred_ports_each_never_share_a_number() {
    let owner = Owner::start();
    let pid = owner.pid();
    // A third with the library. The leases end with the workers, so these live on.
    let mut workers: Vec<Worker> = (0..6).map(|_| Worker::spawn()).collect();
    let ports: Vec<u16> = thread::scope(|scope| {
        let mut threads = Vec::new();
        for worker in &mut workers {
            threads.push(scope.spawn(move || {
                let one_by_one = (0..200).map(|_| worker.pick().unwrap());
                one_by_one.collect::<Vec<u16>>()
            }));
        }
        for script in 0..10 {
            let pid = &pid;
            threads.push(scope.spawn(move || match script % 2 {
                // A script that picks one after another.
                0 => {
                    let script =
                        format!("i=0; while [ $i -lt 200 ]; do portpicker {pid}; i=$((i+1)); done");
                    parse(&run(&mut shell(&script)))
                }
                // One that takes all at once.
                _ => parse(&run(&mut portpicker(&[
                    "pick", "-n", "200", "--owner", pid,
                ]))),
            }));
        }
        threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap())
            .collect()
    });
    assert_eq!(ports.len(), 3200);
    let distinct: HashSet<_> = ports.iter().collect();
    assert_eq!(distinct.len(), 3200, "no number twice");
    assert!(ports.iter().all(|&port| port > 10_000));
    let ephemeral = ephemeral_range();
    assert!(
        !ports.iter().any(|port| ephemeral.contains(port)),
        "outside the ephemeral range"
    );
}

fn parse(ended: &Ended) -> Vec<u16> {
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
    ended
        .stdout
        .lines()
        .map(|line| line.parse().unwrap())
        .collect()
}

fn ephemeral_range() -> std::ops::RangeInclusive<u16> {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap();
    let (first, last) = text.trim().split_once('\t').unwrap();
    first.parse().unwrap()..=last.parse().unwrap()
}
