//! The file with the server's pid.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process;

use tracing::warn;

/// A pidfile, removed when this is dropped if it is still ours.
#[derive(Debug)]
pub(crate) struct Pidfile {
    path: PathBuf,
    /// Has the pid already, beside the path.
    new_path: PathBuf,
}

impl Pidfile {
    /// Writes the pid beside `path`, so that whatever keeps it from being written there is known
    /// before the server listens.
    pub(crate) fn prepare(path: &Path) -> io::Result<Self> {
        if path.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        let pidfile = Self {
            path: path.to_owned(),
            new_path: path.with_added_extension(process::id().to_string()),
        };
        fs::write(&pidfile.new_path, content())?;
        Ok(pidfile)
    }

    /// Puts the pid in its place, whatever is there: the server listens, so no other one does.
    pub(crate) fn publish(&self) {
        if let Err(err) = fs::rename(&self.new_path, &self.path) {
            warn!("cannot write the pidfile `{}`: {err}", self.path.display());
        }
    }
}

impl Drop for Pidfile {
    fn drop(&mut self) {
        _ = fs::remove_file(&self.new_path);
        if fs::read_to_string(&self.path).is_ok_and(|text| text == content()) {
            _ = fs::remove_file(&self.path);
        }
    }
}

fn content() -> String {
    format!("{}\n", process::id())
}
