//! Starting a command that binds a held port.

use std::ffi::OsStr;
use std::io;
use std::ops::{Deref, DerefMut};
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use socket2::Socket;

use super::guest::{entrust, withdraw};
use super::{Preparation, StepDown};
use crate::hold::Hold;
use crate::lease::Lease;
use crate::listening::wait_listening;
use crate::probe::Kind;

const POLL_INTERVAL: Duration = Duration::from_millis(100);

impl Hold {
    /// Prepares to start `program`, which will bind the port.
    ///
    /// Promise 4, *handed off*: see [`hand_off`](crate::hand_off). The port is held until the
    /// program binds it, while it has it, and again whenever it has let go of it, as long as the
    /// program or one of its descendants runs.
    ///
    /// The port is in the program's environment as `PORT`.
    ///
    /// # Example
    ///
    /// ```
    /// use std::time::Duration;
    /// use portpicker::Picker;
    ///
    /// let hold = Picker::new().hold()?;
    /// let port = hold.port().to_string();
    /// let mut server = hold
    ///     .command("python3")
    ///     .args(["-m", "http.server", &port, "--bind", "127.0.0.1"])
    ///     .spawn()?;
    /// server.wait_listening(Duration::from_secs(60))?;
    /// server.kill()?;
    /// server.wait()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn command(self, program: impl AsRef<OsStr>) -> HandOff {
        HandOff::new(program, vec![self])
    }
}

/// A command to be started, and the ports that are held for it. See [`Hold::command`].
#[derive(Debug)]
#[must_use = "a command does nothing until it is spawned"]
pub struct HandOff {
    command: Command,
    holds: Vec<Hold>,
}

impl HandOff {
    /// Prepares to start `program`, which will bind the ports in `holds`.
    ///
    /// As [`Hold::command`] for several ports; `PORT` is the first of them.
    pub fn new(program: impl AsRef<OsStr>, holds: Vec<Hold>) -> Self {
        let mut command = Command::new(program);
        if let Some(hold) = holds.first() {
            command.env("PORT", hold.port().to_string());
        }
        Self { command, holds }
    }

    /// Adds an argument.
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.command.arg(argument);
        self
    }

    /// Adds arguments.
    pub fn args(mut self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.command.args(arguments);
        self
    }

    /// Sets a variable in the command's environment.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Changes whatever else the command is started with: its streams, its folder.
    ///
    /// Not to start it: only [`spawn`](Self::spawn) hands the ports off.
    pub fn configure(mut self, change: impl FnOnce(&mut Command)) -> Self {
        change(&mut self.command);
        self
    }

    /// Starts the command, and a thread that carries out its binds.
    ///
    /// The thread ends with the last of the command's processes; so do the hold and the lease. This
    /// is the only thread that the library starts: somebody must answer as long as any of them may
    /// bind. Below `portpicker run`, or another command that was handed ports, that supervisor
    /// carries the binds out, there is no thread, and the hold ends when what this returns is
    /// dropped.
    ///
    /// # Errors
    ///
    /// What [`Command::spawn`] reports. [`io::ErrorKind::Unsupported`] with a [`StepDown`] if the
    /// command cannot be supervised here; the command has not started then, and
    /// [`Hold::open_door`] or [`Hold::into_lease`] are what remains.
    pub fn spawn(mut self) -> io::Result<HandedOff> {
        let unsupported = |reason| io::Error::new(io::ErrorKind::Unsupported, reason);
        match Preparation::is_possible() {
            Ok(()) => {}
            Err(reason @ StepDown::NoCopies(_)) => return Err(unsupported(reason)),
            Err(reason) => return self.spawn_as_guest().ok_or_else(|| unsupported(reason))?,
        }
        let preparation = Preparation::new(&mut self.command)?;
        let child = self.command.spawn()?;
        let ports = self.holds.iter().map(Hold::port).collect();
        let supervisor = preparation.supervisor(self.holds)?;
        thread::Builder::new()
            .name("portpicker".to_owned())
            .spawn(move || {
                // There is nobody to tell. If it fails, the command's binds fail.
                _ = supervisor.run(|_: &StepDown| {});
            })?;
        Ok(HandedOff {
            child,
            ports,
            entrusted: Vec::new(),
            _leases: Vec::new(),
        })
    }

    /// Starts the command in the care of the supervisor that this process is below, if there is one.
    fn spawn_as_guest(mut self) -> Option<io::Result<HandedOff>> {
        let ports = self.holds.iter().map(Hold::port).collect();
        let (mut leases, mut holders) = (Vec::new(), Vec::new());
        for hold in self.holds {
            let (lease, bound) = hold.into_parts();
            holders.extend(bound.tcp);
            holders.extend(bound.udp);
            leases.push(lease);
        }
        entrust(&holders).ok()?;
        let child = self.command.spawn();
        if child.is_err() {
            withdraw(&holders);
        }
        Some(child.map(|child| HandedOff {
            child,
            ports,
            entrusted: holders,
            _leases: leases,
        }))
    }
}

/// A command that was started with held ports: a [`Child`], which goes on when this is dropped.
#[derive(Debug)]
pub struct HandedOff {
    child: Child,
    ports: Vec<u16>,
    /// What this process keeps itself, below another supervisor. The sockets close first.
    entrusted: Vec<Socket>,
    _leases: Vec<Lease>,
}

impl HandedOff {
    /// Returns the ports, in the order of the holds.
    pub fn ports(&self) -> &[u16] {
        &self.ports
    }

    /// Waits until something listens on all of the ports, for TCP connections.
    ///
    /// It is seen in the kernel's tables: nobody connects.
    ///
    /// # Errors
    ///
    /// - [`io::ErrorKind::TimedOut`] after `limit`.
    /// - [`io::ErrorKind::UnexpectedEof`] if the command has ended.
    /// - What reading the kernel's tables reports.
    pub fn wait_listening(&mut self, limit: Duration) -> io::Result<()> {
        let deadline = Instant::now().checked_add(limit);
        for &port in &self.ports {
            // Looked at now and then, to see whether the command still runs.
            while !wait_listening(port, Kind::Tcp, POLL_INTERVAL)? {
                if let Some(status) = self.child.try_wait()? {
                    return Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        format!("the command ended before it listened on port {port}: {status}"),
                    ));
                }
                if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                    return Err(io::Error::new(
                        io::ErrorKind::TimedOut,
                        format!("nothing listens on port {port}"),
                    ));
                }
            }
        }
        Ok(())
    }
}

impl Drop for HandedOff {
    fn drop(&mut self) {
        withdraw(&self.entrusted);
    }
}

impl Deref for HandedOff {
    type Target = Child;

    fn deref(&self) -> &Child {
        &self.child
    }
}

impl DerefMut for HandedOff {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.child
    }
}
