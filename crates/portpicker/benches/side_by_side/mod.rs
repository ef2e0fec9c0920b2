//! Times of things that are compared, taken in turns, and the ratios between them.
//!
//! On a shared machine a microsecond is no constant: clocks and neighbours change from one second
//! to the next. So the things compared take turns in small batches, each round gives a ratio, and
//! what counts is the median of the ratios.

use std::env;
use std::fmt;
use std::time::Instant;

/// How much to measure.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Effort {
    /// Enough for stable ratios: some seconds.
    Full,
    /// Just enough to see that everything works: with `--quick`, and under `cargo test`.
    Quick,
}

impl Effort {
    pub(crate) fn from_arguments() -> Self {
        let given = |wanted: &str| env::args().any(|argument| argument == wanted);
        // `cargo bench` says `--bench`; `cargo test --benches` says nothing.
        if given("--bench") && !given("--quick") && !given("--test") {
            Self::Full
        } else {
            Self::Quick
        }
    }

    pub(crate) fn choose<T>(self, full: T, quick: T) -> T {
        match self {
            Self::Full => full,
            Self::Quick => quick,
        }
    }
}

/// Something to be timed.
pub(crate) type Contender<'a> = Box<dyn FnMut() + 'a>;

/// Lets the contenders take turns, `rounds` times, `batch` calls at a turn.
pub(crate) fn compare(rounds: usize, batch: usize, contenders: &mut [Contender<'_>]) -> Times {
    let mut times = Times::new(contenders.len());
    for contender in &mut *contenders {
        micros_per_call(batch, contender); // to fill the caches
    }
    for round in 0..rounds {
        for turn in 0..contenders.len() {
            // Nobody always goes first, nor always after the same other one.
            let row = match round % 2 {
                0 => (round / 2 + turn) % contenders.len(),
                _ => (round / 2 + contenders.len() - turn) % contenders.len(),
            };
            times.record(row, micros_per_call(batch, &mut contenders[row]));
        }
    }
    times
}

/// Returns how many microseconds a call takes, on average over a batch.
pub(crate) fn micros_per_call(batch: usize, mut call: impl FnMut()) -> f64 {
    let start = Instant::now();
    for _ in 0..batch {
        call();
    }
    start.elapsed().as_secs_f64() * 1e6 / batch as f64
}

/// Times in microseconds: a row for each thing, with one time of each round.
#[derive(Debug)]
pub(crate) struct Times(Vec<Vec<f64>>);

impl Times {
    pub(crate) fn new(rows: usize) -> Self {
        Self(vec![Vec::new(); rows])
    }

    pub(crate) fn record(&mut self, row: usize, micros: f64) {
        self.0[row].push(micros);
    }

    /// Returns the median of a row.
    pub(crate) fn micros(&self, row: usize) -> f64 {
        quantile(&mut self.0[row].clone(), 0.5)
    }

    /// Returns how many times as long as the row `base` the other one takes.
    pub(crate) fn ratio(&self, row: usize, base: usize) -> Ratio {
        let rounds = self.0[row].iter().zip(&self.0[base]);
        let mut ratios: Vec<f64> = rounds.map(|(time, base)| time / base).collect();
        Ratio {
            median: quantile(&mut ratios, 0.5),
            quartiles: [0.25, 0.75].map(|share| quantile(&mut ratios, share)),
        }
    }
}

/// The median of the rounds' ratios, and between which values half of them lie.
#[derive(Debug)]
pub(crate) struct Ratio {
    median: f64,
    quartiles: [f64; 2],
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [low, high] = self.quartiles;
        write!(f, "{:6.2}  ({low:.2}-{high:.2})", self.median)
    }
}

fn quantile(values: &mut [f64], share: f64) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[((values.len() - 1) as f64 * share).round() as usize]
}
