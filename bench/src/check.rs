//! Is a report whole? What was measured is there, and what cannot be is a dash.

use crate::driver::How;
use crate::plan::{Scenario, takes_part};
use crate::report::{Report, Table};
use crate::statistics::Share;
use crate::tools::{Binder, Tool};

/// Returns what is wrong with `report`, in which `scenarios` were measured.
///
/// It says nothing about how good anybody is, but for one thing: this project's ports are nobody
/// else's.
pub fn check(report: &Report, scenarios: &[Scenario]) -> Vec<String> {
    let mut check = Check {
        report,
        wrong: Vec::new(),
    };
    if report.format != 1 || report.commit.is_empty() || report.machine.processors == 0 {
        check.say("where it was made is missing".to_owned());
    }
    for entry in &report.tools {
        let Some(tool) = Tool::find(&entry.id) else {
            check.say(format!("{}: there is no such tool", entry.id));
            continue;
        };
        for &scenario in scenarios {
            if takes_part(tool, scenario) {
                match scenario {
                    Scenario::Collisions => check.collisions(tool),
                    Scenario::Thefts => check.thefts(tool),
                    Scenario::Cost => check.times(tool, "cost", &report.cost),
                    Scenario::Crowded => check.times(tool, "crowded", &report.crowded),
                    Scenario::Servers => check.servers(tool),
                }
            }
        }
    }
    check.wrong
}

struct Check<'a> {
    report: &'a Report,
    wrong: Vec<String>,
}

impl Check<'_> {
    fn say(&mut self, wrong: String) {
        self.wrong.push(wrong);
    }

    /// Returns the cells of `tool` with their columns. Says so if one is missing, or is there
    /// although `is_possible` says that it cannot be.
    fn cells<'a, C: Copy>(
        &mut self,
        tool: &Tool,
        name: &str,
        table: &'a Table<C>,
        is_possible: impl Fn(usize) -> bool,
    ) -> Vec<(&'a str, C)> {
        let cells = table.cells(tool.id);
        if cells.len() != table.columns.len() {
            self.say(format!("{}, {name}: {} cells", tool.id, cells.len()));
        }
        let mut there = Vec::new();
        for (at, (column, cell)) in table.columns.iter().zip(cells).enumerate() {
            match (cell, is_possible(at)) {
                (Some(cell), true) => there.push((column.as_str(), *cell)),
                (None, false) => {}
                (None, true) => self.say(format!("{}, {name} {column}: a dash", tool.id)),
                (Some(_), false) => self.say(format!("{}, {name} {column}: no dash", tool.id)),
            }
        }
        there
    }

    /// Says so if a share is of another number than `of`.
    fn share(&mut self, tool: &Tool, name: &str, share: Share, of: usize) {
        if share.of != of as u64 || share.count > share.of {
            let Share { count, of: found } = share;
            self.say(format!(
                "{}, {name}: {count} of {found} instead of {of}",
                tool.id
            ));
        }
    }

    fn collisions(&mut self, tool: &Tool) {
        let report = self.report;
        let picks = report.effort.picks.of(tool.kind);
        for (column, cell) in self.cells(tool, "collisions", &report.collisions, |_| true) {
            let name = format!("collisions {column}");
            let processes: usize = column.parse().unwrap_or(0);
            self.share(tool, &name, cell.failed, processes * picks);
            let found = processes * picks - cell.failed.count as usize;
            self.share(tool, &name, cell.shared, found);
            self.share(tool, &name, cell.repeated, found);
            if found == 0 {
                self.say(format!("{}, {name}: no port", tool.id));
            }
            if tool.is_ours() && cell.shared.count + cell.repeated.count > 0 {
                self.say(format!("{}, {name}: given twice", tool.id));
            }
        }
    }

    fn thefts(&mut self, tool: &Tool) {
        let report = self.report;
        let delays = report.effort.delays.len();
        let servers = report.effort.servers.of(tool.kind);
        let is_possible = |at: usize| match How::ALL[at / delays] {
            How::Plain => tool.plain != Binder::Nobody,
            How::Reuse => tool.reuse != Binder::Nobody,
        };
        for (column, cell) in self.cells(tool, "thefts", &report.thefts, is_possible) {
            let name = format!("thefts {column}");
            self.share(tool, &name, cell.failed, servers);
            self.share(tool, &name, cell.lost, servers - cell.failed.count as usize);
            if tool.is_ours() && cell.lost.count + cell.failed.count > 0 {
                self.say(format!("{}, {name}: stolen", tool.id));
            }
        }
    }

    fn times(&mut self, tool: &Tool, name: &str, table: &Table<crate::report::Times>) {
        let cells = table.cells(tool.id);
        // Where most of a range is taken, others may find no port more often than not.
        let is_possible = |at: usize| {
            tool.is_ours() || name != "crowded" || cells.get(at).is_none_or(Option::is_some)
        };
        for (column, times) in self.cells(tool, name, table, is_possible) {
            let is_sound = times.median > 0.0
                && times.first > 0.0
                && times.percentile_99 >= times.median
                && times.failed.count < times.failed.of;
            if !is_sound {
                self.say(format!("{}, {name} {column}: {times:?}", tool.id));
            }
        }
    }

    fn servers(&mut self, tool: &Tool) {
        let report = self.report;
        for (state, table) in &report.grants {
            for (column, grants) in self.cells(tool, state.words(), table, |_| true) {
                let is_sound = grants.per_second > 0.0
                    && grants.median > 0.0
                    && grants.percentile_99 >= grants.median
                    && grants.requests > 0;
                if !is_sound {
                    self.say(format!(
                        "{}, {} {column}: {grants:?}",
                        tool.id,
                        state.words()
                    ));
                }
            }
        }
        for (column, bytes) in self.cells(tool, "memory", &report.memory, |_| true) {
            if bytes == 0 {
                self.say(format!("{}, memory {column}: none", tool.id));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Collisions, Thefts};
    use crate::sample::report;

    const ALL: [Scenario; 2] = [Scenario::Collisions, Scenario::Thefts];

    #[test]
    fn a_whole_report_has_nothing_wrong() {
        assert_eq!(check(&report(), &ALL), Vec::<String>::new());
    }

    #[test]
    fn a_dash_in_the_wrong_place_is_wrong() {
        let mut missing = report();
        missing.collisions.rows[0].cells[1] = None;
        let wrong = check(&missing, &ALL);
        assert_eq!(wrong, ["portpicker-rust-lease, collisions 4: a dash"]);

        let mut too_much = report();
        too_much
            .thefts
            .set("ephemeral-port-reserve", 0, Thefts::default());
        let wrong = check(&too_much, &ALL);
        assert_eq!(wrong, ["ephemeral-port-reserve, thefts plain 0: no dash"]);
    }

    #[test]
    fn a_row_that_is_missing_is_wrong() {
        let mut report = report();
        report.thefts.rows.remove(0);
        let wrong = check(&report, &ALL);
        assert_eq!(wrong, ["portpicker-rust-lease, thefts: 0 cells"]);
    }

    #[test]
    fn fewer_picks_than_planned_are_wrong() {
        let mut report = report();
        report.collisions.set("by-hand", 0, Collisions::default());
        assert_eq!(check(&report, &ALL).len(), 3, "shared, repeated, failed");
    }

    #[test]
    fn a_port_of_ours_that_is_somebody_elses_is_wrong() {
        for id in ["portpicker-rust-lease", "by-hand"] {
            let mut report = report();
            let mut cell = report.collisions.cell(id, "4").unwrap();
            cell.shared.count += 1;
            report.collisions.set(id, 1, cell);
            let is_ours = id != "by-hand";
            assert_eq!(check(&report, &ALL).len(), usize::from(is_ours), "{id}");
        }
    }
}
