//! Is a picked port still unused when its server binds it?

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use crate::Result;
use crate::driver::{Driver, How};
use crate::plan::Effort;
use crate::port_server::PortServer;
use crate::report::Thefts;
use crate::storm;
use crate::tools::{Binder, Places, Tool};

/// The most ports that wait for their servers at one time.
const MOST_WAITING: usize = 500;

/// A picked port whose server is to come.
struct Waiting {
    port: u16,
    picked: Instant,
    how: How,
}

/// Picks ports under a storm and binds each after a delay. Returns what became of the servers, by
/// delay and kind of server.
pub fn measure(tool: &Tool, effort: &Effort, places: &Places) -> Result<Vec<[Option<Thefts>; 2]>> {
    let server = PortServer::beside(tool, places)?;
    let storm = storm::start(effort.storm)?;
    let mut all = Vec::new();
    for &delay in &effort.delays {
        // A process of its own each time, since a lease lasts as long as its process: in the end
        // there would be none left.
        let environment = server.as_ref().map(PortServer::variable);
        let mut driver = Driver::start(&places.driver(tool, false), environment.as_slice())?;
        driver.wait_until_ready()?;
        let delay = Duration::from_millis(delay);
        let count = effort.servers.of(tool.kind);
        all.push(measure_delay(tool, &mut driver, delay, count)?);
    }
    storm.finish()?;
    Ok(all)
}

fn measure_delay(
    tool: &Tool,
    driver: &mut Driver,
    delay: Duration,
    count: usize,
) -> Result<[Option<Thefts>; 2]> {
    let mut thefts =
        How::ALL.map(|how| (binder(tool, how) != Binder::Nobody).then(Thefts::default));
    let hows = How::ALL
        .into_iter()
        .filter(|&how| binder(tool, how) != Binder::Nobody);
    let mut wanted: VecDeque<How> = (0..count).flat_map(|_| hows.clone()).collect();

    // All of a batch are picked before the first is bound. So picks and binds are not in each
    // other's way, and no bind is late.
    let start = Instant::now();
    driver.pick(2)?;
    let cost = start.elapsed() / 2;
    let batch = (delay.as_secs_f64() / cost.as_secs_f64() / 2.0) as usize;
    let batch = batch.clamp(1, MOST_WAITING);

    while !wanted.is_empty() {
        let mut waiting = Vec::new();
        for how in wanted.drain(..batch.min(wanted.len())) {
            let thefts = thefts[how as usize].as_mut().ok_or("a server is wanted")?;
            thefts.failed.of += 1;
            match driver.pick(1)?[..] {
                [Some(pick)] => waiting.push(Waiting {
                    port: pick.port,
                    picked: Instant::now(),
                    how,
                }),
                _ => thefts.failed.count += 1,
            }
        }
        for Waiting { port, picked, how } in waiting {
            thread::sleep((picked + delay).saturating_duration_since(Instant::now()));
            let is_bound = match binder(tool, how) {
                Binder::Tool => driver.bind(port, how)?,
                _ => bind(port, how),
            };
            let thefts = thefts[how as usize].as_mut().ok_or("a server is wanted")?;
            thefts.lost.of += 1;
            thefts.lost.count += u64::from(!is_bound);
        }
    }
    Ok(thefts)
}

fn binder(tool: &Tool, how: How) -> Binder {
    match how {
        How::Plain => tool.plain,
        How::Reuse => tool.reuse,
    }
}

/// Tells whether a server can listen at `port`, on all addresses of IPv4; for a moment only, so that
/// it is not in the way of the next one.
fn bind(port: u16, how: How) -> bool {
    let listen = || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(how == How::Reuse)?;
        socket.bind(&SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port).into())?;
        socket.listen(16)
    };
    listen().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use portpicker_testing::in_network_namespace;
    use std::net::TcpListener;

    #[test]
    fn a_server_is_refused_where_another_one_listens() {
        in_network_namespace(|| {
            for how in How::ALL {
                assert!(bind(20_001, how));
                assert!(bind(20_001, how), "the first one is gone");
            }
            let _other = TcpListener::bind(("127.0.0.1", 20_001)).unwrap();
            for how in How::ALL {
                assert!(!bind(20_001, how));
            }
        });
    }
}
