//! What happened? In Markdown.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write as _};

use crate::oracle::Oracle;
use crate::server::Server;
use crate::soak::Options;

/// A report that is being gathered.
#[derive(Debug)]
pub(crate) struct Report {
    options: Options,
    /// How many descriptors and KiB the steady server had, from the beginning to the end.
    sizes: Vec<(usize, usize)>,
    ending: Vec<String>,
}

impl Report {
    pub(crate) fn new(options: &Options) -> Self {
        Self {
            options: options.clone(),
            sizes: Vec::new(),
            ending: Vec::new(),
        }
    }

    /// Notes the size of the steady server.
    pub(crate) fn size(&mut self, server: &Server) -> io::Result<()> {
        self.sizes.push(server.size()?);
        Ok(())
    }

    /// Notes something that was found at the end.
    pub(crate) fn end(&mut self, what: String) {
        self.ending.push(what);
    }

    /// Compares the last size with earlier ones, and says if it is more than `most` KiB larger.
    pub(crate) fn growth(&mut self, most: usize) -> Result<(), String> {
        let (Some(&first), Some(&last)) = (self.sizes.first(), self.sizes.last()) else {
            return Err("its size is not known".to_owned());
        };
        // While it was loaded, in the first quarter: what it needs is there by then.
        let early = self.sizes.iter().take(1 + self.sizes.len() / 4);
        let early = early.map(|size| size.1).max().unwrap_or(first.1);
        // It keeps the sockets of attempts that failed, for the next ones.
        if last.0 > first.0 + 4 {
            return Err(format!(
                "it had {} descriptors, and has {}",
                first.0, last.0
            ));
        }
        if last.1 > early + most {
            return Err(format!("it had {early} KiB, and has {}", last.1));
        }
        self.end(format!(
            "server `steady`: {} descriptors when it was fresh, {} at the end; {} KiB when it was \
             fresh, {early} in the first quarter, {} at the end",
            first.0, last.0, first.1, last.1
        ));
        Ok(())
    }

    /// Writes it.
    pub(crate) fn write(
        &self,
        oracle: &Oracle,
        started: &BTreeMap<&'static str, u64>,
        stderr: &str,
    ) -> io::Result<()> {
        let text = self.text(oracle, started, stderr);
        match &self.options.report {
            Some(path) => fs::write(path, text),
            None => io::stdout().write_all(text.as_bytes()),
        }
    }

    fn text(&self, oracle: &Oracle, started: &BTreeMap<&'static str, u64>, stderr: &str) -> String {
        let mut text = String::new();
        let picks: u64 = oracle.picks.values().map(|picks| picks.succeeded).sum();
        let ports: u64 = oracle.picks.values().map(|picks| picks.ports).sum();
        let bound: u64 = oracle.picks.values().map(|picks| picks.bound).sum();
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let processors = std::thread::available_parallelism().map_or(0, usize::from);
        _ = writeln!(
            text,
            "# Soak\n\n\
             {:.1} minutes, seed {}, {} actors at a time, on Linux {} with {processors} processors.\n\n\
             **{} violations** in {picks} picks of {ports} ports, of which {bound} were bound by plain \
             sockets.",
            self.options.length.as_secs_f64() / 60.0,
            self.options.seed,
            self.options.actors,
            read("/proc/sys/kernel/osrelease").trim(),
            oracle.violation_count,
        );
        for violation in &oracle.violations {
            _ = writeln!(text, "\n- {}", violation.what);
            if !violation.trace.is_empty() {
                _ = writeln!(text, "\n```\n{}\n```", violation.trace.join("\n"));
            }
        }
        _ = writeln!(
            text,
            "\n## Picks\n\n\
             | actors | started | picks | ports | median | 99 % | longest | no port |\n\
             | ------ | ------: | ----: | ----: | -----: | ---: | ------: | ------- |"
        );
        for (kind, picks) in &oracle.picks {
            let count = started.get(kind).copied().unwrap_or(0);
            let mut took = picks.took.clone();
            took.sort_unstable();
            let at = |share: f64| match took.len() {
                0 => "–".to_owned(),
                length => millis(took[((length - 1) as f64 * share) as usize]),
            };
            let failed: Vec<_> = picks
                .failed
                .iter()
                .map(|(reason, count)| format!("{count} {reason}"))
                .collect();
            _ = writeln!(
                text,
                "| {kind} | {count} | {} | {} | {} | {} | {} | {} |",
                picks.succeeded,
                picks.ports,
                at(0.5),
                at(0.99),
                at(1.0),
                failed.join(", "),
            );
        }
        let others = started
            .iter()
            .filter(|(kind, _)| !oracle.picks.contains_key(*kind));
        let others: Vec<_> = others
            .map(|(kind, count)| format!("{count} {kind}"))
            .collect();
        _ = writeln!(text, "\nBeside them: {}.", others.join(", "));
        table(
            &mut text,
            "What went wrong on purpose, and what was seen",
            &oracle.did,
        );
        let exempt = oracle
            .exempt
            .iter()
            .map(|(what, count)| ((*what).to_owned(), *count));
        table(&mut text, "Exempt: documented to be so", &exempt.collect());
        _ = writeln!(text, "\n## At the end\n");
        for line in &self.ending {
            _ = writeln!(text, "- {line}");
        }
        _ = writeln!(text, "\n## Left out\n");
        if self.options.python.is_none() {
            _ = writeln!(text, "- Python: no interpreter was given with `--python`.");
        }
        _ = writeln!(
            text,
            "- Jumps of the calendar's clock: it has no namespace, and nothing goes by it. What jumped \
             is the time since the host's start, between two lives of a server."
        );
        if !stderr.is_empty() && oracle.violation_count > 0 {
            let lines: Vec<_> = stderr.lines().collect();
            let last = &lines[lines.len().saturating_sub(40)..];
            _ = writeln!(
                text,
                "\n## Standard error of the actors\n\n```\n{}\n```",
                last.join("\n")
            );
        }
        text
    }
}

fn table(text: &mut String, title: &str, rows: &BTreeMap<String, u64>) {
    _ = writeln!(text, "\n## {title}\n\n| what | times |\n| ---- | ----: |");
    for (what, count) in rows {
        _ = writeln!(text, "| {what} | {count} |");
    }
}

fn millis(micros: u32) -> String {
    format!("{:.2} ms", f64::from(micros) / 1000.0)
}
