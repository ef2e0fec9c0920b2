//! What goes wrong on purpose.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Instant;

use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::{Result, Soak, disk};
use crate::crew::{Which, to_pid};
use crate::event::Id;
use crate::place;
use crate::server::{Life, Server};

/// What goes wrong, and how often beside the others.
pub(super) const TROUBLES: [(Trouble, usize); 10] = [
    (Soak::kill_somebody, 34),
    (Soak::kill_a_keeper, 10),
    (Soak::stop_somebody, 14),
    (Soak::reincarnate, 12),
    (Soak::restart, 12),
    (Soak::stop_a_server, 5),
    (Soak::crowd, 5),
    (Soak::fill_the_disk, 4),
    (Soak::fill_the_disk_and_kill, 2),
    (Soak::ask_for_stats, 2),
];

type Trouble = fn(&mut Soak) -> Result<()>;

impl Soak {
    fn count(&self, what: &str) {
        let mut oracle = self.oracle.lock().expect("nobody panics with it");
        oracle.count(what);
    }

    /// Returns one of the actors.
    fn anybody(&mut self, is_wanted: impl Fn(&str) -> bool) -> Option<(Id, &'static str)> {
        let mut living = self.crew.living();
        living.retain(|(id, kind)| is_wanted(kind) && !self.idle.contains(id));
        (!living.is_empty()).then(|| self.random.one_of(&living))
    }

    fn kill_somebody(&mut self) -> Result<()> {
        let Some((id, kind)) = self.anybody(|_| true) else {
            return Ok(());
        };
        match self.random.below(4) {
            0 if kind == "run" => {
                self.crew.kill_one(id, Which::First);
                self.count("what the caller sees of `portpicker run` killed, and nothing else");
            }
            1 if kind == "run" => {
                self.crew.kill_one(id, Which::Child);
                self.count("`portpicker run` killed, and not its command");
            }
            _ => {
                self.crew.kill(id);
                self.count("actors killed");
            }
        }
        Ok(())
    }

    fn kill_a_keeper(&mut self) -> Result<()> {
        let Some((id, pid, ports)) = self.known_keepers.pop() else {
            return Ok(());
        };
        self.known_keepers.clear();
        if self.crew.roll.actor(id).has_ended {
            return Ok(());
        }
        let Ok(keeper) = pidfd_open(to_pid(pid), PidfdFlags::empty()) else {
            return Ok(());
        };
        // What has its number now may be something else.
        if !is_keeper(pid, self.crew.pid(id)) {
            return Ok(());
        }
        let words: Vec<_> = ports.iter().map(u16::to_string).collect();
        // In the name of its owner, whose lease ends.
        self.crew
            .say_as(id, &format!("returned {}", words.join(" ")));
        if pidfd_send_signal(keeper, Signal::KILL).is_ok() {
            self.count("keepers killed");
        }
        Ok(())
    }

    fn stop_somebody(&mut self) -> Result<()> {
        let Some((id, _)) = self.anybody(|_| true) else {
            return Ok(());
        };
        self.crew.signal(id, Signal::STOP);
        let until = Instant::now() + self.random.millis(10, 3000);
        self.stopped.push((until, id));
        self.count("actors stopped for a while");
        Ok(())
    }

    /// Kills an owner, and gives its number to another process.
    fn reincarnate(&mut self) -> Result<()> {
        let owns = |kind: &str| {
            matches!(
                kind,
                "server" | "original" | "environment" | "shell" | "shell-server"
            )
        };
        let Some((id, _)) = self.anybody(owns) else {
            return Ok(());
        };
        let pid = self.crew.pid(id);
        self.crew.kill(id);
        self.crew.wait(id);
        for _ in 0..5 {
            // Not permitted everywhere; then numbers are used again when all have been used.
            if fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string()).is_err() {
                self.count("process ids that cannot be chosen");
                return Ok(());
            }
            // Without pidfds, whoever has an owner's number is taken for it, and keeps its leases.
            let is_idle = self.idle.len() < 30 && !cfg!(portpicker_force = "poll");
            let kind = if is_idle { "idle" } else { "server" };
            let (new, new_pid) = self.start(kind)?;
            if new_pid == pid {
                self.count("process ids of killed owners used again");
                if is_idle {
                    self.idle.push(new);
                }
                return Ok(());
            }
            if is_idle {
                self.crew.kill(new);
            }
        }
        self.count("process ids that somebody else was given");
        Ok(())
    }

    /// Ends the shaken server and starts it again.
    fn restart(&mut self) -> Result<()> {
        if self.full_until.is_some() {
            // It would not start.
            return Ok(());
        }
        let by_kill = self.random.below(3) > 0;
        self.bring_down(by_kill)?;
        if self.random.below(3) == 0 {
            self.reincarnate()?;
        }
        thread::sleep(self.random.millis(0, 200));
        self.bring_up()
    }

    fn bring_down(&mut self, by_kill: bool) -> Result<()> {
        self.crew.say("down shaken");
        if by_kill {
            self.shaken.kill();
            self.count("server killed");
        } else {
            if !self.shaken.terminate() {
                return Err(
                    format!("the server does not end: {}", self.shaken.last_lines()).into(),
                );
            }
            self.count("server ended in order");
        }
        let pid = self.shaken.pid;
        let ended = self.crew.reap();
        let ended = ended.iter().find(|ended| ended.pid == pid);
        if !by_kill && !ended.is_some_and(|ended| ended.status.success()) {
            return Err(format!(
                "the server ended with {ended:?}: {}",
                self.shaken.last_lines()
            )
            .into());
        }
        Ok(())
    }

    fn bring_up(&mut self) -> Result<()> {
        let ahead = match self.random.below(8) {
            // Without pidfds, owners are known by the time at which they began.
            _ if cfg!(portpicker_force = "poll") => 0,
            0 => 24 * 3600,
            1 => 365 * 24 * 3600,
            2 | 3 => self.shaken.life.ahead,
            _ => 0,
        };
        if ahead != self.shaken.life.ahead {
            self.crew.say("jumps shaken");
            self.count("clock jumps");
        }
        let few = Life {
            descriptors: 45 + self.random.below(60),
            ahead,
        };
        let enough = Life {
            ahead,
            ..Life::ORDINARY
        };
        let start = |life| Server::start(&self.crew, place::Server::Shaken, life);
        let mut started = None;
        if self.random.below(3) == 0 {
            self.count("server with few descriptors");
            match start(few) {
                Ok(server) => started = Some(server),
                // It has changed nothing.
                Err(err) if err.contains("Too many open files") => {
                    self.count("server refused to start with few descriptors");
                }
                Err(err) => {
                    return Err(format!("with few descriptors the server says: {err}").into());
                }
            }
        }
        self.shaken = match started {
            Some(server) => server,
            None => {
                start(enough).map_err(|err| format!("the server does not start again: {err}"))?
            }
        };
        self.crew.say("up shaken");
        Ok(())
    }

    fn stop_a_server(&mut self) -> Result<()> {
        let is_shaken = self.random.below(2) == 0;
        let while_ = self.random.millis(50, 1000);
        let signal = |soak: &Self, signal| match is_shaken {
            true => soak.shaken.signal(signal),
            false => soak.steady.signal(signal),
        };
        signal(self, Signal::STOP);
        // Whoever is given the number of an owner whose exit the server has not seen.
        if self.random.below(2) == 0 {
            self.reincarnate()?;
        }
        thread::sleep(while_);
        signal(self, Signal::CONT);
        self.count("server stopped for a while");
        Ok(())
    }

    fn crowd(&mut self) -> Result<()> {
        self.start("crowd")?;
        Ok(())
    }

    fn fill_the_disk(&mut self) -> Result<()> {
        self.leave_no_space(false)
    }

    fn fill_the_disk_and_kill(&mut self) -> Result<()> {
        self.leave_no_space(true)
    }

    /// Leaves no space for the state files for a while, at whose end a server may be killed.
    fn leave_no_space(&mut self, kill: bool) -> Result<()> {
        if self.full_until.is_none() {
            self.crew.say("full");
            fill(&self.ballast()).map_err(|err| format!("cannot fill the disk: {err}"))?;
            self.count("disk full");
            let until = Instant::now() + self.random.millis(200, 4000);
            self.full_until = Some((until, kill));
        }
        Ok(())
    }

    pub(super) fn ballast(&self) -> PathBuf {
        disk(&self.crew.folder).join("ballast")
    }

    /// Makes space again, after a server was perhaps killed that could not write what it knew.
    pub(super) fn free_the_disk(&mut self, kill: bool) -> Result<()> {
        if self.shaken.is_behind() {
            self.count("disk full when a state file was to be written");
        }
        if kill {
            self.bring_down(true)?;
            self.count("server killed while the disk was full");
            match Server::start(&self.crew, place::Server::Shaken, Life::ORDINARY) {
                Ok(_server) => self.count("server started although the disk was full"),
                Err(err) if err.contains("cannot use the state file") => {
                    self.count("server refused to start on a full disk");
                }
                Err(err) => return Err(format!("on a full disk the server says: {err}").into()),
            }
        }
        fs::remove_file(self.ballast()).map_err(|err| err.to_string())?;
        if kill {
            self.bring_up()?;
        }
        for server in [&self.shaken, &self.steady] {
            server.wait_until_whole()?;
            self.crew.say(&format!("whole {}", server.place.name()));
        }
        self.full_until = None;
        Ok(())
    }

    fn ask_for_stats(&mut self) -> Result<()> {
        for server in [&self.shaken, &self.steady] {
            let stats = server
                .stats()
                .map_err(|err| format!("no statistics: {err}"))?;
            let number = |name: &str| stats[name].as_u64().unwrap_or(u64::MAX);
            let parts = ["free", "leased", "resting"].map(number);
            if parts.into_iter().fold(0, u64::saturating_add) != number("pool") {
                return Err(format!("the statistics do not add up: {stats}").into());
            }
        }
        self.count("statistics that add up");
        Ok(())
    }
}

/// Tells whether `pid` is that of a keeper of ports for `owner`.
fn is_keeper(pid: u32, owner: u32) -> bool {
    let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    line.starts_with(&format!("portpicker\0keep\0--owner={owner}\0"))
}

/// Writes to a file until there is no space.
fn fill(path: &Path) -> io::Result<()> {
    let mut file = File::create(path)?;
    let result = io::copy(&mut io::repeat(b'x').take(1 << 30), &mut file);
    match result {
        Err(err) if err.kind() == io::ErrorKind::StorageFull => Ok(()),
        Err(err) => Err(err),
        Ok(_) => Err(io::Error::other("it has no end")),
    }
}
