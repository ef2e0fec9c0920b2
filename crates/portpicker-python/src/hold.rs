//! A hold as a Python object, which gives Python's own sockets.

use std::io::ErrorKind;
use std::os::fd::{AsRawFd, IntoRawFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use portpicker::Error;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{IntoPyDict, PyDict, PyList, PyTuple};

use crate::errors::exception;
use crate::lease::{Lease, belongs_to_process, released};

/// A port that nobody else can bind, until it is let go of.
///
/// Promise 3, *held*: a lease (see Lease) whose TCP and UDP sockets are bound and do not listen. The
/// kernel refuses the port to every other bind on every address, with whatever options. A connection
/// attempt is refused, as on an unused port.
///
/// `hold()` and `holds()` return them. A hold ends in one of these ways:
///
/// - Its own sockets become the server: `listen()`, `take_tcp()`, `take_udp()`. The port is never free
///   in between. The sockets are the caller's from then on, and outlive the hold.
/// - A server in this process or another binds the port beside it: `open_door()`.
/// - A command gets it, which binds the port itself: `popen()`.
/// - It is let go of: `into_lease()`, `release()`, the end of its `with` block, when the object is
///   collected, and with the process.
#[pyclass(frozen, module = "portpicker")]
pub(crate) struct Hold {
    port: u16,
    // As for a lease: other threads may ask while one is at it.
    hold: Mutex<Option<portpicker::Hold>>,
}

impl From<portpicker::Hold> for Hold {
    fn from(hold: portpicker::Hold) -> Self {
        Self {
            port: hold.port(),
            hold: Mutex::new(Some(hold)),
        }
    }
}

impl Hold {
    fn hold(&self) -> MutexGuard<'_, Option<portpicker::Hold>> {
        self.hold.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, act: impl FnOnce(&mut portpicker::Hold) -> PyResult<T>) -> PyResult<T> {
        match &mut *self.hold() {
            Some(hold) => act(hold),
            None => Err(released("hold", self.port)),
        }
    }

    /// Takes the hold out of its object, which is as if it were released then.
    pub(crate) fn take(&self) -> PyResult<portpicker::Hold> {
        let hold = self.hold().take();
        hold.ok_or_else(|| released("hold", self.port))
    }

    /// The exception for a socket that is not there: the hold was made for the other transport, or
    /// the socket was taken before.
    fn has_no(&self, transport: &str) -> PyErr {
        PyValueError::new_err(format!(
            "the hold of port {} has no {transport} socket (any more)",
            self.port
        ))
    }
}

#[pymethods]
impl Hold {
    /// The port: a number from 1 to 65535.
    #[getter]
    fn port(&self) -> u16 {
        self.port
    }

    /// Whether this object's hold has ended.
    #[getter]
    fn released(&self) -> bool {
        self.hold().is_none()
    }

    /// Return the TCP socket as a `socket.socket` that listens, for example for asyncio's `sock=`.
    ///
    /// It accepts connections to all addresses that the hold was made for: by default to those of
    /// IPv4 and IPv6. `backlog` is how many connections may wait to be accepted. The rest of the hold
    /// goes on.
    ///
    /// Raises ValueError if the hold was released or has no TCP socket (any more), and OSError if
    /// listen(2) fails.
    #[pyo3(signature = (backlog = 128))]
    fn listen<'py>(&self, py: Python<'py>, backlog: i32) -> PyResult<Bound<'py, PyAny>> {
        let tcp = self.with(|hold| {
            hold.listen(backlog).map_err(|err| match err {
                Error::Socket { source, .. } if source.kind() == ErrorKind::NotFound => {
                    self.has_no("TCP")
                }
                err => exception(err),
            })
        })?;
        socket(py, tcp)
    }

    /// Return the TCP socket as a `socket.socket`: bound, without options, and not listening.
    ///
    /// Raises ValueError if the hold was released or has no TCP socket (any more).
    fn take_tcp<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let tcp = self.with(|hold| hold.take_tcp().ok_or_else(|| self.has_no("TCP")))?;
        socket(py, tcp)
    }

    /// Return the UDP socket as a `socket.socket`, ready to receive.
    ///
    /// Datagrams that were sent to the port while it was held wait in it.
    ///
    /// Raises ValueError if the hold was released or has no UDP socket (any more).
    fn take_udp<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let udp = self.with(|hold| hold.take_udp().ok_or_else(|| self.has_no("UDP")))?;
        socket(py, udp)
    }

    /// Let servers that set SO_REUSEADDR bind the port and listen, while the hold goes on.
    ///
    /// Most servers set it on TCP: asyncio, http.server, and those of Rust, Go, Node, and Java.
    /// socketserver does not, unless its `allow_reuse_address` says so. The first to listen has the
    /// port. For UDP the port is leased only, and not held, until the door is shut.
    ///
    /// Raises ValueError if the hold was released, and OSError if the system fails.
    fn open_door(&self) -> PyResult<()> {
        self.with(|hold| hold.open_door().map_err(exception))
    }

    /// Let nobody in any more. A server that listens goes on listening.
    ///
    /// Shut the door when the server listens: one that has only bound cannot listen any more. The UDP
    /// port is held again unless somebody has bound it.
    ///
    /// Raises ValueError if the hold was released, and OSError if the system fails.
    fn shut_door(&self) -> PyResult<()> {
        self.with(|hold| hold.shut_door().map_err(exception))
    }

    /// Start a command that binds the port, and return its `subprocess.Popen`.
    ///
    /// See `portpicker.popen`. The hold is the command's from then on: it lasts until the last of its
    /// processes has ended, and this object is as if it were released.
    #[pyo3(signature = (args, **options))]
    fn popen<'py>(
        slf: Bound<'py, Self>,
        args: Bound<'py, PyAny>,
        options: Option<Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        let hand_off = py.import("portpicker._hand_off")?;
        let holds = PyList::new(py, [slf])?;
        hand_off
            .getattr("popen")?
            .call((args, holds), options.as_ref())
    }

    /// Return a lease of the port, which is then no longer held: bind it with any options.
    ///
    /// Raises ValueError if the hold was released.
    #[expect(
        clippy::wrong_self_convention,
        reason = "Python cannot give up an object"
    )]
    fn into_lease(&self) -> PyResult<Lease> {
        Ok(self.take()?.into_lease().into())
    }

    /// End the hold and its lease now, so that the port may be leased by others.
    ///
    /// Nothing happens if the hold has ended already.
    fn release(&self, py: Python<'_>) {
        let hold = self.hold().take();
        if hold.is_some() {
            // A server may have to be told.
            py.detach(|| drop(hold));
        }
    }

    fn __enter__(slf: PyRef<'_, Self>) -> PyResult<PyRef<'_, Self>> {
        if slf.released() {
            return Err(released("hold", slf.port));
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
        format!("<portpicker.Hold of port {}{state}>", self.port)
    }

    fn __reduce__(&self) -> PyResult<()> {
        Err(belongs_to_process("hold", self.port))
    }
}

/// Returns a socket as a `socket.socket`, which owns it from then on.
fn socket(py: Python<'_>, owned: impl AsRawFd + IntoRawFd) -> PyResult<Bound<'_, PyAny>> {
    let arguments = [("fileno", owned.as_raw_fd())].into_py_dict(py)?;
    let socket = py.import("socket")?.getattr("socket")?;
    let socket = socket.call((), Some(&arguments))?;
    // Only now: if there is no Python object, the socket is closed here.
    _ = owned.into_raw_fd();
    Ok(socket)
}
