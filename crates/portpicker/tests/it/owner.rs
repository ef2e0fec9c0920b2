//! When does a lease end: by kill, fork, exec?

use portpicker_testing::{Binding, OwnProcess, Worker, in_network_namespace};

use crate::fork::{fork_idle_child, in_forked_child};
use crate::{every_binding, set};

const PORT: u16 = 20_000;

#[test]
fn kill_of_an_owner_frees_its_leases() {
    in_network_namespace(|| {
        let mut other = Worker::spawn();
        let ports = set("20000-20009");
        let mut owner = Worker::spawn();
        assert_eq!(owner.lease(&ports, 10).map(|ports| ports.len()), Ok(10));
        assert!(other.lease(&ports, 1).is_err());

        let _children = owner.kill();
        assert_eq!(other.lease(&ports, 10).map(|ports| ports.len()), Ok(10));
    });
}

#[test]
fn kill_of_an_owner_frees_its_holds() {
    in_network_namespace(|| {
        let mut other = Worker::spawn();
        let mut owner = Worker::spawn();
        assert_eq!(owner.hold(&set("20000"), 1), Ok(vec![PORT]));
        assert!(other.hold(&set("20000"), 1).is_err());

        let _children = owner.kill();
        assert_eq!(other.hold(&set("20000"), 1), Ok(vec![PORT]));
    });
}

#[test]
fn kill_of_an_owner_frees_the_ports_that_it_picked() {
    OwnProcess::new()
        .env("PORTPICKER_PORTS", "20000")
        .network_namespace()
        .run(|| {
            let environment = [("PORTPICKER_PORTS", "20000")];
            let mut owner = Worker::spawn_with(&environment);
            assert_eq!(owner.pick(), Ok(PORT));
            assert!(portpicker::pick_unused_port().is_err());

            let _children = owner.kill();
            assert_eq!(portpicker::pick_unused_port().unwrap(), PORT);
        });
}

#[test]
fn an_owner_that_forked_keeps_its_leases_while_the_child_lives() {
    in_network_namespace(|| {
        let mut other = Worker::spawn();
        let mut owner = Worker::spawn();
        assert_eq!(owner.lease(&set("20000"), 1), Ok(vec![PORT]));
        let child = fork_idle_child(&mut owner);

        let children = owner.kill();
        assert!(!child.has_happened());
        let refusal = other.lease(&set("20000"), 1).unwrap_err();
        assert!(refusal.contains("leased: 1, occupied: 0"), "{refusal}");

        drop(children);
        child.wait();
        assert_eq!(other.lease(&set("20000"), 1), Ok(vec![PORT]));
    });
}

#[test]
fn an_owner_that_forked_keeps_its_holds_while_the_child_lives() {
    in_network_namespace(|| {
        let mut other = Worker::spawn();
        let mut owner = Worker::spawn();
        assert_eq!(owner.hold(&set("20000"), 1), Ok(vec![PORT]));
        let child = fork_idle_child(&mut owner);

        let children = owner.kill();
        assert!(!child.has_happened());
        for binding in every_binding() {
            assert!(other.bind(PORT, binding).is_err(), "{binding}");
        }

        drop(children);
        child.wait();
        for binding in Binding::every() {
            assert_eq!(other.bind(PORT, binding), Ok(()), "{binding}");
            other.unbind();
        }
    });
}

/// What the owner gives back, its idle child still has: an error on the side of keeping.
#[test]
fn a_forked_child_shares_a_lease_that_its_parent_drops() {
    in_network_namespace(|| {
        let mut other = Worker::spawn();
        let mut owner = Worker::spawn();
        assert_eq!(owner.lease(&set("20000"), 1), Ok(vec![PORT]));
        let child = fork_idle_child(&mut owner);
        owner.release();
        assert!(other.lease(&set("20000"), 1).is_err());

        child.kill();
        assert_eq!(other.lease(&set("20000"), 1), Ok(vec![PORT]));
    });
}

#[test]
fn a_child_made_by_exec_does_not_keep_leases_or_holds() {
    in_network_namespace(|| {
        let mut other = Worker::spawn();
        let mut owner = Worker::spawn();
        assert_eq!(owner.lease(&set("20000"), 1), Ok(vec![PORT]));
        assert_eq!(owner.hold(&set("20001"), 1), Ok(vec![PORT + 1]));
        let child = owner.spawn_child();

        let _children = owner.kill();
        assert_eq!(
            other.hold(&set("20000-20001"), 2).map(|ports| ports.len()),
            Ok(2)
        );
        assert!(!child.has_happened(), "or this shows nothing");
    });
}

#[test]
fn a_forked_child_does_not_offer_the_ports_that_its_parent_returned() {
    in_network_namespace(|| {
        // One port is not among the candidates, so that only an offer explains its pick.
        let mut parent = Worker::spawn_with(&[("PORTPICKER_PORTS", "20000-20099")]);
        parent.add_reserved_port(30_000);
        assert_eq!(parent.pick(), Ok(30_000));
        assert!(parent.return_port(30_000));

        let picked = in_forked_child(&mut parent, "pick").unwrap();
        let port: u16 = picked.parse().unwrap();
        assert!((20_000..20_100).contains(&port), "{port}");
        assert_eq!(parent.pick(), Ok(30_000), "it is the parent's");
    });
}

#[test]
fn a_forked_child_does_not_have_the_ports_that_its_parent_picked() {
    in_network_namespace(|| {
        let mut parent = Worker::spawn_with(&[("PORTPICKER_PORTS", "20000-20001")]);
        let port = parent.pick().unwrap();
        let other = if port == PORT { PORT + 1 } else { PORT };

        let mut ask = |command: &str| in_forked_child(&mut parent, command);
        assert_eq!(ask(&format!("return {port}")), Ok("false".into()));
        // It shares the lease, though, and may bind the port.
        assert_eq!(ask(&format!("is_free {port}")), Ok("true".into()));
        assert_eq!(ask("pick"), Ok(other.to_string()));
        assert_eq!(parent.is_port_free(port), Ok(true), "it is the parent's");
        assert!(parent.return_port(port));
    });
}

/// Children of one parent would otherwise try the same candidates, one after another.
#[test]
fn forked_children_pick_in_different_orders() {
    in_network_namespace(|| {
        let mut parent = Worker::spawn();
        parent.pick().unwrap();
        // Each child ends before the next one begins, so that no lease is in its way.
        let mut ask = || in_forked_child(&mut parent, "pick_many 5").unwrap();
        let picked: std::collections::HashSet<_> = (0..5).map(|_| ask()).collect();
        assert_eq!(picked.len(), 5, "{picked:?}");
    });
}
