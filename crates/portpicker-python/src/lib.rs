//! The extension module `portpicker._portpicker`: the library, converted to Python's terms.
//!
//! Nothing is decided here. The drop-in functions, which need Python's own sockets and sets, are in
//! `python/portpicker/__init__.py`. The comments on what Python sees are what its `help()` shows; the
//! types are in `python/portpicker/_portpicker.pyi`.

#![forbid(unsafe_code)]

use pyo3::prelude::*;

mod convert;
mod errors;
mod hand_off;
mod hold;
mod lease;
mod pick;

/// The Rust core of the package portpicker. Its public classes are those of the package.
// With `gil_used`, because the sets in `__init__.py` rely on the interpreter's lock.
#[pymodule(gil_used = true)]
mod _portpicker {
    #[pymodule_export]
    use crate::errors::{NoFreePortFoundError, PortServerError};
    #[pymodule_export]
    use crate::hand_off::{Entrusted, Supervision, hand_off_means, wait_listening};
    #[pymodule_export]
    use crate::hold::Hold;
    #[pymodule_export]
    use crate::lease::{Lease, is_leased_here, keep, probe, take_lock};
    #[pymodule_export]
    use crate::pick::{environment_has_server, holds, lease_locally, leases, pick_offered_port};

    use pyo3::prelude::*;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
