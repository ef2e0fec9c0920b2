//! How many ports a second does the server grant, beside a bare loop and Google's portserver.py?
//!
//! All servers run in the same run, by turns, with the same client: one process that keeps so many
//! connections under way, from one `epoll`, which is no bottleneck. Ratios are medians over the
//! rounds. A batch's owner is the client process, which exits at its end, so every batch finds the
//! ports free again.
//!
//! `cargo bench -p portserver`; with `--quick`, one small round that only shows that it works. The
//! reference needs python3 with a network or a cache of packages; without, it is left out.
#![expect(clippy::print_stdout, reason = "the result")]
#![expect(
    clippy::unwrap_used,
    reason = "a benchmark that cannot run says why and ends"
)]

use std::env;
use std::io::{BufRead, BufReader, Read, Write};
use std::ops::RangeInclusive;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use rustix::event::epoll;

/// The pool of each server: apart, since they would be in each other's way otherwise.
const OURS: [&str; 2] = ["15000", "19999"];
const BARE: [&str; 2] = ["20000", "24999"];
const REFERENCE: [&str; 2] = ["25000", "29999"];

/// How many connections are under way at one time.
const CLIENTS: [usize; 3] = [1, 8, 64];

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["client", name, clients, requests] => {
            client(name, clients.parse().unwrap(), requests.parse().unwrap());
        }
        ["holder", name, requests] => {
            client(name, 8, requests.parse().unwrap());
            // The ports are its own until the benchmark closes its input.
            std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
        }
        ["server", name, first, last] => {
            server(name, first.parse().unwrap()..=last.parse().unwrap());
        }
        _ => {
            let is_quick = arguments
                .iter()
                .any(|word| word == "--quick" || word == "--test");
            compare(is_quick);
            fill(is_quick);
        }
    }
}

/// Runs our server, as the command does: with a state file.
fn server(name: &str, ports: RangeInclusive<u16>) {
    let ports = portpicker::PortSet::from_ranges([ports]).unwrap();
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let mut options = portserver::Options::new(ports);
    options.addresses.push(address(name).parse().unwrap());
    options.state = Some(folder.path().join("state"));
    portserver::serve(options, || {
        println!("ready");
    })
    .unwrap();
}

/// Returns the address that a server's name stands for: a path, or a name in the abstract namespace.
fn address(name: &str) -> String {
    if name.starts_with('/') {
        name.to_owned()
    } else {
        format!("@{name}")
    }
}

/// Asks for `requests` ports, `clients` at a time, and prints how many it got and in which time.
fn client(name: &str, clients: usize, requests: usize) {
    let address = match address(name).strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name).unwrap(),
        None => SocketAddr::from_pathname(name).unwrap(),
    };
    let request = format!("{}\n", std::process::id());
    let poll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
    let mut slots: Vec<Option<UnixStream>> = (0..clients).map(|_| None).collect();
    let mut started = 0;
    let mut ask = |slot: usize, slots: &mut [Option<UnixStream>]| {
        if started == requests {
            return;
        }
        started += 1;
        let mut stream = UnixStream::connect_addr(&address).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let data = epoll::EventData::new_u64(slot as u64);
        epoll::add(&poll, &stream, data, epoll::EventFlags::IN).unwrap();
        slots[slot] = Some(stream);
    };
    let start = Instant::now();
    for slot in 0..clients {
        ask(slot, &mut slots);
    }
    let (mut granted, mut done) = (0, 0);
    let mut events = Vec::with_capacity(64);
    while done < requests {
        events.clear();
        epoll::wait(&poll, rustix::buffer::spare_capacity(&mut events), None).unwrap();
        for event in &events {
            let slot = event.data.u64() as usize;
            let mut answer = [0; 32];
            let length = slots[slot].take().unwrap().read(&mut answer).unwrap_or(0);
            granted += usize::from(length > 0);
            done += 1;
            ask(slot, &mut slots);
        }
    }
    println!("{granted} {} {requests}", start.elapsed().as_secs_f64());
}

/// A server that is being measured, ended with this.
struct Contender {
    label: &'static str,
    name: String,
    process: Child,
}

impl Drop for Contender {
    fn drop(&mut self) {
        _ = self.process.kill();
        _ = self.process.wait();
    }
}

impl Contender {
    /// Starts a server that prints a line when it listens, or that is connected to until it does.
    fn start(label: &'static str, command: &mut Command, name: &str, says_ready: bool) -> Self {
        let out = if says_ready {
            Stdio::piped()
        } else {
            Stdio::null()
        };
        let mut process = command.stdout(out).stderr(Stdio::null()).spawn().unwrap();
        if says_ready {
            let mut line = String::new();
            BufReader::new(process.stdout.take().unwrap())
                .read_line(&mut line)
                .unwrap();
            assert_eq!(line, "ready\n", "{label}");
        } else {
            let address = SocketAddr::from_abstract_name(name).unwrap();
            while UnixStream::connect_addr(&address).is_err() {
                assert!(process.try_wait().unwrap().is_none(), "{label} has ended");
                std::thread::yield_now();
            }
        }
        Self {
            label,
            name: name.to_owned(),
            process,
        }
    }

    /// Returns answers per second, all of them grants or all of them refusals.
    fn measure(&self, clients: usize, requests: usize, are_granted: bool) -> f64 {
        let output = Command::new(env::current_exe().unwrap())
            .args([
                "client",
                &self.name,
                &clients.to_string(),
                &requests.to_string(),
            ])
            .output()
            .unwrap();
        let [granted, seconds, _] = numbers(&String::from_utf8(output.stdout).unwrap());
        let expected = if are_granted { requests as f64 } else { 0.0 };
        assert_eq!(granted, expected, "{}: ports granted", self.label);
        requests as f64 / seconds
    }

    /// Leases so many ports until what is returned is dropped.
    fn lease(&self, count: usize) -> Holder {
        let mut process = Command::new(env::current_exe().unwrap())
            .args(["holder", &self.name, &count.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert_eq!(
            numbers(&line)[0],
            count as f64,
            "{}: ports leased",
            self.label
        );
        Holder(process)
    }

    /// Returns the resident memory in MB.
    fn memory(&self) -> f64 {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("VmRSS:"))
            .unwrap();
        line.split_whitespace()
            .nth(1)
            .unwrap()
            .parse::<f64>()
            .unwrap()
            * 1024.0
            / 1e6
    }
}

/// A process that owns ports.
struct Holder(Child);

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        self.0.wait().unwrap();
    }
}

fn numbers(line: &str) -> [f64; 3] {
    let numbers: Vec<f64> = line
        .split_whitespace()
        .map(|n| n.parse().unwrap())
        .collect();
    numbers.try_into().unwrap()
}

fn compare(is_quick: bool) {
    let (rounds, requests) = if is_quick { (1, 100) } else { (15, 600) };
    let id = std::process::id();
    let name = |what: &str| format!("portserver-bench-{what}-{id}");
    let own_program = env::current_exe().unwrap();

    let mut contenders = vec![
        Contender::start(
            "portserver",
            Command::new(own_program)
                .args(["server", &name("ours")])
                .args(OURS),
            &name("ours"),
            true,
        ),
        Contender::start(
            "bare C loop",
            Command::new(bare_loop()).arg(name("bare")).args(BARE),
            &name("bare"),
            true,
        ),
    ];
    match reference() {
        Some(python) => contenders.push(Contender::start(
            "portserver.py",
            Command::new(python.join("bin/python"))
                .arg(python.join("bin/portserver.py"))
                .arg(format!("--portserver_address=@{}", name("reference")))
                .arg(format!("--portserver_static_pool={}", REFERENCE.join("-"))),
            &name("reference"),
            false,
        )),
        None => println!("portserver.py is left out: it could not be installed"),
    }

    println!(
        "{:<16}{:>14}{:>14}{:>14}",
        "grants/s", "1 client", "8 clients", "64 clients"
    );
    let mut rates: Vec<[Vec<f64>; 3]> = contenders.iter().map(|_| Default::default()).collect();
    for _ in 0..rounds {
        for (column, clients) in CLIENTS.into_iter().enumerate() {
            for (contender, rates) in contenders.iter().zip(&mut rates) {
                rates[column].push(contender.measure(clients, requests, true));
            }
        }
    }
    for (contender, rates) in contenders.iter().zip(&rates) {
        print!("{:<16}", contender.label);
        for column in rates {
            print!("{:>14.0}", median(column.clone()));
        }
        println!();
    }
    for (other, contender) in contenders.iter().enumerate().skip(1) {
        print!("{:<16}", format!("/ {}", contender.label));
        for (ours, theirs) in rates[0].iter().zip(&rates[other]) {
            let ratios = ours.iter().zip(theirs).map(|(a, b)| a / b);
            print!("{:>13.2}x", median(ratios.collect()));
        }
        println!();
    }
}

/// What does it cost when the pool is full, or large and almost full?
fn fill(is_quick: bool) {
    let (rounds, requests) = if is_quick { (1, 100) } else { (15, 600) };
    // Each in a network namespace of its own, since their pools overlap; paths lead there.
    let folder = tempfile::tempdir().unwrap();
    let is_root = rustix::process::geteuid().is_root();
    let unshare: &[&str] = if is_root {
        &["-n"]
    } else {
        &["-U", "-r", "-n"]
    };
    if !Command::new("unshare")
        .args(unshare)
        .arg("true")
        .status()
        .is_ok_and(|s| s.success())
    {
        return println!("full and large pools are left out: there are no network namespaces here");
    }
    let start = |what: &str, first: u16, last: u16| {
        let path = folder.path().join(what);
        let mut command = Command::new("unshare");
        command
            .args(unshare)
            .arg(env::current_exe().unwrap())
            .arg("server")
            .arg(&path);
        command.args([first.to_string(), last.to_string()]);
        Contender::start("portserver", &mut command, path.to_str().unwrap(), true)
    };
    // A tenth of the descriptors is left for clients and others; two for each owner of one port.
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let most = (limit.unwrap_or(u64::MAX) * 9 / 10).min(50_000) as usize;
    let leased = if is_quick { 500 } else { most };

    let empty = start("empty", 5_000, 64_999);
    let large = start("large", 5_000, 64_999);
    let _holder = large.lease(leased);
    let full = start("full", 15_000, 24_999);
    let before = full.memory();
    let _all = (0..4).map(|_| full.lease(2_500)).collect::<Vec<_>>();
    let memory = full.memory();

    let mut times = [const { Vec::new() }; 3];
    for _ in 0..rounds {
        times[0].push(1e6 / empty.measure(8, requests, true));
        times[1].push(1e6 / large.measure(8, requests, true));
        times[2].push(1e6 / full.measure(8, requests, false));
    }
    let labels = [
        "a grant from 60,000 free ports".to_owned(),
        format!("the same with {leased} leased"),
        "a refusal from 10,000 leased ports".to_owned(),
    ];
    println!("\n{:<40}{:>12}{:>12}", "8 clients", "median", "ratio");
    for (label, column) in labels.iter().zip(&times) {
        let ratios = column
            .iter()
            .zip(&times[0])
            .map(|(time, base)| time / base)
            .collect();
        println!(
            "{label:<40}{:>9.1} µs{:>11.2}x",
            median(column.clone()),
            median(ratios)
        );
    }
    println!("memory: {before:.1} MB with no lease, {memory:.1} MB with 10,000 leases");
}

/// Compiles the bare loop.
fn bare_loop() -> PathBuf {
    let program = target().join("bare_loop");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/grants/bare_loop.c");
    let status = Command::new("cc")
        .args(["-O2", "-o"])
        .arg(&program)
        .arg(source)
        .status();
    assert!(status.unwrap().success(), "a C compiler compiles {source}");
    program
}

/// Installs Google's port server in an environment of its own, if that can be had.
fn reference() -> Option<PathBuf> {
    let folder = target().join("reference");
    if !folder.join("bin/portserver.py").exists() {
        let run = |command: &mut Command| {
            command
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .is_ok_and(|s| s.success())
        };
        let is_there = run(Command::new("python3").args(["-m", "venv"]).arg(&folder))
            && run(Command::new(folder.join("bin/pip")).args([
                "install",
                "--quiet",
                "portpicker==1.6.0",
                "psutil==7.1.0",
            ]));
        if !is_there {
            return None;
        }
    }
    Some(folder)
}

/// Returns a folder for what the benchmark makes.
fn target() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).to_owned();
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
