//! What a caller may write for a port, a set of ports, a transport, a time.

use std::net::IpAddr;
use std::time::Duration;

use portpicker::process::Pid;
use portpicker::{Kind, PortSet, Server};
use pyo3::exceptions::{PyOverflowError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyInt, PyString};

/// A port: a whole number from 0 to 65535.
pub(crate) struct Port(pub(crate) u16);

impl<'py> FromPyObject<'_, 'py> for Port {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        // As the socket module has it: OverflowError for a number, TypeError for anything else.
        if !object.is_instance_of::<PyInt>() {
            let kind = object.get_type().name()?;
            return Err(PyTypeError::new_err(format!(
                "a port is an int, not {kind}"
            )));
        }
        match object.extract::<u16>() {
            Ok(port) => Ok(Self(port)),
            Err(_) => Err(PyOverflowError::new_err(format!(
                "a port is a number from 0 to 65535, not {}",
                *object
            ))),
        }
    }
}

/// A set of ports: `"20000-20999,21500"`, a port, or any iterable of ports.
pub(crate) struct Ports(pub(crate) PortSet);

impl<'py> FromPyObject<'_, 'py> for Ports {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        if let Ok(text) = object.cast::<PyString>() {
            let set = text.to_cow()?.parse();
            return set.map(Self).map_err(|err: portpicker::ParsePortSetError| {
                PyValueError::new_err(err.to_string())
            });
        }
        PortSet::from_ports(ports(object)?)
            .map(Self)
            .ok_or_else(|| PyValueError::new_err("an empty set of ports"))
    }
}

/// Ports in an order: a port, or any iterable of ports.
pub(crate) struct PortList(pub(crate) Vec<u16>);

impl<'py> FromPyObject<'_, 'py> for PortList {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        ports(object).map(Self)
    }
}

fn ports(object: Borrowed<'_, '_, PyAny>) -> PyResult<Vec<u16>> {
    if object.is_instance_of::<PyInt>() {
        return Ok(vec![object.extract::<Port>()?.0]);
    }
    object
        .try_iter()?
        .map(|port| Ok(port?.extract::<Port>()?.0))
        .collect()
}

/// How many ports.
pub(crate) struct Count(pub(crate) usize);

impl<'py> FromPyObject<'_, 'py> for Count {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        if !object.is_instance_of::<PyInt>() {
            let kind = object.get_type().name()?;
            return Err(PyTypeError::new_err(format!(
                "a count is an int, not {kind}"
            )));
        }
        match object.extract::<i64>() {
            Ok(count @ 0..=65_535) => Ok(Self(count as usize)),
            _ => Err(PyValueError::new_err(format!(
                "a count of ports is a number from 0 to 65535, not {}",
                *object
            ))),
        }
    }
}

/// A transport: `"tcp"` or `"udp"`.
pub(crate) struct Transport(pub(crate) Kind);

impl<'py> FromPyObject<'_, 'py> for Transport {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        match object.extract::<String>()?.as_str() {
            "tcp" => Ok(Self(Kind::Tcp)),
            "udp" => Ok(Self(Kind::Udp)),
            other => Err(PyValueError::new_err(format!(
                "a transport is 'tcp' or 'udp', not {other:?}"
            ))),
        }
    }
}

/// A local address, such as `"127.0.0.1"` or an object of the module ipaddress.
pub(crate) struct Address(pub(crate) IpAddr);

impl<'py> FromPyObject<'_, 'py> for Address {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        let text = object.str()?;
        let text = text.to_cow()?;
        text.parse()
            .map(Self)
            .map_err(|_| PyValueError::new_err(format!("{text:?} is not an IPv4 or IPv6 address")))
    }
}

/// A time in seconds, as a number; not negative.
pub(crate) struct Seconds(pub(crate) Duration);

impl<'py> FromPyObject<'_, 'py> for Seconds {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        let seconds: f64 = object.extract()?;
        let bad = || {
            PyValueError::new_err(format!(
                "a time is a number of seconds, 0 or more, not {seconds}"
            ))
        };
        if seconds.is_nan() || seconds < 0.0 {
            return Err(bad());
        }
        // As long as one likes: infinity, too.
        Ok(Self(
            Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX),
        ))
    }
}

/// A process: its number.
pub(crate) struct Process(pub(crate) Pid);

impl<'py> FromPyObject<'_, 'py> for Process {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        let number: i64 = object.extract()?;
        u32::try_from(number)
            .ok()
            .and_then(Pid::new)
            .map(Self)
            .ok_or_else(|| {
                PyValueError::new_err(format!(
                    "a process id is a number from 1 to 2147483647, not {number}"
                ))
            })
    }
}

/// Which port server to ask: an address, or `False` for none. `None` and `""` mean the one in
/// `PORTSERVER_ADDRESS`.
pub(crate) struct PortServer(pub(crate) Server);

impl Default for PortServer {
    fn default() -> Self {
        Self(Server::Environment)
    }
}

impl<'py> FromPyObject<'_, 'py> for PortServer {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        if let Ok(answer) = object.cast::<PyBool>() {
            return if answer.is_true() {
                Ok(Self::default())
            } else {
                Ok(Self(Server::None))
            };
        }
        let text: String = object.extract()?;
        if text.is_empty() {
            return Ok(Self::default());
        }
        match text.parse() {
            Ok(address) => Ok(Self(Server::At(address))),
            Err(err) => Err(PyValueError::new_err(format!("{err}"))),
        }
    }
}
