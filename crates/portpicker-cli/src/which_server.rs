//! Which port server `status` and `release` talk to.

use std::time::Duration;

use portpicker::ServerAddress;

use crate::pick::Failure;

/// How long the server may take. It answers at once, unless it hangs.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(10);

/// Returns the server that was named on the command line, or else in the environment.
pub(crate) fn find(named: Option<ServerAddress>) -> Result<ServerAddress, Failure> {
    match named {
        Some(address) => Ok(address),
        None => ServerAddress::from_environment()
            .map_err(Failure::Pick)?
            .ok_or(Failure::NoServer),
    }
}
