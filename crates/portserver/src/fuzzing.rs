//! What fuzz targets call: everything that reads bytes from outside, with what must hold for any.
//!
//! The targets are in `fuzz/`, with a corpus; the tests here run the corpus, and mutations of it that
//! are the same each time.

use serde_json::Value;

use crate::proc;
use crate::state::{self, Line};
use crate::wire::{self, MAX_ORIGINAL, Original, Request};

/// Reads a request of the original protocol.
pub fn original(bytes: &[u8]) {
    let request = wire::parse_original(bytes);
    if bytes.len() > MAX_ORIGINAL {
        assert_eq!(request, None);
    }
    if let Some(Original::Lease(pid)) = request {
        let text = std::str::from_utf8(bytes).expect("a number is text");
        let digits = text.trim().trim_start_matches('+').trim_start_matches('0');
        assert_eq!(digits, pid.to_string());
    }
}

/// Reads a line of the extended protocol, and writes what could be the answer.
pub fn extended(bytes: &[u8]) {
    let parsed = wire::parse(bytes);
    let id = parsed.id.clone();
    let result = match parsed.request {
        Ok(request) => {
            check(&request);
            Ok(serde_json::json!({ "leases": [] }))
        }
        Err(failure) => {
            assert!(!failure.message.is_empty() && failure.code.is_client_error());
            Err(failure)
        }
    };
    let is_ok = result.is_ok();
    let answer = wire::answer(id.clone(), result, false);
    let line = answer.strip_suffix(b"\n").expect("an answer is a line");
    assert!(!line.contains(&b'\n'));
    let answer: Value = serde_json::from_slice(line).expect("an answer is JSON");
    assert_eq!(answer["ok"], is_ok);
    assert_eq!(answer.get("id").is_some(), id.is_some());
    if !id.as_ref().is_some_and(has_float) {
        assert_eq!(answer.get("id"), id.as_ref());
    }
}

/// Tells whether there is a number in `value` that may lose its last bit: a float, or an integer of
/// more than 64 bits.
fn has_float(value: &Value) -> bool {
    match value {
        Value::Number(number) => number.is_f64(),
        Value::Array(values) => values.iter().any(has_float),
        Value::Object(members) => members.values().any(has_float),
        _ => false,
    }
}

fn check(request: &Request) {
    match request {
        Request::Lease(lease) => {
            assert!((1..=1000).contains(&lease.count));
            assert!(lease.names.is_empty() || lease.names.len() == lease.count);
            assert!(
                lease
                    .names
                    .iter()
                    .all(|name| (1..=64).contains(&name.len()))
            );
            assert!(lease.tag.as_ref().is_none_or(|tag| tag.len() <= 200));
            assert!(lease.ttl.is_none_or(|ttl| !ttl.is_zero()));
            assert!(lease.wait.as_secs() <= 3600);
        }
        Request::Renew { ports, .. } | Request::Release { ports, .. } => {
            assert!(!ports.is_empty() && ports.is_sorted_by(|a, b| a < b));
        }
        Request::Hello | Request::List | Request::Stats => {}
    }
}

/// Reads a state file, and one with what was found in it.
pub fn state(bytes: &[u8]) {
    const BOOT: &str = "b";
    let found = state::parse(bytes, BOOT);
    assert!(found.leases.is_sorted_by(|a, b| a.port < b.port));
    assert!(found.leases.iter().all(|lease| lease.port != 0));
    let lines = bytes.split(|&byte| byte == b'\n').count();
    assert!(found.leases.len() < lines);

    let mut again = Vec::new();
    state::push_line(&mut again, &Line::head(BOOT));
    for lease in &found.leases {
        state::push_line(&mut again, &Line::Lease(lease.clone()));
    }
    let found_again = state::parse(&again, BOOT);
    assert!(found_again.dropped.is_empty());
    // Times may lose their last bit on the way: seconds since the host was started, as floats.
    let is_close = |a: f64, b: f64| (a - b).abs() <= a.abs() * 1e-12;
    assert_eq!(found_again.leases.len(), found.leases.len());
    for (mut again, lease) in found_again.leases.into_iter().zip(found.leases) {
        assert!(is_close(lease.since, again.since));
        again.since = lease.since;
        assert_eq!(again.expires.is_some(), lease.expires.is_some());
        if let (Some(end), Some(again)) = (lease.expires, &mut again.expires) {
            assert!(is_close(end, *again));
            *again = end;
        }
        assert_eq!(again, lease);
    }
}

/// Reads `/proc/PID/status` and `/proc/PID/stat`.
pub fn proc(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Some(status) = proc::Status::parse(&text, 7) {
        for depth in 0..status.depth() + 2 {
            let is_there = (1..=status.depth()).contains(&depth);
            assert_eq!(status.number_at(depth).is_some(), is_there);
        }
    }
    _ = proc::parse_start_time(&text);
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    /// Runs `target` on the files of its corpus, and on what becomes of them.
    fn run(name: &str, target: fn(&[u8])) {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../fuzz/corpus")
            .join(name);
        // A package that was taken out of the workspace has none.
        let Ok(files) = fs::read_dir(corpus) else {
            return;
        };
        let mut paths: Vec<_> = files.map(|file| file.unwrap().path()).collect();
        paths.sort();
        let seeds: Vec<Vec<u8>> = paths.iter().map(|path| fs::read(path).unwrap()).collect();
        assert!(seeds.len() > 3);
        let mut state = 1_u64;
        let mut random = move |end: usize| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 33) as usize % end.max(1)
        };
        for seed in &seeds {
            target(seed);
            for length in 0..seed.len() {
                target(&seed[..length]);
            }
        }
        for _ in 0..20_000 {
            let mut bytes = seeds[random(seeds.len())].clone();
            for _ in 0..=random(4) {
                let at = random(bytes.len() + 1);
                match random(4) {
                    0 => bytes.insert(at, random(256) as u8),
                    1 => bytes.truncate(at),
                    2 => {
                        let other = &seeds[random(seeds.len())];
                        let from = random(other.len() + 1);
                        bytes.truncate(at);
                        bytes.extend(&other[from..]);
                    }
                    _ if at < bytes.len() => bytes[at] = random(256) as u8,
                    _ => {}
                }
            }
            target(&bytes);
        }
    }

    #[test]
    fn original_requests() {
        run("original", super::original);
    }

    #[test]
    fn extended_requests() {
        run("extended", super::extended);
    }

    #[test]
    fn state_files() {
        run("state", super::state);
    }

    #[test]
    fn proc_files() {
        run("proc", super::proc);
    }
}
