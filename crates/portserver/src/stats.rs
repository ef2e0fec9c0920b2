//! What the server counts.

use std::collections::BTreeMap;
use std::time::Duration;

/// Counts since the server was started.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stats {
    /// Ports leased.
    pub(crate) granted: u64,
    /// Requests refused, by the error code of the extended protocol.
    pub(crate) refused: BTreeMap<&'static str, u64>,
    /// Requests that were not understood.
    pub(crate) client_errors: u64,
    /// Leases that their owners gave back.
    pub(crate) released: u64,
    /// Leases that ended with their owners.
    pub(crate) reclaimed: u64,
    /// Leases whose time was over.
    pub(crate) expired: u64,
    /// How many ports were tried for the last request.
    pub(crate) tried_for_last: u64,
    /// From the first byte of a request to its answer.
    pub(crate) latency: Histogram,
    /// From the server's learning of an owner's exit, for which the kernel gives no time, to its
    /// ports being free. Of owners that have to be polled: from when they were last seen alive.
    pub(crate) reclaim_delay: Histogram,
}

/// How often something took how long.
#[derive(Clone, Debug, Default)]
pub(crate) struct Histogram {
    /// One for each bound in [`BOUNDS`](Self::BOUNDS), and one above them all.
    pub(crate) counts: [u64; Self::BOUNDS.len() + 1],
    pub(crate) sum: Duration,
}

impl Histogram {
    /// Upper bounds, inclusive, in microseconds.
    pub(crate) const BOUNDS: [u64; 10] = [
        25, 50, 100, 250, 500, 1_000, 5_000, 25_000, 100_000, 1_000_000,
    ];

    pub(crate) fn add(&mut self, time: Duration) {
        let micros = time.as_micros();
        let index = Self::BOUNDS.partition_point(|&bound| u128::from(bound) < micros);
        self.counts[index] += 1;
        self.sum += time;
    }
}

impl Stats {
    pub(crate) fn refuse(&mut self, code: &'static str) {
        *self.refused.entry(code).or_default() += 1;
    }

    /// What the original statistics call denied allocations.
    pub(crate) fn denied(&self) -> u64 {
        self.refused.values().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_inclusive() {
        let mut histogram = Histogram::default();
        for micros in [0, 25, 26, 1_000_000, 1_000_001] {
            histogram.add(Duration::from_micros(micros));
        }
        assert_eq!(histogram.counts, [2, 1, 0, 0, 0, 0, 0, 0, 0, 1, 1]);
    }
}
