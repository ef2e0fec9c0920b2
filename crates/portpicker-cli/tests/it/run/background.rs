//! Commands that go on: `--wait-listening`, and daemons.

use std::fs::{self, File};
use std::io::{Read, Seek};
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};

use portpicker::process::{Pid, Watch};
use rustix::process::{Signal, kill_process};
use serde_json::Value;

use super::is_bindable;
use crate::support::{LONG, Talking, is_leased, portpicker, run, shell, wait_until_unused, watch};

/// A server that goes on until SIGTERM. Each SIGUSR1 has it restart, and the named pipe that is its
/// argument is told when it has.
const SERVER: &str = "
import os, signal, socket, sys

def listen():
    tcp = socket.socket()
    udp = socket.socket(type=socket.SOCK_DGRAM)
    for server in (tcp, udp):
        server.bind(('127.0.0.1', int(os.environ['PORT'])))
    tcp.listen()
    return tcp, udp

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
signal.signal(signal.SIGTERM, signal.SIG_DFL)
sockets = listen()
print('listening')
while signal.sigwait({signal.SIGUSR1}):
    for server in sockets:
        server.close()
    try:
        sockets = listen()
        answer = 'again'
    except OSError as err:
        answer = str(err)
    with open(sys.argv[1], 'w') as pipe:
        print(answer, file=pipe)
";

/// What `run --wait-listening --json` printed.
struct Left {
    port: u16,
    pid: Pid,
    watch: Watch,
}

impl Left {
    fn parse(text: &str) -> Self {
        let json: Value = serde_json::from_str(text).unwrap();
        let pid = Pid::new(json["pid"].as_u64().unwrap() as u32).unwrap();
        Self {
            port: json["ports"]["1"].as_u64().unwrap() as u16,
            pid,
            watch: watch(pid),
        }
    }

    fn send(&self, signal: Signal) {
        let pid = rustix::process::Pid::from_raw(self.pid.get() as i32).unwrap();
        kill_process(pid, signal).unwrap();
    }

    fn end(self) {
        self.send(Signal::TERM);
        assert!(self.watch.wait(Some(LONG)).unwrap());
        wait_until_unused(self.port);
    }
}

impl Drop for Left {
    fn drop(&mut self) {
        // A test that has failed leaves nothing behind either.
        if let Some(pidfd) = self.watch.pidfd() {
            _ = rustix::process::pidfd_send_signal(pidfd, Signal::KILL);
        }
    }
}

/// Starts a server that stays; its complaints go nowhere.
fn leave(options: &[&str], pipe: &Path) -> Left {
    let arguments = [
        &["run", "--wait-listening", "60", "--json"],
        options,
        &["--", "python3", "-c", SERVER, pipe.to_str().unwrap()],
    ];
    let output = portpicker(&arguments.concat())
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success());
    Left::parse(&String::from_utf8(output.stdout).unwrap())
}

fn named_pipe(folder: &Path) -> std::path::PathBuf {
    let path = folder.join("pipe");
    assert!(
        Command::new("mkfifo")
            .arg(&path)
            .status()
            .unwrap()
            .success()
    );
    path
}

/// Returns the process that has remained for the ports of `command`: its parent.
fn remaining(command: Pid) -> Pid {
    let status = fs::read_to_string(format!("/proc/{command}/status")).unwrap();
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
    Pid::new(parent.unwrap().trim().parse().unwrap()).expect("it has one that we see")
}

#[test]
fn a_server_is_left_running_when_it_listens() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = named_pipe(folder.path());
    for mode in ["strict", "lease"] {
        let left = leave(&["--hand-off", mode], &pipe);
        assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, left.port)).is_ok());
        assert!(is_leased(left.port), "{mode}");
        left.end();
    }
}

/// The listener has been passed on, and what is bound with it.
#[test]
fn a_server_that_was_left_may_restart() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = named_pipe(folder.path());
    for mode in ["auto", "strict"] {
        let left = leave(&["--hand-off", mode], &pipe);
        for _ in 0..5 {
            left.send(Signal::USR1);
            assert_eq!(fs::read_to_string(&pipe).unwrap(), "again\n", "{mode}");
            assert!(!is_bindable(left.port));
        }
        left.end();
    }
}

#[test]
fn the_process_that_remains_ends_with_the_command() {
    let folder = tempfile::tempdir().unwrap();
    let left = leave(&[], &named_pipe(folder.path()));
    let watch = watch(remaining(left.pid));
    left.end();
    assert!(watch.wait(Some(LONG)).unwrap());
}

/// Its signals are not blocked, though its parent's were.
#[test]
fn the_process_that_remains_can_be_ended() {
    let folder = tempfile::tempdir().unwrap();
    let left = leave(&[], &named_pipe(folder.path()));
    let remaining = remaining(left.pid);
    let watch = watch(remaining);
    let pid = rustix::process::Pid::from_raw(remaining.get() as i32).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    assert!(watch.wait(Some(LONG)).unwrap());
    // The server goes on.
    assert!(!left.watch.has_exited().unwrap());
    left.end();
}

#[test]
fn ports_are_printed_on_a_line_each_and_a_shell_gets_them() {
    // The shell reads until nobody has its pipe any more, by whatever number.
    let script =
        "ports=$(portpicker run -n 2 --wait-listening 60 -- python3 -c \"$1\" 2>/dev/null 7>&1)
         echo \"$ports\"";
    let server = "
import os, socket
os.close(7)
sockets = [socket.create_server(('', int(os.environ[name]))) for name in ('PORT_1', 'PORT_2')]
print('this is not for the shell')
os.kill(os.getppid(), 0)
sockets[0].accept()
";
    let ended = run(shell(script).args(["sh", server]));
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let ports: Vec<u16> = ended
        .stdout
        .lines()
        .map(|line| line.parse().unwrap())
        .collect();
    assert_eq!(ports.len(), 2);
    // Its last act.
    drop(TcpStream::connect((Ipv4Addr::LOCALHOST, ports[0])).unwrap());
    for port in ports {
        wait_until_unused(port);
    }
}

#[test]
fn udp_is_waited_for_if_it_is_all_that_is_wanted() {
    let server = "
import os, socket, sys
udp = socket.socket(type=socket.SOCK_DGRAM)
udp.bind(('127.0.0.1', int(os.environ['PORT'])))
udp.recv(1)
";
    for mode in ["strict", "door", "lease"] {
        let arguments = ["run", "--udp", "--hand-off", mode, "--wait-listening", "60"];
        let mut command = portpicker(&arguments);
        let (code, ports, stderr) = run_and_leave(command.args(["--", "python3", "-c", server]));
        assert_eq!((code, stderr.as_str()), (Some(0), ""), "{mode}");
        let port = ports[0];
        let client = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        client.send_to(b"!", (Ipv4Addr::LOCALHOST, port)).unwrap();
        wait_until_unused(port);
    }
    // Held, and not bound by anybody else.
    let arguments = [
        "run",
        "--udp",
        "--wait-listening",
        "0.05",
        "--",
        "tail",
        "-f",
        "/dev/null",
    ];
    assert_eq!(run(&mut portpicker(&arguments)).code, Some(125));
}

#[test]
fn sockets_that_were_passed_are_kept_for_who_has_them() {
    let server = "
import os, socket
first = socket.socket(fileno=3)
first.accept()
";
    for count in ["1", "10"] {
        let arguments = [
            "run",
            "--listen",
            "-n",
            count,
            "--wait-listening",
            "60",
            "--",
        ];
        let mut command = portpicker(&arguments);
        let (code, ports, stderr) = run_and_leave(command.args(["python3", "-c", server]));
        assert_eq!((code, stderr.as_str()), (Some(0), ""));
        assert!(ports.iter().all(|&port| is_leased(port)), "{count} ports");
        drop(TcpStream::connect((Ipv4Addr::LOCALHOST, ports[0])).unwrap());
        for port in ports {
            wait_until_unused(port);
        }
    }
}

/// Runs `portpicker run --wait-listening`. What it leaves behind goes on writing to its stderr, so that
/// goes to a file.
fn run_and_leave(command: &mut Command) -> (Option<i32>, Vec<u16>, String) {
    let mut complaints = tempfile::tempfile().unwrap();
    let output = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(complaints.try_clone().unwrap())
        .spawn()
        .unwrap()
        .wait_with_output()
        .unwrap();
    let mut text = String::new();
    complaints.rewind().unwrap();
    complaints.read_to_string(&mut text).unwrap();
    let ports = String::from_utf8(output.stdout).unwrap();
    let ports = ports.lines().map(|line| line.parse().unwrap()).collect();
    (output.status.code(), ports, text)
}

/// Returns a command that writes its pid to `file`, and never listens.
fn silent(file: &Path) -> [String; 5] {
    let script = "echo $$ > \"$1\"; exec tail -f /dev/null";
    ["sh", "-c", script, "sh", file.to_str().unwrap()].map(str::to_owned)
}

fn assert_has_ended(file: &Path) {
    let pid = fs::read_to_string(file).unwrap();
    let pid = Pid::new(pid.trim().parse().unwrap()).unwrap();
    assert!(Watch::open(pid).is_err(), "it has been waited for");
}

#[test]
fn a_command_that_does_not_listen_in_time_is_ended() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pid");
    let mut command = portpicker(&["run", "--wait-listening", "1", "--"]);
    let ended = run(command.args(silent(&file)));
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(125), ""));
    assert!(
        ended.stderr.contains("nothing listens on port"),
        "{ended:?}"
    );
    assert_has_ended(&file);
}

#[test]
fn a_command_that_binds_all_the_time_is_ended_too() {
    let binder = "
import socket
while True:
    socket.socket().bind(('127.0.0.1', 0))
";
    let mut command = portpicker(&["run", "--wait-listening", "0.2", "--"]);
    let ended = run(command.args(["python3", "-c", binder]));
    assert_eq!(ended.code, Some(125), "{ended:?}");
}

#[test]
fn a_command_that_ends_instead_is_a_failure() {
    let ended = run(&mut portpicker(&[
        "run",
        "--wait-listening",
        "60",
        "--",
        "sh",
        "-c",
        "exit 3",
    ]));
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(125), ""));
    assert!(
        ended
            .stderr
            .contains("ended before it listened: exit status: 3"),
        "{ended:?}"
    );
}

#[test]
fn numbers_that_nobody_has_read_have_no_server() {
    let folder = tempfile::tempdir().unwrap();
    let (file, pipe) = (folder.path().join("pid"), named_pipe(folder.path()));
    let script = "echo $$ > \"$1\"; exec python3 -c \"$2\" \"$3\"";
    let output = portpicker(&[
        "run",
        "--wait-listening",
        "60",
        "--",
        "sh",
        "-c",
        script,
        "sh",
    ])
    .args([file.as_path(), Path::new(SERVER), &pipe])
    .stdin(Stdio::null())
    .stdout(File::options().write(true).open("/dev/full").unwrap())
    .stderr(Stdio::piped())
    .output()
    .unwrap();
    assert_eq!(output.status.code(), Some(125));
    let complaint = String::from_utf8(output.stderr).unwrap();
    assert!(
        complaint.contains("cannot write to the standard output"),
        "{complaint}"
    );
    assert_has_ended(&file);
}

/// It would be nobody's zombie: init(1) is not told of it.
#[test]
fn an_orphan_is_buried() {
    let command = "
import os, time
told, tell = os.pipe()
child = os.fork()
if not child:
    if not os.fork():
        os.read(told, 1)
        print(os.getppid(), os.getpid(), flush=True)
    os._exit(0)
os.waitpid(child, 0)
# Its parent has gone.
print(os.getppid(), flush=True)
os.write(tell, b'!')
orphan = int(input())
end = time.monotonic() + 30
while time.monotonic() < end:
    try:
        os.kill(orphan, 0)
    except ProcessLookupError:
        break
else:
    print('it is still there', flush=True)
";
    for mode in ["strict", "lease"] {
        let arguments = ["run", "--hand-off", mode, "--", "python3", "-c", command];
        let mut command = Talking::start(&mut portpicker(&arguments));
        let ours = command.line();
        let line = command.line();
        let (parent, orphan) = line.split_once(' ').expect("two numbers");
        assert_eq!(parent, ours, "{mode}");
        command.say(orphan);
        assert_eq!(command.line(), "", "{mode}");
        assert_eq!(command.finish().code(), Some(0), "{mode}");
    }
}

/// Whom the caller sees is not who keeps the ports.
#[test]
fn a_server_keeps_its_port_when_the_caller_has_killed_us() {
    let script = "echo $PORT; exec python3 -c \"$1\"";
    let arguments = ["run", "--", "sh", "-c", script, "sh", super::SERVER];
    let mut command = Talking::start(&mut portpicker(&arguments));
    let port = command.line().parse().unwrap();
    assert_eq!(command.line(), "listening");
    let seen = watch(Pid::new(command.child.id()).unwrap());
    command.child.kill().unwrap();
    assert!(seen.wait(Some(LONG)).unwrap());
    for _ in 0..3 {
        command.say("");
        assert_eq!(command.line(), "listening");
        assert!(!is_bindable(port) && is_leased(port));
    }
    assert_eq!(command.finish().code(), None);
    wait_until_unused(port);
}

#[test]
fn the_caller_is_told_that_nobody_keeps_the_ports() {
    let command = "
import os, signal, sys
os.kill(os.getppid(), signal.SIGKILL)
# Whoever is read by the test, it is not this process.
os.closerange(0, 3)
signal.pause()
";
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pid");
    let script = "echo $$ > \"$1\"; exec python3 -c \"$2\"";
    let mut arguments = vec!["run", "--", "sh", "-c", script, "sh"];
    arguments.extend([file.to_str().unwrap(), command]);
    let ended = run(&mut portpicker(&arguments));
    assert_eq!(ended.code, Some(125), "{ended:?}");
    assert!(
        ended.stderr.contains("keeps the ports was killed"),
        "{ended:?}"
    );
    let pid = fs::read_to_string(file).unwrap().trim().parse().unwrap();
    let left = watch(Pid::new(pid).unwrap());
    rustix::process::pidfd_send_signal(left.pidfd().unwrap(), Signal::KILL).unwrap();
}

/// A daemon: its own session, its parent gone, no descriptors of its parent's.
const DAEMON: &str = "
import os, signal, sys

if os.fork():
    # Not before the daemon is one.
    os.close(28)
    os.read(29, 1)
    sys.exit(3)
os.setsid()
if os.fork():
    os._exit(0)
if 'close' in sys.argv:
    os.closerange(0, 28)
    os.open('/dev/null', os.O_RDWR)
    os.dup2(0, 1)
    os.dup2(0, 2)
";

#[test]
fn a_daemon_keeps_the_port_when_the_command_has_ended() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = named_pipe(folder.path());
    let (file, script) = (folder.path().join("pid"), folder.path().join("daemon.py"));
    let write = format!("open({:?}, 'w').write(str(os.getpid()))\n", file.display());
    // The command ends when its other end is closed, by the daemon.
    let begin = "import os\nread, write = os.pipe()\nos.dup2(read, 29)\nos.close(read)\n\
                 os.dup2(write, 28)\nos.close(write)\n";
    let end = "os.closerange(28, 30)\n";
    let server = SERVER.replace("print('listening')", end);
    fs::write(&script, [begin, DAEMON, &write, &server].concat()).unwrap();
    for (mode, how) in [
        ("strict", "keep"),
        // Nothing tells of it but its filter.
        ("strict", "close"),
        ("door", "keep"),
        ("lease", "keep"),
    ] {
        // The door lets in who sets SO_REUSEADDR, which this server does not.
        if mode == "door" {
            let text = fs::read_to_string(&script).unwrap();
            let reuse = "tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)\n    for server";
            fs::write(
                &script,
                text.replace(
                    "for server in (tcp, udp):\n        server.bind",
                    &format!("{reuse} in (tcp, udp):\n        server.bind"),
                ),
            )
            .unwrap();
        }
        let output = portpicker(&["run", "--hand-off", mode, "--", "python3"])
            .args([script.as_path(), &pipe, Path::new(how)])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .status()
            .unwrap();
        assert_eq!(output.code(), Some(3), "{mode} {how}: the command's own");
        let pid = fs::read_to_string(&file).unwrap().parse().unwrap();
        let pid = Pid::new(pid).unwrap();
        let daemon = watch(pid);
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap();
        let environment = String::from_utf8_lossy(&environment).into_owned();
        let port = environment
            .split('\0')
            .find_map(|it| it.strip_prefix("PORT="));
        let left = Left {
            port: port.unwrap().parse().unwrap(),
            pid,
            watch: daemon,
        };
        assert!(is_leased(left.port), "{mode} {how}");
        left.send(Signal::USR1);
        assert_eq!(
            fs::read_to_string(&pipe).unwrap(),
            "again\n",
            "{mode} {how}"
        );
        left.end();
    }
}
