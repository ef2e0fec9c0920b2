//! What if the system refuses a part of it?

use std::io::{self, ErrorKind};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use portpicker::hand_off::{HandOff, HandedOff, Preparation, StepDown};
use portpicker_testing::worker::Process;
use portpicker_testing::{Binding, Local, Options, Worker, in_network_namespace, sandbox};
use rustix::io::Errno;

use super::{PORT, assert_is_reached, handed_off, held, in_use};
use crate::among;

fn plain() -> Binding {
    Binding::listening(Local::LOOPBACK_V4, Options::None)
}

fn reusing() -> Binding {
    Binding::listening(Local::LOOPBACK_V4, Options::ReuseAddress)
}

fn ok() -> Result<String, String> {
    Ok(String::new())
}

/// What stands in the way of a worker that is handed the port, which nonetheless gets it.
fn step_down() -> (Worker, Option<String>) {
    let mut reason = None;
    let worker = Worker::spawn_by(&[], |command| {
        let child: HandedOff = HandOff::new("", vec![held()])
            .configure(|it| *it = command)
            .spawn()?;
        reason = child.step_down().map(|reason| format!("{reason:?}"));
        Ok(Process::HandedOff(Box::new(child)))
    });
    (worker.unwrap(), reason)
}

fn assert_strict_fails() {
    let err = held().command("true").strict().spawn().unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Unsupported);
    let reason = err.get_ref().and_then(|it| it.downcast_ref::<StepDown>());
    assert!(reason.is_some(), "{err:?}");
}

/// Without any of these, nobody looks into other processes.
const LOOKS: [i64; 3] = [
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_open,
    libc::SYS_process_vm_readv,
];

#[test]
fn without_copies_of_descriptors_the_port_is_let_go_of_at_the_bind() {
    in_network_namespace(|| {
        for call in LOOKS {
            for errno in [Errno::PERM, Errno::NOSYS] {
                // A sandbox is a thread's.
                let sandbox = thread::spawn(move || {
                    sandbox::forbid(&[call], errno);
                    assert_port_is_let_go_of();
                });
                assert!(sandbox.join().is_ok(), "{call} is forbidden by {errno}");
            }
        }
    });
}

fn assert_port_is_let_go_of() {
    assert_strict_fails();
    let mut other = Worker::spawn();
    let (mut command, reason) = step_down();
    assert!(reason.is_some_and(|it| it.starts_with("NoCopies")));
    assert_eq!(other.tell(&format!("steal {PORT}")), ok(), "held");
    assert_eq!(command.bind(PORT, plain()), Ok(()));
    assert_is_reached(&mut command, 0, plain(), PORT);
    assert_eq!(other.bind(PORT, plain()), in_use());
    // Leased only, from then on.
    command.unbind();
    assert_eq!(other.bind(PORT, plain()), Ok(()));
    assert!(among("20000").lease().is_err(), "leased still");
}

#[test]
fn a_step_down_is_told_once() {
    in_network_namespace(|| {
        sandbox::forbid(&[libc::SYS_pidfd_getfd], Errno::PERM);
        let told = Arc::new(AtomicUsize::new(0));
        let holds = among("20000-20001").holds(2).unwrap();
        let mut preparation = None;
        let worker = Worker::spawn_by(&[], |mut command: Command| {
            preparation = Some(Preparation::new(&mut command)?);
            command.spawn().map(Process::Child)
        });
        let (mut worker, counted) = (worker.unwrap(), Arc::clone(&told));
        let supervisor = preparation.unwrap().supervisor(holds).unwrap();
        let thread = thread::spawn(move || {
            supervisor.run(|reason| {
                assert!(matches!(reason, StepDown::NoCopies(_)));
                counted.fetch_add(1, Ordering::Relaxed);
            })
        });
        for _ in 0..3 {
            assert_eq!(worker.bind(PORT, plain()), Ok(()));
            worker.unbind();
        }
        assert_eq!(told.load(Ordering::Relaxed), 1, "one port");
        let udp = Binding::udp(Local::LOOPBACK_V4, Options::None);
        assert_eq!(worker.bind(PORT, udp), Ok(()), "both transports");
        assert_eq!(worker.bind(PORT + 1, plain()), Ok(()));
        assert_eq!(told.load(Ordering::Relaxed), 2, "two ports");
        drop(worker);
        thread.join().unwrap().unwrap();
    });
}

#[test]
fn a_strict_supervisor_refuses_the_port_and_holds_it() {
    in_network_namespace(|| {
        sandbox::forbid(&[libc::SYS_pidfd_getfd], Errno::PERM);
        let mut preparation = None;
        let worker = Worker::spawn_by(&[], |mut command: Command| {
            preparation = Some(Preparation::new(&mut command)?);
            command.spawn().map(Process::Child)
        });
        let (mut worker, mut other) = (worker.unwrap(), Worker::spawn());
        let supervisor = preparation.unwrap().supervisor(vec![held()]).unwrap();
        let supervisor = supervisor.strict();
        let let_go = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&let_go);
        let thread = thread::spawn(move || {
            supervisor.run(|_| {
                counted.fetch_add(1, Ordering::Relaxed);
            })
        });
        for binding in [plain(), Binding::udp(Local::LOOPBACK_V4, Options::None)] {
            assert_eq!(worker.bind(PORT, binding), in_use());
            assert_eq!(worker.bind(PORT + 1, binding), Ok(()), "another port");
            worker.unbind();
        }
        assert_eq!(other.tell(&format!("steal {PORT}")), ok(), "held");
        assert_eq!(let_go.load(Ordering::Relaxed), 0);
        drop(worker);
        thread.join().unwrap().unwrap();
    });
}

#[test]
fn without_notification_the_door_is_open() {
    in_network_namespace(|| {
        sandbox::forbid(&[libc::SYS_seccomp], Errno::PERM);
        assert_strict_fails();
        let mut other = Worker::spawn();
        let (mut command, reason) = step_down();
        assert!(reason.is_some_and(|it| it.starts_with("NoNotification")));
        assert_eq!(other.bind(PORT, plain()), in_use(), "held");
        assert_eq!(command.bind(PORT, plain()), in_use(), "for others too");
        assert_eq!(command.bind(PORT, reusing()), Ok(()));
        assert_is_reached(&mut command, 0, reusing(), PORT);
    });
}

#[test]
fn whoever_cannot_gain_privileges_needs_not_be_kept_from_it() {
    in_network_namespace(|| {
        rustix::thread::set_no_new_privs(true).unwrap();
        let mut command = handed_off();
        assert_eq!(command.bind(PORT, plain()), Ok(()));
        assert_is_reached(&mut command, 0, plain(), PORT);
    });
}

#[test]
fn a_sandbox_that_forbids_something_else_is_in_nobodys_way() {
    in_network_namespace(|| {
        sandbox::forbid(&[libc::SYS_mount], Errno::PERM);
        let mut command = handed_off();
        assert_eq!(command.bind(PORT, plain()), Ok(()));
    });
}

/// Its port is another one, with the same number.
#[test]
fn a_command_in_another_network_has_the_port_there() {
    in_network_namespace(|| {
        let mut thief = Worker::spawn();
        let wrapper = ["unshare", "--user", "--map-root-user", "--net"];
        let command = Worker::spawn_by(&wrapper, |command| {
            let hand_off = HandOff::new("", vec![held()]).configure(|it| *it = command);
            Ok(Process::HandedOff(Box::new(hand_off.strict().spawn()?)))
        });
        let mut command = command.unwrap();
        for options in Options::ALL {
            // No interface is up there.
            for binding in [
                Binding::listening(Local::ALL_V4, options),
                Binding::udp(Local::ALL_V4, options),
            ] {
                assert_eq!(command.bind(PORT, binding), Ok(()), "{binding}");
                assert_eq!(thief.tell(&format!("steal {PORT}")), ok(), "{binding}");
                command.unbind();
            }
        }
        assert_eq!(thief.tell(&format!("steal {PORT}")), ok());
    });
}

#[test]
fn below_another_supervisor_that_one_is_asked() {
    in_network_namespace(|| {
        let mut thief = Worker::spawn();
        let mut outer = handed_off();
        assert_eq!(outer.tell("nested_hand_off 20001"), ok());
        for _ in 0..3 {
            for binding in [plain(), Binding::udp(Local::LOOPBACK_V4, Options::None)] {
                let port = PORT + 1;
                assert_eq!(thief.tell(&format!("steal {port}")), ok());
                assert_eq!(outer.tell(&format!("tell 0 bind {port} {binding}")), ok());
                assert_eq!(thief.tell(&format!("steal {port}")), ok());
                // The outer one's own too, by whoever of the two.
                assert_eq!(outer.tell(&format!("tell 0 bind {PORT} {binding}")), ok());
                assert_eq!(outer.tell("tell 0 unbind"), ok());
                assert_eq!(outer.bind(PORT, binding), Ok(()));
                outer.unbind();
            }
        }
        let err = among("20001").hold().unwrap_err();
        assert!(err.to_string().contains("1 leased"), "{err}");
        drop(outer);
        drop(among("20001").wait(super::LONG).hold().unwrap());
    });
}

#[test]
fn who_is_asked_to_look_after_too_much_says_so() {
    in_network_namespace(|| {
        let mut outer = handed_off();
        let answer = outer.tell("entrust 20001-20200").unwrap_err();
        assert_eq!(answer, io::Error::from(Errno::NOBUFS).to_string());
        // And has forgotten what it was asked for before.
        assert_eq!(outer.tell("entrust 20001-20100"), ok());
    });
}
