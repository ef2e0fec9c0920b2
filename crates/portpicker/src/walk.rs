//! A random order in which to try candidates: different in each process, each time.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};

/// Returns the numbers from 0 to `len - 1`, each once, from a random start in random steps.
///
/// A random step, and not 1: processes that start at different places would otherwise build runs
/// of leased ports that everybody has to walk through.
pub(crate) fn cyclic(len: usize, random: &Random) -> impl Iterator<Item = usize> + use<> {
    let value = random.next();
    let start = (value >> 32) as usize % len.max(1);
    let mut step = 1 + value as u32 as usize % len.max(1);
    // With a step that has no divisor in common with the length, the walk visits everything.
    while gcd(step, len) > 1 {
        step += 1;
    }
    (0..len).scan(start, move |at, _| {
        let here = *at;
        *at = (here + step) % len;
        Some(here)
    })
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
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
