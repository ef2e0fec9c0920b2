//! Who is kept from a leased port, and who is not?

use portpicker::{Error, Lease};
use portpicker_testing::{Binding, Worker, in_network_namespace, skip};

use crate::{among, set};

#[test]
fn a_leased_port_can_be_bound_by_its_owner_with_any_options() {
    in_network_namespace(|| {
        let lease = among("20000").lease().unwrap();
        for binding in Binding::every() {
            let socket = binding.bind(lease.port());
            assert!(socket.is_ok(), "{binding}: {socket:?}");
        }
    });
}

#[test]
fn a_leased_port_is_given_to_no_other_process_until_it_is_dropped() {
    in_network_namespace(|| {
        let mut other = Worker::spawn();
        let lease = among("20000").lease().unwrap();
        let refusal = other.lease(&set("20000"), 1).unwrap_err();
        assert!(refusal.contains("leased: 1, occupied: 0"), "{refusal}");
        assert_eq!(other.is_port_free(20_000), Ok(false));

        drop(lease);
        assert_eq!(other.is_port_free(20_000), Ok(true));
        assert_eq!(other.lease(&set("20000"), 1), Ok(vec![20_000]));
        let err = among("20000").lease().unwrap_err();
        assert!(matches!(err, Error::Exhausted(_)), "{err:?}");
    });
}

/// The owner's bind must not fail because somebody else looks whether the port is unused.
#[test]
fn a_leased_port_is_never_probed_by_others() {
    in_network_namespace(|| {
        const ROUNDS: usize = 500;
        let lease = among("20000").lease().unwrap();
        let mut others = [Worker::spawn(), Worker::spawn()];
        std::thread::scope(|scope| {
            for other in &mut others {
                scope.spawn(|| {
                    for _ in 0..ROUNDS {
                        assert_eq!(other.is_port_free(20_000), Ok(false));
                        assert!(other.lease(&set("20000"), 1).is_err());
                    }
                });
            }
            let bindings: Vec<_> = Binding::every().collect();
            for binding in bindings.iter().cycle().take(ROUNDS * 4) {
                let socket = binding.bind(lease.port());
                assert!(socket.is_ok(), "{binding}: {socket:?}");
            }
        });
    });
}

#[test]
fn leases_are_scoped_by_network_namespace() {
    in_network_namespace(|| {
        let _lease = among("20000").lease().unwrap();
        let mut elsewhere = Worker::spawn_elsewhere().unwrap();
        assert_eq!(elsewhere.lease(&set("20000"), 1), Ok(vec![20_000]));
    });
}

#[test]
fn leases_are_for_all_users_of_the_host() {
    in_network_namespace(|| {
        let mut nobody = match Worker::spawn_as_nobody() {
            Ok(worker) => worker,
            Err(reason) => return skip("lease::leases_are_for_all_users_of_the_host", &reason),
        };
        // Each comes first once, so that neither depends on what the other has made.
        let lease = among("20000").lease().unwrap();
        assert!(nobody.lease(&set("20000"), 1).is_err());
        assert_eq!(nobody.lease(&set("20001"), 1), Ok(vec![20_001]));
        assert!(among("20001").lease().is_err());

        drop(lease);
        assert_eq!(nobody.lease(&set("20000"), 1), Ok(vec![20_000]));
        nobody.release();
        assert_eq!(among("20000-20001").leases(2).unwrap().len(), 2);
    });
}

#[test]
fn a_copy_of_the_descriptor_shares_the_lease() {
    in_network_namespace(|| {
        let lease = among("20000").lease().unwrap();
        let descriptor = lease.descriptor().expect("no server made it");
        let copy = descriptor.try_clone_to_owned().unwrap();
        assert_eq!(lease.server(), None);
        drop(lease);
        assert!(among("20000").lease().is_err());
        drop(copy);
        assert!(among("20000").lease().is_ok());
    });
}

#[test]
fn a_lease_that_became_a_port_lasts() {
    in_network_namespace(|| {
        let port = among("20000").lease().map(Lease::into_port).unwrap();
        assert_eq!(port, 20_000);
        assert!(Worker::spawn().lease(&set("20000"), 1).is_err());
        assert!(portpicker::return_port(port));
        assert!(Worker::spawn().lease(&set("20000"), 1).is_ok());
    });
}
