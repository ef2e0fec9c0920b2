//! A port server to test: started, killed, and started again, with its log.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use portpicker::ServerAddress;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::LONG;
use crate::client::Client;

/// Where the servers of tests listen, unless they say otherwise.
pub(crate) fn address() -> ServerAddress {
    "@server".parse().unwrap()
}

/// How a server is to run.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    address: ServerAddress,
    arguments: Vec<String>,
    /// What unshare(1) is to do first.
    unshare: Vec<String>,
}

impl Setup {
    /// Returns a server of these ports.
    pub(crate) fn new(ports: &str) -> Self {
        Self {
            address: address(),
            arguments: vec![ports.to_owned()],
            unshare: Vec::new(),
        }
    }

    pub(crate) fn at(mut self, address: &str) -> Self {
        self.address = address.parse().unwrap();
        self
    }

    pub(crate) fn state(self, file: &Path) -> Self {
        self.option("state", file.display())
    }

    pub(crate) fn limit(self, limit: usize) -> Self {
        self.option("limit", limit)
    }

    pub(crate) fn tcp(self, port: u16) -> Self {
        self.option("tcp", port)
    }

    /// Runs the server below unshare(1) with these options.
    pub(crate) fn below(mut self, unshare: &[&str]) -> Self {
        self.unshare = unshare.iter().map(|&option| option.to_owned()).collect();
        self
    }

    fn option(mut self, name: &str, value: impl std::fmt::Display) -> Self {
        self.arguments.push(format!("{name}={value}"));
        self
    }

    /// Starts the server, and returns when it listens.
    pub(crate) fn start(self) -> TestServer {
        self.try_start()
            .unwrap_or_else(|log| panic!("the server does not start: {log:?}"))
    }

    /// Starts the server, or returns the log of one that does not start.
    pub(crate) fn try_start(self) -> Result<TestServer, Vec<String>> {
        let (process, log) = self.spawn()?;
        Ok(TestServer {
            setup: self,
            process,
            log,
        })
    }

    /// Starts the server.
    fn spawn_unready(&self) -> (Child, Log) {
        let mut command = match &self.unshare[..] {
            [] => Command::new(binary()),
            options => {
                let mut command = Command::new("unshare");
                command.args(options).arg("--").arg(binary());
                command
            }
        };
        let mut process = command
            .arg(self.address.to_string())
            .args(&self.arguments)
            // It ends when this does.
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|err| panic!("{}: {err}; build the examples", binary().display()));
        let log = Log::follow(process.stderr.take().unwrap());
        (process, log)
    }

    /// Starts the server, and returns when it listens.
    fn spawn(&self) -> Result<(Child, Log), Vec<String>> {
        let (mut process, log) = self.spawn_unready();
        let mut line = String::new();
        let mut output = BufReader::new(process.stdout.take().unwrap());
        output.read_line(&mut line).unwrap();
        if line != "ready\n" {
            _ = process.kill();
            process.wait().unwrap();
            return Err(log.finish());
        }
        // What it logs comes another way, and this is the last of it.
        log.wait_for("managing");
        Ok((process, log))
    }
}

/// Returns the path of the example, beside the test binary's folder.
fn binary() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.parent().unwrap().with_file_name("examples/serve")
}

/// A server, killed when this is dropped.
#[derive(Debug)]
pub(crate) struct TestServer {
    setup: Setup,
    process: Child,
    pub(crate) log: Log,
}

impl TestServer {
    /// Starts a server of these ports, with neither state nor limit.
    pub(crate) fn start(ports: &str) -> Self {
        Setup::new(ports).start()
    }

    pub(crate) fn address(&self) -> &ServerAddress {
        &self.setup.address
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Connects a client.
    pub(crate) fn connect(&self) -> Client {
        Client::connect(self.address())
    }

    /// Asks for a port for `owner` by the original protocol.
    pub(crate) fn ask(&self, owner: u32) -> Option<u16> {
        crate::client::ask(self.address(), &owner.to_string())
    }

    /// Asks for a port for this process by the original protocol.
    pub(crate) fn ask_for_this(&self) -> Option<u16> {
        self.ask(std::process::id())
    }

    /// Returns the answer to `stats`.
    pub(crate) fn stats(&self) -> Value {
        self.connect().ok(r#"{"v":1,"op":"stats"}"#)
    }

    /// Returns one of the numbers of `stats`.
    pub(crate) fn count(&self, name: &str) -> u64 {
        self.stats()[name].as_u64().unwrap()
    }

    /// Returns what `list` shows.
    pub(crate) fn list(&self) -> Vec<Value> {
        let answer = self.connect().ok(r#"{"v":1,"op":"list"}"#);
        answer["leases"].as_array().unwrap().clone()
    }

    /// Sends SIGKILL. Returns when the server is gone, with all it had open.
    pub(crate) fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Starts the server anew, with the same options. It must have been killed.
    pub(crate) fn restart(&mut self) {
        (self.process, self.log) = self.setup.spawn().unwrap();
    }

    /// Starts the server anew, and kills it when it has logged so many lines: while it starts.
    pub(crate) fn restart_and_kill_after_lines(&self, lines: usize) {
        let (mut process, log) = self.setup.spawn_unready();
        log.wait_until(|logged| {
            logged.len() >= lines || logged.iter().any(|line| line.contains("managing"))
        });
        process.kill().unwrap();
        process.wait().unwrap();
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.pid() as i32).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Sends SIGTERM. Returns how the server ended, and its log.
    pub(crate) fn terminate(mut self) -> (ExitStatus, Vec<String>) {
        let exit = portpicker_testing::Exit::of(self.pid());
        self.signal(Signal::TERM);
        // Not by `Child::wait` alone, which ends the server's input first.
        exit.wait();
        let status = self.process.wait().unwrap();
        let log = std::mem::take(&mut self.log);
        (status, log.finish())
    }

    /// Returns how much memory the server has in RAM, in KiB.
    pub(crate) fn resident(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        _ = self.process.kill();
        _ = self.process.wait();
    }
}

/// The lines that a server writes.
#[derive(Debug, Default)]
pub(crate) struct Log {
    lines: Arc<(Mutex<Vec<String>>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl Log {
    fn follow(stream: impl Read + Send + 'static) -> Self {
        let lines = Arc::<(Mutex<Vec<String>>, Condvar)>::default();
        let copy = Arc::clone(&lines);
        let thread = thread::spawn(move || {
            for line in BufReader::new(stream).lines().map_while(Result::ok) {
                copy.0.lock().unwrap().push(line);
                copy.1.notify_all();
            }
        });
        Self {
            lines,
            thread: Some(thread),
        }
    }

    /// Waits until a line has `text` in it, and returns the line.
    pub(crate) fn wait_for(&self, text: &str) -> String {
        self.wait_for_after(0, text)
    }

    /// Waits until a line behind the first `count` ones has `text` in it, and returns the line.
    pub(crate) fn wait_for_after(&self, count: usize, text: &str) -> String {
        let has_text = |line: &&String| line.contains(text);
        self.wait_until(|lines| lines.iter().skip(count).any(|line| has_text(&line)));
        self.lines()
            .into_iter()
            .skip(count)
            .find(|line| has_text(&line))
            .unwrap()
    }

    /// Waits until the lines are as `is_enough` says.
    fn wait_until(&self, is_enough: impl Fn(&[String]) -> bool) {
        let end = Instant::now() + LONG;
        let mut lines = self.lines.0.lock().unwrap();
        while !is_enough(&lines) {
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "{lines:?}");
            lines = self.lines.1.wait_timeout(lines, left).unwrap().0;
        }
    }

    /// Returns what was logged so far.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.lines.0.lock().unwrap().clone()
    }

    /// Returns all lines of a server that has ended.
    fn finish(mut self) -> Vec<String> {
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
        self.lines()
    }
}
