//! A lease as a Python object, and the lock of a port for a moment.

use portpicker::Attempts;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::convert::Port;
use crate::errors::exception;

/// A port that is leased to this process.
#[pyclass(module = "portpicker")]
pub(crate) struct Lease {
    port: u16,
    lease: Option<portpicker::Lease>,
}

impl From<portpicker::Lease> for Lease {
    fn from(lease: portpicker::Lease) -> Self {
        Self {
            port: lease.port(),
            lease: Some(lease),
        }
    }
}

#[pymethods]
impl Lease {
    #[getter]
    fn port(&self) -> u16 {
        self.port
    }

    #[getter]
    fn server(&self) -> Option<String> {
        Some(self.lease.as_ref()?.server()?.to_string())
    }

    #[getter]
    fn released(&self) -> bool {
        self.lease.is_none()
    }

    fn release(&mut self, py: Python<'_>) {
        if let Some(lease) = self.lease.take() {
            // A server may have to be told.
            py.detach(|| drop(lease));
        }
    }

    fn __enter__(slf: PyRef<'_, Self>) -> PyResult<PyRef<'_, Self>> {
        if slf.released() {
            return Err(PyValueError::new_err(format!(
                "the lease of port {} has been released",
                slf.port
            )));
        }
        Ok(slf)
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&mut self, py: Python<'_>, _exception: &Bound<'_, PyAny>) {
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
        format!("<portpicker.Lease {}{state}>", self.port)
    }
}

/// Takes the lock of a port, used or not; `None` if somebody has it.
#[pyfunction]
pub(crate) fn take_lock(port: Port) -> PyResult<Option<Lease>> {
    match Attempts::new().adopt(port.0) {
        Ok(lease) => Ok(lease.map(Lease::from)),
        Err(err) => Err(exception(err)),
    }
}

/// Tells whether a port is unused, whoever has leased it.
#[pyfunction]
pub(crate) fn probe(port: Port) -> PyResult<bool> {
    portpicker::probe_port(port.0).map_err(exception)
}
