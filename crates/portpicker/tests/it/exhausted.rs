//! Out of ports or descriptors: a clear error, and nothing leaked?

use std::error::Error as _;
use std::io;

use portpicker::{Error, Kind, Picker, is_port_free, pick_unused_port};
use portpicker_testing::sockets::{is_in_time_wait, leave_in_time_wait};
use portpicker_testing::{
    Binding, Descriptors, Local, Options, OwnProcess, Worker, in_network_namespace, network, skip,
};
use rustix::io::Errno;
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

use crate::{among, set};

fn is_out_of_descriptors(err: &io::Error) -> bool {
    Errno::from_io_error(err) == Some(Errno::MFILE)
}

#[test]
fn the_error_counts_how_the_candidates_fared() {
    in_network_namespace(|| {
        let mut other = Worker::spawn();
        assert_eq!(other.lease(&set("20000-20002"), 3).unwrap().len(), 3);
        let _own = among("20003").lease().unwrap();
        let _occupied = [
            Binding::listening(Local::LOOPBACK_V4, Options::None).bind(20_004),
            Binding::udp(Local::ALL_V4, Options::ReuseAddress).bind(20_005),
        ];
        for (count, result) in [
            (5, among("20000-20009").leases(5).err()),
            (5, among("20000-20009").holds(5).err()),
            (10, among("20000-20009").leases(10).err()),
        ] {
            let Some(err @ Error::Exhausted(tally)) = result else {
                panic!("{result:?}")
            };
            assert_eq!((tally.wanted, tally.candidates), (count, 10));
            assert_eq!((tally.leased, tally.occupied, tally.forbidden), (4, 2, 0));
            assert!(!tally.contiguous);
            let message = err.to_string();
            assert_eq!(
                message,
                format!("not {count} unused ports among 10 candidates: 4 leased, 2 in use")
            );
        }
    });
}

/// Also in the second pass, at which the ports found in the first are locked by the pick itself.
#[test]
fn the_error_does_not_count_the_ports_of_the_pick_itself_as_leased() {
    in_network_namespace(|| {
        leave_in_time_wait(20_000, Options::None);
        let result = among("20000-20003").leases(4);
        assert!(is_in_time_wait(20_000), "or this shows nothing");
        match result {
            Err(Error::Exhausted(tally)) => {
                assert_eq!((tally.leased, tally.occupied), (0, 1));
            }
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn ports_that_the_system_keeps_are_counted_as_such() {
    in_network_namespace(|| {
        network::set_sysctl("ipv4/ip_unprivileged_port_start", 1024);
        let mut sets = capabilities(None).unwrap();
        sets.effective.remove(CapabilitySet::NET_BIND_SERVICE);
        set_capabilities(None, sets).unwrap();
        if Binding::tcp(Local::DUAL, Options::None).bind(100).is_ok() {
            skip(
                "exhausted::ports_that_the_system_keeps_are_counted_as_such",
                "no port is kept",
            );
            return;
        }
        match among("100-102").lease() {
            Err(Error::Exhausted(tally)) => {
                assert_eq!((tally.leased, tally.occupied, tally.forbidden), (0, 0, 3));
            }
            other => panic!("{other:?}"),
        }
        assert!(!is_port_free(100).unwrap());
        assert_eq!(among("100-102,1024").lease().unwrap().port(), 1024);
    });
}

#[test]
fn several_ports_are_leased_all_or_none() {
    in_network_namespace(|| {
        let mut other = Worker::spawn();
        let before = Descriptors::count();
        let _occupied = Binding::tcp(Local::DUAL, Options::None).bind(20_000);
        for result in [
            among("20000-20009").leases(10).err(),
            among("20000-20009").holds(10).map(drop).err(),
            among("20000-20009").lease_block(10).err(),
            among("20000-20009").hold_block(10).map(drop).err(),
        ] {
            assert!(matches!(result, Some(Error::Exhausted(_))), "{result:?}");
            // All but one can be leased by somebody else, so nothing of it is left.
            let leased = other.lease(&set("20000-20009"), 9).unwrap();
            assert_eq!(leased.len(), 9);
            other.release();
        }
        assert_eq!(Descriptors::count(), before + 1, "the one that occupies");
    });
}

#[test]
fn too_few_candidates_are_an_error_without_any_attempt() {
    in_network_namespace(|| {
        let _occupied = Binding::tcp(Local::DUAL, Options::None).bind(20_000);
        let err = among("20000-20009").leases(11).unwrap_err();
        assert!(
            matches!(
                err,
                Error::TooFewCandidates {
                    wanted: 11,
                    candidates: 10
                }
            ),
            "{err:?}"
        );
        assert_eq!(
            err.to_string(),
            "11 ports wanted, but only 10 to choose from"
        );
    });
}

#[test]
fn out_of_descriptors_is_an_error_that_leaks_nothing() {
    in_network_namespace(|| {
        // A lease takes three for a moment: the lock, and two for the probe.
        for spare in 0..=3 {
            let before = Descriptors::count();
            let taken = Descriptors::take_all_but(spare);
            let lease = among("20000").lease();
            let hold = match &lease {
                Ok(_) => Ok(None),
                Err(_) => among("20000").hold().map(Some),
            };
            let is_free = lease.as_ref().map(drop).err().map(|_| is_port_free(20_000));
            drop(taken);
            let errors = [
                lease.as_ref().err(),
                hold.as_ref().err(),
                is_free.as_ref().and_then(|result| result.as_ref().err()),
            ];
            for err in errors {
                match (spare, err) {
                    (0, Some(Error::Lock { port, source })) => {
                        assert_eq!(*port, 20_000);
                        assert!(is_out_of_descriptors(source), "{source}");
                    }
                    (1 | 2, Some(err @ Error::Socket { source, .. })) => {
                        assert!(is_out_of_descriptors(source), "{source}");
                        assert!(err.source().is_some());
                    }
                    (3, None) => {}
                    other => panic!("{other:?}"),
                }
            }
            drop((lease, hold));
            assert_eq!(Descriptors::count(), before, "{spare} to spare");
            // The lock is not left either.
            assert!(among("20000").hold().is_ok(), "{spare} to spare");
        }
    });
}

#[test]
fn out_of_descriptors_in_the_midst_of_several_ports_leases_none() {
    in_network_namespace(|| {
        let mut other = Worker::spawn();
        let before = Descriptors::count();
        let taken = Descriptors::take_all_but(30);
        let results = [
            among("20000-20049").leases(40).map(drop),
            among("20000-20049").holds(20).map(drop),
            among("20000-20049").hold_block(20).map(drop),
        ];
        let fits = among("20000-20049").only(Kind::Tcp).leases(28);
        drop(taken);
        for result in results {
            match result {
                Err(Error::Lock { source, .. } | Error::Socket { source, .. }) => {
                    assert!(is_out_of_descriptors(&source), "{source}");
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(fits.unwrap().len(), 28, "leases cost one each");
        assert_eq!(Descriptors::count(), before);
        let leased = other.lease(&set("20000-20049"), 50).unwrap();
        assert_eq!(leased.len(), 50);
    });
}

#[test]
fn out_of_descriptors_is_not_taken_for_another_host() {
    OwnProcess::new().network_namespace().run(|| {
        // The candidates are found at the first pick, which cannot read what the kernel says.
        network::set_ephemeral_range(10_001..=60_000);
        let taken = Descriptors::take_all_but(0);
        let err = pick_unused_port().unwrap_err();
        drop(taken);
        assert!(
            matches!(&err, Error::HostPorts { source } | Error::Lock { source, .. }
                if is_out_of_descriptors(source)),
            "{err:?}"
        );
        for _ in 0..50 {
            let port = pick_unused_port().unwrap();
            assert!(port > 60_000, "{port} is in the ephemeral range");
        }
    });
}

#[test]
fn out_of_descriptors_the_returned_ports_are_not_forgotten() {
    OwnProcess::new()
        .env("PORTPICKER_PORTS", "20000-20009")
        .network_namespace()
        .run(|| {
            portpicker::add_reserved_port(30_000);
            let taken = Descriptors::take_all_but(0);
            let one = pick_unused_port();
            let many = portpicker::pick_unused_ports(2);
            drop(taken);
            assert!(one.is_err() && many.is_err(), "{one:?}, {many:?}");
            assert_eq!(pick_unused_port().unwrap(), 30_000);
        });
}

/// Thousands of picks in one process, each dropped: no descriptor and no port is lost.
#[test]
fn picks_that_are_dropped_leave_nothing() {
    in_network_namespace(|| {
        let before = Descriptors::count();
        let picker = among("20000-20009");
        for _ in 0..300 {
            drop(picker.lease().unwrap());
            drop(picker.hold().unwrap());
            drop(picker.lease_block(3).unwrap());
            let mut hold = picker.hold().unwrap();
            hold.open_door().unwrap();
            hold.shut_door().unwrap();
            drop(hold.into_lease());
        }
        assert_eq!(Descriptors::count(), before);
        assert_eq!(Picker::leases(&picker, 10).unwrap().len(), 10);
    });
}
