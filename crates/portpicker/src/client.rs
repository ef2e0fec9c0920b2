//! What a port server can be asked besides for ports: who has which, and to give one back.
//!
//! Only servers that speak the extended protocol can, such as this project's. Ports come from a
//! [`Picker`](crate::Picker) or from [`request_port`](crate::request_port).

use std::time::Duration;

use crate::error::{Error, Result};
use crate::exchange::{Spoken, ask};
use crate::process::Pid;
use crate::protocol::extended;
use crate::server_address::ServerAddress;

/// A lease, as a port server lists it.
///
/// The texts come from whoever made the lease, and may contain anything: mind control characters
/// before you print them.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ListedLease {
    /// The port.
    pub port: u16,
    /// The process that owns it, as the server sees processes; `None` if a connection owns it.
    pub owner: Option<Pid>,
    /// The id of the user that the lease counts for.
    pub uid: u32,
    /// The name of the owner's program.
    pub command: Option<String>,
    /// How long ago the lease was made.
    pub age: Duration,
    /// How soon it ends unless it is renewed; `None` if it ends with its owner only.
    pub expires: Option<Duration>,
    /// What the port is called among those that were leased with it.
    pub name: Option<String>,
    /// What the lease is for: see [`Picker::tag`](crate::Picker::tag).
    pub tag: Option<String>,
}

/// Returns the leases of the port server at `address`, ascending by port.
///
/// `timeout` bounds the whole exchange.
///
/// # Errors
///
/// - [`Error::ServerCannot`] if the server speaks only the original protocol.
/// - [`Error::Declined`] if it says that it failed.
/// - [`Error::Server`] if nothing listens there, the time is over, or the answer is not a list.
///
/// # Example
///
/// ```no_run
/// use std::time::Duration;
/// use portpicker::client;
///
/// let server = "@unittest-portserver".parse()?;
/// for lease in client::list(&server, Duration::from_secs(10))? {
///     println!("{} {:?}", lease.port, lease.tag);
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # References
///
/// - `docs/protocol.md`, section 3.7.
pub fn list(address: &ServerAddress, timeout: Duration) -> Result<Vec<ListedLease>> {
    let (request, parse) = (extended::list(), extended::parse_list);
    let spoken = ask(address, &request, extended::MAX_LIST, parse, timeout)?;
    finish(spoken, address, "a list of its leases", "list its leases")
}

/// Ends the leases of `ports` at the port server at `address`, all or none.
///
/// The server leases the ports to others then, once they are unused: their owners must not use them
/// any longer. A user can release the leases of the same user's processes, root all. `timeout`
/// bounds the whole exchange.
///
/// A port of this process is given back by dropping its [`Lease`](crate::Lease), or by
/// [`return_port`](crate::return_port).
///
/// # Errors
///
/// - [`Error::ServerCannot`] if the server speaks only the original protocol, in which leases end
///   with their owners only.
/// - [`Error::Declined`] if a port is not leased, or is another user's.
/// - [`Error::Server`] if nothing listens there, the time is over, or the answer is none. The ports
///   may have been released.
///
/// # Example
///
/// ```no_run
/// use std::time::Duration;
/// use portpicker::client;
///
/// let server = "@unittest-portserver".parse()?;
/// client::release(&server, &[20_001], Duration::from_secs(10))?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # References
///
/// - `docs/protocol.md`, section 3.6.
pub fn release(address: &ServerAddress, ports: &[u16], timeout: Duration) -> Result<()> {
    release_if_owned(address, ports, None, timeout)
}

/// The same, but only if `owner` has the ports: not another process that was given one since.
pub(crate) fn release_if_owned(
    address: &ServerAddress,
    ports: &[u16],
    owner: Option<Pid>,
    timeout: Duration,
) -> Result<()> {
    let (request, parse) = (extended::release(ports, owner), extended::parse_released);
    let spoken = ask(address, &request, extended::MAX_ANSWER, parse, timeout)?;
    finish(
        spoken,
        address,
        "the release of a port",
        "release the ports",
    )
}

/// Returns what was asked for, or the error that says in words what that was.
fn finish<T>(
    spoken: Spoken<T>,
    address: &ServerAddress,
    option: &'static str,
    request: &'static str,
) -> Result<T> {
    match spoken {
        Spoken::Done(done) => Ok(done),
        Spoken::Failed(failure) => Err(Error::Declined {
            address: address.clone(),
            request,
            refusal: failure.refusal,
            reason: failure.reason,
        }),
        Spoken::NotAtAll => Err(Error::ServerCannot {
            address: address.clone(),
            option,
        }),
    }
}
