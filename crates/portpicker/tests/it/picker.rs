//! Does each option of a picker mean what it says?

use std::collections::{BTreeSet, HashSet};
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use portpicker::process::Pid;
use portpicker::{Error, Hold, Kind, Lease, Picker, Server};
use portpicker_testing::network::{OTHER_V4, OTHER_V6};
use portpicker_testing::{
    Act, Binding, FakeServer, Local, Options, OwnProcess, in_network_namespace,
};
use socket2::Socket;

use crate::{among, is_probed, set};

fn ports<'a>(leases: impl IntoIterator<Item = &'a Lease>) -> Vec<u16> {
    leases.into_iter().map(Lease::port).collect()
}

fn occupy(ports: impl IntoIterator<Item = u16>) -> Vec<Socket> {
    ports
        .into_iter()
        .map(|port| {
            let binding = Binding::udp(Local::ALL_V4, Options::ReuseAddress);
            binding.bind(port).expect("the port is unused")
        })
        .collect()
}

#[test]
fn every_port_of_the_set_is_reached_and_no_other() {
    in_network_namespace(|| {
        for text in ["20000", "20000-20001", "20000-20009,20020,65535", "1-3"] {
            let wanted: BTreeSet<u16> = set(text).iter().collect();
            let leases = among(text).leases(wanted.len()).unwrap();
            let got: BTreeSet<u16> = ports(&leases).into_iter().collect();
            assert_eq!(got, wanted);
            assert!(among(text).lease().is_err());
        }
    });
}

#[test]
fn excluded_ports_are_not_picked() {
    in_network_namespace(|| {
        let picker = among("20000-20009")
            .exclude(set("20000-20004"))
            .exclude(set("20006-30000"));
        assert_eq!(ports(&picker.leases(1).unwrap()), [20_005]);
        match picker.leases(2) {
            Err(Error::TooFewCandidates {
                wanted: 2,
                candidates: 1,
            }) => {}
            other => panic!("{other:?}"),
        }
        match among("20000").exclude(set("1-65535")).lease() {
            Err(Error::TooFewCandidates {
                wanted: 1,
                candidates: 0,
            }) => {}
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn preferred_ports_are_picked_first_in_their_order() {
    in_network_namespace(|| {
        // Some of them outside of the set, one twice, and one that is no port.
        let picker = among("20000-20009").prefer([30_000, 20_007, 0, 20_007, 5, 20_002]);
        let leases = picker.leases(13 - 1).unwrap();
        assert_eq!(ports(&leases[..4]), [30_000, 20_007, 5, 20_002]);
        let rest: HashSet<u16> = ports(&leases[4..]).into_iter().collect();
        assert_eq!(rest.len(), 8);
        assert!(rest.iter().all(|port| (20_000..20_010).contains(port)));
        match picker.lease() {
            Err(Error::Exhausted(tally)) => {
                assert_eq!((tally.candidates, tally.leased), (12, 12));
            }
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn a_preferred_port_that_is_excluded_or_in_use_is_passed_over() {
    in_network_namespace(|| {
        let _occupied = occupy([20_001]);
        let picker = among("20000-20009")
            .prefer([20_001])
            .prefer([20_002])
            .prefer([20_003])
            .exclude(set("20002"));
        assert_eq!(picker.lease().unwrap().port(), 20_003);
    });
}

/// Who listens is seen without a lock and a probe: that may change the order, and nothing else.
#[test]
fn the_only_unused_port_is_found_in_a_crowd() {
    in_network_namespace(|| {
        let listening = |local| Binding::listening(local, Options::None);
        let crowds = [
            vec![listening(Local::DUAL)],
            vec![listening(Local::LOOPBACK_V4)],
            vec![listening(Local::LOOPBACK_V6)],
            vec![Binding::tcp(Local::DUAL, Options::None)],
            vec![
                listening(Local::ALL_V4),
                Binding::udp(Local::DUAL, Options::None),
                listening(Local::LOOPBACK_V4),
            ],
        ];
        // Others for each: what was found in use a moment ago is not asked about.
        for (crowd, first) in crowds.iter().zip((20_000..).step_by(1000)) {
            if !crowd.iter().all(|binding| is_probed(binding.local)) {
                continue;
            }
            let unused = first + 70;
            let range = format!("{first}-{}", first + 99);
            let _strangers: Vec<Socket> = (first..first + 100)
                .filter(|&port| port != unused)
                .zip(crowd.iter().cycle())
                .map(|(port, binding)| binding.bind(port).expect("the port is unused"))
                .collect();
            assert_eq!(among(&range).hold().unwrap().port(), unused, "{crowd:?}");
            let lease = among(&range).lease().unwrap();
            assert_eq!(lease.port(), unused, "{crowd:?}");
            match among(&range).leases(2) {
                Err(Error::Exhausted(tally)) => {
                    assert_eq!((tally.leased, tally.occupied), (1, 99), "{crowd:?}");
                }
                other => panic!("{other:?}"),
            }
        }
    });
}

/// A lease counts as one, also where its owner listens already.
#[test]
fn a_server_of_our_own_is_leased_and_no_stranger() {
    in_network_namespace(|| {
        let _strangers = occupy(20_000..20_010);
        let leases = among("20010-20019").leases(10).unwrap();
        let _servers: Vec<Socket> = ports(&leases)
            .into_iter()
            .map(|port| {
                let binding = Binding::listening(Local::DUAL, Options::None);
                binding.bind(port).expect("it is leased to us")
            })
            .collect();
        match among("20000-20019").lease() {
            Err(Error::Exhausted(tally)) => assert_eq!((tally.leased, tally.occupied), (10, 10)),
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn a_preferred_port_is_enough_where_nothing_else_is_allowed() {
    in_network_namespace(|| {
        let picker = among("20000-20009")
            .prefer([30_000])
            .exclude(set("20000-20009"));
        assert_eq!(picker.lease().unwrap().port(), 30_000);
    });
}

#[test]
fn a_block_has_neighbours_in_ascending_order() {
    in_network_namespace(|| {
        for count in 1..=10 {
            let block = ports(&among("20000-20009").lease_block(count).unwrap());
            assert_eq!(block.len(), count);
            assert!(block.windows(2).all(|pair| pair[0] + 1 == pair[1]));
            assert!(block[0] >= 20_000 && block[count - 1] <= 20_009);
        }
        let block = among("20000-20009").hold_block(10).unwrap();
        let held: Vec<_> = block.iter().map(Hold::port).collect();
        assert_eq!(held, (20_000..20_010).collect::<Vec<_>>());
    });
}

#[test]
fn a_block_is_found_in_the_only_gap_and_not_across_gaps() {
    in_network_namespace(|| {
        // Free are 20001, 20003, 20005-20007, 20009: one gap of three.
        let _occupied = occupy([20_000, 20_002, 20_004, 20_008]);
        let picker = among("20000-20009");
        for _ in 0..20 {
            let block = picker.lease_block(3).unwrap();
            assert_eq!(ports(&block), [20_005, 20_006, 20_007]);
        }
        match picker.lease_block(4) {
            Err(Error::Exhausted(tally)) => {
                assert!(tally.contiguous);
                assert_eq!((tally.wanted, tally.candidates), (4, 10));
                assert_eq!(tally.leased, 0);
                assert!(tally.occupied <= 4, "{tally:?}");
            }
            other => panic!("{other:?}"),
        }
        // Nothing of the failed attempts is left.
        assert_eq!(picker.leases(6).unwrap().len(), 6);
    });
}

#[test]
fn a_block_does_not_cross_the_gaps_of_a_set() {
    in_network_namespace(|| {
        let picker = among("20000-20001,20003-20005,20007");
        for _ in 0..20 {
            let block = picker.lease_block(3).unwrap();
            assert_eq!(ports(&block), [20_003, 20_004, 20_005]);
        }
        assert!(matches!(picker.lease_block(4), Err(Error::Exhausted(_))));
        let err = picker.lease_block(7).unwrap_err();
        assert!(matches!(err, Error::TooFewCandidates { .. }), "{err:?}");
    });
}

#[test]
fn a_preferred_port_is_the_first_of_a_block() {
    in_network_namespace(|| {
        let _occupied = occupy([20_004]);
        let picker = among("20000-20019").prefer([20_003, 20_010]);
        assert_eq!(
            ports(&picker.lease_block(3).unwrap()),
            [20_010, 20_011, 20_012],
            "20004 is in use"
        );
        let block = among("20000-20019").prefer([20_018]).lease_block(3);
        assert_eq!(ports(&block.unwrap()), [20_018, 20_019, 20_020]);
        let block = among("20000-20009").prefer([65_535]).lease_block(2);
        assert!(ports(&block.unwrap())[0] < 20_010, "there is no port 65536");
    });
}

#[test]
fn a_block_at_a_preferred_port_outside_of_the_set_is_found_in_a_small_set_too() {
    in_network_namespace(|| {
        let block = among("20000").prefer([30_000]).lease_block(3).unwrap();
        assert_eq!(ports(&block), [30_000, 30_001, 30_002]);
    });
}

#[test]
fn a_pick_for_one_transport_ignores_the_other() {
    in_network_namespace(|| {
        for (kind, other) in [(Kind::Tcp, Kind::Udp), (Kind::Udp, Kind::Tcp)] {
            let bind = |kind| {
                let binding = Binding {
                    kind,
                    ..Binding::tcp(Local::DUAL, Options::None)
                };
                binding.bind(20_000)
            };
            let picker = among("20000").only(kind);
            let hold = {
                let _other = bind(other).unwrap();
                assert_eq!(picker.lease().unwrap().port(), 20_000);
                picker.hold().unwrap()
            };
            assert!(bind(other).is_ok(), "only {kind:?} is held");
            assert!(bind(kind).is_err(), "{kind:?} is held");
            assert_eq!(hold.descriptors().count(), 1);
            drop(hold);
            let _same = bind(kind).unwrap();
            assert!(picker.lease().is_err());
        }
    });
}

#[test]
fn a_pick_for_one_address_ignores_the_others() {
    in_network_namespace(|| {
        let loopback: IpAddr = Ipv4Addr::LOCALHOST.into();
        let all_v4: IpAddr = Ipv4Addr::UNSPECIFIED.into();
        let all_v6: IpAddr = Ipv6Addr::UNSPECIFIED.into();
        let other = |address| Local {
            address,
            dual: false,
        };
        // The pick's address, somebody else's, and whether they meet.
        let cases = [
            (loopback, Local::LOOPBACK_V4, true),
            (loopback, other(OTHER_V4), false),
            (loopback, Local::ALL_V4, true),
            (loopback, Local::ALL_V6, false),
            (loopback, Local::DUAL, true),
            (OTHER_V4, Local::LOOPBACK_V4, false),
            (OTHER_V6, other(OTHER_V6), true),
            (OTHER_V6, Local::LOOPBACK_V6, false),
            (all_v4, other(OTHER_V4), true),
            (all_v4, Local::LOOPBACK_V6, false),
            (all_v6, Local::LOOPBACK_V6, true),
            (all_v6, Local::ALL_V4, false),
            (all_v6, Local::DUAL, true),
        ];
        for (address, local, meets) in cases {
            let picker = among("20000").address(address);
            for somebody in [
                Binding::tcp(local, Options::None),
                Binding::listening(local, Options::ReuseAddress),
                Binding::udp(local, Options::ReuseAddress),
            ] {
                let socket = somebody.bind(20_000).unwrap();
                assert_eq!(picker.lease().is_err(), meets, "{address}, {somebody}");
                drop(socket);
                let hold = picker.hold().unwrap();
                assert_eq!(
                    somebody.bind(20_000).is_err(),
                    meets,
                    "{address}, {somebody}"
                );
                drop(hold);
            }
        }
    });
}

#[test]
fn a_pick_for_an_address_of_another_host_is_an_error() {
    in_network_namespace(|| {
        let address: IpAddr = "192.0.2.1".parse().unwrap();
        match among("20000").address(address).lease() {
            Err(Error::Socket {
                call: "bind",
                address: reported,
                source,
            }) => {
                assert_eq!(reported, address);
                assert_eq!(source.kind(), ErrorKind::AddrNotAvailable);
            }
            other => panic!("{other:?}"),
        }
        assert!(among("20000").lease().is_ok(), "nothing is left locked");
    });
}

#[test]
fn no_ports_wanted_is_no_error() {
    in_network_namespace(|| {
        let picker = among("20000").exclude(set("20000"));
        assert!(picker.leases(0).unwrap().is_empty());
        assert!(picker.holds(0).unwrap().is_empty());
        assert!(picker.lease_block(0).unwrap().is_empty());
    });
}

/// The server tells that the first attempt is over: it is asked once in each.
#[test]
fn a_port_that_becomes_free_while_waiting_is_found() {
    OwnProcess::new()
        .env("PORTPICKER_PORTS", "20000")
        .env("PORTSERVER_ADDRESS", "@waited-for")
        .network_namespace()
        .run(|| {
            let mut occupied = Some(occupy([20_000]));
            let release = Act::Do(Box::new(move || drop(occupied.take())));
            let server = FakeServer::start_as(
                "waited-for",
                vec![
                    Act::answer(""),
                    Act::answer("0\n"),
                    vec![Act::Read, release],
                ],
            );
            let picker = Picker::new().wait(Duration::from_secs(60));
            assert_eq!(picker.lease().unwrap().port(), 20_000);
            assert_eq!(server.requests().len(), 3);
        });
}

#[test]
fn a_refusal_of_the_server_is_waited_out_too() {
    in_network_namespace(|| {
        let server = FakeServer::start(vec![
            Act::answer(""),
            Act::answer("0\n"),
            Act::answer("20000\n"),
        ]);
        let picker = Picker::new().server(Server::At(server.address()));
        let lease = picker.clone().wait(Duration::from_secs(60)).lease();
        assert_eq!(lease.unwrap().port(), 20_000);
        let err = picker.wait(Duration::from_millis(20)).lease().unwrap_err();
        assert!(matches!(err, Error::Refused { .. }), "{err:?}");
    });
}

#[test]
fn waiting_ends_at_the_deadline() {
    in_network_namespace(|| {
        let _occupied = occupy([20_000]);
        let limit = Duration::from_millis(100);
        let begin = Instant::now();
        let err = among("20000").wait(limit).lease().unwrap_err();
        assert!(begin.elapsed() >= limit);
        assert!(matches!(err, Error::Exhausted(_)), "{err:?}");
    });
}

#[test]
fn waiting_ends_when_another_thread_says_so() {
    in_network_namespace(|| {
        let _occupied = occupy([20_000]);
        let stop = Arc::new(AtomicBool::new(false));
        let picker = among("20000")
            .wait(Duration::MAX)
            .stop_waiting_if(Arc::clone(&stop));
        thread::scope(|scope| {
            // If it were not told, the test would not end.
            let waiting = scope.spawn(|| picker.lease().unwrap_err());
            stop.store(true, Ordering::Relaxed);
            let err = waiting.join().unwrap();
            assert!(matches!(err, Error::Exhausted(_)), "{err:?}");
        });
    });
}

#[test]
fn what_waiting_cannot_help_is_an_error_at_once() {
    in_network_namespace(|| {
        // If it waited, the test would not end in time.
        let hour = Duration::from_secs(3600);
        let err = among("20000").wait(hour).leases(2).unwrap_err();
        assert!(matches!(err, Error::TooFewCandidates { .. }), "{err:?}");
        let strange = "192.0.2.1".parse().unwrap();
        let err = among("20000").wait(hour).address(strange).lease();
        assert!(matches!(err, Err(Error::Socket { .. })), "{err:?}");
        let err = Picker::new().wait(hour).owner(Pid::INIT).lease();
        assert!(
            matches!(err, Err(Error::OwnerNeedsServer { .. })),
            "{err:?}"
        );
    });
}

#[test]
fn an_endless_wait_is_possible() {
    in_network_namespace(|| {
        assert!(among("20000").wait(Duration::MAX).lease().is_ok());
    });
}

#[test]
fn this_process_may_be_named_as_the_owner() {
    in_network_namespace(|| {
        let picker = among("20000").owner(Pid::current());
        assert_eq!(picker.lease().unwrap().port(), 20_000);
    });
}

#[test]
fn leases_and_holds_print_their_port() {
    in_network_namespace(|| {
        assert_eq!(among("20000").lease().unwrap().to_string(), "20000");
        assert_eq!(among("20000").hold().unwrap().to_string(), "20000");
        assert_eq!(format!("{:>6}", among("20000").hold().unwrap()), " 20000");
    });
}
