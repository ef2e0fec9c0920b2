//! What has leaked? Looked at when all actors have ended.

use std::fs;
use std::io;
use std::thread;
use std::time::{Duration, Instant};

use portpicker::Picker;

use crate::crew::Crew;
use crate::event::Id;
use crate::place::all_ports;
use crate::report::Report;
use crate::server::{LONG, Server};
use crate::soak::{Result, disk};

/// How much more memory a server may have at the end than when it was first loaded, in KiB.
const GROWTH: usize = 4096;

/// Returns how many descriptors this process has open.
pub(crate) fn own_descriptors() -> io::Result<usize> {
    Ok(fs::read_dir("/proc/self/fd")?.count())
}

/// Ends the soak, and says what is wrong with what is left.
pub(crate) fn end(
    crew: &mut Crew,
    servers: Vec<Server>,
    idle: &[Id],
    report: &mut Report,
    wrong: &mut Vec<String>,
) {
    crew.dismiss();
    let all_but_idle = |crew: &mut Crew| {
        crew.reap();
        let living = crew.living();
        living
            .into_iter()
            .filter(|(id, _)| !idle.contains(id))
            .collect::<Vec<_>>()
    };
    if !comes_true(|| all_but_idle(crew).is_empty()) {
        for (id, kind) in all_but_idle(crew) {
            wrong.push(format!("{kind} {id} does not end"));
            crew.kill(id);
        }
    }
    // While those who were given an owner's number still run.
    for server in &servers {
        if let Err(err) = wait_until_empty(server, report) {
            wrong.push(format!("{}: {err}", server.place.name()));
        }
    }
    let started = Instant::now();
    let ports = all_ports().parse().expect("it is a range");
    let count = portpicker::PortSet::len(&ports);
    let picker = Picker::new()
        .server(portpicker::Server::None)
        .ports(ports)
        .wait(LONG);
    match picker.leases(count) {
        Ok(_) => report.end(format!(
            "all {count} ports could be leased by one process, after {:.1} s",
            started.elapsed().as_secs_f64()
        )),
        Err(err) => wrong.push(format!("not every port can be leased: {err}")),
    }
    for &id in idle {
        crew.kill(id);
    }
    for server in servers {
        if !server.terminate() {
            wrong.push(format!("{} does not end", server.place.name()));
        }
    }
    if !comes_true(|| {
        crew.reap();
        others().is_empty()
    }) {
        wrong.push(format!("processes are left: {}", others().join(", ")));
    } else {
        report.end("no process is left".to_owned());
    }
    for found in [no_socket_is_left(report), no_file_is_left(crew, report)] {
        wrong.extend(found.err().map(|err| err.to_string()));
    }
}

/// Waits until `is_true`, in vain at most so long as something takes that surely comes.
fn comes_true(mut is_true: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + LONG;
    loop {
        if is_true() {
            return true;
        }
        if Instant::now() > end {
            return false;
        }
        // Of several kinds of things there is no common event, and this is not a test of speed.
        thread::sleep(Duration::from_millis(20));
    }
}

/// Waits until a server has no leases, and looks at its size.
fn wait_until_empty(server: &Server, report: &mut Report) -> Result<()> {
    let mut last = String::new();
    let is_idle = comes_true(|| match server.stats() {
        Ok(stats) => {
            last = stats.to_string();
            // A port that a stranger had may rest until somebody asks for ports again.
            let number = |name: &str| stats[name].as_u64();
            let unused = number("free")
                .zip(number("resting"))
                .map(|(free, rest)| free + rest);
            number("leased") == Some(0)
                && number("owners") == Some(0)
                && number("clients") == Some(1)
                && unused == number("pool")
        }
        Err(err) => {
            last = err.to_string();
            false
        }
    });
    if !is_idle {
        return Err(format!("leases, owners, or clients are left: {last}").into());
    }
    let name = server.place.name();
    report.end(format!("server `{name}`: every port is free again"));
    if server.place == crate::place::Server::Steady {
        report.size(server)?;
        report.growth(GROWTH)?;
    }
    Ok(())
}

/// Returns the processes beside this one, with their command lines.
fn others() -> Vec<String> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return vec!["/proc cannot be read".to_owned()];
    };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names
        .filter_map(|name| name.parse::<u32>().ok())
        .filter(|&pid| pid != 1)
        .map(|pid| {
            let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            format!("{pid} `{}`", line.replace('\0', " ").trim())
        })
        .collect()
}

/// Looks at the sockets that are left.
fn no_socket_is_left(report: &mut Report) -> Result<()> {
    let unix = fs::read_to_string("/proc/net/unix")?;
    let left: Vec<_> = unix
        .lines()
        .filter_map(|line| line.split_whitespace().nth(7))
        .filter(|name| name.starts_with("@portpicker/") || name.starts_with("@soak"))
        .collect();
    if !left.is_empty() {
        return Err(format!("sockets are left: {}", left.join(" ")).into());
    }
    let mut tables = fs::read_to_string("/proc/net/tcp")? + &fs::read_to_string("/proc/net/udp")?;
    for of_ipv6 in ["tcp6", "udp6"] {
        // Not there without IPv6.
        tables += &fs::read_to_string(format!("/proc/net/{of_ipv6}")).unwrap_or_default();
    }
    let bound: Vec<_> = tables
        .lines()
        .filter(|line| {
            line.trim_start()
                .starts_with(|first: char| first.is_ascii_digit())
        })
        // All but TIME-WAIT (06), which the kernel ends.
        .filter(|line| line.split_whitespace().nth(3) != Some("06"))
        .collect();
    if !bound.is_empty() {
        return Err(format!("ports are left bound: {}", bound.join(" | ")).into());
    }
    report.end("no lock is left, and no port is bound".to_owned());
    Ok(())
}

/// Looks at the files that are left.
fn no_file_is_left(crew: &Crew, report: &mut Report) -> Result<()> {
    let mut names = Vec::new();
    for entry in fs::read_dir(disk(&crew.folder))? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    if names != ["shaken", "shaken.lock", "steady", "steady.lock"] {
        return Err(format!("files are left: {}", names.join(", ")).into());
    }
    report.end("no file is left but the state files and their locks".to_owned());
    Ok(())
}
