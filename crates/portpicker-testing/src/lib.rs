//! The test harness: processes, network namespaces, sockets, and port servers for tests.
//!
//! Whatever a test waits for is an event (an exit, a line, the end of a stream) with a deadline
//! that only a failure reaches. Nothing sleeps.
//!
//! | a test needs                                           | it uses                             |
//! | ------------------------------------------------------ | ----------------------------------- |
//! | a network of its own, with any ports and sysctls       | [`in_network_namespace`]            |
//! | an environment, limits, or picked ports of its own     | [`OwnProcess`]                      |
//! | another process that picks, binds, and can be killed   | [`Worker`]                          |
//! | many processes that begin at once                      | [`Gate`], [`worker::pick_at_once`]  |
//! | to know that a process is gone, with all it held       | [`Exit`]                            |
//! | every way to have a port                               | [`Binding`]                         |
//! | a port server that does as it likes                    | [`FakeServer`]                      |
//! | system calls to be forbidden                           | [`sandbox::forbid`]                 |
//! | real servers, and thieves who want their port          | [`storm::storm`]                    |
//! | to run out of descriptors                              | [`Descriptors`]                     |
//! | bytes that nobody should send                          | [`corpus`]                          |
//!
//! What the system does not permit is skipped by name: see [`skip`](fn@skip).

#![forbid(unsafe_code)]

pub mod corpus;
mod descriptors;
mod exit;
mod gate;
pub mod network;
mod own_process;
pub mod sandbox;
mod server;
mod skip;
pub mod sockets;
pub mod storm;
pub mod worker;

pub use descriptors::Descriptors;
pub use exit::Exit;
pub use gate::Gate;
pub use own_process::{OwnProcess, PID_NAMESPACE, in_network_namespace, namespace_wrapper};
pub use server::{Act, BusyServer, FakeServer};
pub use skip::{NO_SKIP, SKIPPED, skip};
pub use sockets::{Binding, Local, Options};
pub use worker::{Lifeline, Worker};
