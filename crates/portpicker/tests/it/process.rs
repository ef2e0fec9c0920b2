//! Watching processes.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use portpicker::process::{OpenError, Pid, Watch};

/// A process that runs until its input ends.
fn spawn() -> (Child, Pid) {
    let child = Command::new("cat")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("it has a shell's programs");
    let pid = Pid::new(child.id()).expect("the kernel's process ids are in range");
    (child, pid)
}

#[test]
fn an_exit_is_seen() {
    let (mut child, pid) = spawn();
    let watch = Watch::open(pid).unwrap();
    assert!(!watch.has_exited().unwrap());
    assert!(!watch.wait(Some(Duration::from_millis(10))).unwrap());
    drop(child.stdin.take());
    // Reaped, because a watch by number sees the unburied as alive.
    child.wait().unwrap();
    assert!(watch.wait(None).unwrap());
    assert!(watch.has_exited().unwrap());
}

#[test]
fn an_exit_is_seen_before_anybody_has_waited_for_the_child() {
    if cfg!(portpicker_force = "poll") {
        return; // a number is taken until then
    }
    let (mut child, pid) = spawn();
    let watch = Watch::open(pid).unwrap();
    assert!(watch.pidfd().is_some(), "Linux has pidfds");
    child.kill().unwrap();
    assert!(watch.wait(Some(Duration::from_secs(60))).unwrap());
    child.wait().unwrap();
}

#[test]
fn a_process_that_is_gone_cannot_be_watched() {
    let (mut child, pid) = spawn();
    child.kill().unwrap();
    child.wait().unwrap();
    let err = Watch::open(pid).unwrap_err();
    assert!(matches!(err, OpenError::NoSuchProcess), "{err:?}");
    let highest = Pid::new(i32::MAX as u32).unwrap();
    let err = Watch::open(highest).unwrap_err();
    assert!(matches!(err, OpenError::NoSuchProcess), "{err:?}");
}

#[test]
fn a_thread_is_not_a_process() {
    if cfg!(portpicker_force = "poll") {
        return; // its number is as good as a process's there
    }
    let thread = rustix::thread::gettid().as_raw_nonzero().get() as u32;
    assert_ne!(thread, std::process::id(), "tests run in threads");
    let err = Watch::open(Pid::new(thread).unwrap()).unwrap_err();
    assert!(matches!(err, OpenError::NotAProcess), "{err:?}");
}

#[test]
fn the_first_process_can_be_watched_whoever_owns_it() {
    assert!(!Watch::open(Pid::INIT).unwrap().has_exited().unwrap());
}

#[test]
fn process_ids_are_whole_numbers_from_1_to_2147483647() {
    for (text, number) in [("1", 1), ("2147483647", 2_147_483_647), ("007", 7)] {
        let pid: Pid = text.parse().unwrap();
        assert_eq!(pid.get(), number);
        assert_eq!(pid.to_string(), number.to_string());
        assert_eq!(Pid::new(number), Some(pid));
    }
    for text in [
        "",
        "0",
        "-1",
        "+1",
        " 1",
        "1 ",
        "1.0",
        "2147483648",
        "4294967296",
        "99999999999999999999",
        "x",
        "0x1",
    ] {
        let message = text.parse::<Pid>().unwrap_err().to_string();
        assert!(
            message.starts_with(&format!("`{text}` is not")),
            "{message}"
        );
    }
    assert_eq!(Pid::new(0), None);
    assert_eq!(Pid::new(u32::MAX), None);
    assert_eq!(Pid::current().get(), std::process::id());
    assert_eq!(
        Pid::parent().unwrap().get(),
        std::os::unix::process::parent_id()
    );
}
