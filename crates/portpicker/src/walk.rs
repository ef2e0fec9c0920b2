//! A random order in which to try candidates: another one in each process, and each time.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};

/// Returns the numbers from 0 to `len - 1`, each once, in a random order.
///
/// Not from a random start upwards: processes that start at different places would build runs of
/// leased ports that everybody has to walk through.
pub(crate) fn cyclic(len: usize, random: &Random) -> impl Iterator<Item = usize> + use<> {
    let value = random.next();
    // A linear congruential generator visits every number below a power of two once if its
    // multiplier is one more than a multiple of 4 and its increment is odd (Hull and Dobell).
    let multiplier = (value as usize & !3) | 1;
    let increment = (value >> 16) as usize | 1;
    let size = len.next_power_of_two();
    let mut at = (value >> 40) as usize;
    (0..size).filter_map(move |_| {
        at = at.wrapping_mul(multiplier).wrapping_add(increment) & (size - 1);
        (at < len).then_some(at)
    })
}

/// A source of numbers that other processes do not draw.
///
/// Not for secrets: the locks, not the numbers, keep processes apart; these only keep them from
/// trying the same ports first.
#[derive(Debug)]
pub(crate) struct Random(AtomicU64);

impl Default for Random {
    fn default() -> Self {
        // std's hash keys come from the system's random numbers. A forked child has its parent's
        // keys, so the process id goes in as well.
        Self(AtomicU64::new(RandomState::new().hash_one(process::id())))
    }
}

impl Random {
    /// Returns the next number of the splitmix64 sequence.
    fn next(&self) -> u64 {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut z = self.0.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_walk_visits_everything_once() {
        let random = Random::default();
        for len in [0, 1, 2, 3, 12, 100, 1000, 65_535] {
            for _ in 0..20 {
                let mut visited: Vec<_> = cyclic(len, &random).collect();
                visited.sort_unstable();
                assert_eq!(visited, (0..len).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn two_sources_draw_different_numbers() {
        let (a, b) = (Random::default(), Random::default());
        assert_ne!((a.next(), a.next()), (b.next(), b.next()));
    }
}
