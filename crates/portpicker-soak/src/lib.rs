//! The soak: every way to pick at once, for as long as one likes, while everything goes wrong.
//!
//! Dozens of processes, the *actors*, lease ports by the library, the command, Python, and two port
//! servers, say so, bind them, and end one way or another. Meanwhile processes and servers are killed,
//! restarted, and stopped, process ids are used again, descriptors and disk space run out, and the
//! clocks jump. An *oracle* reads what the actors say and knows which leases may overlap; at the end it
//! is seen whether anything has leaked. All of it happens in namespaces of its own.
//!
//! | module          | question                                            |
//! | --------------- | --------------------------------------------------- |
//! | `place`         | which ports, which servers?                         |
//! | `event`         | what do actors say?                                 |
//! | `oracle`        | is that allowed?                                    |
//! | `kinds`         | which actors are there, and how is one started?     |
//! | `actor`         | what does one do?                                   |
//! | `crew`          | who runs, who has ended, and who is to be killed?   |
//! | `server`        | the lives of a port server                          |
//! | `soak`          | from the beginning to the end                       |
//! | `soak::trouble` | what goes wrong on purpose?                         |
//! | `ending`        | what has leaked?                                    |
//! | `report`        | what happened?                                      |
#![forbid(unsafe_code)]

pub mod actor;
mod crew;
mod ending;
mod event;
mod kinds;
mod oracle;
pub mod place;
mod random;
mod report;
mod server;
pub mod soak;
