//! Who comes in through the door of a hold, and when?

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, TcpListener, TcpStream};

use portpicker::{Hold, Kind};
use portpicker_testing::network::set_ephemeral_range;
use portpicker_testing::sockets::port_of;
use portpicker_testing::{Binding, Local, Options, Worker, in_network_namespace};

use crate::{among, every_binding, is_probed};

const PORT: u16 = 20_000;

fn held() -> Hold {
    among("20000").hold().expect("the port is unused")
}

fn in_use() -> Result<(), String> {
    Err(ErrorKind::AddrInUse.to_string())
}

fn tcp_bindings() -> impl Iterator<Item = Binding> {
    every_binding().filter(|binding| binding.kind == Kind::Tcp)
}

/// A server as most are.
fn server(local: Local) -> Binding {
    Binding::listening(local, Options::ReuseAddress)
}

#[test]
fn servers_that_set_reuse_address_come_in_while_the_door_is_open_and_no_others() {
    in_network_namespace(|| {
        let mut other = Worker::spawn();
        for binding in tcp_bindings() {
            let mut hold = held();
            assert_eq!(other.bind(PORT, binding), in_use(), "{binding}: not yet");
            hold.open_door().unwrap();
            let answer = other.bind(PORT, binding);
            if binding.options.reuse_address() {
                assert_eq!(answer, Ok(()), "{binding}");
            } else {
                assert_eq!(answer, in_use(), "{binding}");
            }
            other.unbind();
        }
    });
}

#[test]
fn the_first_server_to_listen_has_the_port() {
    in_network_namespace(|| {
        let mut other = Worker::spawn();
        for binding in tcp_bindings().filter(|binding| meets_loopback_v4(binding.local)) {
            let mut hold = held();
            hold.open_door().unwrap();
            let _server = server(Local::LOOPBACK_V4).bind(PORT).unwrap();
            assert_eq!(other.bind(PORT, binding), in_use(), "{binding}");
        }
    });
}

/// Whether sockets on `local` and on 127.0.0.1 have an address in common.
fn meets_loopback_v4(local: Local) -> bool {
    local == Local::LOOPBACK_V4 || local == Local::ALL_V4 || local.dual
}

#[test]
fn nobody_comes_in_after_the_door_is_shut() {
    in_network_namespace(|| {
        let mut other = Worker::spawn();
        for binding in every_binding() {
            let mut hold = held();
            hold.open_door().unwrap();
            hold.shut_door().unwrap();
            assert_eq!(other.bind(PORT, binding), in_use(), "{binding}: no server");

            hold.open_door().unwrap();
            let server = server(Local::LOOPBACK_V4).bind(PORT).unwrap();
            hold.shut_door().unwrap();
            assert_eq!(other.bind(PORT, binding), in_use(), "{binding}: a server");
            drop(server);
            assert_eq!(other.bind(PORT, binding), in_use(), "{binding}: it left");
        }
    });
}

/// The kernel remembers that the visitor was willing to share, and lets the next one of the same
/// user who is willing too pass unchecked (`fastreuseport` in its bind bucket).
#[test]
fn a_visitor_that_would_share_the_port_leaves_the_door_ajar_for_nobody() {
    in_network_namespace(|| {
        let mut other = Worker::spawn();
        for visitor in tcp_bindings().filter(|binding| binding.options == Options::Both) {
            for newcomer in tcp_bindings().filter(|binding| binding.options.reuse_port()) {
                let mut hold = held();
                hold.open_door().unwrap();
                drop(visitor.bind(PORT).unwrap());
                hold.shut_door().unwrap();
                let answer = other.bind(PORT, newcomer);
                assert_eq!(answer, in_use(), "{newcomer} after {visitor}");
            }
        }
    });
}

/// Beside a server that listens on one address, visitors may still come in on others.
#[test]
fn a_visitor_beside_a_server_leaves_the_door_ajar_for_nobody() {
    in_network_namespace(|| {
        let mut other = Worker::spawn();
        let outside = || tcp_bindings().filter(|binding| !meets_loopback_v4(binding.local));
        for visitor in outside().filter(|binding| binding.options == Options::Both) {
            for newcomer in tcp_bindings().filter(|binding| binding.options.reuse_port()) {
                let mut hold = held();
                hold.open_door().unwrap();
                let _server = server(Local::LOOPBACK_V4).bind(PORT).unwrap();
                drop(visitor.bind(PORT).unwrap());
                hold.shut_door().unwrap();
                let answer = other.bind(PORT, newcomer);
                assert_eq!(answer, in_use(), "{newcomer} after {visitor}");
            }
        }
    });
}

#[test]
fn the_server_that_came_in_goes_on_accepting() {
    in_network_namespace(|| {
        let mut hold = held();
        hold.open_door().unwrap();
        // std sets SO_REUSEADDR.
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, PORT)).unwrap();
        let accept = || {
            let client = TcpStream::connect((Ipv4Addr::LOCALHOST, PORT)).unwrap();
            let (_, peer) = server.accept().unwrap();
            assert_eq!(peer, client.local_addr().unwrap());
        };
        accept();
        for _ in 0..3 {
            hold.shut_door().unwrap();
            accept();
            hold.open_door().unwrap();
            accept();
        }
    });
}

#[test]
fn who_has_bound_and_not_listened_when_the_door_is_shut_cannot_listen() {
    in_network_namespace(|| {
        let mut hold = held();
        hold.open_door().unwrap();
        let late = Binding::tcp(Local::LOOPBACK_V4, Options::ReuseAddress);
        let late = late.bind(PORT).unwrap();
        hold.shut_door().unwrap();
        assert!(late.listen(1).is_err());
    });
}

#[test]
fn a_server_that_came_in_and_stopped_can_be_replaced_while_the_door_is_open() {
    in_network_namespace(|| {
        let mut hold = held();
        hold.open_door().unwrap();
        for _ in 0..3 {
            drop(TcpListener::bind((Ipv4Addr::LOCALHOST, PORT)).unwrap());
        }
        hold.shut_door().unwrap();
        assert!(TcpListener::bind((Ipv4Addr::LOCALHOST, PORT)).is_err());
        hold.open_door().unwrap();
        assert!(
            TcpListener::bind((Ipv4Addr::LOCALHOST, PORT)).is_ok(),
            "again"
        );
    });
}

#[test]
fn udp_is_free_while_the_door_is_open_and_held_again_after() {
    in_network_namespace(|| {
        let mut other = Worker::spawn();
        let udp = || every_binding().filter(|binding| binding.kind == Kind::Udp);
        let mut hold = held();
        hold.open_door().unwrap();
        for binding in udp() {
            assert_eq!(other.bind(PORT, binding), Ok(()), "{binding}");
            other.unbind();
        }
        hold.shut_door().unwrap();
        assert_eq!(hold.descriptors().count(), 2);
        for binding in udp() {
            assert_eq!(other.bind(PORT, binding), in_use(), "{binding}");
        }

        // A server that has come in by UDP keeps the port.
        hold.open_door().unwrap();
        let server = Binding::udp(Local::LOOPBACK_V4, Options::None);
        assert_eq!(other.bind(PORT, server), Ok(()));
        hold.shut_door().unwrap();
        assert_eq!(hold.descriptors().count(), 1);
    });
}

#[test]
fn a_hold_of_tcp_only_does_not_touch_udp_at_its_door() {
    in_network_namespace(|| {
        let mut hold = among("20000").only(Kind::Tcp).hold().unwrap();
        hold.open_door().unwrap();
        hold.shut_door().unwrap();
        assert_eq!(hold.descriptors().count(), 1);
        let udp = Binding::udp(Local::DUAL, Options::None);
        assert!(udp.bind(PORT).is_ok());
    });
}

/// An open door lets servers in who ask for the port, and never the kernel's own choice.
#[test]
fn the_kernel_gives_a_port_with_an_open_door_to_nobody() {
    in_network_namespace(|| {
        set_ephemeral_range(PORT..=PORT + 9);
        let mut holds = among("20000-20008").holds(9).unwrap();
        for hold in &mut holds {
            hold.open_door().unwrap();
        }
        let held: BTreeSet<_> = holds.iter().map(Hold::port).collect();
        for local in Local::EVERY.into_iter().filter(|local| is_probed(*local)) {
            for options in Options::ALL {
                let binding = Binding::tcp(local, options);
                let given: Vec<_> = (0..20).map_while(|_| binding.bind(0).ok()).collect();
                assert!(!given.is_empty(), "{binding}: one is left");
                for port in given.iter().map(port_of) {
                    assert!(!held.contains(&port), "{binding}");
                }
            }
        }
    });
}
