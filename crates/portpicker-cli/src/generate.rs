//! Manual pages and completions, from the same definitions as the parser.

use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;

use crate::arguments::{Arguments, Program};
use crate::pick::Failure;
use crate::{output, serve};

/// Prints the completions of `program` for `shell`.
pub(crate) fn completions(shell: Shell, program: Program) -> Result<(), Failure> {
    let mut script = Vec::new();
    let (mut command, name) = match program {
        Program::Portpicker => (Arguments::command(), "portpicker"),
        Program::Portserver => (serve::Arguments::command(), "portserver"),
    };
    clap_complete::generate(shell, &mut command, name, &mut script);
    output::print(&script).map_err(Failure::Output)
}

/// Prints the manual page of `command`, or of its subcommand `page`.
pub(crate) fn manual(page: Option<&str>, command: Command) -> Result<(), Failure> {
    let mut command = command.disable_help_subcommand(true);
    command.build();
    let command = match page {
        None | Some("portpicker") => command,
        Some("portserver") => serve::Arguments::command(),
        Some(page) => match command.find_subcommand(page) {
            Some(found) => found.clone(),
            None => {
                return Err(Failure::NoSuchPage {
                    page: page.to_owned(),
                });
            }
        },
    };
    let mut text = Vec::new();
    Man::new(command)
        .render(&mut text)
        .map_err(Failure::Output)?;
    output::print(&text).map_err(Failure::Output)
}
