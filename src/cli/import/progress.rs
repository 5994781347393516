//! Progress of an import: a bar on a terminal, otherwise a line every few seconds.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::Instant;

use super::report::Tally;
use crate::cli::chart::grouped;

const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// Progress of one file.
#[derive(Debug)]
pub struct Progress {
    bar: Option<ProgressBar>,
    name: String,
    bytes: Option<u64>,
    line_at: Instant,
    quiet: bool,
}

impl Progress {
    /// `bytes` is the length of the file, if it is known.
    pub fn new(name: &str, bytes: Option<u64>, quiet: bool) -> Progress {
        let bar = (!quiet && std::io::stderr().is_terminal()).then(|| {
            let bar = match bytes {
                Some(bytes) => ProgressBar::new(bytes),
                None => ProgressBar::no_length(),
            };
            let template = "{bar:30} {bytes}/{total_bytes} {eta} {msg}";
            bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar
        });
        Progress { bar, name: name.to_owned(), bytes, line_at: Instant::now() + LINE_INTERVAL, quiet }
    }

    /// Updates the bar or prints a line.
    pub fn update(&mut self, offset: u64, tally: &Tally, rows_per_second: u64) {
        let counts = format!(
            "{} rows/s, {} accepted, {} duplicates, {} failed",
            grouped(rows_per_second),
            grouped(tally.accepted),
            grouped(tally.duplicates),
            grouped(tally.bad())
        );
        if let Some(bar) = &self.bar {
            bar.set_position(offset);
            bar.set_message(counts);
        } else if !self.quiet && Instant::now() >= self.line_at {
            self.line_at = Instant::now() + LINE_INTERVAL;
            let done = match self.bytes {
                Some(bytes) => format!("{}%", offset * 100 / bytes.max(1)),
                None => format!("{} bytes", grouped(offset)),
            };
            eprintln!("{}: {done}, {} rows, {counts}", self.name, grouped(tally.rows));
        }
    }

    /// Prints a line above the bar.
    pub fn print(&self, line: &str) {
        self.printer().print(line);
    }

    /// Returns a printer for concurrent tasks.
    pub fn printer(&self) -> Printer {
        Printer(self.bar.clone())
    }

    /// Removes the bar.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Prints lines above the bar.
#[derive(Clone, Debug)]
pub struct Printer(Option<ProgressBar>);

impl Printer {
    /// Prints a line.
    pub fn print(&self, line: &str) {
        match &self.0 {
            Some(bar) => bar.suspend(|| eprintln!("{line}")),
            None => eprintln!("{line}"),
        }
    }
}
