//! Asking the supervisor that this process is below to look after our holds too.
//!
//! A process has at most one supervisor: a second listener is refused with EBUSY. But whoever is below
//! one can talk to it, since it is asked about every listen: one whose backlog no server uses is a
//! wish, and concerns the socket that it is made for. Below anybody else, or nobody, such a call on
//! an unbound socket of ours is an error and does nothing.

use std::io;
use std::os::fd::AsFd;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, listen, socket_with};

use super::{Preparation, StepDown};

/// What is wished of a supervisor from below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    /// This socket holds a port: bind for others beside it, as long as we live.
    Entrust = 0x706f_7274,
    /// No longer.
    Withdraw,
}

impl Wish {
    pub(crate) fn from_backlog(backlog: i32) -> Option<Self> {
        [Self::Entrust, Self::Withdraw]
            .into_iter()
            .find(|&wish| wish as i32 == backlog)
    }

    fn make(self, socket: impl AsFd) -> Result<(), Errno> {
        listen(socket, self as i32)
    }
}

/// Who carries out the binds of a command of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// This process, by a supervisor of its own.
    ThisProcess,
    /// The supervisor that this process is below.
    Above,
}

/// Finds who can carry out a command's binds on the ports that `holders` hold (see
/// [`Hold::descriptors`](crate::Hold::descriptors)).
///
/// If that is the supervisor above, it has been [entrusted](entrust) with them: only that shows whether
/// it has room.
///
/// # Errors
///
/// What stands in the way: see [`Preparation::is_possible`].
pub fn find_supervisor<S: AsFd>(holders: &[S]) -> Result<By, StepDown> {
    match Preparation::is_possible() {
        Err(reason @ StepDown::NoNotification(_)) => match entrust(holders) {
            Ok(()) => Ok(By::Above),
            Err(err) if err.kind() == io::ErrorKind::Unsupported => Err(reason),
            Err(err) => Err(StepDown::NoNotification(err)),
        },
        possible => possible.map(|()| By::ThisProcess),
    }
}

/// Tells whether this process is below a supervisor that can be asked to look after its holds.
pub fn can_entrust() -> bool {
    // Listening on a socket without a name is an error, for everybody else.
    socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .and_then(|socket| Wish::Entrust.make(socket))
    .is_ok()
}

/// Asks the supervisor that this process is below to look after the sockets that hold ports (see
/// [`Hold::descriptors`](crate::Hold::descriptors)).
///
/// A command that this process starts binds the ports then as if it had a supervisor of its own,
/// until this process ends. All or none.
///
/// # Errors
///
/// [`io::ErrorKind::Unsupported`] if there is no such supervisor: see [`can_entrust`]. `ENOBUFS` if it
/// has no room for more.
pub fn entrust<S: AsFd>(holders: &[S]) -> io::Result<()> {
    if !can_entrust() {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let all = holders
        .iter()
        .try_for_each(|holder| Wish::Entrust.make(holder));
    if let Err(err) = all {
        withdraw(holders);
        return Err(err.into());
    }
    Ok(())
}

/// Takes holds that were [entrusted](entrust) back into our own care.
pub fn withdraw<S: AsFd>(holders: &[S]) {
    for holder in holders {
        // Nobody is asked who was not before.
        _ = Wish::Withdraw.make(holder);
    }
}
