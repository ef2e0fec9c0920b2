//! How do the ports pass, and what if the system refuses?

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use portpicker_testing::{OwnProcess, sandbox, skip};
use rustix::io::Errno;
use tempfile::TempDir;

use super::{SERVER, is_bindable};
use crate::support::{Ended, PORTPICKER, Talking, portpicker, run};

/// What runs a Python program with its port and nothing less.
const STRICT: [&str; 6] = ["run", "--hand-off", "strict", "--", "python3", "-c"];

/// A server that listens and ends, with SO_REUSEADDR if `reuse` is `1`.
const BRIEF: &str = "
import os, socket, sys
tcp = socket.socket()
tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(sys.argv[1]))
try:
    tcp.bind(('', int(os.environ['PORT'])))
    tcp.listen()
except OSError as err:
    sys.exit(err.strerror)
print('listening')
";

fn brief(hand_off: &str, reuse: &str) -> Ended {
    let arguments = [
        "run",
        "--hand-off",
        hand_off,
        "--",
        "python3",
        "-c",
        BRIEF,
        reuse,
    ];
    run(&mut portpicker(&arguments))
}

fn listened() -> Ended {
    Ended {
        code: Some(0),
        stdout: "listening\n".to_owned(),
        stderr: String::new(),
    }
}

#[test]
fn each_mode_lets_in_whom_it_says() {
    for reuse in ["0", "1"] {
        for mode in ["auto", "strict", "lease"] {
            assert_eq!(brief(mode, reuse), listened(), "{mode}, {reuse}");
        }
    }
    assert_eq!(brief("door", "1"), listened());
    let ended = brief("door", "0");
    assert_eq!(ended.stderr, "Address already in use\n");
}

#[test]
fn only_supervision_keeps_from_gaining_privileges() {
    for (mode, expected) in [("auto", 1), ("strict", 1), ("door", 0), ("lease", 0)] {
        let look = [
            "run",
            "--hand-off",
            mode,
            "--",
            "grep",
            "NoNewPrivs",
            "/proc/self/status",
        ];
        let ended = run(&mut portpicker(&look));
        assert_eq!(ended.stdout, format!("NoNewPrivs:\t{expected}\n"), "{mode}");
    }
}

#[test]
fn a_leased_port_is_anybodys_to_bind() {
    let script = "echo $PORT; read line";
    let arguments = ["run", "--hand-off", "lease", "--", "sh", "-c", script];
    let mut command = Talking::start(&mut portpicker(&arguments));
    assert!(is_bindable(command.line().parse().unwrap()));
    command.finish();
}

#[test]
fn what_is_refused_is_said_once_and_the_server_starts() {
    OwnProcess::new().run(|| {
        sandbox::forbid(&[libc::SYS_pidfd_getfd], Errno::PERM);
        for reuse in ["0", "1"] {
            let arguments = ["run", "-n", "2", "--", "python3", "-c", BRIEF, reuse];
            let ended = run(&mut portpicker(&arguments));
            assert_eq!(
                (ended.code, ended.stdout.as_str()),
                (Some(0), "listening\n")
            );
            assert_eq!(
                ended.stderr,
                "portpicker: cannot get at the command's sockets: Operation not permitted \
                 (os error 1); a port is let go when the command binds it, and only leased from \
                 then on\n"
            );
        }
        let ended = brief("strict", "0");
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(125), ""));
        assert_eq!(
            ended.stderr,
            "portpicker: cannot get at the command's sockets, and --hand-off strict was asked \
             for: Operation not permitted (os error 1)\n"
        );
        for mode in ["lease", "door"] {
            assert_eq!(brief(mode, "1"), listened(), "{mode}");
        }
    });
}

#[test]
fn without_notification_the_door_is_opened_and_it_is_said() {
    OwnProcess::new().run(|| {
        sandbox::forbid(&[libc::SYS_seccomp], Errno::PERM);
        let ended = brief("auto", "1");
        assert_eq!(
            (ended.code, ended.stdout.as_str()),
            (Some(0), "listening\n")
        );
        assert_eq!(
            ended.stderr,
            "portpicker: cannot supervise the command's calls: Operation not permitted (os error \
             1); the ports are held, but for servers that set SO_REUSEADDR; for others, use \
             --hand-off lease\n"
        );
        assert_eq!(brief("strict", "1").code, Some(125));
        assert_eq!(brief("lease", "0"), listened());
    });
}

#[test]
fn a_run_below_another_one_is_as_good() {
    let inner = [
        PORTPICKER,
        "run",
        "--hand-off",
        "strict",
        "--name",
        "inner",
        "--",
    ];
    let script = "
import os, socket
for name in ('PORT_OUTER', 'PORT_INNER'):
    for _ in range(3):
        tcp, udp = socket.socket(), socket.socket(type=socket.SOCK_DGRAM)
        for server in (tcp, udp):
            server.bind(('127.0.0.1', int(os.environ[name])))
        tcp.listen()
        tcp.close()
        udp.close()
print('good')
";
    let outer = ["run", "--hand-off", "strict", "--name", "outer", "--"];
    let arguments = [&outer[..], &inner, &["python3", "-c", script]].concat();
    let ended = run(&mut portpicker(&arguments));
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
    assert_eq!(ended.stdout, "good\n");
}

/// It has room for 128 of these, for TCP and UDP.
#[test]
fn below_another_with_no_room_for_its_ports_a_server_with_the_option_gets_one() {
    let server = "
import os, socket
server = socket.create_server(('127.0.0.1', int(os.environ['PORT'])))
print('good')
";
    let outer = ["run", "--hand-off", "strict", "--"];
    let inner = |mode| [PORTPICKER, "run", "-n", "129", "--hand-off", mode, "--"];
    let command = ["python3", "-c", server];
    let ended = run(&mut portpicker(
        &[&outer[..], &inner("auto"), &command].concat(),
    ));
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), "good\n"));
    let complaint = "portpicker: the supervisor above has no room for the ports";
    assert!(ended.stderr.starts_with(complaint), "{ended:?}");
    assert!(
        ended
            .stderr
            .contains("but for servers that set SO_REUSEADDR")
    );

    let ended = run(&mut portpicker(
        &[&outer[..], &inner("strict"), &command].concat(),
    ));
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(125), ""));
    assert!(ended.stderr.starts_with(complaint), "{ended:?}");
}

/// The command in a folder that every user may enter.
struct Everybodys {
    _folder: TempDir,
    path: PathBuf,
}

impl Everybodys {
    /// Returns it, or `None` if the test of this name has to be skipped.
    fn new(test: &str) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            skip(test, "only root starts programs as another user");
            return None;
        }
        let open_to_all = Permissions::from_mode(0o755);
        let folder = tempfile::Builder::new()
            .permissions(open_to_all.clone())
            .tempdir()
            .unwrap();
        let path = folder.path().join("portpicker");
        // Not by ourselves: a child that another test starts meanwhile would have it open for writing, and
        // what somebody may write to cannot be run (ETXTBSY).
        assert!(
            Command::new("cp")
                .arg(PORTPICKER)
                .arg(&path)
                .status()
                .unwrap()
                .success()
        );
        fs::set_permissions(&path, open_to_all).unwrap();
        let everybodys = Self {
            _folder: folder,
            path,
        };
        let python = ["run", "--hand-off", "lease", "--", "python3", "-c", ""];
        if !run(&mut everybodys.command(&python)).stderr.is_empty() {
            skip(test, "python3 is out of reach of other users");
            return None;
        }
        Some(everybodys)
    }

    /// Returns the command as `nobody` starts it.
    fn command(&self, arguments: &[&str]) -> Command {
        const NOBODY: u32 = 65_534;
        let mut command = Command::new(&self.path);
        command
            .args(arguments)
            .env_remove("PORTSERVER_ADDRESS")
            .env_remove("PORTPICKER_PORTS")
            // Root's own may be out of reach.
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .current_dir("/")
            .uid(NOBODY)
            .gid(NOBODY);
        command
    }
}

#[test]
fn an_ordinary_users_server_has_its_port_and_restarts() {
    if !rustix::process::geteuid().is_root() {
        // All other tests are an ordinary user's then.
        return;
    }
    let test = "run::modes::an_ordinary_users_server_has_its_port_and_restarts";
    let Some(everybodys) = Everybodys::new(test) else {
        return;
    };
    let server = ["--", "python3", "-c", SERVER];
    let strict = [&["run", "--hand-off", "strict"], &server[..]].concat();
    let wait = ["run", "--wait-listening", "60", "--", "python3", "-c", ""];
    let mut command = Talking::start(&mut everybodys.command(&strict));
    for _ in 0..5 {
        assert_eq!(command.line(), "listening");
        command.say("again");
    }
    assert_eq!(command.line(), "listening");
    assert!(command.finish().success());
    // What has ended listens no more.
    assert_eq!(run(&mut everybodys.command(&wait)).code, Some(125));

    // A process that makes itself unreadable, as ssh-agent does: what it binds cannot be seen, so all
    // ports are let go of.
    let unreadable = format!("import ctypes; ctypes.CDLL(None).prctl(4, 0, 0, 0, 0){SERVER}");
    let mut command = everybodys.command(&["run", "--", "python3", "-c", &unreadable]);
    let ended = run(&mut command);
    assert_eq!(
        (ended.code, ended.stdout.as_str()),
        (Some(0), "listening\n")
    );
    assert!(
        ended
            .stderr
            .starts_with("portpicker: cannot get at the command's sockets")
    );

    let unreadable = format!("import ctypes; ctypes.CDLL(None).prctl(4, 0, 0, 0, 0){BRIEF}");
    let strict = [&STRICT[..], &[&unreadable, "1"]].concat();
    let ended = run(&mut everybodys.command(&strict));
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(1), ""));
    // Two processes say something, at the same time.
    let mut lines: Vec<_> = ended.stderr.lines().collect();
    lines.sort_unstable();
    assert_eq!(
        lines,
        [
            "Address already in use",
            "portpicker: cannot get at the command's sockets: Operation not permitted (os error 1); a \
             port is in use when the command binds it, and not let go of",
        ]
    );
}

/// With CAP_NET_RAW, nobody gets in beside a server of all addresses: docs/safety.md.
#[test]
fn a_copy_with_a_capability_keeps_it_to_itself() {
    let test = "run::modes::a_copy_with_a_capability_keeps_it_to_itself";
    let Some(everybodys) = Everybodys::new(test) else {
        return;
    };
    let mut setcap = Command::new("setcap");
    setcap.arg("cap_net_raw+ep").arg(&everybodys.path);
    match setcap.status() {
        Ok(status) if status.success() => {}
        result => return skip(test, &format!("setcap: {result:?}")),
    }
    let script = "
def capabilities(pid):
    for line in open(f'/proc/{pid}/status'):
        if line.startswith(('CapPrm:', 'CapEff:')):
            print(line.split()[1].lstrip('0'))
capabilities(os.getppid())
capabilities('self')
";
    let script = [BRIEF, script].concat();
    let arguments = [&STRICT[..], &[&script, "0"]].concat();
    let ended = run(&mut everybodys.command(&arguments));
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
    // CAP_NET_RAW is the 13th bit.
    assert_eq!(ended.stdout, "listening\n2000\n2000\n\n\n");
}

/// Whose hold it is has it: the one above cannot let go of it.
#[test]
fn an_unreadable_command_below_two_is_refused_and_told() {
    let test = "run::modes::an_unreadable_command_below_two_is_refused_and_told";
    let Some(everybodys) = Everybodys::new(test) else {
        return;
    };
    let path = everybodys.path.to_str().unwrap();
    // Twice: at the first bind, the one above lets go of its own port, in case it is that.
    let unreadable = format!("import ctypes; ctypes.CDLL(None).prctl(4, 0, 0, 0, 0){BRIEF}");
    let twice = unreadable.replace("sys.exit(err.strerror)", "print(err.strerror)");
    let twice = format!("{twice}\ntcp.close()\n{BRIEF}");
    let inner = ["--", path, "run", "--", "python3", "-c", &twice, "1"];
    for mode in ["auto", "strict"] {
        let outer = ["run", "--name", "outer", "--hand-off", mode];
        let ended = run(&mut everybodys.command(&[&outer[..], &inner].concat()));
        assert_eq!(ended.code, Some(1), "{ended:?}");
        let refused = ended.stdout.starts_with("Address already in use\n");
        assert!(refused, "{ended:?}");
        let complaint = "portpicker: cannot get at the command's sockets";
        assert_eq!(ended.stderr.matches(complaint).count(), 1, "{ended:?}");
    }
}

#[test]
fn in_a_user_namespace_all_is_as_outside() {
    for wrapper in [
        &["unshare", "--user", "--map-root-user"][..],
        &["unshare", "--user", "--map-root-user", "--net"],
        &["setpriv", "--no-new-privs"],
    ] {
        let mut probe = Command::new(wrapper[0]);
        if !probe
            .args(&wrapper[1..])
            .arg("true")
            .status()
            .is_ok_and(|it| it.success())
        {
            skip(
                "run::modes::in_a_user_namespace_all_is_as_outside",
                wrapper[0],
            );
            continue;
        }
        let mut command = Command::new(wrapper[0]);
        // No address but that of all of them is there in a new network.
        let script = BRIEF.replace("sys.argv[1]", "'0'");
        command
            .args(&wrapper[1..])
            .arg(PORTPICKER)
            .args(STRICT)
            .arg(&script)
            .env_remove("PORTSERVER_ADDRESS")
            .env_remove("PORTPICKER_PORTS");
        assert_eq!(run(&mut command), listened(), "{wrapper:?}");
    }
}
