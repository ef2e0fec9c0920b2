//! A gate at which many processes wait to begin at once.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, mkfifoat};
use tempfile::TempDir;

/// A named pipe: whoever opens it to read waits, and all go on when the gate opens it to write.
///
/// In a shell script: `: < "$gate"`.
#[derive(Debug)]
pub struct Gate {
    path: PathBuf,
    opened: Option<File>,
    _folder: TempDir,
}

impl Gate {
    /// Returns a gate that is shut.
    #[expect(clippy::new_without_default, reason = "it makes a file")]
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let path = folder.path().join("gate");
        mkfifoat(CWD, &path, Mode::from_raw_mode(0o600)).expect("a named pipe can be made");
        Self {
            path,
            opened: None,
            _folder: folder,
        }
    }

    /// Returns the path of the pipe.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Lets all pass who wait, and all who come later. Waits until there is one.
    pub fn open(&mut self) {
        let file = OpenOptions::new().write(true).open(&self.path);
        self.opened = Some(file.expect("the gate exists"));
    }
}

/// Waits at the gate at `path` until it opens.
pub(crate) fn pass(path: &Path) {
    File::open(path).expect("the gate exists");
}
