//! The command `portpicker`: what it understands, does, prints, and returns.
//!
//! [`run`] is the whole of it. The ports come from the library; what is here is the command line
//! (`arguments`), the keeper that keeps a script's ports leased (`keeper`), and the texts.

mod arguments;
mod exit;
mod generate;
mod keeper;
mod output;
mod pick;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};

use crate::arguments::{Arguments, Command};
use crate::exit::Exit;

/// Runs the command with `arguments`, the first of which is its own name.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    // Before anything else: the keeper stays for hours, and should be small.
    if let Some(inherited) = keeper::inherited(&arguments) {
        return keeper::keep(inherited);
    }
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(err) => {
            // Help and the version go to stdout, and are what was asked for.
            let exit = match err.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Exit::Success,
                _ => Exit::Usage,
            };
            return match err.print() {
                Ok(()) => exit.into(),
                Err(_) => Exit::System.into(),
            };
        }
    };
    let result = match arguments.command {
        None => pick::pick(&pick::Request::from(arguments.drop_in)),
        Some(Command::Pick(options)) => pick::pick(&pick::Request::from(options)),
        Some(Command::Completions { shell }) => {
            generate::completions(shell, &mut Arguments::command())
        }
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
