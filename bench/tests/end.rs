//! What the benchmark starts ends with it, however that ends.

use std::fs::{self, File, Permissions};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use portpicker_testing::{namespace_wrapper, skip};

/// Only a failure waits so long.
const DEADLINE: Duration = Duration::from_secs(30);

#[test]
fn a_driver_ends_when_the_benchmark_is_killed() {
    if let Err(reason) = namespace_wrapper() {
        return skip("a_driver_ends_when_the_benchmark_is_killed", reason);
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let is_made = Command::new("mkfifo").arg(path("alive")).status().unwrap();
    assert!(is_made.success());
    // A driver that keeps the pipe open, and says nothing.
    fs::create_dir(path("release")).unwrap();
    let script = format!(
        "#!/bin/sh\nexec sleep 600 3>'{}'\n",
        path("alive").display()
    );
    fs::write(path("release/portpicker-bench-driver"), script).unwrap();
    let executable = Permissions::from_mode(0o755);
    fs::set_permissions(path("release/portpicker-bench-driver"), executable).unwrap();

    let mut benchmark = Command::new(env!("CARGO_BIN_EXE_portpicker-bench"))
        .args(["run", "--short", "--only", "cost", "--tools", "by-hand"])
        .args(["--places".as_ref(), folder.path().as_os_str()])
        .args(["--output".as_ref(), path("output").as_os_str()])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let (sender, events) = channel();
    let pipe = path("alive");
    thread::spawn(move || {
        let mut pipe = File::open(pipe).unwrap();
        sender.send("driver started").unwrap();
        pipe.read_to_end(&mut Vec::new()).unwrap();
        sender.send("driver ended").unwrap();
    });
    assert_eq!(events.recv_timeout(DEADLINE), Ok("driver started"));
    benchmark.kill().unwrap();
    benchmark.wait().unwrap();
    assert_eq!(events.recv_timeout(DEADLINE), Ok("driver ended"));
}
