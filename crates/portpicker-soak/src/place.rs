//! Where a soak takes place: the ports, and the servers.
//!
//! There are few ports, so that a mistake about one is soon somebody's loss, and the ranges overlap.

use portpicker::ServerAddress;

/// What is picked from without a server.
pub const CANDIDATES: (u16, u16) = (20_000, 20_149);

/// What the kernel gives to strangers.
pub const EPHEMERAL: (u16, u16) = (40_000, 49_999);

/// One of the two port servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Server {
    /// It is killed, stopped, and started again all the time. Its pool overlaps the candidates.
    Shaken,
    /// It lives as long as the soak, so that it is seen whether it grows. Its pool overlaps the
    /// other's.
    Steady,
}

impl Server {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Shaken, Self::Steady];

    /// Returns the first and the last port of its pool.
    pub fn pool(self) -> (u16, u16) {
        match self {
            Self::Shaken => (20_100, 20_219),
            Self::Steady => (20_180, 20_299),
        }
    }

    /// Returns what it is called in messages, and in its address.
    pub fn name(self) -> &'static str {
        match self {
            Self::Shaken => "shaken",
            Self::Steady => "steady",
        }
    }

    /// Returns the server with this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|server| server.name() == name)
    }

    /// Returns where it listens.
    pub fn address(self) -> ServerAddress {
        format!("@soak-{}", self.name())
            .parse()
            .expect("it is an address")
    }

    /// Tells whether `port` is in its pool.
    pub fn manages(self, port: u16) -> bool {
        let (first, last) = self.pool();
        (first..=last).contains(&port)
    }
}

/// Returns all ports of the soak, as a set's text.
pub fn all_ports() -> String {
    range((CANDIDATES.0, Server::Steady.pool().1))
}

/// Returns a range as text.
pub fn range((first, last): (u16, u16)) -> String {
    format!("{first}-{last}")
}

/// Tells whether somebody else than `server` picks from `port` too.
pub fn is_shared(port: u16, server: Server) -> bool {
    (CANDIDATES.0..=CANDIDATES.1).contains(&port)
        || Server::ALL
            .into_iter()
            .any(|other| other != server && other.manages(port))
}

/// Tells whether strangers bind `port` unasked, now and then.
///
/// A stranger who binds a port that is leased and not bound yet makes its owner's bind fail, which
/// is nobody's fault. So strangers keep to these, and there nothing is concluded from a bind that
/// fails; but a port that a stranger had bound before the pick began must not be leased.
pub fn has_strangers(port: u16) -> bool {
    port.is_multiple_of(16)
}
