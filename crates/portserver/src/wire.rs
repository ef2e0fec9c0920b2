//! What crosses the socket: both protocols as texts, and no I/O. `docs/protocol.md` has them in full.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use portpicker::process::Pid;
use portpicker::{Kind, PortSet};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The version of the extended protocol.
pub(crate) const VERSION: u64 = 1;

/// The longest line of the extended protocol, with its newline.
pub(crate) const MAX_LINE: usize = 65_536;

/// The longest request of the original protocol, with its newline, as in portserver.py.
pub(crate) const MAX_ORIGINAL: usize = 20;

/// The most ports that one request leases.
const MAX_COUNT: usize = 1000;

/// The longest wait.
const MAX_WAIT: Duration = Duration::from_secs(3600);

/// A request of the original protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Original {
    /// A port for this process.
    Lease(Pid),
    /// A number that no process can have: refused, not an error.
    NoProcess,
}

/// Reads a request of the original protocol; `None` if it is none.
///
/// A sign and blanks around the number are allowed, as Python's `int()` allows them.
pub(crate) fn parse_original(bytes: &[u8]) -> Option<Original> {
    if bytes.len() > MAX_ORIGINAL {
        return None;
    }
    let text = std::str::from_utf8(bytes).ok()?.trim_ascii();
    let number: i64 = text.parse().ok()?;
    Some(match u32::try_from(number).ok().and_then(Pid::new) {
        Some(pid) => Original::Lease(pid),
        None => Original::NoProcess,
    })
}

/// A request of the extended protocol.
#[derive(Debug, PartialEq)]
pub(crate) enum Request {
    Hello,
    Lease(Box<LeaseRequest>),
    Renew {
        ports: Vec<u16>,
        owner: Option<Owner>,
        ttl: Duration,
    },
    Release {
        ports: Vec<u16>,
        owner: Option<Owner>,
    },
    List,
    Stats,
}

/// What is to be leased.
#[derive(Debug, PartialEq)]
pub(crate) struct LeaseRequest {
    pub(crate) count: usize,
    pub(crate) names: Vec<Box<str>>,
    pub(crate) contiguous: bool,
    pub(crate) ports: Option<PortSet>,
    pub(crate) exclude: Option<PortSet>,
    pub(crate) prefer: Vec<u16>,
    pub(crate) only: Option<Kind>,
    pub(crate) address: Option<IpAddr>,
    pub(crate) owner: Owner,
    pub(crate) ttl: Option<Duration>,
    pub(crate) wait: Duration,
    pub(crate) tag: Option<Box<str>>,
}

/// Who is to own the ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    Peer,
    Connection,
    Process(Pid),
}

/// Why something was refused. The names are part of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    BadRequest,
    BadVersion,
    BadOp,
    Exhausted,
    NoProcess,
    Forbidden,
    OverLimit,
    NotLeased,
    Busy,
    Stopping,
    Failed,
}

impl Code {
    /// Those that refuse a request that was understood.
    pub(crate) const REFUSALS: [Self; 8] = [
        Self::Exhausted,
        Self::NoProcess,
        Self::Forbidden,
        Self::OverLimit,
        Self::NotLeased,
        Self::Busy,
        Self::Stopping,
        Self::Failed,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::BadRequest => "bad-request",
            Self::BadVersion => "bad-version",
            Self::BadOp => "bad-op",
            Self::Exhausted => "exhausted",
            Self::NoProcess => "no-process",
            Self::Forbidden => "forbidden",
            Self::OverLimit => "over-limit",
            Self::NotLeased => "not-leased",
            Self::Busy => "busy",
            Self::Stopping => "stopping",
            Self::Failed => "failed",
        }
    }

    /// Tells whether it is the client's request that was wrong, and not its wish.
    pub(crate) fn is_client_error(self) -> bool {
        matches!(self, Self::BadRequest | Self::BadVersion | Self::BadOp)
    }
}

/// A failure: the code for programs, the text for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) code: Code,
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn new(code: Code, message: impl fmt::Display) -> Self {
        Self {
            code,
            message: message.to_string(),
        }
    }
}

/// A line of the extended protocol, read.
#[derive(Debug, PartialEq)]
pub(crate) struct Parsed {
    /// What the answer is to carry.
    pub(crate) id: Option<Value>,
    pub(crate) request: Result<Request, Failure>,
}

/// Reads a line of the extended protocol, without its newline.
pub(crate) fn parse(line: &[u8]) -> Parsed {
    let bad = |message: String| Failure::new(Code::BadRequest, message);
    let mut members = match serde_json::from_slice::<Value>(line) {
        Ok(Value::Object(members)) => members,
        Ok(_) => {
            return Parsed {
                id: None,
                request: Err(bad("a request is a JSON object".into())),
            };
        }
        Err(err) => {
            return Parsed {
                id: None,
                request: Err(bad(format!("not JSON: {err}"))),
            };
        }
    };
    let id = members.remove("id");
    let request = match (members.remove("v"), members.remove("op")) {
        (Some(Value::Number(version)), _) if version.as_u64() != Some(VERSION) => {
            Err(Failure::new(
                Code::BadVersion,
                format!("this server speaks version {VERSION}"),
            ))
        }
        (Some(Value::Number(_)), Some(Value::String(op))) => parse_op(&op, Value::Object(members)),
        (Some(Value::Number(_)), _) => Err(bad("`op`, a text, is missing".into())),
        _ => Err(bad("`v`, a number, is missing".into())),
    };
    Parsed { id, request }
}

fn parse_op(op: &str, members: Value) -> Result<Request, Failure> {
    match op {
        "hello" => read::<Nothing>(members).map(|_| Request::Hello),
        "list" => read::<Nothing>(members).map(|_| Request::List),
        "stats" => read::<Nothing>(members).map(|_| Request::Stats),
        "release" => {
            let Release { ports, owner } = read(members)?;
            Ok(Request::Release {
                ports: checked_ports(ports)?,
                owner: owner.map(checked_owner).transpose()?,
            })
        }
        "renew" => {
            let Renew { ports, owner, ttl } = read(members)?;
            Ok(Request::Renew {
                ports: checked_ports(ports)?,
                owner: owner.map(checked_owner).transpose()?,
                ttl: checked_ttl(ttl)?,
            })
        }
        "lease" => read::<Lease>(members)?
            .check()
            .map(|lease| Request::Lease(Box::new(lease))),
        _ => Err(Failure::new(
            Code::BadOp,
            format!("`{}` is not an operation of this server", op.escape_debug()),
        )),
    }
}

fn read<T: for<'de> Deserialize<'de>>(members: Value) -> Result<T, Failure> {
    serde_json::from_value(members).map_err(|err| Failure::new(Code::BadRequest, err))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Release {
    ports: Vec<u16>,
    owner: Option<OwnerMember>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Renew {
    ports: Vec<u16>,
    owner: Option<OwnerMember>,
    ttl: f64,
}

/// The members of a request for a lease, as they come.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Lease {
    count: Option<usize>,
    #[serde(default)]
    names: Vec<Box<str>>,
    #[serde(default)]
    contiguous: bool,
    ports: Option<String>,
    exclude: Option<String>,
    #[serde(default)]
    prefer: Vec<u16>,
    only: Option<Transport>,
    address: Option<IpAddr>,
    owner: Option<OwnerMember>,
    ttl: Option<f64>,
    wait: Option<f64>,
    tag: Option<Box<str>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Transport {
    Tcp,
    Udp,
}

#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "`owner` is \"peer\", \"connection\", or a process id"
)]
enum OwnerMember {
    Word(OwnerWord),
    Process(u32),
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum OwnerWord {
    Peer,
    Connection,
}

impl Lease {
    fn check(self) -> Result<LeaseRequest, Failure> {
        let bad = |message: String| Err(Failure::new(Code::BadRequest, message));
        let count = match (self.count, self.names.len()) {
            (None, 0) => 1,
            (None, names) => names,
            (Some(count), names) if names != 0 && names != count => {
                return bad(format!("{names} names for {count} ports"));
            }
            (Some(count), _) => count,
        };
        if !(1..=MAX_COUNT).contains(&count) {
            return bad(format!("`count` is 1 to {MAX_COUNT}, not {count}"));
        }
        for (index, name) in self.names.iter().enumerate() {
            if name.is_empty() || name.len() > 64 || self.names[..index].contains(name) {
                return bad("`names` are different texts of 1 to 64 bytes".into());
            }
        }
        let set = |member: &str, text: Option<String>| match text.map(|text| text.parse()) {
            None => Ok(None),
            Some(Ok(set)) => Ok(Some(set)),
            Some(Err(err)) => Err(Failure::new(Code::BadRequest, format!("`{member}`: {err}"))),
        };
        let owner = self.owner.map_or(Ok(Owner::Peer), checked_owner)?;
        let wait = match self
            .wait
            .map_or(Ok(Duration::ZERO), Duration::try_from_secs_f64)
        {
            Ok(wait) if wait <= MAX_WAIT => wait,
            _ => return bad(format!("`wait` is 0 to {} seconds", MAX_WAIT.as_secs())),
        };
        if self.tag.as_ref().is_some_and(|tag| tag.len() > 200) {
            return bad("`tag` has at most 200 bytes".into());
        }
        Ok(LeaseRequest {
            count,
            names: self.names,
            contiguous: self.contiguous,
            ports: set("ports", self.ports)?,
            exclude: set("exclude", self.exclude)?,
            prefer: self.prefer,
            only: self.only.map(|transport| match transport {
                Transport::Tcp => Kind::Tcp,
                Transport::Udp => Kind::Udp,
            }),
            address: self.address,
            owner,
            ttl: self.ttl.map(checked_ttl).transpose()?,
            wait,
            tag: self.tag,
        })
    }
}

fn checked_owner(owner: OwnerMember) -> Result<Owner, Failure> {
    match owner {
        OwnerMember::Word(OwnerWord::Peer) => Ok(Owner::Peer),
        OwnerMember::Word(OwnerWord::Connection) => Ok(Owner::Connection),
        OwnerMember::Process(pid) => match Pid::new(pid) {
            Some(pid) => Ok(Owner::Process(pid)),
            None => {
                let message = format!("`owner`: {pid} is not a process id");
                Err(Failure::new(Code::BadRequest, message))
            }
        },
    }
}

fn checked_ttl(seconds: f64) -> Result<Duration, Failure> {
    match Duration::try_from_secs_f64(seconds) {
        Ok(ttl) if !ttl.is_zero() => Ok(ttl),
        _ => Err(Failure::new(
            Code::BadRequest,
            "`ttl` is a number of seconds above 0",
        )),
    }
}

fn checked_ports(mut ports: Vec<u16>) -> Result<Vec<u16>, Failure> {
    ports.sort_unstable();
    ports.dedup();
    if ports.is_empty() {
        return Err(Failure::new(Code::BadRequest, "`ports` is empty"));
    }
    Ok(ports)
}

/// Returns an answer of the extended protocol, with its newline.
pub(crate) fn answer(id: Option<Value>, result: Result<Value, Failure>, closing: bool) -> Vec<u8> {
    let mut members = match result {
        Ok(Value::Object(mut members)) => {
            members.insert("ok".into(), true.into());
            members
        }
        Ok(_) => unreachable!("every answer is an object"),
        Err(Failure { code, message }) => {
            let mut members = serde_json::Map::new();
            members.insert("ok".into(), false.into());
            members.insert("error".into(), code.name().into());
            members.insert("message".into(), message.into());
            if code == Code::BadVersion {
                members.insert("versions".into(), vec![VERSION].into());
            }
            members
        }
    };
    if let Some(id) = id {
        members.insert("id".into(), id);
    }
    if closing {
        members.insert("closing".into(), true.into());
    }
    let mut line = Value::Object(members).to_string().into_bytes();
    line.push(b'\n');
    line
}

/// A lease, as `list` shows it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ListedLease {
    pub(crate) port: u16,
    pub(crate) pid: Option<u32>,
    pub(crate) uid: u32,
    pub(crate) command: Option<String>,
    pub(crate) age: f64,
    pub(crate) expires: Option<f64>,
    pub(crate) name: Option<String>,
    pub(crate) tag: Option<String>,
}

/// The numbers that `stats` shows.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Numbers {
    pub(crate) pool: usize,
    pub(crate) free: usize,
    pub(crate) leased: usize,
    pub(crate) resting: usize,
    pub(crate) owners: usize,
    pub(crate) clients: usize,
    pub(crate) waiting: usize,
    pub(crate) granted: u64,
    pub(crate) refused: std::collections::BTreeMap<&'static str, u64>,
    pub(crate) released: u64,
    pub(crate) reclaimed: u64,
    pub(crate) expired: u64,
    pub(crate) client_errors: u64,
    pub(crate) uptime: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn original_requests_are_numbers_as_python_reads_them() {
        let lease = |pid| Some(Original::Lease(Pid::new(pid).unwrap()));
        for (bytes, request) in [
            (&b"1234\n"[..], lease(1234)),
            (b"1234", lease(1234)),
            (b" +1234 \r\n", lease(1234)),
            (b"1\n", lease(1)),
            (b"0\n", Some(Original::NoProcess)),
            (b"-5\n", Some(Original::NoProcess)),
            (b"9999999999999999\n", Some(Original::NoProcess)),
            (b"", None),
            (b"\n", None),
            (b"12 34\n", None),
            (b"12\n34\n", None),
            (b"12a\n", None),
            (b"\xff\n", None),
            (b"00000000000000000001\n", None),
        ] {
            assert_eq!(parse_original(bytes), request, "{bytes:?}");
        }
    }

    fn failure(line: &str) -> Failure {
        parse(line.as_bytes()).request.unwrap_err()
    }

    #[test]
    fn requests_are_read_with_their_defaults() {
        let parsed = parse(br#"{"v":1,"op":"lease","id":[1]}"#);
        assert_eq!(parsed.id, Some(serde_json::json!([1])));
        let Ok(Request::Lease(lease)) = parsed.request else {
            panic!("{parsed:?}")
        };
        assert_eq!(
            (lease.count, lease.owner, lease.wait),
            (1, Owner::Peer, Duration::ZERO)
        );

        let parsed = parse(
            br#"{"v":1,"op":"lease","names":["a","b"],"owner":7,"ttl":1.5,"ports":"5-9",
                "only":"udp","address":"::1","prefer":[6],"wait":3,"tag":"t","contiguous":true}"#,
        );
        let Ok(Request::Lease(lease)) = parsed.request else {
            panic!("{parsed:?}")
        };
        assert_eq!(
            (lease.count, lease.owner),
            (2, Owner::Process(Pid::new(7).unwrap()))
        );
        assert_eq!(lease.ttl, Some(Duration::from_millis(1500)));
        assert_eq!(
            parse(br#"{"v":1,"op":"release","ports":[2,1,2]}"#).request,
            Ok(Request::Release {
                ports: vec![1, 2],
                owner: None
            })
        );
    }

    #[test]
    fn every_bad_request_says_why() {
        for (line, code, reason) in [
            ("", Code::BadRequest, "not JSON"),
            ("{", Code::BadRequest, "not JSON"),
            ("[]", Code::BadRequest, "object"),
            ("{}", Code::BadRequest, "`v`"),
            (r#"{"v":"1"}"#, Code::BadRequest, "`v`"),
            (r#"{"v":1}"#, Code::BadRequest, "`op`"),
            (r#"{"v":2,"op":"new"}"#, Code::BadVersion, "version 1"),
            (r#"{"v":1,"op":"new"}"#, Code::BadOp, "`new`"),
            (
                r#"{"v":1,"op":"list","all":true}"#,
                Code::BadRequest,
                "`all`",
            ),
            (
                r#"{"v":1,"op":"lease","count":0}"#,
                Code::BadRequest,
                "`count`",
            ),
            (
                r#"{"v":1,"op":"lease","count":1001}"#,
                Code::BadRequest,
                "`count`",
            ),
            (r#"{"v":1,"op":"lease","count":-1}"#, Code::BadRequest, "-1"),
            (
                r#"{"v":1,"op":"lease","count":2,"names":["a"]}"#,
                Code::BadRequest,
                "1 names",
            ),
            (
                r#"{"v":1,"op":"lease","names":["a","a"]}"#,
                Code::BadRequest,
                "`names`",
            ),
            (
                r#"{"v":1,"op":"lease","ports":"9-8"}"#,
                Code::BadRequest,
                "ends before",
            ),
            (
                r#"{"v":1,"op":"lease","owner":"me"}"#,
                Code::BadRequest,
                "`owner`",
            ),
            (
                r#"{"v":1,"op":"lease","owner":0}"#,
                Code::BadRequest,
                "`owner`",
            ),
            (r#"{"v":1,"op":"lease","ttl":0}"#, Code::BadRequest, "`ttl`"),
            (
                r#"{"v":1,"op":"lease","wait":3601}"#,
                Code::BadRequest,
                "`wait`",
            ),
            (
                r#"{"v":1,"op":"lease","wait":-1}"#,
                Code::BadRequest,
                "`wait`",
            ),
            (
                r#"{"v":1,"op":"release","ports":[]}"#,
                Code::BadRequest,
                "`ports`",
            ),
            (
                r#"{"v":1,"op":"release","ports":[70000]}"#,
                Code::BadRequest,
                "70000",
            ),
        ] {
            let failure = failure(line);
            assert_eq!(failure.code, code, "{line}");
            assert!(
                failure.message.contains(reason),
                "{line}: {}",
                failure.message
            );
        }
    }

    #[test]
    fn answers_are_one_line_with_the_id() {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        assert_eq!(
            text(answer(Some(7.into()), Ok(serde_json::json!({})), false)),
            "{\"ok\":true,\"id\":7}\n".replace("\"ok\":true,\"id\":7", "\"id\":7,\"ok\":true")
        );
        let line = text(answer(
            None,
            Err(Failure::new(Code::BadVersion, "a\nb")),
            true,
        ));
        assert!(line.ends_with('\n') && line.matches('\n').count() == 1);
        assert!(line.contains(r#""versions":[1]"#) && line.contains(r#""closing":true"#));
    }
}
