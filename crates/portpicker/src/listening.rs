//! Waiting until something listens on a port.

use std::io;
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::fstat;

use crate::probe::Kind;
use crate::sys::socket_table;

/// Waits until a socket listens on `port`, on whatever address, or for [`Kind::Udp`] is bound to it.
///
/// Returns whether one does, `false` after `limit`. It is seen in the kernel's tables: nobody
/// connects, so no server sees a client that says nothing. Whose socket it is, is not asked.
///
/// # Errors
///
/// What reading `/proc/net` reports.
///
/// # Example
///
/// ```
/// use std::time::Duration;
/// use portpicker::{Kind, wait_listening};
///
/// let listener = std::net::TcpListener::bind(("127.0.0.1", 0))?;
/// let port = listener.local_addr()?.port();
/// assert!(wait_listening(port, Kind::Tcp, Duration::ZERO)?);
/// drop(listener);
/// assert!(!wait_listening(port, Kind::Tcp, Duration::ZERO)?);
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn wait_listening(port: u16, kind: Kind, limit: Duration) -> io::Result<bool> {
    let deadline = Instant::now().checked_add(limit);
    let mut pause = Duration::from_millis(1);
    loop {
        if socket_table::is_listening(port, kind, &[])? {
            return Ok(true);
        }
        let left = deadline.map_or(Duration::MAX, |deadline| {
            deadline.saturating_duration_since(Instant::now())
        });
        if left.is_zero() {
            return Ok(false);
        }
        // The kernel has no event for it. The table of a busy host takes milliseconds to read.
        thread::sleep(pause.min(left));
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// Tells whether a socket listens on `port`, on whatever address, or for [`Kind::Udp`] is bound to it,
/// other than those that hold it: `holders`.
///
/// A TCP socket that holds a port does not listen. A UDP socket looks as any other.
///
/// # Errors
///
/// What reading `/proc/net`, or asking about `holders`, reports.
pub fn is_listening<Fd: AsFd>(port: u16, kind: Kind, holders: &[Fd]) -> io::Result<bool> {
    let inodes = holders
        .iter()
        .map(|holder| Ok(fstat(holder)?.st_ino))
        .collect::<io::Result<Vec<u64>>>()?;
    socket_table::is_listening(port, kind, &inodes)
}
