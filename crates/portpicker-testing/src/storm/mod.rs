//! A storm: real servers, started again and again while thieves do what they can to get the port.
//!
//! A *session* is one run of the command with one number. Thieves are let loose when the number is
//! known and, below `portpicker run`, held, and are called back before the server's last stop. In
//! between the server is started, asked something that only it can answer, stopped, and started once
//! more.

mod servers;
mod thieves;

pub use servers::{SERVERS, Server};
pub use thieves::{Loot, Thieves};

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::ops::AddAssign;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::exit::{DEADLINE, Exit};
use crate::network::set_ephemeral_range;

/// The numbers of the sessions, one after another. The kernel hands out the same ones by itself.
const PORTS: std::ops::RangeInclusive<u16> = 20_000..=20_199;

/// How many starts a session has.
pub const STARTS: usize = 2;

/// Starts, restarts, and stops a server as it is told by lines.
const SHELL: &str = r#"
echo ready
# The shell says of each that it was terminated.
exec 2>>"$LOG"
while read -r order; do
    case $order in
    start) "$@" </dev/null >>"$LOG" 2>&1 & server=$!; echo $server ;;
    stop) kill $server; wait $server; echo stopped ;;
    esac
done
"#;

/// Where a server's number comes from.
#[derive(Clone, Debug)]
pub enum Number {
    /// `portpicker run`: the words to start it with, and its options.
    Run(Vec<String>, Vec<String>),
    /// A Python interpreter that has Google's portpicker.
    Google(PathBuf),
}

/// What came of a storm.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// How often the server was started.
    pub starts: usize,
    /// How many of those failed.
    pub failed: usize,
    /// What the thieves have got, and how often they have tried.
    pub loot: Loot,
    /// Why the first start failed.
    pub reason: Option<String>,
}

impl AddAssign for Outcome {
    fn add_assign(&mut self, more: Self) {
        self.starts += more.starts;
        self.failed += more.failed;
        self.loot += more.loot;
        self.reason = self.reason.take().or(more.reason);
    }
}

/// Starts `server` as often as `starts` says, under `thieves`.
///
/// Only in a network namespace of its own.
pub fn storm(server: &Server, number: &Number, starts: usize, thieves: &mut Thieves) -> Outcome {
    set_ephemeral_range(PORTS);
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let prepared = server.prepare(folder.path());
    let mut outcome = Outcome::default();
    for port in PORTS.cycle().take(starts.div_ceil(STARTS)) {
        let log = folder.path().join("log");
        let mut session = Session::begin(number, port, &prepared, &log);
        thieves.rob(session.port, !server.shares);
        for start in 0..STARTS {
            let started = session.start(|port| server.is_up(port));
            outcome.starts += 1;
            if let Err(err) = started {
                outcome.failed += 1;
                let reason = format!("{err}; {}", last_line(&log));
                outcome.reason.get_or_insert(reason);
            }
            // The last one is stopped when nobody wants the port any more.
            if start + 1 < STARTS {
                session.stop();
            }
        }
        outcome.loot += thieves.call_back();
        session.end();
    }
    outcome
}

fn last_line(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    text.trim_end()
        .lines()
        .last()
        .unwrap_or_default()
        .to_owned()
}

/// A shell that starts and stops one server, with one number.
struct Session {
    shell: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
    port: u16,
    server: Option<Exit>,
}

impl Session {
    /// Begins a session. When this returns, the number is as safe as it will be.
    fn begin(number: &Number, port: u16, server: &[String], log: &Path) -> Self {
        let (mut command, port) = match number {
            Number::Run(portpicker, options) => {
                let mut command = Command::new(&portpicker[0]);
                command.args(&portpicker[1..]);
                command.args(["run", "--no-server", "--ports", &port.to_string()]);
                command.args(options).args(["--", "sh"]);
                (command, port)
            }
            Number::Google(python) => (Command::new("sh"), pick_with_google(python)),
        };
        File::create(log).expect("the folder is ours");
        // The number is in the place of braces, as `portpicker run` has it.
        let text = port.to_string();
        let words = server.iter().map(|word| word.replace("{}", &text));
        let mut shell = command
            .args(["-c", SHELL, "sh"])
            .args(words)
            .env("LOG", log)
            .env_remove("PORTPICKER_PORTS")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the command can be started");
        let orders = shell.stdin.take().expect("it is piped");
        let answers = BufReader::new(shell.stdout.take().expect("it is piped"));
        let mut session = Self {
            shell,
            orders,
            answers,
            port,
            server: None,
        };
        assert_eq!(session.answer(), "ready", "the port is unused");
        session
    }

    fn order(&mut self, order: &str) {
        writeln!(self.orders, "{order}").expect("the shell is alive");
    }

    fn answer(&mut self) -> String {
        let mut line = String::new();
        self.answers
            .read_line(&mut line)
            .expect("the shell answers");
        line.trim_end().to_owned()
    }

    /// Starts the server, and waits until it is up.
    fn start(&mut self, is_up: impl Fn(u16) -> io::Result<()>) -> io::Result<()> {
        self.order("start");
        let pid = self.answer().parse().expect("a process id");
        let server = self.server.insert(Exit::of(pid));
        let end = Instant::now() + DEADLINE;
        loop {
            let result = is_up(self.port);
            let err = match result {
                Ok(()) => return Ok(()),
                Err(err) => err,
            };
            // There is no event that every server has. Its end is one; meanwhile, others may run.
            if server.happens_within(Duration::from_millis(2)) {
                return Err(io::Error::other("the server has ended"));
            }
            if Instant::now() >= end {
                return Err(err);
            }
            thread::yield_now();
        }
    }

    fn stop(&mut self) {
        if self.server.take().is_some() {
            self.order("stop");
            assert_eq!(self.answer(), "stopped");
        }
    }

    fn end(mut self) {
        self.stop();
        let Self {
            mut shell, orders, ..
        } = self;
        drop(orders);
        shell.wait().expect("it is our child");
    }
}

/// Asks Google's portpicker for a number.
fn pick_with_google(python: &Path) -> u16 {
    let output = Command::new(python)
        .args([
            "-c",
            "import portpicker; print(portpicker.pick_unused_port())",
        ])
        .env_remove("PORTSERVER_ADDRESS")
        .output()
        .expect("the interpreter can be started");
    let text = String::from_utf8_lossy(&output.stdout);
    text.trim().parse().unwrap_or_else(|_| {
        panic!("{}", String::from_utf8_lossy(&output.stderr));
    })
}
