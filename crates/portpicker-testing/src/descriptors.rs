//! The descriptors of this process: counted, and exhausted.

use std::fs::{self, File};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The descriptors of this process but for a few, taken until this is dropped.
///
/// Only in a test with a process of its own: other threads would have none left either.
#[derive(Debug)]
#[must_use = "the descriptors are given back when it is dropped"]
pub struct Descriptors {
    _taken: Vec<File>,
    before: Rlimit,
}

impl Descriptors {
    /// Returns how many descriptors this process has open.
    pub fn count() -> usize {
        // One of them reads the folder.
        fs::read_dir("/proc/self/fd")
            .expect("Linux lists descriptors")
            .count()
            - 1
    }

    /// Takes all descriptors that this process may open, but for `spare`.
    pub fn take_all_but(spare: usize) -> Self {
        const ROOM: usize = 100;
        assert!(spare < ROOM);
        let before = getrlimit(Resource::Nofile);
        // Lowered, so that there is an end to take.
        let limit = Rlimit {
            current: Some((Self::count() + ROOM) as u64),
            maximum: before.maximum,
        };
        setrlimit(Resource::Nofile, limit).expect("a limit can be lowered");
        let null = File::open("/dev/null").expect("/dev/null can be opened");
        let mut taken: Vec<File> = std::iter::from_fn(|| null.try_clone().ok()).collect();
        taken.push(null);
        taken.truncate(taken.len().checked_sub(spare).expect("there is room"));
        Self {
            _taken: taken,
            before,
        }
    }
}

impl Drop for Descriptors {
    fn drop(&mut self) {
        let before = Rlimit {
            current: self.before.current,
            maximum: self.before.maximum,
        };
        setrlimit(Resource::Nofile, before).expect("a limit can be raised to what it was");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::OwnProcess;

    #[test]
    fn as_many_descriptors_are_left_as_were_spared() {
        OwnProcess::new().run(|| {
            let before = Descriptors::count();
            let taken = Descriptors::take_all_but(2);
            let opened: Vec<_> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
            assert_eq!(opened.len(), 2);
            drop((opened, taken));
            assert_eq!(Descriptors::count(), before);
        });
    }
}
