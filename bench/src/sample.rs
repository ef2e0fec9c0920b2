//! A small report for tests.

use std::collections::BTreeMap;

use crate::machine::Machine;
use crate::plan::Effort;
use crate::report::{Collisions, Entry, Grants, PoolState, Report, Table, Thefts, Times};
use crate::statistics::Share;
use crate::tools::Tool;

/// Returns a report with three tools, one of which takes no plain servers.
pub fn report() -> Report {
    let ids = ["portpicker-rust-lease", "ephemeral-port-reserve", "by-hand"];
    let effort = Effort::short();
    let mut report = Report {
        format: 1,
        machine: Machine {
            processor: "Z80".to_owned(),
            processors: 2,
            is_virtual: false,
            memory: 1,
            kernel: "Linux 6.1".to_owned(),
        },
        commit: "0123456789".to_owned(),
        versions: BTreeMap::from([("Rust".to_owned(), "1.91.0".to_owned())]),
        tools: ids
            .iter()
            .chain(&["portserver", "google-portserver"])
            .map(|id| Entry::of(Tool::find(id).unwrap()))
            .collect(),
        collisions: Table::new(["1", "4"]),
        thefts: Table::new(["plain 0", "plain 10", "reuse 0", "reuse 10"]),
        cost: Table::new(["pick"]),
        crowded: Table::new(["0", "95"]),
        grants: BTreeMap::from([(PoolState::Empty, Table::new(["1", "8"]))]),
        memory: Table::new(["0", "500"]),
        troubles: Vec::new(),
        effort,
    };
    let share = |count, of| Share { count, of };
    for (at, id) in ids.into_iter().enumerate() {
        for (column, processes) in [1, 4].into_iter().enumerate() {
            let picks = processes * 10;
            let shared = if processes > 1 && id == "by-hand" {
                3
            } else {
                0
            };
            let cell = Collisions {
                shared: share(shared, picks),
                repeated: share(0, picks),
                failed: share(0, picks),
            };
            report.collisions.set(id, column, cell);
        }
        for column in 0..4 {
            if id == "ephemeral-port-reserve" && column < 2 {
                continue;
            }
            let cell = Thefts {
                lost: share(u64::from(id == "by-hand" && column % 2 == 1), 5),
                failed: share(0, 5),
            };
            report.thefts.set(id, column, cell);
        }
        let times = Times {
            median: 30.0 / (at as f64 + 1.0),
            percentile_99: 100.0,
            first: 100.0,
            failed: share(0, 10),
        };
        report.cost.set(id, 0, times);
        report.crowded.set(id, 0, times);
    }
    for (id, per_second) in [("portserver", 20_000.0), ("google-portserver", 3_000.0)] {
        let grants = Grants {
            per_second,
            median: 1e6 / per_second,
            percentile_99: 2e6 / per_second,
            requests: 20,
        };
        for column in 0..2 {
            if let Some(table) = report.grants.get_mut(&PoolState::Empty) {
                table.set(id, column, grants);
            }
        }
        report.memory.set(id, 0, 3_000_000);
    }
    report
}
