//! The one fork of these tests: an owner of leases that forks and does not exec.
//!
//! # Safety
//!
//! After a fork, a child of a process with several threads may only do what is safe in a signal
//! handler, since other threads may have been in the midst of anything. A worker has one other
//! thread: libtest's main thread, which has started the worker's and waits for its result. It
//! takes no lock but the allocator's, if it is that slow, and the C library makes the allocator
//! usable in a forked child.
#![expect(unsafe_code, reason = "only a fork shows what a fork does")]

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;

use nix::libc::_exit;
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, fork, pipe};
use portpicker::{Picker, Server};
use portpicker_testing::worker::{Answer, State};
use portpicker_testing::{Exit, Worker};

/// Makes `worker` fork. The child does nothing, and lives until the worker's lifeline ends.
pub(crate) fn fork_idle_child(worker: &mut Worker) -> Exit {
    let pid = worker.tell("fork").expect("it can fork");
    Exit::of(pid.parse().expect("it is a process id"))
}

/// Makes `worker` fork, and returns how its child answers a command.
pub(crate) fn in_forked_child(worker: &mut Worker, command: &str) -> Answer<String> {
    let answer = worker.tell(&format!("in_forked_child {command}"))?;
    match answer.split_once(' ').unwrap_or((&answer, "")) {
        ("ok", answer) => Ok(answer.to_owned()),
        (_, answer) => Err(answer.to_owned()),
    }
}

/// The commands that a worker of these tests has besides the harness's.
pub(crate) fn command(state: &mut State, line: &str) -> Option<Answer<String>> {
    match line.split_once(' ').unwrap_or((line, "")) {
        ("fork", "") => Some(Ok(start_idle_child().to_string())),
        ("in_forked_child", command) => Some(Ok(answer_in_child(state, command))),
        ("drop_in_forked_child", server) => Some(Ok(drop_in_child(server))),
        _ => None,
    }
}

fn start_idle_child() -> i32 {
    // SAFETY: the child calls read(2) and _exit(2) and nothing else.
    match unsafe { fork() }.expect("a process can fork") {
        ForkResult::Parent { child } => child.as_raw(),
        ForkResult::Child => {
            // The lifeline is standard output, and a socket; nobody writes to it.
            let _ = rustix::io::read(rustix::stdio::stdout(), &mut [0; 1]);
            // SAFETY: it takes any number, and runs none of the parent's destructors.
            unsafe { _exit(0) }
        }
    }
}

fn answer_in_child(state: &mut State, command: &str) -> String {
    let (answer, write) = pipe().expect("a pipe can be made");
    // SAFETY: see the top of this file.
    match unsafe { fork() }.expect("a process can fork") {
        ForkResult::Parent { child } => {
            drop(write);
            let answer = read_all(answer).expect("a pipe can be read");
            waitpid(child, None).expect("it is our child");
            answer
        }
        ForkResult::Child => {
            let answer = match state.answer(command) {
                Ok(answer) => format!("ok {answer}"),
                Err(answer) => format!("error {answer}"),
            };
            let _ = File::from(write).write_all(answer.as_bytes());
            // SAFETY: as above.
            unsafe { _exit(0) }
        }
    }
}

/// Leases a port from a server, lets a forked child drop its copy, and keeps its own.
fn drop_in_child(server: &str) -> String {
    let server = Server::At(server.parse().expect("it is an address"));
    let lease = Picker::new().server(server).lease().expect("it grants one");
    // SAFETY: see the top of this file.
    match unsafe { fork() }.expect("a process can fork") {
        ForkResult::Parent { child } => {
            waitpid(child, None).expect("it is our child");
            lease.into_port().to_string()
        }
        ForkResult::Child => {
            drop(lease);
            // SAFETY: as above.
            unsafe { _exit(0) }
        }
    }
}

fn read_all(pipe: OwnedFd) -> io::Result<String> {
    let mut text = String::new();
    File::from(pipe).read_to_string(&mut text)?;
    Ok(text)
}
