//! The processes that own leases, and their exits.
//!
//! All pidfds are in one epoll instance, which the server's loop watches as a single descriptor:
//! ten thousand owners cost it nothing until one of them exits.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use portpicker::process::Pid;
use rustix::event::epoll;

use crate::peer::Process;
use crate::pool::OwnerId;
use crate::proc;

/// What tells a process from every other that had or will have its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) pid: u32,
    /// The inode number of its pidfd: different for every process, on kernels with pidfs (6.9).
    pub(crate) inode: Option<u64>,
    /// When it was started, in clock ticks since the host was; read where there is no inode.
    pub(crate) started: Option<u64>,
}

impl Identity {
    /// Identifies a process that is being watched, and has not exited.
    pub(crate) fn of(process: &Process) -> Self {
        /// `PID_FS_MAGIC` in the kernel's `include/uapi/linux/magic.h`.
        const PID_FS: u64 = 0x5049_4446;
        let inode = process.watch.pidfd().and_then(|pidfd| {
            // Before pidfs, all pidfds share one inode.
            let is_pidfs = rustix::fs::fstatfs(pidfd).ok()?.f_type as u64 == PID_FS;
            is_pidfs
                .then(|| rustix::fs::fstat(pidfd).ok())
                .flatten()
                .map(|stat| stat.st_ino)
        });
        let pid = process.pid.get();
        let started = if inode.is_none() {
            proc::start_time(pid)
        } else {
            None
        };
        Self {
            pid,
            inode,
            started,
        }
    }
}

/// The processes that own leases.
#[derive(Debug)]
pub(crate) struct Owners {
    epoll: OwnedFd,
    processes: HashMap<OwnerId, Owner>,
    /// While a process is watched and has not exited, its number is its own.
    by_pid: HashMap<Pid, OwnerId>,
    /// Those without a pidfd, which have to be asked now and then.
    polled: Vec<OwnerId>,
    /// When those were asked last.
    polled_at: Instant,
    next: u64,
}

#[derive(Debug)]
struct Owner {
    process: Process,
    identity: Identity,
}

impl Owners {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            processes: HashMap::new(),
            by_pid: HashMap::new(),
            polled: Vec::new(),
            polled_at: Instant::now(),
            next: 1,
        })
    }

    /// Returns an id for an owner that is not a process.
    pub(crate) fn new_id(&mut self) -> OwnerId {
        self.next += 1;
        OwnerId(self.next)
    }

    /// Returns the owner with the number `pid`, if there is one.
    ///
    /// It may have exited, and the number be another process's now: ask [`exit_of`](Self::exit_of)
    /// first.
    pub(crate) fn id_of(&self, pid: Pid) -> Option<OwnerId> {
        self.by_pid.get(&pid).copied()
    }

    /// Watches `process` from now on, until it is forgotten or its exit is taken.
    pub(crate) fn watch(&mut self, process: Process) -> io::Result<OwnerId> {
        match self.id_of(process.pid) {
            Some(id) => Ok(id),
            None => {
                let id = self.new_id();
                self.watch_as(id, process)?;
                Ok(id)
            }
        }
    }

    /// Watches `process`, which is not watched yet, under an id that is new.
    pub(crate) fn watch_as(&mut self, id: OwnerId, process: Process) -> io::Result<()> {
        match process.watch.pidfd() {
            Some(pidfd) => {
                epoll::add(
                    &self.epoll,
                    pidfd,
                    epoll::EventData::new_u64(id.0),
                    epoll::EventFlags::IN,
                )?;
            }
            None => {
                if self.polled.is_empty() {
                    self.polled_at = Instant::now();
                }
                self.polled.push(id);
            }
        }
        let identity = Identity::of(&process);
        self.by_pid.insert(process.pid, id);
        self.processes.insert(id, Owner { process, identity });
        Ok(())
    }

    /// Returns the owner with the number `pid` if it has exited, and forgets it.
    pub(crate) fn exit_of(&mut self, pid: Pid) -> Option<OwnerId> {
        let id = *self.by_pid.get(&pid)?;
        self.has_exited(id).then(|| {
            self.forget(id);
            id
        })
    }

    /// Returns all owners that have exited, and forgets them. With each, how long that may have gone
    /// unseen: zero for those that the kernel reports.
    pub(crate) fn take_exits(&mut self) -> Vec<(OwnerId, Duration)> {
        let mut exits = Vec::new();
        let mut events = Vec::with_capacity(64);
        loop {
            events.clear();
            let none = rustix::event::Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            };
            let spare = rustix::buffer::spare_capacity(&mut events);
            if !matches!(epoll::wait(&self.epoll, spare, Some(&none)), Ok(count) if count > 0) {
                break;
            }
            for event in &events {
                let id = OwnerId(event.data.u64());
                self.forget(id);
                exits.push((id, Duration::ZERO));
            }
        }
        let unseen = std::mem::replace(&mut self.polled_at, Instant::now()).elapsed();
        let polled: Vec<_> = self
            .polled
            .iter()
            .copied()
            .filter(|&id| self.has_exited(id))
            .collect();
        for id in polled {
            self.forget(id);
            exits.push((id, unseen));
        }
        exits
    }

    /// Tells whether there are owners whose exit comes without an event.
    pub(crate) fn must_be_polled(&self) -> bool {
        !self.polled.is_empty()
    }

    /// Stops watching an owner.
    pub(crate) fn forget(&mut self, id: OwnerId) {
        if let Some(owner) = self.processes.remove(&id) {
            if let Some(pidfd) = owner.process.watch.pidfd() {
                // Closing alone would not do: a connection of the same process may have a copy,
                // which would report the exit again and again.
                _ = epoll::delete(&self.epoll, pidfd);
            }
            self.by_pid.remove(&owner.process.pid);
            self.polled.retain(|&polled| polled != id);
        }
    }

    pub(crate) fn identity(&self, id: OwnerId) -> Option<Identity> {
        self.processes.get(&id).map(|owner| owner.identity)
    }

    pub(crate) fn pid(&self, id: OwnerId) -> Option<Pid> {
        self.processes.get(&id).map(|owner| owner.process.pid)
    }

    fn has_exited(&self, id: OwnerId) -> bool {
        self.processes
            .get(&id)
            .is_some_and(|owner| owner.process.watch.has_exited().unwrap_or(false))
    }
}

impl AsFd for Owners {
    /// Readable when an owner has exited.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}
