//! Everything that picks ports, measured side by side.
//!
//! `bench/run` fetches the tools and starts this. `bench/README.md` says what is measured, and how.

mod cell;
mod check;
mod collisions;
mod cost;
mod driver;
mod machine;
mod plan;
mod plots;
mod port_server;
mod progress;
mod report;
mod run;
#[cfg(test)]
mod sample;
mod servers;
mod statistics;
mod storm;
mod svg;
mod tables;
mod text;
mod thefts;
mod tools;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::plan::Scenario;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Everything that picks ports, measured side by side.
#[derive(Debug, Parser)]
#[command(max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measure
    Run(RunArguments),
    /// Make the tables and plots of earlier results anew
    Draw {
        /// The folder with results.json, and for the rest
        #[arg(default_value = "bench/results")]
        folder: PathBuf,
    },
    /// Do one job, in namespaces of one's own
    #[command(hide = true)]
    Cell { orders: String },
    /// Ask a port server for ports
    #[command(hide = true)]
    Client {
        clients: usize,
        requests: usize,
        #[arg(long)]
        stay: bool,
    },
}

#[derive(Debug, clap::Args)]
struct RunArguments {
    /// Show that everything works, and measure nothing
    #[arg(long)]
    short: bool,
    /// Measure only these
    #[arg(long, value_enum)]
    only: Vec<Scenario>,
    /// Measure only the tools whose ids have this in them
    #[arg(long, value_name = "TEXT")]
    tools: Vec<String>,
    /// Where bench/run has put the tools
    #[arg(long, default_value = "bench/target", value_name = "FOLDER")]
    places: PathBuf,
    /// Where to put results.json, tables.md, and the plots
    #[arg(long, default_value = "bench/results", value_name = "FOLDER")]
    output: PathBuf,
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Run(arguments) => run::run(&arguments),
        Command::Draw { folder } => run::draw(&folder),
        Command::Cell { orders } => cell::obey(&orders),
        Command::Client {
            clients,
            requests,
            stay,
        } => servers::be_client(clients, requests, stay),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("portpicker-bench: {err}");
            ExitCode::FAILURE
        }
    }
}
