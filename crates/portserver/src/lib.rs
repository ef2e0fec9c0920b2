//! A port server: it leases the ports of a pool to processes, one server for a host's clients.
//!
//! It serves the clients of Google's python_portpicker unchanged, and those of this project with a
//! protocol that can do more; `docs/protocol.md` has both. It takes the same locks as the library, so
//! that leases made with a server and without one never meet.
//!
//! # Code structure
//!
//! | module       | question                                                        |
//! | ------------ | --------------------------------------------------------------- |
//! | `pool`       | which port next? a value, without I/O, that is told the time     |
//! | `ahead`      | which ports are left for others while some wait?                |
//! | `peer`       | who is asking, and for whom?                                     |
//! | `owners`     | which processes own leases, and have they exited?                |
//! | `state`      | what is remembered for the next server?                          |
//! | `wire`       | what crosses the socket? texts, without I/O                      |
//! | `server`     | what does a request do?                                         |
//! | `silent`     | who goes first when there is no room?                             |
//! | `connection` | which protocol, and how long may a client take?                  |
//! | `listen`     | where are clients awaited?                                      |
//! | `metrics`    | what does an operator want to know?                             |
//! | `http`       | who asks for that, and how long may it take?                    |
//! | `serve`      | the loop around it all                                          |
#![forbid(unsafe_code)]

mod ahead;
mod connection;
mod free_order;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod http;
mod listen;
mod metrics;
mod owners;
mod peer;
mod pool;
mod proc;
mod serve;
mod server;
mod silent;
mod state;
mod stats;
mod wire;

pub use listen::{Access, Address, Inherited};
pub use serve::{Error, Legacy, Options, Supervisor, serve};
