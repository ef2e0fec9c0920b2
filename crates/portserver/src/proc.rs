//! What `/proc` says about a process: its user, its parent, and its numbers.

use std::fs;
use std::io;

/// Parts of `/proc/PID/status`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Status {
    /// The real user id.
    pub(crate) uid: u32,
    /// 0 if the parent is not in our pid namespace.
    pub(crate) parent: u32,
    /// The process's number in each pid namespace, from ours to its own. On kernels before 4.1,
    /// which do not say, the first one alone.
    pub(crate) numbers: Vec<u32>,
}

impl Status {
    /// Reads the status of `pid`; `None` if there is no such process.
    pub(crate) fn read(pid: u32) -> io::Result<Option<Self>> {
        match fs::read_to_string(format!("/proc/{pid}/status")) {
            Ok(text) => Ok(Self::parse(&text, pid)),
            Err(err) if is_gone(&err) => Ok(None),
            Err(err) => Err(err),
        }
    }

    pub(crate) fn parse(text: &str, pid: u32) -> Option<Self> {
        let field = |name: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
                .map(str::trim)
        };
        let numbers = match field("NSpid") {
            Some(list) => list
                .split_whitespace()
                .map(|n| n.parse().ok())
                .collect::<Option<_>>()?,
            None => vec![pid],
        };
        Some(Self {
            uid: field("Uid")?.split_whitespace().next()?.parse().ok()?,
            parent: field("PPid")?.parse().ok()?,
            numbers,
        })
    }

    /// Returns how deep the process's pid namespace is below ours: 1 if it is ours.
    pub(crate) fn depth(&self) -> usize {
        self.numbers.len()
    }

    /// Returns the process's number in the namespace at `depth`, if it can be seen there.
    pub(crate) fn number_at(&self, depth: usize) -> Option<u32> {
        self.numbers.get(depth.checked_sub(1)?).copied()
    }
}

/// Returns the name of the process `pid`, as in `/proc/PID/comm`.
pub(crate) fn command(pid: u32) -> Option<String> {
    let name = fs::read(format!("/proc/{pid}/comm")).ok()?;
    Some(
        String::from_utf8_lossy(&name)
            .trim_end_matches('\n')
            .to_owned(),
    )
}

/// Returns when `pid` was started, in clock ticks since the host was: field 22 of
/// `/proc/PID/stat`. Not an identity: a successor with the same number can have the same.
pub(crate) fn start_time(pid: u32) -> Option<u64> {
    parse_start_time(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

pub(crate) fn parse_start_time(stat: &str) -> Option<u64> {
    // The name, in parentheses, may have blanks and parentheses in it; nothing after it has.
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(19)?.parse().ok()
}

/// Returns the ids of all processes that we can see.
pub(crate) fn all() -> io::Result<Vec<u32>> {
    let entries = fs::read_dir("/proc")?;
    Ok(entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect())
}

/// Returns what identifies this start of the host.
pub(crate) fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?
        .trim()
        .to_owned())
}

/// A process that ends while its files are read: ESRCH, once the file is open.
fn is_gone(err: &io::Error) -> bool {
    err.kind() == io::ErrorKind::NotFound
        || rustix::io::Errno::from_io_error(err) == Some(rustix::io::Errno::SRCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_kernel_writes() {
        let text = "Name:\tsh\nPPid:\t41\nUid:\t1000\t0\t0\t0\nNSpid:\t42\t7\n";
        let status = Status::parse(text, 42).unwrap();
        assert_eq!(
            status,
            Status {
                uid: 1000,
                parent: 41,
                numbers: vec![42, 7]
            }
        );
        assert_eq!(
            (status.depth(), status.number_at(1), status.number_at(2)),
            (2, Some(42), Some(7))
        );
        assert_eq!((status.number_at(0), status.number_at(3)), (None, None));

        let old = Status::parse("PPid:\t1\nUid:\t0\t0\t0\t0\n", 9).unwrap();
        assert_eq!(old.numbers, [9]);
        for text in [
            "",
            "Uid:\t0\n",
            "PPid:\t1\nUid:\tx\n",
            "PPid:\t1\nUid:\t0\nNSpid:\t1 x\n",
        ] {
            assert_eq!(Status::parse(text, 1), None, "{text:?}");
        }
    }

    #[test]
    fn the_start_time_is_found_behind_any_name() {
        let rest = " S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 98765 20";
        for name in ["sh", "a b", "x) S 1 (y", ""] {
            assert_eq!(
                parse_start_time(&format!("42 ({name}){rest}")),
                Some(98_765),
                "{name}"
            );
        }
        for stat in ["", "42 (sh", "42 (sh) S 1"] {
            assert_eq!(parse_start_time(stat), None);
        }
    }

    #[test]
    fn this_process_is_as_it_is() {
        let pid = std::process::id();
        let status = Status::read(pid).unwrap().unwrap();
        assert_eq!(status.number_at(1), Some(pid));
        assert!(start_time(pid).unwrap() > 0);
        assert!(command(pid).is_some() && all().unwrap().contains(&pid));
        assert_eq!(Status::read(0).unwrap(), None);
    }
}
