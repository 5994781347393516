//! What an import came to: counts, exact sums, and bad rows in words.

use std::str::FromStr;
use std::time::Duration;

use bigdecimal::BigDecimal;
use serde_json::json;

use super::batches::{BadRow, Batch};
use super::mapping::Mapping;
use crate::cli::chart::grouped;
use crate::cli::connect;
use crate::cli::decimal;
use crate::proto::{EventOutcome, UsageResult};

/// Counts and sums of a run.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Rows that were read, without those that an earlier run had settled.
    pub rows: u64,
    pub accepted: u64,
    pub duplicates: u64,
    pub conflicts: u64,
    pub rejected: u64,
    /// Rows that are no events.
    pub unreadable: u64,
    /// Accepted, but without a price so far.
    pub unpriced: u64,
    /// Of the accepted ones.
    pub input_tokens: i128,
    pub output_tokens: i128,
    pub cost: BigDecimal,
    pub currency: String,
    /// Rejected because they are too old without --backfill.
    pub too_old: u64,
    /// Rows that an earlier run had settled, and the bad ones among them.
    pub resumed_rows: u64,
    pub resumed_bad_rows: u64,
}

impl Tally {
    /// Rows that are not recorded, with those of the run that was resumed.
    pub fn bad(&self) -> u64 {
        self.conflicts + self.rejected + self.unreadable + self.resumed_bad_rows
    }

    /// Adds a settled batch. Answers its bad rows, in the order of the file.
    pub fn add(&mut self, batch: &Batch, results: &[UsageResult], mapping: &Mapping) -> anyhow::Result<Vec<BadRow>> {
        self.unreadable += batch.bad_rows.len() as u64;
        self.rows += (batch.events.len() + batch.bad_rows.len()) as u64;
        let mut bad_rows = batch.bad_rows.clone();
        for ((event, origin), result) in batch.events.iter().zip(&batch.origins).zip(results) {
            match result.outcome() {
                EventOutcome::Accepted => {
                    self.accepted += 1;
                    self.input_tokens += i128::from(event.input_tokens);
                    self.output_tokens += i128::from(event.output_tokens);
                    match &result.charge {
                        Some(charge) => {
                            self.cost += BigDecimal::from_str(&charge.amount)?;
                            self.currency.clone_from(&charge.currency);
                        }
                        None => self.unpriced += 1,
                    }
                    continue;
                }
                EventOutcome::Duplicate => {
                    self.duplicates += 1;
                    continue;
                }
                EventOutcome::Conflict => self.conflicts += 1,
                _ => self.rejected += 1,
            }
            let bad = refused(result, origin.line, &origin.text, mapping);
            self.too_old += u64::from(bad.reason == "EVENT_TOO_OLD");
            bad_rows.push(bad);
        }
        bad_rows.sort_by_key(|bad| bad.line);
        Ok(bad_rows)
    }

    /// Adds a batch of a dry run.
    pub fn add_unsent(&mut self, batch: &Batch) -> Vec<BadRow> {
        self.unreadable += batch.bad_rows.len() as u64;
        self.rows += (batch.events.len() + batch.bad_rows.len()) as u64;
        for event in &batch.events {
            self.input_tokens += i128::from(event.input_tokens);
            self.output_tokens += i128::from(event.output_tokens);
        }
        batch.bad_rows.clone()
    }

    /// The summary for people.
    pub fn text(&self, elapsed: Duration, dry_run: bool) -> String {
        let mut lines = Vec::new();
        let mut line = |name: &str, value: String| lines.push(format!("{name:<14} {value}"));
        if self.resumed_rows > 0 {
            line(
                "resumed after",
                format!("{} rows ({} bad)", grouped(self.resumed_rows), grouped(self.resumed_bad_rows)),
            );
        }
        line("rows read", grouped(self.rows));
        if dry_run {
            line("would be sent", grouped(self.rows - self.unreadable));
        } else {
            line("accepted", grouped(self.accepted));
            line("duplicates", grouped(self.duplicates));
            line("conflicts", grouped(self.conflicts));
            line("rejected", grouped(self.rejected));
        }
        line("unreadable", grouped(self.unreadable));
        if !dry_run {
            line("unpriced", grouped(self.unpriced));
        }
        line("input tokens", grouped(self.input_tokens));
        line("output tokens", grouped(self.output_tokens));
        if !dry_run {
            line("cost", format!("{} {}", self.cost_text(), self.currency).trim_end().to_owned());
        }
        let rate = rows_per_second(self.rows, elapsed);
        line("time", format!("{}.{:03} s, {} rows/s", elapsed.as_secs(), elapsed.subsec_millis(), grouped(rate)));
        lines.extend(self.hints().into_iter().map(|hint| format!("note: {hint}")));
        lines.join("\n")
    }

    /// What the counts mean, where that may surprise.
    pub fn hints(&self) -> Vec<String> {
        let mut hints = Vec::new();
        if self.duplicates > 0 {
            hints.push(
                "duplicates are recorded already, by an earlier run, by a try whose answer was lost, or from an equal row \
                 of another file; nothing is counted twice. If equal rows of another file are events of their own, give \
                 that file its own --key-prefix"
                    .to_owned(),
            );
        }
        if self.too_old > 0 {
            hints.push(format!("{} rows are too old for the server's window: use --backfill", grouped(self.too_old)));
        }
        hints
    }

    /// The summary for programs. Sums are strings where they may be beyond a double.
    pub fn json(&self, elapsed: Duration, dry_run: bool, outcome: &str) -> serde_json::Value {
        json!({
            "outcome": outcome,
            "dry_run": dry_run,
            "rows": self.rows,
            "accepted": self.accepted,
            "duplicates": self.duplicates,
            "conflicts": self.conflicts,
            "rejected": self.rejected,
            "unreadable": self.unreadable,
            "unpriced": self.unpriced,
            "resumed_rows": self.resumed_rows,
            "resumed_bad_rows": self.resumed_bad_rows,
            "input_tokens": self.input_tokens.to_string(),
            "output_tokens": self.output_tokens.to_string(),
            "cost": { "currency": self.currency, "amount": self.cost_text() },
            "elapsed_ms": u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
            "rows_per_second": rows_per_second(self.rows, elapsed),
        })
    }

    fn cost_text(&self) -> String {
        let text = self.cost.to_plain_string();
        decimal::plain(&text).unwrap_or(text)
    }
}

/// A row that the server refused; the column is the one that its field comes from.
fn refused(result: &UsageResult, line: u64, text: &str, mapping: &Mapping) -> BadRow {
    let error = result.error.clone().unwrap_or_default();
    let field = error.field_violations.first().map_or("", |violation| violation.field.as_str());
    BadRow {
        line,
        column: mapping.column_of(field),
        reason: match error.reason.is_empty() {
            true => result.outcome().as_str_name().trim_start_matches("EVENT_OUTCOME_").to_owned(),
            false => error.reason.clone(),
        },
        message: connect::event_error_text(&error),
        text: text.to_owned(),
    }
}

/// A bad row for people.
pub fn bad_row_text(file: &str, bad: &BadRow) -> String {
    let column = match bad.column.is_empty() {
        true => String::new(),
        false => format!(" column {}:", bad.column),
    };
    format!("{file}:{}:{column} {}: {}", bad.line, bad.reason, bad.message)
}

fn rows_per_second(rows: u64, elapsed: Duration) -> u64 {
    let per_second = u128::from(rows) * 1000 / elapsed.as_millis().max(1);
    u64::try_from(per_second).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[path = "report_tests.rs"]
mod tests;
