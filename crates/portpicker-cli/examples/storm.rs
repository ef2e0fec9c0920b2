//! Real servers under a storm of thieves: does one start fail, is one port stolen?
//!
//! `cargo run -p portpicker-cli --example storm -- --starts 200` prints a table. The servers are those
//! that are installed here; it runs in a network of its own, and takes all CPUs for minutes.
//!
//! | option                 | meaning                                                          |
//! | ---------------------- | ---------------------------------------------------------------- |
//! | `--starts N`           | starts of each server, restarts included (default: 20)           |
//! | `--server NAME`        | only this server                                                 |
//! | `--thieves N`          | how many threads want the port (default: 8)                      |
//! | `--let-go`             | thieves let go at once of what they get, instead of keeping it   |
//! | `--without-net-raw`    | `portpicker` has no CAP_NET_RAW, as an ordinary user's           |
//! | `--portpicker PATH`    | another `portpicker` than the one that was built beside          |
//! | `--number-from google` | the number comes from Google's portpicker, for comparison        |
//! | `--python PATH`        | the interpreter that has that (default: python3)                 |
#![expect(clippy::print_stdout, reason = "the result")]
#![expect(clippy::print_stderr, reason = "what is missing")]

use std::env;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Instant;

use portpicker_testing::storm::{Number, SERVERS, Thieves, storm};
use portpicker_testing::{namespace_wrapper, network};

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
    let options = Options::parse(env::args().skip(1))?;
    if env::var_os(INSIDE).is_none() {
        return go_inside();
    }
    network::set_up();
    let mut thieves = Thieves::hire(options.thieves, !options.lets_go);
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
        let outcome = storm(server, &options.number, options.starts, &mut thieves);
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

#[derive(Debug)]
struct Options {
    starts: usize,
    server: Option<String>,
    thieves: usize,
    lets_go: bool,
    number: Number,
}

impl Options {
    fn parse(mut words: impl Iterator<Item = String>) -> Result<Self, String> {
        let (mut starts, mut server, mut thieves, mut lets_go) = (20, None, 8, false);
        let (mut is_googles, mut has_net_raw) = (false, true);
        let (mut portpicker, mut python) = (beside()?, PathBuf::from("python3"));
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or(format!("{word} needs a value"));
            let number = |text: String| text.parse().map_err(|_| format!("`{text}` is no number"));
            match word.as_str() {
                "--starts" => starts = number(value()?)?,
                "--server" => server = Some(value()?),
                "--thieves" => thieves = number(value()?)?,
                "--let-go" => lets_go = true,
                "--without-net-raw" => has_net_raw = false,
                "--portpicker" => portpicker = value()?,
                "--python" => python = value()?.into(),
                "--number-from" => match value()?.as_str() {
                    "google" => is_googles = true,
                    other => return Err(format!("`{other}` gives no numbers, `google` does")),
                },
                _ => return Err(format!("`{word}` is no option")),
            }
        }
        let mut run = Vec::new();
        if !has_net_raw {
            let without = [
                "setpriv",
                "--bounding-set=-net_raw",
                "--inh-caps=-net_raw",
                "--",
            ];
            run.extend(without.map(str::to_owned));
        }
        run.push(portpicker);
        Ok(Self {
            starts,
            server,
            thieves,
            lets_go,
            number: match is_googles {
                true => Number::Google(python),
                false => Number::Run(run, vec!["--hand-off=strict".to_owned()]),
            },
        })
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
