//! What other processes do on a busy host: connect to servers, and bind port 0.

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use socket2::SockRef;

use crate::Result;
use crate::plan::Storm;

/// How often new ones come.
const PERIOD: Duration = Duration::from_millis(5);

/// A storm that blows until this is dropped.
#[derive(Debug)]
pub struct Blowing {
    plan: Storm,
    start: Instant,
    /// Dropping it ends the storm.
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<io::Result<u64>>>,
}

/// What takes a port for a while.
struct Guest {
    since: Instant,
    connection: TcpStream,
    _accepted: TcpStream,
    _server: TcpListener,
}

/// Starts a storm. When this returns, as many go as come.
pub fn start(plan: Storm) -> Result<Blowing> {
    let (end, is_over) = channel();
    let (is_steady, steady) = channel();
    let start = Instant::now();
    let thread = thread::spawn(move || blow(plan, &is_over, is_steady));
    let mut storm = Blowing {
        plan,
        start,
        end: Some(end),
        thread: Some(thread),
    };
    match steady.recv() {
        Ok(()) => Ok(storm),
        // It has ended already, and says why.
        Err(_) => Err(storm.stop().err().unwrap_or("the storm is over".into())),
    }
}

impl Blowing {
    /// Ends the storm. Fails if it was weaker than planned: then the machine is too slow for it.
    pub fn finish(mut self) -> Result<()> {
        let seconds = self.start.elapsed().as_secs_f64();
        let made = self.stop()? as f64;
        let planned = f64::from(self.plan.per_second) * seconds;
        if made < 0.9 * planned {
            let weather = made / seconds;
            return Err(format!("the storm had only {weather:.0} newcomers a second").into());
        }
        Ok(())
    }

    fn stop(&mut self) -> Result<u64> {
        drop(self.end.take());
        let thread = self.thread.take().ok_or("it was stopped before")?;
        Ok(thread.join().map_err(|_| "the storm has panicked")??)
    }
}

impl Drop for Blowing {
    fn drop(&mut self) {
        // Nothing is left to do with its error: whoever wants to know calls `finish`.
        _ = self.stop();
    }
}

/// Connects and binds until `is_over`. Returns how often.
fn blow(plan: Storm, is_over: &Receiver<()>, is_steady: Sender<()>) -> io::Result<u64> {
    let target = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let lifetime = Duration::from_millis(plan.lifetime);
    let mut guests: VecDeque<Guest> = VecDeque::new();
    let mut is_steady = Some(is_steady);
    let start = Instant::now();
    let mut made = 0;
    loop {
        let now = Instant::now();
        while guests
            .front()
            .is_some_and(|guest| now - guest.since >= lifetime)
        {
            if let Some(guest) = guests.pop_front() {
                // Reset, not closed: its port is not in TIME-WAIT afterwards, so that as many
                // ports are taken at the end as at the beginning.
                SockRef::from(&guest.connection).set_linger(Some(Duration::ZERO))?;
            }
        }
        let due = (now - start).as_secs_f64() * f64::from(plan.per_second);
        while made < due as u64 {
            let connection = TcpStream::connect(target.local_addr()?)?;
            let (accepted, _) = target.accept()?;
            guests.push_back(Guest {
                since: now,
                connection,
                _accepted: accepted,
                _server: TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0))?,
            });
            made += 1;
        }
        if now - start >= lifetime {
            is_steady.take().map(|sender| sender.send(()));
        }
        match is_over.recv_timeout(PERIOD) {
            Err(RecvTimeoutError::Timeout) => {}
            _ => return Ok(made),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use portpicker_testing::{in_network_namespace, network};

    #[test]
    fn a_storm_takes_ports_of_the_ephemeral_range() {
        in_network_namespace(|| {
            network::set_ephemeral_range(40_000..=40_999);
            let storm = start(Storm {
                per_second: 1000,
                lifetime: 200,
            })
            .unwrap();
            let taken = (40_000..41_000)
                .filter(|&port| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_err())
                .count();
            assert!(taken > 200, "{taken} of some 400");
            storm.finish().unwrap();
        });
    }

    #[test]
    fn a_storm_that_cannot_blow_says_so() {
        in_network_namespace(|| {
            network::set_ephemeral_range(40_000..=40_001);
            let weather = Storm {
                per_second: 1000,
                lifetime: 1000,
            };
            assert!(start(weather).is_err());
        });
    }
}
