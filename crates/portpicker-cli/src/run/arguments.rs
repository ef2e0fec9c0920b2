//! What `portpicker run` and `portpicker wait` understand.

use std::ffi::OsString;
use std::time::Duration;

use clap::{Args, ValueEnum, ValueHint};

use crate::arguments::parse_seconds;
use crate::run::names::Name;
use crate::wanted::Wanted;

/// Run a command with ports that nobody else can bind
///
/// The ports are in the environment of COMMAND: PORT is the first one, PORT_NAME the one called
/// NAME, and PORT_1, PORT_2, … those without names. In its arguments, `{}` and `{name}` (or `{1}`,
/// `{2}`, …) are replaced by the numbers.
///
/// Nobody else can bind the ports from now on until COMMAND and all that it has started have ended,
/// also not before it binds them itself, or while its server restarts. COMMAND needs to know nothing
/// of this: when it binds one of its ports, that is done for it. Set-uid programs below
/// it gain no privileges, but with `--hand-off door`, `--hand-off lease`, or `--listen`.
///
/// For example: portpicker run -- redis-server --port {}
#[derive(Args, Debug)]
#[command(
    override_usage = "portpicker run [OPTIONS] -- COMMAND [ARGUMENT]...",
    after_long_help = after_long_help(),
)]
pub(crate) struct Arguments {
    /// Call a port NAME; several make several ports
    ///
    /// Letters, digits, `-`, and `_`. The environment has PORT_NAME in capitals, with `_` for `-`.
    #[arg(long = "name", value_name = "NAME")]
    pub(crate) names: Vec<Name>,

    /// How many ports, if they have no names
    #[arg(
        short = 'n', long, value_name = "N", default_value_t = 1, conflicts_with = "names",
        value_parser = clap::value_parser!(u16).range(1..)
    )]
    pub(crate) count: u16,

    #[command(flatten)]
    pub(crate) wanted: Wanted,

    /// How they pass: auto (default), strict, door, lease
    ///
    /// `auto` takes the strongest that works here, and says so if that is not `strict`. `strict`
    /// fails instead: binds are carried out for COMMAND, and the port is never free. A bind that
    /// cannot be carried out fails, too: the port is in use. `door`: the port is held, but for
    /// servers that set SO_REUSEADDR; others cannot bind it. UDP ports are only leased. `lease`:
    /// strangers to portpicker could bind it; for set-uid programs, and where a process outside of
    /// COMMAND binds, such as `docker run -p`.
    #[arg(
        long, value_name = "HOW", value_enum, default_value_t = HandOff::Auto,
        hide_possible_values = true, hide_default_value = true
    )]
    pub(crate) hand_off: HandOff,

    /// Pass listening sockets, as systemd does
    ///
    /// For servers that take their sockets by LISTEN_FDS: one for each port, called by its name in
    /// LISTEN_FDNAMES. They listen for TCP; with --udp they are UDP sockets. COMMAND binds nothing.
    #[arg(long, conflicts_with = "hand_off")]
    pub(crate) listen: bool,

    /// Leave the arguments as they are: replace no {}
    #[arg(long)]
    pub(crate) literal: bool,

    /// Return when COMMAND listens, within S seconds
    ///
    /// It is left running. The ports are printed, one on each line, once something listens on all of them; COMMAND
    /// goes on in the background, with the ports. If nothing listens in time, COMMAND is ended and
    /// the status is 125. It reads nothing, and what it writes to stdout goes to stderr.
    // One letter, so that the short help has one line for each option.
    #[arg(long, value_name = "S", value_parser = parse_seconds, allow_hyphen_values = true)]
    pub(crate) wait_listening: Option<Duration>,

    /// With --wait-listening, print JSON instead
    ///
    /// An object with `ports` (an object of numbers by name) and `pid` (of COMMAND).
    #[arg(long, requires = "wait_listening")]
    pub(crate) json: bool,

    /// Command to run, and its arguments
    // Not in the short help, which has no line to spare: the usage says as much.
    #[arg(
        value_name = "COMMAND",
        required = true,
        trailing_var_arg = true,
        value_hint = ValueHint::CommandWithArguments,
        hide_short_help = true
    )]
    pub(crate) command: Vec<OsString>,
}

/// How ports pass to the command. Each is weaker than the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum HandOff {
    /// The strongest that works here; says so if that is not `strict`.
    Auto,
    /// Binds are carried out for the command, or fail: the port is never free.
    Strict,
    /// The port is held, but for servers that set SO_REUSEADDR; others cannot bind it.
    Door,
    /// The port is leased: strangers to portpicker could bind it.
    Lease,
}

/// Wait until something listens on a port
///
/// It is seen in the kernel's tables: nobody connects, so no server sees a client that says nothing.
/// With a COMMAND, that is run then, in place of portpicker.
///
/// For example: portpicker wait 8080 10 -- curl http://localhost:8080
#[derive(Args, Debug)]
#[command(
    override_usage = "portpicker wait [OPTIONS] PORT [SECONDS] [-- COMMAND [ARGUMENT]...]",
    after_long_help = AFTER_WAIT,
)]
pub(crate) struct WaitArguments {
    /// Port to look at
    #[arg(value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) port: u16,

    /// How long to wait at most [default: for ever]
    #[arg(value_name = "SECONDS", value_parser = parse_seconds, allow_hyphen_values = true)]
    pub(crate) limit: Option<Duration>,

    /// Wait for a UDP socket that is bound to it
    #[arg(long)]
    pub(crate) udp: bool,

    /// Command to run then, and its arguments
    #[arg(value_name = "COMMAND", last = true)]
    pub(crate) command: Vec<OsString>,
}

/// The end of the help of `wait`.
const AFTER_WAIT: &str = "\
Exit status:
  0    Something listens; with a COMMAND, its own
  2    The command line is not valid
  6    The kernel's tables cannot be read
  7    Nothing listened on the port in time
  126  COMMAND was found and could not be run
  127  COMMAND was not found";

/// The end of the help of `run`, whose exit codes are those of env(1).
fn after_long_help() -> &'static str {
    "\
Exit status:
  125  portpicker itself failed: there is no port, an option is wrong, …
  126  COMMAND was found and could not be run
  127  COMMAND was not found
  Otherwise that of COMMAND; if a signal ended it, the same one ends portpicker

Signals that portpicker is sent are passed on to COMMAND. ^Z stops both, unless
COMMAND has left the terminal. A daemon that COMMAND leaves behind keeps the
ports until it ends.

Environment:
  PORTSERVER_ADDRESS  Port server to ask: the path of its socket, or @name
  PORTPICKER_PORTS    Ports to choose from, such as 20000-20999,30000"
}
