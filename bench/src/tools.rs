//! What takes part, and by which call.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The ports of the scenarios in which everybody picks from one range: see [`Tool::range`].
const COMMON_RANGE: (u16, u16) = (15_000, 24_999);

/// A way to pick a port.
#[derive(Debug)]
pub struct Tool {
    /// What results call it. Never changes, so that results can be compared.
    pub id: &'static str,
    /// What people call it.
    pub name: &'static str,
    /// What is called, as it is written where it is called.
    pub call: &'static str,
    /// Where its version is found.
    pub package: Package,
    pub kind: Kind,
    pub driver: Driver,
    /// The port server that it asks, if it is measured with one.
    pub server: Option<Server>,
    /// The ports that it picks from when it is told to pick from one range. Tools that let the
    /// kernel choose, or cannot be told, do so in the namespace's ephemeral range, which is this.
    pub range: (u16, u16),
    /// Who becomes a plain server at its ports.
    pub plain: Binder,
    /// Who becomes a server that sets SO_REUSEADDR at its ports.
    pub reuse: Binder,
}

/// Whose version is a tool's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Package {
    /// This project's.
    Ours,
    Crate(&'static str),
    Python(&'static str),
    Node(&'static str),
    /// It has none.
    None,
}

/// Where a tool comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    Ours,
    Rust,
    Python,
    Node,
    /// Nobody's: what everybody can do without a tool.
    Nobody,
}

impl Package {
    /// Returns where it comes from.
    pub fn origin(self) -> Origin {
        match self {
            Self::Ours => Origin::Ours,
            Self::Crate(_) => Origin::Rust,
            Self::Python(_) => Origin::Python,
            Self::Node(_) => Origin::Node,
            Self::None => Origin::Nobody,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Called in the process that needs the port.
    Library,
    /// Run by a script that needs the port.
    Command,
    /// Takes part in what is measured of port servers.
    Server,
    /// Picks nothing: what any command costs.
    Floor,
}

/// The program that calls the tool.
#[derive(Clone, Copy, Debug)]
pub enum Driver {
    /// `drivers/rust`, with this argument.
    Rust(&'static str),
    /// `drivers/python` with this argument, in the environment of the peers.
    Python(&'static str),
    /// `drivers/python` with this argument, in this project's environment.
    OurPython(&'static str),
    /// `drivers/node`, with this argument.
    Node(&'static str),
    /// A command line, whose first word is a program below the tools' folder, or an absolute path.
    Command(&'static [&'static str]),
    /// `drivers/rust`, which runs programs below this project's command.
    Run,
    /// A port server is measured by clients of the benchmark's own.
    None,
}

/// A port server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Server {
    Ours,
    Google,
}

/// Who binds a picked port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binder {
    /// The benchmark, as any other process would.
    Anybody,
    /// The tool hands it over by its own means.
    Tool,
    /// Nobody: the tool's documentation excludes such servers.
    Nobody,
}

impl Tool {
    const fn new(
        id: &'static str,
        name: &'static str,
        call: &'static str,
        package: Package,
        kind: Kind,
        driver: Driver,
    ) -> Self {
        Self {
            id,
            name,
            call,
            package,
            kind,
            driver,
            server: None,
            range: COMMON_RANGE,
            plain: Binder::Anybody,
            reuse: Binder::Anybody,
        }
    }

    const fn library(
        id: &'static str,
        name: &'static str,
        call: &'static str,
        package: Package,
        driver: Driver,
    ) -> Self {
        Self::new(id, name, call, package, Kind::Library, driver)
    }

    const fn command(
        id: &'static str,
        name: &'static str,
        call: &'static str,
        package: Package,
        line: &'static [&'static str],
    ) -> Self {
        Self::new(
            id,
            name,
            call,
            package,
            Kind::Command,
            Driver::Command(line),
        )
    }

    const fn with_server(mut self, server: Server) -> Self {
        self.server = Some(server);
        self
    }

    const fn with_binders(mut self, plain: Binder, reuse: Binder) -> Self {
        self.plain = plain;
        self.reuse = reuse;
        self
    }

    const fn with_range(mut self, first: u16, last: u16) -> Self {
        self.range = (first, last);
        self
    }

    /// Returns the tool that results call `id`.
    pub fn find(id: &str) -> Option<&'static Self> {
        TOOLS.iter().find(|tool| tool.id == id)
    }

    /// Tells whether it is this project's.
    pub fn is_ours(&self) -> bool {
        self.package == Package::Ours
    }

    /// Tells whether it picks ports, in a process or for a script.
    pub fn picks(&self) -> bool {
        matches!(self.kind, Kind::Library | Kind::Command)
    }
}

/// Everything that takes part.
pub const TOOLS: &[Tool] = &[
    Tool::library(
        "portpicker-rust-lease",
        "portpicker (Rust)",
        "pick_unused_port()",
        Package::Ours,
        Driver::Rust("lease"),
    ),
    Tool::library(
        "portpicker-rust-hold",
        "portpicker (Rust), hold",
        "Picker::new().hold()",
        Package::Ours,
        Driver::Rust("hold"),
    )
    .with_binders(Binder::Tool, Binder::Tool),
    Tool::library(
        "portpicker-rust-server",
        "portpicker (Rust) + portserver",
        "pick_unused_port()",
        Package::Ours,
        Driver::Rust("lease"),
    )
    .with_server(Server::Ours),
    Tool::library(
        "portpicker-python-lease",
        "portpicker (Python)",
        "pick_unused_port()",
        Package::Ours,
        Driver::OurPython("portpicker"),
    ),
    Tool::library(
        "portpicker-python-server",
        "portpicker (Python) + portserver",
        "pick_unused_port()",
        Package::Ours,
        Driver::OurPython("portpicker"),
    )
    .with_server(Server::Ours),
    Tool::library(
        "google-portpicker",
        "Google portpicker",
        "pick_unused_port()",
        Package::Python("portpicker"),
        Driver::Python("portpicker"),
    ),
    Tool::library(
        "google-portpicker-server",
        "Google portpicker + portserver.py",
        "pick_unused_port()",
        Package::Python("portpicker"),
        Driver::Python("portpicker"),
    )
    .with_server(Server::Google),
    Tool::library(
        "port-for",
        "port-for",
        "select_random()",
        Package::Python("port-for"),
        Driver::Python("port-for"),
    ),
    Tool::library(
        "ephemeral-port-reserve",
        "ephemeral-port-reserve",
        "reserve()",
        Package::Python("ephemeral-port-reserve"),
        Driver::Python("ephemeral-port-reserve"),
    )
    // "subprocesses can still bind to it explicitly, given that they use SO_REUSEADDR"
    .with_binders(Binder::Nobody, Binder::Anybody),
    Tool::library(
        "get-port",
        "get-port",
        "getPort()",
        Package::Node("get-port"),
        Driver::Node("get-port"),
    ),
    Tool::library(
        "get-port-please",
        "get-port-please",
        "getPort()",
        Package::Node("get-port-please"),
        Driver::Node("get-port-please"),
    ),
    Tool::library(
        "get-port-please-random",
        "get-port-please, random",
        "getRandomPort()",
        Package::Node("get-port-please"),
        Driver::Node("get-port-please-random"),
    ),
    Tool::library(
        "portfinder",
        "portfinder",
        "getPortPromise()",
        Package::Node("portfinder"),
        Driver::Node("portfinder"),
    ),
    Tool::library(
        "detect-port",
        "detect-port",
        "detectPort()",
        Package::Node("detect-port"),
        Driver::Node("detect-port"),
    ),
    Tool::library(
        "portpicker-rs",
        "portpicker-rs",
        "pick_unused_port()",
        Package::Crate("portpicker"),
        Driver::Rust("portpicker-rs"),
    ),
    Tool::library(
        "openport",
        "openport",
        "pick_random_unused_port()",
        Package::Crate("openport"),
        Driver::Rust("openport"),
    ),
    Tool::library(
        "openport-reservation",
        "openport, reservation",
        "PortReservation::reserve_port()",
        Package::Crate("openport"),
        Driver::Rust("openport-reservation"),
    ),
    Tool::library(
        "reserve-port",
        "reserve-port",
        "ReservedPort::random()",
        Package::Crate("reserve-port"),
        Driver::Rust("reserve-port"),
    )
    .with_range(8_000, 15_999),
    Tool::library(
        "reserve-port-tcp",
        "reserve-port, listener",
        "ReservedPort::random_with_tcp(…)",
        Package::Crate("reserve-port"),
        Driver::Rust("reserve-port-tcp"),
    )
    .with_range(8_000, 15_999)
    .with_binders(Binder::Tool, Binder::Tool),
    Tool::library(
        "port-selector",
        "port-selector",
        "random_free_port()",
        Package::Crate("port-selector"),
        Driver::Rust("port-selector"),
    ),
    Tool::library(
        "by-hand",
        "by hand",
        "bind to port 0, close",
        Package::None,
        Driver::Rust("by-hand"),
    ),
    Tool::command(
        "portpicker-command",
        "portpicker",
        "portpicker $$",
        Package::Ours,
        &["release/portpicker", "PID"],
    ),
    Tool::command(
        "portpicker-command-server",
        "portpicker + portserver",
        "portpicker $$",
        Package::Ours,
        &["release/portpicker", "PID"],
    )
    .with_server(Server::Ours),
    Tool::new(
        "portpicker-command-run",
        "portpicker, run",
        "portpicker run -- …",
        Package::Ours,
        Kind::Command,
        Driver::Run,
    )
    .with_binders(Binder::Tool, Binder::Tool),
    Tool::command(
        "portpicker-command-python",
        "portpicker (Python)",
        "python3 -m portpicker $$",
        Package::Ours,
        &["ours/bin/python", "-m", "portpicker", "PID"],
    ),
    Tool::command(
        "google-portpicker-command",
        "Google portpicker",
        "python3 -m portpicker $$",
        Package::Python("portpicker"),
        &["peers/bin/python", "-m", "portpicker", "PID"],
    ),
    Tool::command(
        "google-portpicker-command-server",
        "Google portpicker + portserver.py",
        "python3 -m portpicker $$",
        Package::Python("portpicker"),
        &["peers/bin/python", "-m", "portpicker", "PID"],
    )
    .with_server(Server::Google),
    Tool::command(
        "ephemeral-port-reserve-command",
        "ephemeral-port-reserve",
        "ephemeral-port-reserve",
        Package::Python("ephemeral-port-reserve"),
        &["peers/bin/ephemeral-port-reserve"],
    )
    .with_binders(Binder::Nobody, Binder::Anybody),
    Tool::command(
        "detect-port-command",
        "detect-port",
        "detect-port",
        Package::Node("detect-port"),
        &["node/node_modules/.bin/detect-port"],
    ),
    Tool::command(
        "openport-command",
        "openport",
        "openport",
        Package::Crate("openport"),
        &["bin/openport"],
    ),
    Tool::new(
        "floor",
        "nothing but a number",
        "/bin/echo 1",
        Package::None,
        Kind::Floor,
        Driver::Command(&["/bin/echo", "1"]),
    ),
    Tool::new(
        "portserver",
        "portserver",
        "portserver",
        Package::Ours,
        Kind::Server,
        Driver::None,
    )
    .with_server(Server::Ours),
    Tool::new(
        "google-portserver",
        "Google portserver.py",
        "portserver.py",
        Package::Python("portpicker"),
        Kind::Server,
        Driver::None,
    )
    .with_server(Server::Google),
];

/// Where `bench/run` has put the tools.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Places {
    /// The folder of everything that is built or fetched.
    pub folder: PathBuf,
}

impl Places {
    /// Returns the program and the arguments that start the driver of `tool`; to pick from its
    /// range only, if `in_range`.
    pub fn driver(&self, tool: &Tool, in_range: bool) -> Vec<PathBuf> {
        let path = |place: &str| self.folder.join(place);
        let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("drivers/python/driver.py");
        let rust = path("release/portpicker-bench-driver");
        let (mut line, name) = match tool.driver {
            Driver::Rust(name) => (vec![rust], name),
            Driver::Python(name) => (vec![path("peers/bin/python"), python], name),
            Driver::OurPython(name) => (vec![path("ours/bin/python"), python], name),
            Driver::Node(name) => (vec!["node".into(), path("node/driver.mjs")], name),
            Driver::Command([program, arguments @ ..]) => {
                let mut line = vec![rust, "command".into(), path(program)];
                line.extend(arguments.iter().map(PathBuf::from));
                return line;
            }
            Driver::Run => return vec![rust, "run".into(), path("release/portpicker")],
            Driver::Command([]) | Driver::None => unreachable!("{} has a driver", tool.id),
        };
        line.push(name.into());
        if in_range {
            line.push(format!("{}-{}", tool.range.0, tool.range.1).into());
        }
        line
    }

    /// Returns the program and the arguments that start `server` at the abstract name `address`,
    /// with `range` as its pool and a folder for what it remembers.
    pub fn server(
        &self,
        server: Server,
        address: &str,
        range: (u16, u16),
        folder: &Path,
    ) -> Vec<PathBuf> {
        let pool = format!("{}-{}", range.0, range.1);
        match server {
            Server::Ours => vec![
                self.folder.join("release/portserver"),
                "--address".into(),
                format!("@{address}").into(),
                "--pool".into(),
                pool.into(),
                "--state".into(),
                folder.join("state"),
            ],
            Server::Google => vec![
                self.folder.join("peers/bin/python"),
                self.folder.join("peers/bin/portserver.py"),
                format!("--portserver_address=@{address}").into(),
                format!("--portserver_static_pool={pool}").into(),
            ],
        }
    }

    /// Tells whether `tool` is there: `bench/run` leaves out what cannot be fetched.
    pub fn has(&self, tool: &Tool) -> bool {
        let program = match tool.driver {
            Driver::Rust(_) => "release/portpicker-bench-driver",
            Driver::Python(_) => "peers/bin/python",
            Driver::OurPython(_) => "ours/bin/python",
            Driver::Node(_) => "node/node_modules",
            Driver::Command(line) => line[0],
            Driver::Run => "release/portpicker",
            Driver::None => "",
        };
        let server = match tool.server {
            Some(Server::Google) => "peers/bin/portserver.py",
            Some(Server::Ours) => "release/portserver",
            None => "",
        };
        self.folder.join(program).exists() && self.folder.join(server).exists()
    }
}

/// The variables that tools read, and that nobody should have set for them.
pub const VARIABLES: [&str; 5] = [
    "HOST",
    "PORT",
    "PORTPICKER_PORTS",
    "PORTSERVER_ADDRESS",
    "PORTSERVER_PORT",
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn each_tool_has_an_id_of_its_own() {
        let ids: HashSet<&str> = TOOLS.iter().map(|tool| tool.id).collect();
        assert_eq!(ids.len(), TOOLS.len());
    }

    #[test]
    fn a_tool_that_is_not_fetched_is_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let places = Places {
            folder: folder.path().to_owned(),
        };
        let there: Vec<&str> = TOOLS
            .iter()
            .filter(|tool| places.has(tool))
            .map(|tool| tool.id)
            .collect();
        assert_eq!(there, ["floor"], "/bin/echo needs no fetching");
    }
}
