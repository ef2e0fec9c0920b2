//! What `portserver` and `portpicker serve` understand: one definition for both.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::Parser;
use nix::unistd::{Group, User};
use portpicker::PortSet;
use portserver::Address;

/// Lease network ports to processes: one server for a host's tests.
///
/// Answers the clients of Google's python_portpicker, and those of portpicker, which can ask it for
/// more. A port is leased to the process that asks for it, or to one of its ancestors, until that
/// exits. The server takes the same locks as portpicker does without a server, so that no two of
/// them lease the same port.
///
/// Leases outlive the server: they are remembered in a state file, and the next server at the same
/// address goes on with them. It can be killed, updated, and started again at any time.
///
/// Signals: SIGTERM and SIGINT end the server; SIGUSR1 writes statistics to the log.
#[derive(Debug, Parser)]
#[command(
    name = "portserver",
    version,
    max_term_width = 80,
    // As portserver.py has it: the last one counts.
    args_override_self = true,
    after_long_help = AFTER_HELP,
)]
pub(crate) struct Arguments {
    /// Ports to lease [default: 15000-24999]
    ///
    /// Numbers and inclusive ranges, such as 20000-20999,30000. Ports that the kernel hands out by
    /// itself (net.ipv4.ip_local_port_range) are better left out.
    #[arg(long, value_name = "PORTS")]
    pub(crate) pool: Option<PortSet>,

    /// Ports to lease, as portserver.py takes them
    ///
    /// Like --pool, but parts that are not understood or out of bounds are logged and ignored.
    #[arg(
        long = "portserver_static_pool",
        alias = "portserver-static-pool",
        value_name = "PORTS",
        hide_short_help = true,
        conflicts_with = "pool"
    )]
    pub(crate) lenient_pool: Option<String>,

    /// Path of a socket, or @name; repeatable
    ///
    /// Where clients connect: what they have in PORTSERVER_ADDRESS. The default is
    /// @unittest-portserver, unless systemd passes sockets. A socket file that no server listens
    /// at any more is replaced; any other file is an error. portserver.py's names of this option,
    /// --portserver_address and --portserver_unix_socket_address, are understood too.
    #[arg(
        long = "address", value_name = "ADDRESS",
        aliases = [
            "portserver_address", "portserver-address",
            "portserver_unix_socket_address", "portserver-unix-socket-address",
        ]
    )]
    pub(crate) addresses: Vec<Address>,

    /// Also a TCP port on localhost
    ///
    /// For clients that know no Unix sockets: what they have in PORTSERVER_PORT. Who connects
    /// there cannot be told, so any process may be named as the owner. 0 is any unused port.
    #[arg(long, value_name = "PORT")]
    pub(crate) tcp: Option<u16>,

    /// Permissions of socket files [default: 666]
    ///
    /// In octal. To connect takes the permission to write.
    #[arg(long, value_name = "OCTAL", value_parser = parse_mode)]
    pub(crate) socket_mode: Option<u32>,

    /// Owner of socket files
    ///
    /// Names or numbers, as in chown(1): USER, USER:GROUP, or :GROUP.
    #[arg(long, value_name = "USER[:GROUP]", value_parser = parse_owner)]
    pub(crate) socket_owner: Option<Owner>,

    /// Most leases that a user may have
    #[arg(long, value_name = "N")]
    pub(crate) user_limit: Option<NonZeroUsize>,

    /// File that remembers the leases
    ///
    /// For the next server, should this one be killed. By default it is named for the first
    /// address, in the first of these folders: $STATE_DIRECTORY or $RUNTIME_DIRECTORY, which
    /// systemd sets; portserver in $XDG_RUNTIME_DIR; for root, /run/portserver; portserver-UID in
    /// /dev/shm or in /tmp. Without such a folder there is a warning and no state file. Named
    /// here, a file that cannot be used is an error.
    #[arg(long, value_name = "FILE")]
    pub(crate) state: Option<PathBuf>,

    /// Remember nothing
    #[arg(long, conflicts_with = "state")]
    pub(crate) no_state: bool,

    /// Serve metrics over HTTP
    ///
    /// An IP address with a port, or a port on 127.0.0.1. Everybody who can connect can read them.
    #[arg(long, value_name = "[IP:]PORT", value_parser = parse_http)]
    pub(crate) http: Option<SocketAddr>,

    /// Return when the server listens
    ///
    /// It runs in the background then. If it does not start, its message and its exit status are
    /// those of this command. Nothing is logged but what goes wrong at the start, unless there is
    /// --log.
    #[arg(long)]
    pub(crate) daemon: bool,

    /// File to write the server's pid to
    ///
    /// It is there before --daemon returns, and removed when the server ends.
    #[arg(long, value_name = "FILE")]
    pub(crate) pidfile: Option<PathBuf>,

    /// File to log to [default: stderr]
    ///
    /// Lines are added to its end. A program that rotates logs should copy and truncate it.
    #[arg(long, value_name = "FILE")]
    pub(crate) log: Option<PathBuf>,

    /// Log each refusal and its reason
    #[arg(long)]
    pub(crate) verbose: bool,

    /// Log everything there is
    #[arg(long)]
    pub(crate) debug: bool,

    /// Marks the process that `--daemon` has started.
    #[arg(long, hide = true)]
    pub(crate) detached: bool,
}

/// The name of [`Arguments::detached`].
pub(crate) const DETACHED: &str = "--detached";

const AFTER_HELP: &str = "\
systemd: sockets that it passes are listened at, and are the only ones unless
there is --address. Type=notify, WatchdogSec=, and FileDescriptorStoreMax= work.

Exit status:
  0  The server was told to end; with --daemon: it listens
  1  There is no port in the pool
  2  The command line is not valid
  6  The system failed: address taken, no permission, no use of a file

The options have no variables in the environment: units and scripts have command
lines.

The manual page: portpicker manual serve | man -l -";

/// Whom a socket file is to belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) user: Option<u32>,
    pub(crate) group: Option<u32>,
}

fn parse_mode(text: &str) -> Result<u32, String> {
    let digits = text.strip_prefix("0o").unwrap_or(text);
    match u32::from_str_radix(digits, 8) {
        Ok(mode) if mode <= 0o777 && !digits.starts_with('+') => Ok(mode),
        _ => Err(format!("`{text}` is not an octal number from 0 to 777")),
    }
}

fn parse_owner(text: &str) -> Result<Owner, String> {
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (Some(user).filter(|user| !user.is_empty()), Some(group)),
        None => (Some(text), None),
    };
    let find = |name: &str, kind, found: nix::Result<Option<u32>>| match (name.parse(), found) {
        (Ok(id), _) | (Err(_), Ok(Some(id))) => Ok(id),
        (Err(_), Ok(None)) => Err(format!("there is no {kind} `{name}`")),
        (Err(_), Err(err)) => Err(format!("cannot look up the {kind} `{name}`: {err}")),
    };
    Ok(Owner {
        user: user
            .map(|name| {
                let found = User::from_name(name).map(|user| Some(user?.uid.as_raw()));
                find(name, "user", found)
            })
            .transpose()?,
        group: group
            .map(|name| {
                let found = Group::from_name(name).map(|group| Some(group?.gid.as_raw()));
                find(name, "group", found)
            })
            .transpose()?,
    })
}

fn parse_http(text: &str) -> Result<SocketAddr, String> {
    match text.parse() {
        Ok(port) => Ok((IpAddr::V4(Ipv4Addr::LOCALHOST), port).into()),
        Err(_) => text
            .parse()
            .map_err(|_| format!("`{text}` is neither a port nor an IP address with a port")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_octal_permissions() {
        for (text, mode) in [("600", 0o600), ("0660", 0o660), ("0o777", 0o777), ("0", 0)] {
            assert_eq!(parse_mode(text), Ok(mode));
        }
        for text in ["", "8", "1000", "-1", "+7", "rw", "0x7"] {
            assert!(parse_mode(text).is_err(), "{text}");
        }
    }

    #[test]
    fn owners_are_names_or_numbers() {
        let owner = |user, group| Ok(Owner { user, group });
        assert_eq!(parse_owner("root"), owner(Some(0), None));
        assert_eq!(parse_owner("7:8"), owner(Some(7), Some(8)));
        assert_eq!(parse_owner(":root"), owner(None, Some(0)));
        for text in ["", ":", "root:", "no such user", "root:no such group"] {
            assert!(parse_owner(text).is_err(), "{text}");
        }
    }

    #[test]
    fn http_is_on_loopback_unless_an_address_is_given() {
        assert_eq!(parse_http("80").unwrap().to_string(), "127.0.0.1:80");
        assert_eq!(parse_http("[::]:80").unwrap().to_string(), "[::]:80");
        for text in ["", "localhost:80", "70000", "1.2.3.4"] {
            assert!(parse_http(text).is_err(), "{text}");
        }
    }
}
