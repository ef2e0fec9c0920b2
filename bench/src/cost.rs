//! How long does a pick take, also when most of the range is taken?

use std::net::{Ipv6Addr, SocketAddrV6};

use portpicker_testing::network;
use socket2::{Domain, Protocol, Socket, Type};

use crate::Result;
use crate::driver::Driver;
use crate::plan::Effort;
use crate::port_server::PortServer;
use crate::tools::{Places, Tool};

/// Picks so many ports in a new process, one after the other, and keeps them. Returns the µs of each.
pub fn measure(tool: &Tool, effort: &Effort, places: &Places) -> Result<Vec<Option<f64>>> {
    let server = PortServer::beside(tool, places)?;
    let environment = server.as_ref().map(PortServer::variable);
    let mut driver = Driver::start(&places.driver(tool, false), environment.as_slice())?;
    driver.wait_until_ready()?;
    let picks = driver.pick(effort.timed.of(tool.kind))?;
    Ok(picks.iter().map(|pick| Some((*pick)?.micros)).collect())
}

/// The same, where strangers listen at so many percent of the ports that the tool picks from.
pub fn measure_crowded(
    tool: &Tool,
    taken: usize,
    effort: &Effort,
    places: &Places,
) -> Result<Vec<Option<f64>>> {
    let (first, last) = tool.range;
    let range = format!("{first}-{last}");
    network::set_ephemeral_range(first..=last);
    let _strangers = take(first, last, taken)?;
    let server = PortServer::beside(tool, places)?;
    let mut environment = vec![("PORTPICKER_PORTS", range.as_str())];
    environment.extend(server.as_ref().map(PortServer::variable));
    let mut driver = Driver::start(&places.driver(tool, true), &environment)?;
    driver.wait_until_ready()?;
    // What a process does once is not what this is about.
    driver.pick(2)?;
    let picks = driver.pick(effort.crowded)?;
    Ok(picks.iter().map(|pick| Some((*pick)?.micros)).collect())
}

/// Listens at so many percent of these ports, the same ones each time, on all addresses.
fn take(first: u16, last: u16, percent: usize) -> Result<Vec<Socket>> {
    let mut ports: Vec<u16> = (first..=last).collect();
    fastrand::Rng::with_seed(1).shuffle(&mut ports);
    ports.truncate(ports.len() * percent / 100);
    let listen = |port: u16| -> Result<Socket> {
        let socket = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP))?;
        socket.set_only_v6(false)?;
        socket
            .bind(&SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, port, 0, 0).into())
            .map_err(|err| format!("cannot take port {port}: {err}"))?;
        socket.listen(128)?;
        Ok(socket)
    };
    ports.into_iter().map(listen).collect()
}
