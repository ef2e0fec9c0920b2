//! Who is asking, and for whom: from what the kernel says about a connection.
//!
//! The number in a request is a process as *the client* sees processes. A client in a container has
//! other numbers than we have; the kernel tells us its number here (SO_PEERCRED) and the process
//! itself (SO_PEERPIDFD), and `/proc` the numbers that each process has in each namespace.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{getsockopt, sockopt};
use portpicker::process::{OpenError, Pid, Watch};

use crate::proc::Status;

/// The client of a connection.
#[derive(Debug)]
pub(crate) enum Peer {
    /// A process on a Unix socket.
    Process {
        /// As we see it; `None` if it is not in our pid namespace or one below it, or has exited.
        pid: Option<Pid>,
        /// The user that it ran as when it connected.
        uid: u32,
        /// The process itself, from kernels that say (6.5).
        pidfd: Option<OwnedFd>,
    },
    /// Somebody on this host, by TCP: all that is known is what the request says.
    Unknown,
}

/// A process that is to own ports.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) pid: Pid,
    /// The user whose limit its leases count for.
    pub(crate) uid: u32,
    pub(crate) watch: Watch,
}

/// Why a process cannot own a port for this client.
#[derive(Debug)]
pub(crate) enum Denied {
    /// There is no such process, as the client sees them.
    NoProcess,
    /// It is process 1, which never ends.
    Init,
    /// It is another user's.
    Forbidden,
    /// The client has no number here: it is outside of our pid namespace, or has exited.
    Invisible,
    /// The system failed.
    Failed(io::Error),
}

impl From<io::Error> for Denied {
    fn from(err: io::Error) -> Self {
        Self::Failed(err)
    }
}

impl From<OpenError> for Denied {
    fn from(err: OpenError) -> Self {
        match err {
            OpenError::System(err) => Self::Failed(err),
            _ => Self::NoProcess,
        }
    }
}

impl Peer {
    /// Asks the kernel who is at the other end of a Unix socket.
    pub(crate) fn of(socket: impl AsFd) -> io::Result<Self> {
        let credentials = getsockopt(&socket, sockopt::PeerCredentials)?;
        let mut pid = u32::try_from(credentials.pid()).ok().and_then(Pid::new);
        let mut pidfd = None;
        if !cfg!(portpicker_force = "poll") {
            match getsockopt(&socket, sockopt::PeerPidfd) {
                Ok(fd) => pidfd = Some(fd),
                // Linux before 6.5: the number is all we have.
                Err(Errno::ENOPROTOOPT) => {}
                // It may well be there.
                Err(err @ (Errno::EMFILE | Errno::ENFILE)) => return Err(err.into()),
                // It has exited since it connected, and its number may be somebody else's.
                Err(_) => pid = None,
            }
        }
        Ok(Self::Process {
            pid,
            uid: credentials.uid(),
            pidfd,
        })
    }

    /// Returns the user, if the kernel says who it is.
    pub(crate) fn uid(&self) -> Option<u32> {
        match self {
            Self::Process { uid, .. } => Some(*uid),
            Self::Unknown => None,
        }
    }

    /// Returns the client itself as an owner.
    pub(crate) fn itself(&self) -> Result<Process, Denied> {
        let Self::Process { pid, uid, pidfd } = self else {
            return Err(Denied::Invisible);
        };
        let pid = pid.ok_or(Denied::Invisible)?;
        let watch = match pidfd {
            Some(pidfd) => Watch::from_pidfd(pidfd.try_clone()?),
            None => Watch::open(pid)?,
        };
        living(Process {
            pid,
            uid: *uid,
            watch,
        })
    }

    /// Finds the process that the client calls `wanted`, and which it may ask for.
    ///
    /// That is the client itself or one of its ancestors, or another process of its pid namespace
    /// that belongs to the same user; to any user if the client is root.
    pub(crate) fn find(&self, wanted: Pid) -> Result<Process, Denied> {
        let (pid, uid) = match self {
            Self::Process { pid, uid, .. } => (pid.ok_or(Denied::Invisible)?, *uid),
            Self::Unknown => {
                let uid = Status::read(wanted.get())?.ok_or(Denied::NoProcess)?.uid;
                return open(wanted, uid);
            }
        };
        // By far the most frequent case, and the only one that reads nothing from /proc. A client
        // in a container that means another process by this number gets the lease for itself.
        if wanted == pid {
            return self.itself();
        }
        let client = Status::read(pid.get())?.ok_or(Denied::NoProcess)?;
        let depth = client.depth();
        if client.number_at(depth) == Some(wanted.get()) {
            return self.itself();
        }
        if let Some(ancestor) = ancestor(&client, depth, wanted)? {
            // Whoever it belongs to: `sudo portpicker $$` asks for the shell of another user.
            return reopen(ancestor, depth, wanted, uid);
        }
        let found = if depth == 1 {
            wanted.get()
        } else {
            search(pid, depth, wanted)?
        };
        let owner = Status::read(found)?.ok_or(Denied::NoProcess)?.uid;
        if owner != uid && uid != 0 {
            return Err(Denied::Forbidden);
        }
        reopen(found, depth, wanted, owner)
    }
}

/// Returns our number of the ancestor of `client` that is called `wanted` at `depth`.
fn ancestor(client: &Status, depth: usize, wanted: Pid) -> Result<Option<u32>, Denied> {
    let mut parent = client.parent;
    // Ends at the first process of our namespace, or at one that has just exited. The bound is for
    // a chain that changes while it is walked.
    for _ in 0..1000 {
        let Some(status) = Status::read(parent)? else {
            break;
        };
        match status.number_at(depth) {
            Some(number) if number == wanted.get() => return Ok(Some(parent)),
            // Above the client's namespace: it cannot see it, nor what is above.
            None => break,
            Some(_) => parent = status.parent,
        }
    }
    Ok(None)
}

/// Returns our number of the process that is called `wanted` in the pid namespace of `peer`.
fn search(peer: Pid, depth: usize, wanted: Pid) -> Result<u32, Denied> {
    let namespace = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let home = namespace(peer.get()).ok_or(Denied::Forbidden)?;
    for pid in crate::proc::all()? {
        let is_named_so = Status::read(pid)?.is_some_and(|status| {
            status.depth() == depth && status.number_at(depth) == Some(wanted.get())
        });
        if is_named_so && namespace(pid).as_ref() == Some(&home) {
            return Ok(pid);
        }
    }
    Err(Denied::NoProcess)
}

/// Opens a process that was found in `/proc`, and makes sure that it is still the one.
fn reopen(found: u32, depth: usize, wanted: Pid, uid: u32) -> Result<Process, Denied> {
    let process = open(Pid::new(found).ok_or(Denied::NoProcess)?, uid)?;
    // Between the reading and the opening the number may have become another process's. From the
    // opening on, it cannot without the watch noticing.
    let status = Status::read(found)?.ok_or(Denied::NoProcess)?;
    if status.number_at(depth) == Some(wanted.get()) {
        living(process)
    } else {
        Err(Denied::NoProcess)
    }
}

fn open(pid: Pid, uid: u32) -> Result<Process, Denied> {
    let watch = Watch::open(pid)?;
    living(Process { pid, uid, watch })
}

fn living(process: Process) -> Result<Process, Denied> {
    if process.pid == Pid::INIT {
        return Err(Denied::Init);
    }
    if process.watch.has_exited()? {
        Err(Denied::NoProcess)
    } else {
        Ok(process)
    }
}
