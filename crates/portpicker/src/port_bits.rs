//! A set of ports, one bit for each.

use std::sync::atomic::{AtomicU64, Ordering};

/// A set of ports that changes without a lock, and so cannot be found locked after a fork.
#[derive(Debug)]
pub(crate) struct PortBits([AtomicU64; 1024]);

impl PortBits {
    pub(crate) const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; 1024])
    }

    pub(crate) fn insert(&self, port: u16) {
        self.word(port)
            .fetch_or(1 << (port % 64), Ordering::Relaxed);
    }

    pub(crate) fn remove(&self, port: u16) {
        self.word(port)
            .fetch_and(!(1 << (port % 64)), Ordering::Relaxed);
    }

    pub(crate) fn contains(&self, port: u16) -> bool {
        self.word(port).load(Ordering::Relaxed) & (1 << (port % 64)) != 0
    }

    pub(crate) fn clear(&self) {
        for word in &self.0 {
            word.store(0, Ordering::Relaxed);
        }
    }

    fn word(&self, port: u16) -> &AtomicU64 {
        &self.0[usize::from(port / 64)]
    }
}
