//! What an operator gets over HTTP, and that nobody there can hold up anybody else.

#![expect(clippy::unwrap_used, reason = "its functions are tests too")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddress, UnixStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use portpicker::{Picker, PortSet};
use portpicker_testing::in_network_namespace;
use serde_json::{Value, json};

/// Only a failure waits so long.
const DEADLINE: Duration = Duration::from_secs(60);

/// As many connections as the server has at one time.
const MAX_CONNECTIONS: usize = 16;

#[test]
fn metrics_are_in_the_text_format() {
    let server = TestServer::start(&unused_ports(2));
    let answer = server.get("/metrics");
    assert_eq!(answer.status, 200);
    let content_type = "text/plain; version=0.0.4; charset=utf-8";
    assert_eq!(answer.header("content-type"), Some(content_type));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    let metrics = parse(&answer.body);

    let version = env!("CARGO_PKG_VERSION");
    let build = format!("portserver_build_info{{version=\"{version}\"}}");
    assert_eq!(metrics[&build], 1.0);
    assert!(metrics["portserver_start_time_seconds"] > 1.7e9);
    assert_eq!(metrics["portserver_state_file_behind"], 0.0);
}

#[test]
fn metrics_follow_what_clients_do() {
    let ports = unused_ports(2);
    let server = TestServer::start(&ports);
    let mut before = server.metrics();
    assert_eq!(before[r#"portserver_pool_ports{state="free"}"#], 2.0);
    // Returns what has changed since the last time, the times that requests take aside.
    let mut changes = || {
        let now = server.metrics();
        let changed: BTreeMap<String, f64> = now
            .iter()
            .filter(|(name, _)| !name.contains("_seconds_bucket") && !name.contains("_sum"))
            .map(|(name, value)| (name.replace("portserver_", ""), value - before[name]))
            .filter(|(_, change)| *change != 0.0)
            .collect();
        before = now;
        changed
    };
    let mut client = server.connect();
    client.ask(json!({"v": 1, "op": "hello"}));
    assert_eq!(
        changes(),
        expected(&[("clients", 1), ("request_duration_seconds_count", 1)])
    );

    let mut owner = Owner::spawn();
    let lease = client.ask(json!({"v": 1, "op": "lease", "count": 2, "owner": owner.pid()}));
    assert_eq!(lease["ok"], true, "{lease}");
    assert_eq!(
        changes(),
        expected(&[
            (r#"pool_ports{state="free"}"#, -2),
            (r#"pool_ports{state="leased"}"#, 2),
            ("owners", 1),
            ("grants_total", 2),
            ("request_duration_seconds_count", 1),
        ])
    );

    client.ask(json!({"v": 1, "op": "lease"}));
    client.ask(json!({"v": 1, "op": "lease", "owner": 1}));
    client.ask(json!({"v": 1, "op": "nonsense"}));
    assert_eq!(server.original("not a number\n"), "");
    let port = lease["leases"][0]["port"].clone();
    client.ask(json!({"v": 1, "op": "release", "ports": [port]}));
    client.ask(json!({"v": 1, "op": "release", "ports": [port]}));
    assert_eq!(
        changes(),
        expected(&[
            (r#"pool_ports{state="free"}"#, 1),
            (r#"pool_ports{state="leased"}"#, -1),
            (r#"refusals_total{reason="exhausted"}"#, 1),
            (r#"refusals_total{reason="no-process"}"#, 1),
            (r#"refusals_total{reason="not-leased"}"#, 1),
            (r#"leases_ended_total{cause="released"}"#, 1),
            ("client_errors_total", 2),
            ("request_duration_seconds_count", 6),
        ])
    );

    // It waits for both, so its answer is the event: the owner has exited.
    client.send(json!({"v": 1, "op": "lease", "count": 2, "ttl": 0.001, "wait": 60}));
    server.wait_for("portserver_waiting_requests", 1.0);
    owner.kill();
    assert_eq!(client.receive()["ok"], true);
    // And of this one: the time of the former is over.
    let last = client.ask(json!({"v": 1, "op": "lease", "count": 2, "wait": 60}));
    assert_eq!(last["ok"], true, "{last}");
    assert_eq!(
        changes(),
        expected(&[
            (r#"pool_ports{state="free"}"#, -1),
            (r#"pool_ports{state="leased"}"#, 1),
            ("grants_total", 4),
            (r#"leases_ended_total{cause="reclaimed"}"#, 1),
            (r#"leases_ended_total{cause="expired"}"#, 2),
            ("reclaim_delay_seconds_count", 1),
            ("request_duration_seconds_count", 2),
        ])
    );
}

#[test]
fn leases_are_those_that_clients_list() {
    let server = TestServer::start(&unused_ports(3));
    assert_eq!(
        server.leases(),
        json!({"ok": true, "leases": []}),
        "nothing is leased"
    );
    let mut client = server.connect();
    let tag = "\u{fc}\"<b>\n";
    client.ask(json!({"v": 1, "op": "lease", "names": ["a", "b"], "tag": tag, "ttl": 60}));
    client.ask(json!({"v": 1, "op": "lease", "owner": "connection"}));

    let answer = server.get("/leases");
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
    let mut leases: Value = serde_json::from_str(&answer.body).unwrap();
    let mut listed = client.ask(json!({"v": 1, "op": "list"}));
    assert_eq!(leases["leases"].as_array().unwrap().len(), 3);
    for lease in [&mut leases, &mut listed]
        .into_iter()
        .flat_map(|list| list["leases"].as_array_mut().unwrap())
    {
        // Time has passed between the two.
        lease["age"].take();
        lease["expires"].take();
    }
    assert_eq!(leases, listed);
}

/// They are looked up a few at a time.
#[test]
fn many_leases_are_listed_in_order() {
    in_network_namespace(|| {
        let server = TestServer::start(&"20000-20999".parse().unwrap());
        let mut client = server.connect();
        let lease = client.ask(json!({"v": 1, "op": "lease", "count": 1000}));
        assert_eq!(lease["ok"], true, "{lease}");
        let leases = server.leases();
        let leases = leases["leases"].as_array().unwrap();
        let ports = leases.iter().map(|lease| lease["port"].as_u64().unwrap());
        assert!(ports.eq(20_000..21_000));
    });
}

#[test]
fn the_highest_port_is_listed() {
    in_network_namespace(|| {
        let server = TestServer::start(&"65535".parse().unwrap());
        let mut client = server.connect();
        client.ask(json!({"v": 1, "op": "lease"}));
        assert_eq!(server.leases()["leases"][0]["port"], 65_535);
    });
}

#[test]
fn health_and_an_index_are_plain_text() {
    let server = TestServer::start(&unused_ports(1));
    let health = server.get("/healthz");
    assert_eq!((health.status, health.body.as_str()), (200, "ok\n"));
    let index = server.get("/?of=everything");
    assert_eq!(index.status, 200);
    for path in ["/metrics", "/healthz", "/leases"] {
        assert!(index.body.contains(path), "{path}");
    }
}

#[test]
fn other_paths_and_methods_are_refused() {
    let server = TestServer::start(&unused_ports(1));
    for path in [
        "/other",
        "/metrics/",
        "//metrics",
        "/Metrics",
        "/healthz%20",
    ] {
        assert_eq!(server.get(path).status, 404, "{path}");
    }
    for path in ["/", "/metrics", "/healthz", "/leases"] {
        for method in ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "NONSENSE"] {
            let answer = server.http(&format!("{method} {path} HTTP/1.1\r\nHost: [::1]\r\n\r\n"));
            assert_eq!(answer.status, 405, "{method} {path}");
            assert_eq!(answer.header("allow"), Some("GET, HEAD"));
        }
        let answer = server.http(&format!("HEAD {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
        assert_eq!((answer.status, answer.body.as_str()), (200, ""), "{path}");
    }
}

#[test]
fn a_web_page_cannot_ask_under_a_name_of_its_own() {
    let server = TestServer::start(&unused_ports(1));
    let port = server.http.port();
    for host in ["example.com", "localhost.example.com"] {
        let answer = server.http(&format!("GET / HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n"));
        assert_eq!(answer.status, 421, "{host}");
        assert!(!answer.body.contains("metrics"), "{}", answer.body);
    }
}

#[test]
fn a_client_may_be_as_simple_as_a_shell() {
    let server = TestServer::start(&unused_ports(1));
    let mut stream = server.http_stream();
    stream.write_all(b"GET /healthz HTTP/1.0\n\n").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(Answer::read(stream).body, "ok\n");
}

#[test]
fn garbage_is_refused_and_harms_nobody() {
    let server = TestServer::start(&unused_ports(1));
    let long = [b"GET / HTTP/1.1\r\nA: ".as_slice(), &[b'a'; 100_000]].concat();
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "A: a\r\n".repeat(1000));
    let noise: Vec<u8> = (0..100_000_u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let tls = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";
    for (bytes, statuses) in [
        (long.as_slice(), &[431][..]),
        (many.as_bytes(), &[431]),
        (b"GET / HTTP/9.9\r\n\r\n", &[400, 505]),
        (b"GET /\r\n\r\n", &[400]),
        (b"12345\n", &[400]),
        (tls, &[400]),
        (&noise, &[400]),
        (b"\n", &[]),
        (b"", &[]),
    ] {
        let mut stream = server.http_stream();
        // It may answer and hang up before it has everything.
        _ = stream.write_all(bytes);
        _ = stream.shutdown(Shutdown::Write);
        let mut answer = Vec::new();
        _ = stream.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer);
        // An answer may be lost if the server hangs up while there is more to read.
        assert!(
            answer.is_empty()
                || statuses
                    .iter()
                    .any(|status| answer.starts_with(&format!("HTTP/1.1 {status} "))),
            "{answer} to {:?}",
            String::from_utf8_lossy(&bytes[..bytes.len().min(40)])
        );
    }
    assert_eq!(server.get("/healthz").status, 200);
}

#[test]
fn silent_clients_keep_nobody_out() {
    let server = TestServer::start(&unused_ports(1));
    let mut silent: Vec<TcpStream> = (0..MAX_CONNECTIONS).map(|_| server.http_stream()).collect();
    // One of them has sent a part, another does not read.
    silent[1].write_all(b"GET /metr").unwrap();
    silent[2].write_all(b"GET /leases HTTP/1.1\r\n").unwrap();
    for _ in 0..3 * MAX_CONNECTIONS {
        assert_eq!(server.get("/healthz").status, 200);
    }
    assert!(server.original_for_us().parse::<u16>().is_ok());
    // The oldest has made room for the others.
    assert!(is_closed(&mut silent[0]));
}

#[test]
fn a_flood_of_connections_is_bounded() {
    let server = TestServer::start(&unused_ports(1));
    let flood: Vec<TcpStream> = (0..20 * MAX_CONNECTIONS)
        .map(|_| server.http_stream())
        .collect();
    assert_eq!(server.get("/healthz").status, 200);
    let sockets = std::fs::read_dir(format!("/proc/{}/fd", server.process.id()))
        .unwrap()
        .filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok())
        .filter(|target| target.to_string_lossy().starts_with("socket:"))
        .count();
    assert!(sockets < 2 * MAX_CONNECTIONS, "{sockets}");
    drop(flood);
}

/// The one test that takes as long as the server is patient.
#[test]
fn a_client_that_stays_silent_is_hung_up_on() {
    let server = TestServer::start(&unused_ports(1));
    let mut silent = server.http_stream();
    let mut slow = server.http_stream();
    slow.write_all(b"GET / HTTP/1.1\r\nHost: ").unwrap();
    assert!(is_closed(&mut silent) && is_closed(&mut slow));
}

#[test]
fn an_address_that_is_taken_is_an_error_at_the_start() {
    let server = TestServer::start(&unused_ports(1));
    let mut second = TestServer::command(&unused_ports(1), &server.http.to_string())
        .spawn()
        .unwrap();
    let _lifeline = second.stdin.take();
    let output = second.wait_with_output().unwrap();
    let log = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{log}");
    let message = format!("cannot serve HTTP at `{}`", server.http);
    assert!(log.contains(&message), "{log}");
}

#[test]
fn other_addresses_can_have_names() {
    let server = TestServer::start_at(&unused_ports(1), "0.0.0.0:0");
    let answer = server.http("GET /healthz HTTP/1.1\r\nHost: node-1.example.com\r\n\r\n");
    assert_eq!(answer.status, 200);
}

/// A port server that is killed at the end.
struct TestServer {
    process: Child,
    /// A name in the abstract namespace.
    name: String,
    http: SocketAddr,
}

impl TestServer {
    fn start(ports: &PortSet) -> Self {
        Self::start_at(ports, "127.0.0.1:0")
    }

    fn start_at(ports: &PortSet, http: &str) -> Self {
        let mut command = Self::command(ports, http);
        let name = command.get_args().next().unwrap().to_str().unwrap();
        let name = name.strip_prefix('@').unwrap().to_owned();
        let mut process = command.spawn().unwrap();
        let mut log = BufReader::new(process.stderr.take().unwrap()).lines();
        let mut http: SocketAddr = log
            .by_ref()
            .map(Result::unwrap)
            .find_map(|line| {
                let (_, rest) = line.split_once("http://")?;
                rest.strip_suffix("/metrics")?.parse().ok()
            })
            .expect("it tells its address");
        if http.ip().is_unspecified() {
            http.set_ip([127, 0, 0, 1].into());
        }
        std::thread::spawn(|| log.for_each(drop));
        let mut ready = String::new();
        let output = process.stdout.take().unwrap();
        BufReader::new(output).read_line(&mut ready).unwrap();
        assert_eq!(ready, "ready\n");
        Self {
            process,
            name,
            http,
        }
    }

    fn command(ports: &PortSet, http: &str) -> Command {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("@portserver-http/{}/{count}", std::process::id());
        // target/debug/deps/http-… → target/debug/examples/serve
        let test = std::env::current_exe().unwrap();
        let example = test.ancestors().nth(2).unwrap().join("examples/serve");
        let mut command = Command::new(example);
        command
            .args([name, ports.to_string(), format!("http={http}")])
            // It ends with this, and so with the test.
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn http_stream(&self) -> TcpStream {
        let stream = TcpStream::connect(self.http).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        stream
    }

    fn http(&self, request: &str) -> Answer {
        let mut stream = self.http_stream();
        stream.write_all(request.as_bytes()).unwrap();
        Answer::read(stream)
    }

    fn get(&self, path: &str) -> Answer {
        let host = self.http;
        self.http(&format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n"))
    }

    fn metrics(&self) -> BTreeMap<String, f64> {
        parse(&self.get("/metrics").body)
    }

    fn leases(&self) -> Value {
        serde_json::from_str(&self.get("/leases").body).unwrap()
    }

    /// Asks until a metric has a value that it surely will have.
    fn wait_for(&self, metric: &str, value: f64) {
        let end = std::time::Instant::now() + DEADLINE;
        while self.metrics()[metric] != value {
            assert!(std::time::Instant::now() < end, "{metric} is not {value}");
        }
    }

    fn connect(&self) -> Client {
        Client(BufReader::new(self.stream()))
    }

    /// Sends a request of the original protocol, and returns the answer.
    fn original(&self, request: &str) -> String {
        let mut stream = self.stream();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.trim_end().to_owned()
    }

    fn original_for_us(&self) -> String {
        self.original(&format!("{}\n", std::process::id()))
    }

    fn stream(&self) -> UnixStream {
        let address = UnixAddress::from_abstract_name(&self.name).unwrap();
        let stream = UnixStream::connect_addr(&address).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        _ = self.process.kill();
        _ = self.process.wait();
    }
}

/// A client of the extended protocol.
struct Client(BufReader<UnixStream>);

impl Client {
    fn ask(&mut self, request: Value) -> Value {
        self.send(request);
        self.receive()
    }

    fn send(&mut self, request: Value) {
        writeln!(self.0.get_mut(), "{request}").unwrap();
    }

    fn receive(&mut self) -> Value {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }
}

/// A process that does nothing, until it is killed.
struct Owner(Child);

impl Owner {
    fn spawn() -> Self {
        let mut command = Command::new("cat");
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        Self(command.spawn().unwrap())
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }

    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: String,
}

impl Answer {
    fn read(mut stream: TcpStream) -> Self {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        let text = String::from_utf8(bytes).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let mut lines = head.lines();
        let status = lines.next().unwrap().split(' ').nth(1).unwrap();
        let mut answer = Self {
            status: status.parse().unwrap(),
            headers: lines
                .map(|line| line.split_once(": ").unwrap())
                .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
                .collect(),
            body: String::new(),
        };
        answer.body = match answer.header("transfer-encoding") {
            Some("chunked") if !body.is_empty() => join_chunks(body),
            _ => body.to_owned(),
        };
        answer
    }

    fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.iter().filter(|(other, _)| other == name);
        let value = values.next().map(|(_, value)| value.as_str());
        assert!(values.next().is_none(), "{name} is there twice");
        value
    }
}

fn join_chunks(mut body: &str) -> String {
    let mut joined = String::new();
    loop {
        let (length, rest) = body.split_once("\r\n").unwrap();
        let length = usize::from_str_radix(length, 16).unwrap();
        let (chunk, rest) = rest.split_at(length);
        joined.push_str(chunk);
        body = rest.strip_prefix("\r\n").unwrap();
        if length == 0 {
            assert_eq!(body, "");
            return joined;
        }
    }
}

/// Waits for the end of a stream, and tells whether it comes.
fn is_closed(stream: &mut TcpStream) -> bool {
    match stream.read_to_end(&mut Vec::new()) {
        Ok(_) => true,
        Err(err) => err.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

/// Returns a set of ports that were unused a moment ago.
fn unused_ports(count: usize) -> PortSet {
    let leases = Picker::new().leases(count).unwrap();
    let ports: Vec<String> = leases
        .iter()
        .map(|lease| lease.port().to_string())
        .collect();
    ports.join(",").parse().unwrap()
}

fn expected(changes: &[(&str, i32)]) -> BTreeMap<String, f64> {
    changes
        .iter()
        .map(|&(name, change)| (name.to_owned(), f64::from(change)))
        .collect()
}

/// Reads metrics as strictly as the format's description permits, and returns the samples by name
/// and labels.
fn parse(text: &str) -> BTreeMap<String, f64> {
    assert!(text.ends_with('\n'), "the last line has its end");
    let mut samples = BTreeMap::new();
    let mut families = BTreeSet::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let (name, help) = line
            .strip_prefix("# HELP ")
            .and_then(|rest| rest.split_once(' '))
            .unwrap_or_else(|| panic!("a family begins with its help: {line}"));
        assert!(is_name(name) && name.starts_with("portserver_"), "{name}");
        assert!(!help.is_empty() && !help.contains('\\'), "{help}");
        assert!(families.insert(name), "{name} is there twice");
        let kind = lines
            .next()
            .and_then(|line| line.strip_prefix(&format!("# TYPE {name} ")))
            .unwrap_or_else(|| panic!("{name} has no type"));
        assert_eq!(kind == "counter", name.ends_with("_total"), "{name}");
        let mut family = Vec::new();
        while let Some(line) = lines.next_if(|line| !line.starts_with('#')) {
            let (key, value) = line.rsplit_once(' ').unwrap();
            let value: f64 = value.parse().unwrap_or_else(|_| panic!("{line}"));
            assert!(kind == "gauge" || value >= 0.0, "{line}");
            let (base, labels) = match key.split_once('{') {
                Some((base, labels)) => (base, labels.strip_suffix('}').unwrap()),
                None => (key, ""),
            };
            for label in labels.split(',').filter(|label| !label.is_empty()) {
                let (label, value) = label.split_once('=').unwrap();
                let value = value.strip_prefix('"').and_then(|v| v.strip_suffix('"'));
                assert!(
                    is_name(label) && !value.unwrap().contains(['"', '\\']),
                    "{line}"
                );
            }
            if kind != "histogram" {
                assert_eq!(base, name, "{line}");
            }
            assert!(samples.insert(key.to_owned(), value).is_none(), "{line}");
            family.push((base, labels, value));
        }
        assert!(!family.is_empty(), "{name} has no samples");
        match kind {
            "counter" | "gauge" => {}
            "histogram" => check_histogram(name, &family),
            _ => panic!("{name} is a {kind}"),
        }
    }
    samples
}

fn check_histogram(name: &str, samples: &[(&str, &str, f64)]) {
    let [buckets @ .., sum, count] = samples else {
        panic!("{name} has too few samples");
    };
    let mut last = (f64::NEG_INFINITY, 0.0);
    for (base, labels, value) in buckets {
        assert_eq!(*base, format!("{name}_bucket"));
        let bound = labels.strip_prefix("le=\"").unwrap().strip_suffix('"');
        let bound: f64 = bound.unwrap().parse().unwrap();
        assert!(bound > last.0 && *value >= last.1, "{name}: {bound}");
        last = (bound, *value);
    }
    assert_eq!(
        last,
        (f64::INFINITY, count.2),
        "{name}: the last bucket has all"
    );
    assert_eq!((sum.0, sum.1), (format!("{name}_sum").as_str(), ""));
    assert_eq!((count.0, count.1), (format!("{name}_count").as_str(), ""));
}

fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_lowercase())
        && text
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}
