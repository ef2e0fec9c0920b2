//! What if the state file is cut off, or garbage?

use std::fs;
use std::net::TcpListener;
use std::path::Path;

use portpicker_testing::in_network_namespace;

use crate::assert_all_different;
use crate::client::{Owner, lease};
use crate::server::{Setup, TestServer};

/// The ports that are leased and in use. There are two more in the pool.
const IN_USE: [u16; 5] = [20_000, 20_001, 20_002, 20_003, 20_004];

const POOL: &str = "20000-20006";

/// Leases and uses the ports. Returns what is to be kept, and the state file's bytes after a kill.
fn leased_and_in_use(state: &Path) -> (Vec<Owner>, Vec<TcpListener>, Vec<u8>) {
    let mut server = Setup::new(POOL).state(state).start();
    let owners: Vec<_> = IN_USE.map(|_| Owner::start()).into();
    let mut client = server.connect();
    for (owner, tag) in owners
        .iter()
        .zip(["a", "a \\\"text\\\"", "\\n", "\\u00e4", ""])
    {
        let members = format!(r#""owner":{},"tag":"{tag}""#, owner.pid());
        client.lease(&members);
    }
    // A line that takes one back.
    client.lease("");
    client.ok(r#"{"v":1,"op":"release","ports":[20005]}"#);
    server.kill();
    let used = IN_USE.map(|port| TcpListener::bind(("127.0.0.1", port)).unwrap());
    (owners, used.into(), fs::read(state).unwrap())
}

/// Asserts that the server grants both ports that are not in use, and nothing else.
fn assert_grants_the_rest(server: &TestServer, what: &str) {
    let mut client = server.connect();
    let mut granted = Vec::new();
    loop {
        let answer = client.tell(&lease(r#""owner":"connection""#));
        if answer["ok"] != true {
            assert_eq!(answer["error"], "exhausted", "{what}");
            break;
        }
        granted.extend(crate::client::ports(&answer));
    }
    granted.sort_unstable();
    assert_eq!(granted, [20_005, 20_006], "{what}");
    let listed: Vec<_> = server
        .list()
        .iter()
        .map(|lease| lease["port"].as_u64().unwrap() as u16)
        .collect();
    assert_all_different(&listed);
}

#[test]
fn a_state_file_cut_off_at_every_byte_is_adopted_up_to_there() {
    in_network_namespace(|| {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        let (_owners, _used, bytes) = leased_and_in_use(&state);
        for length in 0..=bytes.len() {
            let cut = &bytes[..length];
            fs::write(&state, cut).unwrap();
            let server = Setup::new(POOL).state(&state).start();
            let what = format!("{length} of {} bytes", bytes.len());

            let is_whole = cut.is_empty() || cut.ends_with(b"\n");
            let dropped = server
                .log
                .lines()
                .iter()
                .filter(|line| line.contains("dropped"))
                .count();
            assert_eq!(
                dropped,
                usize::from(!is_whole),
                "{what}: {:?}",
                server.log.lines()
            );
            let lines = cut.iter().filter(|&&byte| byte == b'\n').count();
            // The first line is no lease; the last but one, of the port after those in use, and
            // the last one, which takes it back, cannot be told from here.
            let leases = lines.saturating_sub(1).min(IN_USE.len());
            let adopted = server.list().len();
            let spare = usize::from(lines == IN_USE.len() + 2);
            assert_eq!(adopted, leases + spare, "{what}");
            if spare > 0 {
                server
                    .connect()
                    .ok(r#"{"v":1,"op":"release","ports":[20005]}"#);
            }
            assert_grants_the_rest(&server, &what);
        }
    });
}

#[test]
fn a_state_file_full_of_garbage_is_dropped_with_a_word() {
    in_network_namespace(|| {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        let (owners, _used, bytes) = leased_and_in_use(&state);
        let text = String::from_utf8(bytes.clone()).unwrap();
        let pid = owners[0].pid();
        let mut noise = vec![0; 100_000];
        let mut number = 1_u32;
        for byte in &mut noise {
            number = number.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            *byte = (number >> 24) as u8;
        }
        let lines = |lines: &str| [bytes.as_slice(), lines.as_bytes()].concat();
        let all = IN_USE.len();
        for (what, bytes, adopted, says) in [
            ("noise", noise.clone(), 0, "not of a state file"),
            (
                "noise in the middle",
                lines(&format!("{}\n{text}", "x".repeat(100_000))),
                all,
                "2 lines that",
            ),
            ("zeros", vec![0; 100_000], 0, "cut off"),
            ("newlines", vec![b'\n'; 100_000], 0, "not of a state file"),
            (
                "other texts",
                b"[]\n{}\n7\n\"lease\"\n{\"lease\":7}\n".to_vec(),
                0,
                "5 lines that",
            ),
            (
                "a later version",
                text.replace("\"version\":1", "\"version\":2").into_bytes(),
                0,
                "version 2",
            ),
            (
                "another start of the host",
                text.replacen("boot\":\"", "boot\":\"x", 1).into_bytes(),
                0,
                "started anew",
            ),
            (
                "no first line",
                text.split_once('\n').unwrap().1.into(),
                all,
                "",
            ),
            (
                "numbers that are none",
                lines(
                    "{\"lease\":{\"port\":70000,\"pid\":1,\"uid\":0,\"since\":1}}\n\
                     {\"lease\":{\"port\":20006,\"pid\":-1,\"uid\":0,\"since\":1}}\n\
                     {\"lease\":{\"port\":20006,\"pid\":1,\"uid\":0,\"since\":1e999}}\n",
                ),
                all,
                "3 lines that",
            ),
            (
                "numbers that are too high or low",
                lines(&format!(
                    "{{\"lease\":{{\"port\":20000,\"pid\":{pid},\"uid\":4294967295,\"since\":-1e300,\"expires\":1e300}}}}\n\
                     {{\"lease\":{{\"port\":20001,\"pid\":{pid},\"uid\":0,\"since\":1e300,\"expires\":1e300}}}}\n"
                )),
                all,
                "",
            ),
            (
                "a process that is another one",
                lines(&format!(
                    "{{\"lease\":{{\"port\":20006,\"pid\":{pid},\"inode\":1,\"started\":1,\"uid\":0,\"since\":1}}}}\n\
                     {{\"lease\":{{\"port\":20005,\"pid\":4000000,\"uid\":0,\"since\":1}}}}\n"
                )),
                all,
                "exited",
            ),
            (
                "a port that is not in the pool",
                lines(&format!(
                    "{{\"lease\":{{\"port\":30000,\"pid\":{pid},\"uid\":0,\"since\":1}}}}\n"
                )),
                all,
                "no longer in the pool",
            ),
        ] {
            fs::write(&state, &bytes).unwrap();
            let server = Setup::new(POOL).state(&state).start();
            let log = server.log.lines();
            assert!(
                log.iter().any(|line| line.contains(says)),
                "{what}: {log:?}"
            );
            assert_eq!(server.list().len(), adopted, "{what}");
            assert_grants_the_rest(&server, what);
        }
    });
}

#[test]
fn a_state_file_that_cannot_be_used_is_said_at_the_start() {
    in_network_namespace(|| {
        let folder = tempfile::tempdir().unwrap();
        let failure = |state: &Path| {
            let failed = Setup::new("20000").at("@other").state(state).try_start();
            failed.expect_err("the file cannot be used").join("\n")
        };
        let log = failure(folder.path());
        assert!(log.contains("cannot use the state file"), "{log}");
        let log = failure(&folder.path().join("none/state"));
        assert!(log.contains("cannot use the state file"), "{log}");
        // Two servers with one file would overwrite each other's leases.
        let state = folder.path().join("state");
        let _server = Setup::new("20000").state(&state).start();
        let log = failure(&state);
        assert!(log.contains("another server uses it"), "{log}");
    });
}

#[test]
fn the_state_file_does_not_grow_for_ever_and_is_for_its_user_alone() {
    use std::os::unix::fs::PermissionsExt;
    in_network_namespace(|| {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        let server = Setup::new("20000").state(&state).start();
        assert_eq!(
            fs::metadata(&state).unwrap().permissions().mode() & 0o777,
            0o600
        );
        let mut client = server.connect();
        let mut longest = 0;
        let mut shrunk = false;
        let end = std::time::Instant::now() + crate::LONG;
        // Each adds two lines; it is written anew a second after it is found to be too long.
        while !shrunk {
            assert!(std::time::Instant::now() < end);
            client.lease("");
            client.ok(r#"{"v":1,"op":"release","ports":[20000]}"#);
            let length = fs::metadata(&state).unwrap().len();
            shrunk = length < longest;
            longest = longest.max(length);
        }
        let head = fs::read_to_string(&state).unwrap();
        assert!(head.starts_with(r#"{"state":"#));
    });
}
