//! Unused network ports that stay unused: for tests, scripts, and servers.
//!
//! A test needs the number of a port for a server that it is about to start. Picked by asking
//! the kernel for any port and letting go of it, the number is somebody else's before the server
//! binds, once in a hundred runs or once in three. This crate gives numbers that stay the caller's,
//! with no daemon and nothing to set up:
//!
//! ```
//! let port = portpicker::pick_unused_port()?;
//! # assert!(port > 0);
//! # Ok::<(), portpicker::Error>(())
//! ```
//!
//! # What is promised
//!
//! Each function says which of these it promises; each includes the one before.
//!
//! 1. *unused*: a probe said so, a moment ago. [`is_port_free`].
//! 2. *leased*: nobody on this host who picks through this library, its command, or a port server
//!    of this project is given the port until its owner ends; and the kernel gives it to nobody
//!    by itself, because it lies outside the ephemeral range. [`pick_unused_port`], [`Lease`].
//! 3. *held*: nobody can bind it. [`Hold`].
//!
//! Leases are scoped like ports: by network namespace, across users and containers that share one.
//!
//! # Which one to use
//!
//! | you have                                    | use                                   |
//! | ------------------------------------------- | ------------------------------------- |
//! | a server that takes port 0 and says which   | that: no crate is better              |
//! | a socket of your own                        | [`bind_port`]                         |
//! | a server that takes a number                | [`pick_unused_port`]                  |
//! | a number for the time of a scope            | [`Picker::lease`]                     |
//! | a range, neighbours, one transport, a wait  | [`Picker`]                            |
//! | strangers who bind numbers unasked          | [`Picker::hold`]                      |
//! | a server that takes a listening socket      | [`Picker::hold`] and [`Hold::listen`] |
//!
//! # What it does not do
//!
//! The library starts no thread, installs no signal handler, prints nothing, and never forks.
//!
//! # Code structure
//!
//! What depends on the operating system is in `sys/`, a file for each mechanism. `attempt`
//! is the heart: lock first, then probe.

/// The examples of the README. Not part of the package, hence only for tests.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;

mod attempt;
mod bind;
mod candidates;
pub mod client;
mod error;
mod exchange;
#[cfg(all(target_os = "linux", any(test, feature = "fuzzing")))]
#[doc(hidden)]
pub mod fuzzing;
#[cfg(target_os = "linux")]
pub mod hand_off;
mod hold;
mod lease;
mod listening;
mod occupied;
mod owned;
mod picker;
mod port_bits;
mod port_set;
mod probe;
pub mod process;
mod protocol;
mod search;
mod server_address;
mod sys;
mod walk;

pub use attempt::{Attempt, Attempts};
pub use bind::bind_port;
pub use error::{Error, Refusal, Result, Tally};
pub use exchange::request_port;
pub use hold::Hold;
pub use lease::Lease;
pub use listening::{is_listening, wait_listening};
pub use owned::{
    add_reserved_port, find_unused_port, is_leased_here, is_port_free, pick_offered_port,
    pick_unused_port, pick_unused_ports, probe_port, return_port,
};
pub use picker::{Picker, Server};
pub use port_set::{ParsePortSetError, PortSet};
pub use probe::{Family, Kind};
pub use server_address::{ParseServerAddressError, ServerAddress};
