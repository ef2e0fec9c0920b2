//! Binding the caller's own socket.

use std::io::ErrorKind;
use std::net::UdpSocket;

use portpicker::{Error, Kind, bind_port};
use portpicker_testing::network::{self, OTHER_V4, set_ephemeral_range};
use portpicker_testing::sockets::port_of;
use portpicker_testing::{Binding, Local, Options, in_network_namespace};
use socket2::{Domain, Socket, Type};

fn binding(kind: Kind, local: Local, options: Options) -> Binding {
    Binding {
        kind,
        ..Binding::tcp(local, options)
    }
}

#[test]
fn the_port_is_bound_and_nobody_elses() {
    in_network_namespace(|| {
        for (local, host) in [
            (Local::LOOPBACK_V4, "127.0.0.1"),
            (Local::LOOPBACK_V4, "localhost"),
            (Local::LOOPBACK_V6, "::1"),
            (Local::DUAL, "::"),
        ] {
            for kind in [Kind::Tcp, Kind::Udp] {
                let binding = binding(kind, local, Options::None);
                let socket = binding.open().unwrap();
                let port = bind_port(&socket, host).unwrap();
                assert_eq!(port_of(&socket), port, "{host}");
                for options in Options::ALL {
                    let other = Binding { options, ..binding };
                    assert!(other.bind(port).is_err(), "{host}, {other}");
                }
            }
        }
    });
}

#[test]
fn only_the_given_host_is_bound() {
    in_network_namespace(|| {
        let socket = Binding::tcp(Local::LOOPBACK_V4, Options::None)
            .open()
            .unwrap();
        let port = bind_port(&socket, "127.0.0.1").unwrap();
        let other = Local {
            address: OTHER_V4,
            dual: false,
        };
        assert!(Binding::tcp(other, Options::None).bind(port).is_ok());
        let name = socket.local_addr().unwrap().as_socket().unwrap();
        assert_eq!(name.ip().to_string(), "127.0.0.1");
    });
}

#[test]
fn a_tcp_socket_that_others_could_share_is_refused() {
    in_network_namespace(|| {
        for local in [Local::LOOPBACK_V4, Local::LOOPBACK_V6] {
            let host = local.address.to_string();
            for options in [Options::ReuseAddress, Options::ReusePort, Options::Both] {
                let socket = Binding::tcp(local, options).open().unwrap();
                match bind_port(&socket, &host) {
                    Err(Error::UnfitSocket { reason }) => {
                        let option = if options == Options::ReusePort {
                            "SO_REUSEPORT"
                        } else {
                            "SO_REUSEADDR"
                        };
                        assert!(reason.contains(option), "{reason}");
                    }
                    other => panic!("{options}: {other:?}"),
                }
                assert_eq!(port_of(&socket), 0, "not bound");
                let socket = Binding::udp(local, options).open().unwrap();
                assert!(bind_port(&socket, &host).is_ok(), "UDP may: {options}");
            }
        }
    });
}

#[test]
fn sockets_of_other_families_are_refused() {
    for domain in [Domain::UNIX, Domain::PACKET] {
        // Packet sockets are for root.
        if let Ok(socket) = Socket::new(domain, Type::DGRAM, None) {
            let err = bind_port(&socket, "127.0.0.1").unwrap_err();
            assert!(matches!(err, Error::UnfitSocket { .. }), "{err:?}");
        }
    }
}

#[test]
fn a_host_without_an_address_of_the_family_is_an_error() {
    in_network_namespace(|| {
        for (local, host) in [
            (Local::LOOPBACK_V4, "::1"),
            (Local::LOOPBACK_V6, "127.0.0.1"),
            (Local::LOOPBACK_V4, "no such host"),
            (Local::LOOPBACK_V4, "nobody.invalid"),
            (Local::LOOPBACK_V4, ""),
        ] {
            let socket = Binding::tcp(local, Options::None).open().unwrap();
            match bind_port(&socket, host) {
                Err(Error::Host { host: named, .. }) => assert_eq!(named, host),
                other => panic!("{host}: {other:?}"),
            }
        }
    });
}

#[test]
fn a_bind_that_fails_is_an_error() {
    in_network_namespace(|| {
        let socket = Binding::tcp(Local::LOOPBACK_V4, Options::None)
            .open()
            .unwrap();
        let kind = |result| match result {
            Err(Error::Socket {
                call: "bind",
                source,
                ..
            }) => source.kind(),
            other => panic!("{other:?}"),
        };
        assert_eq!(
            kind(bind_port(&socket, "192.0.2.1")),
            ErrorKind::AddrNotAvailable
        );
        bind_port(&socket, "127.0.0.1").unwrap();
        assert_eq!(
            kind(bind_port(&socket, "127.0.0.1")),
            ErrorKind::InvalidInput
        );

        set_ephemeral_range(20_000..=20_000);
        let _taken = Binding::tcp(Local::LOOPBACK_V4, Options::None).bind(0);
        let socket = Binding::tcp(Local::LOOPBACK_V4, Options::None)
            .open()
            .unwrap();
        assert_eq!(kind(bind_port(&socket, "127.0.0.1")), ErrorKind::AddrInUse);
    });
}

#[test]
fn ipv4_can_be_bound_with_ipv6_off() {
    in_network_namespace(|| {
        network::disable_ipv6();
        let socket = Binding::tcp(Local::LOOPBACK_V4, Options::None)
            .open()
            .unwrap();
        assert!(bind_port(&socket, "127.0.0.1").unwrap() > 0);
        assert!(bind_port(&socket, "::1").is_err());
    });
}

/// Whatever has a descriptor will do, not socket2's type alone.
#[test]
fn sockets_of_the_standard_library_are_accepted() {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let err = bind_port(&socket, "127.0.0.1").unwrap_err();
    assert!(matches!(err, Error::Socket { call: "bind", .. }), "{err:?}");
}
