//! One value for each process: a forked child starts with a fresh one.
//!
//! What a process remembers about its ports must not be taken over by a forked child, or both
//! would hand out the same returned port, in the same random order. And a `static` mutex that
//! another thread had locked at the moment of the fork stays locked in the child for ever. So
//! the value carries the id of the process that made it, and a process that finds another's
//! leaves that one alone and makes its own. What it leaves behind is not dropped: the child goes
//! on sharing its parent's descriptors, and with them its leases.
//!
//! A process whose id equals that of an ancestor, none of whose descendants in between asked
//! for the value, would find the ancestor's. It would then offer its ancestor's returned ports;
//! the locks still keep it from leasing what anybody else has.
//!
//! # Safety
//!
//! The pointer is null or came from `Box::into_raw` in `current`, and was published with
//! release ordering after the value was complete. A published box is never freed, so a
//! reference to it is valid for ever; the only box that is freed is one that was never published.
#![expect(
    unsafe_code,
    reason = "a lock-free, never freed static that fork cannot leave locked"
)]

use std::process;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

/// A static that has a value of its own in each process.
#[derive(Debug)]
pub(crate) struct PerProcess<T> {
    current: AtomicPtr<Entry<T>>,
}

#[derive(Debug)]
struct Entry<T> {
    pid: u32,
    value: T,
}

impl<T: Default + Send + Sync + 'static> PerProcess<T> {
    pub(crate) const fn new() -> Self {
        Self {
            current: AtomicPtr::new(ptr::null_mut()),
        }
    }

    /// Returns this process's value, made by `T::default()` when it is first asked for.
    pub(crate) fn get(&self) -> &'static T {
        let pid = process::id();
        let found = self.current.load(Ordering::Acquire);
        // SAFETY: null or published, see above.
        if let Some(entry) = unsafe { found.as_ref() }
            && entry.pid == pid
        {
            return &entry.value;
        }
        let fresh = Box::into_raw(Box::new(Entry {
            pid,
            value: T::default(),
        }));
        match self
            .current
            .compare_exchange(found, fresh, Ordering::AcqRel, Ordering::Acquire)
        {
            // SAFETY: just published, never freed from now on.
            Ok(_) => &unsafe { &*fresh }.value,
            // Another thread of this process was faster.
            Err(other) => {
                // SAFETY: `fresh` came from `Box::into_raw` above and was not published.
                drop(unsafe { Box::from_raw(fresh) });
                // SAFETY: only non-null pointers are ever stored, see above.
                &unsafe { &*other }.value
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[test]
    fn all_threads_of_a_process_share_one_value() {
        static COUNT: PerProcess<Mutex<u32>> = PerProcess::new();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| *COUNT.get().lock().unwrap() += 1);
            }
        });
        assert_eq!(*COUNT.get().lock().unwrap(), 8);
    }
}
