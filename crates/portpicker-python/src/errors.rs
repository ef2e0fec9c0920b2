//! The library's errors as Python's exceptions.

use std::io;

use portpicker::Error;
use pyo3::create_exception;
use pyo3::exceptions::{PyException, PyOSError, PyValueError};
use pyo3::prelude::*;

create_exception!(
    portpicker,
    NoFreePortFoundError,
    PyException,
    "No port could be had. The text says how many candidates there were, and why they failed."
);
create_exception!(
    portpicker,
    PortServerError,
    PyException,
    "A port server that had to be asked could not be reached, or cannot do what it was asked for."
);

/// Returns the text of `err`, with its causes.
pub(crate) fn text_of(err: &dyn std::error::Error) -> String {
    let mut text = err.to_string();
    let mut cause = err.source();
    while let Some(err) = cause {
        text = format!("{text}: {err}");
        cause = err.source();
    }
    if let Some((without, _)) = text.rsplit_once(" (os error ") {
        // Rust's way to give the number, where Python has `errno`.
        text.truncate(without.len());
    }
    text
}

/// Returns the exception for `err`, with its causes in the text.
pub(crate) fn exception(err: Error) -> PyErr {
    let text = text_of(&err);
    match &err {
        Error::Exhausted(_) | Error::TooFewCandidates { .. } | Error::Refused { .. } => {
            NoFreePortFoundError::new_err(text)
        }
        Error::Server { .. }
        | Error::ServerCannot { .. }
        | Error::Declined { .. }
        | Error::OwnerNeedsServer { .. } => PortServerError::new_err(text),
        Error::Socket { source, .. } | Error::Lock { source, .. } | Error::HostPorts { source } => {
            os_error(source, text)
        }
        // What a caller or its environment asked for makes no sense.
        _ => PyValueError::new_err(text),
    }
}

/// Returns an `OSError` with its `errno`, so that Python makes it a `PermissionError` and so on.
pub(crate) fn os_error(source: &io::Error, text: String) -> PyErr {
    match source.raw_os_error() {
        Some(errno) => PyOSError::new_err((errno, text)),
        None => PyOSError::new_err(text),
    }
}
