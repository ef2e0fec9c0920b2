//! Other processes that pick, bind, and start children when a test tells them to.
//!
//! A worker is the test binary, started again for one test that each binary with workers has at
//! its root:
//!
//! ```no_run
//! #[test]
//! fn worker() {
//!     portpicker_testing::worker::serve(|_, _| None);
//! }
//! ```
//!
//! It gets a line for each command and answers with one: `ok …`, or `error …`.

use std::env;
use std::error::Error;
use std::fs::{self, Permissions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::str::SplitWhitespace;

use portpicker::hand_off::{HandOff, HandedOff};
use portpicker::{Hold, Lease, Picker, PortSet, Server};
use socket2::Socket;

use crate::exit::{DEADLINE, Exit};
use crate::gate::{self, Gate};
use crate::own_process::{command, namespace_wrapper, with_plain_environment};
use crate::sockets::Binding;

/// The environment variable by which a process knows that it is a worker.
const IS_WORKER: &str = "PORTPICKER_TESTING_WORKER";

/// The name of the test that a worker runs.
const ENTRY: &str = "worker";

/// Another process with the library, ended when this is dropped.
#[derive(Debug)]
pub struct Worker {
    process: Process,
    commands: UnixStream,
    answers: BufReader<UnixStream>,
    lifeline: Option<Lifeline>,
}

/// The process of a worker, by whatever means it was started.
#[derive(Debug)]
#[expect(missing_docs, reason = "the types say it")]
pub enum Process {
    Child(Child),
    HandedOff(Box<HandedOff>),
}

impl Deref for Process {
    type Target = Child;

    fn deref(&self) -> &Child {
        match self {
            Self::Child(child) => child,
            Self::HandedOff(child) => child,
        }
    }
}

impl DerefMut for Process {
    fn deref_mut(&mut self) -> &mut Child {
        match self {
            Self::Child(child) => child,
            Self::HandedOff(child) => child,
        }
    }
}

/// What keeps the children of a worker alive, as long as they like to be: it is their input (or
/// output), which ends when this is dropped.
#[derive(Debug)]
pub struct Lifeline(UnixStream);

/// The answer to a command: the words after `ok`, or those after `error`.
pub type Answer<T> = Result<T, String>;

impl Worker {
    /// Starts a worker in this process's network namespace.
    pub fn spawn() -> Self {
        Self::spawn_with(&[])
    }

    /// Starts a worker with these environment variables.
    pub fn spawn_with(environment: &[(&str, &str)]) -> Self {
        Self::start(command(&[]), environment).expect("the test binary can be started again")
    }

    /// Starts a worker in a network namespace of its own, or returns why that is not possible.
    ///
    /// No device is up there, so it can lease and hold, and not connect.
    pub fn spawn_elsewhere() -> Result<Self, &'static str> {
        Self::start(command(namespace_wrapper()?), &[]).map_err(|_| "unshare cannot be started")
    }

    /// Starts a worker as the user `nobody`, or returns why that is not possible: only root may.
    pub fn spawn_as_nobody() -> Result<Self, String> {
        const NOBODY: u32 = 65_534;
        // In a folder that every user may enter, unlike perhaps that of the test binary.
        let open_to_all = Permissions::from_mode(0o755);
        let folder = tempfile::Builder::new()
            .permissions(open_to_all.clone())
            .tempdir()
            .expect("a temporary folder can be made");
        let copy = folder.path().join("worker");
        let binary = env::current_exe().expect("a process knows its own binary");
        fs::copy(binary, &copy).expect("the test binary can be copied");
        fs::set_permissions(&copy, open_to_all).expect("the copy is ours");
        let mut command = with_plain_environment(Command::new(copy));
        command.current_dir("/").uid(NOBODY).gid(NOBODY);
        Self::start(command, &[]).map_err(|err| format!("another user's process: {err}"))
    }

    /// Starts a worker that `holds` are handed off to.
    pub fn spawn_handed_off(holds: Vec<Hold>) -> Self {
        Self::spawn_by(&[], |command| {
            let hand_off = HandOff::new("", holds).configure(|it| *it = command);
            Ok(Process::HandedOff(Box::new(hand_off.strict().spawn()?)))
        })
        .expect("the test binary can be started again")
    }

    /// Starts a worker as `spawn` does it, below `wrapper`, a program that runs its arguments.
    pub fn spawn_by(
        wrapper: &[&str],
        spawn: impl FnOnce(Command) -> io::Result<Process>,
    ) -> io::Result<Self> {
        Self::start_by(command(wrapper), &[], spawn)
    }

    fn start(command: Command, environment: &[(&str, &str)]) -> io::Result<Self> {
        Self::start_by(command, environment, |mut command| {
            command.spawn().map(Process::Child)
        })
    }

    fn start_by(
        mut command: Command,
        environment: &[(&str, &str)],
        spawn: impl FnOnce(Command) -> io::Result<Process>,
    ) -> io::Result<Self> {
        // Its standard input is its end of the commands, in both directions; its output, where
        // libtest writes, is its end of the lifeline.
        let (commands, input) = UnixStream::pair().expect("sockets can be made");
        let (lifeline, output) = UnixStream::pair().expect("sockets can be made");
        command
            .args(["--exact", ENTRY])
            .args(["--nocapture", "--test-threads=1"])
            .env(IS_WORKER, "1")
            .envs(environment.iter().copied())
            .stdin(OwnedFd::from(input))
            .stdout(OwnedFd::from(output));
        let process = spawn(command)?;
        for socket in [&commands, &lifeline] {
            socket
                .set_read_timeout(Some(DEADLINE))
                .expect("a socket has timeouts");
        }
        let answers = commands.try_clone().expect("a descriptor can be copied");
        let mut worker = Self {
            process,
            commands,
            answers: BufReader::new(answers),
            lifeline: Some(Lifeline(lifeline)),
        };
        assert_eq!(
            worker.read_answer(),
            Ok("ready".into()),
            "is there a test `{ENTRY}` that serves?"
        );
        Ok(worker)
    }

    /// Starts a worker by a program that runs its arguments, `unshare` for example.
    pub fn spawn_below(wrapper: &[&str]) -> Self {
        Self::start(command(wrapper), &[]).expect("the program can be started")
    }

    /// Returns the process id.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Picks one port: `pick_unused_port`.
    pub fn pick(&mut self) -> Answer<u16> {
        self.tell("pick").map(number)
    }

    /// Picks ports, all or none: `pick_unused_ports`.
    pub fn pick_many(&mut self, count: usize) -> Answer<Vec<u16>> {
        self.tell(&format!("pick_many {count}")).map(numbers)
    }

    /// Returns a port: `return_port`.
    pub fn return_port(&mut self, port: u16) -> bool {
        self.tell(&format!("return {port}")).as_deref() == Ok("true")
    }

    /// Reserves a port: `add_reserved_port`.
    pub fn add_reserved_port(&mut self, port: u16) {
        let answer = self.tell(&format!("reserve {port}"));
        assert_eq!(answer, Ok(String::new()));
    }

    /// Asks whether a port is free: `is_port_free`.
    pub fn is_port_free(&mut self, port: u16) -> Answer<bool> {
        let answer = self.tell(&format!("is_free {port}"))?;
        Ok(answer == "true")
    }

    /// Leases `count` of `ports` until [`release`](Self::release).
    pub fn lease(&mut self, ports: &PortSet, count: usize) -> Answer<Vec<u16>> {
        self.tell(&format!("lease {ports} {count}")).map(numbers)
    }

    /// Holds `count` of `ports` until [`release`](Self::release).
    pub fn hold(&mut self, ports: &PortSet, count: usize) -> Answer<Vec<u16>> {
        self.tell(&format!("hold {ports} {count}")).map(numbers)
    }

    /// Ends all leases and holds.
    pub fn release(&mut self) {
        let answer = self.tell("release");
        assert_eq!(answer, Ok(String::new()));
    }

    /// Binds a socket to `port` until [`unbind`](Self::unbind). The error is an
    /// [`io::ErrorKind`]'s name.
    pub fn bind(&mut self, port: u16, binding: Binding) -> Answer<()> {
        self.tell(&format!("bind {port} {binding}")).map(drop)
    }

    /// Closes all sockets.
    pub fn unbind(&mut self) {
        let answer = self.tell("unbind");
        assert_eq!(answer, Ok(String::new()));
    }

    /// Starts another program, by fork and exec, that runs until the [`Lifeline`] ends.
    ///
    /// Returns when the program runs. (spawn(3) returns earlier: when the child is about to close
    /// its copies of the worker's descriptors.)
    pub fn spawn_child(&mut self) -> Exit {
        let child = Exit::of(self.tell("spawn").map(number).expect("it has cat"));
        // The program says what it hears.
        let lifeline = &mut self.lifeline.as_mut().expect("it was not killed").0;
        lifeline.write_all(b"alive\n").expect("the child is alive");
        let mut heard = Vec::new();
        let mut byte = [0];
        while !heard.ends_with(b"alive\n") {
            lifeline.read_exact(&mut byte).expect("the child answers");
            heard.extend(byte);
        }
        child
    }

    /// Sends one line and returns what comes back: for commands that a test adds.
    pub fn tell(&mut self, line: &str) -> Answer<String> {
        self.send(line);
        self.read_answer()
    }

    /// Kills the worker by SIGKILL, and returns when all its descriptors are closed.
    ///
    /// Its children live on, until what is returned is dropped.
    pub fn kill(mut self) -> Lifeline {
        self.end();
        self.lifeline.take().expect("it was not killed before")
    }

    fn send(&mut self, line: &str) {
        self.commands
            .write_all(format!("{line}\n").as_bytes())
            .expect("the worker is alive");
    }

    fn read_answer(&mut self) -> Answer<String> {
        let mut line = String::new();
        self.answers
            .read_line(&mut line)
            .expect("the worker answers in time");
        let line = line.trim_end();
        match line.split_once(' ').unwrap_or((line, "")) {
            ("ok", answer) => Ok(answer.to_owned()),
            ("error", answer) => Err(answer.to_owned()),
            _ => panic!("the worker says `{line}`"),
        }
    }

    fn end(&mut self) {
        self.process.kill().expect("it is our child");
        self.process.wait().expect("it is our child");
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.end();
    }
}

/// Lets all `workers` pick `each` ports, one by one, beginning at the same moment.
///
/// Returns what each has picked.
pub fn pick_at_once(workers: &mut [Worker], each: usize) -> Vec<Vec<u16>> {
    let mut gate = Gate::new();
    let line = format!("pick_each {each} {}", gate.path().display());
    for worker in &mut *workers {
        assert_eq!(worker.tell(&line), Ok("waiting".into()));
    }
    gate.open();
    workers
        .iter_mut()
        .map(|worker| numbers(worker.read_answer().expect("there are ports enough")))
        .collect()
}

/// What a worker has.
#[derive(Debug, Default)]
pub struct State {
    leases: Vec<Lease>,
    holds: Vec<Hold>,
    sockets: Vec<Socket>,
    children: Vec<Child>,
}

/// Does what the lines on standard input say, in a process that [`Worker::spawn`] has started;
/// returns at once in others.
///
/// A line is tried on `more` first: a test's own commands.
pub fn serve(mut more: impl FnMut(&mut State, &str) -> Option<Answer<String>>) {
    if env::var_os(IS_WORKER).is_none() {
        return;
    }
    let input = io::stdin().as_fd().try_clone_to_owned();
    let mut channel = UnixStream::from(input.expect("a descriptor can be copied"));
    let commands = BufReader::new(channel.try_clone().expect("a descriptor can be copied"));
    let mut state = State::default();
    let mut say = |answer: Answer<String>| {
        let line = match answer {
            Ok(answer) => format!("ok {answer}\n"),
            Err(answer) => format!("error {}\n", answer.replace('\n', " ")),
        };
        // A test that has ended already does not want to know.
        let _ = channel.write_all(line.as_bytes());
    };
    say(Ok("ready".into()));
    for line in commands.lines().map_while(Result::ok) {
        if let Some(("pick_each", arguments)) = line.split_once(' ') {
            say(Ok("waiting".into()));
            say(pick_each(arguments));
        } else {
            say(more(&mut state, &line).unwrap_or_else(|| state.answer(&line)));
        }
    }
}

fn pick_each(arguments: &str) -> Answer<String> {
    let (count, gate) = arguments.split_once(' ').expect("a count and a gate");
    let count: usize = count.parse().expect("a count");
    gate::pass(Path::new(gate));
    let ports = (0..count).map(|_| portpicker::pick_unused_port());
    words(ports.collect::<Result<Vec<_>, _>>())
}

impl State {
    /// Returns the sockets that were bound, the last one last.
    pub fn sockets(&mut self) -> &mut Vec<Socket> {
        &mut self.sockets
    }

    /// Carries out one command.
    pub fn answer(&mut self, line: &str) -> Answer<String> {
        let mut arguments = line.split_whitespace();
        match arguments.next() {
            Some("pick") => words(portpicker::pick_unused_port().map(|port| vec![port])),
            Some("pick_many") => words(portpicker::pick_unused_ports(next(&mut arguments)?)),
            Some("return") => Ok(portpicker::return_port(next(&mut arguments)?).to_string()),
            Some("reserve") => {
                portpicker::add_reserved_port(next(&mut arguments)?);
                Ok(String::new())
            }
            Some("is_free") => match portpicker::is_port_free(next(&mut arguments)?) {
                Ok(is_free) => Ok(is_free.to_string()),
                Err(err) => Err(format!("{err:?}")),
            },
            Some("lease") => {
                let picker = Picker::new().server(Server::None);
                let leases = picker
                    .ports(next(&mut arguments)?)
                    .leases(next(&mut arguments)?);
                keep(&mut self.leases, leases, Lease::port)
            }
            Some("hold") => {
                let picker = Picker::new().server(Server::None);
                let holds = picker
                    .ports(next(&mut arguments)?)
                    .holds(next(&mut arguments)?);
                keep(&mut self.holds, holds, Hold::port)
            }
            Some("release") => {
                self.leases.clear();
                self.holds.clear();
                Ok(String::new())
            }
            Some("bind") => {
                let port = next(&mut arguments)?;
                let binding: Binding = arguments.collect::<Vec<_>>().join(" ").parse()?;
                let socket = binding.bind(port).map_err(|err| err.kind().to_string())?;
                self.sockets.push(socket);
                Ok(String::new())
            }
            Some("unbind") => {
                self.sockets.clear();
                Ok(String::new())
            }
            Some("spawn") => {
                let lifeline = io::stdout().as_fd().try_clone_to_owned();
                let child = Command::new("cat")
                    .stdin(lifeline.map_err(|err| err.to_string())?)
                    .stdout(Stdio::inherit())
                    .spawn()
                    .map_err(|err| err.to_string())?;
                let pid = child.id();
                self.children.push(child);
                Ok(pid.to_string())
            }
            _ => Err(format!("`{line}` is not a command")),
        }
    }
}

fn keep<T>(
    kept: &mut Vec<T>,
    picked: portpicker::Result<Vec<T>>,
    port: impl Fn(&T) -> u16,
) -> Answer<String> {
    let ports = picked
        .as_ref()
        .map(|picked| picked.iter().map(port).collect());
    let answer = words(ports);
    kept.extend(picked.into_iter().flatten());
    answer
}

fn words(ports: Result<Vec<u16>, impl std::fmt::Debug>) -> Answer<String> {
    match ports {
        Ok(ports) => {
            let words: Vec<_> = ports.iter().map(u16::to_string).collect();
            Ok(words.join(" "))
        }
        Err(err) => Err(format!("{err:?}")),
    }
}

fn next<T: std::str::FromStr<Err: Error>>(arguments: &mut SplitWhitespace<'_>) -> Answer<T> {
    let word = arguments.next().ok_or("an argument is missing")?;
    word.parse()
        .map_err(|err: T::Err| format!("`{word}`: {err}"))
}

fn number<T: std::str::FromStr<Err: std::fmt::Debug>>(answer: String) -> T {
    answer.parse().expect("the answer is a number")
}

fn numbers(answer: String) -> Vec<u16> {
    answer
        .split_whitespace()
        .map(|word| number(word.to_owned()))
        .collect()
}
