//! The results as pictures.

use crate::report::{Entry, PoolState, Report};
use crate::svg::{BOLD_CHARACTER, CHARACTER, Marker, Picture, WIDTH, spread};
use crate::text;
use crate::tools::{Kind, Origin};

/// The distance of the page's edge to what is on it.
const MARGIN: f64 = 20.0;

/// The height of a line of small text.
const LINE: f64 = 14.0;

/// The height of a name in a list of tools.
const NAME: f64 = 17.0;

/// The room between a chart and the names of its lines.
const BESIDE: f64 = 54.0;

/// Returns the names of the files and what is in them. Scenarios that were not measured have none.
pub fn plots(report: &Report) -> Vec<(&'static str, String)> {
    let mut plots = Vec::new();
    if !report.collisions.rows.is_empty() {
        plots.push(("collisions.svg", collisions(report)));
    }
    if !report.thefts.rows.is_empty() {
        plots.push(("thefts.svg", thefts(report)));
    }
    if !report.cost.rows.is_empty() {
        plots.push(("cost.svg", cost(report)));
    }
    if !report.crowded.rows.is_empty() {
        plots.push(("crowded.svg", crowded(report)));
    }
    if !report.memory.rows.is_empty() {
        plots.push(("servers.svg", servers(report)));
    }
    plots
}

fn collisions(report: &Report) -> String {
    let picks = report.effort.picks.library;
    let lines: Vec<Line<'_>> = report
        .ranking(&report.collisions, &[Kind::Library], |id| {
            report.all_shared(id)
        })
        .into_iter()
        .map(|entry| {
            let cells = report.collisions.cells(&entry.id).iter();
            let values = cells.map(|cell| Some((*cell)?.shared.ratio() * 100.0));
            Line::new(entry, values.collect())
        })
        .collect();
    let columns = &report.collisions.columns;
    let chart = Chart {
        columns: columns.clone(),
        across: "processes that pick at once".to_owned(),
        scale: Scale::percent(&lines),
        lines,
    };
    picture(
        report,
        "The same number, given to more than one process",
        &format!(
            "Share of picks whose number another process was given too, of {picks} picks in each process"
        ),
        chart,
    )
}

fn thefts(report: &Report) -> String {
    let delays = &report.effort.delays;
    let storm = &report.effort.storm;
    let lines: Vec<Line<'_>> = report
        .ranking(&report.thefts, &[Kind::Library], |id| report.all_lost(id))
        .into_iter()
        .map(|entry| {
            let values = delays.iter().map(|&delay| {
                let lost = report.lost_after(&entry.id, delay)?;
                Some(lost.ratio() * 100.0)
            });
            Line::new(entry, values.collect())
        })
        .collect();
    let chart = Chart {
        columns: delays.iter().map(|&delay| text::delay(delay)).collect(),
        across: "from the pick to the bind".to_owned(),
        scale: Scale::percent(&lines),
        lines,
    };
    picture(
        report,
        "The number was free, and then the server could not bind it",
        &format!(
            "Share of servers that failed, on a host where {} connections and as many servers on \
             port 0 begin a second",
            text::count(f64::from(storm.per_second))
        ),
        chart,
    )
}

fn crowded(report: &Report) -> String {
    let lines: Vec<Line<'_>> = report
        .ranking(&report.crowded, &[Kind::Library], |id| {
            Some(report.crowded.cells(id).last().copied()??.median)
        })
        .into_iter()
        .map(|entry| {
            let cells = report.crowded.cells(&entry.id).iter();
            Line::new(entry, cells.map(|cell| Some((*cell)?.median)).collect())
        })
        .collect();
    let chart = Chart {
        columns: report
            .crowded
            .columns
            .iter()
            .map(|percent| format!("{percent} %"))
            .collect(),
        across: "of the range is taken by others".to_owned(),
        scale: Scale::time(values(&lines)),
        lines,
    };
    picture(
        report,
        "A pick when most of the range is taken",
        "Median time of a pick, on a logarithmic scale: lower is better",
        chart,
    )
}

/// Returns a picture with one chart.
fn picture(report: &Report, title: &str, subtitle: &str, chart: Chart<'_>) -> String {
    let entries: Vec<&Entry> = chart.lines.iter().map(|line| line.entry).collect();
    let mut picture = Picture::new();
    let top = heading(&mut picture, title, subtitle, &entries) + 8.0;
    let area = Area {
        left: MARGIN + 46.0,
        right: WIDTH - MARGIN - BESIDE - width_of_names(&entries),
        top,
        bottom: top + (chart.lines.len() as f64 * NAME).max(300.0),
    };
    chart.draw(&mut picture, area);
    footing(picture, report, title, &entries, area.bottom + 46.0)
}

/// Draws a point for each tool: the times are too far apart for bars.
fn cost(report: &Report) -> String {
    const TITLE: &str = "What a pick costs";
    const ROW: f64 = 19.0;
    /// Where the value is written, left of the point.
    const VALUE: f64 = 64.0;
    let cell = |id: &str| report.cost.cell(id, "pick");
    let groups = [
        ("In a process", &[Kind::Library][..]),
        ("A command, for a script", &[Kind::Command, Kind::Floor]),
    ]
    .map(|(name, kinds)| {
        let entries = report.ranking(&report.cost, kinds, |id| Some(cell(id)?.median));
        (name, entries)
    });
    let entries: Vec<&Entry> = groups
        .iter()
        .flat_map(|(_, entries)| entries)
        .copied()
        .collect();
    let mut picture = Picture::new();
    let top = heading(
        &mut picture,
        TITLE,
        "Median time, with a line to the 99th percentile, on a logarithmic scale: left is better",
        &entries,
    );
    let names = MARGIN + width_of_names(&entries);
    let (left, right) = (names + VALUE, WIDTH - MARGIN - 24.0);
    let times = report.cost.rows.iter().filter_map(|row| row.cells[0]);
    let scale = Scale::time(times.flat_map(|times| [times.median, times.percentile_99]));
    let x = |micros: f64| left + scale.place(micros) * (right - left);

    let there = || groups.iter().filter(|(_, entries)| !entries.is_empty());
    let heights = there().map(|(_, entries)| (entries.len() + 1) as f64 * ROW + 10.0);
    let bottom = top + heights.sum::<f64>();
    for (value, label) in &scale.ticks {
        picture.line((x(*value), top), (x(*value), bottom), "grid");
        picture.text(x(*value), bottom + 16.0, "dim small middle", label);
    }
    let mut y = top;
    for (name, entries) in there() {
        y += ROW + 4.0;
        picture.text(MARGIN, y - 5.0, "ink strong", name);
        for entry in entries {
            let look = Look::of(entry);
            if entry.is_ours() {
                picture.rectangle(MARGIN - 8.0, y, WIDTH - 2.0 * MARGIN + 16.0, ROW, "band");
            }
            let middle = y + ROW / 2.0;
            let class = format!("end {}", look.text);
            picture.text(names, middle + 4.0, &class, &entry.name);
            match cell(&entry.id) {
                Some(times) => {
                    let (median, far) = (x(times.median), x(times.percentile_99));
                    picture.path(&[(median, middle), (far, middle)], look.class);
                    picture.marker(look.marker, (median, middle), look.size + 1.0, look.class);
                    let class = format!("end small {}", look.text);
                    let label = text::time(times.median);
                    picture.text(median - 9.0, middle + 3.5, &class, &label);
                }
                None => picture.text(left, middle + 4.0, "dim", text::DASH),
            }
            y += ROW;
        }
        y += 6.0;
    }
    footing(picture, report, TITLE, &entries, bottom + 30.0)
}

fn servers(report: &Report) -> String {
    const TITLE: &str = "Port servers";
    let table = &report.grants[&PoolState::Empty];
    let entries = report.ranking(table, &[Kind::Server], |id| {
        Some(-table.cells(id).last().copied()??.per_second)
    });
    let pool = text::count(f64::from(report.effort.pool));
    let mut picture = Picture::new();
    let top = heading(
        &mut picture,
        TITLE,
        &format!("A pool of {pool} ports, and a process that keeps so many requests under way"),
        &entries,
    );
    let middle = WIDTH / 2.0;
    let bottom = top + 240.0;
    let mut panel = |left: f64, name: &str, scale: Scale, lines: Vec<Line<'_>>| {
        picture.text(left + 6.0, top + 18.0, "ink strong", name);
        let area = Area {
            left: left + 52.0,
            right: left + middle - MARGIN - 10.0,
            top: top + 32.0,
            bottom,
        };
        let chart = Chart {
            columns: table.columns.clone(),
            across: "requests at once".to_owned(),
            scale,
            lines,
        };
        chart.draw_without_names(&mut picture, area);
    };

    let rates: Vec<Line<'_>> = entries
        .iter()
        .map(|entry| {
            let cells = table.cells(&entry.id).iter();
            Line::new(entry, cells.map(|cell| Some((*cell)?.per_second)).collect())
        })
        .collect();
    let most = values(&rates).fold(1.0, f64::max);
    panel(
        MARGIN - 6.0,
        "Grants a second",
        Scale::linear(most, text::count),
        rates,
    );

    let times: Vec<Line<'_>> = entries
        .iter()
        .flat_map(|entry| {
            let cells = table.cells(&entry.id);
            let median = cells.iter().map(|cell| Some((*cell)?.median)).collect();
            let high = cells
                .iter()
                .map(|cell| Some((*cell)?.percentile_99))
                .collect();
            let thin = Line {
                is_thin: true,
                ..Line::new(entry, high)
            };
            [Line::new(entry, median), thin]
        })
        .collect();
    let scale = Scale::time(values(&times));
    panel(
        middle,
        "Time of a grant: median, 99th percentile (thin)",
        scale,
        times,
    );

    // What is one number: a line for each server, which also says whose colour it is.
    let column = |at: usize| MARGIN + 220.0 + 160.0 * at as f64;
    let headings = [
        "a grant, 95 % leased".to_owned(),
        "a refusal, all leased".to_owned(),
        format!("memory, {pool} leases"),
        "memory, no lease".to_owned(),
    ];
    let mut y = bottom + 62.0;
    for (at, heading) in headings.iter().enumerate() {
        picture.text(column(at), y, "dim small", heading);
    }
    for entry in &entries {
        let look = Look::of(entry);
        y += NAME + 3.0;
        picture.marker(
            look.marker,
            (MARGIN + 6.0, y - 4.0),
            look.size + 1.0,
            look.class,
        );
        picture.text(MARGIN + 18.0, y, look.text, &entry.name);
        let one_client = |state: PoolState| {
            let cell = report
                .grants
                .get(&state)?
                .cells(&entry.id)
                .first()
                .copied()??;
            Some(text::time(cell.median))
        };
        let memory = |at: usize| {
            let bytes = report.memory.cells(&entry.id).get(at).copied()??;
            Some(text::bytes(bytes))
        };
        let facts = [
            one_client(PoolState::Nearly),
            one_client(PoolState::Full),
            memory(1),
            memory(0),
        ];
        for (at, fact) in facts.into_iter().enumerate() {
            let fact = fact.unwrap_or(text::DASH.to_owned());
            picture.text(column(at), y, look.text, &fact);
        }
    }
    footing(picture, report, TITLE, &entries, y + 12.0)
}

/// Returns all values of some lines.
fn values(lines: &[Line<'_>]) -> impl Iterator<Item = f64> {
    lines
        .iter()
        .flat_map(|line| line.values.iter().copied().flatten())
}

/// Returns how much room the names need.
fn width_of_names(entries: &[&Entry]) -> f64 {
    let width = |entry: &&Entry| {
        let character = if entry.is_ours() {
            BOLD_CHARACTER
        } else {
            CHARACTER
        };
        entry.name.chars().count() as f64 * character
    };
    entries.iter().map(width).fold(0.0, f64::max)
}

/// How a tool looks in all pictures.
struct Look {
    class: &'static str,
    text: &'static str,
    marker: Marker,
    size: f64,
}

impl Look {
    fn of(entry: &Entry) -> Self {
        Self::from(entry.origin)
    }

    fn from(origin: Origin) -> Self {
        let (class, marker) = match origin {
            Origin::Ours => ("ours", Marker::Circle),
            Origin::Rust => ("rust", Marker::Diamond),
            Origin::Python => ("python", Marker::Square),
            Origin::Node => ("node", Marker::Triangle),
            Origin::Nobody => ("nobody", Marker::Cross),
        };
        let is_ours = origin == Origin::Ours;
        Self {
            class,
            text: if is_ours { "ours-text strong" } else { "ink" },
            marker,
            size: if is_ours { 4.0 } else { 3.0 },
        }
    }
}

/// The place of a chart.
#[derive(Clone, Copy)]
struct Area {
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
}

/// The values of one tool.
struct Line<'a> {
    entry: &'a Entry,
    values: Vec<Option<f64>>,
    is_thin: bool,
}

impl<'a> Line<'a> {
    fn new(entry: &'a Entry, values: Vec<Option<f64>>) -> Self {
        Self {
            entry,
            values,
            is_thin: false,
        }
    }
}

/// Lines over columns.
struct Chart<'a> {
    columns: Vec<String>,
    /// What the columns are.
    across: String,
    scale: Scale,
    lines: Vec<Line<'a>>,
}

impl Chart<'_> {
    /// Draws the chart, with the names of the lines to its right.
    fn draw(&self, picture: &mut Picture, area: Area) {
        self.draw_without_names(picture, area);
        let end = |line: &Line<'_>| {
            let at = line.values.iter().rposition(Option::is_some)?;
            Some((self.x(area, at), self.y(area, line.values[at]?)))
        };
        let named = self
            .lines
            .iter()
            .filter_map(|line| Some((line, end(line)?)));
        // From the best, which is first, at the bottom: lines that end together keep that order.
        let named: Vec<_> = named.collect::<Vec<_>>().into_iter().rev().collect();
        let ends: Vec<f64> = named.iter().map(|(_, (_, y))| *y).collect();
        let places = spread(&ends, NAME, area.top, area.bottom);
        for ((line, (x, y)), place) in named.into_iter().zip(places) {
            let look = Look::of(line.entry);
            let right = area.right;
            let lead = [
                (x + 7.0, y),
                (right - 4.0, y),
                (right + 30.0, place),
                (right + 36.0, place),
            ];
            picture.lead(&lead);
            picture.marker(look.marker, (right + 44.0, place), look.size, look.class);
            picture.text(right + BESIDE, place + 4.0, look.text, &line.entry.name);
        }
    }

    fn draw_without_names(&self, picture: &mut Picture, area: Area) {
        for (value, label) in &self.scale.ticks {
            let y = self.y(area, *value);
            picture.line((area.left, y), (area.right, y), "grid");
            picture.text(area.left - 8.0, y + 4.0, "dim small end", label);
        }
        for (at, column) in self.columns.iter().enumerate() {
            picture.text(
                self.x(area, at),
                area.bottom + 18.0,
                "dim small middle",
                column,
            );
        }
        let middle = f64::midpoint(area.left, area.right);
        picture.text(middle, area.bottom + 34.0, "dim small middle", &self.across);
        // This project's last, above the others.
        let (ours, others): (Vec<_>, Vec<_>) =
            self.lines.iter().partition(|line| line.entry.is_ours());
        for line in others.into_iter().chain(ours) {
            let look = Look::of(line.entry);
            let points: Vec<(f64, f64)> = line
                .values
                .iter()
                .enumerate()
                .filter_map(|(at, value)| Some((self.x(area, at), self.y(area, (*value)?))))
                .collect();
            let is_bold = line.entry.is_ours() && !line.is_thin;
            let class = if is_bold {
                format!("{} bold", look.class)
            } else {
                look.class.to_owned()
            };
            picture.path(&points, &class);
            if !line.is_thin {
                for point in points {
                    picture.marker(look.marker, point, look.size, look.class);
                }
            }
        }
    }

    fn x(&self, area: Area, column: usize) -> f64 {
        let inset = 14.0;
        let (left, right) = (area.left + inset, area.right - inset);
        let steps = (self.columns.len().max(2) - 1) as f64;
        left + (right - left) * column as f64 / steps
    }

    fn y(&self, area: Area, value: f64) -> f64 {
        area.bottom - self.scale.place(value) * (area.bottom - area.top)
    }
}

/// Where values are, from 0 to 1.
struct Scale {
    low: f64,
    high: f64,
    is_logarithmic: bool,
    ticks: Vec<(f64, String)>,
}

impl Scale {
    /// A scale from 0 to `most`, or somewhat more.
    fn linear(most: f64, label: impl Fn(f64) -> String) -> Self {
        let step = nice_step(most / 5.0);
        let steps = (most / step).ceil().max(1.0) as usize;
        let ticks = (0..=steps).map(|count| {
            let value = step * count as f64;
            (value, label(value))
        });
        Self {
            low: 0.0,
            high: step * steps as f64,
            is_logarithmic: false,
            ticks: ticks.collect(),
        }
    }

    /// A scale of percentages for `lines`.
    fn percent(lines: &[Line<'_>]) -> Self {
        let most = values(lines).fold(1.0, f64::max);
        Self::linear(most, |value| format!("{value} %"))
    }

    /// A logarithmic scale of times, in µs, from one power of ten to another.
    fn time(values: impl Iterator<Item = f64>) -> Self {
        let (low, high) = values.fold((f64::MAX, f64::MIN), |(low, high), value| {
            (low.min(value), high.max(value))
        });
        if low > high {
            return Self::linear(1.0, text::time);
        }
        let (first, last) = (low.log10().floor() as i32, high.log10().ceil() as i32);
        let last = last.max(first + 1);
        let label = |micros: f64| text::time(micros).replace(".0 ", " ");
        let ticks = (first..=last).map(|power| {
            let value = 10_f64.powi(power);
            (value, label(value))
        });
        Self {
            low: 10_f64.powi(first),
            high: 10_f64.powi(last),
            is_logarithmic: true,
            ticks: ticks.collect(),
        }
    }

    fn place(&self, value: f64) -> f64 {
        if self.is_logarithmic {
            (value / self.low).log10() / (self.high / self.low).log10()
        } else {
            (value - self.low) / (self.high - self.low)
        }
    }
}

/// Returns the smallest of 1, 2, or 5 times a power of ten that is not below `least`.
fn nice_step(least: f64) -> f64 {
    let power = 10_f64.powf(least.log10().floor());
    [1.0, 2.0, 5.0, 10.0]
        .map(|factor| factor * power)
        .into_iter()
        .find(|&step| step >= least * 0.999)
        .unwrap_or(10.0 * power)
}

/// Writes a title, what the picture shows, and how it shows whose `entries` are. Returns where it ends.
fn heading(picture: &mut Picture, title: &str, subtitle: &str, entries: &[&Entry]) -> f64 {
    picture.text(MARGIN, 34.0, "ink title", title);
    picture.text(MARGIN, 54.0, "dim", subtitle);
    let mut x = MARGIN + 5.0;
    for (origin, name) in [
        (Origin::Ours, "this project"),
        (Origin::Python, "Python"),
        (Origin::Node, "Node"),
        (Origin::Rust, "Rust"),
        (Origin::Nobody, "without a tool"),
    ] {
        if entries.iter().any(|entry| entry.origin == origin) {
            let look = Look::from(origin);
            picture.marker(look.marker, (x, 73.0), look.size + 0.5, look.class);
            picture.text(x + 10.0, 77.0, look.text, name);
            x += name.chars().count() as f64 * CHARACTER + 36.0;
        }
    }
    92.0
}

/// Writes on what all this was measured, and of which versions, and returns the picture.
fn footing(
    mut picture: Picture,
    report: &Report,
    title: &str,
    entries: &[&Entry],
    top: f64,
) -> String {
    let mut lines = Vec::new();
    if report.effort.is_short {
        let warning = "A short run, which shows that everything works. These are no measurements.";
        lines.push(warning.to_owned());
    }
    lines.push(format!(
        "On {}. Commit {}.",
        report.machine.summary(),
        report.commit
    ));
    let languages = report
        .versions
        .iter()
        .map(|(name, version)| format!("{name} {version}"));
    let mut versions: Vec<String> = languages.collect();
    for entry in entries {
        if let Some(version) = &entry.version {
            let text = format!("{} {version}", entry.package_name());
            if !versions.contains(&text) {
                versions.push(text);
            }
        }
    }
    let most = ((WIDTH - 2.0 * MARGIN) / (CHARACTER * 0.88)) as usize;
    let mut line = String::new();
    for version in versions {
        if line.is_empty() {
            line = version;
        } else if line.chars().count() + version.chars().count() + 3 > most {
            lines.push(std::mem::replace(&mut line, version));
        } else {
            line = format!("{line} · {version}");
        }
    }
    lines.push(line);
    let mut y = top;
    for line in lines {
        y += LINE;
        picture.text(MARGIN, y, "dim small", &line);
    }
    picture.finish(y + 14.0, title)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::report;

    #[test]
    fn each_scenario_has_a_picture_of_its_tools_and_the_machine() {
        let plots = plots(&report());
        assert_eq!(plots.len(), 5);
        for (name, svg) in &plots {
            assert!(svg.contains("Linux 6.1"), "{name}");
            assert!(svg.contains("Commit 0123456789"), "{name}");
            assert!(
                svg.contains("portpicker") || svg.contains("portserver"),
                "{name}"
            );
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{name}");
        }
    }

    #[test]
    fn a_scenario_that_was_not_measured_has_no_picture() {
        let mut report = report();
        report.thefts.rows.clear();
        assert!(plots(&report).iter().all(|(name, _)| *name != "thefts.svg"));
    }

    #[test]
    fn a_dash_is_a_gap_and_not_zero() {
        let report = report();
        let entry = &report.tools[0];
        let chart = Chart {
            columns: ["a", "b"].map(str::to_owned).to_vec(),
            across: String::new(),
            scale: Scale::linear(10.0, |value| value.to_string()),
            lines: vec![Line::new(entry, vec![None, Some(5.0)])],
        };
        let mut picture = Picture::new();
        let area = Area {
            left: 0.0,
            right: 100.0,
            top: 0.0,
            bottom: 100.0,
        };
        chart.draw_without_names(&mut picture, area);
        let svg = picture.finish(100.0, "");
        assert!(svg.contains(r#"points="86.0,50.0""#), "one point: {svg}");
    }

    #[test]
    fn scales_end_at_round_numbers() {
        let ticks = |scale: Scale| {
            scale
                .ticks
                .into_iter()
                .map(|(_, label)| label)
                .collect::<Vec<_>>()
        };
        assert_eq!(
            ticks(Scale::linear(36.3, |value| value.to_string())),
            ["0", "10", "20", "30", "40"]
        );
        assert_eq!(
            ticks(Scale::time([3.2, 740.0].into_iter())),
            ["1 µs", "10 µs", "100 µs", "1 ms"]
        );
        assert_eq!(nice_step(20.0), 20.0);
        assert_eq!(nice_step(0.3), 0.5);
    }
}
