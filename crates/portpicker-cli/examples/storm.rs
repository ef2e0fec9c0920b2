//! Real servers under a storm of thieves: does one start fail, is one port stolen?
//!
//! `cargo run --release -p portpicker-cli --example storm -- --starts 200` prints a table; `--help` has
//! the options. The servers are those that are installed here; all of it happens in a network of its
//! own, and takes all CPUs for minutes.
#![expect(clippy::print_stdout, reason = "the result")]
#![expect(clippy::print_stderr, reason = "what is missing")]

use std::env;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Instant;

use clap::{Parser, ValueEnum};
use portpicker_testing::storm::{Number, SERVERS, Thieves, storm};
use portpicker_testing::{namespace_wrapper, network};

/// Real servers under a storm of thieves: does one start fail, is one port stolen?
#[derive(Debug, Parser)]
#[command(name = "storm", max_term_width = 80)]
struct Options {
    /// Starts of each server, restarts included
    #[arg(long, value_name = "N", default_value_t = 20)]
    starts: usize,
    /// Only this server
    #[arg(long, value_name = "NAME", value_parser = SERVERS.iter().map(|it| it.name).collect::<Vec<_>>())]
    server: Option<String>,
    /// How many threads want the port
    #[arg(long, value_name = "N", default_value_t = 8)]
    thieves: usize,
    /// Thieves let go at once of what they get, instead of keeping it
    #[arg(long)]
    let_go: bool,
    /// Runs `portpicker` without CAP_NET_RAW, as an ordinary user's
    #[arg(long)]
    without_net_raw: bool,
    /// Another `portpicker` than the one that was built beside
    #[arg(long, value_name = "FILE")]
    portpicker: Option<String>,
    /// Where the port comes from
    #[arg(long, value_name = "WHERE", value_enum, default_value_t = Source::Run)]
    number_from: Source,
    /// The interpreter that has Google's portpicker
    #[arg(long, value_name = "FILE", default_value = "python3")]
    python: PathBuf,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Source {
    /// `portpicker run`
    Run,
    /// Google's portpicker, for comparison
    Google,
}

/// The environment variable by which the process knows that it has a network of its own.
const INSIDE: &str = "PORTPICKER_STORM_INSIDE";

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(reason) => {
            eprintln!("storm: {reason}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<ExitCode, String> {
    let options = Options::parse();
    if env::var_os(INSIDE).is_none() {
        return go_inside();
    }
    network::set_up();
    let number = options.number()?;
    let mut thieves = Thieves::hire(options.thieves, !options.let_go);
    let mut is_good = true;
    println!(
        "{:<22} {:>7} {:>7} {:>7} {:>7} {:>10} {:>8}",
        "server", "starts", "failed", "bound", "served", "attempts", "seconds"
    );
    for server in SERVERS {
        if options
            .server
            .as_ref()
            .is_some_and(|name| name != server.name)
        {
            continue;
        }
        if let Some(obstacle) = server.obstacle() {
            println!("{:<22} {obstacle}", server.name);
            continue;
        }
        let begin = Instant::now();
        let outcome = storm(server, &number, options.starts, &mut thieves);
        println!(
            "{:<22} {:>7} {:>7} {:>7} {:>7} {:>10} {:>8.1}",
            server.name,
            outcome.starts,
            outcome.failed,
            outcome.loot.bound,
            outcome.loot.served,
            outcome.loot.attempts,
            begin.elapsed().as_secs_f64(),
        );
        if let Some(reason) = outcome.reason {
            println!("    the first failure: {reason}");
        }
        is_good &= outcome.failed == 0 && outcome.loot.bound == 0;
    }
    Ok(if is_good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Starts this program again in a network of its own.
fn go_inside() -> Result<ExitCode, String> {
    let wrapper = namespace_wrapper()?;
    let itself = env::current_exe().map_err(|err| err.to_string())?;
    let status = Command::new(wrapper[0])
        .args(&wrapper[1..])
        .arg("--")
        .arg(itself)
        .args(env::args_os().skip(1))
        .env(INSIDE, "1")
        .status()
        .map_err(|err| format!("{}: {err}", wrapper[0]))?;
    Ok(ExitCode::from(status.code().unwrap_or(1) as u8))
}

impl Options {
    fn number(&self) -> Result<Number, String> {
        if let Source::Google = self.number_from {
            return Ok(Number::Google(self.python.clone()));
        }
        let mut run = Vec::new();
        if self.without_net_raw {
            let without = [
                "setpriv",
                "--bounding-set=-net_raw",
                "--inh-caps=-net_raw",
                "--",
            ];
            run.extend(without.map(str::to_owned));
        }
        run.push(match &self.portpicker {
            Some(portpicker) => portpicker.clone(),
            None => beside()?,
        });
        Ok(Number::Run(run, vec!["--hand-off=strict".to_owned()]))
    }
}

/// Returns the command that was built with this program.
fn beside() -> Result<String, String> {
    let itself = env::current_exe().map_err(|err| err.to_string())?;
    let folder = itself.parent().and_then(|it| it.parent());
    let path = folder.ok_or("there is no folder")?.join("portpicker");
    path.to_str()
        .map(str::to_owned)
        .ok_or("its path is not text".to_owned())
}
