//! Picking: Python's keyword arguments as a `Picker`.

use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::thread;
use std::time::Duration;

use portpicker::{Picker, Server};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};

use crate::convert::{Address, Count, PortList, PortServer, Ports, Process, Seconds, Transport};
use crate::errors::exception;
use crate::hold::Hold;
use crate::lease::Lease;

/// How often a pick that waits looks whether the interpreter was interrupted, as by ^C.
const SIGNAL_INTERVAL: Duration = Duration::from_millis(50);

/// A picker, from a dictionary of options. `None` leaves an option at its default.
#[derive(Debug)]
pub(crate) struct Options(Picker);

impl<'py> FromPyObject<'_, 'py> for Options {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        let mut picker = Picker::new();
        for (name, value) in object.cast::<PyDict>()?.iter() {
            if value.is_none() {
                continue;
            }
            picker = match &*name.cast::<PyString>()?.to_cow()? {
                "pid" => picker.owner(value.extract::<Process>()?.0),
                "portserver_address" => picker.server(value.extract::<PortServer>()?.0),
                "ports" => picker.ports(value.extract::<Ports>()?.0),
                "exclude" => picker.exclude(value.extract::<Ports>()?.0),
                "prefer" => picker.prefer(value.extract::<PortList>()?.0),
                "transport" => picker.only(value.extract::<Transport>()?.0),
                "address" => picker.address(value.extract::<Address>()?.0),
                "wait" => picker.wait(value.extract::<Seconds>()?.0),
                "server_timeout" => picker.server_timeout(value.extract::<Seconds>()?.0),
                "tag" => picker.tag(value.extract::<String>()?),
                other => {
                    return Err(PyTypeError::new_err(format!(
                        "there is no option {other:?}"
                    )));
                }
            };
        }
        Ok(Self(picker))
    }
}

/// Leases a port without options and without a server.
#[pyfunction]
pub(crate) fn lease_locally() -> PyResult<Lease> {
    // With the interpreter's lock: a pick takes microseconds, another thread's turn milliseconds.
    match Picker::new().server(Server::None).lease() {
        Ok(lease) => Ok(lease.into()),
        Err(err) => Err(exception(err)),
    }
}

/// Leases `count` ports, neighbours or not: all or none.
#[pyfunction]
pub(crate) fn leases(
    py: Python<'_>,
    count: Count,
    contiguous: bool,
    options: Options,
) -> PyResult<Vec<Lease>> {
    let leases = interruptibly(py, move || {
        if contiguous {
            options.0.lease_block(count.0)
        } else {
            options.0.leases(count.0)
        }
    })?;
    Ok(leases.into_iter().map(Lease::from).collect())
}

/// Holds `count` ports, neighbours or not: all or none.
#[pyfunction]
pub(crate) fn holds(
    py: Python<'_>,
    count: Count,
    contiguous: bool,
    options: Options,
) -> PyResult<Vec<Hold>> {
    let holds = interruptibly(py, move || {
        if contiguous {
            options.0.hold_block(count.0)
        } else {
            options.0.holds(count.0)
        }
    })?;
    Ok(holds.into_iter().map(Hold::from).collect())
}

/// Picks without the interpreter's lock, and gives up when a signal's handler raises.
///
/// The pick goes on in a thread of its own then, until its own deadline; what it picks is given
/// back. Nothing in the library could be told to stop, and most picks are done in microseconds.
fn interruptibly<T: Send + 'static>(
    py: Python<'_>,
    pick: impl FnOnce() -> portpicker::Result<Vec<T>> + Send + 'static,
) -> PyResult<Vec<T>> {
    let (sender, receiver) = sync_channel(1);
    let picking = thread::Builder::new()
        .name("portpicker".to_owned())
        .spawn(move || {
            // If nobody receives it, the ports are given back here.
            _ = sender.send(pick());
        })?;
    let receiver = std::sync::Mutex::new(receiver);
    loop {
        let received = py.detach(|| {
            let receiver = receiver.lock().expect("no other thread has it");
            receiver.recv_timeout(SIGNAL_INTERVAL)
        });
        match received {
            Ok(picked) => return picked.map_err(exception),
            Err(RecvTimeoutError::Timeout) => py.check_signals()?,
            Err(RecvTimeoutError::Disconnected) => {
                drop(picking.join());
                unreachable!("the thread sends before it ends");
            }
        }
    }
}
