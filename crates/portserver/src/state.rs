//! The state file: what the server knows about its leases, so that it knows them after a `kill -9`.
//!
//! A text file, a JSON object on each line. The first says what the file is and to which start of
//! the host it belongs; each of the others that a port was leased, or that a lease ended. A line is
//! written in one piece before the client gets its answer, so a server that is killed at any moment
//! has lost nothing that was granted. No `fsync`: the file must outlive the server, not the host,
//! since no owner outlives the host either.
//!
//! A last line without its end is one that was being written: its client got no answer. Any other
//! line that cannot be read is passed over and counted. From time to time the file is written anew,
//! beside the old one, and takes its place in one step.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::owners::Identity;
use crate::pool::Time;
use crate::proc;

/// A lease, as the file has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct SavedLease {
    pub(crate) port: u16,
    pub(crate) pid: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) inode: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) started: Option<u64>,
    pub(crate) uid: u32,
    /// In seconds since the host was started.
    pub(crate) since: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) expires: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<Box<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) tag: Option<Box<str>>,
}

impl SavedLease {
    pub(crate) fn identity(&self) -> Identity {
        Identity {
            pid: self.pid,
            inode: self.inode,
            started: self.started,
        }
    }
}

/// A line of the file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Line {
    /// The first one.
    State { version: u32, boot: String },
    /// A port was leased, or its lease was renewed.
    Lease(SavedLease),
    /// A lease ended.
    End { port: u16 },
}

const VERSION: u32 = 1;

impl Line {
    /// Returns the first line of a file.
    pub(crate) fn head(boot: &str) -> Self {
        Self::State {
            version: VERSION,
            boot: boot.to_owned(),
        }
    }
}

/// What was found in a state file.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// At most one for each port.
    pub(crate) leases: Vec<SavedLease>,
    /// What was dropped, in words.
    pub(crate) dropped: Vec<String>,
}

/// Reads what is in the bytes of a state file. Never fails: what cannot be read is dropped.
pub(crate) fn parse(bytes: &[u8], boot: &str) -> Found {
    let mut found = Found::default();
    let mut leases = std::collections::BTreeMap::new();
    let mut unreadable = 0;
    let mut lines = bytes
        .split_inclusive(|&byte| byte == b'\n')
        .enumerate()
        .peekable();
    match lines.peek().map(|(_, line)| read_line(line)) {
        None => return found,
        Some(Some(Line::State {
            version: VERSION,
            boot: saved,
        })) if saved == boot => {}
        Some(Some(Line::State {
            version: VERSION, ..
        })) => {
            found
                .dropped
                .push("all leases: the host has been started anew since".to_owned());
            return found;
        }
        Some(Some(Line::State { version, .. })) => {
            found
                .dropped
                .push(format!("all leases: the file is of version {version}"));
            return found;
        }
        // The head is lost; the rest is read, and each lease's owner looked for.
        Some(_) => {}
    }
    for (index, line) in lines {
        match read_line(line) {
            Some(Line::Lease(lease)) if lease.port != 0 => {
                leases.insert(lease.port, lease);
            }
            Some(Line::End { port }) => {
                leases.remove(&port);
            }
            Some(Line::State { .. }) if index == 0 => {}
            _ if !line.ends_with(b"\n") => {
                found
                    .dropped
                    .push("the last line, which is cut off".to_owned());
            }
            _ => unreadable += 1,
        }
    }
    if unreadable > 0 {
        found
            .dropped
            .push(format!("{unreadable} lines that are not of a state file"));
    }
    found.leases = leases.into_values().collect();
    found
}

fn read_line(line: &[u8]) -> Option<Line> {
    serde_json::from_slice(line.strip_suffix(b"\n")?).ok()
}

/// The file, being written.
#[derive(Debug)]
pub(crate) struct StateFile {
    path: PathBuf,
    boot: String,
    /// Locked, so that no second server uses the path.
    _lock: File,
    file: File,
    /// How many lines were added since the file was written anew.
    added: usize,
    /// Whether the file lacks a line, because one could not be written.
    is_behind: bool,
    buffer: Vec<u8>,
}

impl StateFile {
    /// Opens the file at `path`, and reads what a former server has left there.
    ///
    /// The file is as it was until [`rewrite`](Self::rewrite) is called.
    pub(crate) fn open(path: &Path) -> io::Result<(Self, Found)> {
        let lock_path = path.with_added_extension("lock");
        let lock = private(OpenOptions::new().create(true).write(true)).open(&lock_path)?;
        lock.try_lock().map_err(|err| match err {
            fs::TryLockError::WouldBlock => {
                io::Error::new(io::ErrorKind::ResourceBusy, "another server uses it")
            }
            fs::TryLockError::Error(err) => err,
        })?;
        let boot = proc::boot_id()?;
        let found = match fs::read(path) {
            Ok(bytes) => parse(&bytes, &boot),
            Err(err) if err.kind() == io::ErrorKind::NotFound => Found::default(),
            Err(err) => return Err(err),
        };
        let file = private(OpenOptions::new().create(true).append(true)).open(path)?;
        let state = Self {
            path: path.to_owned(),
            boot,
            _lock: lock,
            file,
            added: 0,
            is_behind: false,
            buffer: Vec::new(),
        };
        Ok((state, found))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Tells whether the file has to be written anew: it lacks something, or has grown by more
    /// lines than are worth keeping.
    pub(crate) fn wants_rewriting(&self, leases: usize) -> bool {
        self.is_behind || self.added > 1000 + 4 * leases
    }

    /// Tells whether the file lacks something.
    pub(crate) fn is_behind(&self) -> bool {
        self.is_behind
    }

    /// Adds that ports were leased.
    pub(crate) fn leased(
        &mut self,
        leases: impl IntoIterator<Item = SavedLease>,
    ) -> io::Result<()> {
        self.append(leases.into_iter().map(Line::Lease))
    }

    /// Adds that leases have ended.
    pub(crate) fn ended(&mut self, ports: impl IntoIterator<Item = u16>) -> io::Result<()> {
        self.append(ports.into_iter().map(|port| Line::End { port }))
    }

    fn append(&mut self, lines: impl IntoIterator<Item = Line>) -> io::Result<()> {
        self.buffer.clear();
        for line in lines {
            push_line(&mut self.buffer, &line);
            self.added += 1;
        }
        if self.is_behind {
            // The file may end in half a line. It is written anew when that is possible.
            return Ok(());
        }
        let result = self.file.write_all(&self.buffer);
        self.is_behind = result.is_err();
        result
    }

    /// Writes the file anew with `leases`, beside the old one, and puts it in its place.
    pub(crate) fn rewrite(&mut self, leases: impl Iterator<Item = SavedLease>) -> io::Result<()> {
        self.buffer.clear();
        push_line(&mut self.buffer, &Line::head(&self.boot));
        for lease in leases {
            push_line(&mut self.buffer, &Line::Lease(lease));
        }
        let new_path = self.path.with_added_extension("new");
        // A former one may be left over, and is not to be appended to.
        let result = remove_if_there(&new_path).and_then(|()| {
            let mut file =
                private(OpenOptions::new().create_new(true).append(true)).open(&new_path)?;
            file.write_all(&self.buffer)?;
            fs::rename(&new_path, &self.path)?;
            Ok(file)
        });
        self.buffer = Vec::new();
        match result {
            Ok(file) => {
                self.file = file;
                self.added = 0;
                self.is_behind = false;
                Ok(())
            }
            Err(err) => {
                // Space for the next attempt.
                _ = remove_if_there(&new_path);
                Err(err)
            }
        }
    }
}

pub(crate) fn push_line(buffer: &mut Vec<u8>, line: &Line) {
    serde_json::to_writer(&mut *buffer, line).expect("numbers and texts can be written as JSON");
    buffer.push(b'\n');
}

/// For the server's user alone: tags may say more than others should read.
fn private(options: &mut OpenOptions) -> &mut OpenOptions {
    options.mode(0o600)
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => Err(err),
        _ => Ok(()),
    }
}

/// Returns `time` in seconds.
pub(crate) fn seconds(time: Time) -> f64 {
    time.as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(port: u16) -> SavedLease {
        SavedLease {
            port,
            pid: 42,
            inode: Some(7),
            started: None,
            uid: 1000,
            since: 12.5,
            expires: None,
            name: Some("http".into()),
            tag: None,
        }
    }

    fn file_with(ports: &[u16], boot: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        push_line(&mut bytes, &Line::head(boot));
        for &port in ports {
            push_line(&mut bytes, &Line::Lease(lease(port)));
        }
        bytes
    }

    #[test]
    fn what_was_written_is_read() {
        let mut bytes = file_with(&[1, 2, 3], "b");
        push_line(&mut bytes, &Line::End { port: 2 });
        push_line(&mut bytes, &Line::Lease(lease(4)));
        let found = parse(&bytes, "b");
        assert_eq!(found.leases, [lease(1), lease(3), lease(4)]);
        assert_eq!(found.dropped, [""; 0]);
    }

    #[test]
    fn a_file_cut_off_at_any_byte_has_every_lease_before_that() {
        let bytes = file_with(&[1, 2, 3], "b");
        for length in 0..=bytes.len() {
            let whole = bytes[..length]
                .iter()
                .filter(|&&byte| byte == b'\n')
                .count();
            let found = parse(&bytes[..length], "b");
            assert_eq!(found.leases.len(), whole.saturating_sub(1), "{length}");
            let is_cut = length > 0 && bytes[length - 1] != b'\n';
            assert_eq!(
                found.dropped.len(),
                usize::from(is_cut),
                "{length}: {:?}",
                found.dropped
            );
        }
    }

    #[test]
    fn garbage_is_counted_and_the_rest_is_read() {
        let mut bytes = file_with(&[1], "b");
        bytes.extend(b"\xff\0\n{}\n\n{\"lease\":{\"port\":70000}}\n");
        push_line(&mut bytes, &Line::Lease(lease(2)));
        let found = parse(&bytes, "b");
        assert_eq!(found.leases.len(), 2);
        assert_eq!(found.dropped, ["4 lines that are not of a state file"]);
    }

    #[test]
    fn leases_of_another_start_of_the_host_are_dropped() {
        let found = parse(&file_with(&[1], "a"), "b");
        assert!(found.leases.is_empty() && found.dropped.len() == 1);
    }
}
