//! What the library promises, tested through its public face: a module for each topic.
//!
//! | module           | question                                                             |
//! | ---------------- | -------------------------------------------------------------------- |
//! | `kernel.rs`      | does this kernel behave as the design assumes?                       |
//! | `occupied.rs`    | which ports count as in use?                                         |
//! | `lease.rs`       | who is kept from a leased port, and who is not?                      |
//! | `hold.rs`        | is a held port really nobody else's?                                 |
//! | `door.rs`        | who comes in through the door of a hold, and when?                   |
//! | `hand_off/`      | does a held port pass to another program, and to nobody else?        |
//! | `at_once.rs`     | do many who pick at the same time get different ports?               |
//! | `owner.rs`       | when does a lease end: by kill, fork, exec?                          |
//! | `owned.rs`       | a process's own ports: returned, reserved, free                      |
//! | `picker.rs`      | does each option of a picker mean what it says?                      |
//! | `exhausted.rs`   | out of ports or descriptors: a clear error, and nothing leaked?      |
//! | `environment.rs` | what do the environment variables do?                                |
//! | `client.rs`      | what if the port server is slow, silent, or lies?                    |
//! | `extended.rs`    | what is a server of the extended protocol asked, and believed?       |
//! | `bind.rs`        | binding the caller's own socket                                      |
//! | `process.rs`     | watching processes                                                   |
//! | `port_set.rs`    | properties of sets of ports                                          |
//!
//! Every port number in these tests belongs to a network namespace of the test's own.

mod at_once;
mod bind;
mod client;
mod door;
mod environment;
mod exhausted;
mod extended;
mod fork;
mod hand_off;
mod hold;
mod kernel;
mod lease;
mod occupied;
mod owned;
mod owner;
mod picker;
mod port_set;
mod process;

use portpicker::{Picker, PortSet};
use portpicker_testing::{Binding, Local};

/// The process that other tests talk to.
#[test]
fn worker() {
    portpicker_testing::worker::serve(|state, line| {
        fork::command(state, line).or_else(|| hand_off::command(state, line))
    });
}

fn set(text: &str) -> PortSet {
    text.parse().expect("it is a set of ports")
}

/// Returns a picker of `ports` only.
fn among(ports: &str) -> Picker {
    Picker::new().ports(set(ports))
}

/// Returns the bindings that the library's probes meet and its holds refuse: every one, unless a
/// fallback without IPv6 is forced.
fn every_binding() -> impl Iterator<Item = Binding> {
    Binding::every().filter(|binding| is_probed(binding.local))
}

fn is_probed(local: Local) -> bool {
    local.meets_ipv4() || !cfg!(portpicker_force = "ipv4")
}
