//! The extension module `portpicker._portpicker`: the library, converted to Python's terms.
//!
//! Nothing is decided here. What a caller sees is documented in `python/portpicker/_portpicker.pyi`;
//! the drop-in functions, which need Python's own sockets and sets, are in
//! `python/portpicker/__init__.py`.

#![forbid(unsafe_code)]

use pyo3::prelude::*;

mod convert;
mod errors;
mod hold;
mod lease;
mod pick;

/// The Rust core of the package `portpicker`.
#[pymodule]
mod _portpicker {
    #[pymodule_export]
    use crate::errors::{NoFreePortFoundError, PortServerError};
    #[pymodule_export]
    use crate::hold::Hold;
    #[pymodule_export]
    use crate::lease::{Lease, probe, take_lock};
    #[pymodule_export]
    use crate::pick::{holds, lease_locally, leases};

    use pyo3::prelude::*;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
