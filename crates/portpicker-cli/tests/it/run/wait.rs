//! `portpicker wait`.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, UdpSocket};
use std::process::Stdio;

use crate::support::{portpicker, run};

#[test]
fn what_listens_already_is_not_waited_for() -> io::Result<()> {
    for listener in [
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?,
        TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0))?,
        TcpListener::bind((Ipv6Addr::LOCALHOST, 0))?,
    ] {
        let port = listener.local_addr()?.port().to_string();
        let ended = run(&mut portpicker(&["wait", &port]));
        assert_eq!(ended.code, Some(0));
        assert_eq!((ended.stdout, ended.stderr), Default::default());
    }
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = socket.local_addr()?.port().to_string();
    assert_eq!(
        run(&mut portpicker(&["wait", "--udp", &port])).code,
        Some(0)
    );
    Ok(())
}

#[test]
fn nobody_connects() -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port().to_string();
    assert_eq!(run(&mut portpicker(&["wait", &port])).code, Some(0));
    listener.set_nonblocking(true)?;
    assert_eq!(
        listener.accept().unwrap_err().kind(),
        io::ErrorKind::WouldBlock
    );
    Ok(())
}

#[test]
fn waiting_ends_when_somebody_listens() {
    for arguments in [&["wait"][..], &["wait", "--udp"]] {
        let hold = portpicker::Picker::new().lease().unwrap();
        let port = hold.port();
        let mut waiting = portpicker(arguments)
            .args([port.to_string(), "60".to_owned()])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        assert!(waiting.try_wait().unwrap().is_none());
        let _tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
        let _udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
        assert!(waiting.wait().unwrap().success());
    }
}

#[test]
fn a_port_that_is_only_held_is_not_listened_on() {
    let hold = portpicker::Picker::new()
        .only(portpicker::Kind::Tcp)
        .hold()
        .unwrap();
    let port = hold.port().to_string();
    let ended = run(&mut portpicker(&["wait", &port, "0.01"]));
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(7), ""));
    assert_eq!(
        ended.stderr,
        format!("portpicker: nothing listens on port {port}\n")
    );
    assert_eq!(
        run(&mut portpicker(&["wait", &port, "0", "--udp"])).code,
        Some(7)
    );
}

#[test]
fn then_a_command_takes_our_place() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let arguments = ["wait", &port, "60", "--", "sh", "-c", "echo $$; exit 9"];
    let child = portpicker(&arguments)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = child.id();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(9));
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        format!("{pid}\n")
    );

    for (program, code) in [("/nonexistent", 127), ("/", 126)] {
        let ended = run(&mut portpicker(&["wait", &port, "--", program]));
        assert_eq!(ended.code, Some(code), "{ended:?}");
    }
    // Not before something listens.
    drop(listener);
    let ended = run(&mut portpicker(&[
        "wait", &port, "0", "--", "echo", "listens",
    ]));
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(7), ""));
}
