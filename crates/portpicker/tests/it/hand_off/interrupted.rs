//! What if the caller is interrupted, or killed?
//!
//! # Safety
//!
//! The handler of SIGALRM does nothing at all, and the thread that signals are sent to waits for the
//! one that sends them. What a forked child does: see `fork.rs`.
#![expect(unsafe_code, reason = "only a signal shows what a signal does")]

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::{mem, ptr, thread};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, fork, pipe};
use portpicker_testing::sockets::port_of;
use portpicker_testing::worker::Answer;
use portpicker_testing::{Binding, Local, Options, in_network_namespace};

use super::calls::outcome;
use super::{PORT, handed_off, port_and_binding, with_and_without_net_raw};

/// How many sockets are bound while signals come in.
const BINDS: usize = 2000;

/// The commands of a worker that have to do with signals.
pub(super) fn command(line: &str) -> Option<Answer<String>> {
    let (command, argument) = line.split_once(' ').unwrap_or((line, ""));
    Some(match command {
        "bind_under_signals" => bind_under_signals(argument),
        "kill_while_binding" => kill_while_binding(argument),
        _ => return None,
    })
}

extern "C" fn do_nothing(_signal: libc::c_int) {}

/// Binds again and again while signals come in: `COUNT FLAGS PORT BINDING`.
///
/// Returns how many calls were interrupted, and how many answers were lost: a socket that is bound
/// says that it is when it is bound again.
fn bind_under_signals(argument: &str) -> Answer<String> {
    let mut words = argument.splitn(3, ' ');
    let mut next = || words.next().expect("three parts");
    let count: usize = next().parse().expect("a count");
    let restarts = next() == "restart";
    let (port, binding) = port_and_binding(next());

    // SAFETY: the handler does nothing; zero is a value of the structure.
    unsafe {
        let mut action: libc::sigaction = mem::zeroed();
        action.sa_sigaction = do_nothing as extern "C" fn(libc::c_int) as libc::sighandler_t;
        action.sa_flags = if restarts { libc::SA_RESTART } else { 0 };
        assert_eq!(
            libc::sigaction(libc::SIGALRM, &raw const action, ptr::null_mut()),
            0
        );
    }
    // SAFETY: no arguments, no errors.
    let target = unsafe { libc::pthread_self() } as usize; // musl's is a pointer: not `Send`
    let is_over = AtomicBool::new(false);
    let (mut interrupted, mut lost) = (0, 0);
    let address = SocketAddr::new(binding.local.address, port);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                // SAFETY: it is the thread that waits for us.
                unsafe { libc::pthread_kill(target as libc::pthread_t, libc::SIGALRM) };
                thread::yield_now();
            }
        });
        let mut bind = || {
            let socket = binding.open()?;
            let mut again = |call: &dyn Fn() -> io::Result<()>| loop {
                match call() {
                    Err(err) if err.kind() == io::ErrorKind::Interrupted => interrupted += 1,
                    Err(err) if err.kind() == io::ErrorKind::InvalidInput => {
                        assert_eq!(port_of(&socket), port, "it is bound");
                        lost += 1;
                        return Ok(());
                    }
                    result => return result,
                }
            };
            again(&|| socket.bind(&address.into()))?;
            if binding.listens {
                again(&|| socket.listen(1))?;
            }
            Ok(())
        };
        let result = (0..count).try_for_each(|_| bind());
        is_over.store(true, Ordering::Relaxed);
        outcome(result)
    })?;
    Ok(format!("{interrupted} {lost}"))
}

with_and_without_net_raw! {
    /// A bind is never interrupted, elsewhere: no program expects it to be.
    fn a_call_that_is_restarted_after_a_signal_comes_to_the_same() {
        let mut command = handed_off();
        for binding in [
            Binding::listening(Local::LOOPBACK_V4, Options::None),
            Binding::listening(Local::DUAL, Options::Both),
            Binding::udp(Local::LOOPBACK_V4, Options::None),
        ] {
            let line = format!("bind_under_signals {BINDS} restart {PORT} {binding}");
            let answer = command.tell(&line).unwrap();
            assert!(answer.starts_with("0 "), "{binding}: {answer} were interrupted");
            assert_few_are_lost(&answer);
        }
    }

    /// Whose handler does not have calls restarted (no SA_RESTART) may see EINTR: the kernel gives
    /// us no means against it until we have been asked.
    fn a_call_that_was_interrupted_may_be_made_again() {
        let mut command = handed_off();
        for binding in [
            Binding::listening(Local::LOOPBACK_V4, Options::None),
            Binding::listening(Local::DUAL, Options::Both),
            Binding::udp(Local::LOOPBACK_V4, Options::None),
        ] {
            let line = format!("bind_under_signals {BINDS} fail {PORT} {binding}");
            assert_few_are_lost(&command.tell(&line).unwrap());
        }
    }
}

/// None is lost since Linux 5.19. Before, the kernel lets a signal win that comes in between our answer
/// and the caller's return, and tells nobody.
fn assert_few_are_lost(answer: &str) {
    let (_, lost) = answer.split_once(' ').unwrap();
    let lost: usize = lost.parse().unwrap();
    let tolerated = if cfg!(portpicker_force = "interruptible") {
        BINDS / 20
    } else {
        0
    };
    assert!(lost <= tolerated, "{lost} of {BINDS} are lost");
}

#[test]
fn a_caller_that_is_killed_leaves_nothing_behind() {
    in_network_namespace(|| {
        let mut command = handed_off();
        for binding in [
            Binding::listening(Local::LOOPBACK_V4, Options::None),
            Binding::udp(Local::LOOPBACK_V4, Options::None),
        ] {
            for _ in 0..50 {
                let killed = command.tell(&format!("kill_while_binding {PORT} {binding}"));
                assert_eq!(killed, Ok(String::new()));
            }
            assert_eq!(command.bind(PORT, binding), Ok(()), "{binding}");
            command.unbind();
        }
    });
}

/// Forks a child that binds again and again, and kills it in the midst of that.
fn kill_while_binding(argument: &str) -> Answer<String> {
    let (port, binding) = port_and_binding(argument);
    let (answer, write) = pipe().expect("a pipe can be made");
    // SAFETY: see `fork.rs`.
    match unsafe { fork() }.expect("a process can fork") {
        ForkResult::Parent { child } => {
            drop(write);
            let mut file = File::from(answer);
            // It has begun.
            let begun = file.read_exact(&mut [0]);
            kill(child, Signal::SIGKILL).expect("it is our child");
            waitpid(child, None).expect("it is our child");
            let mut error = String::new();
            file.read_to_string(&mut error).expect("a pipe can be read");
            match (begun, error.trim_matches('!')) {
                (Ok(()), "") => Ok(String::new()),
                (begun, error) => Err(format!("{begun:?} {error}")),
            }
        }
        ForkResult::Child => {
            let mut file = File::from(write);
            loop {
                let result = binding.bind(port);
                let text = result.map_or_else(|err| err.to_string(), |_| "!".to_owned());
                _ = file.write_all(text.as_bytes());
            }
        }
    }
}
