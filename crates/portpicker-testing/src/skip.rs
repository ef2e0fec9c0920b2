//! Tests that cannot run here: skipped by name, never in silence.

use std::env;
use std::fs::OpenOptions;
use std::io::{self, Write};

/// The environment variable that names a file to which the skipped tests are added.
pub const SKIPPED: &str = "PORTPICKER_SKIPPED";

/// The environment variable that turns a skipped test into a failed one, if it is `1`.
pub const NO_SKIP: &str = "PORTPICKER_NO_SKIP";

/// Says that the test `name` is skipped, and why: on stderr, and in the file in [`SKIPPED`].
///
/// # Panics
///
/// If [`NO_SKIP`] is `1`: everything should run there.
pub fn skip(name: &str, reason: &str) {
    assert!(
        env::var_os(NO_SKIP).is_none_or(|value| value != "1"),
        "`{name}` cannot run here, and {NO_SKIP} is set: {reason}"
    );
    let line = format!("skipped: {name}: {}\n", reason.trim().replace('\n', "; "));
    // In one write each, so that lines of other tests do not mix with it. `eprintln!` would be
    // captured with the output of the test, which passes.
    let _ = io::stderr().write_all(line.as_bytes());
    if let Some(path) = env::var_os(SKIPPED) {
        OpenOptions::new()
            .append(true)
            .create(true)
            .open(&path)
            .and_then(|mut file| file.write_all(line.as_bytes()))
            .unwrap_or_else(|err| panic!("cannot write to {}: {err}", path.display()));
    }
}
