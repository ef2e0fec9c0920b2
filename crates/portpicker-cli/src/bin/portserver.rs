//! The command `portserver`: the same as `portpicker serve`, under the name that scripts know.

use std::process::ExitCode;

fn main() -> ExitCode {
    portpicker_cli::serve(std::env::args_os())
}
