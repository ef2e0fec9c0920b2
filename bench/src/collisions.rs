//! Are numbers given to more than one process?

use std::collections::{HashMap, HashSet};

use crate::Result;
use crate::driver::Driver;
use crate::plan::Effort;
use crate::port_server::PortServer;
use crate::report::Collisions;
use crate::statistics::Share;
use crate::tools::{Places, Tool};

/// Has so many processes pick at once, all of which keep what they are given until the last one is
/// done.
pub fn measure(
    tool: &Tool,
    processes: usize,
    effort: &Effort,
    places: &Places,
) -> Result<Collisions> {
    let server = PortServer::beside(tool, places)?;
    let line = places.driver(tool, false);
    let environment = server.as_ref().map(PortServer::variable);
    let mut drivers = (0..processes)
        .map(|_| Driver::start(&line, environment.as_slice()))
        .collect::<Result<Vec<_>>>()?;
    for driver in &mut drivers {
        driver.wait_until_ready()?;
    }
    let count = effort.picks.of(tool.kind);
    for driver in &mut drivers {
        driver.ask(count)?;
    }
    let mut given = Vec::new();
    for driver in &mut drivers {
        let picks = driver.answer()?;
        given.push(picks.iter().map(|pick| Some((*pick)?.port)).collect());
    }
    Ok(count_collisions(&given))
}

/// Counts what the processes were given.
fn count_collisions(given: &[Vec<Option<u16>>]) -> Collisions {
    let mut processes_by_port: HashMap<u16, usize> = HashMap::new();
    for picks in given {
        let different: HashSet<u16> = picks.iter().copied().flatten().collect();
        for port in different {
            *processes_by_port.entry(port).or_default() += 1;
        }
    }
    let mut counts = Collisions::default();
    for picks in given {
        let ports: Vec<u16> = picks.iter().copied().flatten().collect();
        let different: HashSet<u16> = ports.iter().copied().collect();
        let shared = ports.iter().filter(|port| processes_by_port[port] > 1);
        counts.shared += share(shared.count(), ports.len());
        counts.repeated += share(ports.len() - different.len(), ports.len());
        counts.failed += share(picks.len() - ports.len(), picks.len());
    }
    counts
}

fn share(count: usize, of: usize) -> Share {
    Share {
        count: count as u64,
        of: of as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pick_is_shared_if_another_process_has_its_number() {
        let given = [
            vec![Some(1), Some(2), Some(3)],
            vec![Some(3), Some(4), Some(3)],
            vec![Some(3), None, Some(2)],
        ];
        let counts = count_collisions(&given);
        assert_eq!(counts.shared, share(6, 8), "all of 2 and 3");
        assert_eq!(counts.repeated, share(1, 8), "3 in the second process");
        assert_eq!(counts.failed, share(1, 9));
    }

    #[test]
    fn one_process_shares_nothing() {
        let counts = count_collisions(&[vec![Some(8000), Some(8000)]]);
        assert_eq!(counts.shared, share(0, 2));
        assert_eq!(counts.repeated, share(1, 2));
    }
}
