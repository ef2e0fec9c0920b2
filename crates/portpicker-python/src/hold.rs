//! A hold as a Python object, which gives Python's own sockets.

use std::os::fd::IntoRawFd;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyAny;

use crate::errors::exception;

/// A port that nobody else can bind.
#[pyclass(module = "portpicker")]
pub(crate) struct Hold {
    port: u16,
    hold: Option<portpicker::Hold>,
}

impl From<portpicker::Hold> for Hold {
    fn from(hold: portpicker::Hold) -> Self {
        Self {
            port: hold.port(),
            hold: Some(hold),
        }
    }
}

impl Hold {
    fn held(&mut self) -> PyResult<&mut portpicker::Hold> {
        let port = self.port;
        self.hold.as_mut().ok_or_else(|| {
            PyValueError::new_err(format!("the hold of port {port} has been released"))
        })
    }
}

#[pymethods]
impl Hold {
    #[getter]
    fn port(&self) -> u16 {
        self.port
    }

    #[getter]
    fn released(&self) -> bool {
        self.hold.is_none()
    }

    #[pyo3(signature = (backlog = 128))]
    fn listen<'py>(&mut self, py: Python<'py>, backlog: i32) -> PyResult<Bound<'py, PyAny>> {
        let listener = self.held()?.listen(backlog).map_err(exception)?;
        socket(py, listener)
    }

    fn take_tcp<'py>(&mut self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let port = self.port;
        let tcp = self.held()?.take_tcp().ok_or_else(|| gone("TCP", port))?;
        socket(py, tcp)
    }

    fn take_udp<'py>(&mut self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let port = self.port;
        let udp = self.held()?.take_udp().ok_or_else(|| gone("UDP", port))?;
        socket(py, udp)
    }

    fn open_door(&mut self) -> PyResult<()> {
        self.held()?.open_door().map_err(exception)
    }

    fn shut_door(&mut self) -> PyResult<()> {
        self.held()?.shut_door().map_err(exception)
    }

    #[expect(
        clippy::wrong_self_convention,
        reason = "Python cannot give up an object"
    )]
    fn into_lease(&mut self) -> PyResult<crate::lease::Lease> {
        self.held()?;
        let hold = self.hold.take().expect("it was there just now");
        Ok(hold.into_lease().into())
    }

    fn release(&mut self, py: Python<'_>) {
        if let Some(hold) = self.hold.take() {
            // A server may have to be told.
            py.detach(|| drop(hold));
        }
    }

    fn __enter__(mut slf: PyRefMut<'_, Self>) -> PyResult<PyRefMut<'_, Self>> {
        slf.held()?;
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
        format!("<portpicker.Hold {}{state}>", self.port)
    }
}

/// Returns `descriptor` as a `socket.socket`.
fn socket(py: Python<'_>, descriptor: impl IntoRawFd) -> PyResult<Bound<'_, PyAny>> {
    let arguments = [("fileno", descriptor.into_raw_fd())];
    let arguments = pyo3::types::IntoPyDict::into_py_dict(arguments, py)?;
    py.import("socket")?
        .getattr("socket")?
        .call((), Some(&arguments))
}

fn gone(transport: &str, port: u16) -> PyErr {
    PyValueError::new_err(format!(
        "the hold of port {port} has no {transport} socket (any more)"
    ))
}
