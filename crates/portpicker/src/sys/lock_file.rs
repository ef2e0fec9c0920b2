//! A lock: `flock` on a file for each port, in one folder for the host.
//!
//! The fallback where there are no abstract sockets. It gives the same guarantee to processes
//! that see the same folder, and less to others: containers that share a network but no `/dev/shm`
//! do not see each other's locks. Files are left behind, since removing one that somebody is about
//! to lock would let two processes lock two different files; they are empty.
//!
//! The folder is open to all users, as the abstract namespace is: nobody can take a lock away,
//! anybody can take one first.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

#[derive(Debug)]
pub(crate) struct Lock(File);

impl AsFd for Lock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[derive(Debug, Default)]
pub(crate) struct Locker {
    folder: Option<PathBuf>,
}

impl Locker {
    pub(crate) fn try_lock(&mut self, port: u16) -> io::Result<Option<Lock>> {
        lock(open_lock_file(&self.path(port)?)?)
    }

    /// Returns the lock of `port` of which `descriptor` is a copy, or `None` if it is not.
    pub(crate) fn adopt(&mut self, port: u16, descriptor: OwnedFd) -> io::Result<Option<Lock>> {
        let file = File::from(descriptor);
        if !is_same_file(&file.metadata()?, &fs::metadata(self.path(port)?)?) {
            return Ok(None);
        }
        // Copies of a descriptor share its lock: this fails if another descriptor has it.
        lock(file)
    }

    fn path(&mut self, port: u16) -> io::Result<PathBuf> {
        let folder = match &mut self.folder {
            Some(folder) => folder,
            none => none.insert(lock_folder()?),
        };
        Ok(folder.join(port.to_string()))
    }
}

fn lock(file: File) -> io::Result<Option<Lock>> {
    match file.try_lock() {
        Ok(()) => Ok(Some(Lock(file))),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(err)) => Err(err),
    }
}

/// Returns the folder for the locks of this network namespace, made if it is missing.
fn lock_folder() -> io::Result<PathBuf> {
    // The same for every user, whatever TMPDIR says. /dev/shm is preferred because nothing
    // there is cleaned away by age.
    let base = ["/dev/shm", "/tmp"]
        .into_iter()
        .map(Path::new)
        .find(|folder| is_open_to_all(folder))
        .map_or_else(std::env::temp_dir, Path::to_path_buf);
    let host = base.join("portpicker");
    create_open_folder(&host)?;
    // Ports are scoped by network namespace, so their locks are too.
    match network_namespace() {
        Some(namespace) => {
            let folder = host.join(namespace.to_string());
            create_open_folder(&folder)?;
            Ok(folder)
        }
        None => Ok(host),
    }
}

fn open_lock_file(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32);
    }
    // First without O_CREAT: with it, `fs.protected_regular` refuses the files of other users.
    match options.open(path) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => {}
        result => return result,
    }
    match options.create_new(true).open(path) {
        Ok(file) => {
            set_mode(path, 0o666)?;
            Ok(file)
        }
        Err(err) if err.kind() == io::ErrorKind::AlreadyExists => {
            options.create_new(false).open(path)
        }
        Err(err) => Err(err),
    }
}

fn create_open_folder(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        // The umask may have narrowed the mode.
        Ok(()) => set_mode(path, 0o1777),
        Err(err) if err.kind() == io::ErrorKind::AlreadyExists => {
            if fs::symlink_metadata(path)?.is_dir() {
                Ok(())
            } else {
                Err(io::Error::new(
                    io::ErrorKind::NotADirectory,
                    format!("`{}` should be a folder", path.display()),
                ))
            }
        }
        Err(err) => Err(err),
    }
}

#[cfg(unix)]
fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

#[cfg(unix)]
fn is_open_to_all(folder: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(folder).is_ok_and(|data| data.is_dir() && data.mode() & 0o1777 == 0o1777)
}

#[cfg(unix)]
fn network_namespace() -> Option<u64> {
    use std::os::unix::fs::MetadataExt;
    fs::metadata("/proc/thread-self/ns/net")
        .ok()
        .map(|data| data.ino())
}

#[cfg(unix)]
fn is_same_file(a: &fs::Metadata, b: &fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

#[cfg(not(unix))]
fn is_same_file(_a: &fs::Metadata, _b: &fs::Metadata) -> bool {
    false
}

#[cfg(not(unix))]
fn set_mode(_path: &Path, _mode: u32) -> io::Result<()> {
    Ok(())
}

#[cfg(not(unix))]
fn is_open_to_all(_folder: &Path) -> bool {
    false
}

#[cfg(not(unix))]
fn network_namespace() -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::lock::tests::own_port;

    #[test]
    fn a_file_lock_excludes_until_it_is_dropped() {
        let port = own_port();
        let mut locker = Locker::default();
        let lock = locker.try_lock(port).unwrap().expect("nobody has it");
        assert!(Locker::default().try_lock(port).unwrap().is_none());
        drop(lock);
        assert!(Locker::default().try_lock(port).unwrap().is_some());
    }

    #[cfg(unix)]
    #[test]
    fn every_user_may_lock_the_files_of_every_other() {
        use std::os::unix::fs::PermissionsExt;
        let port = own_port();
        let mut locker = Locker::default();
        let _lock = locker.try_lock(port).unwrap().expect("nobody has it");
        let folder = locker.folder.unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode(&folder.join(port.to_string())), 0o666);
        assert_eq!(mode(&folder), 0o1777);
        assert_eq!(mode(folder.parent().unwrap()), 0o1777);
    }
}
