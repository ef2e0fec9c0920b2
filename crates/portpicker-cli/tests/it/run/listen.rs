//! Sockets by LISTEN_FDS.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};

use super::is_bindable;
use crate::support::{Talking, is_leased, portpicker, run};

/// Says what it was passed, as systemd specifies it, and that it goes on to the end of its input.
const TAKER: &str = "
import os, socket, sys

assert os.environ['LISTEN_PID'] == str(os.getpid())
names = os.environ['LISTEN_FDNAMES'].split(':')
assert len(names) == int(os.environ['LISTEN_FDS'])
sockets = []
for fd, name in enumerate(names, 3):
    server = socket.socket(fileno=fd)
    address, port = server.getsockname()[:2]
    assert port == int(os.environ['PORT_' + name.upper().replace('-', '_')])
    is_tcp = server.type == socket.SOCK_STREAM
    listens = is_tcp and server.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    print(name, 'tcp' if is_tcp else 'udp', address, bool(listens), port, flush=True)
    sockets.append(server)
for line in sys.stdin:
    if sockets[0].type == socket.SOCK_STREAM:
        print(sockets[0].accept()[1][1], flush=True)
    else:
        print(sockets[0].recv(100).decode(), flush=True)
";

fn take(arguments: &[&str]) -> Talking {
    let arguments = [
        &["run", "--listen"],
        arguments,
        &["--", "python3", "-c", TAKER],
    ]
    .concat();
    Talking::start(&mut portpicker(&arguments))
}

#[test]
fn a_listening_socket_takes_connections_of_both_families() {
    let mut command = take(&["--name", "http"]);
    let line = command.line();
    let port = line.strip_prefix("http tcp :: True ").unwrap();
    let port: u16 = port.parse().unwrap();
    assert!(!is_bindable(port));
    for address in [
        SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
        SocketAddr::from((Ipv6Addr::LOCALHOST, port)),
    ] {
        let client = TcpStream::connect(address).unwrap();
        command.say("accept");
        assert_eq!(
            command.line(),
            client.local_addr().unwrap().port().to_string()
        );
    }
    assert!(command.finish().success());
    assert!(!is_leased(port));
}

#[test]
fn many_sockets_have_their_names() {
    let names = ["a", "b", "c-d", "e", "f", "g", "h", "i", "j", "k"];
    let arguments: Vec<&str> = names.iter().flat_map(|name| ["--name", name]).collect();
    let mut command = take(&arguments);
    for name in names {
        assert!(command.line().starts_with(&format!("{name} tcp :: True")));
    }
    assert!(command.finish().success());

    let mut command = take(&["-n", "10"]);
    for number in 1..=10 {
        assert!(command.line().starts_with(&format!("{number} tcp :: True")));
    }
    assert!(command.finish().success());
}

#[test]
fn a_udp_socket_receives() {
    let mut command = take(&["--udp"]);
    let line = command.line();
    let port: u16 = line
        .strip_prefix("1 udp :: False ")
        .unwrap()
        .parse()
        .unwrap();
    let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    client
        .send_to(b"hello", (Ipv4Addr::LOCALHOST, port))
        .unwrap();
    command.say("receive");
    assert_eq!(command.line(), "hello");
    assert!(command.finish().success());
}

/// As when portpicker itself was started by systemd, with sockets of its own.
#[test]
fn what_was_said_about_our_callers_sockets_is_not_said_about_these() {
    let look = ["run", "--listen", "--", "sh", "-c"];
    let script = "echo $LISTEN_FDS $LISTEN_FDNAMES $((LISTEN_PID == $$)) ${LISTEN_PIDFDID-none}";
    let ended = run(portpicker(&look)
        .arg(script)
        .env("LISTEN_FDS", "9")
        .env("LISTEN_PID", "1")
        .env("LISTEN_FDNAMES", "a:b")
        .env("LISTEN_PIDFDID", "77"));
    assert_eq!(ended.stdout, "1 1 1 none\n");
}

#[test]
fn who_is_asked_to_pass_sockets_asks_for_nothing_special() {
    let look = ["--", "grep", "NoNewPrivs", "/proc/self/status"];
    let ended = run(&mut portpicker(&[&["run", "--listen"], &look[..]].concat()));
    assert_eq!(ended.stdout, "NoNewPrivs:\t0\n");
}
