//! What comes of signals, and of a terminal?

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};

use crate::support::{Talking, portpicker, run, shell};
use crate::terminal::Terminal;

/// Says `ready`, and then which signals come in, until SIGTERM, or the end of its input unless it is
/// not to read that.
const HEARER: &str = "
import os, select, signal, sys

heard, told = os.pipe()
os.set_blocking(told, False)
signal.set_wakeup_fd(told)
for name in ('HUP', 'INT', 'QUIT', 'USR1', 'USR2', 'ALRM', 'WINCH', 'CONT', 'TERM'):
    signal.signal(getattr(signal, 'SIG' + name), lambda *_: None)
print('ready', flush=True)
sources = [heard] if 'deaf' in sys.argv else [heard, 0]
while True:
    ready, _, _ = select.select(sources, [], [])
    if heard in ready:
        for number in os.read(heard, 64):
            print(signal.Signals(number).name[3:], flush=True)
            if number == signal.SIGTERM:
                sys.exit(5)
    elif not os.read(0, 64):
        sys.exit(0)
";

fn hearer(hand_off: &str) -> Talking {
    let arguments = ["run", "--hand-off", hand_off, "--", "python3", "-c", HEARER];
    let mut command = Talking::start(&mut portpicker(&arguments));
    assert_eq!(command.line(), "ready");
    command
}

/// Returns a script that becomes `portpicker run` with a hearer.
fn hearer_script(arguments: &str) -> String {
    let program = HEARER.replace('\'', "'\\''");
    format!("portpicker run -- python3 -c '{program}' {arguments}")
}

fn send(command: &Talking, signal: Signal) {
    kill_process(Pid::from_raw(command.child.id() as i32).unwrap(), signal).unwrap();
}

#[test]
fn signals_are_passed_on() {
    for mode in ["auto", "door", "lease"] {
        let mut command = hearer(mode);
        for (signal, name) in [
            (Signal::HUP, "HUP"),
            (Signal::INT, "INT"),
            (Signal::QUIT, "QUIT"),
            (Signal::USR1, "USR1"),
            (Signal::USR2, "USR2"),
            (Signal::ALARM, "ALRM"),
            (Signal::WINCH, "WINCH"),
            (Signal::CONT, "CONT"),
            (Signal::TERM, "TERM"),
        ] {
            send(&command, signal);
            assert_eq!(command.line(), name, "{mode}");
        }
        assert_eq!(command.finish().code(), Some(5), "{mode}");
    }
}

/// As timeout(1) is imitated: a timer is inherited by the program that a process becomes.
#[test]
fn an_alarm_that_was_set_before_is_passed_on() {
    let set = "import os, signal, sys; signal.setitimer(signal.ITIMER_REAL, 0.05); \
               os.execvp(sys.argv[1], sys.argv[1:])";
    let mut command = Command::new("python3");
    let portpicker = env!("CARGO_BIN_EXE_portpicker");
    command.args(["-c", set, portpicker, "run", "--", "cat"]);
    let mut command = Talking::start(&mut command);
    // It would end with it.
    let _input = command.child.stdin.take();
    assert_eq!(
        command.child.wait().unwrap().signal(),
        Some(Signal::ALARM.as_raw())
    );
}

#[test]
fn the_command_has_the_signals_blocked_and_ignored_that_its_caller_had() {
    let lines = |text: &str| -> Vec<String> {
        let lines = text.lines().filter(|line| line.starts_with("Sig"));
        lines.map(str::to_owned).collect()
    };
    for ignored in ["", "trap '' CHLD USR1 HUP;"] {
        let look = "grep -E 'Sig(Blk|Ign)' /proc/self/status";
        let plain = run(&mut shell(&format!("{ignored} {look}")));
        let below = run(&mut shell(&format!(
            "{ignored} exec portpicker run -- {look}"
        )));
        assert_eq!((below.code, below.stderr.as_str()), (Some(0), ""));
        assert_eq!(lines(&below.stdout), lines(&plain.stdout), "{ignored}");
    }
}

#[test]
fn a_command_that_dies_of_a_signal_is_seen_to_do_so() {
    for signal in [
        "HUP", "INT", "QUIT", "ABRT", "KILL", "SEGV", "BUS", "PIPE", "ALRM", "TERM", "USR1",
    ] {
        let script = format!("ulimit -c 0; kill -{signal} $$");
        let plain = Command::new("sh").args(["-c", &script]).status().unwrap();
        let below = portpicker(&["run", "--", "sh", "-c", &script])
            .status()
            .unwrap();
        assert!(plain.signal().is_some());
        assert_eq!(below.signal(), plain.signal(), "{signal}");
    }
}

#[test]
fn an_interrupt_from_the_terminal_reaches_the_command_once() {
    let mut terminal = Terminal::open();
    let script = hearer_script("");
    let mut session = terminal.start(&format!("trap : INT QUIT; {script}; echo status $?"));
    terminal.line_with("ready");
    terminal.type_in(b"\x03");
    terminal.line_with("INT");
    terminal.type_in(b"\x1c");
    // Had the first one been passed on, it would stand in between.
    assert_eq!(terminal.line_with("").trim(), "^\\QUIT");
    // The end of the input.
    terminal.type_in(b"\x04");
    terminal.line_with("status 0");
    session.wait().unwrap();
}

/// The terminal does not know it any more, but whoever types ^C means it.
#[test]
fn an_interrupt_reaches_a_command_that_has_left_the_terminal() {
    let mut terminal = Terminal::open();
    let script = hearer_script("deaf").replace(" -- ", " -- setsid ");
    let mut session = terminal.start(&format!("exec {script}"));
    terminal.line_with("ready");
    terminal.type_in(b"\x03");
    terminal.line_with("INT");
    terminal.type_in(b"\x1c");
    terminal.line_with("QUIT");
    let pid = Pid::from_raw(session.id() as i32).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    terminal.line_with("TERM");
    assert_eq!(session.wait().unwrap().code(), Some(5));
}

#[test]
fn the_command_has_the_terminal_is_stopped_with_it_and_goes_on() {
    let mut terminal = Terminal::open();
    let mut session = terminal.start(
        "set -m
         portpicker run -- sh -c 'echo ready; read line; echo \"read $line\"'
         echo stopped $?
         fg
         echo status $?",
    );
    terminal.line_with("ready");
    terminal.type_in(b"\x1a");
    // 128, and SIGSTOP or SIGTSTP.
    let stopped = terminal.line_with("stopped 1");
    assert!(
        stopped.contains("147") || stopped.contains("148"),
        "{stopped}"
    );
    // What the shell says that it continues.
    terminal.line_with("portpicker run");
    terminal.type_in(b"hello\n");
    terminal.line_with("read hello");
    terminal.line_with("status 0");
    session.wait().unwrap();
}

#[test]
fn a_command_that_does_not_let_itself_be_stopped_is_not() {
    let mut terminal = Terminal::open();
    let mut session = terminal.start(
        "set -m
         portpicker run -- sh -c 'trap \"\" TSTP; echo ready; read line; echo \"read $line\"'
         echo status $?",
    );
    terminal.line_with("ready");
    terminal.type_in(b"\x1a");
    terminal.type_in(b"hello\n");
    terminal.line_with("read hello");
    terminal.line_with("status 0");
    session.wait().unwrap();
}

/// With the keyboard gone, the kernel tells the leader of the session alone.
#[test]
fn when_the_terminal_is_gone_the_command_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe");
    assert!(
        Command::new("mkfifo")
            .arg(&pipe)
            .status()
            .unwrap()
            .success()
    );
    let terminal = Terminal::open();
    let script = hearer_script("deaf");
    let mut session = terminal.start(&format!("exec {script} > {}", pipe.display()));
    let mut lines = BufReader::new(File::open(pipe).unwrap()).lines();
    let mut line = || lines.next().unwrap().unwrap();
    assert_eq!(line(), "ready");
    drop(terminal);
    // SIGCONT as well, for those that were stopped. Which of two is seen first is open.
    let mut told = [line(), line()];
    told.sort();
    assert_eq!(told, ["CONT", "HUP"]);
    let pid = Pid::from_raw(session.id() as i32).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    assert_eq!(line(), "TERM");
    assert_eq!(session.wait().unwrap().code(), Some(5));
}
