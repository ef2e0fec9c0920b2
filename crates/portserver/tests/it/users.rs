//! Clients of other users.

use portpicker_testing::{Worker, in_network_namespace, skip};
use serde_json::Value;

use crate::client::{Owner, lease, ports};
use crate::server::{Setup, TestServer};

const NOBODY: u32 = 65_534;

/// Starts a client of another user. Where that is not possible, the test is skipped.
fn nobody(test: &str) -> Option<Worker> {
    match Worker::spawn_as_nobody() {
        Ok(worker) => Some(worker),
        Err(reason) => {
            skip(&format!("users::{test}"), &reason);
            None
        }
    }
}

/// Asks by the original protocol.
fn ask(client: &mut Worker, owner: u32) -> Option<u16> {
    match client.tell(&format!("ask {owner}")) {
        Ok(port) => Some(port.parse().unwrap()),
        Err(refusal) => {
            assert_eq!(refusal, "refused");
            None
        }
    }
}

/// Asks by the extended protocol.
fn request(client: &mut Worker, line: &str) -> Value {
    serde_json::from_str(&client.tell(&format!("request {line}")).unwrap()).unwrap()
}

#[test]
fn a_user_gets_ports_for_its_own_processes_and_its_ancestors_and_for_no_others() {
    in_network_namespace(|| {
        let Some(mut nobody) =
            nobody("a_user_gets_ports_for_its_own_processes_and_its_ancestors_and_for_no_others")
        else {
            return;
        };
        let server = TestServer::start("20000-20009");
        let own = nobody.pid();
        let child: u32 = nobody.tell("spawn").unwrap().parse().unwrap();
        let parent = std::process::id();
        let others = Owner::start();

        for allowed in [own, child, parent] {
            assert!(ask(&mut nobody, allowed).is_some(), "{allowed}");
            let answer = request(&mut nobody, &lease(&format!(r#""owner":{allowed}"#)));
            assert_eq!(ports(&answer).len(), 1);
        }
        assert_eq!(ask(&mut nobody, others.pid()), None);
        let answer = request(&mut nobody, &lease(&format!(r#""owner":{}"#, others.pid())));
        assert_eq!(answer["error"], "forbidden");
        assert_eq!(server.stats()["refused"]["forbidden"], 2);

        // For whomever it asks, it is the one that asks who is counted; not so if root asks.
        for lease in server.list() {
            assert_eq!(lease["uid"], NOBODY, "{lease}");
        }
        let port = server.ask(child).unwrap();
        let list = server.list();
        let by_root = list.iter().find(|lease| lease["port"] == port).unwrap();
        assert_eq!(
            (&by_root["pid"], &by_root["uid"]),
            (&child.into(), &NOBODY.into())
        );
    });
}

#[test]
fn a_user_ends_and_renews_its_own_leases_only_and_root_everybodys() {
    in_network_namespace(|| {
        let Some(mut nobody) =
            nobody("a_user_ends_and_renews_its_own_leases_only_and_root_everybodys")
        else {
            return;
        };
        let server = TestServer::start("20000-20009");
        let roots = server.ask_for_this().unwrap();
        let own = nobody.pid();
        let its = [(); 3].map(|()| ask(&mut nobody, own).unwrap());
        let release = |port| format!(r#"{{"v":1,"op":"release","ports":[{port}]}}"#);
        let renew = |port| format!(r#"{{"v":1,"op":"renew","ttl":1000,"ports":[{port}]}}"#);
        for line in [release(roots), renew(roots)] {
            assert_eq!(request(&mut nobody, &line)["error"], "forbidden");
        }
        // All or none.
        let both = format!(r#"{{"v":1,"op":"release","ports":[{},{roots}]}}"#, its[0]);
        assert_eq!(request(&mut nobody, &both)["error"], "forbidden");
        assert_eq!(server.count("leased"), 4);

        assert_eq!(request(&mut nobody, &renew(its[0]))["ok"], true);
        assert_eq!(request(&mut nobody, &release(its[0]))["ok"], true);
        server.connect().ok(&renew(its[1]));
        server.connect().ok(&release(its[1]));
        assert_eq!(server.count("leased"), 2);
    });
}

#[test]
fn a_user_over_the_limit_is_refused_while_others_are_served() {
    in_network_namespace(|| {
        let Some(mut nobody) = nobody("a_user_over_the_limit_is_refused_while_others_are_served")
        else {
            return;
        };
        let server = Setup::new("20000-20009").limit(3).start();
        let (own, parent) = (nobody.pid(), std::process::id());
        let first = ask(&mut nobody, own).unwrap();
        // For its ancestor too, or the limit would be none.
        assert!(ask(&mut nobody, parent).is_some());
        let two_more = request(&mut nobody, &lease(r#""count":2,"wait":3000"#));
        assert_eq!(
            two_more["error"], "over-limit",
            "at once: to wait is no help"
        );
        assert!(ask(&mut nobody, own).is_some());
        assert_eq!(ask(&mut nobody, own), None);
        assert_eq!(request(&mut nobody, &lease(""))["error"], "over-limit");
        assert_eq!(
            server.stats()["refused"],
            serde_json::json!({ "over-limit": 3 })
        );

        assert_eq!(
            server.connect().lease(r#""count":3"#).len(),
            3,
            "root has its own"
        );
        assert_eq!(server.ask_for_this(), None);
        let release = format!(r#"{{"v":1,"op":"release","ports":[{first}]}}"#);
        assert_eq!(request(&mut nobody, &release)["ok"], true);
        assert!(ask(&mut nobody, own).is_some());
    });
}
