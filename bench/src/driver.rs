//! A tool in a process of its own, and the conversation with it.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use crate::Result;
use crate::tools::VARIABLES;

/// A process that picks ports with one tool. Dropping it ends the process.
#[derive(Debug)]
pub struct Driver {
    line: String,
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

/// What the tool returned, and how long it took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pick {
    pub port: u16,
    pub micros: f64,
}

/// The server that is bound to a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// One that sets no options.
    Plain,
    /// One that sets SO_REUSEADDR.
    Reuse,
}

impl How {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Plain, Self::Reuse];

    /// Returns the word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Reuse => "reuse",
        }
    }
}

impl Driver {
    /// Starts a driver. It is ready when [`wait_until_ready`](Self::wait_until_ready) returns.
    pub fn start(line: &[PathBuf], environment: &[(&str, &str)]) -> Result<Self> {
        let (program, arguments) = line.split_first().ok_or("no program")?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        for variable in VARIABLES {
            command.env_remove(variable);
        }
        command.envs(environment.iter().copied());
        let mut process = command
            .spawn()
            .map_err(|err| format!("{}: {err}", program.display()))?;
        let words: Vec<_> = line.iter().map(|word| word.to_string_lossy()).collect();
        Ok(Self {
            line: words.join(" "),
            input: process.stdin.take().ok_or("no input")?,
            output: BufReader::new(process.stdout.take().ok_or("no output")?),
            process,
        })
    }

    /// Waits until the tool is loaded.
    pub fn wait_until_ready(&mut self) -> Result<()> {
        match self.read()?.as_str() {
            "ready" => Ok(()),
            line => Err(format!("{}: `{line}` instead of `ready`", self.line).into()),
        }
    }

    /// Asks for `count` ports. [`answer`](Self::answer) has them.
    pub fn ask(&mut self, count: usize) -> Result<()> {
        self.write(&format!("pick {count}\n"))
    }

    /// Returns the ports that were asked for, `None` for each that the tool did not find.
    pub fn answer(&mut self) -> Result<Vec<Option<Pick>>> {
        let line = self.read()?;
        parse_picks(&line).ok_or_else(|| format!("{}: `{line}`", self.line).into())
    }

    /// Picks `count` ports.
    pub fn pick(&mut self, count: usize) -> Result<Vec<Option<Pick>>> {
        self.ask(count)?;
        self.answer()
    }

    /// Has the tool itself become a server at `port`. Returns whether that went well.
    pub fn bind(&mut self, port: u16, how: How) -> Result<bool> {
        self.write(&format!("bind {port} {}\n", how.word()))?;
        match self.read()?.as_str() {
            "bound" => Ok(true),
            "refused" => Ok(false),
            line => Err(format!("{}: `{line}`", self.line).into()),
        }
    }

    fn write(&mut self, line: &str) -> Result<()> {
        // One write, so that the driver is woken once.
        self.input
            .write_all(line.as_bytes())
            .map_err(|err| format!("{}: {err}", self.line).into())
    }

    fn read(&mut self) -> Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        match line.strip_suffix('\n') {
            Some(line) => Ok(line.to_owned()),
            None => Err(format!("{}: it has ended", self.line).into()),
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        _ = self.process.kill();
        _ = self.process.wait();
    }
}

fn parse_picks(line: &str) -> Option<Vec<Option<Pick>>> {
    let words = line.strip_prefix("picked")?.split_ascii_whitespace();
    words
        .map(|word| match word {
            "-" => Some(None),
            _ => {
                let (port, nanoseconds) = word.split_once(':')?;
                Some(Some(Pick {
                    port: port.parse().ok()?,
                    micros: nanoseconds.parse::<f64>().ok()? / 1e3,
                }))
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Driver {
        let mut driver = Driver::start(&["sh".into(), "-c".into(), script.into()], &[]).unwrap();
        driver.wait_until_ready().unwrap();
        driver
    }

    #[test]
    fn a_driver_says_what_it_picked_and_how_long_it_took() {
        let mut driver = shell("echo ready; read line; echo picked 20001:1500 - 20002:250");
        let picks = driver.pick(3).unwrap();
        let pick = |port, micros| Some(Pick { port, micros });
        assert_eq!(picks, [pick(20_001, 1.5), None, pick(20_002, 0.25)]);
    }

    #[test]
    fn a_driver_is_asked_in_words() {
        let mut driver = shell(
            "echo ready; while read line; do echo \"$line\" >&2; \
            [ \"$line\" = 'bind 7 reuse' ] && echo bound || echo refused; done 2>/dev/null",
        );
        assert!(driver.bind(7, How::Reuse).unwrap());
        assert!(!driver.bind(7, How::Plain).unwrap());
    }

    #[test]
    fn a_driver_that_ends_or_babbles_is_an_error() {
        assert!(shell("echo ready").pick(1).is_err());
        assert!(shell("echo ready; echo ports 1 2").pick(2).is_err());
        assert!(shell("echo ready; echo picked 1:2:3").pick(1).is_err());
        assert!(shell("echo ready; echo picked 70000:3").pick(1).is_err());
    }
}
