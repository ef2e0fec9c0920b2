//! A terminal, for what people type at one.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::process::Command;

use crate::support::shell;

/// A pseudo-terminal, with the test at the keyboard.
#[derive(Debug)]
pub(crate) struct Terminal {
    keyboard: File,
    screen: BufReader<File>,
    other_side: File,
}

impl Terminal {
    pub(crate) fn open() -> Self {
        use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
        let keyboard =
            openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&keyboard).unwrap();
        unlockpt(&keyboard).unwrap();
        let name = ptsname(&keyboard, Vec::new()).unwrap();
        let other_side = rustix::fs::open(
            &name,
            rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY | rustix::fs::OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        )
        .unwrap();
        let keyboard = File::from(keyboard);
        let screen = BufReader::new(keyboard.try_clone().unwrap());
        Self {
            keyboard,
            screen,
            other_side: other_side.into(),
        }
    }

    /// Starts `script` in a session whose terminal this is.
    pub(crate) fn start(&self, script: &str) -> std::process::Child {
        let mut session = Command::new("setsid");
        // As the test's own scripts find the command.
        for (name, value) in shell("").get_envs() {
            match value {
                Some(value) => session.env(name, value),
                None => session.env_remove(name),
            };
        }
        session
            .args(["--ctty", "bash", "-c", script])
            .stdin(self.other_side.try_clone().unwrap())
            .stdout(self.other_side.try_clone().unwrap())
            .stderr(self.other_side.try_clone().unwrap())
            .spawn()
            .unwrap()
    }

    pub(crate) fn type_in(&mut self, keys: &[u8]) {
        self.keyboard.write_all(keys).unwrap();
    }

    /// Returns the next line on the screen that has `text` in it.
    pub(crate) fn line_with(&mut self, text: &str) -> String {
        loop {
            let mut line = String::new();
            assert_ne!(self.screen.read_line(&mut line).unwrap(), 0);
            if line.contains(text) {
                return line;
            }
        }
    }
}
