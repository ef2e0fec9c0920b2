//! The command `portpicker`: what it understands, does, prints, and returns.
//!
//! [`run`] is the whole of it, and [`serve`] the whole of `portserver`. The ports come from the
//! library, and the server from the crate for it; what is here is the command line (`arguments`),
//! the keeper that keeps a script's ports leased (`keeper`), what the server has to do with the
//! system around it (`serve`), and the texts.

mod again;
mod arguments;
mod exit;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod generate;
mod inherited;
mod keeper;
mod output;
mod pick;
mod release;
mod run;
mod serve;
mod status;
mod wanted;
mod which_server;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};

use crate::arguments::{Arguments, Command};
use crate::exit::Exit;
use crate::serve::Beginning;

/// Runs the command with `arguments`, the first of which is its own name.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    // Before anything else: the keeper stays for hours, and should be small.
    if let Some(inherited) = keeper::inherited(&arguments) {
        return keeper::keep(inherited);
    }
    if let Some(passed) = run::passing::inherited(&arguments) {
        return run::passing::pass(&passed);
    }
    if let Some(beginning) = run::beginning::inherited(&arguments) {
        return run::beginning::begin(beginning);
    }
    let beginning = (arguments.get(1).is_some_and(|command| command == "serve"))
        .then(|| Beginning::of(&arguments, 2));
    let is_run = arguments.get(1).is_some_and(|command| command == "run");
    let arguments = match parse::<Arguments>(&arguments) {
        Ok(arguments) => arguments,
        // Every other status may be the command's.
        Err(Exit::Usage) if is_run => return run::FAILED.into(),
        Err(exit) => return exit.into(),
    };
    let result = match arguments.command {
        None => pick::pick(&pick::Request::from(arguments.drop_in)),
        Some(Command::Serve(options)) => {
            let beginning = beginning.expect("the subcommand is the first argument");
            return serve::serve(options, beginning).into();
        }
        Some(Command::Run(options)) => return run::run(&options),
        Some(Command::Wait(options)) => return run::wait(options),
        Some(Command::Pick(options)) => pick::pick(&pick::Request::from(options)),
        Some(Command::Status(options)) => status::status(options),
        Some(Command::Release(options)) => release::release(options),
        Some(Command::Completions { shell, program }) => generate::completions(shell, program),
        Some(Command::Manual { page }) => generate::manual(page.as_deref(), Arguments::command()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output::complain(&failure);
            Exit::of(&failure).into()
        }
    }
}

/// Runs the server with `arguments`, the first of which is its own name.
pub fn serve(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let beginning = Beginning::of(&arguments, 1);
    match parse(&arguments) {
        Ok(options) => serve::serve(options, beginning).into(),
        Err(exit) => exit.into(),
    }
}

/// Reads the command line, or prints what there is to say instead.
fn parse<A: Parser>(arguments: &[OsString]) -> Result<A, Exit> {
    A::try_parse_from(arguments).map_err(|err| {
        // Help and the version go to stdout, and are what was asked for.
        let exit = match err.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Exit::Success,
            _ => Exit::Usage,
        };
        match err.print() {
            Ok(()) => exit,
            Err(_) => Exit::System,
        }
    })
}
