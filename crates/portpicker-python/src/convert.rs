//! What a caller may write for a port, a set of ports, a transport, a time.
//!
//! The errors are those of Python's own functions: `TypeError` for an object of the wrong kind,
//! `OverflowError` for a port out of range, as from `socket.bind`, and `ValueError` for the rest.
//! These are functions and no `FromPyObject`, whose errors PyO3 gives notes that would name the
//! arguments of the extension's own functions.

use std::fmt::Display;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use portpicker::process::Pid;
use portpicker::{Kind, ParsePortSetError, PortSet, Server};
use pyo3::exceptions::{PyOverflowError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyString};

/// Reads a port, as an int or as anything that has an index, such as a lease: from 0 to 65535.
pub(crate) fn port(object: &Bound<'_, PyAny>) -> PyResult<u16> {
    object.extract().or_else(|_| {
        let number = index(object, "a port")?;
        Err(PyOverflowError::new_err(format!(
            "a port must be from 0 to 65535, not {number}"
        )))
    })
}

/// Reads how many ports.
pub(crate) fn count(object: &Bound<'_, PyAny>) -> PyResult<usize> {
    let number = index(object, "count")?;
    match number.extract::<u16>() {
        Ok(count) => Ok(count.into()),
        Err(_) => Err(PyValueError::new_err(format!(
            "count must be from 0 to 65535, not {number}"
        ))),
    }
}

/// Returns `object` as an int of any size, if it is a whole number.
fn index<'py>(object: &Bound<'py, PyAny>, what: impl Display) -> PyResult<Bound<'py, PyAny>> {
    let operator = object.py().import("operator")?;
    operator
        .call_method1("index", (object,))
        .map_err(|err| or_wrong_type(err, what, "an int", object))
}

/// Returns the exception for a conversion that has failed: one of the object's own is passed on, such
/// as `KeyboardInterrupt`.
fn or_wrong_type(err: PyErr, what: impl Display, right: &str, object: &Bound<'_, PyAny>) -> PyErr {
    if err.is_instance_of::<PyTypeError>(object.py()) {
        wrong_type(what, right, object)
    } else {
        err
    }
}

fn wrong_type(what: impl Display, right: &str, object: &Bound<'_, PyAny>) -> PyErr {
    match object.get_type().name() {
        Ok(kind) => PyTypeError::new_err(format!("{what} must be {right}, not {kind}")),
        Err(err) => err,
    }
}

/// Reads a set of ports: `"20000-20999,21500"`, a port, or an iterable of ports. `None` if it is
/// empty.
pub(crate) fn port_set(name: &str, object: &Bound<'_, PyAny>) -> PyResult<Option<PortSet>> {
    if let Ok(text) = object.cast::<PyString>() {
        let set = text.to_cow()?.parse();
        return set
            .map(Some)
            .map_err(|err: ParsePortSetError| bad_value(name, err));
    }
    let right = "a port, an iterable of ports, or a text such as '20000-20999,21500'";
    Ok(PortSet::from_ports(ports(name, right, object)?))
}

/// Reads ports in an order: a port, or an iterable of ports.
pub(crate) fn port_list(name: &str, object: &Bound<'_, PyAny>) -> PyResult<Vec<u16>> {
    ports(name, "a port or an iterable of ports", object)
}

fn ports(name: &str, right: &str, object: &Bound<'_, PyAny>) -> PyResult<Vec<u16>> {
    // They can be iterated over as well, and have letters and not ports.
    let is_text = object.is_instance_of::<PyString>() || object.is_instance_of::<PyBytes>();
    match object.try_iter() {
        // First, because an array of numpy's has `__index__` as well, for a single number.
        Ok(objects) if !is_text => objects
            .map(|object| existing_port(name, &object?))
            .collect(),
        _ if object.hasattr("__index__")? => Ok(vec![existing_port(name, object)?]),
        _ => Err(wrong_type(name, right, object)),
    }
}

/// Reads a port that somebody can have: not 0.
fn existing_port(name: &str, object: &Bound<'_, PyAny>) -> PyResult<u16> {
    let number = index(object, format_args!("{name}: a port"))?;
    match number.extract() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(PyOverflowError::new_err(format!(
            "{name}: a port must be from 1 to 65535, not {number}"
        ))),
    }
}

/// Reads a transport: `"tcp"` or `"udp"`.
pub(crate) fn transport(name: &str, object: &Bound<'_, PyAny>) -> PyResult<Kind> {
    match object.extract::<String>().as_deref() {
        Ok("tcp") => Ok(Kind::Tcp),
        Ok("udp") => Ok(Kind::Udp),
        _ => Err(PyValueError::new_err(format!(
            "{name} must be 'tcp' or 'udp', not {}",
            object.repr()?
        ))),
    }
}

/// Reads a local address, such as `"127.0.0.1"` or an object of the module ipaddress.
pub(crate) fn address(name: &str, object: &Bound<'_, PyAny>) -> PyResult<IpAddr> {
    match object.str()?.to_cow()?.parse() {
        Ok(address) => Ok(address),
        Err(_) => Err(PyValueError::new_err(format!(
            "{name} must be an IPv4 or IPv6 address, not {}",
            object.repr()?
        ))),
    }
}

/// Reads a time: a number of seconds, not negative.
pub(crate) fn seconds(name: &str, object: &Bound<'_, PyAny>) -> PyResult<Duration> {
    let seconds: f64 = object
        .extract()
        .map_err(|err| or_wrong_type(err, name, "a number of seconds", object))?;
    if seconds.is_nan() || seconds < 0.0 {
        return Err(PyValueError::new_err(format!(
            "{name} must be a number of seconds from 0 up, not {object}"
        )));
    }
    // As long as one likes: infinity, too.
    Ok(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
}

/// Reads a process: its number.
pub(crate) fn process(name: &str, object: &Bound<'_, PyAny>) -> PyResult<Pid> {
    let number = index(object, name)?;
    let pid = number.extract().ok().and_then(Pid::new);
    pid.ok_or_else(|| {
        PyValueError::new_err(format!(
            "{name} must be the number of a process, from 1 to 2147483647, not {number}"
        ))
    })
}

/// Reads which port server to ask: an address, or `False` for none. `""` means the one in
/// `PORTSERVER_ADDRESS`.
pub(crate) fn server(name: &str, object: &Bound<'_, PyAny>) -> PyResult<Server> {
    if object.cast::<PyBool>().is_ok_and(|flag| !flag.is_true()) {
        return Ok(Server::None);
    }
    let Ok(path) = object.extract::<PathBuf>() else {
        return Err(wrong_type(name, "a path, '@name', or False", object));
    };
    if path.as_os_str().is_empty() {
        return Ok(Server::Environment);
    }
    let Some(text) = path.to_str() else {
        return Err(bad_value(name, format_args!("{path:?} is not UTF-8")));
    };
    text.parse()
        .map(Server::At)
        .map_err(|err: portpicker::ParseServerAddressError| bad_value(name, err))
}

/// Reads a text for people.
pub(crate) fn text(name: &str, object: &Bound<'_, PyAny>) -> PyResult<String> {
    match object.cast::<PyString>() {
        Ok(text) => Ok(text.to_cow()?.into_owned()),
        Err(_) => Err(wrong_type(name, "a str", object)),
    }
}

fn bad_value(name: &str, err: impl Display) -> PyErr {
    PyValueError::new_err(format!("{name}: {err}"))
}
