//! A sandbox that forbids system calls, as those of containers do.

use std::collections::BTreeMap;
use std::env::consts::ARCH;

use rustix::io::Errno;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};

/// Forbids the system calls `calls` (`libc::SYS_…`) to this thread and what it starts: they fail with
/// `errno`.
///
/// For good: only in a test with a process of its own.
pub fn forbid(calls: &[i64], errno: Errno) {
    let rules: BTreeMap<i64, Vec<_>> = calls.iter().map(|&call| (call, Vec::new())).collect();
    let fail = SeccompAction::Errno(errno.raw_os_error() as u32);
    let architecture = ARCH.try_into().expect("an architecture with seccomp");
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, fail, architecture);
    let program: BpfProgram = filter
        .and_then(TryInto::try_into)
        .expect("a filter without conditions");
    apply_filter(&program).expect("whoever likes may");
}
