//! Google's client with our server, and our client with Google's server.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Instant;

use portpicker::process::Pid;
use portpicker::{Error, Picker, Server, ServerAddress, request_port};
use portpicker_testing::{in_network_namespace, skip};

use crate::client::{Client, Owner};
use crate::server::TestServer;
use crate::{LONG, assert_all_different};

/// From PyPI, these versions and no others.
const PACKAGES: [&str; 2] = ["portpicker==1.6.0", "psutil==7.0.0"];

/// Returns the folder of a Python environment with Google's portpicker, or why there is none.
///
/// It is made once, beside the build. Not in a test's network namespace, which leads nowhere.
fn python() -> Result<PathBuf, String> {
    let test = std::env::current_exe().expect("a process knows its own binary");
    let target = test
        .ancestors()
        .nth(3)
        .expect("it lies in target/debug/deps");
    let folder = target.join(PACKAGES.join("-").replace("==", "-"));
    let lock = File::create(folder.with_added_extension("lock")).map_err(|err| err.to_string())?;
    lock.lock().map_err(|err| err.to_string())?;
    let is_whole = folder.join("whole");
    if !is_whole.exists() {
        _ = fs::remove_dir_all(&folder);
        run(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
        let pip = [
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
        ];
        run(Command::new(folder.join("bin/python"))
            .args(pip)
            .args(PACKAGES))?;
        fs::write(is_whole, "").map_err(|err| err.to_string())?;
    }
    Ok(folder.join("bin"))
}

fn run(command: &mut Command) -> Result<(), String> {
    match command.stdin(Stdio::null()).output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        Err(err) => Err(err.to_string()),
    }
}

/// Runs `test` with the folder of Google's programs in a network namespace; skips it without them.
macro_rules! with_google {
    ($name:literal, $test:expr) => {
        match python() {
            Ok(folder) => in_network_namespace(|| {
                let test: fn(&Path) = $test;
                test(&folder);
            }),
            Err(reason) => skip(concat!("google::", $name), &reason),
        }
    };
}

/// Runs a Python program to its end, and returns its output and what it wrote to stderr.
fn output(bin: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> (String, String) {
    let output = Command::new(bin.join("python"))
        .args(arguments)
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (text(output.stdout), text(output.stderr))
}

fn numbers(text: &str) -> Vec<u16> {
    text.split_whitespace()
        .map(|number| number.parse().expect(text))
        .collect()
}

#[test]
fn googles_client_is_served() {
    with_google!("googles_client_is_served", |bin| {
        let server = TestServer::start("20000-20009");
        let at_server = [("PORTSERVER_ADDRESS", "@server")];
        // All ways to ask, two ports each.
        let program = "import portpicker as p; \
             print(p.pick_unused_port(), p.PickUnusedPort(portserver_address='@server'))";
        let (answer, err) = output(bin, &["-c", program], &at_server);
        assert_eq!((numbers(&answer), err.as_str()), (vec![20_000, 20_001], ""));

        // The command, on behalf of another process.
        let owner = Owner::start();
        let pid = owner.pid().to_string();
        let (answer, err) = output(bin, &["-m", "portpicker", &pid], &at_server);
        assert_eq!((answer.as_str(), err.as_str()), ("20002\n", ""));
        assert_eq!(server.count("granted"), 3);

        // The first two came back with their process, and are the last to come again.
        let program = "import portpicker as p; \
             print(*[p.get_port_from_port_server('@server') for _ in range(10)])";
        let (answer, err) = output(bin, &["-c", program], &[]);
        let answers: Vec<_> = answer.split_whitespace().collect();
        assert_eq!(answers.last(), Some(&"None"), "{answer} {err}");
        let ports = numbers(&answers[..9].join(" "));
        assert_all_different(&ports);
        assert!(!ports.contains(&20_002) && ports.iter().all(|port| *port / 10 == 2000));
        assert_eq!(server.stats()["refused"]["exhausted"], 1);
        assert_eq!(server.count("client_errors"), 0);
        drop(owner);
    });
}

#[test]
fn many_of_googles_clients_at_once_get_different_ports() {
    const CLIENTS: usize = 6;
    const EACH: usize = 50;
    with_google!(
        "many_of_googles_clients_at_once_get_different_ports",
        |bin| {
            let server = TestServer::start("20000-20299");
            let program = format!(
                "import sys, portpicker as p; \
             print(*[p.get_port_from_port_server('@server') for _ in range({EACH})], flush=True); \
             sys.stdin.read()"
            );
            let mut clients: Vec<_> = (0..CLIENTS)
                .map(|_| Owner::run(Command::new(bin.join("python")).args(["-c", &program])))
                .collect();
            let ports: Vec<u16> = clients
                .iter_mut()
                .flat_map(|client| numbers(&client.hear()))
                .collect();
            assert_eq!(ports.len(), CLIENTS * EACH);
            assert_all_different(&ports);
            drop(clients);
            let all = server.connect().lease(r#""count":300,"wait":40"#);
            assert_eq!(all.len(), 300);
        }
    );
}

#[test]
fn our_client_is_served_by_googles_server() {
    with_google!("our_client_is_served_by_googles_server", |bin| {
        let _server = Owner::run(
            Command::new(bin.join("python"))
                .arg(bin.join("portserver.py"))
                .args(["--portserver_static_pool", "20000-20009"])
                .args(["--portserver_unix_socket_address", "@google"])
                .stderr(Stdio::null()),
        );
        let address: ServerAddress = "@google".parse().unwrap();
        let end = Instant::now() + LONG;
        while Client::try_connect(&address).is_err() {
            assert!(Instant::now() < end, "it does not listen");
            thread::yield_now();
        }
        let mut ports: Vec<_> = (0..5)
            .map(|_| request_port(&address, Pid::current(), LONG).unwrap())
            .collect();
        let picker = Picker::new()
            .server(Server::At(address.clone()))
            .server_timeout(LONG);
        ports.extend(
            picker
                .leases(4)
                .unwrap()
                .iter()
                .map(portpicker::Lease::port),
        );
        ports.push(picker.lease().unwrap().port());
        ports.sort_unstable();
        assert_eq!(ports, (20_000..20_010).collect::<Vec<_>>());
        for pid in [Pid::current(), Pid::INIT, Pid::new(2_147_483_647).unwrap()] {
            let refused = request_port(&address, pid, LONG);
            assert!(matches!(refused, Err(Error::Refused { .. })), "{refused:?}");
        }
    });
}
