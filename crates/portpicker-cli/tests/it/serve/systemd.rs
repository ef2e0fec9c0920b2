//! Socket activation, readiness, the watchdog, and the descriptor store.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::process::{Command, Stdio};

use portpicker_testing::in_network_namespace;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::Signal;

use super::{Place, Running, ask, connect, exists, own_pid};
use crate::support::{LONG, Owner, is_leased, run, wait_until_unused};

/// What a server that is started by systemd is told: a service manager that a test plays.
struct Manager {
    socket: UnixDatagram,
    address: String,
}

impl Manager {
    fn new(place: &Place) -> Self {
        let address = place.path("notify");
        _ = std::fs::remove_file(&address);
        let socket = UnixDatagram::bind(&address).unwrap();
        socket.set_read_timeout(Some(LONG)).unwrap();
        Self { socket, address }
    }

    /// Returns the next message, with the descriptor that came with it.
    fn next(&self) -> (String, Option<OwnedFd>) {
        let mut bytes = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(
            &self.socket,
            &mut [IoSliceMut::new(&mut bytes)],
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC,
        )
        .unwrap();
        let descriptor = ancillary.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        });
        let text = String::from_utf8(bytes[..received.bytes].to_vec()).unwrap();
        (text, descriptor)
    }

    /// Returns what is stored until the barrier, by name.
    fn stored(&self) -> Vec<(String, OwnedFd)> {
        let mut stored = Vec::new();
        loop {
            let (text, descriptor) = self.next();
            if text == "BARRIER=1" {
                return stored;
            }
            let name = text.strip_prefix("FDSTORE=1\nFDNAME=").unwrap();
            let name = name.strip_suffix("\nFDPOLL=0").unwrap().to_owned();
            stored.push((name, descriptor.unwrap()));
        }
    }
}

/// Returns a server that is passed up to two descriptors with these names, as systemd does it.
fn activated(place: &Place, passed: &[(&str, OwnedFd)], options: &str) -> Command {
    let names: Vec<&str> = passed.iter().map(|(name, _)| *name).collect();
    let script = format!(
        "exec 3<&0 4<&1 0</dev/null 1>/dev/null; {} LISTEN_PID=$$ LISTEN_FDS={} \
         LISTEN_FDNAMES={} exec $portserver {options}",
        if passed.len() < 2 { "exec 4<&-;" } else { "" },
        passed.len(),
        names.join(":"),
    );
    let mut command = place.shell(&script);
    let copy = |index: usize| match passed.get(index) {
        Some((_, fd)) => Stdio::from(fd.try_clone().unwrap()),
        None => Stdio::null(),
    };
    command.stdin(copy(0)).stdout(copy(1));
    command
}

#[test]
fn a_socket_from_systemd_is_served_and_its_file_is_left() {
    in_network_namespace(|| {
        let place = Place::new();
        let path = place.path("socket");
        let socket = [(
            "portserver.socket",
            OwnedFd::from(UnixListener::bind(&path).unwrap()),
        )];
        // A client may come before the server.
        let early = connect(&path).unwrap();
        let mut command = activated(&place, &socket, "--pool 20000-20001");
        let mut server = Running::spawn(&mut command);
        server.wait_for("as it was handed over");
        assert!(super::converse(early, own_pid()).is_some());
        assert!(ask(&path, own_pid()).is_some());
        let log = server.stop();
        assert!(!log.contains("@unittest-portserver"), "{log}");
        assert!(exists(&path));

        // The next one goes on with the leases: the state file is named for the socket.
        let mut server = Running::spawn(&mut activated(&place, &socket, "--pool 20000-20001"));
        server.wait_for("adopted 2 leases");
        server.stop();
    });
}

#[test]
fn a_tcp_socket_from_systemd_is_served_too() {
    in_network_namespace(|| {
        let place = Place::new();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let mut command = activated(&place, &[("", listener.into())], "--pool 20000");
        let server = Running::start(&mut command);
        let stream = std::net::TcpStream::connect(address).unwrap();
        assert_eq!(super::converse(stream, own_pid()), Some(20_000));
        server.stop();
    });
}

#[test]
fn what_is_meant_for_another_process_is_left_alone() {
    let place = Place::new();
    let mut command = place.server(&["--address", place.name()]);
    command.env("LISTEN_PID", "1").env("LISTEN_FDS", "1");
    let server = Running::start(&mut command);
    connect(place.name()).unwrap();
    server.stop();
}

#[test]
fn what_is_no_listening_socket_is_refused() {
    let place = Place::new();
    let refused = |passed: OwnedFd| run_activated(activated(&place, &[("a", passed)], ""));
    let null = std::fs::File::open("/dev/null").unwrap();
    let (client, _server) = std::os::unix::net::UnixStream::pair().unwrap();
    let datagrams = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    for passed in [null.into(), client.into(), datagrams.into()] {
        let (code, stderr) = refused(passed);
        assert_eq!(code, Some(6));
        assert!(
            stderr.starts_with("portserver: cannot use what systemd has passed: "),
            "{stderr}"
        );
    }
    let mut missing = place.shell("LISTEN_PID=$$ LISTEN_FDS=700 exec $portserver");
    assert_eq!(run(&mut missing).code, Some(6));
}

/// Runs the command, whose stdin and stdout are what it is passed.
fn run_activated(mut command: Command) -> (Option<i32>, String) {
    let output = command
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
        .wait_with_output()
        .unwrap();
    (
        output.status.code(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

#[test]
fn systemd_runs_no_daemons() {
    let place = Place::new();
    let socket = UnixListener::bind(place.path("socket")).unwrap();
    let (code, stderr) = run_activated(activated(&place, &[("a", socket.into())], "--daemon"));
    assert_eq!(code, Some(2));
    assert!(stderr.contains("leave out --daemon"), "{stderr}");
}

#[test]
fn readiness_the_watchdog_and_the_end_are_told() {
    let place = Place::new();
    let manager = Manager::new(&place);
    let mut command = place.server(&["--address", place.name(), "--pool", "20000"]);
    command
        .env("NOTIFY_SOCKET", &manager.address)
        .env("WATCHDOG_USEC", "20000");
    let server = Running::spawn(&mut command);
    assert_eq!(manager.next().0, "READY=1\nSTATUS=Managing 1 ports");
    connect(place.name()).unwrap();
    for _ in 0..3 {
        assert_eq!(manager.next().0, "WATCHDOG=1");
    }
    server.signal(Signal::TERM);
    loop {
        match manager.next().0.as_str() {
            "WATCHDOG=1" => {}
            text => break assert_eq!(text, "STOPPING=1\nSTATUS=Stopping"),
        }
    }
    server.stop();
}

#[test]
fn a_manager_with_an_abstract_address_is_told_too() {
    use std::os::linux::net::SocketAddrExt;
    let place = Place::new();
    let name = format!("{}/notify", &place.name()[1..]);
    let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
    let manager = Manager {
        socket: UnixDatagram::bind_addr(&address).unwrap(),
        address: format!("@{name}"),
    };
    let mut command = place.server(&["--address", place.name()]);
    command.env("NOTIFY_SOCKET", &manager.address);
    let server = Running::spawn(&mut command);
    assert_eq!(manager.next().0, "READY=1\nSTATUS=Managing 10000 ports");
    server.stop();
}

/// At no moment are the ports free: the manager has the locks when the first server ends.
#[test]
fn leases_survive_in_the_descriptor_store() {
    in_network_namespace(|| {
        let place = Place::new();
        let manager = Manager::new(&place);
        let owners = [Owner::start(), Owner::start()];
        let options = ["--address", place.name(), "--pool", "20000-20001"];
        let mut command = place.server(&options);
        command.env("NOTIFY_SOCKET", &manager.address);
        let server = Running::spawn(&mut command);
        assert!(manager.next().0.starts_with("READY=1"));
        for owner in &owners {
            assert!(ask(place.name(), owner.pid()).is_some());
        }
        server.signal(Signal::TERM);
        assert!(manager.next().0.starts_with("STOPPING=1"));
        let stored = manager.stored();
        server.stop();
        assert!(is_leased(20_000) && is_leased(20_001));

        let passed: Vec<(&str, OwnedFd)> = stored
            .iter()
            .map(|(name, fd)| (name.as_str(), fd.as_fd().try_clone_to_owned().unwrap()))
            .collect();
        let options = format!("--address {} --pool 20000-20001", place.name());
        let mut command = activated(&place, &passed, &options);
        command.env("NOTIFY_SOCKET", &manager.address);
        let mut server = Running::spawn(&mut command);
        server.wait_for("adopted 2 leases");
        for port in [20_000, 20_001] {
            assert_eq!(
                manager.next().0,
                format!("FDSTOREREMOVE=1\nFDNAME=lock-{port}")
            );
        }
        assert!(manager.next().0.starts_with("READY=1"));
        // The command has copies too, of what it passes on.
        drop(passed);
        drop((stored, command));
        assert!(is_leased(20_000) && is_leased(20_001));
        assert_eq!(ask(place.name(), own_pid()), None);

        for owner in owners {
            owner.kill();
        }
        for port in [20_000, 20_001] {
            wait_until_unused(port);
        }
        let log = server.stop();
        assert!(!log.contains("WARN"), "{log}");
    });
}

#[test]
fn a_descriptor_that_is_not_the_lock_it_is_said_to_be_is_not_used() {
    in_network_namespace(|| {
        let place = Place::new();
        let lease = portpicker::Picker::new()
            .server(portpicker::Server::None)
            .lease()
            .unwrap();
        let lock = || lease.descriptor().unwrap().try_clone_to_owned().unwrap();
        let passed = [("lock-20000", lock()), ("lock-x", lock())];
        let options = format!("--address {} --pool 20000", place.name());
        let server = Running::start(&mut activated(&place, &passed, &options));
        assert_eq!(ask(place.name(), own_pid()), Some(20_000));
        let log = server.stop();
        assert_eq!(
            log.matches("is not the lock of that port").count(),
            2,
            "{log}"
        );
    });
}

#[test]
fn nothing_is_stored_that_the_next_server_could_not_use() {
    in_network_namespace(|| {
        let place = Place::new();
        let manager = Manager::new(&place);
        for (option, room, expected) in
            [("--no-state", "9", None), ("--user-limit=9", "1", Some(1))]
        {
            let options = ["--address", place.name(), "--pool", "20000-20001", option];
            let mut command = place.server(&options);
            command
                .env("NOTIFY_SOCKET", &manager.address)
                .env("FDSTORE", room);
            let server = Running::spawn(&mut command);
            assert!(manager.next().0.starts_with("READY=1"));
            for _ in 0..2 {
                assert!(ask(place.name(), own_pid()).is_some());
            }
            server.signal(Signal::TERM);
            assert!(manager.next().0.starts_with("STOPPING=1"));
            if let Some(expected) = expected {
                assert_eq!(manager.stored().len(), expected);
            }
            server.stop();
        }
    });
}
