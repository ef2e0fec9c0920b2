//! A lease as a Python object, and the lock of a port for a moment.

use std::sync::{Mutex, MutexGuard, PoisonError};

use portpicker::Attempts;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use crate::convert;
use crate::errors::exception;

/// A port that no other lease on this host has, until it is released.
///
/// Promise 2, *leased*: the port was unused when it was picked, nobody who picks with portpicker, in
/// whatever language, is given it, and the kernel gives it to nobody by itself. A stranger who binds
/// the number unasked is not kept from it: that takes a Hold. The port is not bound: bind it with any
/// options.
///
/// `lease()` and `leases()` return them. A lease ends at the end of its `with` block, by `release()`,
/// when the object is collected, and with the process, however that ends. A forked child has a copy,
/// and the lease lasts as long as either of them.
///
/// It can stand for its port where Python takes an index: `socket.bind(("127.0.0.1", lease))`.
// Frozen, with a mutex inside: a thread that asks for the port while another one releases the lease
// is right to do so.
#[pyclass(frozen, module = "portpicker")]
pub(crate) struct Lease {
    port: u16,
    server: Option<String>,
    lease: Mutex<Option<portpicker::Lease>>,
}

impl From<portpicker::Lease> for Lease {
    fn from(lease: portpicker::Lease) -> Self {
        Self {
            port: lease.port(),
            server: lease.server().map(ToString::to_string),
            lease: Mutex::new(Some(lease)),
        }
    }
}

impl Lease {
    fn lease(&self) -> MutexGuard<'_, Option<portpicker::Lease>> {
        // It is only looked at and taken, so it is whole even after a panic.
        self.lease.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// There is no `Drop` that lets other threads run meanwhile: when the interpreter shuts down, a
// destructor cannot give up its lock. At worst a server that does not answer takes a second.
#[pymethods]
impl Lease {
    /// The port: a number from 1 to 65535.
    #[getter]
    fn port(&self) -> u16 {
        self.port
    }

    /// The address of the port server that made the lease, or None if none did.
    #[getter]
    fn server(&self) -> Option<&str> {
        self.server.as_deref()
    }

    /// Whether this object's lease has ended.
    #[getter]
    fn released(&self) -> bool {
        self.lease().is_none()
    }

    /// End the lease now, so that the port may be leased by others.
    ///
    /// Close the sockets that are bound to the port first. Nothing happens if the lease has ended
    /// already. A port server that cannot take a port back keeps it for this process, whose next
    /// `pick_unused_port()` picks it.
    fn release(&self, py: Python<'_>) {
        let lease = self.lease().take();
        if lease.is_some() {
            // A server may have to be told.
            py.detach(|| drop(lease));
        }
    }

    fn __enter__(slf: PyRef<'_, Self>) -> PyResult<PyRef<'_, Self>> {
        if slf.released() {
            return Err(released("lease", slf.port));
        }
        Ok(slf)
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, py: Python<'_>, _exception: &Bound<'_, PyTuple>) {
        self.release(py);
    }

    fn __index__(&self) -> u16 {
        self.port
    }

    fn __str__(&self) -> String {
        self.port.to_string()
    }

    fn __repr__(&self) -> String {
        let state = if self.released() { ", released" } else { "" };
        format!("<portpicker.Lease of port {}{state}>", self.port)
    }

    fn __reduce__(&self) -> PyResult<()> {
        Err(belongs_to_process("lease", self.port))
    }
}

/// The exception for the use of something that has ended.
pub(crate) fn released(what: &str, port: u16) -> PyErr {
    PyValueError::new_err(format!("the {what} of port {port} has been released"))
}

/// The exception for an attempt to copy or pickle what is a descriptor of this process.
pub(crate) fn belongs_to_process(what: &str, port: u16) -> PyErr {
    PyTypeError::new_err(format!(
        "a {what} belongs to the process that made it and cannot be copied or pickled: pass on \
         its port, {port}"
    ))
}

/// Keep a lease for the life of this process, whatever becomes of the object.
#[pyfunction]
pub(crate) fn keep(lease: &Bound<'_, Lease>) {
    if let Some(lease) = lease.get().lease().take() {
        lease.into_port();
    }
}

/// Take the lock of a port, used or not; None if somebody has it.
#[pyfunction]
pub(crate) fn take_lock(port: &Bound<'_, PyAny>) -> PyResult<Option<Lease>> {
    match Attempts::new().adopt(convert::port(port)?) {
        Ok(lease) => Ok(lease.map(Lease::from)),
        Err(err) => Err(exception(err)),
    }
}

/// Tell whether this process has leased or holds a port, or shares its parent's lease of it.
#[pyfunction]
pub(crate) fn is_leased_here(port: &Bound<'_, PyAny>) -> PyResult<bool> {
    convert::port(port).map(portpicker::is_leased_here)
}

/// Tell whether a port is unused, whoever has leased it.
#[pyfunction]
pub(crate) fn probe(port: &Bound<'_, PyAny>) -> PyResult<bool> {
    portpicker::probe_port(convert::port(port)?).map_err(exception)
}
