//! When does a lease end: by exit, fork, exec, a number that is used again?

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use portpicker_testing::{Exit, OwnProcess, in_network_namespace, skip};
use rustix::process::Signal;

use crate::client::{Client, Owner, lease, ports};
use crate::server::{Setup, TestServer};
use crate::{LONG, POLLS, report};

/// Sends a request that waits for a port until there is one.
fn wait_for_a_port(server: &TestServer) -> Client {
    let mut client = server.connect();
    client
        .send(lease(r#""wait":3000,"owner":"connection""#))
        .send("\n");
    let end = Instant::now() + LONG;
    while server.count("waiting") == 0 {
        assert!(Instant::now() < end);
    }
    client
}

#[test]
fn a_port_comes_back_within_milliseconds_of_its_owners_exit() {
    in_network_namespace(|| {
        let server = TestServer::start("20000");
        let mut times = Vec::new();
        for _ in 0..30 {
            let owner = Owner::start();
            let end = Instant::now() + LONG;
            while server.ask(owner.pid()).is_none() {
                // The connection of the last round is being closed.
                assert!(Instant::now() < end);
            }
            let mut waiting = wait_for_a_port(&server);
            let killed = Instant::now();
            owner.kill();
            assert_eq!(ports(&waiting.answer()), [20_000]);
            times.push(killed.elapsed());
        }
        times.sort_unstable();
        report(&format!(
            "from kill to lease: median {:?}, slowest {:?}",
            times[15], times[29]
        ));
        // Polling is every 100 ms. The bounds are wide: others use this machine.
        let bound = if POLLS { 1000 } else { 100 };
        assert!(times[15] < Duration::from_millis(bound), "{times:?}");
    });
}

#[test]
fn a_zombie_has_exited() {
    if POLLS {
        // It still has its number, which is all that this mechanism sees.
        return;
    }
    in_network_namespace(|| {
        let server = TestServer::start("20000");
        let mut owner = Owner::start();
        assert_eq!(server.ask(owner.pid()), Some(20_000));
        let mut waiting = wait_for_a_port(&server);
        owner.become_zombie();
        assert_eq!(ports(&waiting.answer()), [20_000]);
    });
}

#[test]
fn a_lease_ends_with_its_owner_whether_or_not_the_owners_child_lives() {
    in_network_namespace(|| {
        let server = TestServer::start("20000");
        let script = "exec 3<&0; cat <&3 >/dev/null & echo $!; wait";
        let mut owner = Owner::run(Command::new("sh").args(["-c", script]));
        let child = Exit::of(owner.hear().parse().unwrap());
        assert_eq!(server.ask(owner.pid()), Some(20_000));
        let mut waiting = wait_for_a_port(&server);
        let input = owner.kill_and_keep_input();
        assert_eq!(ports(&waiting.answer()), [20_000]);
        assert!(!child.has_happened(), "or this shows nothing");
        drop(input);
        child.wait();
    });
}

#[test]
fn a_lease_goes_on_when_its_owner_executes_another_program() {
    in_network_namespace(|| {
        let server = TestServer::start("20000");
        let script = "read line; exec sh -c 'echo second; exec cat'";
        let mut owner = Owner::run(Command::new("sh").args(["-c", script]));
        assert_eq!(server.ask(owner.pid()), Some(20_000));
        owner.say("go on\n");
        assert_eq!(owner.hear(), "second");
        owner.say("and on\n");
        assert_eq!(owner.hear(), "and on");
        assert_eq!(server.list()[0]["command"], "cat");
        assert_eq!(server.ask_for_this(), None);
        let mut waiting = wait_for_a_port(&server);
        owner.kill();
        assert_eq!(ports(&waiting.answer()), [20_000]);
    });
}

#[test]
fn a_lease_goes_on_when_the_client_that_asked_for_it_exits() {
    in_network_namespace(|| {
        let server = TestServer::start("20000");
        let owner = Owner::start();
        let mut client = portpicker_testing::Worker::spawn();
        assert_eq!(
            client.tell(&format!("ask {}", owner.pid())),
            Ok("20000".into())
        );
        client.kill();
        assert_eq!(server.ask_for_this(), None);
        owner.kill();
        assert_eq!(server.connect().lease(r#""wait":40"#), [20_000]);
    });
}

#[test]
fn hundreds_of_owners_that_exit_at_once_leave_all_their_ports() {
    const OWNERS: usize = 300;
    in_network_namespace(|| {
        let server = TestServer::start("20000-20599");
        let owners: Vec<_> = (0..OWNERS).map(|_| Owner::start()).collect();
        for owner in &owners {
            let members = format!(r#""count":2,"owner":{}"#, owner.pid());
            server.connect().lease(&members);
        }
        assert_eq!(server.count("owners"), 300);
        drop(owners);
        assert_eq!(
            server.connect().lease(r#""count":600,"wait":40"#).len(),
            600
        );
        assert_eq!(server.count("owners"), 1);
        assert_eq!(server.count("reclaimed"), 600);
    });
}

#[test]
fn an_owner_that_releases_all_it_had_is_forgotten_and_may_come_again() {
    in_network_namespace(|| {
        let server = TestServer::start("20000-20001");
        let owner = Owner::start();
        for round in 0..10 {
            let port = server.ask(owner.pid()).unwrap();
            assert_eq!(server.count("owners"), 1);
            let release = format!(r#"{{"v":1,"op":"release","ports":[{port}]}}"#);
            server.connect().ok(&release);
            assert_eq!(
                (server.count("owners"), server.count("released")),
                (0, round + 1)
            );
        }
        assert!(server.ask(owner.pid()).is_some());
        owner.kill();
        assert_eq!(server.connect().lease(r#""count":2,"wait":40"#).len(), 2);
    });
}

/// Starts an owner with the number `pid`, which must be free, in a pid namespace of the test's own.
fn start_as(pid: u32) -> Owner {
    let end = Instant::now() + LONG;
    loop {
        fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string()).unwrap();
        let owner = Owner::start();
        if owner.pid() == pid {
            return owner;
        }
        assert!(Instant::now() < end, "the number {pid} cannot be had");
    }
}

/// Tells whether numbers can be chosen here; otherwise the test is skipped.
fn can_choose_numbers(test: &str) -> bool {
    let last = "/proc/sys/kernel/ns_last_pid";
    let result = fs::read_to_string(last).and_then(|number| fs::write(last, number.trim()));
    if let Err(err) = &result {
        skip(&format!("owners::{test}"), &format!("{last}: {err}"));
    }
    result.is_ok()
}

#[test]
fn a_number_that_is_used_again_is_another_owner() {
    if POLLS {
        // It sees the number alone, and errs towards keeping the lease.
        return;
    }
    OwnProcess::new().pid_namespace().run(|| {
        if !can_choose_numbers("a_number_that_is_used_again_is_another_owner") {
            return;
        }
        let server = TestServer::start("20000-20001");
        for round in 0..100 {
            let former = Owner::start();
            let pid = former.pid();
            assert!(server.ask(pid).is_some(), "{round}");
            let mut client = server.connect();
            // In every other round, the server reads the request of the successor before it sees
            // the exit: it was stopped while both came.
            let is_late = round % 2 == 0;
            if is_late {
                server.count("clients");
                server.signal(Signal::STOP);
                client.send(format!("{pid}\n"));
            }
            former.kill();
            let successor = start_as(pid);
            if is_late {
                server.signal(Signal::CONT);
            } else {
                client.send(format!("{pid}\n"));
            }
            let port = crate::client::port(&client.end());
            assert!(port.is_some(), "{round}");
            // The former's lease has ended, and the successor's has not.
            let list = server.list();
            assert_eq!(list.len(), 1, "{list:?}");
            assert_eq!(
                (&list[0]["port"], &list[0]["pid"]),
                (&port.into(), &pid.into())
            );
            assert_eq!(server.count("reclaimed"), 4 * round + 1);
            successor.kill();
            let mut both = server.connect();
            both.lease(r#""count":2,"wait":40,"owner":"connection""#);
            both.half_close().end();
            let end = Instant::now() + LONG;
            while server.count("leased") > 0 {
                assert!(Instant::now() < end);
            }
        }
    });
}

#[test]
fn a_number_that_is_used_again_while_the_server_is_away_adopts_nothing() {
    if POLLS {
        return;
    }
    OwnProcess::new().pid_namespace().run(|| {
        if !can_choose_numbers(
            "a_number_that_is_used_again_while_the_server_is_away_adopts_nothing",
        ) {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let mut server = Setup::new("20000")
            .state(&folder.path().join("state"))
            .start();
        for _ in 0..20 {
            let former = Owner::start();
            let pid = former.pid();
            assert_eq!(server.ask(pid), Some(20_000));
            server.kill();
            former.kill();
            let _successor = start_as(pid);
            server.restart();
            server.log.wait_for("the owners of 1 have exited");
            assert!(server.list().is_empty());
        }
    });
}

#[test]
fn a_process_that_exits_while_its_request_waits_leaves_nothing_to_its_successor() {
    if POLLS {
        return;
    }
    OwnProcess::new().pid_namespace().run(|| {
        if !can_choose_numbers(
            "a_process_that_exits_while_its_request_waits_leaves_nothing_to_its_successor",
        ) {
            return;
        }
        let server = TestServer::start("20000-20001");
        let holder = Owner::start();
        assert_eq!(server.ask(holder.pid()), Some(20_000));
        let former = Owner::start();
        let pid = former.pid();
        let mut waiting = server.connect();
        let members = format!(r#""owner":{pid},"ports":"20000","wait":3000"#);
        waiting.send(lease(&members)).send("\n");
        let end = Instant::now() + LONG;
        while server.count("waiting") == 0 {
            assert!(Instant::now() < end);
        }
        former.kill();
        let successor = start_as(pid);
        assert_eq!(server.ask(pid), Some(20_001));
        holder.kill();
        assert_eq!(waiting.answer()["error"], "no-process");
        assert_eq!(server.list().len(), 1, "{:?}", server.list());
        drop(successor);
    });
}
