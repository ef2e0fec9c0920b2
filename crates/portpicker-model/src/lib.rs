//! The rules of locks, leases, owners, keepers, and the port server: a model that is small enough
//! for every one of its states to be looked at.
//!
//! - [`state`]: what the kernel, the processes, and the state file know at one moment.
//! - [`rules`]: what can happen next. Each [`Action`] is one step of somebody, and names the function
//!   that it stands for; between any two steps everybody else may take any of theirs.
//! - [`properties`]: what must be true in every state, and what must be possible at all.
//!
//! What is more than the real code does is allowed: any candidate may be tried next, any waiting
//! request served first. Left out are time (leases with an end, ports that rest), several ports at
//! once, users and names, holds, sockets that a forked child has a copy of, keepers that are killed,
//! the bytes of the files, and failures of the system, such as a full disk.

#![forbid(unsafe_code)]

pub mod properties;
pub mod rules;
pub mod state;

pub use rules::{Action, Fault, Rules};
pub use state::State;
