//! The corpus of a fuzz target, in `fuzz/corpus`, as a test that is the same each time.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// How many mutations are tried.
const MUTATIONS: usize = 20_000;

/// Runs `target` on each file of the corpus `name`, on all their beginnings, and on mutations of them.
///
/// # Panics
///
/// If `target` does. The bytes that it panics for are in the message: put them into a file of the
/// corpus.
pub fn run(name: &str, target: impl Fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus");
    let files = fs::read_dir(folder.join(name)).expect("the target has a corpus");
    let mut paths: Vec<_> = files
        .map(|file| file.expect("the folder can be read").path())
        .collect();
    paths.sort();
    let seeds: Vec<Vec<u8>> = paths
        .iter()
        .map(|path| fs::read(path).expect("a file of the corpus can be read"))
        .collect();
    assert!(seeds.len() > 3, "the corpus `{name}` is a folder of files");

    let run = |bytes: &[u8]| {
        if catch_unwind(AssertUnwindSafe(|| target(bytes))).is_err() {
            panic!("`{name}` fails for `{}`", bytes.escape_ascii());
        }
    };
    for seed in &seeds {
        for length in 0..=seed.len() {
            run(&seed[..length]);
        }
    }
    let mut state = 1_u64;
    let mut random = move |end: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 33) as usize % end.max(1)
    };
    for _ in 0..MUTATIONS {
        let mut bytes = seeds[random(seeds.len())].clone();
        for _ in 0..=random(4) {
            let at = random(bytes.len() + 1);
            match random(4) {
                0 => bytes.insert(at, random(256) as u8),
                1 => bytes.truncate(at),
                2 => {
                    let other = &seeds[random(seeds.len())];
                    let from = random(other.len() + 1);
                    bytes.truncate(at);
                    bytes.extend(&other[from..]);
                }
                _ if at < bytes.len() => bytes[at] = random(256) as u8,
                _ => {}
            }
        }
        run(&bytes);
    }
}
