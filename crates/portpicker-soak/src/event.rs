//! What actors say: a line each, all in one pipe, so that there is one order of everything.
//!
//! A line is `ID WORD …`. An actor writes *before* it gives something back and *after* it was given
//! something, so that between the two it surely has it. Lines are shorter than a pipe's atomic size.

use std::time::Duration;

use crate::place::Server;

/// Who says something: a number that is never used again. 0 is the soak itself.
pub(crate) type Id = u32;

/// What keeps a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// A lock that a process of the owner's has.
    Lock,
    /// A lock, and sockets that nobody else can bind beside.
    Hold,
    /// A server.
    Server(Server),
    /// The server if it has answered, a lock otherwise: as for `PORTSERVER_ADDRESS`.
    Either(Server),
    /// A connection to a server.
    Connection(Server),
    /// A server, until a time has passed since the pick began.
    Timed(Server, Duration),
}

impl Source {
    /// Returns the server that may have granted the lease.
    pub(crate) fn server(self) -> Option<Server> {
        match self {
            Self::Lock | Self::Hold => None,
            Self::Server(server)
            | Self::Either(server)
            | Self::Connection(server)
            | Self::Timed(server, _) => Some(server),
        }
    }

    /// Tells whether a lock of the owner's own may be what keeps it.
    pub(crate) fn may_be_lock(self) -> bool {
        matches!(self, Self::Lock | Self::Hold | Self::Either(_))
    }
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A pick begins, at this time.
    Picking(Duration),
    /// It has succeeded.
    Leased(Source, Duration, Vec<u16>),
    /// It has failed.
    None(String),
    /// A leased port could be bound.
    Bound(u16),
    /// A leased port could not be bound, since it is in use.
    Unbindable(u16, String),
    /// Ports are about to be given back.
    Returned(Vec<u16>),
    /// Ports are about to be held no longer, and leased still.
    Unheld(Vec<u16>),
    /// A process keeps these ports.
    Keeper(u32, Vec<u16>),
    /// A stranger has bound a port unasked.
    Squats(u16),
    /// It is about to close that.
    Leaves(u16),
    /// Something was done so many times; the report has the sum.
    Did(u64, String),
    /// Something that should not happen.
    Trouble(String),
    /// A server is about to go down.
    Down(Server),
    /// It is up again, and has adopted what it could.
    Up(Server),
    /// It has adopted a lease without its lock, since somebody else has that.
    Unlocked(Server, u16),
    /// Its next life is at another time: what it has leased for a time may end.
    Jumps(Server),
    /// The disk is about to be full.
    Full,
    /// There is space again, and a server's state file is whole again.
    Whole(Server),
}

impl Event {
    /// Reads a line. `None` if it is not one.
    pub(crate) fn parse(line: &str) -> Option<(Id, Self)> {
        let (id, rest) = line.split_once(' ')?;
        let (word, rest) = rest.split_once(' ').unwrap_or((rest, ""));
        let mut words = rest.split_whitespace();
        let numbers = |words: std::str::SplitWhitespace<'_>| {
            words
                .map(|word| word.parse().ok())
                .collect::<Option<Vec<u16>>>()
        };
        let event = match word {
            "picking" => Self::Picking(parse_time(words.next()?)?),
            "leased" => {
                let source = parse_source(words.next()?)?;
                let time = parse_time(words.next()?)?;
                Self::Leased(source, time, numbers(words)?)
            }
            "none" => Self::None(rest.to_owned()),
            "bound" => Self::Bound(rest.parse().ok()?),
            "unbindable" => {
                let (port, why) = rest.split_once(' ')?;
                Self::Unbindable(port.parse().ok()?, why.to_owned())
            }
            "returned" => Self::Returned(numbers(words)?),
            "unheld" => Self::Unheld(numbers(words)?),
            "keeper" => Self::Keeper(words.next()?.parse().ok()?, numbers(words)?),
            "squats" => Self::Squats(rest.parse().ok()?),
            "leaves" => Self::Leaves(rest.parse().ok()?),
            "did" => {
                let (times, what) = rest.split_once(' ')?;
                Self::Did(times.parse().ok()?, what.to_owned())
            }
            "trouble" => Self::Trouble(rest.to_owned()),
            "down" => Self::Down(Server::named(rest)?),
            "up" => Self::Up(Server::named(rest)?),
            "unlocked" => {
                Self::Unlocked(Server::named(words.next()?)?, words.next()?.parse().ok()?)
            }
            "jumps" => Self::Jumps(Server::named(rest)?),
            "full" => Self::Full,
            "whole" => Self::Whole(Server::named(rest)?),
            _ => return None,
        };
        Some((id.parse().ok()?, event))
    }
}

/// Times are in microseconds since the host was started.
fn parse_time(text: &str) -> Option<Duration> {
    text.parse().ok().map(Duration::from_micros)
}

fn parse_source(text: &str) -> Option<Source> {
    let (kind, rest) = text.split_once(':').unwrap_or((text, ""));
    let (server, rest) = rest.split_once(':').unwrap_or((rest, ""));
    let server = || Server::named(server);
    Some(match kind {
        "lock" => Source::Lock,
        "hold" => Source::Hold,
        "server" => Source::Server(server()?),
        "either" => Source::Either(server()?),
        "connection" => Source::Connection(server()?),
        "timed" => Source::Timed(server()?, parse_time(rest)?),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read() {
        let leased = Event::parse("7 leased timed:steady:1500 12 20200 20201").unwrap();
        let source = Source::Timed(Server::Steady, Duration::from_micros(1500));
        let time = Duration::from_micros(12);
        assert_eq!(
            leased,
            (7, Event::Leased(source, time, vec![20_200, 20_201]))
        );
        assert_eq!(Event::parse("0 full"), Some((0, Event::Full)));
        for line in [
            "",
            "7",
            "x full",
            "7 leased",
            "7 leased lock 0 70000",
            "7 unheard of",
        ] {
            assert_eq!(Event::parse(line), None, "{line}");
        }
    }
}
