//! The extended protocol, version 1: a line of JSON each way.

use std::net::IpAddr;
use std::time::Duration;

use serde_json::{Map, Number, Value};

use super::{BadAnswer, printable};
use crate::PortSet;
use crate::client::ListedLease;
use crate::error::Refusal;
use crate::probe::Kind;
use crate::process::Pid;

/// The version that is spoken here.
const VERSION: u64 = 1;

/// The longest wait that a request can ask for.
pub(crate) const MAX_WAIT: Duration = Duration::from_secs(3600);

/// The most ports that one request can lease.
pub(crate) const MAX_COUNT: usize = 1000;

/// The longest tag, in bytes.
pub(crate) const MAX_TAG: usize = 200;

/// The longest answer to `lease` and `release`, in bytes: many times what 1000 ports take.
pub(crate) const MAX_ANSWER: usize = 256 * 1024;

/// The longest answer to `list`: all 65,535 ports, with the longest names and tags.
pub(crate) const MAX_LIST: usize = 64 * 1024 * 1024;

/// The most characters of a server's text that are kept.
const MAX_REASON: usize = 500;

/// What is to be leased.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wish<'a> {
    pub(crate) count: usize,
    pub(crate) contiguous: bool,
    pub(crate) ports: Option<&'a PortSet>,
    pub(crate) exclude: Option<&'a PortSet>,
    pub(crate) prefer: &'a [u16],
    pub(crate) only: Option<Kind>,
    pub(crate) address: Option<IpAddr>,
    /// The client itself if there is none.
    pub(crate) owner: Option<Pid>,
    pub(crate) wait: Duration,
    pub(crate) tag: Option<&'a str>,
}

impl Wish<'_> {
    /// Returns the request for it.
    pub(crate) fn request(&self) -> Vec<u8> {
        let mut members = operation("lease");
        let mut add = |name: &str, value: Value| members.insert(name.into(), value);
        // What has its default is left out, so that the usual line is a short one.
        if self.count != 1 {
            add("count", self.count.into());
        }
        if self.contiguous {
            add("contiguous", true.into());
        }
        if let Some(ports) = self.ports {
            add("ports", ports.to_string().into());
        }
        if let Some(exclude) = self.exclude {
            add("exclude", exclude.to_string().into());
        }
        if !self.prefer.is_empty() {
            add("prefer", self.prefer.into());
        }
        if let Some(kind) = self.only {
            let name = match kind {
                Kind::Tcp => "tcp",
                Kind::Udp => "udp",
            };
            add("only", name.into());
        }
        if let Some(address) = self.address {
            add("address", address.to_string().into());
        }
        if let Some(owner) = self.owner {
            add("owner", owner.get().into());
        }
        let wait = self.wait.min(MAX_WAIT).as_secs_f64();
        if let Some(wait) = Number::from_f64(wait).filter(|_| wait > 0.0) {
            add("wait", wait.into());
        }
        if let Some(tag) = self.tag {
            add("tag", tag[..tag.floor_char_boundary(MAX_TAG)].into());
        }
        line(members)
    }

    /// Reads the ports from the answer to the request.
    pub(crate) fn parse_answer(&self, bytes: &[u8]) -> Result<Vec<u16>, Unsuccessful> {
        let members = parse_answer(bytes)?;
        let bad = |reason| Err(BadAnswer::new(bytes, reason).into());
        let leases = members.get("leases").and_then(Value::as_array);
        let ports = leases.and_then(|leases| leases.iter().map(port).collect());
        let Some(ports): Option<Vec<u16>> = ports else {
            return bad("which is not a list of leases".to_owned());
        };
        if ports.len() != self.count {
            let found = ports.len();
            return bad(format!("with {found} ports instead of {}", self.count));
        }
        for (index, &port) in ports.iter().enumerate() {
            if ports[..index].contains(&port) {
                return bad(format!("with port {port} twice"));
            }
            if self.contiguous && index > 0 && ports[index - 1].checked_add(1) != Some(port) {
                return bad("whose ports are not neighbours".to_owned());
            }
            if !self.allows(port) {
                return bad(format!("with port {port}, which was not asked for"));
            }
        }
        Ok(ports)
    }

    fn allows(&self, port: u16) -> bool {
        // Preferred ports, and blocks that begin at one, need not be in the set.
        let is_inside = self
            .ports
            .is_none_or(|ports| !self.prefer.is_empty() || ports.contains(port));
        is_inside && !self.exclude.is_some_and(|set| set.contains(port))
    }
}

/// Returns the request to release `ports`, whoever has them or if `owner` does.
pub(crate) fn release(ports: &[u16], owner: Option<Pid>) -> Vec<u8> {
    let mut members = operation("release");
    members.insert("ports".into(), ports.into());
    if let Some(owner) = owner {
        members.insert("owner".into(), owner.get().into());
    }
    line(members)
}

/// Returns the request for a list of the leases.
pub(crate) fn list() -> Vec<u8> {
    line(operation("list"))
}

/// Reads the answer to [`release`].
pub(crate) fn parse_released(bytes: &[u8]) -> Result<(), Unsuccessful> {
    parse_answer(bytes).map(drop)
}

/// Reads the answer to [`list`]. Members that are not known yet are left out.
pub(crate) fn parse_list(bytes: &[u8]) -> Result<Vec<ListedLease>, Unsuccessful> {
    let members = parse_answer(bytes)?;
    let leases = members.get("leases").and_then(Value::as_array);
    let leases = leases.and_then(|leases| leases.iter().map(listed_lease).collect());
    let Some(leases): Option<Vec<ListedLease>> = leases else {
        return Err(BadAnswer::new(bytes, "which is not a list of leases").into());
    };
    if !leases.is_sorted_by(|a, b| a.port < b.port) {
        return Err(BadAnswer::new(bytes, "whose ports are not ascending").into());
    }
    Ok(leases)
}

fn listed_lease(lease: &Value) -> Option<ListedLease> {
    // The two that may be missing or null, and everything else is an error.
    let number = |name| match lease.get(name) {
        None | Some(Value::Null) => Some(None),
        Some(value) => value.as_f64().map(Some),
    };
    let text = |name| match lease.get(name) {
        None | Some(Value::Null) => Some(None),
        Some(value) => value.as_str().map(|text| Some(text.to_owned())),
    };
    let seconds = |number| Duration::try_from_secs_f64(number).ok();
    let whole = |value: &Value| value.as_u64().and_then(|number| u32::try_from(number).ok());
    Some(ListedLease {
        port: port(lease)?,
        owner: match lease.get("pid") {
            None | Some(Value::Null) => None,
            Some(pid) => Some(Pid::new(whole(pid)?)?),
        },
        uid: whole(lease.get("uid")?)?,
        command: text("command")?,
        age: seconds(number("age")??)?,
        expires: match number("expires")? {
            Some(number) => Some(seconds(number)?),
            None => None,
        },
        name: text("name")?,
        tag: text("tag")?,
    })
}

fn port(lease: &Value) -> Option<u16> {
    let port = u16::try_from(lease.get("port")?.as_u64()?).ok()?;
    (port != 0).then_some(port)
}

fn operation(name: &str) -> Map<String, Value> {
    let mut members = Map::new();
    members.insert("v".into(), VERSION.into());
    members.insert("op".into(), name.into());
    members
}

fn line(members: Map<String, Value>) -> Vec<u8> {
    format!("{}\n", Value::Object(members)).into_bytes()
}

/// Returns where the first line of an answer ends, with its newline, or where the answer itself
/// `ended`; it is an error if that is beyond `limit` bytes. `searched` of the bytes have been searched
/// before.
///
/// `None` while more has to come.
pub(crate) fn end_of_line(
    bytes: &[u8],
    searched: usize,
    limit: usize,
    ended: bool,
) -> Option<Result<usize, BadAnswer>> {
    // However it comes, in one piece or in several, what is beyond the limit is not looked at.
    let bytes = &bytes[..bytes.len().min(limit)];
    if let Some(end) = bytes[searched..].iter().position(|&byte| byte == b'\n') {
        return Some(Ok(searched + end + 1));
    }
    if bytes.len() == limit {
        let reason = format!("and no end within {limit} bytes");
        return Some(Err(BadAnswer::new(bytes, reason)));
    }
    ended.then_some(Ok(bytes.len()))
}

/// Returns the members of an answer that says that it went well.
fn parse_answer(bytes: &[u8]) -> Result<Map<String, Value>, Unsuccessful> {
    let bad = |reason| Unsuccessful::Bad(BadAnswer::new(bytes, reason));
    let Some(text) = bytes.strip_suffix(b"\n") else {
        return Err(BadAnswer::cut_off(bytes).into());
    };
    let Ok(Value::Object(mut members)) = serde_json::from_slice(text) else {
        return Err(bad("which is not a JSON object"));
    };
    match members.get("ok") {
        Some(Value::Bool(true)) => Ok(members),
        Some(Value::Bool(false)) => {
            let mut text = |name| match members.remove(name) {
                Some(Value::String(text)) => Some(text),
                _ => None,
            };
            let code = text("error").filter(|code| !code.is_empty());
            let code = code.ok_or_else(|| bad("which does not say what is wrong"))?;
            let message = text("message").unwrap_or_default();
            let message: String = printable(&message).chars().take(MAX_REASON).collect();
            Err(Unsuccessful::Failed(Failure {
                refusal: Refusal::from_code(&code),
                // A message is for people, and need not be there.
                reason: match message.is_empty() {
                    true => printable(&code).chars().take(MAX_REASON).collect(),
                    false => message,
                },
            }))
        }
        _ => Err(bad("which does not say whether it went well")),
    }
}

/// Why an answer does not have what was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Unsuccessful {
    /// It is not an answer.
    Bad(BadAnswer),
    /// The server says why.
    Failed(Failure),
}

impl From<BadAnswer> for Unsuccessful {
    fn from(answer: BadAnswer) -> Self {
        Self::Bad(answer)
    }
}

/// What a server says about a request that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) refusal: Refusal,
    /// For people.
    pub(crate) reason: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Wish<'static> = Wish {
        count: 1,
        contiguous: false,
        ports: None,
        exclude: None,
        prefer: &[],
        only: None,
        address: None,
        owner: None,
        wait: Duration::ZERO,
        tag: None,
    };

    fn text(wish: &Wish<'_>) -> String {
        String::from_utf8(wish.request()).unwrap()
    }

    #[test]
    fn a_request_says_what_is_not_the_default() {
        assert_eq!(text(&PLAIN), "{\"op\":\"lease\",\"v\":1}\n");
        let (ports, exclude) = ("5-9".parse().unwrap(), "6".parse().unwrap());
        let wish = Wish {
            count: 2,
            contiguous: true,
            ports: Some(&ports),
            exclude: Some(&exclude),
            prefer: &[8, 7],
            only: Some(Kind::Udp),
            address: Some([127, 0, 0, 1].into()),
            owner: Pid::new(7),
            wait: Duration::from_millis(1500),
            tag: Some("a\nb"),
        };
        let all = r#"{"v":1,"op":"lease","count":2,"contiguous":true,"ports":"5-9","exclude":"6",
            "prefer":[8,7],"only":"udp","address":"127.0.0.1","owner":7,"wait":1.5,"tag":"a\nb"}"#;
        let parse = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        assert_eq!(parse(&text(&wish)), parse(all));
        assert_eq!(text(&wish).matches('\n').count(), 1);
    }

    #[test]
    fn what_is_too_long_is_cut_to_what_the_server_takes() {
        let long = "ä".repeat(101);
        let wish = Wish {
            wait: Duration::MAX,
            tag: Some(&long),
            ..PLAIN
        };
        let request: Value = serde_json::from_str(&text(&wish)).unwrap();
        assert_eq!(request["wait"], 3600.0);
        assert_eq!(request["tag"].as_str().unwrap().len(), 200);
    }

    #[test]
    fn leases_are_as_many_as_were_asked_for_and_of_those() {
        let set: PortSet = "5-9".parse().unwrap();
        let wish = Wish {
            count: 2,
            contiguous: true,
            ports: Some(&set),
            ..PLAIN
        };
        let answer = |ports: &str| {
            wish.parse_answer(format!("{{\"ok\":true,\"leases\":[{ports}]}}\n").as_bytes())
        };
        assert_eq!(
            answer(r#"{"port":5,"name":"a"},{"port":6}"#),
            Ok(vec![5, 6])
        );
        for (ports, reason) in [
            (r#"{"port":5}"#, "with 1 ports instead of 2"),
            (r#"{"port":5},{"port":5}"#, "with port 5 twice"),
            (r#"{"port":6},{"port":5}"#, "not neighbours"),
            (r#"{"port":9},{"port":10}"#, "10, which was not asked for"),
            (r#"{"port":0},{"port":1}"#, "not a list of leases"),
            (r#"{"port":65536},{"port":1}"#, "not a list of leases"),
            (r#"{"port":"5"},{"port":6}"#, "not a list of leases"),
            ("5,6", "not a list of leases"),
        ] {
            match answer(ports) {
                Err(Unsuccessful::Bad(err)) => assert!(err.to_string().contains(reason), "{err}"),
                other => panic!("{ports}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_failure_has_a_code_and_a_reason_that_is_safe_to_print() {
        let failure = |text: &str| match parse_released(text.as_bytes()) {
            Err(Unsuccessful::Failed(failure)) => (failure.refusal, failure.reason),
            other => panic!("{other:?}"),
        };
        let known = "{\"ok\":false,\"error\":\"exhausted\",\"message\":\"no \\u001b[1mports\"}\n";
        assert_eq!(
            failure(known),
            (Refusal::Exhausted, "no \u{fffd}[1mports".to_owned())
        );
        let new = "{\"ok\":false,\"error\":\"too-early\"}\n";
        assert_eq!(failure(new), (Refusal::Other, "too-early".to_owned()));
    }

    #[test]
    fn everything_else_is_a_bad_answer() {
        for (text, reason) in [
            ("{\"ok\":true}", "breaks off"),
            ("15000\n", "not a JSON object"),
            ("\n", "not a JSON object"),
            ("[]\n", "not a JSON object"),
            ("{\"ok\":tru\n", "not a JSON object"),
            ("{}\n", "whether it went well"),
            ("{\"ok\":1}\n", "whether it went well"),
            ("{\"ok\":false}\n", "what is wrong"),
            ("{\"ok\":false,\"error\":5}\n", "what is wrong"),
            ("{\"ok\":false,\"error\":\"\"}\n", "what is wrong"),
        ] {
            match parse_released(text.as_bytes()) {
                Err(Unsuccessful::Bad(err)) => assert!(err.to_string().contains(reason), "{err}"),
                other => panic!("{text}: {other:?}"),
            }
        }
        let deep = format!("{}\n", "[".repeat(100_000));
        assert!(parse_list(deep.as_bytes()).is_err());
    }

    #[test]
    fn listed_leases_may_lack_what_may_be_null() {
        let list = parse_list(
            br#"{"ok":true,"leases":[{"port":5,"pid":7,"uid":0,"command":"sh","age":1.5,
                "expires":60,"name":"a","tag":"b","new":1},{"port":6,"pid":null,"uid":1,"age":0}]}
"#,
        );
        // JSON may have newlines between its parts; the protocol sends none.
        let [full, bare] = &list.unwrap()[..] else {
            panic!()
        };
        assert_eq!((full.port, full.owner, full.uid), (5, Pid::new(7), 0));
        assert_eq!(full.age, Duration::from_millis(1500));
        assert_eq!(full.expires, Some(Duration::from_secs(60)));
        assert_eq!(
            (full.name.as_deref(), full.tag.as_deref()),
            (Some("a"), Some("b"))
        );
        assert_eq!(
            (bare.owner, bare.command.as_deref(), bare.expires),
            (None, None, None)
        );
        for lease in [
            "{}",
            r#"{"port":5,"uid":0}"#,
            r#"{"port":5,"uid":-1,"age":0}"#,
            r#"{"port":5,"uid":0,"age":-1}"#,
            r#"{"port":5,"uid":0,"age":1e300}"#,
            r#"{"port":5,"pid":0,"uid":0,"age":0}"#,
            r#"{"port":5,"uid":0,"age":0,"tag":1}"#,
        ] {
            let answer = format!("{{\"ok\":true,\"leases\":[{lease}]}}\n");
            assert!(parse_list(answer.as_bytes()).is_err(), "{lease}");
        }
    }

    #[test]
    fn a_list_is_ascending_and_has_each_port_once() {
        for ports in [[6, 5], [5, 5]] {
            let leases = ports.map(|port| format!("{{\"port\":{port},\"uid\":0,\"age\":0}}"));
            let answer = format!("{{\"ok\":true,\"leases\":[{}]}}\n", leases.join(","));
            match parse_list(answer.as_bytes()) {
                Err(Unsuccessful::Bad(err)) => assert!(err.to_string().contains("not ascending")),
                other => panic!("{ports:?}: {other:?}"),
            }
        }
    }
}
