//! Which ports are wanted: the options that `pick` and `run` have in common.

use std::net::IpAddr;
use std::time::Duration;

use clap::Args;
use portpicker::{Kind, Picker, PortSet, Server, ServerAddress};

use crate::arguments::parse_seconds;

/// The options that describe ports.
#[derive(Args, Debug)]
pub(crate) struct Wanted {
    /// Ports must be neighbours, in ascending order
    #[arg(long)]
    pub(crate) contiguous: bool,

    /// Ports to choose from, as in 20000-20999,30000
    ///
    /// The default is PORTPICKER_PORTS if that is set; otherwise all ports from 10001 up without
    /// the ephemeral range, port servers' default pool (15000-24999), Kubernetes' node ports
    /// (30000-32767), and ports that are known for something else.
    #[arg(long, value_name = "PORTS")]
    ports: Option<PortSet>,

    /// Ports not to choose
    #[arg(long, value_name = "PORTS")]
    exclude: Vec<PortSet>,

    /// Ports to try first, in this order
    ///
    /// They need not be among those to choose from. With --contiguous, each is the first of a
    /// block.
    #[arg(long, value_name = "PORTS", value_delimiter = ',')]
    prefer: Vec<PortSet>,

    /// Need the ports for TCP only
    #[arg(long, conflicts_with = "udp")]
    tcp: bool,

    /// Need the ports for UDP only
    #[arg(long)]
    pub(crate) udp: bool,

    /// Need the ports on this local address only
    ///
    /// 0.0.0.0 stands for all of IPv4, :: for all of IPv6.
    #[arg(long, value_name = "IP")]
    address: Option<IpAddr>,

    /// Ask this port server, and nothing else
    ///
    /// The path of its socket, or @name. Named here, what the server fails is an error; named in
    /// the environment, the ports are then picked without it, as are ports with options that
    /// the original protocol cannot express if the server speaks nothing else.
    #[arg(long, value_name = "ADDRESS", conflicts_with = "no_server")]
    server: Option<ServerAddress>,

    /// Ask no port server
    #[arg(long)]
    no_server: bool,

    /// Wait so long for ports if there are not enough
    #[arg(
        long, value_name = "SECONDS", value_parser = parse_seconds, allow_hyphen_values = true
    )]
    wait: Option<Duration>,

    /// What the ports are for, as shown by `status`
    ///
    /// At most 200 bytes. It goes to a port server; leases without one carry no text.
    #[arg(long, value_name = "TEXT")]
    tag: Option<String>,
}

impl Wanted {
    /// Returns a picker of such ports, which asks no server yet.
    pub(crate) fn picker(&self) -> Picker {
        let mut picker = Picker::new().server(Server::None);
        if let Some(ports) = &self.ports {
            picker = picker.ports(ports.clone());
        }
        for ports in &self.exclude {
            picker = picker.exclude(ports.clone());
        }
        for ports in &self.prefer {
            picker = picker.prefer(ports.iter());
        }
        match (self.tcp, self.udp) {
            (true, _) => picker = picker.only(Kind::Tcp),
            (_, true) => picker = picker.only(Kind::Udp),
            _ => {}
        }
        if let Some(address) = self.address {
            picker = picker.address(address);
        }
        if let Some(limit) = self.wait {
            picker = picker.wait(limit);
        }
        if let Some(tag) = &self.tag {
            picker = picker.tag(tag);
        }
        picker
    }

    /// Returns which server to ask.
    pub(crate) fn server(&self) -> Server {
        match &self.server {
            Some(address) => Server::At(address.clone()),
            None if self.no_server => Server::None,
            None => Server::Environment,
        }
    }
}
