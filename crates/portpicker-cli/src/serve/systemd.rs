//! What systemd is told, and what it keeps: see [sd_notify(3)].
//!
//! By hand, since the crate for it does not know service managers with an abstract address, and
//! takes descriptors by their numbers.
//!
//! [sd_notify(3)]: https://man7.org/linux/man-pages/man3/sd_notify.3.html

use std::collections::HashMap;
use std::env;
use std::io::{self, IoSlice, PipeReader};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process;
use std::time::{Duration, Instant};

use portpicker::process::wait_readable;
use portpicker::{Attempts, Lease};
use portserver::{Inherited, Supervisor};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tracing::{info, warn};

/// The name of a lock in the descriptor store begins so; the port follows.
const LOCK: &str = "lock-";

/// How long the service manager may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// What systemd has passed to the server.
#[derive(Debug, Default)]
pub(crate) struct Passed {
    pub(crate) sockets: Vec<Inherited>,
    /// The locks of leases that a former server has made.
    pub(crate) locks: HashMap<u16, Lease>,
    /// The names of all locks in the store, these or others.
    lock_names: Vec<String>,
}

impl Passed {
    /// Finds out what each descriptor is.
    ///
    /// # Errors
    ///
    /// If one is neither a socket that listens nor a lock: the unit is for another program.
    pub(crate) fn sort(descriptors: Vec<(OwnedFd, String)>) -> io::Result<Self> {
        let mut passed = Self::default();
        let mut attempts = Attempts::new();
        for (descriptor, name) in descriptors {
            let Some(port) = name.strip_prefix(LOCK) else {
                passed.sockets.push(descriptor.try_into()?);
                continue;
            };
            match port
                .parse()
                .map(|port| attempts.adopt_descriptor(port, descriptor))
            {
                Ok(Ok(Some(lease))) => _ = passed.locks.insert(lease.port(), lease),
                Ok(Err(err)) => warn!("cannot use the descriptor `{name}` of the store: {err}"),
                Ok(Ok(None)) | Err(_) => {
                    warn!("the descriptor `{name}` of the store is not the lock of that port");
                }
            }
            passed.lock_names.push(name);
        }
        Ok(passed)
    }

    /// Takes the names of the locks in the store.
    pub(crate) fn take_lock_names(&mut self) -> Vec<String> {
        std::mem::take(&mut self.lock_names)
    }
}

/// The service manager, if it wants to know something.
#[derive(Debug)]
pub(crate) struct Manager {
    socket: UnixDatagram,
}

impl Manager {
    /// Returns whoever started this process and waits for news from it.
    pub(crate) fn from_environment() -> Option<Self> {
        let address = env::var_os("NOTIFY_SOCKET").filter(|address| !address.is_empty())?;
        match Self::connect(address.as_bytes()) {
            Ok(manager) => Some(manager),
            Err(err) => {
                warn!("cannot tell `{}` anything: {err}", address.display());
                None
            }
        }
    }

    fn connect(address: &[u8]) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(PATIENCE))?;
        socket.connect_addr(&match address.strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(address))?,
        })?;
        Ok(Self { socket })
    }

    /// Tells that the server serves, and that the store need not keep what it has passed.
    pub(crate) fn ready(&self, ports: usize, lock_names: &[String]) {
        for name in lock_names {
            self.tell(&format!("FDSTOREREMOVE=1\nFDNAME={name}"));
        }
        self.tell(&format!("READY=1\nSTATUS=Managing {ports} ports"));
    }

    /// Leaves the locks of leases to the next server. When this returns, the store has them.
    pub(crate) fn store(&self, locks: &[(u16, OwnedFd)]) {
        // Systemd 254 and later says how many it takes; older ones close what is too much.
        let room = match env::var("FDSTORE").map(|room| room.parse()) {
            Ok(Ok(room)) => room,
            _ => usize::MAX,
        };
        if room < locks.len() {
            warn!(
                "the descriptor store has room for {room} of {} locks: see \
                 FileDescriptorStoreMax= in systemd's unit",
                locks.len()
            );
        }
        let stored = locks.iter().take(room).try_for_each(|(port, lock)| {
            // FDPOLL=0: a socket that neither listens nor is connected counts as hung up, and
            // the store would drop it at once.
            let text = format!("FDSTORE=1\nFDNAME={LOCK}{port}\nFDPOLL=0");
            self.send(&text, Some(lock.as_fd()))
        });
        match stored.and_then(|()| self.barrier()) {
            Ok(()) => info!(
                "left {} locks to the descriptor store",
                locks.len().min(room)
            ),
            Err(err) => warn!("cannot leave the locks to the descriptor store: {err}"),
        }
    }

    /// Waits until everything that was sent has been dealt with.
    fn barrier(&self) -> io::Result<()> {
        let (ours, theirs): (PipeReader, _) = io::pipe()?;
        self.send("BARRIER=1", Some(theirs.as_fd()))?;
        drop(theirs);
        match wait_readable(ours.as_fd(), Instant::now().checked_add(PATIENCE))? {
            true => Ok(()),
            false => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    fn tell(&self, text: &str) {
        if let Err(err) = self.send(text, None) {
            warn!(
                "cannot tell the service manager `{}`: {err}",
                text.escape_debug()
            );
        }
    }

    fn send(&self, text: &str, descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let descriptors = descriptor.as_slice();
        if !descriptors.is_empty() {
            let fits = ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
            assert!(fits, "there is room for one");
        }
        let bytes = [IoSlice::new(text.as_bytes())];
        sendmsg(&self.socket, &bytes, &mut ancillary, SendFlags::NOSIGNAL)?;
        Ok(())
    }
}

impl Supervisor for Manager {
    fn stopping(&mut self) {
        self.tell("STOPPING=1\nSTATUS=Stopping");
    }

    fn interval(&self) -> Option<Duration> {
        let variable = |name| env::var(name).ok();
        let is_for_us = variable("WATCHDOG_PID").is_none_or(|pid| pid == process::id().to_string());
        let limit = variable("WATCHDOG_USEC")?
            .parse()
            .ok()
            .filter(|&limit| limit > 1)?;
        // Twice in that time, as systemd recommends.
        is_for_us.then_some(Duration::from_micros(limit) / 2)
    }

    fn alive(&mut self) {
        self.tell("WATCHDOG=1");
    }
}
