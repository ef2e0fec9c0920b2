//! Socket files: whose they are, and which are replaced.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;

use super::{Place, Running, connect, exists, is_root, own_pid};
use crate::support::run;

fn start_at(place: &Place, path: &str, options: &[&str]) -> Running {
    Running::start(&mut place.server(&[&["--address", path], options].concat()))
}

#[test]
fn a_stale_socket_file_is_replaced() {
    let place = Place::new();
    let path = place.path("socket");
    drop(UnixListener::bind(&path).unwrap());
    assert!(exists(&path));
    let server = start_at(&place, &path, &[]);
    connect(&path).unwrap();
    server.stop();
    assert!(!exists(&path), "it is removed at the end");
}

#[test]
fn a_live_socket_and_other_files_are_not_replaced() {
    let place = Place::new();
    let (live, file, folder) = (place.path("live"), place.path("file"), place.path("folder"));
    let server = start_at(&place, &live, &[]);
    fs::write(&file, "precious").unwrap();
    fs::create_dir(&folder).unwrap();
    for (path, reason) in [
        (&live, "another server listens there"),
        (&file, "there is a file, and it is not a socket"),
        (&folder, "there is a file, and it is not a socket"),
    ] {
        let ended = run(&mut place.server(&["--address", path]));
        assert_eq!(ended.code, Some(6));
        assert_eq!(
            ended.stderr,
            format!("portserver: cannot listen at `{path}`: {reason}\n")
        );
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
    connect(&live).unwrap();
    server.stop();
}

#[test]
fn a_socket_file_that_is_anothers_by_now_is_not_removed() {
    let place = Place::new();
    let path = place.path("socket");
    let server = start_at(&place, &path, &[]);
    fs::remove_file(&path).unwrap();
    let other = start_at(&place, &path, &[]);
    server.stop();
    connect(&path).unwrap();
    other.stop();
}

#[test]
fn a_relative_path_is_relative_to_where_the_server_was_started() {
    let place = Place::new();
    let server = start_at(&place, "socket", &[]);
    connect(&place.path("socket")).unwrap();
    server.stop();
    assert!(!exists(&place.path("socket")));
}

#[test]
fn a_socket_file_has_the_mode_and_the_owner_that_were_asked_for() {
    let place = Place::new();
    let path = place.path("socket");
    let server = start_at(&place, &path, &[]);
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o666
    );
    server.stop();

    let group = rustix::process::getegid().as_raw();
    let (owner, expected) = match is_root() {
        true => ("nobody:7".to_owned(), Some(7)),
        false => (format!(":{group}"), None),
    };
    let options = ["--socket-mode", "0620", "--socket-owner", &owner];
    let server = start_at(&place, &path, &options);
    let data = fs::metadata(&path).unwrap();
    assert_eq!(data.permissions().mode() & 0o777, 0o620);
    assert_eq!(data.gid(), expected.unwrap_or(group));
    assert_eq!(
        data.uid() == rustix::process::geteuid().as_raw(),
        !is_root()
    );
    server.stop();
}

#[test]
fn a_server_ends_at_once_if_nobody_is_connected() {
    let place = Place::new();
    let server = place.start(&[]);
    assert!(super::ask(place.name(), own_pid()).is_some());
    let log = server.stop();
    // Seconds within the minute: how long the test takes to see the end does not count.
    let second = |text: &str| -> f64 {
        let line = log.lines().find(|line| line.contains(text)).unwrap();
        let time = line.split_once("Z ").unwrap().0;
        time.rsplit_once(':').unwrap().1.parse().unwrap()
    };
    let took = (second("total-allocations") - second("told to end")).rem_euclid(60.0);
    assert!(took < 0.9, "{log}");
}
