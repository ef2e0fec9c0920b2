//! Everything that depends on the operating system.
//!
//! Outside of this module there is no `cfg` on the platform. Files are named for a mechanism
//! rather than for the platform that has it:
//!
//! | file                 | mechanism                                          | available on        |
//! | -------------------- | -------------------------------------------------- | ------------------- |
//! | `abstract_socket.rs` | a lock: a name in [unix(7)]'s abstract namespace   | Linux               |
//! | `device.rs`          | a socket's interface: SO_BINDTOIFINDEX             | Linux 5.0 and later |
//! | `listener.rs`      | who listens at a port: [sock_diag(7)]              | Linux 3.3 and later |
//! | `notification.rs`    | [seccomp_unotify(2)]: asked before others' binds   | Linux 5.6 and later |
//! | `lock_file.rs`       | a lock: [flock(2)] on a file for each port         | everywhere          |
//! | `exclusive.rs`       | `SO_EXCLUSIVEADDRUSE` or `SO_REUSEPORT`            | Windows or Unix     |
//! | `fork.rs`            | one value for each process, fresh after a fork     | everywhere          |
//! | `kernel_ports.rs`    | the kernel's own port ranges, from [proc(5)]       | Linux               |
//! | `pidfd.rs`           | a process: [pidfd_open(2)], readable on exit       | Linux 5.3 and later |
//! | `poll.rs`            | a process: [kill(2)] with signal 0, now and then   | every Unix          |
//! | `socket_table.rs`    | who listens, and what is in TIME-WAIT: [proc(5)]   | Linux               |
//!
//! Where the kernel may lack a mechanism, or a sandbox may refuse it, the choice is made at run
//! time. `--cfg portpicker_force="lock_file"` (or `"poll"`, or `"ipv4"`) takes the fallback
//! always; `make test` runs everything once more with each.
//!
//! [seccomp_unotify(2)]: https://man7.org/linux/man-pages/man2/seccomp_unotify.2.html
//! [unix(7)]: https://man7.org/linux/man-pages/man7/unix.7.html
//! [sock_diag(7)]: https://man7.org/linux/man-pages/man7/sock_diag.7.html
//! [flock(2)]: https://man7.org/linux/man-pages/man2/flock.2.html
//! [proc(5)]: https://man7.org/linux/man-pages/man5/proc.5.html
//! [pidfd_open(2)]: https://man7.org/linux/man-pages/man2/pidfd_open.2.html
//! [kill(2)]: https://man7.org/linux/man-pages/man2/kill.2.html

#[cfg(not(any(target_os = "linux", portpicker_untested_platform)))]
compile_error!(
    "portpicker has been tested on Linux only. To try it here, build with \
     RUSTFLAGS=\"--cfg portpicker_untested_platform\", and tell us what you find"
);

#[cfg(target_os = "linux")]
mod abstract_socket;
#[cfg(target_os = "linux")]
pub(crate) mod device;
pub(crate) mod exclusive;
pub(crate) mod fork;
pub(crate) mod kernel_ports;
#[cfg(target_os = "linux")]
pub(crate) mod listener;
pub(crate) mod lock;
mod lock_file;
#[cfg(target_os = "linux")]
pub(crate) mod notification;
#[cfg(target_os = "linux")]
pub(crate) mod pidfd;
#[cfg(unix)]
pub(crate) mod poll;
pub(crate) mod socket_table;
