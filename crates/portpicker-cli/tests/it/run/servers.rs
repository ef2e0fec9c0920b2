//! Real servers, started and restarted while thieves want their port.
//!
//! A few times each. The program for many times, with figures, and for comparison: `examples/storm.rs`.

use portpicker_testing::storm::{Number, SERVERS, Thieves, storm};
use portpicker_testing::{in_network_namespace, skip};

use crate::support::PORTPICKER;

/// Starts `server` under a storm; `test` is the name of the test.
fn stands_the_storm(test: &str, server: &str) {
    let server = SERVERS.iter().find(|it| it.name == server).unwrap();
    if let Some(obstacle) = server.obstacle() {
        return skip(test, &obstacle);
    }
    let run = vec![PORTPICKER.to_owned()];
    let number = Number::Run(run, vec!["--hand-off=strict".to_owned()]);
    let mut thieves = Thieves::hire(8, true);
    let outcome = storm(server, &number, 4, &mut thieves);
    assert_eq!((outcome.starts, outcome.failed), (4, 0), "{outcome:?}");
    assert!(outcome.loot.attempts > 0, "there was a storm");
    if is_safe() {
        assert_eq!(outcome.loot.bound, 0, "{outcome:?}");
    }
}

/// Tells whether `portpicker` can let a TCP socket in and nobody else: with CAP_NET_RAW.
fn is_safe() -> bool {
    use rustix::thread::{CapabilitySet, capabilities};
    capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::NET_RAW))
}

macro_rules! servers {
    ($($test:ident: $server:literal;)*) => {
        $(
            #[test]
            fn $test() {
                in_network_namespace(|| {
                    let test = concat!("run::servers::", stringify!($test));
                    stands_the_storm(test, $server);
                });
            }
        )*

        #[test]
        fn no_server_is_forgotten() {
            let known = [$($server),*];
            let names: Vec<_> = SERVERS.iter().map(|server| server.name).collect();
            assert_eq!(names, known);
        }
    };
}

servers! {
    redis: "redis";
    postgresql: "postgresql";
    nginx: "nginx";
    nginx_whose_workers_have_a_socket_each: "nginx reuseport";
    memcached: "memcached";
    node: "node http";
    python_http_server: "python http.server";
    python_socketserver: "python socketserver";
    java: "java http";
    go: "go net/http";
}
