//! `portpicker status`: who has which port of a port server.

use std::collections::HashMap;
use std::time::Duration;

use nix::unistd::{Uid, User};
use portpicker::client::{self, ListedLease};
use serde::Serialize;

use crate::arguments::StatusOptions;
use crate::output;
use crate::pick::Failure;
use crate::which_server;

/// The most characters of a program's name, or of a port's, that the table shows.
const MAX_NAME: usize = 24;

/// Prints the leases, as a table or as JSON.
pub(crate) fn status(options: StatusOptions) -> Result<(), Failure> {
    let address = which_server::find(options.server)?;
    let leases = client::list(&address, which_server::TIMEOUT).map_err(Failure::Pick)?;
    let mut users = Users::default();
    let text = if options.json {
        let report = Report {
            server: address.to_string(),
            leases: leases
                .iter()
                .map(|lease| Row::new(lease, &mut users))
                .collect(),
        };
        serde_json::to_string(&report).expect("numbers and texts can be written as JSON") + "\n"
    } else {
        if leases.is_empty() {
            output::note(&format!("the port server at `{address}` has no leases"));
        }
        table(&leases, &mut users)
    };
    output::print(text.as_bytes()).map_err(Failure::Output)
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Report<'a> {
    server: String,
    leases: Vec<Row<'a>>,
}

#[derive(Debug, Serialize)]
struct Row<'a> {
    port: u16,
    pid: Option<u32>,
    uid: u32,
    user: Option<String>,
    command: Option<&'a str>,
    age: f64,
    expires: Option<f64>,
    name: Option<&'a str>,
    tag: Option<&'a str>,
}

impl<'a> Row<'a> {
    fn new(lease: &'a ListedLease, users: &mut Users) -> Self {
        Self {
            port: lease.port,
            pid: lease.owner.map(|pid| pid.get()),
            uid: lease.uid,
            user: users.name(lease.uid),
            command: lease.command.as_deref(),
            age: lease.age.as_secs_f64(),
            expires: lease.expires.map(|left| left.as_secs_f64()),
            name: lease.name.as_deref(),
            tag: lease.tag.as_deref(),
        }
    }
}

/// The names of users, each looked up once: a lookup may be a question to another host.
#[derive(Debug, Default)]
struct Users(HashMap<u32, Option<String>>);

impl Users {
    fn name(&mut self, uid: u32) -> Option<String> {
        let look_up = || Some(User::from_uid(Uid::from_raw(uid)).ok()??.name);
        self.0.entry(uid).or_insert_with(look_up).clone()
    }
}

/// How the texts of a column are aligned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Align {
    Left,
    Right,
}

/// Returns the table of `leases`: nothing if there are none.
fn table(leases: &[ListedLease], users: &mut Users) -> String {
    if leases.is_empty() {
        return String::new();
    }
    let mut columns = Vec::new();
    let mut add = |title: &str, align: Align, cells: &mut dyn Iterator<Item = Option<String>>| {
        let cells: Vec<Option<String>> = cells.collect();
        // What few leases have takes no room when none has it.
        if ["EXPIRES", "NAME", "TAG"].contains(&title) && cells.iter().all(Option::is_none) {
            return;
        }
        let cells = cells
            .into_iter()
            .map(|cell| cell.map_or_else(|| "-".to_owned(), |cell| printable(&cell)));
        columns.push((align, [title.to_owned()].into_iter().chain(cells).collect()));
    };
    let rows = || leases.iter();
    let text = |text: &Option<String>| text.as_deref().map(short);
    add(
        "PORT",
        Align::Right,
        &mut rows().map(|row| Some(row.port.to_string())),
    );
    add(
        "PID",
        Align::Right,
        &mut rows().map(|row| row.owner.map(|pid| pid.to_string())),
    );
    add(
        "USER",
        Align::Left,
        &mut rows().map(|row| users.name(row.uid).or_else(|| Some(row.uid.to_string()))),
    );
    add(
        "AGE",
        Align::Right,
        &mut rows().map(|row| Some(for_people(row.age))),
    );
    add(
        "EXPIRES",
        Align::Right,
        &mut rows().map(|row| row.expires.map(for_people)),
    );
    add(
        "COMMAND",
        Align::Left,
        &mut rows().map(|row| text(&row.command)),
    );
    add("NAME", Align::Left, &mut rows().map(|row| text(&row.name)));
    add("TAG", Align::Left, &mut rows().map(|row| row.tag.clone()));
    layout(&columns)
}

/// Writes `columns` side by side. Each has as many texts as the others.
fn layout(columns: &[(Align, Vec<String>)]) -> String {
    let height = columns.first().map_or(0, |(_, cells)| cells.len());
    let width = |cells: &[String]| cells.iter().map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = columns
        .iter()
        .map(|(_, cells)| width(cells).unwrap_or(0))
        .collect();
    let mut text = String::new();
    for row in 0..height {
        let mut line = String::new();
        for ((align, cells), &width) in columns.iter().zip(&widths) {
            let cell = &cells[row];
            match align {
                Align::Left => line += &format!("{cell:<width$}  "),
                Align::Right => line += &format!("{cell:>width$}  "),
            }
        }
        text += line.trim_end();
        text += "\n";
    }
    text
}

/// Returns a time in its two greatest units.
fn for_people(time: Duration) -> String {
    let seconds = time.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m{:02}s", seconds % 60),
        (0, _, _) => format!("{hours}h{:02}m", minutes % 60),
        _ => format!("{days}d{:02}h", hours % 24),
    }
}

/// Cuts off a name that would push the rest of its row out of sight.
fn short(text: &str) -> String {
    if text.chars().count() <= MAX_NAME {
        return text.to_owned();
    }
    text.chars().take(MAX_NAME - 1).chain(['…']).collect()
}

/// Replaces what a terminal would obey: these texts come from other users.
fn printable(text: &str) -> String {
    // The marks that change the direction of writing are no control characters.
    let is_bad = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars()
        .map(|c| if is_bad(c) { '\u{fffd}' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_two_units() {
        for (seconds, text) in [
            (0, "0s"),
            (59, "59s"),
            (60, "1m00s"),
            (3_599, "59m59s"),
            (3_600, "1h00m"),
            (86_399, "23h59m"),
            (86_400, "1d00h"),
            (8_640_000, "100d00h"),
        ] {
            assert_eq!(for_people(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn columns_are_aligned_and_lines_have_no_blanks_at_their_end() {
        let column = |align, cells: [&str; 3]| (align, cells.map(str::to_owned).to_vec());
        let text = layout(&[
            column(Align::Right, ["PORT", "5", "65535"]),
            column(Align::Left, ["COMMAND", "bürste", "x"]),
            column(Align::Left, ["TAG", "", "t"]),
        ]);
        let lines = [
            " PORT  COMMAND  TAG",
            "    5  bürste",
            "65535  x        t",
            "",
        ];
        assert_eq!(text, lines.join("\n"));
    }

    #[test]
    fn texts_of_others_are_safe_to_print_and_bounded() {
        assert_eq!(
            printable("a\u{1b}[2J\n\u{202e}b"),
            "a\u{fffd}[2J\u{fffd}\u{fffd}b"
        );
        assert_eq!(short(&"x".repeat(24)), "x".repeat(24));
        assert_eq!(short(&"x".repeat(25)), "x".repeat(23) + "…");
    }
}
