//! A port server, while it is measured or asked by a tool.

use std::fs;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::Result;
use crate::tools::{Places, Server, Tool, VARIABLES};

/// The abstract name at which the server listens: each is alone in its network.
const NAME: &str = "portpicker-bench";

/// A port server, ended when this is dropped.
#[derive(Debug)]
pub struct PortServer {
    process: Child,
    _folder: TempDir,
}

impl PortServer {
    /// Starts the server that `tool` asks, if it asks one, with the tool's range as its pool.
    pub fn beside(tool: &Tool, places: &Places) -> Result<Option<Self>> {
        let start = |server| Self::start(server, tool.range, places);
        tool.server.map(start).transpose()
    }

    /// Starts a server with this pool. It listens when this returns.
    pub fn start(server: Server, pool: (u16, u16), places: &Places) -> Result<Self> {
        // In memory, where it would be by default.
        let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir())?;
        let line = places.server(server, NAME, pool, folder.path());
        let mut command = Command::new(&line[0]);
        command
            .args(&line[1..])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        for variable in VARIABLES {
            command.env_remove(variable);
        }
        let process = command
            .spawn()
            .map_err(|err| format!("{}: {err}", line[0].display()))?;
        let mut this = Self {
            process,
            _folder: folder,
        };
        this.wait_until_it_listens()?;
        Ok(this)
    }

    /// Asks now and then: portserver.py tells nobody when it is ready.
    fn wait_until_it_listens(&mut self) -> Result<()> {
        let address = Self::address()?;
        let start = Instant::now();
        while UnixStream::connect_addr(&address).is_err() {
            if let Some(status) = self.process.try_wait()? {
                return Err(format!("the port server has ended: {status}").into());
            }
            if start.elapsed() > Duration::from_secs(30) {
                return Err("the port server does not listen".into());
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Returns where it listens.
    pub fn address() -> io::Result<SocketAddr> {
        SocketAddr::from_abstract_name(NAME)
    }

    /// Returns the variable by which clients find it.
    pub fn variable(&self) -> (&'static str, &'static str) {
        ("PORTSERVER_ADDRESS", concat!("@", "portpicker-bench"))
    }

    /// Returns its resident memory in bytes.
    pub fn memory(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kibibytes = line.and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse().ok());
        let kibibytes: u64 = kibibytes.ok_or("no memory in /proc")?;
        Ok(kibibytes * 1024)
    }
}

impl Drop for PortServer {
    fn drop(&mut self) {
        _ = self.process.kill();
        _ = self.process.wait();
    }
}
