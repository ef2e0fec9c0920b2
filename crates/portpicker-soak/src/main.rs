//! The program `soak`; under the names of the project's commands, those commands.

use std::ffi::OsStr;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use portpicker_soak::actor::{self, Kind};
use portpicker_soak::place::Server;
use portpicker_soak::soak::{self, Options};

/// Every way to pick at once, while everything goes wrong
#[derive(Debug, Parser)]
#[command(
    name = "soak",
    max_term_width = 80,
    args_conflicts_with_subcommands = true,
    disable_help_subcommand = true,
    override_usage = "soak [OPTIONS]",
    after_help = "\
All of it happens in namespaces of its own, for which no root is needed where
users may make them. Progress goes to standard error.

Exit status:
  0  Nothing was wrong
  1  Something was wrong, or left at the end: see the report
  2  There was no soak"
)]
struct Arguments {
    #[command(subcommand)]
    role: Option<Role>,
    #[command(flatten)]
    options: Options,
    /// Marks the process inside of the namespaces: where its files are
    #[arg(long, hide = true)]
    inside: Option<PathBuf>,
}

/// What this program does below itself.
#[derive(Debug, Subcommand)]
enum Role {
    #[command(hide = true)]
    Actor {
        kind: Kind,
        seed: u64,
        #[arg(value_parser = server)]
        server: Server,
    },
    #[command(hide = true)]
    Bind { millis: u64, ports: Vec<u16> },
}

fn server(name: &str) -> Result<Server, String> {
    Server::named(name).ok_or_else(|| format!("there is no server `{name}`"))
}

fn main() -> ExitCode {
    let name = std::env::args_os().next();
    let name = name.as_deref().and_then(|name| Path::new(name).file_name());
    // One build, and surely of these sources.
    match name.and_then(OsStr::to_str) {
        Some("portpicker") => return portpicker_cli::run(std::env::args_os()),
        Some("portserver") => return portpicker_cli::serve(std::env::args_os()),
        _ => {}
    }
    let arguments = Arguments::parse();
    let ended = match (arguments.role, arguments.inside) {
        (Some(Role::Actor { kind, seed, server }), _) => {
            actor::act(kind, seed, server);
            Ok(ExitCode::SUCCESS)
        }
        (Some(Role::Bind { millis, ports }), _) => {
            actor::bind(&ports, Duration::from_millis(millis));
            Ok(ExitCode::SUCCESS)
        }
        (None, None) => soak::outside(&arguments.options),
        (None, Some(folder)) => soak::inside(&arguments.options, &folder),
    };
    ended.unwrap_or_else(|err| {
        _ = writeln!(io::stderr(), "soak: {err}");
        ExitCode::from(2)
    })
}
