//! Starting a command that binds a held port.

use std::ffi::OsStr;
use std::io;
use std::ops::{Deref, DerefMut};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use socket2::Socket;

use super::guest::{By, find_supervisor, withdraw};
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
    is_strict: bool,
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
        Self {
            command,
            holds,
            is_strict: false,
        }
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

    /// Rather fails than steps down: [`spawn`](Self::spawn) is to hand the ports off, or not start.
    ///
    /// If it turns out later that a bind of the command cannot be carried out, that bind fails: the
    /// port is in use.
    pub fn strict(mut self) -> Self {
        self.is_strict = true;
        self
    }

    /// Starts the command, and a thread that carries out its binds.
    ///
    /// The thread ends with the last of the command's processes; so do the hold and the lease. This
    /// is the only thread that the library starts: somebody must answer as long as any of them may
    /// bind. Below `portpicker run`, or another command that was handed ports, the supervisor above
    /// carries the binds out, and there is no thread.
    ///
    /// Where the system refuses what is needed, this steps down, and
    /// [`HandedOff::step_down`] says why. A port whose bind can be seen and not carried out is let go
    /// of at that moment, and only leased from then on. If it cannot even be seen, the hold's door is
    /// open ([`Hold::open_door`]): a server that does not set SO_REUSEADDR cannot bind the port then.
    ///
    /// # Errors
    ///
    /// What [`Command::spawn`] reports. [`io::ErrorKind::Unsupported`] with a [`StepDown`] instead of
    /// a weaker promise if it has to be [strict](Self::strict).
    pub fn spawn(mut self) -> io::Result<HandedOff> {
        let ports = self.holds.iter().map(Hold::port).collect();
        let mut preparation = None;
        let holders: Vec<_> = self.holds.iter().flat_map(Hold::descriptors).collect();
        let (step_down, kept) = match find_supervisor(&holders) {
            Ok(By::Above) => (None, Kept::entrusted(self.holds)),
            Err(reason) if self.is_strict => {
                return Err(io::Error::new(io::ErrorKind::Unsupported, reason));
            }
            Err(reason @ StepDown::NoNotification(_)) => {
                (Some(reason), Kept::with_open_doors(self.holds)?)
            }
            possible => {
                preparation = Some((Preparation::new(&mut self.command)?, self.holds));
                (possible.err(), Kept::default())
            }
        };
        let mut child = self.command.spawn()?;
        if let Some((preparation, holds)) = preparation {
            let supervisor = preparation.supervisor(holds);
            let supervised = supervisor.and_then(|supervisor| match self.is_strict {
                true => supervisor.strict().run_in_background(),
                false => supervisor.run_in_background(),
            });
            if let Err(err) = supervised {
                // It could bind nothing.
                child.kill()?;
                child.wait()?;
                return Err(err);
            }
        }
        Ok(HandedOff {
            child,
            ports,
            step_down,
            _kept: kept,
        })
    }
}

/// What this process keeps of the ports of a command, where no thread of its own does.
#[derive(Debug, Default)]
struct Kept {
    // In this order: the sockets close before the leases end.
    entrusted: Vec<Socket>,
    _leases: Vec<Lease>,
    _holds: Vec<Hold>,
}

impl Kept {
    /// Returns `holds`, which the supervisor above has been entrusted with.
    fn entrusted(holds: Vec<Hold>) -> Self {
        let mut kept = Self::default();
        for hold in holds {
            let (lease, bound) = hold.into_parts();
            kept.entrusted.extend(bound.tcp);
            kept.entrusted.extend(bound.udp);
            kept._leases.push(lease);
        }
        kept
    }

    fn with_open_doors(mut holds: Vec<Hold>) -> io::Result<Self> {
        for hold in &mut holds {
            hold.open_door().map_err(io::Error::other)?;
        }
        let mut kept = Self::default();
        kept._holds.append(&mut holds);
        Ok(kept)
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        withdraw(&self.entrusted);
    }
}

/// A command that was started with held ports: a [`Child`], which goes on when this is dropped.
#[derive(Debug)]
pub struct HandedOff {
    child: Child,
    ports: Vec<u16>,
    step_down: Option<StepDown>,
    _kept: Kept,
}

impl HandedOff {
    /// Returns why the ports are not handed off as they should be, if they are not.
    ///
    /// Known when the command is started. That its binds cannot be carried out may turn out later
    /// too, if the command becomes another user's for example; nobody is told then, but the command
    /// if the hand-off is [strict](HandOff::strict).
    pub fn step_down(&self) -> Option<&StepDown> {
        self.step_down.as_ref()
    }

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
