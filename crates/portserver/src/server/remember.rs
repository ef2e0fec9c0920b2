//! What the server writes to its state file, and takes over from it.

use std::collections::HashMap;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use portpicker::Lease as Lock;
use portpicker::process::{OpenError, Pid, Watch};
use tracing::{info, warn};

use super::{LOCK_RETRY, STATE_RETRY, Server, now};
use crate::owners::Identity;
use crate::peer::Process;
use crate::pool::{Lease, Time};
use crate::proc;
use crate::state::{SavedLease, StateFile, seconds};

impl Server {
    /// Takes over the leases that a former server has left.
    ///
    /// A lease goes on if its owner is still the same process. Its port is leased whether or not it
    /// is in use: its owner is who should be using it. `locks` are those that survived, if any did.
    ///
    /// # Errors
    ///
    /// What keeps us from finding out who is still there, or from watching them, such as a lack of
    /// descriptors. To serve all the same would be to grant their ports to others.
    pub(crate) fn adopt(
        &mut self,
        leases: Vec<SavedLease>,
        mut locks: HashMap<u16, Lock>,
    ) -> io::Result<()> {
        let mut adopted = 0;
        let mut gone = 0;
        for lease in leases {
            let Some(process) = same_process(&lease)? else {
                gone += 1;
                continue;
            };
            let port = lease.port;
            let kept = match locks.remove(&port) {
                Some(lock) => Some(lock),
                None => self.attempts.adopt(port).map_err(io::Error::other)?,
            };
            if kept.is_none() {
                warn!("port {port}: leased by somebody else while the server was away");
                self.unlocked.insert(port);
                self.lock_retry = Some(now() + LOCK_RETRY);
            }
            let owner = self.owners.watch(process)?;
            let is_adopted = self.pool.adopt(
                port,
                Lease {
                    owner,
                    uid: lease.uid,
                    since: Duration::try_from_secs_f64(lease.since).unwrap_or_default(),
                    expires: lease
                        .expires
                        .and_then(|end| Duration::try_from_secs_f64(end).ok()),
                    name: lease.name,
                    tag: lease.tag.map(Rc::from),
                    kept,
                },
            );
            if is_adopted {
                adopted += 1;
            } else {
                warn!("port {port}: no longer in the pool, its lease is dropped");
                self.forget_if_idle(owner);
            }
        }
        if adopted + gone > 0 {
            info!("adopted {adopted} leases; the owners of {gone} have exited");
        }
        Ok(())
    }

    /// Writes all leases to `state`, and from now on what changes.
    pub(crate) fn remember_in(&mut self, mut state: StateFile) -> io::Result<()> {
        state.rewrite(self.saved_leases())?;
        self.state = Some(state);
        Ok(())
    }

    /// Takes the locks that others had when their leases were adopted, once those let go of them:
    /// it may have been for a probe, or for the time in which the server was away.
    pub(super) fn lock_unlocked(&mut self, time: Time) {
        if self.lock_retry.is_none_or(|retry| time < retry) {
            return;
        }
        let (pool, attempts) = (&mut self.pool, &mut self.attempts);
        self.unlocked.retain(|&port| {
            pool.lacks_lock(port)
                && match attempts.adopt(port) {
                    Ok(Some(lock)) => {
                        info!("port {port}: locked again");
                        pool.keep(port, lock);
                        false
                    }
                    Ok(None) | Err(_) => true,
                }
        });
        self.lock_retry = (!self.unlocked.is_empty()).then(|| time + LOCK_RETRY);
    }

    pub(super) fn save(&mut self, ports: &[u16]) {
        let Some(state) = &mut self.state else { return };
        let leases = ports.iter().filter_map(|&port| {
            let lease = self.pool.leases().get(&port)?;
            Some(saved(port, lease, self.owners.identity(lease.owner)?))
        });
        let result = state.leased(leases);
        self.after_saving(result);
    }

    pub(super) fn save_end(&mut self, ports: impl Iterator<Item = u16>) {
        let Some(state) = &mut self.state else { return };
        let result = state.ended(ports);
        self.after_saving(result);
    }

    fn after_saving(&mut self, result: io::Result<()>) {
        let Some(state) = &self.state else { return };
        if let Err(err) = result {
            // Once: until the file is whole again, nothing is written and nothing can fail.
            warn!(
                "cannot write the state file `{}`: {err}; serving goes on, but a server that is \
                 killed now forgets its leases",
                state.path().display()
            );
        }
        if state.wants_rewriting(self.pool.leases().len()) && self.state_retry.is_none() {
            self.state_retry = Some(now() + STATE_RETRY);
        }
    }

    /// Writes the state file anew if it is time to.
    pub(super) fn rewrite_state(&mut self, time: Time) {
        if self.state_retry.is_none_or(|retry| time < retry) {
            return;
        }
        let Some(mut state) = self.state.take() else {
            return;
        };
        let was_behind = state.is_behind();
        self.state_retry = match state.rewrite(self.saved_leases()) {
            Ok(()) => {
                if was_behind {
                    info!("the state file `{}` is whole again", state.path().display());
                }
                None
            }
            Err(_) => Some(time + STATE_RETRY),
        };
        self.state = Some(state);
    }

    fn saved_leases(&self) -> impl Iterator<Item = SavedLease> {
        self.pool.leases().iter().filter_map(|(&port, lease)| {
            Some(saved(port, lease, self.owners.identity(lease.owner)?))
        })
    }
}

/// Finds the process of a saved lease, if it is still the same.
fn same_process(lease: &SavedLease) -> io::Result<Option<Process>> {
    let Some(pid) = Pid::new(lease.pid) else {
        return Ok(None);
    };
    let watch = match Watch::open(pid) {
        Ok(watch) => watch,
        Err(OpenError::System(err)) => return Err(err),
        Err(_) => return Ok(None),
    };
    let process = Process {
        pid,
        uid: lease.uid,
        watch,
    };
    let found = Identity::of(&process);
    let is_same = match (lease.inode, found.inode) {
        (Some(saved), Some(found)) => saved == found,
        // Without inodes on one of the two sides, the time of the start is all there is. It errs
        // towards keeping a lease: a successor may have the same, and it may not be known, for want
        // of descriptors for example.
        _ => match (lease.started, proc::start_time(pid.get())) {
            (Some(saved), Some(found)) => saved == found,
            _ => true,
        },
    };
    let is_there = is_same && lease.identity().pid == found.pid && !process.watch.has_exited()?;
    Ok(is_there.then_some(process))
}

fn saved(port: u16, lease: &Lease<Lock>, identity: Identity) -> SavedLease {
    SavedLease {
        port,
        pid: identity.pid,
        inode: identity.inode,
        started: identity.started,
        uid: lease.uid,
        since: seconds(lease.since),
        expires: lease.expires.map(seconds),
        name: lease.name.clone(),
        tag: lease.tag.as_deref().map(Box::from),
    }
}
