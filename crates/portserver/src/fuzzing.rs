//! What fuzz targets call: everything that reads bytes from outside, with what must hold for any.
//!
//! The targets are in `fuzz/`, with a corpus; the tests here run the corpus, and mutations of it that
//! are the same each time.

use std::net::IpAddr;

use hyper::header::{self, HeaderValue};
use serde_json::Value;

use crate::http;
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

/// Reads a request of the extended protocol, up to a newline, and returns what could be the answer.
pub fn extended(bytes: &[u8]) -> Vec<u8> {
    let line = bytes.split(|&byte| byte == b'\n').next();
    let parsed = wire::parse(line.unwrap_or_default());
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
    let members: Value = serde_json::from_slice(line).expect("an answer is JSON");
    assert_eq!(members["ok"], is_ok);
    assert_eq!(members.get("id").is_some(), id.is_some());
    if !id.as_ref().is_some_and(has_float) {
        assert_eq!(members.get("id"), id.as_ref());
    }
    answer
}

/// Tells whether `request`, a client's, is one that the server understands.
pub fn understands(request: &[u8]) -> bool {
    let line = request.strip_suffix(b"\n");
    line.is_some_and(|line| wire::parse(line).request.is_ok())
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

/// Reads the host that an HTTP request is for.
pub fn words(bytes: &[u8]) {
    let Ok(value) = HeaderValue::from_bytes(bytes) else {
        return;
    };
    let mut request = hyper::Request::new(());
    request.headers_mut().insert(header::HOST, value);
    if !http::names_this_host(&request) {
        return;
    }
    // Whoever answers to any other name lets in the pages of a web site that takes that name.
    let text = String::from_utf8_lossy(bytes).to_ascii_lowercase();
    let (_user, host) = text.rsplit_once('@').unwrap_or(("", &text));
    let address = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _port)) => address,
        None => host.split(':').next().expect("there is a first part"),
    };
    assert!(address.parse::<IpAddr>().is_ok() || address.rsplit('.').next() == Some("localhost"));
}

#[cfg(test)]
mod tests {
    use portpicker_testing::corpus;

    #[test]
    fn original_requests() {
        corpus::run("original", super::original);
    }

    #[test]
    fn extended_requests() {
        corpus::run("extended", |bytes| drop(super::extended(bytes)));
    }

    #[test]
    fn state_files() {
        corpus::run("state", super::state);
    }

    #[test]
    fn proc_files() {
        corpus::run("proc", super::proc);
    }

    #[test]
    fn hosts() {
        corpus::run("words", super::words);
    }
}
