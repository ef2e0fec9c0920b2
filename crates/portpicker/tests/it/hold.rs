//! Is a held port really nobody else's?

use std::collections::BTreeSet;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use portpicker::{Error, Hold, Kind};
use portpicker_testing::network::set_ephemeral_range;
use portpicker_testing::sockets::port_of;
use portpicker_testing::{Binding, Local, Options, Worker, in_network_namespace};
use socket2::Socket;

use crate::{among, every_binding, is_probed, set};

/// The ephemeral range of these tests, laid over the candidates.
const RANGE: std::ops::RangeInclusive<u16> = 20_000..=20_199;

/// Where the servers for outgoing connections listen.
const SERVER: u16 = 10_000;

/// Takes nine in ten of the ports in [`RANGE`] that are not held, and returns the others.
fn nearly_exhaust(held: &BTreeSet<u16>) -> (Vec<Socket>, BTreeSet<u16>) {
    let mut sockets = Vec::new();
    let mut left = BTreeSet::new();
    for (index, port) in RANGE.filter(|port| !held.contains(port)).enumerate() {
        if index % 10 == 0 {
            left.insert(port);
            continue;
        }
        for binding in [
            Binding::tcp(Local::DUAL, Options::None),
            Binding::udp(Local::DUAL, Options::None),
        ] {
            sockets.push(binding.bind(port).expect("the port is unused"));
        }
    }
    (sockets, left)
}

/// Returns the ports that the kernel gives to sockets made by `ask`, until there are none left or
/// it begins to repeat itself.
fn ask_for_all(ask: impl Fn() -> io::Result<Socket>) -> BTreeSet<u16> {
    let sockets: Vec<_> = (0..2 * RANGE.len()).map_while(|_| ask().ok()).collect();
    sockets.iter().map(port_of).collect()
}

fn connect(binding: Binding) -> io::Result<Socket> {
    let server = match binding.local.address {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
    };
    let socket = binding.open()?;
    // Reset when it closes, so that no TIME-WAIT takes the port from the next attempts.
    if binding.kind == Kind::Tcp {
        socket.set_linger(Some(Duration::ZERO))?;
    }
    socket.connect(&SocketAddr::new(server, SERVER).into())?;
    Ok(socket)
}

#[test]
fn a_held_port_is_never_given_to_bind_0_or_connect() {
    in_network_namespace(|| {
        set_ephemeral_range(RANGE);
        let holds = among("20000-20199").holds(20).unwrap();
        let held: BTreeSet<u16> = holds.iter().map(Hold::port).collect();
        let (_sockets, left) = nearly_exhaust(&held);
        let _servers = [Local::LOOPBACK_V4, Local::LOOPBACK_V6].map(|local| {
            let server = Binding::listening(local, Options::None).bind(SERVER);
            let server = server.unwrap();
            server.listen(1000).unwrap();
            server
        });

        let locals = Local::EVERY.into_iter().filter(|local| is_probed(*local));
        for local in locals {
            for options in Options::ALL {
                for binding in [Binding::tcp(local, options), Binding::udp(local, options)] {
                    let given = ask_for_all(|| binding.bind(0));
                    assert!(given.is_disjoint(&held), "bind(0), {binding}");
                    // Everything else was given, so that the holds were next in turn.
                    assert!(
                        given == left || options != Options::None,
                        "bind(0), {binding}: {given:?}"
                    );
                    if local == Local::LOOPBACK_V4 || local == Local::LOOPBACK_V6 {
                        let given = ask_for_all(|| connect(binding));
                        assert!(given.is_disjoint(&held), "connect(), {binding}");
                        assert!(
                            given == left || options != Options::None,
                            "connect(), {binding}: {given:?}"
                        );
                    }
                }
            }
        }
    });
}

#[test]
fn a_held_port_is_bound_by_no_other_process_on_any_address_with_any_options() {
    in_network_namespace(|| {
        let mut other = Worker::spawn();
        let hold = among("20000").hold().unwrap();
        for binding in every_binding() {
            let answer = other.bind(hold.port(), binding);
            assert_eq!(answer, Err(ErrorKind::AddrInUse.to_string()), "{binding}");
        }
        let refusal = other.lease(&set("20000"), 1).unwrap_err();
        assert!(refusal.contains("leased: 1"), "{refusal}");

        drop(hold);
        for binding in every_binding() {
            assert_eq!(other.bind(20_000, binding), Ok(()), "{binding}");
            other.unbind();
        }
        assert_eq!(other.lease(&set("20000"), 1), Ok(vec![20_000]));
    });
}

#[test]
fn a_held_port_is_not_bound_by_its_own_process_either() {
    in_network_namespace(|| {
        let hold = among("20000").hold().unwrap();
        for binding in every_binding() {
            let err = binding.bind(hold.port()).unwrap_err();
            assert_eq!(err.kind(), ErrorKind::AddrInUse, "{binding}");
        }
    });
}

#[test]
fn a_held_port_refuses_connections() {
    in_network_namespace(|| {
        let hold = among("20000").hold().unwrap();
        for address in [
            IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(Ipv6Addr::LOCALHOST),
        ] {
            let err = TcpStream::connect((address, hold.port())).unwrap_err();
            assert_eq!(err.kind(), ErrorKind::ConnectionRefused);
        }
    });
}

#[test]
fn a_hold_that_became_a_lease_can_be_bound_and_is_still_leased() {
    in_network_namespace(|| {
        let mut other = Worker::spawn();
        let lease = among("20000").hold().unwrap().into_lease();
        for binding in Binding::every() {
            let socket = binding.bind(lease.port());
            assert!(socket.is_ok(), "{binding}: {socket:?}");
        }
        assert!(other.lease(&set("20000"), 1).is_err());
        drop(lease);
        assert!(other.lease(&set("20000"), 1).is_ok());
    });
}

#[test]
fn a_hold_listens_without_letting_go() {
    in_network_namespace(|| {
        let mut other = Worker::spawn();
        let mut hold = among("20000").hold().unwrap();
        let server = hold.listen(16).unwrap();
        assert_eq!(server.local_addr().unwrap().port(), 20_000);
        let mut clients = vec![IpAddr::V4(Ipv4Addr::LOCALHOST)];
        if is_probed(Local::LOOPBACK_V6) {
            clients.push(IpAddr::V6(Ipv6Addr::LOCALHOST));
        }
        for client in clients {
            let client = TcpStream::connect((client, 20_000)).unwrap();
            let (_, peer) = server.accept().unwrap();
            assert_eq!(peer.port(), client.local_addr().unwrap().port());
        }
        for binding in every_binding() {
            assert!(other.bind(20_000, binding).is_err(), "{binding}");
        }

        // The server goes on when the hold ends; UDP and the lease end with it.
        drop(hold);
        TcpStream::connect((Ipv4Addr::LOCALHOST, 20_000)).unwrap();
        let udp = Binding::udp(Local::LOOPBACK_V4, Options::None);
        assert_eq!(other.bind(20_000, udp), Ok(()));
        let refusal = other.lease(&set("20000"), 1).unwrap_err();
        assert!(refusal.contains("leased: 0, occupied: 1"), "{refusal}");
    });
}

#[test]
fn a_hold_listens_only_once() {
    in_network_namespace(|| {
        let mut hold = among("20000").hold().unwrap();
        let _server = hold.listen(16).unwrap();
        match hold.listen(16) {
            Err(Error::Socket { call, source, .. }) => {
                assert_eq!((call, source.kind()), ("listen", ErrorKind::NotFound));
            }
            other => panic!("{other:?}"),
        }
        assert!(hold.take_tcp().is_none());

        let mut hold = among("20001").only(Kind::Udp).hold().unwrap();
        assert!(hold.listen(16).is_err(), "it has no TCP socket");
    });
}

#[test]
fn the_sockets_of_a_hold_can_be_taken() {
    in_network_namespace(|| {
        let mut hold = among("20000").hold().unwrap();
        assert_eq!(hold.descriptors().count(), 2);
        let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        client
            .send_to(b"early", (Ipv4Addr::LOCALHOST, 20_000))
            .unwrap();

        let udp = hold.take_udp().unwrap();
        let mut datagram = [0; 16];
        let (length, _) = udp.recv_from(&mut datagram).unwrap();
        assert_eq!(&datagram[..length], b"early", "it has waited");
        assert!(hold.take_udp().is_none(), "there is only one");
        assert_eq!(hold.descriptors().count(), 1);

        let tcp = hold.take_tcp().unwrap();
        assert!(tcp.accept().is_err(), "it does not listen yet");
        assert_eq!(hold.descriptors().count(), 0);
        for binding in every_binding() {
            assert!(
                binding.bind(20_000).is_err(),
                "{binding}: taken, not let go"
            );
        }
        Socket::from(tcp.try_clone().unwrap()).listen(1).unwrap();
        TcpStream::connect((Ipv4Addr::LOCALHOST, 20_000)).unwrap();
    });
}

#[test]
fn a_copy_of_the_descriptors_shares_the_hold() {
    in_network_namespace(|| {
        let hold = among("20000").hold().unwrap();
        let copies: Vec<_> = hold
            .descriptors()
            .map(|fd| fd.try_clone_to_owned().unwrap())
            .collect();
        drop(hold);
        for binding in every_binding() {
            assert!(binding.bind(20_000).is_err(), "{binding}");
        }
        drop(copies);
        assert!(among("20000").hold().is_ok());
    });
}
