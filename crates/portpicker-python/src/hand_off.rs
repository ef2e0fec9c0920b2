//! Handing held ports off to a command that Python starts, and waiting until one listens.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use portpicker::hand_off::{self, Preparation, StepDown};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::convert;
use crate::errors::{os_error, text_of};
use crate::hold::Hold;

/// How often a wait looks whether the interpreter was interrupted, as by ^C.
const SIGNAL_INTERVAL: Duration = Duration::from_millis(50);

/// What a command needs to be supervised, from before it is started until it runs.
#[pyclass(frozen, module = "portpicker")]
pub(crate) struct Supervision {
    socket: RawFd,
    prepared: Mutex<Option<(Preparation, OwnedFd)>>,
}

#[pymethods]
impl Supervision {
    #[new]
    fn new() -> PyResult<Self> {
        let (preparation, socket) = Preparation::elsewhere().map_err(failed("socketpair"))?;
        Ok(Self {
            socket: socket.as_raw_fd(),
            prepared: Mutex::new(Some((preparation, socket))),
        })
    }

    /// The descriptor that `portpicker begin` is to inherit.
    fn fileno(&self) -> RawFd {
        self.socket
    }

    /// Carry out the binds of the command, which has been started, on the ports of `holds`.
    ///
    /// If `strict`, a bind that cannot be carried out fails; else the port is let go of.
    fn supervise(&self, py: Python<'_>, holds: Vec<Py<Hold>>, strict: bool) -> PyResult<()> {
        let prepared = self
            .prepared
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Some((preparation, socket)) = prepared else {
            return Err(PyValueError::new_err("it supervises a command already"));
        };
        // The command has its own copy. If it has failed, there must be no other to wait for.
        drop(socket);
        let holds = take(&holds)?;
        py.detach(|| {
            let supervisor = preparation.supervisor(holds)?;
            let supervisor = match strict {
                true => supervisor.strict(),
                false => supervisor,
            };
            supervisor.run_in_background()
        })
        .map_err(failed("supervise the command"))
    }
}

/// Holds in the care of the supervisor that this process is below, until this is collected.
#[pyclass(frozen, module = "portpicker")]
pub(crate) struct Entrusted(Vec<portpicker::Hold>);

#[pymethods]
impl Entrusted {
    #[new]
    fn new(holds: Vec<Py<Hold>>) -> PyResult<Self> {
        let entrusted = Self(take(&holds)?);
        let holders: Vec<_> = entrusted
            .0
            .iter()
            .flat_map(portpicker::Hold::descriptors)
            .collect();
        hand_off::entrust(&holders).map_err(failed("entrust the ports"))?;
        Ok(entrusted)
    }
}

impl Drop for Entrusted {
    fn drop(&mut self) {
        let holders: Vec<_> = self
            .0
            .iter()
            .flat_map(portpicker::Hold::descriptors)
            .collect();
        hand_off::withdraw(&holders);
    }
}

fn take(holds: &[Py<Hold>]) -> PyResult<Vec<portpicker::Hold>> {
    holds.iter().map(|hold| hold.get().take()).collect()
}

/// How a hand-off is possible here, and what keeps it from being better.
///
/// `"supervise"`, `"entrust"` (to the supervisor above), or `"door"`.
#[pyfunction]
pub(crate) fn hand_off_means() -> (&'static str, Option<String>) {
    match Preparation::is_possible() {
        Ok(()) => ("supervise", None),
        Err(StepDown::NoNotification(_)) if hand_off::can_entrust() => ("entrust", None),
        Err(reason @ StepDown::NoCopies(_)) => ("supervise", Some(text_of(&reason))),
        Err(reason) => ("door", Some(text_of(&reason))),
    }
}

/// Wait until something listens on a port, or is bound to it for UDP.
#[pyfunction]
pub(crate) fn wait_listening(
    py: Python<'_>,
    port: &Bound<'_, PyAny>,
    timeout: &Bound<'_, PyAny>,
    transport: &Bound<'_, PyAny>,
) -> PyResult<bool> {
    let port = convert::port(port)?;
    let kind = convert::transport("transport", transport)?;
    let limit = match timeout.is_none() {
        true => Duration::MAX,
        false => convert::seconds("timeout", timeout)?,
    };
    let deadline = Instant::now().checked_add(limit);
    loop {
        let left = deadline.map_or(SIGNAL_INTERVAL, |deadline| {
            deadline
                .saturating_duration_since(Instant::now())
                .min(SIGNAL_INTERVAL)
        });
        let is_listening = py
            .detach(|| portpicker::wait_listening(port, kind, left))
            .map_err(failed("read /proc/net"))?;
        if is_listening || left.is_zero() {
            return Ok(is_listening);
        }
        py.check_signals()?;
    }
}

fn failed(what: &str) -> impl Fn(io::Error) -> PyErr {
    move |err| os_error(&err, format!("cannot {what}: {err}"))
}
