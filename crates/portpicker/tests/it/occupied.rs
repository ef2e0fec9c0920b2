//! Which ports count as in use?

use std::net::{Ipv4Addr, TcpListener, TcpStream};

use portpicker::{Error, Picker, is_port_free};
use portpicker_testing::network::{self, OTHER_V4, set_ephemeral_range};
use portpicker_testing::sockets::{is_in_time_wait, leave_in_time_wait};
use portpicker_testing::{Binding, Local, Options, in_network_namespace};

use crate::{among, every_binding};

const PORT: u16 = 20_000;

/// Asserts that no question about [`PORT`] finds it unused, and that each does once `holder` is
/// gone.
fn assert_occupies<T>(holder: T, what: impl std::fmt::Display) {
    let only = || among(&PORT.to_string());
    let is_free = || is_port_free(PORT).expect("the system answers");
    assert!(!is_free(), "{what}");
    for err in [only().lease().err(), only().hold().err()] {
        match err {
            Some(Error::Exhausted(tally)) => assert_eq!(tally.occupied, 1, "{what}"),
            other => panic!("{what}: {other:?}"),
        }
    }
    drop(holder);
    assert!(is_free(), "{what} was the only one");
    drop(only().lease().expect("it is unused now"));
}

#[test]
fn every_holder_makes_the_port_occupied() {
    in_network_namespace(|| {
        for binding in every_binding() {
            assert_occupies(binding.bind(PORT).unwrap(), binding);
        }
    });
}

#[test]
fn a_live_udp_server_that_sets_reuse_address_occupies_its_port() {
    in_network_namespace(|| {
        let server = Binding::udp(Local::LOOPBACK_V4, Options::ReuseAddress);
        assert_occupies(server.bind(PORT).unwrap(), server);
    });
}

#[test]
fn somebody_who_holds_a_port_without_listening_occupies_it() {
    in_network_namespace(|| {
        for options in Options::ALL {
            let holder = Binding::tcp(Local::LOOPBACK_V4, options);
            assert_occupies(holder.bind(PORT).unwrap(), holder);
        }
    });
}

#[test]
fn an_outgoing_connection_occupies_its_local_port() {
    in_network_namespace(|| {
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 10_000)).unwrap();
        set_ephemeral_range(PORT..=PORT);
        let connection = TcpStream::connect(server.local_addr().unwrap()).unwrap();
        assert_eq!(connection.local_addr().unwrap().port(), PORT);
        // The server closes its end later than the client, so the client's port would be left in
        // TIME-WAIT: it is reset instead.
        let connection = socket2::Socket::from(connection);
        connection
            .set_linger(Some(std::time::Duration::ZERO))
            .unwrap();
        assert_occupies(connection, "an outgoing connection");
    });
}

#[test]
fn a_socket_on_a_single_other_address_occupies_its_port() {
    in_network_namespace(|| {
        let other = Local {
            address: OTHER_V4,
            dual: false,
        };
        for holder in [
            Binding::listening(other, Options::None),
            Binding::udp(other, Options::None),
        ] {
            assert_occupies(holder.bind(PORT).unwrap(), holder);
        }
    });
}

#[test]
fn a_socket_on_ipv6_only_occupies_its_port() {
    if cfg!(portpicker_force = "ipv4") {
        return;
    }
    in_network_namespace(|| {
        for local in [Local::LOOPBACK_V6, Local::ALL_V6] {
            for holder in [
                Binding::listening(local, Options::None),
                Binding::udp(local, Options::None),
            ] {
                assert_occupies(holder.bind(PORT).unwrap(), holder);
            }
        }
    });
}

#[test]
fn everything_works_with_ipv6_off() {
    in_network_namespace(|| {
        network::disable_ipv6();
        assert!(!network::has_ipv6());
        for binding in every_binding().filter(|binding| binding.local.address.is_ipv4()) {
            assert_occupies(binding.bind(PORT).unwrap(), binding);
        }
        let hold = among("20000").hold().unwrap();
        for binding in every_binding().filter(|binding| binding.local.address.is_ipv4()) {
            assert!(binding.bind(PORT).is_err(), "{binding}");
        }
        drop(hold);
        assert!(portpicker::pick_unused_port().unwrap() > 10_000);
    });
}

#[test]
fn a_port_in_time_wait_is_leased_when_nothing_else_is_left() {
    in_network_namespace(|| {
        leave_in_time_wait(PORT, Options::ReuseAddress);
        let picker = among("20000-20001");
        for _ in 0..20 {
            assert_eq!(picker.lease().unwrap().port(), PORT + 1, "the better one");
        }
        let _better = picker.lease().unwrap();
        let last = picker.lease().unwrap();
        assert_eq!(last.port(), PORT);
        assert!(is_in_time_wait(PORT), "or this shows nothing");
        // As most servers do, std sets SO_REUSEADDR.
        TcpListener::bind((Ipv4Addr::LOCALHOST, PORT)).unwrap();
        drop(last);
        assert!(!is_port_free(PORT).unwrap());
    });
}

#[test]
fn a_port_in_time_wait_is_never_held() {
    in_network_namespace(|| {
        leave_in_time_wait(PORT, Options::ReuseAddress);
        let err = among("20000").hold().unwrap_err();
        assert!(matches!(err, Error::Exhausted(_)), "{err:?}");
        assert!(is_in_time_wait(PORT), "or this shows nothing");
    });
}

#[test]
fn a_port_in_time_wait_that_no_server_can_bind_is_never_leased() {
    in_network_namespace(|| {
        leave_in_time_wait(PORT, Options::None);
        let err = among("20000").lease().unwrap_err();
        assert!(matches!(err, Error::Exhausted(_)), "{err:?}");
        assert!(is_in_time_wait(PORT), "or this shows nothing");
    });
}

/// The second pass does not take for TIME-WAIT what its laxer probe would let through.
#[test]
fn a_held_port_stays_occupied_beside_one_in_time_wait() {
    in_network_namespace(|| {
        leave_in_time_wait(PORT, Options::ReuseAddress);
        let _held = Binding::tcp(Local::ALL_V4, Options::ReuseAddress)
            .bind(PORT + 1)
            .unwrap();
        let picker = among("20000-20001");
        assert_eq!(picker.lease().unwrap().port(), PORT);
        let _leased = picker.lease().unwrap();
        let err = picker.lease().unwrap_err();
        assert!(matches!(err, Error::Exhausted(_)), "{err:?}");
    });
}

#[test]
fn a_live_connection_occupies_its_port_beside_one_in_time_wait() {
    in_network_namespace(|| {
        leave_in_time_wait(PORT, Options::ReuseAddress);
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, PORT)).unwrap();
        let _client = TcpStream::connect((Ipv4Addr::LOCALHOST, PORT)).unwrap();
        let _connection = server.accept().unwrap();
        drop(server);
        let err = among("20000").lease().unwrap_err();
        assert!(matches!(err, Error::Exhausted(_)), "{err:?}");
        assert!(is_in_time_wait(PORT), "or this shows nothing");
    });
}

#[test]
fn a_port_that_was_probed_is_unused_at_once() {
    in_network_namespace(|| {
        for binding in Binding::every() {
            assert!(is_port_free(PORT).unwrap());
            drop(Picker::new().prefer([PORT]).lease().unwrap());
            drop(Picker::new().prefer([PORT]).hold().unwrap());
            assert!(binding.bind(PORT).is_ok(), "{binding}");
        }
    });
}
