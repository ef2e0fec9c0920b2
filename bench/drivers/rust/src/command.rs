//! Commands that print a port.

use std::ffi::OsString;
use std::process::{self, Command, Stdio};

use crate::{Result, Tool};

/// A command line, run once for each pick.
pub(crate) struct Picker(Command);

impl Picker {
    /// Returns the picker that runs `line`, in which the word `PID` stands for this process: the
    /// script that asks for the port.
    pub(crate) fn new(line: &[String]) -> Result<Self> {
        let (program, arguments) = line.split_first().ok_or("which command?")?;
        let mut command = Command::new(program);
        command
            .args(arguments.iter().map(|word| match word.as_str() {
                "PID" => OsString::from(process::id().to_string()),
                _ => OsString::from(word),
            }))
            .stdin(Stdio::null())
            .stderr(Stdio::null());
        Ok(Self(command))
    }
}

impl Tool for Picker {
    fn pick(&mut self) -> Option<u16> {
        let output = self.0.output().ok()?;
        if !output.status.success() {
            return None;
        }
        str::from_utf8(&output.stdout).ok()?.trim().parse().ok()
    }
}
