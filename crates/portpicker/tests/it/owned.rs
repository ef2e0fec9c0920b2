//! A process's own ports: returned, reserved, free.

use std::collections::HashSet;

use portpicker::{
    Error, Family, Kind, Picker, Server, add_reserved_port, find_unused_port, is_leased_here,
    is_port_free, pick_unused_port, pick_unused_ports, return_port,
};
use portpicker_testing::network::{OTHER_V4, OTHER_V6};
use portpicker_testing::{
    Act, Binding, FakeServer, Local, Options, OwnProcess, Worker, in_network_namespace,
};

use crate::{among, set};

/// Returns a process that may pick these ports and no others.
fn with_candidates(ports: &str) -> OwnProcess {
    OwnProcess::new()
        .env("PORTPICKER_PORTS", ports)
        .network_namespace()
}

#[test]
fn returned_ports_are_picked_first_in_the_order_of_their_return() {
    in_network_namespace(|| {
        let ports = pick_unused_ports(5).unwrap();
        for index in [3, 0, 4] {
            assert!(return_port(ports[index]));
        }
        assert_eq!(pick_unused_port().unwrap(), ports[3]);
        assert_eq!(pick_unused_ports(2).unwrap(), [ports[0], ports[4]]);
        assert!(!ports.contains(&pick_unused_port().unwrap()));
    });
}

#[test]
fn a_port_is_returned_only_once_and_only_if_it_was_picked() {
    in_network_namespace(|| {
        let port = pick_unused_port().unwrap();
        assert!(return_port(port));
        assert!(!return_port(port), "returned already");
        assert_eq!(pick_unused_port().unwrap(), port);
        assert!(return_port(port), "picked again");

        let lease = among("20000").lease().unwrap();
        for stranger in [0, 1, lease.port(), 65_535] {
            assert!(!return_port(stranger), "{stranger}");
        }
        assert!(among("20000").lease().is_err(), "the lease goes on");
    });
}

#[test]
fn a_returned_port_may_be_leased_by_another_process() {
    with_candidates("20000").run(|| {
        let mut other = Worker::spawn();
        assert_eq!(pick_unused_port().unwrap(), 20_000);
        assert!(other.lease(&set("20000"), 1).is_err());
        assert!(return_port(20_000));
        assert_eq!(other.lease(&set("20000"), 1), Ok(vec![20_000]));

        let err = pick_unused_port().unwrap_err();
        assert!(matches!(err, Error::Exhausted(_)), "{err:?}");
        other.release();
        assert_eq!(pick_unused_port().unwrap(), 20_000);
    });
}

#[test]
fn a_returned_port_that_is_in_use_is_not_offered() {
    with_candidates("20000-20001").run(|| {
        let port = pick_unused_port().unwrap();
        let server = Binding::listening(Local::DUAL, Options::ReuseAddress)
            .bind(port)
            .unwrap();
        assert!(return_port(port));
        assert_ne!(pick_unused_port().unwrap(), port);
        assert!(pick_unused_port().is_err());
        drop(server);
        assert_eq!(pick_unused_port().unwrap(), port);
    });
}

#[test]
fn a_reserved_port_is_picked_next_and_stays() {
    with_candidates("20000-20099").run(|| {
        add_reserved_port(30_000);
        add_reserved_port(30_001);
        assert_eq!(pick_unused_port().unwrap(), 30_000);
        assert_eq!(pick_unused_ports(2).unwrap()[0], 30_001);
        assert!(pick_unused_port().unwrap() < 30_000);
        assert!(return_port(30_000));
        assert_eq!(pick_unused_port().unwrap(), 30_000);
    });
}

/// The shell that has run `portpicker $$` gives its port to its children.
#[test]
fn a_reserved_port_may_be_leased_to_somebody_else() {
    in_network_namespace(|| {
        let mut shell = Worker::spawn();
        assert_eq!(shell.lease(&set("20000"), 1), Ok(vec![20_000]));
        add_reserved_port(20_000);
        assert_eq!(pick_unused_port().unwrap(), 20_000);
        assert!(is_port_free(20_000).unwrap(), "it is ours");
        assert!(return_port(20_000));
        assert_eq!(pick_unused_port().unwrap(), 20_000);
    });
}

#[test]
fn a_reserved_port_is_not_offered_while_it_is_in_use() {
    with_candidates("20000-20099").run(|| {
        let server = Binding::udp(Local::LOOPBACK_V4, Options::ReuseAddress)
            .bind(30_000)
            .unwrap();
        add_reserved_port(30_000);
        for _ in 0..3 {
            assert!(pick_unused_port().unwrap() < 30_000);
        }
        drop(server);
        assert_eq!(pick_unused_port().unwrap(), 30_000, "it was not forgotten");
    });
}

#[test]
fn a_port_is_not_reserved_twice_nor_if_it_was_picked() {
    with_candidates("20000-20001").run(|| {
        add_reserved_port(0);
        add_reserved_port(30_000);
        add_reserved_port(30_000);
        assert_eq!(pick_unused_port().unwrap(), 30_000);
        add_reserved_port(30_000);
        let port = pick_unused_port().unwrap();
        add_reserved_port(port);
        let other = pick_unused_port().unwrap();
        assert_eq!(
            HashSet::from([port, other]),
            HashSet::from([20_000, 20_001])
        );
        assert!(pick_unused_port().is_err());
    });
}

#[test]
fn several_ports_are_picked_all_or_none() {
    with_candidates("20000-20003").run(|| {
        add_reserved_port(30_000);
        let err = pick_unused_ports(6).unwrap_err();
        assert!(matches!(err, Error::TooFewCandidates { .. }), "{err:?}");
        let occupied = Binding::udp(Local::ALL_V4, Options::None).bind(20_000);
        let err = pick_unused_ports(5).unwrap_err();
        assert!(matches!(err, Error::Exhausted(_)), "{err:?}");

        // Nothing was kept: neither here nor from others.
        assert!(!return_port(20_001) && !return_port(30_000));
        let ports = set("20001-20003");
        assert_eq!(
            Worker::spawn().lease(&ports, 3).map(|ports| ports.len()),
            Ok(3)
        );
        let picked = pick_unused_ports(4).unwrap();
        assert_eq!(picked[0], 30_000, "still on offer");
        drop(occupied);
    });
}

#[test]
fn no_ports_wanted_is_no_error() {
    with_candidates("20000").run(|| {
        assert!(pick_unused_ports(0).unwrap().is_empty());
        assert_eq!(pick_unused_port().unwrap(), 20_000);
    });
}

#[test]
fn a_port_that_this_process_picked_is_free_until_it_is_bound() {
    in_network_namespace(|| {
        let port = pick_unused_port().unwrap();
        assert!(is_port_free(port).unwrap());
        for binding in crate::every_binding() {
            let socket = binding.bind(port).unwrap();
            assert!(!is_port_free(port).unwrap(), "{binding}");
            drop(socket);
            assert!(is_port_free(port).unwrap(), "{binding}");
        }
    });
}

#[test]
fn a_port_whose_lease_this_process_has_is_free() {
    in_network_namespace(|| {
        let lease = among("20000").lease().unwrap();
        assert!(is_port_free(lease.port()).unwrap());
    });
}

#[test]
fn a_port_is_leased_here_from_the_lease_to_its_end() {
    in_network_namespace(|| {
        assert!(!is_leased_here(20_000));
        let lease = among("20000").lease().unwrap();
        assert!(is_leased_here(20_000));
        drop(lease);
        assert!(!is_leased_here(20_000));

        let mut other = Worker::spawn();
        assert_eq!(other.lease(&set("20000"), 1), Ok(vec![20_000]));
        assert!(!is_leased_here(20_000), "another's lease");

        let server = FakeServer::start(vec![Act::answer("20001\n")]);
        let picker = Picker::new().server(Server::At(server.address()));
        let lease = picker.lease().unwrap();
        assert!(is_leased_here(lease.port()), "a server's");
        assert!(is_port_free(lease.port()).unwrap());
    });
}

#[test]
fn a_port_that_is_leased_or_held_is_not_free() {
    in_network_namespace(|| {
        let mut other = Worker::spawn();
        assert!(is_port_free(20_000).unwrap());
        assert_eq!(other.lease(&set("20000"), 1), Ok(vec![20_000]));
        assert!(!is_port_free(20_000).unwrap(), "another's lease");
        other.release();
        assert!(is_port_free(20_000).unwrap());

        let hold = among("20000").hold().unwrap();
        assert!(!is_port_free(20_000).unwrap(), "our own hold");
        drop(hold);
        assert!(is_port_free(20_000).unwrap());
        assert!(!is_port_free(0).unwrap(), "port 0 does not exist");
    });
}

/// Callers look for runs of neighbouring free ports with it.
#[test]
fn asking_whether_a_port_is_free_leaves_nothing_behind() {
    in_network_namespace(|| {
        let mut other = Worker::spawn();
        for port in 20_000..20_200 {
            assert!(is_port_free(port).unwrap());
        }
        let ports = set("20000-20199");
        assert_eq!(other.lease(&ports, 200).map(|ports| ports.len()), Ok(200));
    });
}

#[test]
fn find_unused_port_looks_at_one_family_and_transport() {
    with_candidates("20000").run(|| {
        let find = |family, kind| match find_unused_port(family, kind) {
            Ok(port) => {
                assert_eq!(port, 20_000);
                assert!(return_port(port), "it was this process's");
                true
            }
            Err(Error::Exhausted(_)) => false,
            Err(err) => panic!("{family:?} {kind:?}: {err:?}"),
        };
        let all = || {
            [Family::Ipv4, Family::Ipv6]
                .map(|family| [Kind::Tcp, Kind::Udp].map(|kind| find(family, kind)))
        };
        assert_eq!(all(), [[true, true], [true, true]]);
        let (v4, v6) = (Some(Family::Ipv4), Some(Family::Ipv6));
        for (local, families) in [
            (Local::LOOPBACK_V4, [v4, None]),
            (Local::ALL_V4, [v4, None]),
            (Local::LOOPBACK_V6, [None, v6]),
            (Local::ALL_V6, [None, v6]),
            (Local::DUAL, [v4, v6]),
        ] {
            let is_free = families.map(|family| family.is_none());
            let tcp = Binding::listening(local, Options::None)
                .bind(20_000)
                .unwrap();
            assert_eq!(all(), is_free.map(|free| [free, true]), "TCP on {local}");
            drop(tcp);
            let udp = Binding::udp(local, Options::None).bind(20_000).unwrap();
            assert_eq!(all(), is_free.map(|free| [true, free]), "UDP on {local}");
            drop(udp);
        }
    });
}

#[test]
fn a_port_for_one_family_is_leased_like_any_other() {
    with_candidates("20000").run(|| {
        find_unused_port(Family::Ipv4, Kind::Tcp).unwrap();
        assert!(find_unused_port(Family::Ipv6, Kind::Udp).is_err());
        assert!(pick_unused_port().is_err());
        assert!(Worker::spawn().lease(&set("20000"), 1).is_err());
    });
}

#[test]
fn picks_are_above_10000_and_can_be_bound_everywhere() {
    in_network_namespace(|| {
        for _ in 0..20 {
            let port = pick_unused_port().unwrap();
            assert!(port > 10_000);
            for local in Local::EVERY {
                assert!(Binding::listening(local, Options::None).bind(port).is_ok());
                assert!(Binding::udp(local, Options::None).bind(port).is_ok());
            }
        }
        // Both families' other addresses are really there.
        for address in [OTHER_V4, OTHER_V6] {
            assert!(Picker::new().address(address).lease().is_ok());
        }
    });
}

#[test]
fn a_returned_port_that_somebody_else_has_leased_since_is_not_free() {
    with_candidates("20000").run(|| {
        let port = pick_unused_port().unwrap();
        assert!(return_port(port));
        assert!(is_port_free(port).unwrap());
        let mut other = Worker::spawn();
        assert_eq!(other.lease(&set("20000"), 1), Ok(vec![port]));
        assert!(!is_port_free(port).unwrap());
    });
}
