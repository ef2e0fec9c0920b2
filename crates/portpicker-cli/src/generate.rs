//! Manual pages and completions, from the same definitions as the parser.

use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;

use crate::output;
use crate::pick::Failure;

/// Prints the completions of `command` for `shell`.
pub(crate) fn completions(shell: Shell, command: &mut Command) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, command, "portpicker", &mut script);
    output::print(&script).map_err(Failure::Output)
}

/// Prints the manual page of `command`, or of its subcommand `page`.
pub(crate) fn manual(page: Option<&str>, command: Command) -> Result<(), Failure> {
    let mut command = command.disable_help_subcommand(true);
    command.build();
    let command = match page {
        None | Some("portpicker") => command,
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
