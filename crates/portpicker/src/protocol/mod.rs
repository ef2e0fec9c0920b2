//! What crosses the socket between a port server and its clients: texts, and no I/O.
//!
//! Nothing here panics, whatever the bytes. `docs/protocol.md` has both protocols in full.

pub(crate) mod extended;
pub(crate) mod original;

use std::fmt;

/// The most bytes of an answer that a message shows.
const MAX_SHOWN: usize = 32;

/// An answer that is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BadAnswer {
    /// Its beginning, safe to print.
    text: String,
    reason: String,
}

impl BadAnswer {
    pub(crate) fn new(line: &[u8], reason: impl Into<String>) -> Self {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let shown = &line[..line.len().min(MAX_SHOWN)];
        Self {
            // Between backticks, quotes need not be escaped.
            text: shown.escape_ascii().to_string().replace("\\\"", "\""),
            reason: reason.into(),
        }
    }

    /// For a line that ended before its newline.
    fn cut_off(line: &[u8]) -> Self {
        Self::new(line, "which breaks off")
    }
}

impl fmt::Display for BadAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "it answered `{}`, {}", self.text, self.reason)
    }
}

impl std::error::Error for BadAnswer {}

/// Returns `text` without what a terminal would obey: as it came, but for control characters.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}
