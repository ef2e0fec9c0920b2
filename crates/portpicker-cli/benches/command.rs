//! What does the command cost, beside `true`, and its keeper, in memory?
//!
//! Both are started again and again by turns, in the same run, so that whatever else the machine
//! does falls on both. `cargo bench -p portpicker-cli --bench command`; with `--quick`, a few rounds
//! that only show that it works.
#![expect(clippy::print_stdout, reason = "the result")]
#![expect(
    clippy::unwrap_used,
    reason = "a benchmark that cannot run says why and ends"
)]

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

fn main() {
    let is_quick = std::env::args().any(|argument| argument == "--quick" || argument == "--test");
    let rounds = if is_quick { 5 } else { 500 };

    // The ports end with this process's child, not with this process's last round.
    let mut owner = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
    let pid = owner.id().to_string();
    let portpicker = env!("CARGO_BIN_EXE_portpicker");
    let contenders: [(&str, &str, &[&str]); 4] = [
        ("true", "true", &[]),
        ("portpicker PID", portpicker, &[&pid]),
        (
            "portpicker pick -n 10",
            portpicker,
            &["pick", "-n", "10", "--owner", &pid],
        ),
        ("python3 -c pass", "python3", &["-c", "pass"]),
    ];
    let mut times = [const { Vec::new() }; 4];
    for _ in 0..rounds {
        for (times, (_, program, arguments)) in times.iter_mut().zip(contenders) {
            times.push(time(program, arguments));
        }
    }
    let keeper = keeper_memory(portpicker, &pid);
    owner.kill().unwrap();
    owner.wait().unwrap();

    println!("{:<24} {:>10} {:>12}", "command", "median", "to `true`");
    let baseline = times[0].clone();
    for (times, (name, ..)) in times.iter().zip(contenders) {
        let ratios: Vec<f64> = times
            .iter()
            .zip(&baseline)
            .map(|(time, baseline)| time.as_secs_f64() / baseline.as_secs_f64())
            .collect();
        let micros: Vec<f64> = times.iter().map(|time| time.as_secs_f64() * 1e6).collect();
        println!(
            "{name:<24} {:>7.0} µs {:>11.2}x",
            median(micros),
            median(ratios)
        );
    }
    println!("private memory of a keeper of 10 ports: {keeper} KiB");
    assert!(
        keeper < 1024,
        "a keeper has less than a mebibyte of its own"
    );
}

/// Returns how much memory a keeper has that it shares with nobody, in KiB.
fn keeper_memory(portpicker: &str, owner: &str) -> u64 {
    let output = Command::new(portpicker)
        .args([
            "pick",
            "--no-server",
            "--json",
            "-n",
            "10",
            "--owner",
            owner,
        ])
        .output()
        .unwrap();
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let keeper = json["keeper"].as_u64().unwrap();
    // Going to `/` is the last thing that it does before it waits.
    while fs::read_link(format!("/proc/{keeper}/cwd"))
        .unwrap()
        .as_os_str()
        != "/"
    {
        std::thread::yield_now();
    }
    fs::read_to_string(format!("/proc/{keeper}/smaps_rollup"))
        .unwrap()
        .lines()
        .filter(|line| line.starts_with("Private_Clean:") || line.starts_with("Private_Dirty:"))
        .map(|line| {
            line.split_whitespace()
                .nth(1)
                .unwrap()
                .parse::<u64>()
                .unwrap()
        })
        .sum()
}

fn time(program: &str, arguments: &[&str]) -> Duration {
    let start = Instant::now();
    let status = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .env_remove("PORTSERVER_ADDRESS")
        .env_remove("PORTPICKER_PORTS")
        .status()
        .unwrap();
    let time = start.elapsed();
    assert!(status.success(), "{program} {arguments:?}: {status}");
    time
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
