//! What the command prints: data on stdout and nothing else, trouble on stderr.

use std::error::Error;
use std::io::{self, Write};

/// Prints an error and its causes, on one line.
pub(crate) fn complain(err: &dyn Error) {
    complain_as("portpicker", err);
}

/// Prints an error and its causes, on one line, in the name of `program`.
pub(crate) fn complain_as(program: &str, err: &dyn Error) {
    say(&format!("{program}: {}\n", chain(err)));
}

/// Prints an error that is none, since there is another way.
pub(crate) fn warn(err: &dyn Error, other_way: &str) {
    say(&format!("portpicker: {}; {other_way}\n", chain(err)));
}

/// Prints what is no trouble, and no data either.
pub(crate) fn note(text: &str) {
    say(&format!("portpicker: {text}\n"));
}

/// Writes a line to stderr: all at once, since the command that we run writes there too.
fn say(line: &str) {
    // Not `eprint!`: it panics when stderr is closed, and there is nobody left to tell.
    _ = io::stderr().write_all(line.as_bytes());
}

/// Writes `text` to stdout, all of it or an error.
pub(crate) fn print(text: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text)?;
    stdout.flush()
}

/// Returns an error and its causes, on one line.
pub(crate) fn chain(err: &dyn Error) -> String {
    let mut text = err.to_string();
    let mut source = err.source();
    while let Some(err) = source {
        text.push_str(": ");
        text.push_str(&err.to_string());
        source = err.source();
    }
    text
}
