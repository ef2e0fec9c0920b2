//! Running the command, for an owner whose life the test decides.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdout, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use portpicker::process::{Pid, Watch};
use portpicker::{Error, Picker, PortSet, Server};
use serde_json::Value;

/// Longer than anything that happens, for waits that end with an event.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// The path of the command that was built for the tests.
pub(crate) const PORTPICKER: &str = env!("CARGO_BIN_EXE_portpicker");

/// Returns the command, without what the environment of the tests may say to it.
pub(crate) fn portpicker(arguments: &[&str]) -> Command {
    let mut command = Command::new(PORTPICKER);
    command
        .args(arguments)
        .env_remove("PORTSERVER_ADDRESS")
        .env_remove("PORTPICKER_PORTS");
    command
}

/// Returns a shell that runs `script`, with the command as `portpicker`.
pub(crate) fn shell(script: &str) -> Command {
    let mut command = Command::new("sh");
    let folder = std::path::Path::new(PORTPICKER).parent().unwrap();
    let path = std::env::var("PATH").unwrap_or_default();
    command
        .args(["-euc", script])
        .env("PATH", format!("{}:{path}", folder.display()))
        .env_remove("PORTSERVER_ADDRESS")
        .env_remove("PORTPICKER_PORTS");
    command
}

/// What a run left behind, as text.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs `command` to its end; stdout and stderr are read until nobody has them open.
pub(crate) fn run(command: &mut Command) -> Ended {
    let Output {
        status,
        stdout,
        stderr,
    } = command.stdin(Stdio::null()).output().unwrap();
    Ended {
        code: status.code(),
        stdout: String::from_utf8(stdout).unwrap(),
        stderr: String::from_utf8(stderr).unwrap(),
    }
}

/// A command whose input and output are the test's.
#[derive(Debug)]
pub(crate) struct Talking {
    pub(crate) child: Child,
    output: BufReader<ChildStdout>,
}

impl Talking {
    /// Starts `command`. It ends with the test, at the latest at the end of its input.
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self { child, output }
    }

    /// Returns the next line of its output, without its end; empty at the end of the output.
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Writes a line to its input.
    pub(crate) fn say(&mut self, line: &str) {
        let input = self.child.stdin.as_mut().unwrap();
        input.write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    /// Ends its input, and waits until it has ended.
    pub(crate) fn finish(mut self) -> ExitStatus {
        drop(self.child.stdin.take());
        self.child.wait().unwrap()
    }
}

/// A process that runs until it is ended, and owns ports.
#[derive(Debug)]
pub(crate) struct Owner(Child);

impl Owner {
    pub(crate) fn start() -> Self {
        // It reads a pipe that nobody writes to, so it ends with the test, whatever happens.
        Self(
            Command::new("cat")
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .spawn()
                .unwrap(),
        )
    }

    pub(crate) fn pid(&self) -> String {
        self.0.id().to_string()
    }

    pub(crate) fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.end();
    }
}

/// What `pick --json` printed.
#[derive(Debug)]
pub(crate) struct Picked {
    pub(crate) ports: Vec<u16>,
    pub(crate) server: Option<String>,
    pub(crate) keeper: Option<Pid>,
}

/// Picks for `owner` with `options`, and expects success.
pub(crate) fn pick(owner: &Owner, options: &[&str]) -> Picked {
    let owner = owner.pid();
    let arguments = [&["pick", "--json", "--owner", &owner], options].concat();
    let ended = run(&mut portpicker(&arguments));
    assert_eq!(
        (ended.code, ended.stderr.as_str()),
        (Some(0), ""),
        "{arguments:?}"
    );
    let json: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(json["owner"].to_string(), owner);
    let number = |value: &Value| value.as_u64().unwrap();
    Picked {
        ports: json["ports"]
            .as_array()
            .unwrap()
            .iter()
            .map(|port| number(port) as u16)
            .collect(),
        server: json["server"].as_str().map(str::to_owned),
        keeper: (!json["keeper"].is_null())
            .then(|| Pid::new(number(&json["keeper"]) as u32).unwrap()),
    }
}

/// Starts to watch a process that runs.
pub(crate) fn watch(pid: Pid) -> Watch {
    Watch::open(pid).unwrap()
}

/// Waits until `port` is unused and leased to nobody.
pub(crate) fn wait_until_unused(port: u16) {
    drop(
        only(port)
            .wait(LONG)
            .lease()
            .expect("the lease of the port ends"),
    );
}

fn only(port: u16) -> Picker {
    Picker::new()
        .server(Server::None)
        .ports(PortSet::from_ports([port]).unwrap())
}

/// Tells whether somebody has leased `port`.
pub(crate) fn is_leased(port: u16) -> bool {
    match only(port).lease() {
        Ok(_) => false,
        Err(Error::Exhausted(tally)) => tally.leased == 1,
        Err(err) => panic!("{err}"),
    }
}
