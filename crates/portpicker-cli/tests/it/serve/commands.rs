//! The command's names, its options, and the spellings of portserver.py.

use std::net::TcpStream;
use std::os::unix::fs::symlink;

use expect_test::expect_file;
use portpicker_testing::in_network_namespace;

use super::{PORTSERVER, Place, Running, ask, converse, own_pid};
use crate::support::{PORTPICKER, portpicker, run};

#[test]
fn help_is_as_it_was_read_and_found_good() {
    let place = Place::new();
    let short = run(&mut place.server(&["-h"]));
    assert_eq!((short.code, short.stderr.as_str()), (Some(0), ""));
    expect_file!["../../snapshots/serve-help-short.txt"].assert_eq(&short.stdout);
    assert!(short.stdout.lines().count() <= 24, "one screen");
    assert!(short.stdout.lines().all(|line| line.chars().count() <= 80));

    let long = run(&mut place.server(&["--help"]));
    expect_file!["../../snapshots/serve-help.txt"].assert_eq(&long.stdout);
    assert!(long.stdout.contains("portpicker manual serve"));

    let subcommand = run(&mut portpicker(&["serve", "--help"])).stdout;
    assert_eq!(
        subcommand.replace("portpicker serve", "portserver"),
        long.stdout,
    );
}

#[test]
fn the_server_has_three_names() {
    in_network_namespace(|| {
        let place = Place::new();
        let script = place.path("portserver.py");
        symlink(PORTSERVER, &script).unwrap();
        for (program, first) in [
            (PORTSERVER, None),
            (PORTPICKER, Some("serve")),
            (&script, None),
        ] {
            let options = ["--address", place.name(), "--pool", "20000"];
            let options: Vec<&str> = first.into_iter().chain(options).collect();
            let server = Running::start(&mut place.program(program, &options));
            assert_eq!(ask(place.name(), own_pid()), Some(20_000), "{program}");
            // So that the next one does not adopt the lease.
            server.stop();
            std::fs::remove_dir_all(place.path("portserver")).unwrap();
        }
    });
}

#[test]
fn every_spelling_of_an_option_is_the_same() {
    in_network_namespace(|| {
        let place = Place::new();
        let pools = [
            "--pool",
            "--portserver_static_pool",
            "--portserver-static-pool",
        ];
        let addresses = [
            "--address",
            "--portserver_address",
            "--portserver-address",
            "--portserver_unix_socket_address",
            "--portserver-unix-socket-address",
        ];
        for (index, address) in addresses.into_iter().enumerate() {
            let pool = pools[index % pools.len()];
            let apart = [address, place.name(), pool, "20000", "--no-state"].map(str::to_owned);
            let joined = [
                format!("{address}={}", place.name()),
                format!("{pool}=20000"),
                "--no-state".to_owned(),
            ];
            for options in [&apart[..], &joined] {
                let options: Vec<&str> = options.iter().map(String::as_str).collect();
                let server = Running::start(&mut place.server(&options));
                assert_eq!(ask(place.name(), own_pid()), Some(20_000), "{options:?}");
                server.stop();
            }
        }
    });
}

#[test]
fn by_default_it_is_what_portserver_py_is() {
    in_network_namespace(|| {
        let place = Place::new();
        let mut server = Running::spawn(&mut place.server(&[]));
        server.wait_for("INFO listening at @unittest-portserver");
        server.wait_for("INFO managing 10000 ports");
        let port = ask("@unittest-portserver", own_pid()).unwrap();
        assert!((15_000..25_000).contains(&port));
        server.stop();
    });
}

#[test]
fn the_old_pool_ignores_what_the_new_one_refuses() {
    in_network_namespace(|| {
        let place = Place::new();
        let text = "20000-20000,nonsense,1-70000,3-2";
        let mut server = Running::spawn(&mut place.server(&[
            "--portserver_static_pool",
            text,
            "--address",
            place.name(),
        ]));
        for part in ["nonsense", "1-70000", "3-2"] {
            let line = server.wait_for("ignored in the pool");
            assert!(line.contains(part), "{line}");
        }
        server.wait_for("managing 1 ports");
        server.stop();

        let none = run(&mut place.server(&["--portserver_static_pool", "nonsense"]));
        assert_eq!(none.code, Some(1));
        assert!(
            none.stderr
                .ends_with("portserver: there is no port in the pool\n")
        );
        assert_eq!(run(&mut place.server(&["--pool", text])).code, Some(2));
    });
}

#[test]
fn it_listens_at_several_addresses_at_once() {
    in_network_namespace(|| {
        let place = Place::new();
        let path = place.path("socket");
        let options = [
            "--address",
            place.name(),
            "--address",
            &path,
            "--tcp",
            "19999",
        ];
        let options = [&options[..], &["--pool", "20000-20003"]].concat();
        let server = Running::start(&mut place.server(&options));
        let mut ports = vec![ask(place.name(), own_pid()), ask(&path, own_pid())];
        for host in ["127.0.0.1:19999", "[::1]:19999"] {
            match TcpStream::connect(host) {
                Ok(stream) => ports.push(converse(stream, own_pid())),
                Err(_) if host.starts_with('[') && !portpicker_testing::network::has_ipv6() => {}
                Err(err) => panic!("{host}: {err}"),
            }
        }
        let mut ports: Vec<u16> = ports.into_iter().map(Option::unwrap).collect();
        let count = ports.len();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), count, "{ports:?}");
        server.stop();
    });
}

#[test]
fn a_user_gets_as_many_leases_as_the_limit_says() {
    in_network_namespace(|| {
        let place = Place::new();
        let server = place.start(&["--pool", "20000-20009", "--user-limit", "2"]);
        let ports: Vec<_> = (0..3).map(|_| ask(place.name(), own_pid())).collect();
        assert!(ports[0].is_some() && ports[1].is_some());
        assert_eq!(ports[2], None);
        server.stop();
    });
}

#[test]
fn metrics_are_served_where_they_are_asked_for() {
    in_network_namespace(|| {
        let place = Place::new();
        let server = place.start(&["--pool", "20000", "--http", "19998"]);
        let mut stream = TcpStream::connect("127.0.0.1:19998").unwrap();
        let mut answer = String::new();
        std::io::Write::write_all(&mut stream, b"GET /healthz HTTP/1.0\r\n\r\n").unwrap();
        std::io::Read::read_to_string(&mut stream, &mut answer).unwrap();
        assert!(answer.contains(" 200 "), "{answer}");
        server.stop();
    });
}

#[test]
fn completions_and_manual_pages_are_there_for_both_names() {
    let complete = |options: &[&str]| {
        let ended = run(&mut portpicker(
            &[&["completions", "bash"], options].concat(),
        ));
        assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
        ended.stdout
    };
    assert!(complete(&["--for", "portserver"]).contains("_portserver() {"));
    assert!(complete(&[]).contains("--socket-owner"));
    for (page, title) in [
        ("serve", "portpicker-serve 1"),
        ("portserver", "portserver 1"),
    ] {
        let text = run(&mut portpicker(&["manual", page])).stdout;
        assert!(text.contains(&format!(".TH {title}")), "{text}");
        assert!(text.contains("SIGUSR1"), "{text}");
    }
}
