//! How much is measured, and in which order.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::report::PoolState;
use crate::tools::{Kind, TOOLS, Tool};

/// How much is measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Effort {
    /// Whether this only shows that everything works.
    pub is_short: bool,
    /// How often everything is measured; others have their turns in between.
    pub rounds: usize,
    /// Collisions: how many processes pick at once.
    pub processes: Vec<usize>,
    /// Collisions: how many ports each process picks.
    pub picks: PerKind,
    /// Thefts: from the pick to the bind, in milliseconds.
    pub delays: Vec<u64>,
    /// Thefts: how many servers of each kind bind after each delay.
    pub servers: PerKind,
    /// Thefts: the others.
    pub storm: Storm,
    /// Cost: how many picks in each round.
    pub timed: PerKind,
    /// Crowded range: how much of it is taken, in percent.
    pub taken: Vec<usize>,
    /// Crowded range: how many picks in each round.
    pub crowded: usize,
    /// Port servers: how many ports they have.
    pub pool: u16,
    /// Port servers: how many requests are under way at once, in an empty pool.
    pub clients: Vec<usize>,
    /// Port servers: the same, in a full or nearly full one.
    pub crowded_clients: Vec<usize>,
    /// Port servers: the most requests of a round. Fewer are made where they take too long.
    pub requests: usize,
}

/// A number for libraries, and another one for commands, which take a thousand times as long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PerKind {
    pub library: usize,
    pub command: usize,
}

impl PerKind {
    /// Returns the number for tools of this kind.
    pub fn of(self, kind: Kind) -> usize {
        match kind {
            Kind::Library => self.library,
            Kind::Command | Kind::Floor | Kind::Server => self.command,
        }
    }
}

/// What other processes of the host do meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Storm {
    /// How many outgoing connections are made a second, and as many servers that bind port 0.
    pub per_second: u32,
    /// How long each lives, in milliseconds.
    pub lifetime: u64,
}

impl Effort {
    /// Returns what a run for real takes: about half an hour.
    pub fn full() -> Self {
        Self {
            is_short: false,
            rounds: 5,
            processes: vec![1, 2, 4, 8, 16, 32, 64],
            picks: PerKind {
                library: 100,
                command: 10,
            },
            delays: vec![0, 10, 100, 1000],
            servers: PerKind {
                library: 1000,
                command: 50,
            },
            storm: Storm {
                per_second: 1000,
                lifetime: 1000,
            },
            timed: PerKind {
                library: 200,
                command: 20,
            },
            taken: vec![0, 25, 50, 75, 90, 95, 99],
            crowded: 20,
            pool: 10_000,
            clients: vec![1, 2, 4, 8, 16, 32, 64],
            crowded_clients: vec![1, 8, 64],
            requests: 600,
        }
    }

    /// Returns what shows that everything works, and measures nothing: a minute or two.
    pub fn short() -> Self {
        Self {
            is_short: true,
            rounds: 1,
            processes: vec![1, 4],
            picks: PerKind {
                library: 10,
                command: 2,
            },
            delays: vec![0, 10],
            servers: PerKind {
                library: 5,
                command: 2,
            },
            storm: Storm {
                per_second: 1000,
                lifetime: 100,
            },
            timed: PerKind {
                library: 10,
                command: 2,
            },
            taken: vec![0, 95],
            crowded: 5,
            pool: 500,
            clients: vec![1, 8],
            crowded_clients: vec![1, 8],
            requests: 20,
        }
    }
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// Are numbers given to more than one process?
    Collisions,
    /// Is a picked port still unused when its server binds it?
    Thefts,
    /// How long does a pick take?
    Cost,
    /// How long does it take when most of the range is taken?
    Crowded,
    /// How fast are port servers?
    Servers,
}

/// One thing to measure, in a network of its own.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Job {
    /// The id of the tool.
    pub tool: String,
    pub work: Work,
}

/// What is done in a job.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Work {
    Collisions { processes: usize },
    Thefts,
    Cost,
    Crowded { taken: usize },
    Servers { state: PoolState },
}

/// Tells whether `scenario` measures `tool`. What it does not measure has no row there.
pub fn takes_part(tool: &Tool, scenario: Scenario) -> bool {
    match scenario {
        Scenario::Collisions | Scenario::Thefts => tool.picks(),
        Scenario::Cost => tool.kind != Kind::Server,
        Scenario::Crowded => tool.kind == Kind::Library,
        Scenario::Servers => tool.kind == Kind::Server,
    }
}

/// Returns everything there is to do, in an order in which each tool has its turn in each round.
pub fn jobs(effort: &Effort, scenarios: &[Scenario]) -> Vec<Job> {
    let mut jobs = Vec::new();
    for &scenario in scenarios {
        let works: Vec<Work> = match scenario {
            Scenario::Collisions => effort
                .processes
                .iter()
                .map(|&processes| Work::Collisions { processes })
                .collect(),
            Scenario::Thefts => vec![Work::Thefts],
            Scenario::Cost => vec![Work::Cost],
            Scenario::Crowded => effort
                .taken
                .iter()
                .map(|&taken| Work::Crowded { taken })
                .collect(),
            Scenario::Servers => [PoolState::Empty, PoolState::Nearly, PoolState::Full]
                .map(|state| Work::Servers { state })
                .to_vec(),
        };
        // Counts, unlike times, are no better for being taken at different times.
        let rounds = match scenario {
            Scenario::Collisions | Scenario::Thefts => 1,
            _ => effort.rounds,
        };
        for _ in 0..rounds {
            for work in &works {
                for tool in TOOLS.iter().filter(|tool| takes_part(tool, scenario)) {
                    jobs.push(Job {
                        tool: tool.id.to_owned(),
                        work: work.clone(),
                    });
                }
            }
        }
    }
    jobs
}
