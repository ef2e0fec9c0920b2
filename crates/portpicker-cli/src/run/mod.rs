//! `portpicker run`: a command with ports that are never free. And `portpicker wait`.
//!
//! Two processes run a command: see [`relay`].

mod arguments;
pub(crate) mod beginning;
pub(crate) mod names;
pub(crate) mod passing;
mod relay;
mod signals;

use std::env;
use std::error;
use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{self, PipeReader};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use portpicker::hand_off::{Answered, By, Preparation, StepDown, Supervisor, find_supervisor};
use portpicker::process::Pid;
use portpicker::{Error, Hold, Kind, Lease, is_listening, wait_listening};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, FdFlags};
use serde_json::json;

use self::arguments::HandOff;
pub(crate) use self::arguments::{Arguments, WaitArguments};
use self::names::NamedPorts;
use self::relay::{Report, Side};
use self::signals::{Deputy, Event, Signals};
use crate::exit::Exit;
use crate::inherited::{self, Inherited};
use crate::output;

/// The exit codes of env(1), for what is not the command's own.
pub(crate) const FAILED: u8 = 125;
const CANNOT_RUN: u8 = 126;
const NOT_FOUND: u8 = 127;

/// How often it is looked whether something listens.
const LISTENING_INTERVAL: Duration = Duration::from_millis(5);

/// How long a command that does not listen in time may take to end, before it is killed.
const GRACE: Duration = Duration::from_secs(5);

/// Runs what `arguments` say, with its ports.
pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    let inherited = Inherited::at_start();
    // Before the command is started: no signal may get lost.
    let both = Signals::block()
        .map_err(Failure::Signals)
        .and_then(|signals| Ok((signals, relay::split().map_err(Failure::Processes)?)));
    let seen = match both {
        Ok((signals, Side::Relay(relay))) => relay.wait(&signals),
        Ok((signals, Side::Keeper(report))) => {
            keep(arguments, signals, report, inherited);
            return ExitCode::SUCCESS;
        }
        Err(failure) => Err(failure),
    };
    relay::exit_like(seen.unwrap_or_else(|failure| complain(&failure)))
}

/// Runs the command, reports how it has ended, and keeps its ports for what it has left behind.
fn keep(arguments: &Arguments, signals: Signals, report: Report, inherited: Inherited) {
    let mut running = match start(arguments, signals) {
        Ok(running) => running,
        Err(failure) => return report.send(complain(&failure)),
    };
    let status = match running.accompany(arguments) {
        Ok(status) => status,
        Err(failure) => complain(&failure),
    };
    let Running {
        signals, keeping, ..
    } = running;
    if keeping.has_ended() {
        // First of all: the caller is to find the ports free.
        drop(keeping);
        return report.send(status);
    }
    match to_background(signals, inherited) {
        Ok(()) => {
            report.send(status);
            keeping.remain();
        }
        Err(err) => {
            drop(keeping);
            report.send(complain(&Failure::Remain(err)));
        }
    }
}

/// Leaves the caller: its streams, its other descriptors, its folder, and its terminal.
///
/// Otherwise a pipe that somebody reads to its end would stay open as long as a daemon runs, and a
/// folder could not be unmounted.
fn to_background(signals: Signals, inherited: Inherited) -> io::Result<()> {
    // What can fail comes first, as long as somebody can be told.
    let dev_null = File::options().read(true).write(true).open("/dev/null")?;
    env::set_current_dir("/")?;
    rustix::process::setsid()?;
    signals.release()?;
    inherited.close();
    rustix::stdio::dup2_stdin(&dev_null)?;
    rustix::stdio::dup2_stdout(&dev_null)?;
    Ok(rustix::stdio::dup2_stderr(&dev_null)?)
}

fn complain(failure: &Failure) -> ExitStatus {
    output::complain(failure);
    exited(failure.exit())
}

fn exited(code: u8) -> ExitStatus {
    // As wait(2) says it.
    ExitStatus::from_raw(i32::from(code) << 8)
}

/// Waits as `arguments` say.
pub(crate) fn wait(arguments: WaitArguments) -> ExitCode {
    let WaitArguments {
        port,
        limit,
        udp,
        command,
    } = arguments;
    let kind = if udp { Kind::Udp } else { Kind::Tcp };
    match wait_listening(port, kind, limit.unwrap_or(Duration::MAX)) {
        Ok(true) => {}
        Ok(false) => {
            output::complain(&Failure::Silent { port });
            return Exit::Silent.into();
        }
        Err(err) => {
            output::complain(&Failure::Tables(err));
            return Exit::System.into();
        }
    }
    let Some((program, arguments)) = command.split_first() else {
        return ExitCode::SUCCESS;
    };
    let failure = Failure::Command {
        program: program.clone(),
        source: Command::new(program).args(arguments).exec(),
    };
    output::complain(&failure);
    ExitCode::from(failure.exit())
}

/// A command that runs, and what keeps its ports.
#[derive(Debug)]
struct Running {
    child: Child,
    signals: Signals,
    ports: NamedPorts,
    /// The transport that is waited for.
    awaited: Kind,
    is_step_down_told: bool,
    keeping: Keeping,
}

/// What keeps the ports of a command.
#[derive(Debug)]
enum Keeping {
    /// Its binds are carried out for it.
    Supervisor(Supervisor),
    /// It binds by itself, or was given its sockets.
    Descriptors {
        /// What holds the ports. Closed before the leases end.
        holders: Vec<OwnedFd>,
        _leases: Vec<Lease>,
        /// Hangs up when the last process that has inherited the other end has ended.
        pipe: PipeReader,
        /// Whether the supervisor that we are below carries out binds beside `holders`.
        are_entrusted: bool,
    },
}

/// Leases the ports, and starts the command with them.
fn start(arguments: &Arguments, signals: Signals) -> Result<Running, Failure> {
    if let Some((one, other)) = NamedPorts::clash(&arguments.names) {
        return Err(Failure::Names {
            one: one.to_owned(),
            other: other.to_owned(),
        });
    }
    let picked = pick(arguments)?;
    let ports: Vec<u16> = picked.iter().map(Picked::port).collect();
    let ports = NamedPorts::new(&arguments.names, &ports);
    let mut command = command(arguments, &ports);
    // Orphans become our children: see `relay`.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(|err| Failure::Processes(err.into()))?;
    let means = hand_off(arguments, &picked)?;
    let is_step_down_told = means
        == Means::Supervision {
            is_step_down_told: true,
        };
    let (child, keeping) = match means {
        Means::Supervision { .. } => {
            let holds = picked.into_iter().filter_map(Picked::into_hold).collect();
            let preparation = Preparation::new(&mut command).map_err(Failure::Supervisor)?;
            let child = spawn(&mut command, &signals, arguments)?;
            let supervisor = preparation.supervisor(holds).map_err(Failure::Supervisor)?;
            let supervisor = match arguments.hand_off {
                HandOff::Strict => supervisor.strict(),
                _ => supervisor,
            };
            (child, Keeping::Supervisor(supervisor))
        }
        means => {
            let (holders, leases) = let_in(picked, &means)?;
            if means == Means::Listen {
                command = passing::command(&command, &holders, &ports).map_err(Failure::Pipe)?;
            }
            let (pipe, inherited) = io::pipe().map_err(Failure::Pipe)?;
            // Not among the numbers that LISTEN_FDS gives to the sockets.
            let min = inherited::FIRST_OF_SYSTEMD + holders.len() as RawFd;
            let inherited = rustix::io::fcntl_dupfd_cloexec(&inherited, min)
                .map_err(|err| Failure::Pipe(err.into()))?;
            rustix::io::fcntl_setfd(&inherited, FdFlags::empty())
                .map_err(|err| Failure::Pipe(err.into()))?;
            let child = spawn(&mut command, &signals, arguments)?;
            let keeping = Keeping::Descriptors {
                holders,
                _leases: leases,
                pipe,
                are_entrusted: means == Means::OuterSupervision,
            };
            (child, keeping)
        }
    };
    Ok(Running {
        child,
        signals,
        ports,
        awaited: match arguments.wanted.udp {
            true => Kind::Udp,
            false => Kind::Tcp,
        },
        is_step_down_told,
        keeping,
    })
}

/// A port, held or leased.
#[derive(Debug)]
enum Picked {
    Hold(Hold),
    Lease(Lease),
}

impl Picked {
    fn port(&self) -> u16 {
        match self {
            Self::Hold(hold) => hold.port(),
            Self::Lease(lease) => lease.port(),
        }
    }

    /// Returns the sockets that hold the port.
    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        match self {
            Self::Hold(hold) => hold.descriptors().collect(),
            Self::Lease(_) => Vec::new(),
        }
    }

    fn into_hold(self) -> Option<Hold> {
        match self {
            Self::Hold(hold) => Some(hold),
            Self::Lease(_) => None,
        }
    }
}

fn pick(arguments: &Arguments) -> Result<Vec<Picked>, Failure> {
    let wanted = &arguments.wanted;
    let picker = wanted.picker().server(wanted.server());
    let count = match arguments.names.len() {
        0 => arguments.count.into(),
        names => names,
    };
    let picked = match (arguments.hand_off, wanted.contiguous) {
        (HandOff::Lease, false) => picker.leases(count).map(leased),
        (HandOff::Lease, true) => picker.lease_block(count).map(leased),
        (_, false) => picker.holds(count).map(held),
        (_, true) => picker.hold_block(count).map(held),
    };
    picked.map_err(Failure::Pick)
}

fn held(holds: Vec<Hold>) -> Vec<Picked> {
    holds.into_iter().map(Picked::Hold).collect()
}

fn leased(leases: Vec<Lease>) -> Vec<Picked> {
    leases.into_iter().map(Picked::Lease).collect()
}

/// How the ports pass to the command.
#[derive(Debug, PartialEq, Eq)]
enum Means {
    Supervision {
        /// Whether it has been said that ports are let go of.
        is_step_down_told: bool,
    },
    /// By the supervisor of another `portpicker run`, which this one is below.
    OuterSupervision,
    Door,
    Lease,
    Listen,
}

/// Finds the strongest means that the arguments allow and the system permits.
fn hand_off(arguments: &Arguments, picked: &[Picked]) -> Result<Means, Failure> {
    let is_strict = match arguments.hand_off {
        _ if arguments.listen => return Ok(Means::Listen),
        HandOff::Door => return Ok(Means::Door),
        HandOff::Lease => return Ok(Means::Lease),
        HandOff::Strict => true,
        HandOff::Auto => false,
    };
    let holders: Vec<_> = picked.iter().flat_map(Picked::descriptors).collect();
    match find_supervisor(&holders) {
        Ok(By::ThisProcess) => Ok(Means::Supervision {
            is_step_down_told: false,
        }),
        Ok(By::Above) => Ok(Means::OuterSupervision),
        Err(reason) if is_strict => Err(Failure::NotStrict(reason)),
        Err(reason @ StepDown::NoCopies(_)) => {
            output::warn(&reason, LETTING_GO);
            Ok(Means::Supervision {
                is_step_down_told: true,
            })
        }
        Err(reason) => {
            output::warn(
                &reason,
                "the ports are held, but for servers that set SO_REUSEADDR; for others, use \
                 --hand-off lease",
            );
            Ok(Means::Door)
        }
    }
}

const LETTING_GO: &str = "a port is let go when the command binds it, and only leased from then on";
const REFUSING: &str = "a port is in use when the command binds it, and not let go of";

/// Prepares the ports for a command that binds by itself, or is given sockets.
fn let_in(picked: Vec<Picked>, means: &Means) -> Result<(Vec<OwnedFd>, Vec<Lease>), Failure> {
    let (mut holders, mut leases) = (Vec::new(), Vec::new());
    for port in picked {
        let mut hold = match port {
            Picked::Hold(hold) => hold,
            Picked::Lease(lease) => {
                leases.push(lease);
                continue;
            }
        };
        match means {
            Means::Listen => {
                // A port that is wanted for UDP has no TCP socket.
                let socket = match hold.take_tcp() {
                    Some(tcp) => {
                        rustix::net::listen(&tcp, i32::MAX)
                            .map_err(|err| Failure::Listen(err.into()))?;
                        OwnedFd::from(tcp)
                    }
                    None => OwnedFd::from(hold.take_udp().expect("a hold holds something")),
                };
                holders.push(socket);
            }
            Means::Door => {
                hold.open_door().map_err(Failure::Pick)?;
                holders.extend(hold.take_tcp().map(OwnedFd::from));
            }
            Means::OuterSupervision => {
                holders.extend(hold.take_tcp().map(OwnedFd::from));
                holders.extend(hold.take_udp().map(OwnedFd::from));
            }
            Means::Supervision { .. } | Means::Lease => {}
        }
        leases.push(hold.into_lease());
    }
    Ok((holders, leases))
}

fn command(arguments: &Arguments, ports: &NamedPorts) -> Command {
    let replace = |argument: &OsString| match arguments.literal {
        true => argument.clone(),
        false => ports.replace(argument),
    };
    let mut words = arguments.command.iter().map(replace);
    let mut command = Command::new(words.next().expect("required by the command line"));
    command.args(words).envs(ports.environment());
    command
}

fn spawn(
    command: &mut Command,
    signals: &Signals,
    arguments: &Arguments,
) -> Result<Child, Failure> {
    if arguments.wait_listening.is_some() {
        // It outlives us, and must not keep open what our caller reads to its end.
        command.stdin(Stdio::null());
        match io::stderr().as_fd().try_clone_to_owned() {
            Ok(stderr) => command.stdout(stderr),
            Err(_) => command.stdout(Stdio::null()),
        };
    }
    signals.restore_in(command);
    command.spawn().map_err(|source| Failure::Command {
        program: arguments.command[0].clone(),
        source,
    })
}

impl Running {
    /// Goes with the command until it has ended, or until it may be left alone. Returns how the caller
    /// is to see it end.
    fn accompany(&mut self, arguments: &Arguments) -> Result<ExitStatus, Failure> {
        let pid = Pid::new(self.child.id()).expect("a child has a pid");
        let deadline = arguments
            .wait_listening
            .map(|limit| Instant::now().checked_add(limit));
        let mut deputy = Deputy::of(pid);
        loop {
            self.wait_for_event(deadline.is_some())?;
            while let Some(event) = self.signals.next().map_err(Failure::Signals)? {
                deputy.pass_on(&event);
                if event != Event::Child {
                    continue;
                }
                match (self.child.try_wait().map_err(Failure::Wait)?, deadline) {
                    (None, _) => signals::bury_all_but(pid),
                    (Some(status), None) => return Ok(status),
                    (Some(status), Some(_)) => return Err(Failure::Ended { status }),
                }
            }
            deputy.stop_if_it_has();
            let Some(end) = deadline else { continue };
            let result = match self.silent_port() {
                Ok(Some(_)) if end.is_none_or(|end| Instant::now() < end) => continue,
                Ok(Some(port)) => Err(Failure::Silent { port }),
                Ok(None) => self.report(arguments),
                Err(failure) => Err(failure),
            };
            if result.is_err() {
                self.end(pid)?;
            }
            return result.map(|()| exited(0));
        }
    }

    /// Waits for a signal, carrying out binds meanwhile.
    fn wait_for_event(&mut self, is_impatient: bool) -> Result<(), Failure> {
        let end = is_impatient.then(|| Instant::now() + LISTENING_INTERVAL);
        loop {
            let left = end.map(|end| end.saturating_duration_since(Instant::now()));
            let timeout = left.map(|left| Timespec {
                tv_sec: 0,
                tv_nsec: left.subsec_nanos().into(),
            });
            let mut fds = vec![PollFd::new(&self.signals, PollFlags::IN)];
            if let Keeping::Supervisor(supervisor) = &self.keeping {
                fds.push(PollFd::new(supervisor, PollFlags::IN));
            }
            match poll(&mut fds, timeout.as_ref()) {
                Ok(0) => return Ok(()),
                Ok(_) | Err(Errno::INTR) => {}
                Err(err) => return Err(Failure::Supervisor(err.into())),
            }
            let has_signal = !fds[0].revents().is_empty();
            let has_call = fds
                .get(1)
                .is_some_and(|fd| fd.revents().contains(PollFlags::IN));
            if has_call && let Keeping::Supervisor(supervisor) = &mut self.keeping {
                let step_down = match supervisor.answer().map_err(Failure::Supervisor)? {
                    Answered::SteppedDown(reason) => Some((reason, LETTING_GO)),
                    Answered::Refused(reason) => Some((reason, REFUSING)),
                    _ => None,
                };
                if let Some((reason, consequence)) = step_down
                    && !self.is_step_down_told
                {
                    output::warn(&reason, consequence);
                    self.is_step_down_told = true;
                }
            }
            // A command that binds all the time is no reason to look at nothing else.
            if has_signal || left.is_some_and(|left| left.is_zero()) {
                return Ok(());
            }
        }
    }

    /// Returns a port on which nothing listens.
    fn silent_port(&self) -> Result<Option<u16>, Failure> {
        let holders = self.keeping.holders();
        for port in self.ports.ports() {
            if !is_listening(port, self.awaited, &holders).map_err(Failure::Tables)? {
                return Ok(Some(port));
            }
        }
        Ok(None)
    }

    /// Ends a command that does not do what was wanted.
    fn end(&mut self, pid: Pid) -> Result<(), Failure> {
        signals::send(pid, Signal::SIGTERM);
        // One that was stopped has to go on to end.
        signals::send(pid, Signal::SIGCONT);
        let end = Instant::now() + GRACE;
        while self.child.try_wait().map_err(Failure::Wait)?.is_none() {
            if Instant::now() >= end {
                self.child.kill().map_err(Failure::Wait)?;
            }
            // Its last binds are carried out still: it may wait for one.
            self.wait_for_event(true)?;
            while self.signals.next().map_err(Failure::Signals)?.is_some() {}
        }
        Ok(())
    }

    /// Prints the ports of a command that is left alone.
    fn report(&self, arguments: &Arguments) -> Result<(), Failure> {
        let text = if arguments.json {
            let ports: serde_json::Map<_, _> = self
                .ports
                .iter()
                .map(|(name, port)| (name.to_owned(), port.into()))
                .collect();
            json!({ "ports": ports, "pid": self.child.id() }).to_string() + "\n"
        } else {
            self.ports.ports().map(|port| format!("{port}\n")).collect()
        };
        output::print(text.as_bytes()).map_err(Failure::Output)
    }
}

impl Keeping {
    /// Tells whether none of the command's processes is left.
    fn has_ended(&self) -> bool {
        match self {
            Self::Supervisor(supervisor) => supervisor.has_ended(),
            Self::Descriptors { pipe, .. } => {
                let mut fds = [PollFd::new(pipe, PollFlags::empty())];
                poll(&mut fds, Some(&Timespec::default())) == Ok(1)
            }
        }
    }

    /// Keeps the ports until the last of the command's processes has ended.
    fn remain(self) {
        match self {
            // Nobody reads what is wrong.
            Self::Supervisor(supervisor) => _ = supervisor.run(|_| {}),
            Self::Descriptors { pipe, .. } => {
                let mut fds = [PollFd::new(&pipe, PollFlags::empty())];
                while poll(&mut fds, None) == Err(Errno::INTR) {}
            }
        }
    }

    /// Returns the sockets that hold the ports, and are not the command's.
    fn holders(&self) -> Vec<BorrowedFd<'_>> {
        match self {
            Self::Supervisor(supervisor) => supervisor.holders(),
            Self::Descriptors {
                holders,
                are_entrusted: true,
                ..
            } => holders.iter().map(AsFd::as_fd).collect(),
            Self::Descriptors { .. } => Vec::new(),
        }
    }
}

/// Why a command was not run as it should be.
#[derive(Debug)]
enum Failure {
    Pick(Error),
    Names {
        one: String,
        other: String,
    },
    NotStrict(StepDown),
    Processes(io::Error),
    Supervisor(io::Error),
    Signals(io::Error),
    Pipe(io::Error),
    Listen(io::Error),
    Command {
        program: OsString,
        source: io::Error,
    },
    Wait(io::Error),
    Killed,
    Tables(io::Error),
    Silent {
        port: u16,
    },
    Ended {
        status: ExitStatus,
    },
    Remain(io::Error),
    Output(io::Error),
}

impl Failure {
    fn exit(&self) -> u8 {
        match self {
            Self::Command { source, .. } if source.kind() == io::ErrorKind::NotFound => NOT_FOUND,
            Self::Command { .. } => CANNOT_RUN,
            _ => FAILED,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pick(err) => err.fmt(f),
            Self::Names { one, other } if one == other => {
                write!(f, "two ports are called `{one}`")
            }
            Self::Names { one, other } => write!(
                f,
                "the names `{one}` and `{other}` would be the same variable in the environment"
            ),
            Self::NotStrict(reason) => write!(f, "{reason}, and --hand-off strict was asked for"),
            Self::Processes(_) => f.write_str("cannot start a process that keeps the ports"),
            Self::Supervisor(_) => f.write_str("cannot supervise the command"),
            Self::Signals(_) => f.write_str("cannot receive signals"),
            Self::Pipe(_) => f.write_str("cannot pass descriptors to the command"),
            Self::Listen(_) => f.write_str("cannot listen on the port"),
            Self::Command { program, .. } => write!(f, "cannot run `{}`", program.display()),
            Self::Wait(_) => f.write_str("cannot wait for the command"),
            Self::Killed => f.write_str(
                "the process that keeps the ports was killed; the command may go on without them",
            ),
            Self::Tables(_) => f.write_str("cannot see who listens"),
            Self::Silent { port } => write!(f, "nothing listens on port {port}"),
            Self::Ended { status } => {
                write!(f, "the command ended before it listened: {status}")
            }
            Self::Remain(_) => {
                f.write_str("cannot keep the ports for the processes that the command has left")
            }
            Self::Output(_) => f.write_str("cannot write to the standard output"),
        }
    }
}

impl error::Error for Failure {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            // Their texts stand in ours.
            Self::Pick(err) => err.source(),
            Self::NotStrict(reason) => reason.source(),
            Self::Processes(err)
            | Self::Supervisor(err)
            | Self::Signals(err)
            | Self::Pipe(err)
            | Self::Listen(err)
            | Self::Command { source: err, .. }
            | Self::Wait(err)
            | Self::Tables(err)
            | Self::Remain(err)
            | Self::Output(err) => Some(err),
            Self::Names { .. } | Self::Killed | Self::Silent { .. } | Self::Ended { .. } => None,
        }
    }
}
