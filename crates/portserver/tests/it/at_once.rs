//! Two servers and many processes at once: the same number twice?

use std::thread;

use portpicker_testing::worker::pick_at_once;
use portpicker_testing::{Worker, in_network_namespace};

use crate::assert_all_different;
use crate::server::Setup;

#[test]
fn two_servers_and_sixteen_library_processes_never_lease_the_same_port() {
    const PROCESSES: usize = 16;
    const EACH: usize = 10;
    in_network_namespace(|| {
        let servers = [
            // Both begin with the same ports.
            Setup::new("20000-20499").start(),
            Setup::new("20000-20399,20500-20599").at("@other").start(),
        ];
        let environment = [("PORTPICKER_PORTS", "20000-20599")];
        let mut workers: Vec<_> = (0..PROCESSES)
            .map(|_| Worker::spawn_with(&environment))
            .collect();
        let mut ports: Vec<u16> = thread::scope(|scope| {
            let mut clients = Vec::new();
            for server in &servers {
                for _ in 0..2 {
                    clients.push(scope.spawn(|| {
                        let ports = (0..80).map(|_| server.ask_for_this().unwrap());
                        ports.collect::<Vec<_>>()
                    }));
                }
            }
            let picked = pick_at_once(&mut workers, EACH);
            let granted = clients.into_iter().map(|client| client.join().unwrap());
            granted.chain(picked).flatten().collect()
        });
        assert_eq!(ports.len(), 4 * 80 + PROCESSES * EACH);
        assert_all_different(&ports);

        // What is left is leased too, whoever sees it first, and then nothing.
        for server in &servers {
            ports.extend(std::iter::from_fn(|| server.ask_for_this()));
        }
        assert_all_different(&ports);
        assert_eq!(ports.len(), 600);
        assert!(workers[0].pick().is_err());
    });
}

#[test]
fn a_port_that_the_library_has_leased_is_granted_when_it_no_longer_is() {
    in_network_namespace(|| {
        let server = Setup::new("20000").start();
        let picker = portpicker::Picker::new()
            .server(portpicker::Server::None)
            .ports("20000".parse().unwrap());
        let lease = picker.lease().unwrap();
        assert_eq!(server.ask_for_this(), None);
        assert_eq!(server.count("resting"), 1);
        drop(lease);
        let mut client = server.connect();
        assert_eq!(client.lease(r#""wait":40"#), [20_000]);
        assert!(picker.lease().is_err());
        client.ok(r#"{"v":1,"op":"release","ports":[20000]}"#);
        assert!(picker.lease().is_ok());
    });
}
