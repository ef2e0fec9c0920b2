//! The original protocol, as Google's clients and servers speak it.
//!
//! The client sends a process id in decimal and a newline, the server answers a port in decimal and
//! a newline and closes, or closes without a word to refuse.

use super::BadAnswer;
use crate::process::Pid;

/// The most bytes that an answer is read to: a port has five digits and a newline.
pub(crate) const MAX_ANSWER: usize = 32;

/// A server's answer to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Port(u16),
    Refusal,
}

/// Returns the request for a port on behalf of `owner`.
pub(crate) fn request(owner: Pid) -> Vec<u8> {
    format!("{owner}\n").into_bytes()
}

/// Reads an answer from what has come so far; `ended` says that no more will.
///
/// Returns `None` while more has to come.
pub(crate) fn parse_answer(bytes: &[u8], ended: bool) -> Option<Result<Answer, BadAnswer>> {
    // However it comes, in one piece or in several, what is beyond this is not looked at.
    let bytes = &bytes[..bytes.len().min(MAX_ANSWER)];
    let no_port = |text| Some(Err(BadAnswer::new(text, "which is not a port")));
    // Without its newline an answer may be the first half of one: 1500 of 15000.
    let Some(end) = bytes.iter().position(|&byte| byte == b'\n') else {
        return match (bytes.len(), ended) {
            (0, true) => Some(Ok(Answer::Refusal)),
            (MAX_ANSWER, _) => no_port(bytes),
            (_, true) => Some(Err(BadAnswer::cut_off(bytes))),
            (_, false) => None,
        };
    };
    let line = &bytes[..end];
    match parse_port(line) {
        // portserver.py hangs up to refuse; others send 0.
        Some(0) => Some(Ok(Answer::Refusal)),
        Some(port) => Some(Ok(Answer::Port(port))),
        None => no_port(line),
    }
}

fn parse_port(line: &[u8]) -> Option<u16> {
    let digits = str::from_utf8(line.trim_ascii()).ok()?;
    // `u16::from_str` takes a plus sign; a port has none.
    let is_number = digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse().ok().filter(|_| is_number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_a_port_and_a_newline_or_nothing() {
        let cases: [(&[u8], Answer); 6] = [
            (b"15000\n", Answer::Port(15_000)),
            (b"1\r\n", Answer::Port(1)),
            (b"65535\nmore", Answer::Port(65_535)),
            (b"0\n", Answer::Refusal),
            (b"00000\n", Answer::Refusal),
            (b"", Answer::Refusal),
        ];
        for (bytes, answer) in cases {
            assert_eq!(parse_answer(bytes, true), Some(Ok(answer)), "{bytes:?}");
        }
    }

    #[test]
    fn everything_else_is_an_error_that_shows_it() {
        let long = [b'1'; 100];
        let cases: [(&[u8], &str); 8] = [
            (b"\n", "`` is"),
            (b"65536\n", "65536"),
            (b"+1\n", "+1"),
            // The first 32 bytes of 15000.
            (b"                            15000\n", " 1500`"),
            (b"-1\n", "-1"),
            (b"\xff\0\n", r"\xff\x00"),
            (b"no port\n", "no port"),
            (&long, "11111111111111111111111111111111`"),
        ];
        for (bytes, text) in cases {
            let err = parse_answer(bytes, false).unwrap().unwrap_err().to_string();
            assert!(
                err.contains(text.trim_end_matches(" is")),
                "{bytes:?}: {err}"
            );
            assert!(err.ends_with("which is not a port"), "{err}");
        }
        let err = parse_answer(b"1500", true)
            .unwrap()
            .unwrap_err()
            .to_string();
        assert_eq!(err, "it answered `1500`, which breaks off");
    }

    #[test]
    fn half_an_answer_is_waited_for() {
        assert_eq!(parse_answer(b"", false), None);
        assert_eq!(parse_answer(b"1500", false), None);
    }
}
