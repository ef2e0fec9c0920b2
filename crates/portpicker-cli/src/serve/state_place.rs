//! Where the state file is if nobody says so.

use std::env;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::process::geteuid;

/// How long a file's name may be, so that there is room for what is added to it.
const MAX_NAME: usize = 200;

/// Returns the path of the state file for a server at `address`, in a folder that exists.
///
/// It is the same for each server at that address, so that the next one finds what the last one
/// has left, and a different one for servers at different addresses.
pub(crate) fn default(address: &str) -> io::Result<PathBuf> {
    Ok(folder()?.join(file_name(address, network_namespace())))
}

fn folder() -> io::Result<PathBuf> {
    let variable = |name| env::var_os(name).filter(|value| !value.is_empty());
    // Systemd has made these. There may be several, with colons between them.
    for name in ["STATE_DIRECTORY", "RUNTIME_DIRECTORY"] {
        if let Some(folders) = variable(name)
            && let Some(first) = env::split_paths(&folders).next()
        {
            return Ok(first);
        }
    }
    let user = geteuid().as_raw();
    let folder = match variable("XDG_RUNTIME_DIR") {
        Some(folder) => Path::new(&folder).join("portserver"),
        None if user == 0 => PathBuf::from("/run/portserver"),
        None => ["/dev/shm", "/tmp"]
            .into_iter()
            .map(Path::new)
            .find(|folder| folder.is_dir())
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "there is no /tmp"))?
            .join(format!("portserver-{user}")),
    };
    make_private(&folder, user)?;
    Ok(folder)
}

/// Makes a folder that nobody else can write to, or makes sure that it is one.
///
/// In /tmp, another user could have made it first.
fn make_private(folder: &Path, user: u32) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(err) if err.kind() == io::ErrorKind::AlreadyExists => {}
        result => return result.map_err(|err| with_path(&err, folder)),
    }
    let data = fs::symlink_metadata(folder)?;
    if data.is_dir() && data.uid() == user && data.mode() & 0o077 == 0 {
        Ok(())
    } else {
        Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("`{}` is not a folder of this user alone", folder.display()),
        ))
    }
}

fn with_path(err: &io::Error, folder: &Path) -> io::Error {
    io::Error::new(err.kind(), format!("`{}`: {err}", folder.display()))
}

/// Returns a name for a file that no other address has, in a form that people recognize.
fn file_name(address: &str, namespace: Option<u64>) -> String {
    let mut name = String::new();
    for byte in address.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'@' | b'-' | b'_' | b'.' => {
                name.push(char::from(byte));
            }
            _ => name += &format!("%{byte:02x}"),
        }
    }
    if name.len() > MAX_NAME {
        name.truncate(MAX_NAME);
        name += &format!("~{:016x}", hash(address.as_bytes()));
    }
    // Abstract names and TCP ports are of a network namespace; a path leads to one socket in all.
    match namespace.filter(|_| !address.starts_with('/')) {
        Some(namespace) => format!("{name}.{namespace}.state"),
        None => format!("{name}.state"),
    }
}

fn network_namespace() -> Option<u64> {
    fs::metadata("/proc/thread-self/ns/net")
        .ok()
        .map(|data| data.ino())
}

/// FNV-1a: the same in every version of the program, as the standard library's hash need not be.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_names_of_their_own() {
        assert_eq!(file_name("@ports", Some(7)), "@ports.7.state");
        assert_eq!(file_name("/run/a b", Some(7)), "%2frun%2fa%20b.state");
        let long = "x".repeat(300);
        let names = ["@a", "/a", "a", "%2fa", "@a ", &long, &(long.clone() + "y")]
            .map(|address| file_name(address, Some(1)));
        for (index, name) in names.iter().enumerate() {
            assert!(name.len() < 255 - 10 && !name.contains('/'), "{name}");
            assert!(!names[..index].contains(name), "{name}");
        }
    }

    #[test]
    fn a_folder_that_others_may_write_to_is_refused() {
        let user = geteuid().as_raw();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new");
        make_private(&path, user).unwrap();
        make_private(&path, user).unwrap();
        assert!(make_private(&path, user + 1).is_err());
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(make_private(&link, user).is_err());
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o770)).unwrap();
        assert!(make_private(&path, user).is_err());
    }
}
