//! The server's log: for people with the time, for journald with the priority.

use std::env;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;
use std::sync::Arc;

use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;

/// Opens a file to log to.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

/// Which events are logged.
pub(crate) fn filter(verbose: bool, debug: bool) -> Targets {
    match (debug, verbose) {
        (true, _) => Targets::new().with_default(LevelFilter::TRACE),
        // As in portserver.py: of the server's own, not of the libraries below it.
        (false, true) => Targets::new()
            .with_default(LevelFilter::INFO)
            .with_targets([
                ("portserver", Level::DEBUG),
                ("portpicker_cli", Level::DEBUG),
            ]),
        (false, false) => Targets::new().with_default(LevelFilter::INFO),
    }
}

/// Only what goes wrong.
pub(crate) fn only_trouble() -> Targets {
    Targets::new().with_default(LevelFilter::WARN)
}

/// Logs to `file` from now on, or to stderr.
pub(crate) fn start(file: Option<File>, filter: Targets) {
    let layer = tracing_subscriber::fmt::layer()
        // It would complain to stderr that it cannot write to stderr, and panic if it cannot.
        .log_internal_errors(false)
        .with_ansi(false);
    let registry = tracing_subscriber::registry().with(filter);
    // It fails if something else in the process logs already, a test for example: fine too.
    _ = match file {
        Some(file) => tracing::subscriber::set_global_default(
            registry.with(
                layer
                    .event_format(Format::People)
                    .with_writer(Arc::new(file)),
            ),
        ),
        None => tracing::subscriber::set_global_default(
            registry.with(
                layer
                    .event_format(Format::of_stderr())
                    .with_writer(io::stderr),
            ),
        ),
    };
}

/// Tells whether stderr leads to journald.
pub(crate) fn is_journal() -> bool {
    let Ok(expected) = env::var("JOURNAL_STREAM") else {
        return false;
    };
    rustix::fs::fstat(rustix::stdio::stderr())
        .is_ok_and(|stat| format!("{}:{}", stat.st_dev, stat.st_ino) == expected)
}

/// How a line looks.
#[derive(Clone, Copy, Debug)]
enum Format {
    People,
    /// A priority of syslog(3) instead of the time, which journald knows.
    Journal,
}

impl Format {
    fn of_stderr() -> Self {
        match is_journal() {
            true => Self::Journal,
            false => Self::People,
        }
    }
}

impl<S, N> FormatEvent<S, N> for Format
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let level = event.metadata().level();
        match self {
            Self::People => {
                SystemTime.format_time(&mut writer)?;
                write!(writer, " {level} ")?;
            }
            Self::Journal => write!(writer, "<{}>", priority(*level))?,
        }
        let mut text = String::new();
        context.format_fields(Writer::new(&mut text), event)?;
        // One line each, whatever a path or a system's message has in it.
        for character in text.chars() {
            match character.is_control() {
                true => write!(writer, "{}", character.escape_default())?,
                false => writer.write_char(character)?,
            }
        }
        writeln!(writer)
    }
}

fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}
