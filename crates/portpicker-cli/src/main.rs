//! The command `portpicker`.

use std::process::ExitCode;

fn main() -> ExitCode {
    portpicker_cli::run(std::env::args_os())
}
