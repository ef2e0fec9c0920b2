//! The results as tables in Markdown.

use std::fmt::Write;

use crate::driver::How;
use crate::plan::Effort;
use crate::report::{Entry, PoolState, Report, Table, Times};
use crate::statistics::Share;
use crate::text::{self, DASH};
use crate::tools::Kind;

/// Returns all results.
pub fn markdown(report: &Report) -> String {
    let mut page = Page {
        report,
        text: String::new(),
    };
    page.heading();
    // What was not measured has no table, as it has no plot.
    if !report.cost.rows.is_empty() {
        page.glance();
    }
    if !report.collisions.rows.is_empty() {
        page.collisions();
    }
    if !report.thefts.rows.is_empty() {
        page.thefts();
    }
    if !report.cost.rows.is_empty() {
        page.cost();
    }
    if !report.crowded.rows.is_empty() {
        page.crowded();
    }
    if !report.memory.rows.is_empty() {
        page.servers();
    }
    page.troubles();
    page.text
}

impl Report {
    /// Returns the tools of a kind which have a row in `table`, best first: by `key`, smallest first,
    /// then by the cost of a pick. Those without a key come last.
    pub fn ranking<C: Copy>(
        &self,
        table: &Table<C>,
        kinds: &[Kind],
        key: impl Fn(&str) -> Option<f64>,
    ) -> Vec<&Entry> {
        let has_row = |entry: &&Entry| {
            kinds.contains(&entry.kind) && table.rows.iter().any(|row| row.tool == entry.id)
        };
        let mut entries: Vec<&Entry> = self.tools.iter().filter(has_row).collect();
        let order = |a: Option<f64>, b: Option<f64>| match (a, b) {
            (Some(a), Some(b)) => a.total_cmp(&b),
            (a, b) => b.is_some().cmp(&a.is_some()),
        };
        let cost = |entry: &Entry| self.cost.cell(&entry.id, "pick").map(|times| times.median);
        entries.sort_by(|a, b| order(key(&a.id), key(&b.id)).then_with(|| order(cost(a), cost(b))));
        entries
    }

    /// Returns the shared numbers of all columns, to rank by; `None` if there are none.
    pub fn all_shared(&self, tool: &str) -> Option<f64> {
        sum(self.collisions.cells(tool), |cell| cell.shared)
    }

    /// Returns the lost servers of all columns, to rank by; `None` if there are none.
    pub fn all_lost(&self, tool: &str) -> Option<f64> {
        sum(self.thefts.cells(tool), |cell| cell.lost)
    }

    /// Returns the lost servers of both kinds after `delay`; `None` if the tool takes neither.
    pub fn lost_after(&self, tool: &str, delay: u64) -> Option<Share> {
        let cells = How::ALL.map(|how| self.thefts.cell(tool, &format!("{} {delay}", how.word())));
        let mut all: Option<Share> = None;
        for cell in cells.into_iter().flatten() {
            *all.get_or_insert_default() += cell.lost;
        }
        all
    }
}

/// Returns the sum of the shares of all cells. Each column counts as much as any other.
fn sum<C: Copy>(cells: &[Option<C>], share: impl Fn(C) -> Share) -> Option<f64> {
    let ratios = cells.iter().flatten().map(|&cell| share(cell).ratio());
    cells.iter().any(Option::is_some).then(|| ratios.sum())
}

/// A page of tables, being written.
struct Page<'a> {
    report: &'a Report,
    text: String,
}

impl Page<'_> {
    fn heading(&mut self) {
        let report = self.report;
        self.line("# Results");
        self.line("");
        if report.effort.is_short {
            self.line(
                "Of a short run, which shows that everything works. **These are no measurements.**",
            );
            self.line("");
        }
        self.line(&format!("On {}.", report.machine.summary()));
        let versions = report
            .versions
            .iter()
            .map(|(name, version)| format!("{name} {version}"));
        let versions: Vec<String> = versions.collect();
        self.line(&format!(
            "Commit {}; {}.",
            report.commit,
            versions.join(", ")
        ));
        self.line("");
        self.line("In each table the best come first; among equals, those with the cheaper pick.");
        self.line("This project's are in bold. A dash is a thing that a tool cannot do.");
    }

    /// One column for each question.
    fn glance(&mut self) {
        let report = self.report;
        let Effort {
            processes,
            delays,
            taken,
            picks,
            ..
        } = &report.effort;
        // What others have published about: 16 processes, or the most there are.
        let at_once = processes
            .iter()
            .copied()
            .filter(|&count| count <= 16)
            .max()
            .unwrap_or(1);
        let delay = delays.iter().copied().max().unwrap_or(0);
        let crowd = taken
            .iter()
            .copied()
            .filter(|&percent| percent <= 95)
            .max()
            .unwrap_or(0);
        self.section("At a glance");
        self.line(&format!(
            "*Shared*: picks whose number another process was given too, when {at_once} processes \
             pick {} ports each at once ({} with commands). *Stolen*: servers that could \
             not bind {} after the pick. *A pick*: the median; *crowded*: with {crowd} % of the range taken.",
            picks.library, picks.command, text::delay(delay)
        ));
        for kind in [Kind::Library, Kind::Command] {
            let shared = |id: &str| {
                report
                    .collisions
                    .cell(id, &at_once.to_string())
                    .map(|cell| cell.shared)
            };
            let key = |id: &str| Some(shared(id)?.ratio() + report.lost_after(id, delay)?.ratio());
            let entries = report.ranking(&report.cost, &[kind], key);
            let crowded: &[&str] = if kind == Kind::Library {
                &["crowded"]
            } else {
                &[]
            };
            let columns = [&["shared", "stolen", "a pick"], crowded].concat();
            self.table(&columns, &entries, |entry| {
                let id = &entry.id;
                let median = |cell: Option<Times>| cell.map(|cell| text::time(cell.median));
                let mut cells = vec![
                    shared(id).map(text::share),
                    report.lost_after(id, delay).map(text::share),
                    median(report.cost.cell(id, "pick")),
                ];
                if kind == Kind::Library {
                    cells.push(median(report.crowded.cell(id, &crowd.to_string())));
                }
                cells
            });
        }
    }

    fn collisions(&mut self) {
        let report = self.report;
        let picks = report.effort.picks;
        self.section("Collisions");
        self.line(&format!(
            "So many processes pick {} ports each at once ({} with commands), and all keep what they \
             were given: the share of picks whose number another process was given too. *Repeated*: \
             the share of those whose number the same process had been given before.",
            picks.library, picks.command
        ));
        for kind in [Kind::Library, Kind::Command] {
            let entries = report.ranking(&report.collisions, &[kind], |id| report.all_shared(id));
            let columns: Vec<String> = report
                .collisions
                .columns
                .iter()
                .map(String::as_str)
                .map(|processes| {
                    if processes == "1" {
                        "1 process".to_owned()
                    } else {
                        processes.to_owned()
                    }
                })
                .chain(["repeated".to_owned()])
                .collect();
            self.table(&columns, &entries, |entry| {
                let cells = report.collisions.cells(&entry.id);
                let mut texts: Vec<_> = cells
                    .iter()
                    .map(|cell| Some(text::share((*cell)?.shared)))
                    .collect();
                let mut repeated: Option<Share> = None;
                for cell in cells.iter().flatten() {
                    *repeated.get_or_insert_default() += cell.repeated;
                }
                texts.push(repeated.map(text::share));
                texts
            });
        }
    }

    fn thefts(&mut self) {
        let report = self.report;
        let Effort {
            servers,
            storm,
            delays,
            ..
        } = &report.effort;
        self.section("Thefts");
        self.line(&format!(
            "A process picks, and so long afterwards a server binds the port: the share of servers \
             that could not, of {} each ({} with commands). Meanwhile {} outgoing connections and as \
             many servers that bind port 0 begin a second, and live for {}.",
            servers.library, servers.command, storm.per_second, text::delay(storm.lifetime)
        ));
        for kind in [Kind::Library, Kind::Command] {
            let entries = report.ranking(&report.thefts, &[kind], |id| report.all_lost(id));
            let heading = |how| match how {
                How::Plain => "plain server",
                How::Reuse => "SO_REUSEADDR",
            };
            let columns: Vec<String> = How::ALL
                .into_iter()
                .flat_map(|how| {
                    delays
                        .iter()
                        .map(move |&delay| format!("{}, {}", heading(how), text::delay(delay)))
                })
                .collect();
            self.table(&columns, &entries, |entry| {
                let cells = report.thefts.cells(&entry.id);
                cells
                    .iter()
                    .map(|cell| Some(text::share((*cell)?.lost)))
                    .collect()
            });
        }
    }

    fn cost(&mut self) {
        let report = self.report;
        let Effort { timed, rounds, .. } = &report.effort;
        self.section("Cost");
        self.line(&format!(
            "The time of a pick, one after the other in a process that keeps them, in {rounds} \
             processes: {} picks in each, or {} runs of a command.",
            timed.library, timed.command
        ));
        for kinds in [&[Kind::Library][..], &[Kind::Command, Kind::Floor]] {
            let cost = |id: &str| report.cost.cell(id, "pick");
            let entries = report.ranking(&report.cost, kinds, |id| Some(cost(id)?.median));
            self.table(
                &["median", "99th percentile", "first pick"],
                &entries,
                |entry| match cost(&entry.id) {
                    Some(times) => [times.median, times.percentile_99, times.first]
                        .map(|micros| Some(text::time(micros)))
                        .to_vec(),
                    None => vec![None; 3],
                },
            );
        }
    }

    fn crowded(&mut self) {
        let report = self.report;
        self.section("Crowded range");
        self.line(
            "The median time of a pick where strangers listen at so many percent of the range. In \
             brackets: picks that found no port, although there were some. A dash: more than half.",
        );
        let last_but_one = report
            .effort
            .taken
            .iter()
            .filter(|&&percent| percent <= 95)
            .max();
        let column = last_but_one.map(ToString::to_string).unwrap_or_default();
        let entries = report.ranking(&report.crowded, &[Kind::Library], |id| {
            Some(report.crowded.cell(id, &column)?.median)
        });
        let columns: Vec<String> = report
            .crowded
            .columns
            .iter()
            .map(|percent| format!("{percent} %"))
            .collect();
        self.table(&columns, &entries, |entry| {
            let cells = report.crowded.cells(&entry.id).iter();
            cells
                .map(|cell| {
                    let cell = (*cell)?;
                    let failed = match cell.failed.count {
                        0 => String::new(),
                        _ => format!(" ({})", text::share(cell.failed)),
                    };
                    Some(text::time(cell.median) + &failed)
                })
                .collect()
        });
    }

    fn servers(&mut self) {
        let report = self.report;
        self.section("Port servers");
        self.line(&format!(
            "A pool of {} ports, and one process that keeps so many requests under way at once: \
             answers a second; in brackets the median and the 99th percentile of the time from the \
             connect to the answer. The answers of a full pool are refusals.",
            text::count(f64::from(report.effort.pool))
        ));
        for (&state, table) in &report.grants {
            let last = table.columns.last().map_or("", String::as_str);
            // More is better.
            let entries = report.ranking(table, &[Kind::Server], |id| {
                Some(-table.cell(id, last)?.per_second)
            });
            let words = state.words();
            self.line("");
            self.line(&format!("{}{}:", words[..1].to_uppercase(), &words[1..]));
            let columns: Vec<String> = table
                .columns
                .iter()
                .map(|clients| match clients.as_str() {
                    "1" => "1 client".to_owned(),
                    _ => clients.clone(),
                })
                .collect();
            self.table(&columns, &entries, |entry| {
                let cells = table.cells(&entry.id).iter();
                cells
                    .map(|cell| {
                        let cell = (*cell)?;
                        Some(format!(
                            "{} ({}, {})",
                            text::count(cell.per_second),
                            text::time(cell.median),
                            text::time(cell.percentile_99)
                        ))
                    })
                    .collect()
            });
        }
        let full = report.effort.pool.to_string();
        let entries = report.ranking(&report.memory, &[Kind::Server], |id| {
            Some(report.memory.cell(id, &full)? as f64)
        });
        self.line("");
        self.line("Resident memory, after the requests above:");
        let columns = [
            "no lease".to_owned(),
            format!("{} leases", text::count(f64::from(report.effort.pool))),
        ];
        self.table(&columns, &entries, |entry| {
            let cells = report.memory.cells(&entry.id).iter();
            cells.map(|cell| Some(text::bytes((*cell)?))).collect()
        });
    }

    fn troubles(&mut self) {
        if self.report.troubles.is_empty() {
            return;
        }
        self.section("What failed");
        for trouble in &self.report.troubles {
            let one_line = trouble.split_whitespace().collect::<Vec<_>>().join(" ");
            self.line(&format!("- {one_line}"));
        }
    }

    fn section(&mut self, title: &str) {
        self.line("");
        self.line(&format!("## {title}"));
        self.line("");
    }

    /// Writes a table with a row for each of `entries`; `None` is a dash.
    fn table(
        &mut self,
        columns: &[impl AsRef<str>],
        entries: &[&Entry],
        cells: impl Fn(&Entry) -> Vec<Option<String>>,
    ) {
        if entries.is_empty() {
            return;
        }
        let mut rows = vec![["tool", "call"].map(str::to_owned).to_vec()];
        rows[0].extend(columns.iter().map(|column| column.as_ref().to_owned()));
        for entry in entries {
            let name = entry.full_name();
            let name = if entry.is_ours() {
                format!("**{name}**")
            } else {
                name
            };
            let mut row = vec![name, format!("`{}`", entry.call)];
            row.extend(
                cells(entry)
                    .into_iter()
                    .map(|cell| cell.unwrap_or(DASH.to_owned())),
            );
            assert_eq!(row.len(), rows[0].len(), "{}", entry.id);
            rows.push(row);
        }
        // A rule needs a hyphen beside its colon.
        let width = |at: usize| {
            rows.iter()
                .map(|row| row[at].chars().count())
                .fold(3, usize::max)
        };
        let widths: Vec<usize> = (0..rows[0].len()).map(width).collect();
        self.line("");
        for (number, row) in rows.iter().enumerate() {
            let mut line = "|".to_owned();
            for (at, (cell, &width)) in row.iter().zip(&widths).enumerate() {
                // Numbers to the right.
                _ = match at {
                    0 | 1 => write!(line, " {cell:<width$} |"),
                    _ => write!(line, " {cell:>width$} |"),
                };
            }
            self.line(&line);
            if number == 0 {
                let rules = widths.iter().enumerate().map(|(at, &width)| match at {
                    0 | 1 => format!(" {} |", "-".repeat(width)),
                    _ => format!(" {}: |", "-".repeat(width - 1)),
                });
                let rules: String = rules.collect();
                self.line(&format!("|{rules}"));
            }
        }
    }

    fn line(&mut self, line: &str) {
        self.text += line;
        self.text += "\n";
    }
}

impl PoolState {
    /// Returns the words for it.
    pub fn words(self) -> &'static str {
        match self {
            Self::Empty => "empty pool",
            Self::Nearly => "95 % of the pool leased",
            Self::Full => "full pool",
        }
    }
}

impl Entry {
    /// Returns its name with its version.
    pub fn full_name(&self) -> String {
        let Some(version) = &self.version else {
            return self.name.clone();
        };
        // Behind the package, and before what of it is used, or with what.
        let package = self.package_name();
        let rest = &self.name[package.len()..];
        format!("{package} {version}{rest}")
    }

    /// Returns the beginning of its name, which is the package's.
    pub fn package_name(&self) -> &str {
        let end = self.name.find([',', '+', '(']).unwrap_or(self.name.len());
        self.name[..end].trim_end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::report;

    /// Returns the rows of the first table below the heading, without their padding.
    fn rows(page: &str, heading: &str) -> Vec<String> {
        let section = page.split(&format!("## {heading}\n")).nth(1).unwrap();
        section
            .lines()
            .skip_while(|line| !line.starts_with('|'))
            .take_while(|line| line.starts_with('|'))
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect()
    }

    #[test]
    fn what_a_tool_cannot_do_is_a_dash() {
        let rows = rows(&markdown(&report()), "Thefts");
        assert!(rows[0].contains("| plain server, 0 | plain server, 10 ms | SO_REUSEADDR, 0 |"));
        let peer = "| ephemeral-port-reserve 1.1.4 | `reserve()` | – | – | 0 | 0 |";
        assert!(rows.contains(&peer.to_owned()), "{rows:#?}");
    }

    #[test]
    fn the_best_come_first_and_the_cheaper_of_equals() {
        // In the sample, later tools are cheaper, and the last one has losses.
        let page = markdown(&report());
        let names = |heading: &str| -> Vec<String> {
            let name = |row: &String| row.split('`').next().unwrap_or_default().to_owned();
            rows(&page, heading)[2..].iter().map(name).collect()
        };
        let ours = format!(
            "| **portpicker {} (Rust)** | ",
            crate::machine::version(crate::tools::Package::Ours).unwrap()
        );
        let others = ["| ephemeral-port-reserve 1.1.4 | ", "| by hand | "];
        assert_eq!(names("Collisions"), [others[0], &ours, others[1]]);
        assert_eq!(names("Thefts"), [others[0], &ours, others[1]]);
        assert_eq!(
            names("Cost"),
            [others[1], others[0], &ours],
            "not first where it is not"
        );
    }

    #[test]
    fn a_column_of_single_digits_has_a_rule() {
        let rows = rows(&markdown(&report()), "Collisions");
        assert!(
            rows[0].contains("| 1 process | 4 | repeated |"),
            "{rows:#?}"
        );
        assert!(
            rows[1].ends_with("| --------: | ----: | -------: |"),
            "{rows:#?}"
        );
    }

    #[test]
    fn more_grants_are_better() {
        let rows = rows(&markdown(&report()), "Port servers");
        assert!(rows[2].starts_with("| **portserver"), "{rows:#?}");
        assert!(
            rows[2].contains("| 20,000 (50.0 µs, 100 µs) |"),
            "{rows:#?}"
        );
    }

    #[test]
    fn a_short_run_and_its_troubles_are_named() {
        let mut report = report();
        report.troubles.push("get-port: it\nhas ended".to_owned());
        let page = markdown(&report);
        assert!(page.contains("These are no measurements"));
        assert!(page.ends_with("## What failed\n\n- get-port: it has ended\n"));
        report.effort.is_short = false;
        assert!(!markdown(&report).contains("no measurements"));
    }

    #[test]
    fn a_version_stands_behind_the_name_it_belongs_to() {
        let name = |name: &str| {
            let mut entry = report().tools.remove(0);
            (entry.name, entry.version) = (name.to_owned(), Some("2.0".to_owned()));
            entry.full_name()
        };
        assert_eq!(name("get-port"), "get-port 2.0");
        assert_eq!(
            name("portpicker (Rust), hold"),
            "portpicker 2.0 (Rust), hold"
        );
        assert_eq!(name("openport, reservation"), "openport 2.0, reservation");
        assert_eq!(
            name("portpicker + portserver"),
            "portpicker 2.0 + portserver"
        );
        assert_eq!(name("Google portserver.py"), "Google portserver.py 2.0");
    }
}
