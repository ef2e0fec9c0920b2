//! Where a port server listens.

use std::env;
use std::fmt;
use std::io;
use std::str::FromStr;

use socket2::SockAddr;

use crate::error::{Error, Result};

/// The environment variable that names the port server of this host.
const VARIABLE: &str = "PORTSERVER_ADDRESS";

/// Where a port server listens: the path of a Unix socket, or `@name` for the abstract namespace.
///
/// The conventional one is `@unittest-portserver`.
///
/// # Example
///
/// ```
/// use portpicker::ServerAddress;
///
/// let address: ServerAddress = "@unittest-portserver".parse()?;
/// assert_eq!(address.to_string(), "@unittest-portserver");
/// # Ok::<(), portpicker::ParseServerAddressError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServerAddress {
    /// As it was written: not empty.
    text: String,
}

impl ServerAddress {
    /// Returns the address in `PORTSERVER_ADDRESS`, read now; `None` if it is not set or empty.
    ///
    /// # Errors
    ///
    /// [`Error::Server`] with [`io::ErrorKind::InvalidInput`] if it cannot be an address.
    pub fn from_environment() -> Result<Option<Self>> {
        match env::var_os(VARIABLE) {
            Some(text) if !text.is_empty() => {
                let text = text.to_string_lossy().into_owned();
                text.parse()
                    .map(Some)
                    .map_err(|err: ParseServerAddressError| Error::Server {
                        address: Self { text },
                        source: io::Error::new(io::ErrorKind::InvalidInput, err),
                    })
            }
            _ => Ok(None),
        }
    }

    pub(crate) fn to_socket_address(&self) -> io::Result<SockAddr> {
        match self.text.strip_prefix('@') {
            Some(name) => SockAddr::unix(format!("\0{name}")),
            None => SockAddr::unix(&self.text),
        }
    }
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for ServerAddress {
    type Err = ParseServerAddressError;

    fn from_str(text: &str) -> std::result::Result<Self, ParseServerAddressError> {
        let address = Self {
            text: text.to_owned(),
        };
        if matches!(text, "" | "@") || text.contains('\0') || address.to_socket_address().is_err() {
            return Err(ParseServerAddressError { text: address.text });
        }
        Ok(address)
    }
}

/// A text that is not the address of a port server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseServerAddressError {
    text: String,
}

impl fmt::Display for ParseServerAddressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "`{}` is not a server address: those are the path of a socket or `@name`, of at most \
             107 bytes",
            self.text.escape_debug()
        )
    }
}

impl std::error::Error for ParseServerAddressError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_paths_or_names() {
        for text in ["@unittest-portserver", "/run/portserver.sock", "localhost"] {
            assert_eq!(text.parse::<ServerAddress>().unwrap().to_string(), text);
        }
        let too_long = format!("@{}", "x".repeat(108));
        for text in ["", "@", "a\0b", &too_long] {
            assert!(text.parse::<ServerAddress>().is_err(), "{text:?}");
        }
    }
}
