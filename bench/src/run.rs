//! A run from beginning to end: the jobs, and what becomes of their outcomes.

use std::collections::{BTreeMap, HashMap};
use std::env;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;

use crate::cell::{self, Outcome};
use crate::check::check;
use crate::driver::How;
use crate::machine::{self, Machine};
use crate::plan::{Effort, Job, Scenario, Work, jobs, takes_part};
use crate::plots::plots;
use crate::progress::Progress;
use crate::report::{Entry, Grants, PoolState, Report, Table, Times};
use crate::servers::{self, Round};
use crate::statistics::{Share, median, percentile};
use crate::tools::{Places, TOOLS, Tool};
use crate::{Result, RunArguments, tables};

const ALL: [Scenario; 5] = [
    Scenario::Collisions,
    Scenario::Thefts,
    Scenario::Cost,
    Scenario::Crowded,
    Scenario::Servers,
];

/// The environment variable that names the file for what is skipped, and the one that forbids it.
const SKIPPED: &str = "PORTPICKER_SKIPPED";
const NO_SKIP: &str = "PORTPICKER_NO_SKIP";

/// Measures, and writes the results.
pub fn run(arguments: &RunArguments) -> Result<()> {
    if let Some(obstacle) = cell::obstacle() {
        return skip(&format!("there are no network namespaces here: {obstacle}"));
    }
    let effort = if arguments.short {
        Effort::short()
    } else {
        Effort::full()
    };
    let places = Places {
        folder: fs::canonicalize(&arguments.places)?,
    };
    let is_asked_for = |tool: &Tool| {
        arguments.tools.is_empty() || arguments.tools.iter().any(|text| tool.id.contains(text))
    };
    let (tools, absent): (Vec<&Tool>, Vec<&Tool>) = TOOLS
        .iter()
        .filter(|tool| is_asked_for(tool))
        .partition(|tool| places.has(tool));
    if !absent.is_empty() {
        let names: Vec<&str> = absent.iter().map(|tool| tool.id).collect();
        skip(&format!("not fetched: {}", names.join(", ")))?;
    }
    let scenarios = match &arguments.only[..] {
        [] => &ALL,
        only => only,
    };

    let mut report = Report::empty(&effort, &places, &tools, scenarios);
    let mut jobs = jobs(&effort, scenarios);
    jobs.retain(|job| tools.iter().any(|tool| tool.id == job.tool));
    let mut samples = Samples::default();
    let mut progress = Progress::start(jobs.len());
    for job in &jobs {
        progress.begin(&section(&job.work), &job.tool);
        match cell::run(job, &effort, &places) {
            Ok(outcome) => samples.add(&mut report, job, outcome)?,
            Err(err) => {
                let trouble = format!("{}, {}: {err}", job.tool, section(&job.work));
                progress.say(&trouble);
                report.troubles.push(trouble);
            }
        }
        progress.end();
    }
    progress.finish();
    samples.sum_up(&mut report);

    fs::create_dir_all(&arguments.output)?;
    let file = arguments.output.join("results.json");
    fs::write(&file, serde_json::to_string_pretty(&report)? + "\n")?;
    draw(&arguments.output)?;
    eprintln!("results: {}", arguments.output.display());
    let wrong = check(&report, scenarios);
    for line in &wrong {
        eprintln!("wrong: {line}");
    }
    match (report.troubles.len(), wrong.len()) {
        (0, 0) => Ok(()),
        (0, wrong) => Err(format!("{wrong} results are wrong").into()),
        (failed, _) => Err(format!("{failed} jobs have failed").into()),
    }
}

/// Makes tables and plots of the results in `folder`.
pub fn draw(folder: &Path) -> Result<()> {
    let report: Report = serde_json::from_slice(&fs::read(folder.join("results.json"))?)?;
    fs::write(folder.join("tables.md"), tables::markdown(&report))?;
    for (name, svg) in plots(&report) {
        fs::write(folder.join(name), svg)?;
    }
    Ok(())
}

/// Says that something is left out, and fails where that is forbidden.
fn skip(reason: &str) -> Result<()> {
    let line = format!("skipped: bench: {reason}");
    eprintln!("{line}");
    if let Some(path) = env::var_os(SKIPPED) {
        let mut file = OpenOptions::new().create(true).append(true).open(path)?;
        writeln!(file, "{line}")?;
    }
    if env::var_os(NO_SKIP).is_some_and(|value| value == "1") {
        return Err("nothing may be skipped".into());
    }
    Ok(())
}

/// Returns what a job is called.
fn section(work: &Work) -> String {
    match work {
        Work::Collisions { processes: 1 } => "collisions, 1 process".to_owned(),
        Work::Collisions { processes } => format!("collisions, {processes} processes"),
        Work::Thefts => "thefts".to_owned(),
        Work::Cost => "cost of a pick".to_owned(),
        Work::Crowded { taken } => format!("cost of a pick, {taken} % taken"),
        Work::Servers { state } => format!("port servers, {}", state.words()),
    }
}

impl Report {
    /// Returns a report in which everything is a dash.
    fn empty(effort: &Effort, places: &Places, tools: &[&Tool], scenarios: &[Scenario]) -> Self {
        let names = |numbers: &[usize]| numbers.iter().map(ToString::to_string).collect::<Vec<_>>();
        let servers_and_delays = How::ALL.into_iter().flat_map(|how| {
            let delays = effort.delays.iter();
            delays.map(move |delay| format!("{} {delay}", how.word()))
        });
        let grants = [PoolState::Empty, PoolState::Nearly, PoolState::Full]
            .map(|state| (state, Table::new(names(servers::clients(state, effort)))));
        let mut report = Self {
            format: 1,
            machine: Machine::this(),
            commit: machine::commit(),
            versions: machine::languages(places),
            effort: effort.clone(),
            tools: tools.iter().map(|tool| Entry::of(tool)).collect(),
            collisions: Table::new(names(&effort.processes)),
            thefts: Table::new(servers_and_delays),
            cost: Table::new(["pick"]),
            crowded: Table::new(names(&effort.taken)),
            grants: BTreeMap::from(grants),
            memory: Table::new(["0", &effort.pool.to_string()]),
            troubles: Vec::new(),
        };
        for &scenario in scenarios {
            for tool in tools.iter().filter(|tool| takes_part(tool, scenario)) {
                match scenario {
                    Scenario::Collisions => report.collisions.add(tool.id),
                    Scenario::Thefts => report.thefts.add(tool.id),
                    Scenario::Cost => report.cost.add(tool.id),
                    Scenario::Crowded => report.crowded.add(tool.id),
                    Scenario::Servers => {
                        report
                            .grants
                            .values_mut()
                            .for_each(|table| table.add(tool.id));
                        report.memory.add(tool.id);
                    }
                }
            }
        }
        report
    }
}

impl Entry {
    /// Returns what a report says of `tool`.
    pub fn of(tool: &Tool) -> Self {
        Self {
            id: tool.id.to_owned(),
            name: tool.name.to_owned(),
            version: machine::version(tool.package),
            call: tool.call.to_owned(),
            kind: tool.kind,
            origin: tool.package.origin(),
        }
    }
}

/// What has been measured of times so far, by tool and column.
#[derive(Debug, Default)]
struct Samples {
    /// The picks of each round.
    cost: HashMap<String, Vec<Vec<Option<f64>>>>,
    crowded: HashMap<(String, usize), Vec<Vec<Option<f64>>>>,
    grants: HashMap<(String, PoolState, usize), Vec<Round>>,
    memory: HashMap<(String, usize), Vec<f64>>,
}

impl Samples {
    /// Puts what a job has found into the report, or aside if more of it is to come.
    fn add(&mut self, report: &mut Report, job: &Job, outcome: Outcome) -> Result<()> {
        let tool = job.tool.clone();
        let effort = &report.effort;
        match (&job.work, outcome) {
            (Work::Collisions { processes }, Outcome::Collisions(counts)) => {
                let column = position(&effort.processes, processes)?;
                report.collisions.set(&tool, column, counts);
            }
            (Work::Thefts, Outcome::Thefts(by_delay)) => {
                for (delay, thefts) in by_delay.iter().enumerate() {
                    for (how, thefts) in thefts.iter().enumerate() {
                        if let Some(thefts) = thefts {
                            let column = how * effort.delays.len() + delay;
                            report.thefts.set(&tool, column, *thefts);
                        }
                    }
                }
            }
            (Work::Cost, Outcome::Picks(picks)) => {
                self.cost.entry(tool).or_default().push(picks);
            }
            (Work::Crowded { taken }, Outcome::Picks(picks)) => {
                let column = position(&effort.taken, taken)?;
                self.crowded.entry((tool, column)).or_default().push(picks);
            }
            (&Work::Servers { state }, Outcome::Server(found)) => {
                for (column, round) in found.rounds.into_iter().enumerate() {
                    let key = (tool.clone(), state, column);
                    self.grants.entry(key).or_default().push(round);
                }
                let column = match state {
                    PoolState::Empty => 0,
                    PoolState::Nearly => return Ok(()),
                    PoolState::Full => 1,
                };
                let samples = self.memory.entry((tool, column)).or_default();
                samples.push(found.memory as f64);
            }
            (work, outcome) => return Err(format!("{outcome:?} of {work:?}").into()),
        }
        Ok(())
    }

    /// Puts everything that is aside into the report.
    fn sum_up(self, report: &mut Report) {
        for (tool, rounds) in self.cost {
            if let Some(times) = times(&rounds) {
                report.cost.set(&tool, 0, times);
            }
        }
        for ((tool, column), rounds) in self.crowded {
            if let Some(times) = times(&rounds) {
                report.crowded.set(&tool, column, times);
            }
        }
        for ((tool, state, column), rounds) in self.grants {
            if let Some(table) = report.grants.get_mut(&state) {
                table.set(&tool, column, grants(&rounds));
            }
        }
        for ((tool, column), bytes) in self.memory {
            report.memory.set(&tool, column, median(&bytes) as u64);
        }
    }
}

fn position(values: &[usize], value: &usize) -> Result<usize> {
    let at = values.iter().position(|other| other == value);
    at.ok_or_else(|| format!("there is no column {value}").into())
}

/// Sums up the picks of some rounds; `None` if more than half of them found no port.
fn times(rounds: &[Vec<Option<f64>>]) -> Option<Times> {
    let picks: Vec<f64> = rounds.iter().flatten().copied().flatten().collect();
    let firsts: Vec<f64> = rounds.iter().filter_map(|picks| *picks.first()?).collect();
    let all = rounds.iter().map(Vec::len).sum::<usize>();
    if firsts.is_empty() || picks.len() * 2 < all {
        return None;
    }
    Some(Times {
        median: median(&picks),
        percentile_99: percentile(&picks, 99.0),
        first: median(&firsts),
        failed: Share {
            count: (all - picks.len()) as u64,
            of: all as u64,
        },
    })
}

/// Sums up the answers of some rounds.
fn grants(rounds: &[Round]) -> Grants {
    let rates: Vec<f64> = rounds
        .iter()
        .map(|round| round.micros.len() as f64 / round.seconds)
        .collect();
    let micros: Vec<f64> = rounds
        .iter()
        .flat_map(|round| &round.micros)
        .copied()
        .collect();
    Grants {
        per_second: median(&rates),
        median: median(&micros),
        percentile_99: percentile(&micros, 99.0),
        requests: micros.len() as u64,
    }
}
