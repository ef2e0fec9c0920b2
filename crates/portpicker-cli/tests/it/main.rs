//! The command, as its users meet it.
#![expect(
    clippy::unwrap_used,
    reason = "a test that meets what it does not expect has failed"
)]

mod drop_in;
mod generated;
mod keeper;
mod messages;
mod pick;
mod readme;
mod release;
// How a port passes to a command depends on none of the mechanisms that can be forced.
#[cfg(not(any(
    portpicker_force = "lock_file",
    portpicker_force = "poll",
    portpicker_force = "ipv4"
)))]
mod run;
mod serve;
mod servers;
mod status;
mod support;
mod terminal;

/// The process with the library that other tests talk to.
#[test]
fn worker() {
    portpicker_testing::worker::serve(|_, _| None);
}
