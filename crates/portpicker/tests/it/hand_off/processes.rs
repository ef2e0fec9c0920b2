//! Threads, descendants, pools of workers; and when does the hold end?

use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};

use portpicker::Kind;
use portpicker::hand_off::HandOff;
use portpicker_testing::{Binding, Exit, Local, Options, Worker, in_network_namespace};

use super::{
    LONG, PORT, assert_is_reached, handed_off, held, in_use, is_probed, ways_to,
    with_and_without_net_raw,
};
use crate::among;
use crate::fork::{fork_idle_child, in_forked_child};

/// How many clients a pool of three is tried with: that one of the three gets none of so many by
/// chance does not happen.
const CLIENTS: usize = 48;

fn plain() -> Binding {
    Binding::listening(Local::LOOPBACK_V4, Options::None)
}

fn ok() -> Result<String, String> {
    Ok(String::new())
}

/// Starts a pool of workers below `command`, each with a socket of its own on the port.
fn start_pool(command: &mut Worker, size: usize, binding: Binding) {
    for index in 0..size {
        command.tell("nested").unwrap();
        let bind = format!("tell {index} bind {PORT} {binding}");
        assert_eq!(command.tell(&bind), ok(), "{binding}, number {index}");
        if binding.kind == Kind::Tcp {
            // With room for all clients.
            assert_eq!(
                command.tell(&format!("tell {index} listen")),
                ok(),
                "{binding}"
            );
        }
    }
}

/// Returns how many of [`CLIENTS`] each worker of a pool meets.
fn meet_clients(command: &mut Worker, size: usize, binding: Binding) -> Vec<usize> {
    let server = SocketAddr::new(ways_to(binding.local)[0], PORT);
    // Until they have been counted.
    let mut streams = Vec::new();
    for _ in 0..CLIENTS {
        match binding.kind {
            Kind::Tcp => streams.push(TcpStream::connect(server).unwrap()),
            Kind::Udp => {
                let client = UdpSocket::bind((server.ip(), 0)).unwrap();
                client.send_to(b"hello", server).unwrap();
            }
        }
    }
    let met: Vec<usize> = (0..size)
        .map(|index| {
            command
                .tell(&format!("tell {index} meet 0"))
                .unwrap()
                .parse()
                .unwrap()
        })
        .collect();
    assert_eq!(met.iter().sum::<usize>(), CLIENTS, "{binding}: {met:?}");
    met
}

with_and_without_net_raw! {
    fn a_pool_of_workers_shares_what_comes_in() {
        let mut thief = Worker::spawn();
        for options in [Options::ReusePort, Options::Both] {
            for local in Local::EVERY.into_iter().filter(|local| is_probed(*local)) {
                for binding in [Binding::listening(local, options), Binding::udp(local, options)] {
                    let mut command = handed_off();
                    start_pool(&mut command, 3, binding);
                    let met = meet_clients(&mut command, 3, binding);
                    assert!(met.iter().all(|&count| count > 0), "{binding}: {met:?}");
                    // A pool that shares all of both families shares with the same user's others.
                    if binding.kind == Kind::Tcp && local != Local::DUAL {
                        assert_eq!(thief.tell(&format!("steal {PORT}")), ok(), "{binding}");
                    }
                }
            }
        }
    }

    fn a_pool_goes_on_when_one_of_its_workers_is_replaced() {
        for binding in [
            Binding::listening(Local::ALL_V4, Options::ReusePort),
            Binding::udp(Local::ALL_V4, Options::ReusePort),
        ] {
            let mut command = handed_off();
            start_pool(&mut command, 3, binding);
            assert_eq!(command.tell("tell 0 unbind"), ok());
            let bind = format!("tell 0 bind {PORT} {binding}");
            assert_eq!(command.tell(&bind), ok(), "{binding}");
            if binding.kind == Kind::Tcp {
                assert_eq!(command.tell("tell 0 listen"), ok());
            }
            let met = meet_clients(&mut command, 3, binding);
            assert!(met.iter().all(|&count| count > 0), "{binding}: {met:?}");
        }
    }
}

/// A worker serves in a thread that is not its process's first: all other tests show that. What it
/// forks has one thread, the first.
#[test]
fn the_first_thread_of_a_process_binds_too() {
    in_network_namespace(|| {
        let mut command = handed_off();
        let bind = format!("bind {PORT} {}", plain());
        assert_eq!(in_forked_child(&mut command, &bind), ok());
        // The child is gone, and its server with it.
        assert_eq!(command.bind(PORT, plain()), Ok(()));
    });
}

/// Its descriptors are those of the process still, though the process's first thread has none.
#[test]
fn a_thread_whose_process_has_lost_its_first_one_binds_too() {
    in_network_namespace(|| {
        let mut command = handed_off();
        let answer = command.tell(&format!("without_first_thread {PORT} {}", plain()));
        assert_eq!(answer, ok());
    });
}

#[test]
fn a_thread_that_shares_its_descriptors_with_nobody_binds_too() {
    in_network_namespace(|| {
        let mut command = handed_off();
        let answer = command.tell(&format!("with_own_descriptors {PORT} {}", plain()));
        assert_eq!(answer, ok());
    });
}

#[test]
fn many_threads_bind_at_once() {
    in_network_namespace(|| {
        let ports = "20000-20031";
        let holds = among(ports).holds(32).unwrap();
        let mut command = Worker::spawn_handed_off(holds);
        for _ in 0..10 {
            let answer = command.tell(&format!("bind_at_once {ports} {}", plain()));
            assert_eq!(answer, ok());
        }
    });
}

#[test]
fn descendants_bind_and_keep_the_hold() {
    in_network_namespace(|| {
        let mut other = Worker::spawn();
        let mut command = handed_off();
        let pid = command.tell("nested").unwrap().parse().unwrap();
        let (grandchild, bind) = (Exit::of(pid), format!("tell 0 bind {PORT} {}", plain()));
        assert_eq!(command.tell(&bind), ok());
        command.tell("tell 0 unbind").unwrap();

        // The command ends, the grandchild does not.
        let idle = fork_idle_child(&mut command);
        command.tell("leave").unwrap();
        let lifeline = command.kill();
        assert!(!idle.has_happened());
        assert_eq!(other.bind(PORT, plain()), in_use());
        assert!(among("20000").hold().is_err());

        drop(lifeline);
        idle.wait();
        grandchild.wait();
        // The last one is gone.
        drop(held());
        assert_eq!(other.bind(PORT, plain()), Ok(()));
    });
}

#[test]
fn the_hold_ends_with_a_command_that_is_killed() {
    in_network_namespace(|| {
        for _ in 0..20 {
            let mut command = handed_off();
            assert_eq!(command.bind(PORT, plain()), Ok(()));
            drop(command.kill());
            drop(held());
        }
    });
}

#[test]
fn the_hold_lasts_as_long_as_a_command_that_binds_nothing_or_something_else() {
    in_network_namespace(|| {
        let mut other = Worker::spawn();
        let mut command = handed_off();
        assert_eq!(command.bind(PORT + 1, plain()), Ok(()));
        assert_eq!(other.tell(&format!("steal {PORT}")), ok());
        drop(command.kill());
        drop(held());
    });
}

#[test]
fn a_command_that_ends_at_once_gives_the_port_back() {
    in_network_namespace(|| {
        for _ in 0..20 {
            let mut child = held().command("true").spawn().unwrap();
            assert!(child.wait().unwrap().success());
        }
        drop(held());
    });
}

#[test]
fn a_command_that_cannot_be_started_gives_the_port_back() {
    in_network_namespace(|| {
        let err = held().command("/nonexistent").spawn().unwrap_err();
        assert_eq!(err.kind(), std::io::ErrorKind::NotFound);
        drop(held());
    });
}

#[test]
fn the_environment_says_the_first_port() {
    in_network_namespace(|| {
        let holds = among("20000-20001").holds(2).unwrap();
        let ports: Vec<u16> = holds.iter().map(|hold| hold.port()).collect();
        let child = HandOff::new("sh", holds)
            .args(["-c", r#"exit $(($PORT - 20000 + 7 * X))"#])
            .env("X", "1")
            .spawn();
        let mut child = child.unwrap();
        assert_eq!(child.ports(), ports);
        assert_eq!(
            child.wait().unwrap().code(),
            Some(i32::from(ports[0] - 20_000) + 7)
        );
    });
}

#[test]
fn who_waits_is_told_when_the_command_listens_or_ends_or_takes_too_long() {
    in_network_namespace(|| {
        // A shell with nothing to do but wait for a line that nobody writes.
        let silent = || {
            let hand_off = held().command("cat");
            hand_off.configure(|command| {
                command.stdin(std::process::Stdio::piped());
            })
        };
        let mut child = silent().spawn().unwrap();
        let err = child
            .wait_listening(std::time::Duration::from_millis(1))
            .unwrap_err();
        assert_eq!(err.kind(), std::io::ErrorKind::TimedOut);
        drop(child.stdin.take());
        let err = child.wait_listening(LONG).unwrap_err();
        assert_eq!(err.kind(), std::io::ErrorKind::UnexpectedEof);

        let mut child = held()
            .command("python3")
            .args(["-m", "http.server", "20000", "--bind", "127.0.0.1"])
            .configure(|command| {
                command.stderr(std::process::Stdio::null());
            })
            .spawn()
            .unwrap();
        child.wait_listening(LONG).unwrap();
        assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, PORT)).is_ok());
        child.kill().unwrap();
        child.wait().unwrap();
    });
}

#[test]
fn a_server_that_has_the_port_is_reached_while_others_come_and_go() {
    in_network_namespace(|| {
        let mut command = handed_off();
        let server = Binding::listening(Local::LOOPBACK_V4, Options::ReuseAddress);
        assert_eq!(command.bind(PORT, server), Ok(()));
        for local in [Local::LOOPBACK_V6, Local::ALL_V6]
            .into_iter()
            .filter(|it| is_probed(*it))
        {
            let second = Binding::listening(local, Options::ReuseAddress);
            assert_eq!(
                command.tell(&format!("try {PORT} {second}")),
                ok(),
                "{second}"
            );
            assert_is_reached(&mut command, 0, server, PORT);
        }
    });
}
