//! What the server promises, tested from outside: a module for each topic.
//!
//! | module          | question                                                                  |
//! | --------------- | ------------------------------------------------------------------------- |
//! | `original.rs`   | the protocol of Google's clients: which bytes, which answer?               |
//! | `extended.rs`   | every operation, every error code                                         |
//! | `waiting.rs`    | who gets a port that comes back?                                          |
//! | `owners.rs`     | when does a lease end: by exit, fork, exec, a number that is used again?   |
//! | `namespaces.rs` | clients in containers                                                     |
//! | `users.rs`      | clients of other users                                                    |
//! | `killed.rs`     | `kill -9` at any moment: is a port lost, or granted twice?                |
//! | `state_file.rs` | what if the state file is cut off, or garbage?                            |
//! | `google.rs`     | Google's client with our server, and our client with Google's server      |
//! | `hostile.rs`    | clients that are silent, slow, or loud                                    |
//! | `at_once.rs`    | two servers and many processes: the same number twice?                    |
//! | `memory.rs`     | what do many leases cost?                                                 |
//!
//! The server is `examples/serve.rs`. `cargo test` builds it, unless it is told a test or its name: then
//! `cargo build --examples` first. Every test has a network namespace, all its ports and names, to
//! itself.
#![expect(
    clippy::unwrap_used,
    reason = "a test that meets what it does not expect has failed"
)]

mod at_once;
mod client;
mod extended;
mod google;
mod hostile;
mod killed;
mod memory;
mod namespaces;
mod original;
mod owners;
mod server;
mod state_file;
mod users;
mod waiting;

use std::time::Duration;

/// Longer than anything that happens, for waits that end with an event. Less than a test has.
const LONG: Duration = Duration::from_secs(45);

/// Whether exits are polled, by the number: see the Makefile's fallbacks.
const POLLS: bool = cfg!(portpicker_force = "poll");

/// The process that other tests talk to: a client of the server, at `@server`.
#[test]
fn worker() {
    portpicker_testing::worker::serve(|_, line| {
        let (command, argument) = line.split_once(' ').unwrap_or((line, ""));
        match command {
            "ask" => Some(match client::ask(&server::address(), argument) {
                Some(port) => Ok(port.to_string()),
                None => Err("refused".into()),
            }),
            "request" => {
                let answer = client::Client::connect(&server::address()).tell(argument);
                Some(Ok(answer.to_string()))
            }
            "end" => Some(end_child(argument)),
            "pid" => Some(Ok(std::process::id().to_string())),
            "parent" => Some(Ok(std::os::unix::process::parent_id().to_string())),
            _ => None,
        }
    });
}

/// Kills and reaps a child of this process, which `spawn` has started.
fn end_child(pid: &str) -> Result<String, String> {
    use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
    let pid = pid
        .parse()
        .ok()
        .and_then(Pid::from_raw)
        .ok_or("no number")?;
    kill_process(pid, Signal::KILL).map_err(|err| err.to_string())?;
    waitpid(Some(pid), WaitOptions::empty()).map_err(|err| err.to_string())?;
    Ok(String::new())
}

/// Asserts that there is no number twice.
fn assert_all_different(ports: &[u16]) {
    let different: std::collections::HashSet<_> = ports.iter().collect();
    assert_eq!(different.len(), ports.len(), "{ports:?}");
}

/// Notes a figure: in what is shown if the test fails, and in the file that `PORTPICKER_FIGURES`
/// names.
#[expect(clippy::print_stdout, reason = "libtest shows it when it matters")]
fn report(line: &str) {
    use std::io::Write;
    println!("{line}");
    if let Some(path) = std::env::var_os("PORTPICKER_FIGURES") {
        let file = std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(path);
        file.unwrap()
            .write_all(format!("{line}\n").as_bytes())
            .unwrap();
    }
}

/// Returns the number in the environment variable `name`: how long a test goes on, for example.
fn number(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |text| text.parse().expect("it is a number"))
}
