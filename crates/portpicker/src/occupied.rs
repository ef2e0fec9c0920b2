//! The ports that this process has found in use a moment ago, and tries last.
//!
//! Strangers' sockets last longer than a pick takes. An occupied candidate costs its lock and a failed
//! bind each time; where most of them are occupied, that is most of a pick.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::port_bits::PortBits;

/// How long a port may be tried last because of what was true before.
const MEMORY: Duration = Duration::from_secs(1);

/// Ports to be tried last. Nothing hangs on what it says but the order.
#[derive(Debug)]
pub(crate) struct RecentlyOccupied {
    ports: PortBits,
    /// When the first of `ports` was added, in nanoseconds since `epoch`; 0 if there is none.
    since: AtomicU64,
    epoch: OnceLock<Instant>,
}

impl Default for RecentlyOccupied {
    fn default() -> Self {
        Self {
            ports: PortBits::new(),
            since: AtomicU64::new(0),
            epoch: OnceLock::new(),
        }
    }
}

impl RecentlyOccupied {
    /// Forgets what is too old.
    pub(crate) fn refresh(&self) {
        let since = self.since.load(Ordering::Relaxed);
        if since != 0 && self.now() - since > MEMORY.as_nanos() as u64 {
            self.ports.clear();
            self.since.store(0, Ordering::Relaxed);
        }
    }

    pub(crate) fn contains(&self, port: u16) -> bool {
        self.ports.contains(port)
    }

    pub(crate) fn insert(&self, port: u16) {
        if self.since.load(Ordering::Relaxed) == 0 {
            self.since.store(self.now(), Ordering::Relaxed);
        }
        self.ports.insert(port);
    }

    /// Never 0.
    fn now(&self) -> u64 {
        1 + self.epoch.get_or_init(Instant::now).elapsed().as_nanos() as u64
    }
}
