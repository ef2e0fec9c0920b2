//! A client's connection: which protocol it speaks, and how long it may take.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{sleep_until, timeout, timeout_at};

use crate::serve::Shared;
use crate::server::{Client, Outcome, Server, Waiting};
use crate::wire::{self, Code, Failure, ListedLease, MAX_LINE, MAX_ORIGINAL, Original, Parsed};

/// How long a client may take for the first byte, for the rest of a line, and to read an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a client of the original protocol may take for the rest of a number without newline.
/// Those that never send one expect the answer to what they have sent.
const PAUSE: Duration = Duration::from_millis(100);

/// How long a connection of the extended protocol may stay without a request, unless it owns a
/// lease.
const IDLE: Duration = Duration::from_secs(60);

/// Serves a connection to its end.
pub(crate) async fn serve<S>(mut stream: S, mut client: Client, shared: Rc<Shared>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut buffer = Vec::with_capacity(64);
    let speaks = timeout(PATIENCE, stream.read_buf(&mut buffer));
    let first = shared.silent.unless_closed(speaks).await;
    let started = Instant::now();
    let _ended = match (first, buffer.first()) {
        (Some(Ok(Ok(_))), Some(b'{')) => {
            extended(&mut stream, &mut client, &mut buffer, &shared, started).await
        }
        (Some(Ok(Ok(_))), _) => {
            original(&mut stream, &client, &mut buffer, &shared.server, started).await
        }
        // Silent for too long, in the way of others, or gone: nobody is there to be told.
        _ => Ok(()),
    };
    shared.server.borrow_mut().disconnect(client);
    shared.changed.notify_one();
}

/// One request, one answer.
async fn original<S>(
    stream: &mut S,
    client: &Client,
    buffer: &mut Vec<u8>,
    server: &RefCell<Server>,
    started: Instant,
) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !buffer.contains(&b'\n') && !buffer.is_empty() && buffer.len() <= MAX_ORIGINAL {
        let pause = (tokio::time::Instant::now() + PAUSE).min(deadline);
        match timeout_at(pause, stream.read_buf(buffer)).await {
            Ok(Ok(0)) | Err(_) => break,
            Ok(Ok(_)) => {}
            Ok(Err(err)) => return Err(err),
        }
    }
    let answer = {
        let mut server = server.borrow_mut();
        let answer = match wire::parse_original(buffer) {
            Some(Original::Lease(pid)) => server.lease_original(client, Some(pid)),
            Some(Original::NoProcess) => server.lease_original(client, None),
            None => {
                server.stats.client_errors += 1;
                None
            }
        };
        server.stats.latency.add(started.elapsed());
        answer
    };
    match answer {
        Some(port) => write(stream, format!("{port}\n").as_bytes()).await,
        // A refusal is to close without a word.
        None => Ok(()),
    }
}

/// Any number of requests, a line each.
async fn extended<S>(
    stream: &mut S,
    client: &mut Client,
    buffer: &mut Vec<u8>,
    shared: &Shared,
    mut started: Instant,
) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    loop {
        let Some(line) = next_line(stream, client, buffer, shared, &mut started).await? else {
            return Ok(());
        };
        let (id, result, is_last) = match line {
            Ok(line) => {
                let Parsed { id, request } = wire::parse(&line);
                let result = match request {
                    Ok(request) => {
                        let outcome = shared.server.borrow_mut().answer(client, request);
                        shared.changed.notify_one();
                        match outcome {
                            Outcome::Now(result) => result,
                            Outcome::List => Ok(list(&shared.server).await),
                            Outcome::Later(waiting) => {
                                let result = wait(stream, buffer, waiting, shared).await?;
                                // The lease, made when another one ended, may have a time.
                                shared.changed.notify_one();
                                match result {
                                    Some(result) => result,
                                    None => return Ok(()),
                                }
                            }
                        }
                    }
                    Err(failure) => {
                        shared.server.borrow_mut().count(&failure);
                        Err(failure)
                    }
                };
                (id, result, false)
            }
            Err(failure) => {
                shared.server.borrow_mut().count(&failure);
                (None, Err(failure), true)
            }
        };
        shared
            .server
            .borrow_mut()
            .stats
            .latency
            .add(started.elapsed());
        write(stream, &wire::answer(id, result, is_last)).await?;
        if is_last {
            return Ok(());
        }
    }
}

/// Returns all leases. Each one's name is read from `/proc`, so it pauses for others now and then.
async fn list(server: &RefCell<Server>) -> Value {
    const LEASES_AT_ONCE: usize = 32;
    let mut leases: Vec<Value> = Vec::new();
    let mut next = Some(0);
    while let Some(first) = next {
        let some: Vec<ListedLease> = server
            .borrow()
            .leases_from(first)
            .take(LEASES_AT_ONCE)
            .collect();
        next = some.last().and_then(|lease| lease.port.checked_add(1));
        leases.extend(some.into_iter().map(|lease| json!(lease)));
        tokio::task::yield_now().await;
    }
    json!({ "leases": leases })
}

/// Returns the next line without its newline, or why there is none; `None` at the end.
async fn next_line<S>(
    stream: &mut S,
    client: &Client,
    buffer: &mut Vec<u8>,
    shared: &Shared,
    started: &mut Instant,
) -> io::Result<Option<Result<Vec<u8>, Failure>>>
where
    S: AsyncRead + Unpin,
{
    let mut searched = 0;
    let mut deadline = (!buffer.is_empty()).then(|| tokio::time::Instant::now() + PATIENCE);
    loop {
        if let Some(end) = buffer[searched..].iter().position(|&byte| byte == b'\n') {
            let rest = buffer.split_off(searched + end + 1);
            let mut line = std::mem::replace(buffer, rest);
            line.pop();
            if let Err(err) = std::str::from_utf8(&line) {
                return Ok(Some(Err(Failure::new(Code::BadRequest, err))));
            }
            return Ok(Some(Ok(line)));
        }
        searched = buffer.len();
        if buffer.len() >= MAX_LINE {
            let message = format!("a request has at most {MAX_LINE} bytes");
            return Ok(Some(Err(Failure::new(Code::BadRequest, message))));
        }
        let limit = deadline.or_else(|| {
            let owns_leases = shared.server.borrow().owns_leases(client);
            (!owns_leases).then(|| tokio::time::Instant::now() + IDLE)
        });
        let mut bounded = stream.take((MAX_LINE - buffer.len()) as u64);
        let read = bounded.read_buf(buffer);
        let count = match limit {
            Some(limit) => match timeout_at(limit, read).await {
                Ok(count) => count?,
                Err(_) => return Ok(None),
            },
            None => read.await?,
        };
        if count == 0 {
            return Ok(None);
        }
        if deadline.is_none() {
            *started = Instant::now();
            deadline = Some(tokio::time::Instant::now() + PATIENCE);
        }
    }
}

/// Waits for the ports of a request in the queue; `None` if the client hangs up meanwhile.
async fn wait<S>(
    stream: &mut S,
    buffer: &mut Vec<u8>,
    waiting: Waiting,
    shared: &Shared,
) -> io::Result<Option<Result<Value, Failure>>>
where
    S: AsyncRead + Unpin,
{
    let Waiting {
        id,
        deadline,
        mut answer,
    } = waiting;
    // However it ends, by a cancellation too, the request does not stay in the queue.
    loop {
        tokio::select! {
            biased;
            result = &mut answer => {
                return Ok(Some(result.unwrap_or_else(|_| {
                    Err(Failure::new(Code::Stopping, "the server is about to end"))
                })));
            }
            () = sleep_until(deadline.into()) => {
                let failure = shared.server.borrow_mut().stop_waiting(id);
                // It may have been answered in the same moment.
                return Ok(Some(answer.try_recv().unwrap_or(Err(failure))));
            }
            // The next request may come early; nothing comes when the client has hung up.
            count = stream.read_buf(buffer), if buffer.len() < MAX_LINE => {
                if !matches!(count, Ok(count) if count > 0) {
                    shared.server.borrow_mut().stop_waiting(id);
                    return Ok(None);
                }
            }
        }
    }
}

async fn write<S: AsyncWrite + Unpin>(stream: &mut S, bytes: &[u8]) -> io::Result<()> {
    match timeout(PATIENCE, stream.write_all(bytes)).await {
        Ok(result) => result,
        // It does not read its answer.
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}
