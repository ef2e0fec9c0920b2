//! What the command understands: one definition for parsing, help, man pages, and completions.

use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use portpicker::process::Pid;
use portpicker::{PortSet, ServerAddress};

use crate::wanted::Wanted;
use crate::{exit, run, serve};

/// Find an unused network port, and keep it.
///
/// Prints a port that is unused on TCP and UDP, IPv4 and IPv6, and that nobody else on this
/// host is given as long as the process PID runs: `port=$(portpicker $$)` in a script gives a port
/// to the shell that runs it. A small process in the background, the keeper, keeps the port leased
/// until PID exits; if it is killed, the lease ends early and nothing else happens.
///
/// If PORTSERVER_ADDRESS names a port server, it is asked for the port, and keeps it. If it
/// cannot be reached or refuses, a message says so and the port is picked without it.
#[derive(Debug, Parser)]
#[command(
    name = "portpicker",
    version,
    max_term_width = 80,
    args_conflicts_with_subcommands = true,
    override_usage = "portpicker [PID [SECONDS]]\n       portpicker <COMMAND> [OPTIONS]",
    after_long_help = long_after_help(),
)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) drop_in: DropIn,

    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

/// The form that python_portpicker's command has.
#[derive(Args, Debug)]
pub(crate) struct DropIn {
    /// Process that owns the port [default: the parent process]
    ///
    /// The port is leased until this process exits. In a script, `$$` is the script itself.
    #[arg(value_name = "PID", allow_hyphen_values = true)]
    pub(crate) owner: Option<Pid>,

    /// Keep the port bound as well for so long [default: 0]
    ///
    /// Meanwhile nobody can use the port but a server that sets SO_REUSEADDR, as most do; one
    /// that does not set it is refused until the time is over. Fractions are allowed.
    #[arg(value_name = "SECONDS", value_parser = parse_seconds, allow_hyphen_values = true)]
    pub(crate) hold: Option<Duration>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Print one or more unused ports, with all options
    ///
    /// The ports are printed one on each line. They are leased, all or none: until their owner
    /// exits, nobody else on this host is given one of them by portpicker, in whatever language, or
    /// by a port server of this project. They lie outside the range from which the kernel takes
    /// ports by itself.
    #[command(after_long_help = long_after_help())]
    Pick(PickOptions),

    Run(run::Arguments),

    Wait(run::WaitArguments),

    Serve(serve::Arguments),

    /// Show who has which port of a port server
    ///
    /// One line for each leased port: the process that owns it, as the server sees processes, its
    /// user, how long it has had the port, its name, and what the lease was tagged with.
    #[command(after_long_help = long_after_help())]
    Status(StatusOptions),

    /// Give leased ports back before their owner exits
    ///
    /// All or none. The server leases the ports to others then, once they are unused: whoever has
    /// one must not use it any longer. Root may release every lease, a user those of the same user's
    /// processes.
    #[command(after_long_help = long_after_help())]
    Release(ReleaseOptions),

    /// Print the completions for a shell
    ///
    /// For example, in ~/.bashrc: `source <(portpicker completions bash)`.
    Completions {
        /// Shell to complete in
        shell: Shell,

        /// Program to complete the options of
        #[arg(long = "for", value_name = "PROGRAM", default_value = "portpicker")]
        program: Program,
    },

    /// Print a manual page in the format of man(7)
    ///
    /// For example: `portpicker manual | man -l -`, or `portpicker manual pick | man -l -`.
    Manual {
        /// Command whose page to print [default: portpicker itself]
        #[arg(value_name = "COMMAND")]
        page: Option<String>,
    },
}

/// A program of this package.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Program {
    Portpicker,
    Portserver,
}

/// The options of `portpicker pick`.
#[derive(Args, Debug)]
pub(crate) struct PickOptions {
    /// How many ports
    #[arg(
        short = 'n', long, value_name = "N", default_value_t = 1,
        value_parser = clap::value_parser!(u16).range(1..)
    )]
    pub(crate) count: u16,

    #[command(flatten)]
    pub(crate) wanted: Wanted,

    /// Process that owns the ports [default: parent]
    #[arg(long, value_name = "PID", allow_hyphen_values = true)]
    pub(crate) owner: Option<Pid>,

    /// Keep the ports bound as well for so long
    ///
    /// Meanwhile nobody can use the ports but a server that sets SO_REUSEADDR, as most do; one
    /// that does not set it is refused until the time is over. UDP ports are leased and not bound,
    /// since UDP servers do not set it. Fractions are allowed.
    #[arg(
        long, value_name = "SECONDS", value_parser = parse_seconds, allow_hyphen_values = true
    )]
    pub(crate) hold: Option<Duration>,

    /// Print JSON instead
    ///
    /// An object with `ports` (an array of numbers), `owner` (a process id), `server` (the address
    /// of the server that leased the ports, or null), and `keeper` (the id of the process that
    /// keeps them, or null).
    #[arg(long)]
    pub(crate) json: bool,
}

/// The options of `portpicker status`.
#[derive(Args, Debug)]
pub(crate) struct StatusOptions {
    /// Port server to ask [default: PORTSERVER_ADDRESS]
    ///
    /// The path of its socket, or @name.
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) server: Option<ServerAddress>,

    /// Print JSON instead
    ///
    /// An object with `server` (its address) and `leases`, an array of objects with `port`, `pid`
    /// (or null, if a connection owns the lease), `uid`, `user` (or null, if the user has no name),
    /// `command` (or null), `age` (seconds), `expires` (seconds until it ends, or null if it ends
    /// with its owner only), `name`, and `tag` (texts or null).
    #[arg(long)]
    pub(crate) json: bool,
}

/// The options of `portpicker release`.
#[derive(Args, Debug)]
pub(crate) struct ReleaseOptions {
    /// Ports to give back, as in 20001 or 20000-20003
    #[arg(value_name = "PORT", required = true)]
    pub(crate) ports: Vec<PortSet>,

    /// Port server to ask [default: PORTSERVER_ADDRESS]
    ///
    /// The path of its socket, or @name.
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) server: Option<ServerAddress>,
}

pub(crate) fn parse_seconds(text: &str) -> Result<Duration, String> {
    text.parse()
        .ok()
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .ok_or_else(|| format!("`{text}` is not a number of seconds, 0 or more"))
}

pub(crate) fn long_after_help() -> String {
    format!(
        "{}\n\n\
         Environment:\n  \
         PORTSERVER_ADDRESS  Port server to ask: the path of its socket, or @name\n  \
         PORTPICKER_PORTS    Ports to choose from, such as 20000-20999,30000\n\n\
         The other options have no variable: set for one script, it would change the\n\
         picks of every program below it.",
        exit::HELP
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definitions_are_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn seconds_are_finite_and_not_negative() {
        assert_eq!(parse_seconds("1.5"), Ok(Duration::from_millis(1500)));
        assert_eq!(parse_seconds("0"), Ok(Duration::ZERO));
        for text in ["", "-1", "inf", "nan", "1s", "1e300"] {
            assert!(parse_seconds(text).is_err(), "{text}");
        }
    }
}
