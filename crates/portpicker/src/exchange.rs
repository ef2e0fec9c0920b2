//! One request to a port server, on a connection of its own, and its answer.

use std::io::{self, Read};
use std::time::{Duration, Instant};

use rustix::net::SendFlags;
use socket2::{Domain, Socket, Type};

use crate::error::{Error, Refusal, Result};
use crate::process::Pid;
use crate::protocol::BadAnswer;
use crate::protocol::extended::{self, Failure, Unsuccessful, Wish};
use crate::protocol::original::{self, Answer};
use crate::server_address::ServerAddress;

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
    match ask_originally(address, owner, timeout) {
        Ok(Answer::Port(port)) => Ok(port),
        Ok(Answer::Refusal) => Err(Error::Refused {
            address: address.clone(),
            owner,
            refusal: None,
            reason: None,
        }),
        Err(source) => Err(Error::Server {
            address: address.clone(),
            source,
        }),
    }
}

fn ask_originally(address: &ServerAddress, owner: Pid, timeout: Duration) -> io::Result<Answer> {
    let mut exchange = Exchange::begin(address, &original::request(owner), timeout)?;
    let mut answer = Vec::with_capacity(original::MAX_ANSWER);
    loop {
        let has_ended = !exchange.read(&mut answer, &mut [0; original::MAX_ANSWER])?;
        if let Some(result) = original::parse_answer(&answer, has_ended) {
            return result.map_err(invalid);
        }
    }
}

/// What became of a request of the extended protocol.
#[derive(Debug)]
pub(crate) enum Spoken<T> {
    /// It was done.
    Done(T),
    /// The server says why it was not.
    Failed(Failure),
    /// The server knows only the original protocol.
    NotAtAll,
}

/// Asks for ports by the extended protocol. `timeout` is for all but the wait.
pub(crate) fn lease(
    address: &ServerAddress,
    wish: &Wish<'_>,
    timeout: Duration,
) -> Result<Spoken<Vec<u16>>> {
    let timeout = timeout.saturating_add(wish.wait.min(extended::MAX_WAIT));
    let parse = |line: &[u8]| wish.parse_answer(line);
    ask(
        address,
        &wish.request(),
        extended::MAX_ANSWER,
        parse,
        timeout,
    )
}

/// Sends a line of the extended protocol, and reads an answer of at most `limit` bytes.
pub(crate) fn ask<T>(
    address: &ServerAddress,
    request: &[u8],
    limit: usize,
    parse: impl FnOnce(&[u8]) -> std::result::Result<T, Unsuccessful>,
    timeout: Duration,
) -> Result<Spoken<T>> {
    let failed = |source| Error::Server {
        address: address.clone(),
        source,
    };
    let line = ask_for_line(address, request, limit, timeout).map_err(failed)?;
    if line.is_empty() {
        return Ok(Spoken::NotAtAll);
    }
    match parse(&line) {
        Ok(done) => Ok(Spoken::Done(done)),
        Err(Unsuccessful::Failed(Failure {
            refusal: Refusal::BadVersion,
            ..
        })) => Ok(Spoken::NotAtAll),
        Err(Unsuccessful::Failed(failure)) => Ok(Spoken::Failed(failure)),
        Err(Unsuccessful::Bad(answer)) => Err(failed(invalid(answer))),
    }
}

/// Returns the first line of the answer, or what came of it before the server hung up.
fn ask_for_line(
    address: &ServerAddress,
    request: &[u8],
    limit: usize,
    timeout: Duration,
) -> io::Result<Vec<u8>> {
    let mut exchange = Exchange::begin(address, request, timeout)?;
    let mut answer = Vec::new();
    let mut buffer = [0; 8192];
    loop {
        let searched = answer.len();
        let has_ended = !exchange.read(&mut answer, &mut buffer)?;
        if let Some(end) = extended::end_of_line(&answer, searched, limit, has_ended) {
            answer.truncate(end.map_err(invalid)?);
            return Ok(answer);
        }
    }
}

/// A connection on which a request has been sent.
#[derive(Debug)]
struct Exchange {
    socket: Socket,
    deadline: Deadline,
}

impl Exchange {
    fn begin(address: &ServerAddress, request: &[u8], timeout: Duration) -> io::Result<Self> {
        let deadline = Deadline::after(timeout);
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        // The timeout for sending bounds connect(2) as well, which waits while the server's backlog
        // is full; a non-blocking connect to a Unix socket would fail at once instead.
        socket.set_write_timeout(Some(deadline.left()?))?;
        socket
            .connect(&address.to_socket_address()?)
            .map_err(timed_out)?;
        let mut rest = request;
        while !rest.is_empty() {
            socket.set_write_timeout(Some(deadline.left()?))?;
            // Without the flag, a server that hangs up early would kill a program that has not
            // asked for SIGPIPE to be ignored.
            match rustix::net::send(&socket, rest, SendFlags::NOSIGNAL) {
                Ok(count) => rest = &rest[count..],
                Err(rustix::io::Errno::INTR) => {}
                // It may have said why before it hung up.
                Err(rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET) => break,
                Err(err) => return Err(timed_out(err.into())),
            }
        }
        Ok(Self { socket, deadline })
    }

    /// Adds what has come to `answer`. Returns whether there may be more.
    fn read(&mut self, answer: &mut Vec<u8>, buffer: &mut [u8]) -> io::Result<bool> {
        loop {
            // Set anew for each read, so that a server that sends a byte now and then gains
            // nothing.
            self.socket.set_read_timeout(Some(self.deadline.left()?))?;
            return match self.socket.read(buffer) {
                Ok(count) => {
                    answer.extend_from_slice(&buffer[..count]);
                    Ok(count > 0)
                }
                // Hanging up with our request unread is hanging up.
                Err(err) if err.kind() == io::ErrorKind::ConnectionReset => Ok(false),
                Err(err) if err.kind() == io::ErrorKind::Interrupted => continue,
                Err(err) => Err(timed_out(err)),
            };
        }
    }
}

fn invalid(answer: BadAnswer) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, answer)
}

/// The end of an exchange.
#[derive(Debug)]
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
            // A socket's timeout has whole microseconds, and none of them means no bound.
            Ok(left.clamp(Duration::from_micros(1), DAY))
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
