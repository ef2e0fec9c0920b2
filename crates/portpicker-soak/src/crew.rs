//! The actors: who is there, who has ended, and who is to be killed.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, OpenOptions};
use std::io::{self, PipeReader, PipeWriter, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};

use portpicker_testing::Exit;
use rustix::process::{
    PidfdFlags, Signal, WaitOptions, kill_process, kill_process_group, pidfd_open,
    pidfd_send_signal, wait, waitpid,
};

use crate::actor::ID;
use crate::event::Id;
use crate::oracle::Actor;
use crate::place::{CANDIDATES, range};

/// One process of the soak.
#[derive(Debug)]
struct Member {
    kind: &'static str,
    pid: u32,
    /// `None` when it has been reaped.
    exit: Option<Exit>,
    /// Whether its leases may end from now on.
    is_doomed: bool,
}

/// Who is who. The oracle's thread asks, the main thread writes.
#[derive(Debug, Default)]
pub(crate) struct Roll(Mutex<Vec<Member>>);

impl Roll {
    /// Returns what is known of an actor now.
    pub(crate) fn actor(&self, id: Id) -> Actor {
        let members = self.members();
        let member = id
            .checked_sub(1)
            .and_then(|index| members.get(index as usize));
        match member {
            Some(member) => Actor {
                kind: member.kind,
                has_ended: member.is_doomed || member.exit.as_ref().is_none_or(Exit::has_happened),
            },
            None => Actor {
                kind: "the soak",
                has_ended: false,
            },
        }
    }

    fn members(&self) -> MutexGuard<'_, Vec<Member>> {
        self.0.lock().expect("nobody panics with it")
    }
}

/// The actors, and what they have in common.
#[derive(Debug)]
pub(crate) struct Crew {
    pub(crate) roll: Arc<Roll>,
    by_pid: HashMap<u32, Id>,
    /// How many were started, by kind.
    pub(crate) started: BTreeMap<&'static str, u64>,
    /// Where they say what they do.
    writer: PipeWriter,
    /// Ends when the soak does. Their standard input.
    lifeline: Option<PipeWriter>,
    input: PipeReader,
    pub(crate) folder: PathBuf,
    pub(crate) log: PathBuf,
}

/// A child that has ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) pid: u32,
    pub(crate) status: ExitStatus,
}

impl Crew {
    /// Returns a crew without anybody, who will speak to `writer`.
    pub(crate) fn new(folder: &Path, writer: PipeWriter) -> io::Result<Self> {
        let (input, lifeline) = io::pipe()?;
        Ok(Self {
            roll: Arc::default(),
            by_pid: HashMap::new(),
            started: BTreeMap::new(),
            writer,
            lifeline: Some(lifeline),
            input,
            folder: folder.to_owned(),
            log: folder.join("stderr"),
        })
    }

    /// Says something as the soak itself.
    pub(crate) fn say(&self, what: &str) {
        say(&self.writer, what);
    }

    /// Says something in the name of an actor.
    pub(crate) fn say_as(&self, id: Id, what: &str) {
        _ = (&self.writer).write_all(format!("{id} {what}\n").as_bytes());
    }

    pub(crate) fn writer(&self) -> io::Result<PipeWriter> {
        self.writer.try_clone()
    }

    /// Returns how many actors there are.
    pub(crate) fn len(&self) -> usize {
        self.by_pid.len()
    }

    /// Returns the command that starts one of the soak's own programs.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.folder.join("bin").join(program));
        self.prepare(&mut command);
        command
    }

    /// Gives a command the environment of the soak.
    pub(crate) fn prepare(&self, command: &mut Command) {
        let path = std::env::var("PATH").unwrap_or_default();
        let bin = self.folder.join("bin");
        command
            .env("PATH", format!("{}:{path}", bin.display()))
            .env("PORTPICKER_PORTS", range(CANDIDATES))
            .env_remove("PORTSERVER_ADDRESS");
    }

    /// Starts an actor. Returns its number and its process id.
    pub(crate) fn start(
        &mut self,
        kind: &'static str,
        command: &mut Command,
    ) -> io::Result<(Id, u32)> {
        let stderr = open_log(&self.log)?;
        // Until it is on the roll, nobody asks who it is.
        let mut members = self.roll.members();
        let id = members.len() as Id + 1;
        let child = command
            .process_group(0)
            .env(ID, id.to_string())
            .stdin(Stdio::from(self.input.try_clone()?))
            .stdout(Stdio::from(self.writer.try_clone()?))
            .stderr(stderr)
            .spawn()?;
        let pid = child.id();
        members.push(Member {
            kind,
            pid,
            exit: Some(Exit::of(pid)),
            is_doomed: false,
        });
        self.by_pid.insert(pid, id);
        *self.started.entry(kind).or_default() += 1;
        Ok((id, pid))
    }

    /// Kills an actor: its leases may have ended as soon as it is decided.
    pub(crate) fn kill(&self, id: Id) {
        let mut members = self.roll.members();
        let member = &mut members[id as usize - 1];
        member.is_doomed = true;
        if member.exit.is_some() {
            // Not reaped, so the number is its own. All of its group: a child that bound a port after
            // its lease has ended would be in the way of the next owner.
            _ = kill_process_group(to_pid(member.pid), Signal::KILL);
        }
    }

    /// Kills one process of an actor's: its first one, or the child of that. Not what they have
    /// started.
    pub(crate) fn kill_one(&self, id: Id, which: Which) {
        let mut members = self.roll.members();
        let member = &mut members[id as usize - 1];
        member.is_doomed = true;
        if member.exit.is_none() {
            return;
        }
        let child = || {
            let pid = member.pid;
            let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
            children.split_whitespace().next()?.parse().ok()
        };
        let pid = match which {
            Which::First => Some(member.pid),
            Which::Child => child(),
        };
        let pidfd = pid.and_then(|pid| pidfd_open(to_pid(pid), PidfdFlags::empty()).ok());
        // What has the child's number now may be something else.
        if let Some(pidfd) = pidfd
            && (which == Which::First || child() == pid)
        {
            _ = pidfd_send_signal(pidfd, Signal::KILL);
        }
    }

    /// Sends a signal that does not end an actor.
    pub(crate) fn signal(&self, id: Id, signal: Signal) {
        let members = self.roll.members();
        let member = &members[id as usize - 1];
        if member.exit.is_some() {
            _ = kill_process(to_pid(member.pid), signal);
        }
    }

    /// Returns the actors that run and are not being killed, with their kinds.
    pub(crate) fn living(&self) -> Vec<(Id, &'static str)> {
        let members = self.roll.members();
        let mut living: Vec<_> = self
            .by_pid
            .values()
            .map(|&id| (id, &members[id as usize - 1]))
            .filter(|(_, member)| !member.is_doomed)
            .map(|(id, member)| (id, member.kind))
            .collect();
        living.sort_unstable();
        living
    }

    pub(crate) fn pid(&self, id: Id) -> u32 {
        self.roll.members()[id as usize - 1].pid
    }

    /// Waits until an actor that was killed is gone, and its number free.
    pub(crate) fn wait(&mut self, id: Id) {
        let pid = self.pid(id);
        if self.by_pid.get(&pid) == Some(&id)
            && let Ok(Some((pid, status))) = waitpid(Some(to_pid(pid)), WaitOptions::empty())
        {
            self.take(pid, status);
        }
    }

    /// Reaps who has exited. Returns those that are no actors.
    pub(crate) fn reap(&mut self) -> Vec<Ended> {
        let mut others = Vec::new();
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            others.extend(self.take(pid, status));
        }
        others
    }

    fn take(
        &mut self,
        pid: rustix::process::Pid,
        status: rustix::process::WaitStatus,
    ) -> Option<Ended> {
        let pid = pid.as_raw_nonzero().get() as u32;
        let status = ExitStatus::from_raw(status.as_raw());
        let Some(id) = self.by_pid.remove(&pid) else {
            return Some(Ended { pid, status });
        };
        let mut members = self.roll.members();
        let member = &mut members[id as usize - 1];
        member.exit = None;
        if !member.is_doomed && !status.success() {
            let kind = member.kind;
            drop(members);
            self.say(&format!("trouble {kind} {id} ended with {status}"));
        }
        None
    }

    /// Tells all that the soak is over.
    pub(crate) fn dismiss(&mut self) {
        self.lifeline = None;
    }
}

/// Which of the processes that an actor consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    First,
    Child,
}

/// Says something as the soak itself.
pub(crate) fn say(mut writer: &PipeWriter, what: &str) {
    writer
        .write_all(format!("0 {what}\n").as_bytes())
        .expect("the oracle listens");
}

pub(crate) fn open_log(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

pub(crate) fn to_pid(pid: u32) -> rustix::process::Pid {
    rustix::process::Pid::from_raw(pid as i32).expect("a process id is not 0")
}
