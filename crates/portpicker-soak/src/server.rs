//! The lives of a port server: started, killed, and started again on the same state file.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, BufRead, BufReader, PipeWriter, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use portpicker_testing::Exit;
use rustix::process::{Signal, kill_process};
use serde_json::Value;

use crate::crew::{Crew, say, to_pid};
use crate::place::{self, range};
use crate::soak::disk;

/// How long an event may take that surely comes. Only a failure waits so long.
pub(crate) const LONG: Duration = Duration::from_secs(30);

/// How a life of a server differs from others.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Life {
    /// The most descriptors.
    pub(crate) descriptors: usize,
    /// By how many seconds its clocks are ahead, those that have no date.
    pub(crate) ahead: u64,
}

impl Life {
    pub(crate) const ORDINARY: Self = Self {
        descriptors: 4096,
        ahead: 0,
    };
}

/// A server that runs, killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) place: place::Server,
    pub(crate) pid: u32,
    exit: Exit,
    log: Arc<Log>,
    pub(crate) life: Life,
    /// They end with it.
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Log {
    lines: Mutex<Lines>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Lines {
    last: VecDeque<String>,
    total: usize,
    is_behind: bool,
    is_over: bool,
}

impl Server {
    /// Returns where its leases are remembered.
    pub(crate) fn state(crew: &Crew, place: place::Server) -> PathBuf {
        disk(&crew.folder).join(place.name())
    }

    /// Starts a server, and returns when it listens; or says why it does not.
    pub(crate) fn start(crew: &Crew, place: place::Server, life: Life) -> Result<Self, String> {
        // The former one may be listened to a little longer.
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("soak-notify-{number}");
        let ready = SocketAddr::from_abstract_name(&name)
            .and_then(|address| UnixDatagram::bind_addr(&address))
            .map_err(|err| err.to_string())?;
        let mut command = Command::new("sh");
        command.args(["-c", "ulimit -n $1 && shift && exec \"$@\"", "sh"]);
        command.arg(life.descriptors.to_string());
        if life.ahead > 0 {
            let ahead = life.ahead.to_string();
            command.args(["unshare", "--time", "--boottime", &ahead]);
            command.args(["--monotonic", &ahead, "--"]);
        }
        command
            .args(["portserver", "--address", &place.address().to_string()])
            .args(["--pool", &range(place.pool()), "--state"])
            .arg(Self::state(crew, place));
        crew.prepare(&mut command);
        let mut child = command
            .env("NOTIFY_SOCKET", format!("@{name}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|err| err.to_string())?;
        let log = Arc::new(Log::default());
        let follower = Follower {
            place,
            log: Arc::clone(&log),
            writer: crew.writer().map_err(|err| err.to_string())?,
        };
        let stderr = child.stderr.take().expect("it is piped");
        let threads = vec![thread::spawn(move || follower.follow(stderr))];
        let mut server = Self {
            place,
            pid: child.id(),
            exit: Exit::of(child.id()),
            log,
            life,
            threads,
        };
        server.wait_until_ready(&ready)?;
        server.listen_to(ready);
        Ok(server)
    }

    fn wait_until_ready(&self, ready: &UnixDatagram) -> Result<(), String> {
        let end = Instant::now() + LONG;
        ready
            .set_read_timeout(Some(Duration::from_millis(20)))
            .map_err(|err| err.to_string())?;
        let mut message = [0; 256];
        loop {
            if let Ok(length) = ready.recv(&mut message)
                && message[..length].starts_with(b"READY=1")
            {
                // What it has adopted is in its log before this line.
                return self.wait_for("managing", 0);
            }
            if self.exit.has_happened() {
                return Err(self.whole_log());
            }
            if Instant::now() > end {
                return Err(format!("it is not ready: {}", self.last_lines()));
            }
        }
    }

    /// Takes what it tells its service manager from now on, and all that it leaves to it.
    fn listen_to(&mut self, ready: UnixDatagram) {
        let exit = Exit::of(self.pid);
        self.threads.push(thread::spawn(move || {
            // Descriptors that come along are closed: this manager has no store.
            while !exit.has_happened() {
                _ = ready.recv(&mut [0; 256]);
            }
        }));
    }

    /// Waits until a line of its log, from the one numbered `from` on, contains `text`.
    fn wait_for(&self, text: &str, from: usize) -> Result<(), String> {
        let has_line = |lines: &Lines| {
            let skipped = lines.total - lines.last.len();
            let new = lines.last.iter().skip(from.saturating_sub(skipped));
            new.into_iter().any(|line| line.contains(text))
        };
        let lines = self.log.lines.lock().expect("nobody panics with it");
        let waited = self
            .log
            .changed
            .wait_timeout_while(lines, LONG, |lines| !has_line(lines));
        let (lines, _) = waited.expect("nobody panics with it");
        if has_line(&lines) {
            return Ok(());
        }
        drop(lines);
        Err(format!("`{text}` is not in the log: {}", self.last_lines()))
    }

    /// Returns the end of the log of a server that has ended.
    fn whole_log(&self) -> String {
        let lines = self.log.lines.lock().expect("nobody panics with it");
        let waited = self
            .log
            .changed
            .wait_timeout_while(lines, LONG, |lines| !lines.is_over);
        drop(waited.expect("nobody panics with it"));
        self.last_lines()
    }

    pub(crate) fn last_lines(&self) -> String {
        let lines = self.log.lines.lock().expect("nobody panics with it");
        let last = lines.last.iter().rev().take(8).rev();
        last.cloned().collect::<Vec<_>>().join(" | ")
    }

    /// Returns when all that it has logged before this call has been read.
    fn catch_up(&self) -> Result<(), String> {
        let from = self.log.lines.lock().expect("nobody panics with it").total;
        self.signal(Signal::USR1);
        self.wait_for("total-allocations", from)
    }

    /// Returns when its state file lacks nothing, for which there must be space.
    pub(crate) fn wait_until_whole(&self) -> Result<(), String> {
        self.catch_up()?;
        let lines = self.log.lines.lock().expect("nobody panics with it");
        let waited = self
            .log
            .changed
            .wait_timeout_while(lines, LONG, |lines| lines.is_behind);
        let (lines, _) = waited.expect("nobody panics with it");
        let is_behind = lines.is_behind;
        drop(lines);
        if is_behind {
            Err(format!(
                "its state file stays behind: {}",
                self.last_lines()
            ))
        } else {
            Ok(())
        }
    }

    /// Tells whether its state file lacks something, as far as its log has been read.
    pub(crate) fn is_behind(&self) -> bool {
        self.log
            .lines
            .lock()
            .expect("nobody panics with it")
            .is_behind
    }

    pub(crate) fn signal(&self, signal: Signal) {
        // Not reaped before it is known to have exited.
        if !self.exit.has_happened() {
            _ = kill_process(to_pid(self.pid), signal);
        }
    }

    pub(crate) fn kill(&self) {
        self.signal(Signal::KILL);
        self.exit.wait();
    }

    pub(crate) fn terminate(&self) -> bool {
        self.signal(Signal::TERM);
        self.exit.happens_within(LONG)
    }

    pub(crate) fn has_exited(&self) -> bool {
        self.exit.has_happened()
    }

    /// Returns what it says about itself.
    pub(crate) fn stats(&self) -> io::Result<Value> {
        let address = self.place.address().to_string();
        let name = address.trim_start_matches('@');
        let mut stream = UnixStream::connect_addr(&SocketAddr::from_abstract_name(name)?)?;
        stream.set_read_timeout(Some(LONG))?;
        stream.write_all(b"{\"v\":1,\"op\":\"stats\"}\n")?;
        let mut line = String::new();
        let read = BufReader::new(stream).read_line(&mut line);
        read.map_err(|err| match err.kind() {
            io::ErrorKind::WouldBlock => io::ErrorKind::TimedOut.into(),
            _ => err,
        })?;
        Ok(serde_json::from_str(&line)?)
    }

    /// Returns how many descriptors it has open, and how much memory in KiB.
    pub(crate) fn size(&self) -> io::Result<(usize, usize)> {
        let descriptors = fs::read_dir(format!("/proc/{}/fd", self.pid))?.count();
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        let resident = status
            .lines()
            .find_map(|line| {
                line.strip_prefix("VmRSS:")?
                    .split_whitespace()
                    .next()?
                    .parse()
                    .ok()
            })
            .unwrap_or(0);
        Ok((descriptors, resident))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        for thread in self.threads.drain(..) {
            thread.join().expect("they do not panic");
        }
    }
}

/// Reads a server's log, and tells what of it matters.
struct Follower {
    place: place::Server,
    log: Arc<Log>,
    writer: PipeWriter,
}

impl Follower {
    fn follow(self, log: impl Read) {
        for line in BufReader::new(log).lines().map_while(Result::ok) {
            let name = self.place.name();
            let unlocked = line
                .split_once("port ")
                .and_then(|(_, rest)| rest.split_once(": leased by somebody else while"));
            if let Some((port, _)) = unlocked {
                say(&self.writer, &format!("unlocked {name} {port}"));
            } else if line.contains(" ERROR ") || line.contains("panicked") {
                say(&self.writer, &format!("trouble {name}: {line}"));
            } else if line.contains(" WARN ") {
                // Without its time and its particulars.
                let words = line.split_once(" WARN ").map_or("", |(_, text)| text);
                let words = words.split([':', '`']).next().unwrap_or("").trim();
                let words = words.trim_matches(|one: char| one.is_ascii_digit() || one == ' ');
                say(
                    &self.writer,
                    &format!("did 1 warnings of a server: {words}"),
                );
            }
            let mut lines = self.log.lines.lock().expect("nobody panics with it");
            if line.contains("cannot write the state file") {
                lines.is_behind = true;
            }
            if line.contains("is whole again") {
                lines.is_behind = false;
            }
            lines.total += 1;
            lines.last.push_back(line);
            if lines.last.len() > 500 {
                lines.last.pop_front();
            }
            self.log.changed.notify_all();
        }
        self.log
            .lines
            .lock()
            .expect("nobody panics with it")
            .is_over = true;
        self.log.changed.notify_all();
    }
}
