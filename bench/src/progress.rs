//! What a person sees while it runs: a bar in a terminal, lines elsewhere.

use std::io::{IsTerminal, stderr};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// How far a run is.
#[derive(Debug)]
pub struct Progress {
    /// `None` where there is no terminal.
    bar: Option<ProgressBar>,
    done: usize,
    jobs: usize,
    since: Instant,
    /// What was said last, without a terminal.
    section: String,
}

impl Progress {
    /// Begins with so many jobs to do.
    pub fn start(jobs: usize) -> Self {
        let bar = stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(jobs as u64);
            let style = "{elapsed_precise} {bar:30.cyan/dim} {pos:>4}/{len}  {msg}";
            if let Ok(style) = ProgressStyle::with_template(style) {
                bar.set_style(style.progress_chars("━╸─"));
            }
            bar.enable_steady_tick(Duration::from_millis(250));
            bar
        });
        Self {
            bar,
            done: 0,
            jobs,
            since: Instant::now(),
            section: String::new(),
        }
    }

    /// Says what is done now: in which section, and by whom.
    pub fn begin(&mut self, section: &str, what: &str) {
        match &self.bar {
            Some(bar) => bar.set_message(format!("{section}: {what}")),
            None if self.section != section => {
                self.section = section.to_owned();
                let seconds = self.since.elapsed().as_secs();
                eprintln!("{seconds:>5} s  {:>4}/{}  {section}", self.done, self.jobs);
            }
            None => {}
        }
    }

    /// Says that one more job is done.
    pub fn end(&mut self) {
        self.done += 1;
        if let Some(bar) = &self.bar {
            bar.inc(1);
        }
    }

    /// Says something that stays.
    pub fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.println(line),
            None => eprintln!("{line}"),
        }
    }

    /// Says that all is done.
    pub fn finish(&self) {
        let seconds = self.since.elapsed().as_secs();
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        eprintln!(
            "{} jobs in {} min {:02} s",
            self.done,
            seconds / 60,
            seconds % 60
        );
    }
}
