//! Picking: Python's keyword arguments as a `Picker`.

use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::thread;
use std::time::Duration;

use portpicker::{Picker, Server, ServerAddress};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};

use crate::convert;
use crate::errors::exception;
use crate::hold::Hold;
use crate::lease::Lease;

/// How often a pick that waits looks whether the interpreter was interrupted, as by ^C.
const SIGNAL_INTERVAL: Duration = Duration::from_millis(50);

/// A pick, from a dictionary of options, in which `None` stands for the default.
struct Options {
    picker: Picker,
    /// Whether the pick may take longer than the walk over its candidates.
    may_wait: bool,
}

impl Options {
    fn read(options: &Bound<'_, PyDict>) -> PyResult<Self> {
        let mut picker = Picker::new();
        let mut wait = Duration::ZERO;
        let mut server = Server::Environment;
        for (key, value) in options {
            let key = key.cast::<PyString>()?.to_cow()?;
            let name = &*key;
            if value.is_none() && NAMES.contains(&name) {
                continue;
            }
            picker = match name {
                "pid" => picker.owner(convert::process(name, &value)?),
                "portserver_address" => {
                    server = convert::server(name, &value)?;
                    picker
                }
                "ports" => match convert::port_set(name, &value)? {
                    Some(ports) => picker.ports(ports),
                    None => return Err(PyValueError::new_err("ports must not be empty")),
                },
                "exclude" => match convert::port_set(name, &value)? {
                    Some(ports) => picker.exclude(ports),
                    None => picker,
                },
                "prefer" => picker.prefer(convert::port_list(name, &value)?),
                "transport" => picker.only(convert::transport(name, &value)?),
                "address" => picker.address(convert::address(name, &value)?),
                "wait" => {
                    wait = convert::seconds(name, &value)?;
                    picker
                }
                "server_timeout" => picker.server_timeout(convert::seconds(name, &value)?),
                "tag" => picker.tag(convert::text(name, &value)?),
                _ => {
                    return Err(PyTypeError::new_err(format!(
                        "'{name}' is not an option, but these are: {}",
                        NAMES.join(", ")
                    )));
                }
            };
        }
        let asks_server = match server {
            Server::None => false,
            Server::Environment => environment_has_server(),
            _ => true,
        };
        Ok(Self {
            picker: picker.wait(wait).server(server),
            may_wait: asks_server || !wait.is_zero(),
        })
    }
}

const NAMES: [&str; 10] = [
    "pid",
    "portserver_address",
    "ports",
    "exclude",
    "prefer",
    "transport",
    "address",
    "wait",
    "server_timeout",
    "tag",
];

/// Lease a port without options and without a server.
#[pyfunction]
pub(crate) fn lease_locally() -> PyResult<Lease> {
    // With the interpreter's lock: a pick takes microseconds, another thread's turn milliseconds. Only
    // when every candidate is leased it takes as long as that, too, and raises an exception.
    match Picker::new().server(Server::None).lease() {
        Ok(lease) => Ok(lease.into()),
        Err(err) => Err(exception(err)),
    }
}

/// Lease a port that a server granted to this process and cannot take back; None if there is none.
#[pyfunction]
pub(crate) fn pick_offered_port() -> PyResult<Option<u16>> {
    portpicker::pick_offered_port().map_err(exception)
}

/// Tell whether the process's environment names a port server.
#[pyfunction]
pub(crate) fn environment_has_server() -> bool {
    !matches!(ServerAddress::from_environment(), Ok(None))
}

/// Lease several ports, neighbours or not: all or none.
#[pyfunction]
pub(crate) fn leases(
    py: Python<'_>,
    count: &Bound<'_, PyAny>,
    contiguous: bool,
    options: &Bound<'_, PyDict>,
) -> PyResult<Vec<Lease>> {
    let (count, options) = (convert::count(count)?, Options::read(options)?);
    let leases = pick(py, options, move |picker| {
        if contiguous {
            picker.lease_block(count)
        } else {
            picker.leases(count)
        }
    })?;
    Ok(leases.into_iter().map(Lease::from).collect())
}

/// Hold several ports, neighbours or not: all or none.
#[pyfunction]
pub(crate) fn holds(
    py: Python<'_>,
    count: &Bound<'_, PyAny>,
    contiguous: bool,
    options: &Bound<'_, PyDict>,
) -> PyResult<Vec<Hold>> {
    let (count, options) = (convert::count(count)?, Options::read(options)?);
    let holds = pick(py, options, move |picker| {
        if contiguous {
            picker.hold_block(count)
        } else {
            picker.holds(count)
        }
    })?;
    Ok(holds.into_iter().map(Hold::from).collect())
}

/// Picks without the interpreter's lock.
fn pick<T: Send + 'static>(
    py: Python<'_>,
    Options { picker, may_wait }: Options,
    pick: impl FnOnce(&Picker) -> portpicker::Result<Vec<T>> + Send + 'static,
) -> PyResult<Vec<T>> {
    if may_wait {
        interruptibly(py, picker, pick)
    } else {
        // A thread would cost four times as much as the pick.
        py.detach(|| pick(&picker)).map_err(exception)
    }
}

/// Picks in a thread of its own, and gives up when a signal's handler raises.
///
/// Blocking calls of the library go on after a signal. Given up, the thread ends at its next look,
/// or with the answer of a server; what it has picked is given back.
fn interruptibly<T: Send + 'static>(
    py: Python<'_>,
    picker: Picker,
    pick: impl FnOnce(&Picker) -> portpicker::Result<Vec<T>> + Send + 'static,
) -> PyResult<Vec<T>> {
    let stop = Arc::new(AtomicBool::new(false));
    let picker = picker.stop_waiting_if(Arc::clone(&stop));
    let (sender, mut receiver) = sync_channel(1);
    let picking = thread::Builder::new()
        .name("portpicker".to_owned())
        .spawn(move || {
            // If nobody receives it, the ports are given back here.
            _ = sender.send(pick(&picker));
        })?;
    loop {
        let received;
        (received, receiver) =
            py.detach(move || (receiver.recv_timeout(SIGNAL_INTERVAL), receiver));
        match received {
            Ok(picked) => return picked.map_err(exception),
            Err(RecvTimeoutError::Timeout) => {
                if let Err(raised) = py.check_signals() {
                    stop.store(true, Ordering::Relaxed);
                    return Err(raised);
                }
            }
            Err(RecvTimeoutError::Disconnected) => match picking.join() {
                Ok(()) => unreachable!("the thread sends before it ends"),
                Err(panic) => resume_unwind(panic),
            },
        }
    }
}
