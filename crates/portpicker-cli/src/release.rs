//! `portpicker release`: ends leases before their owners exit.

use portpicker::{PortSet, client};

use crate::arguments::ReleaseOptions;
use crate::pick::Failure;
use crate::which_server;

/// Releases what `options` say, all or none.
pub(crate) fn release(options: ReleaseOptions) -> Result<(), Failure> {
    let address = which_server::find(options.server)?;
    let ports = options
        .ports
        .into_iter()
        .reduce(|all, ports| all.union(&ports));
    let ports: Vec<u16> = ports.iter().flat_map(PortSet::iter).collect();
    client::release(&address, &ports, which_server::TIMEOUT).map_err(Failure::Pick)
}
