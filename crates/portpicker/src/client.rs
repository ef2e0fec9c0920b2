//! Asking a port server for a port: one request on a connection of its own.

use std::env;
use std::fmt;
use std::io::{self, Read, Write};
use std::str::FromStr;
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};

use crate::error::{Error, Result};
use crate::process::Pid;
use crate::protocol::{self, Answer};

/// The environment variable that names the port server of this host.
pub(crate) const VARIABLE: &str = "PORTSERVER_ADDRESS";

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

    fn to_socket_address(&self) -> io::Result<SockAddr> {
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

/// Asks the port server at `address` to lease a port to the process `owner`.
///
/// Promise 2, *leased*, as far as that server's own pool goes: it leases a port to one process at
/// a time, until that process exits, whatever becomes of the caller. The port servers of this
/// project take the same locks as [`Picker`](crate::Picker), so their leases never meet; other
/// servers do not.
///
/// `timeout` bounds the whole exchange: connecting, sending, and the answer.
///
/// # Errors
///
/// - [`Error::Refused`] if the server declined. The original protocol does not say why: the
///   process does not exist or may not own ports, or the pool is exhausted.
/// - [`Error::Server`] if nothing listens there, the time is over, or the answer is not a port.
///
/// # Example
///
/// ```no_run
/// use std::time::Duration;
/// use portpicker::{process::Pid, request_port};
///
/// let server = "@unittest-portserver".parse()?;
/// let port = request_port(&server, Pid::current(), Duration::from_secs(10))?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # References
///
/// - `docs/protocol.md`, section 2: `PID\n` → `PORT\n`, as in [python_portpicker] 1.6.
///
/// [python_portpicker]: https://github.com/google/python_portpicker
pub fn request_port(address: &ServerAddress, owner: Pid, timeout: Duration) -> Result<u16> {
    match exchange(address, owner, timeout) {
        Ok(Answer::Port(port)) => Ok(port),
        Ok(Answer::Refusal) => Err(Error::Refused {
            address: address.clone(),
            owner,
        }),
        Err(source) => Err(Error::Server {
            address: address.clone(),
            source,
        }),
    }
}

fn exchange(address: &ServerAddress, owner: Pid, timeout: Duration) -> io::Result<Answer> {
    let deadline = Deadline::after(timeout);
    let mut socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // The timeout for sending bounds connect(2) as well, which waits while the server's backlog is
    // full; a non-blocking connect to a Unix socket would fail at once instead.
    socket.set_write_timeout(Some(deadline.left()?))?;
    socket
        .connect(&address.to_socket_address()?)
        .map_err(timed_out)?;
    socket
        .write_all(&protocol::request(owner))
        .map_err(timed_out)?;

    let mut answer = Vec::with_capacity(protocol::MAX_ANSWER);
    let mut buffer = [0; protocol::MAX_ANSWER];
    loop {
        // Set anew for each read, so that a server that sends a byte now and then gains nothing.
        socket.set_read_timeout(Some(deadline.left()?))?;
        let ended = match socket.read(&mut buffer) {
            Ok(count) => {
                answer.extend_from_slice(&buffer[..count]);
                count == 0
            }
            // Hanging up with our request unread is a refusal too.
            Err(err) if err.kind() == io::ErrorKind::ConnectionReset => true,
            Err(err) if err.kind() == io::ErrorKind::Interrupted => false,
            Err(err) => return Err(timed_out(err)),
        };
        if let Some(result) = protocol::parse_answer(&answer, ended) {
            return result.map_err(|err| io::Error::new(io::ErrorKind::InvalidData, err));
        }
    }
}

/// The end of an exchange.
struct Deadline(Option<Instant>);

impl Deadline {
    fn after(timeout: Duration) -> Self {
        Self(Instant::now().checked_add(timeout))
    }

    /// Returns the time that is left. Never zero, which would mean no bound.
    fn left(&self) -> io::Result<Duration> {
        // The system's limit for a socket's timeout is far above a day.
        const DAY: Duration = Duration::from_secs(24 * 60 * 60);
        let left = self
            .0
            .map_or(DAY, |end| end.saturating_duration_since(Instant::now()));
        if left.is_zero() {
            Err(no_answer_in_time())
        } else {
            Ok(left.min(DAY))
        }
    }
}

/// A socket whose timeout has passed reports EAGAIN, which tells nobody anything.
fn timed_out(err: io::Error) -> io::Error {
    if err.kind() == io::ErrorKind::WouldBlock {
        no_answer_in_time()
    } else {
        err
    }
}

fn no_answer_in_time() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "no answer in time")
}

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
