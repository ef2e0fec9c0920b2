//! Picks ports with one crate, or with one command, when the benchmark asks for them.
//!
//! ```text
//! portpicker-bench-driver TOOL [FIRST-LAST]
//! portpicker-bench-driver command PROGRAM [ARGUMENT...]
//! portpicker-bench-driver run PORTPICKER
//! ```
//!
//! The conversation is in `bench/README.md`, "Drivers".

mod command;
mod crates;
mod handed_off;

use std::env;
use std::error::Error;
use std::io::{self, BufRead, Write};
use std::time::Instant;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// What picks ports here, and keeps them as long as it is.
trait Tool {
    /// Returns a port that was not picked before, by the tool's account; `None` if it finds none.
    fn pick(&mut self) -> Option<u16>;

    /// Becomes a server at a picked port, by the tool's own means. Returns whether that went well.
    fn bind(&mut self, port: u16, how: How) -> bool {
        unreachable!("the benchmark asks no such tool to bind {port} ({how:?})")
    }
}

/// The server that is bound to a port.
#[derive(Clone, Copy, Debug)]
enum How {
    /// One that sets no options.
    Plain,
    /// One that sets SO_REUSEADDR.
    Reuse,
}

impl How {
    fn from_word(word: &str) -> Result<Self> {
        match word {
            "plain" => Ok(Self::Plain),
            "reuse" => Ok(Self::Reuse),
            _ => Err(format!("`{word}`?").into()),
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Reuse => "reuse",
        }
    }
}

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let mut tool: Box<dyn Tool> = match arguments.split_first() {
        Some((first, rest)) if first == "command" => Box::new(command::Picker::new(rest)?),
        Some((first, rest)) if first == "run" => Box::new(handed_off::Runner::new(rest)?),
        Some((first, _)) if first == "server" => return handed_off::serve(),
        Some((first, rest)) => crates::tool(first, rest.first().map(String::as_str))?,
        None => return Err("which tool?".into()),
    };

    let mut output = io::stdout().lock();
    writeln!(output, "ready")?;
    for line in io::stdin().lock().lines() {
        let line = line?;
        let answer = match line.split(' ').collect::<Vec<_>>()[..] {
            ["pick", count] => pick(&mut *tool, count.parse()?),
            ["bind", port, how] => {
                let is_bound = tool.bind(port.parse()?, How::from_word(how)?);
                if is_bound { "bound" } else { "refused" }.to_owned()
            }
            _ => return Err(format!("`{line}`?").into()),
        };
        writeln!(output, "{answer}")?;
    }
    Ok(())
}

fn pick(tool: &mut dyn Tool, count: usize) -> String {
    let mut picked = Vec::with_capacity(count);
    for _ in 0..count {
        let start = Instant::now();
        let port = tool.pick();
        picked.push((port, start.elapsed()));
    }
    let mut answer = "picked".to_owned();
    for (port, time) in picked {
        match port {
            Some(port) => answer += &format!(" {port}:{}", time.as_nanos()),
            None => answer += " -",
        }
    }
    answer
}
