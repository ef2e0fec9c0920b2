//! A port server that does as a test likes.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::process;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use portpicker::ServerAddress;
use socket2::{Domain, SockAddr, Socket, Type};
use tempfile::TempDir;

use crate::exit::{DEADLINE, wait_until_readable};

/// One thing that a server does on a connection.
pub enum Act {
    /// Reads the request, up to its newline.
    Read,
    /// Sends these bytes.
    Send(Vec<u8>),
    /// Does something else.
    Do(Box<dyn FnMut() + Send>),
    /// Waits for so long, unless the client hangs up.
    Idle(Duration),
    /// Says that nothing more will come, and does not hang up.
    HalfClose,
    /// Sends this byte until the client hangs up.
    Flood(u8),
    /// Waits until the client hangs up.
    Silence,
}

impl std::fmt::Debug for Act {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Read => "Read",
            Self::Send(_) => "Send",
            Self::Do(_) => "Do",
            Self::Idle(_) => "Idle",
            Self::HalfClose => "HalfClose",
            Self::Flood(_) => "Flood",
            Self::Silence => "Silence",
        })
    }
}

impl Act {
    /// Sends `text`.
    pub fn send(text: impl Into<String>) -> Self {
        Self::Send(text.into().into_bytes())
    }

    /// Returns what a server of the original protocol does: reads, answers, and hangs up.
    pub fn answer(text: impl Into<String>) -> Vec<Self> {
        vec![Self::Read, Self::send(text)]
    }

    /// Returns the same as [`answer`](Self::answer), with the bytes one at a time.
    pub fn answer_in_bytes(text: &str) -> Vec<Self> {
        let bytes = text.bytes().map(|byte| Self::Send(vec![byte]));
        [Self::Read].into_iter().chain(bytes).collect()
    }
}

/// A server on a Unix socket that follows a script for each connection, in their order, and hangs
/// up at its end. Connections for which there is no script are refused: their request is read, and
/// not answered.
///
/// It serves one connection at a time, and ends when it is dropped.
#[derive(Debug)]
pub struct FakeServer {
    address: ServerAddress,
    requests: Arc<Mutex<Vec<String>>>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    /// Where the socket is, unless it is abstract.
    _folder: Option<TempDir>,
}

impl FakeServer {
    /// Starts a server with a name in the abstract namespace.
    pub fn start(scripts: Vec<Vec<Act>>) -> Self {
        Self::start_as(&unique_name(), scripts)
    }

    /// Starts a server with this name in the abstract namespace: for a test that has a network
    /// namespace, and with it all names, to itself.
    pub fn start_as(name: &str, scripts: Vec<Vec<Act>>) -> Self {
        let address = SocketAddr::from_abstract_name(name).expect("the name is short");
        let listener = UnixListener::bind_addr(&address).expect("the name is unique");
        Self::serve(format!("@{name}"), listener, None, scripts)
    }

    /// Starts a server with a path in a folder of its own.
    pub fn start_at_path(scripts: Vec<Vec<Act>>) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let path = folder.path().join("server");
        let listener = UnixListener::bind(&path).expect("the folder is new");
        let path = path.to_str().expect("temporary folders have plain names");
        Self::serve(path.to_owned(), listener, Some(folder), scripts)
    }

    /// Returns the address.
    pub fn address(&self) -> ServerAddress {
        self.address.clone()
    }

    /// Returns what the clients have sent before the first newline, in the order of their
    /// connections. Only scripts that begin with [`Act::Read`] leave something here.
    pub fn requests(&self) -> Vec<String> {
        lock(&self.requests).clone()
    }

    fn serve(
        address: String,
        listener: UnixListener,
        folder: Option<TempDir>,
        scripts: Vec<Vec<Act>>,
    ) -> Self {
        let requests = Arc::new(Mutex::new(Vec::new()));
        let is_over = Arc::new(AtomicBool::new(false));
        let thread = {
            let (requests, is_over) = (Arc::clone(&requests), Arc::clone(&is_over));
            thread::spawn(move || {
                let mut scripts = scripts.into_iter();
                while let Ok((connection, _)) = listener.accept()
                    && !is_over.load(Ordering::Acquire)
                {
                    let script = scripts.next().unwrap_or_else(|| Act::answer(""));
                    // A client that hangs up early ends its script, and is none of our concern.
                    let _ = follow(script, connection, &requests);
                }
            })
        };
        Self {
            address: address.parse().expect("it is an address"),
            requests,
            is_over,
            thread: Some(thread),
            _folder: folder,
        }
    }
}

impl Drop for FakeServer {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Release);
        // Wakes the thread. If that is busy, it will find this connection later.
        drop(connect(&self.address));
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !thread::panicking()
        {
            panic!("the server's script has failed");
        }
    }
}

/// A server that accepts nobody, and whose backlog is full: connect(2) waits.
#[derive(Debug)]
pub struct BusyServer {
    address: ServerAddress,
    _sockets: Vec<Socket>,
}

impl BusyServer {
    /// Starts a server with a name in the abstract namespace.
    #[expect(clippy::new_without_default, reason = "it does something")]
    pub fn new() -> Self {
        let name = unique_name();
        let address = SockAddr::unix(format!("\0{name}")).expect("the name is short");
        let open = || Socket::new(Domain::UNIX, Type::STREAM, None).expect("sockets can be made");
        let server = open();
        server.bind(&address).expect("the name is unique");
        server.listen(0).expect("it is bound");
        let mut sockets = vec![server];
        loop {
            let client = open();
            client.set_nonblocking(true).expect("a socket has modes");
            if client.connect(&address).is_err() {
                break;
            }
            sockets.push(client);
        }
        Self {
            address: format!("@{name}").parse().expect("it is an address"),
            _sockets: sockets,
        }
    }

    /// Returns the address.
    pub fn address(&self) -> ServerAddress {
        self.address.clone()
    }
}

fn follow(
    script: Vec<Act>,
    mut connection: UnixStream,
    requests: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    // Only a failure waits so long, for a client that neither speaks nor hangs up.
    connection.set_read_timeout(Some(DEADLINE))?;
    connection.set_write_timeout(Some(DEADLINE))?;
    for act in script {
        match act {
            Act::Read => {
                let request = read_line(&mut connection)?;
                lock(requests).push(request);
            }
            Act::Send(bytes) => connection.write_all(&bytes)?,
            Act::Do(mut action) => action(),
            Act::Idle(time) => {
                wait_until_readable(connection.as_fd(), time);
            }
            Act::HalfClose => connection.shutdown(Shutdown::Write)?,
            Act::Flood(byte) => loop {
                connection.write_all(&[byte; 4096])?;
            },
            Act::Silence => while connection.read(&mut [0; 64])? > 0 {},
        }
    }
    Ok(())
}

fn read_line(connection: &mut UnixStream) -> std::io::Result<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    while connection.read(&mut byte)? > 0 && byte != *b"\n" {
        line.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&line).into_owned())
}

fn connect(address: &ServerAddress) -> std::io::Result<UnixStream> {
    let address = address.to_string();
    match address.strip_prefix('@') {
        Some(name) => UnixStream::connect_addr(&SocketAddr::from_abstract_name(name)?),
        None => UnixStream::connect(address),
    }
}

fn unique_name() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("portpicker-testing/{}/{count}", process::id())
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
