//! The results of a run, as they are written to and read from `results.json`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::machine::Machine;
use crate::plan::Effort;
use crate::statistics::Share;
use crate::tools::{Kind, Origin};

/// Everything that one run has found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// The version of this format: 1.
    pub format: u32,
    pub machine: Machine,
    /// The commit of this project, with `+` behind it if files differed from it.
    pub commit: String,
    /// The versions of the languages.
    pub versions: BTreeMap<String, String>,
    pub effort: Effort,
    pub tools: Vec<Entry>,
    /// A column for each number of processes.
    pub collisions: Table<Collisions>,
    /// A column for each server and delay.
    pub thefts: Table<Thefts>,
    /// One column.
    pub cost: Table<Times>,
    /// A column for each share of the range that is taken.
    pub crowded: Table<Times>,
    /// A table for each state of the pool, in it a column for each number of clients.
    pub grants: BTreeMap<PoolState, Table<Grants>>,
    /// A column without leases, and one with a full pool: bytes.
    pub memory: Table<u64>,
    /// What went wrong. The cells that it left empty are dashes.
    pub troubles: Vec<String>,
}

/// A tool, as a report speaks of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    pub id: String,
    pub name: String,
    /// `None` if it has none.
    pub version: Option<String>,
    pub call: String,
    pub kind: Kind,
    pub origin: Origin,
}

/// Cells by tool and column; `None` is a thing that the tool cannot do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table<C> {
    pub columns: Vec<String>,
    pub rows: Vec<Row<C>>,
}

/// The cells of one tool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row<C> {
    /// The tool's id.
    pub tool: String,
    pub cells: Vec<Option<C>>,
}

/// What so many processes were given at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Collisions {
    /// Picks whose number another process was given too, of those that found one.
    pub shared: Share,
    /// Picks that returned a number that the process had been given before, of those that
    /// found one.
    pub repeated: Share,
    /// Picks that found no port, of all.
    pub failed: Share,
}

/// What became of servers at picked ports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Thefts {
    /// Servers that could not bind, of all.
    pub lost: Share,
    /// Picks that found no port, of all.
    pub failed: Share,
}

/// How long picks took, in µs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Times {
    pub median: f64,
    /// 99 of 100 took no longer.
    pub percentile_99: f64,
    /// The median of the first picks in a process.
    pub first: f64,
    /// Picks that found no port, of all.
    pub failed: Share,
}

/// How a port server answered.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grants {
    /// Answers, all of them grants, or all of them refusals if the pool was full.
    pub per_second: f64,
    /// From the connect to the answer, in µs.
    pub median: f64,
    /// 99 of 100 took no longer.
    pub percentile_99: f64,
    /// How many were asked for.
    pub requests: u64,
}

/// How much of a port server's pool is leased.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PoolState {
    Empty,
    /// All but one in twenty ports are leased.
    Nearly,
    Full,
}

impl Entry {
    /// Tells whether it is this project's.
    pub fn is_ours(&self) -> bool {
        self.origin == Origin::Ours
    }
}

impl<C: Copy> Table<C> {
    /// Returns a table without cells.
    pub fn new(columns: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            columns: columns.into_iter().map(Into::into).collect(),
            rows: Vec::new(),
        }
    }

    /// Puts `cell` into its place, after a row of dashes if `tool` has none yet.
    pub fn set(&mut self, tool: &str, column: usize, cell: C) {
        let width = self.columns.len();
        let row = self.row_mut(tool, width);
        row.cells[column] = Some(cell);
    }

    /// Sees to it that `tool` has a row.
    pub fn add(&mut self, tool: &str) {
        let width = self.columns.len();
        self.row_mut(tool, width);
    }

    fn row_mut(&mut self, tool: &str, width: usize) -> &mut Row<C> {
        let at = self.rows.iter().position(|row| row.tool == tool);
        let at = at.unwrap_or_else(|| {
            self.rows.push(Row {
                tool: tool.to_owned(),
                cells: vec![None; width],
            });
            self.rows.len() - 1
        });
        &mut self.rows[at]
    }

    /// Returns the cells of `tool`; none if it has no row.
    pub fn cells(&self, tool: &str) -> &[Option<C>] {
        let row = self.rows.iter().find(|row| row.tool == tool);
        row.map_or(&[], |row| &row.cells)
    }

    /// Returns the cell of `tool` in the column called `column`.
    pub fn cell(&self, tool: &str, column: &str) -> Option<C> {
        let at = self.columns.iter().position(|name| name == column)?;
        self.cells(tool).get(at).copied().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::report;

    #[test]
    fn a_report_is_read_as_it_was_written() {
        let report = report();
        let text = serde_json::to_string_pretty(&report).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
    }

    #[test]
    fn a_dash_is_null_and_not_zero() {
        let mut table = Table::new(["a", "b"]);
        table.set("tool", 1, 0_u64);
        let json = serde_json::to_value(&table).unwrap();
        assert_eq!(json["rows"][0]["cells"], serde_json::json!([null, 0]));
    }

    #[test]
    fn cells_are_found_by_tool_and_column() {
        let mut table = Table::new(["a", "b"]);
        table.add("empty");
        table.set("tool", 1, 5_u64);
        table.set("tool", 1, 7_u64);
        assert_eq!(table.cells("empty"), [None, None]);
        assert_eq!(table.cells("tool"), [None, Some(7)]);
        assert_eq!(table.cell("tool", "b"), Some(7));
        assert_eq!(table.cell("tool", "c"), None);
        assert_eq!(table.cell("nobody", "a"), None);
    }
}
