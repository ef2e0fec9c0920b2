//! `portserver` and `portpicker serve`, as their users meet them.

mod addresses;
mod background;
mod commands;
mod histories;
mod signals;
mod state;
mod systemd;
mod trouble;

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::support::LONG;

/// The path of the server that was built for the tests.
const PORTSERVER: &str = env!("CARGO_BIN_EXE_portserver");

/// Everything in the environment that a server listens to.
const VARIABLES: [&str; 11] = [
    "FDSTORE",
    "JOURNAL_STREAM",
    "LISTEN_FDNAMES",
    "LISTEN_FDS",
    "LISTEN_PID",
    "NOTIFY_SOCKET",
    "RUNTIME_DIRECTORY",
    "STATE_DIRECTORY",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    "XDG_RUNTIME_DIR",
];

/// Returns `program` without what the environment of the tests may say to it.
fn plain(program: &str) -> Command {
    let mut command = Command::new(program);
    for variable in VARIABLES {
        command.env_remove(variable);
    }
    command
}

/// A folder of a test's own, in which its servers have their files.
struct Place {
    folder: TempDir,
    name: String,
}

impl Place {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        Self {
            folder: tempfile::tempdir().unwrap(),
            name: format!("@portserver-tests/{}/{count}", std::process::id()),
        }
    }

    /// Returns an address in the abstract namespace that no other test has.
    fn name(&self) -> &str {
        &self.name
    }

    fn path(&self, file: &str) -> String {
        self.folder.path().join(file).to_str().unwrap().to_owned()
    }

    /// Returns a server with these options, whose state file by default is in this folder.
    fn server(&self, options: &[&str]) -> Command {
        self.program(PORTSERVER, options)
    }

    fn program(&self, program: &str, options: &[&str]) -> Command {
        let mut command = plain(program);
        command
            .args(options)
            .current_dir(self.folder.path())
            .env("XDG_RUNTIME_DIR", self.folder.path());
        command
    }

    /// Returns a shell that runs `script`, in which `$portserver` is the server.
    fn shell(&self, script: &str) -> Command {
        let mut command = self.program("sh", &["-euc", script]);
        command.env("portserver", PORTSERVER);
        command
    }

    /// Starts a server at the abstract address, with these options besides.
    fn start(&self, options: &[&str]) -> Running {
        let options = [&["--address", self.name()], options].concat();
        Running::start(&mut self.server(&options))
    }
}

/// A server in the foreground.
struct Running {
    child: Child,
    lines: Receiver<String>,
    /// What it has logged so far, as far as it was read.
    log: Vec<String>,
}

impl Running {
    /// Starts a server, and waits until it listens.
    fn start(command: &mut Command) -> Self {
        let mut server = Self::spawn(command);
        server.wait_for("INFO managing ");
        server
    }

    fn spawn(command: &mut Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let lines = lines_of(child.stderr.take().unwrap());
        Self {
            child,
            lines,
            log: Vec::new(),
        }
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for a line of the log that has `text` in it, and returns it.
    fn wait_for(&mut self, text: &str) -> String {
        loop {
            match self.lines.recv_timeout(LONG) {
                Ok(line) => {
                    self.log.push(line.clone());
                    if line.contains(text) {
                        return line;
                    }
                }
                Err(err) => panic!("no `{text}` in the log: {err}\n{}", self.log.join("\n")),
            }
        }
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id() as i32).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Sends `signal`, and waits for the end. Returns the exit code and the whole log.
    fn end(mut self, signal: Signal) -> (Option<i32>, String) {
        self.signal(signal);
        let status = self.child.wait().unwrap();
        let mut text = String::new();
        for line in self.log.drain(..).chain(self.lines.iter()) {
            writeln!(text, "{line}").unwrap();
        }
        (status.code(), text)
    }

    /// Ends the server as it should end.
    fn stop(self) -> String {
        let (code, log) = self.end(Signal::TERM);
        assert_eq!(code, Some(0), "{log}");
        log
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It has been waited for, or the test has failed.
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            _ = self.child.kill();
            _ = self.child.wait();
        }
    }
}

fn lines_of(stderr: ChildStderr) -> Receiver<String> {
    let (sender, lines) = channel();
    thread::spawn(move || {
        for line in BufReader::new(stderr).lines() {
            if line.is_ok_and(|line| sender.send(line).is_ok()) {
                continue;
            }
            break;
        }
    });
    lines
}

fn connect(address: &str) -> std::io::Result<UnixStream> {
    let stream = match address.strip_prefix('@') {
        Some(name) => UnixStream::connect_addr(&SocketAddr::from_abstract_name(name)?)?,
        None => UnixStream::connect(address)?,
    };
    stream.set_read_timeout(Some(LONG))?;
    Ok(stream)
}

/// Asks the server at `address` for a port for the process `pid`, as the oldest clients do.
fn ask(address: &str, pid: impl std::fmt::Display) -> Option<u16> {
    converse(connect(address).unwrap(), pid)
}

fn converse(mut stream: impl Read + Write, pid: impl std::fmt::Display) -> Option<u16> {
    stream.write_all(format!("{pid}\n").as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    (!answer.is_empty()).then(|| answer.strip_suffix('\n').unwrap().parse().unwrap())
}

fn own_pid() -> u32 {
    std::process::id()
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn exists(path: &str) -> bool {
    Path::new(path).symlink_metadata().is_ok()
}
