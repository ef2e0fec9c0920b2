//! With a port server: asked first, and what happens when it fails.

use portpicker_testing::{Act, FakeServer};

use crate::support::{Owner, pick, portpicker, run};

#[test]
fn the_server_in_the_environment_is_asked_for_the_owner() {
    let owner = Owner::start();
    let server = FakeServer::start(vec![Act::answer("15007\n")]);
    let mut command = portpicker(&[&owner.pid()]);
    let ended = run(command.env("PORTSERVER_ADDRESS", server.address().to_string()));
    assert_eq!(
        (ended.stdout.as_str(), ended.stderr.as_str()),
        ("15007\n", "")
    );
    assert_eq!(server.requests(), [owner.pid()]);
}

#[test]
fn a_server_is_the_keeper_of_what_it_leased() {
    let owner = Owner::start();
    let answers = ["", "15007\n", "15008\n"];
    let server = FakeServer::start(answers.map(Act::answer).into());
    let address = server.address().to_string();
    let picked = pick(&owner, &["-n", "2", "--server", &address]);
    assert_eq!(picked.ports, [15_007, 15_008]);
    assert_eq!(picked.server, Some(address));
    assert!(picked.keeper.is_none());
}

#[test]
fn a_failing_server_in_the_environment_is_named_and_passed_over() {
    let cases = [
        (
            vec![Act::answer("no port\n")],
            "it answered `no port`, which is not a port",
        ),
        (vec![Act::answer("")], "refused a port"),
        (vec![], "refused a port"),
    ];
    let owner = Owner::start();
    for (scripts, reason) in cases {
        let server = FakeServer::start(scripts);
        let mut command = portpicker(&[&owner.pid()]);
        let ended = run(command.env("PORTSERVER_ADDRESS", server.address().to_string()));
        assert_eq!(ended.code, Some(0));
        assert!(
            ended
                .stdout
                .trim()
                .parse::<u16>()
                .is_ok_and(|port| port > 0),
            "{ended:?}"
        );
        assert!(ended.stderr.contains(reason), "{ended:?}");
        assert!(
            ended.stderr.ends_with("; picking without it\n"),
            "{ended:?}"
        );
    }
}

#[test]
fn a_server_named_on_the_command_line_is_the_only_way() {
    let owner = Owner::start();
    let with = |scripts, code| {
        let server = FakeServer::start(scripts);
        let address = server.address().to_string();
        let arguments = ["pick", "--owner", &owner.pid(), "--server", &address];
        let ended = run(&mut portpicker(&arguments));
        assert_eq!(
            (ended.code, ended.stdout.as_str()),
            (Some(code), ""),
            "{ended:?}"
        );
    };
    with(vec![Act::answer("70000\n")], 3);
    with(vec![Act::answer("150")], 3);
    with(vec![Act::answer("0\n")], 4);
    with(vec![], 4);
}

#[test]
fn no_server_means_none() {
    let owner = Owner::start();
    let server = FakeServer::start(vec![]);
    let mut command = portpicker(&["pick", "--no-server", "--owner", &owner.pid()]);
    let ended = run(command.env("PORTSERVER_ADDRESS", server.address().to_string()));
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
    assert_eq!(server.requests(), [""; 0]);
}

#[test]
fn what_the_original_protocol_cannot_ask_for_is_picked_without_it() {
    let owner = Owner::start();
    let server = FakeServer::start(vec![]);
    let mut command = portpicker(&["pick", "--tcp", "--owner", &owner.pid()]);
    let ended = run(command.env("PORTSERVER_ADDRESS", server.address().to_string()));
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
}
