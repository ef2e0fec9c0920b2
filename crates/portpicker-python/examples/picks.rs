//! Picks as many ports as each line of its input says, and prints how many nanoseconds that took.
//!
//! What `python/benches/pick.py` measures the Python module against.
#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a part of a benchmark"
)]

use std::io::stdin;
use std::time::Instant;

fn main() {
    let picker = portpicker::Picker::new();
    for line in stdin().lines() {
        let mut leases = Vec::new();
        let count: usize = line.unwrap().parse().unwrap();
        let start = Instant::now();
        for _ in 0..count {
            leases.push(picker.lease().unwrap());
        }
        println!("{}", start.elapsed().as_nanos());
    }
}
