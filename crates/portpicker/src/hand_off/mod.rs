//! Hand-off: a held port passes to a program that nobody can change, and is never free.
//!
//! Promise 4, *handed off*: promise 3 (see [`Hold`]), until the command's own bind and listen
//! have succeeded, and again whenever its server is restarted. The command's `bind` and `listen` on
//! the port are carried out by the [`Supervisor`], on the command's own socket, while the hold
//! steps aside for that socket alone. The command needs no options, no privileges, and no knowledge
//! of this; its other calls run untouched at full speed.
//!
//! [`Hold::command`] is all that most callers need.
//!
//! # Platform behavior
//!
//! Linux 5.6, on x86-64 and AArch64. A command that is started so cannot gain privileges by running
//! set-uid programs (`no_new_privs`). The calls of 32-bit programs are not seen, nor are io_uring's:
//! to them the port is in use.
//!
//! Where Yama restricts ptrace(2), as Ubuntu does, only an ancestor gets at a process's sockets. A
//! daemon whose parent has ended is out of reach there, and its bind lets go of the ports, unless this
//! program adopts orphans (`PR_SET_CHILD_SUBREAPER`), or is itself below `portpicker run`, which does.
//!
//! # References
//!
//! - [seccomp_unotify(2)](https://man7.org/linux/man-pages/man2/seccomp_unotify.2.html)
//! - `docs/safety.md`: what a hostile command could make of it.
//!
//! [`Hold`]: crate::Hold
//! [`Hold::command`]: crate::Hold::command

mod admission;
mod command;
mod guest;
mod supervisor;

pub use command::{HandOff, HandedOff};
pub use guest::{By, can_entrust, entrust, find_supervisor, withdraw};
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use supervisor::parse_address;
pub use supervisor::{Answered, Preparation, StepDown, Supervisor};
