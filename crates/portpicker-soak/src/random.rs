//! Numbers that look random, and are the same for the same seed.

use std::time::Duration;

/// Knuth's linear congruential generator; its high bits are good enough.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = Self(seed);
        // Neighbouring seeds begin alike.
        for _ in 0..4 {
            random.below(2);
        }
        random
    }

    /// Returns a number below `end`, which is above 0.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % end
    }

    pub(crate) fn millis(&mut self, first: u64, end: u64) -> Duration {
        Duration::from_millis(first + self.below((end - first) as usize) as u64)
    }

    pub(crate) fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }

    /// Returns one of `all`, each as often as its number says.
    pub(crate) fn weighted<T: Copy>(&mut self, all: &[(T, usize)]) -> T {
        let mut number = self.below(all.iter().map(|(_, weight)| weight).sum());
        for &(one, weight) in all {
            match number.checked_sub(weight) {
                Some(rest) => number = rest,
                None => return one,
            }
        }
        unreachable!("the number is below the sum")
    }
}
