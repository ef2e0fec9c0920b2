//! What do many leases cost?

use std::process;

use portpicker_testing::in_network_namespace;

use crate::client::Owner;
use crate::hostile::raise_descriptor_limit;
use crate::server::TestServer;
use crate::{number, report};

/// Leases `count` ports to this process, in as few requests as possible.
fn lease_many(server: &TestServer, mut count: usize) {
    let mut client = server.connect();
    while count > 0 {
        let some = count.min(1000);
        client.lease(&format!(r#""count":{some}"#));
        count -= some;
    }
}

/// The lock of each takes a descriptor.
#[test]
fn ten_thousand_leases_fit_in_twelve_megabytes() {
    in_network_namespace(|| {
        let leases = (raise_descriptor_limit() - 1000).min(10_000);
        let server = TestServer::start("20000-39999");
        let empty = server.resident();
        lease_many(&server, leases);
        let full = server.resident();
        let build = if cfg!(debug_assertions) {
            "debug"
        } else {
            "release"
        };
        report(&format!(
            "{build}: empty {empty} KiB, with {leases} leases {full} KiB"
        ));
        assert!(full <= 12 * 1024, "{full} KiB");
        // To list them costs something, once.
        assert_eq!(server.list().len(), leases);
        report(&format!("after a list: {} KiB", server.resident()));
    });
}

/// The pidfd of each owner takes another descriptor.
#[test]
fn many_owners_fit_too() {
    in_network_namespace(|| {
        let most = raise_descriptor_limit() / 2 - 1000;
        // Each is a process of the test's own.
        let owners = number("PORTPICKER_OWNERS", 1000).min(most);
        let server = TestServer::start("20000-39999");
        let add = |count: usize| -> Vec<Owner> {
            let owners: Vec<_> = (0..count).map(|_| Owner::start()).collect();
            for owner in &owners {
                assert!(server.ask(owner.pid()).is_some());
            }
            owners
        };
        // What the first ones cost once is not counted.
        let _first = add(200);
        let before = server.resident();
        let owners = add(owners);
        let each = (server.resident() - before) as f64 / owners.len() as f64;
        report(&format!(
            "{} owners with a lease: {each:.2} KiB each",
            owners.len()
        ));
        // 12 MB for 10,000 of them, without what an empty server takes.
        assert!(each < 1.0, "{each} KiB");
    });
}

#[test]
fn a_refusal_from_a_full_pool_tries_no_port() {
    in_network_namespace(|| {
        let ports = (raise_descriptor_limit() - 1000).min(10_000);
        let server = TestServer::start(&format!("20000-{}", 19_999 + ports));
        lease_many(&server, ports);
        assert_eq!(tried_for_last(&server), 1000);
        assert_eq!(server.ask_for_this(), None);
        assert_eq!(tried_for_last(&server), 0);
    });
}

#[test]
fn ports_in_use_are_tried_once_and_not_for_each_request() {
    in_network_namespace(|| {
        let server = TestServer::start("20000-20499");
        let bound: Vec<_> = (20_000..20_500_u16)
            .map(|port| std::net::UdpSocket::bind(("127.0.0.1", port)).unwrap())
            .collect();
        assert_eq!(server.ask_for_this(), None);
        assert_eq!(tried_for_last(&server), bound.len());
        assert_eq!(server.ask_for_this(), None);
        let again = tried_for_last(&server);
        assert!(again < bound.len(), "a few may have rested: {again}");
    });
}

#[test]
fn a_grant_from_a_pool_of_60000_tries_one_port_however_many_are_leased() {
    in_network_namespace(|| {
        let leased = (raise_descriptor_limit() - 1000).min(50_000);
        report(&format!(
            "{leased} of 60,000 leased; if that is below 50,000, for want of descriptors"
        ));
        let server = TestServer::start("5000-64999");
        assert!(server.ask(process::id()).is_some());
        assert_eq!(tried_for_last(&server), 1);
        lease_many(&server, leased - 1);
        assert!(server.ask(process::id()).is_some());
        assert_eq!(tried_for_last(&server), 1);
    });
}

/// Returns how many ports the server tried for the last request: in the words of the original.
fn tried_for_last(server: &TestServer) -> usize {
    let before = server.log.lines().len();
    server.signal(rustix::process::Signal::USR1);
    server.log.wait_for_after(before, "total-allocations");
    let line = server
        .log
        .wait_for_after(before, "num-ports-checked-for-last-request");
    line.rsplit(' ').next().unwrap().parse().unwrap()
}
