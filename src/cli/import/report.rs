//! The result of an import: counts, exact sums, and texts for bad rows.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;
use std::time::Duration;

use bigdecimal::BigDecimal;
use chrono_tz::Tz;
use serde_json::json;

use super::batches::{BadRow, Batch, UNREADABLE};
use super::mapping::Mapping;
use super::notes::Notes;
use crate::cli::chart::grouped;
use crate::cli::decimal;
use crate::cli::time::time_text;
use crate::proto::{EventError, EventOutcome, UsageEvent, UsageResult};

/// Maximum number of new clients that a report lists. It counts all of them.
pub const NAMED_CLIENTS_MAX: usize = 5;

/// Counts and sums of a run.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Rows of this run, without the rows that an earlier run settled.
    pub rows: u64,
    pub accepted: u64,
    pub duplicates: u64,
    pub conflicts: u64,
    pub rejected: u64,
    /// Rows that cannot be converted to events.
    pub unreadable: u64,
    /// Accepted events without a price.
    pub unpriced: u64,
    /// Input tokens of accepted events.
    pub input_tokens: i128,
    pub output_tokens: i128,
    pub cost: BigDecimal,
    pub currency: String,
    /// Events that were rejected because they are too old without --backfill.
    pub too_old: u64,
    /// Rows that an earlier run settled.
    pub resumed_rows: u64,
    /// Bad rows among `resumed_rows`.
    pub resumed_bad_rows: u64,
    /// Assumptions and changes.
    pub notes: Notes,
    /// Descriptions of unused columns and keys, with the number of rows that have the key.
    pub unused: BTreeMap<String, u64>,
    /// Clients that accepted events created.
    pub new_clients: BTreeSet<String>,
    /// Time zones of clients that were used for times without a zone.
    pub zones: BTreeSet<&'static str>,
    /// The value of --time-zone.
    pub time_zone: Option<Tz>,
    /// The value of --split-files.
    pub split_files: bool,
    /// Files whose rows are also in other files.
    pub repeated_files: BTreeSet<String>,
}

impl Tally {
    /// Number of rows that are not recorded, including those of the resumed run.
    pub fn bad(&self) -> u64 {
        self.conflicts + self.rejected + self.unreadable + self.resumed_bad_rows
    }

    /// Adds a settled batch. Returns its bad rows in the order of the file.
    pub fn add(&mut self, batch: &Batch, results: &[UsageResult], mapping: &Mapping) -> anyhow::Result<Vec<BadRow>> {
        for bad in &batch.bad_rows {
            match bad.reason == UNREADABLE {
                true => self.unreadable += 1,
                false => self.rejected += 1,
            }
        }
        self.rows += (batch.events.len() + batch.bad_rows.len()) as u64;
        self.zones.extend(&batch.zones);
        let mut bad_rows = batch.bad_rows.clone();
        for ((event, origin), result) in batch.events.iter().zip(&batch.origins).zip(results) {
            match result.outcome() {
                EventOutcome::Accepted => {
                    self.accepted += 1;
                    if batch.new_clients.contains(&event.client_id) {
                        self.new_clients.insert(event.client_id.clone());
                    }
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
            let bad = rejected_row(result, event, origin.line, &origin.text, mapping);
            self.too_old += u64::from(bad.reason == "EVENT_TOO_OLD");
            bad_rows.push(bad);
        }
        bad_rows.sort_by_key(|bad| bad.line);
        Ok(bad_rows)
    }

    /// Adds the notes of a file.
    pub fn add_notes(&mut self, mapping: &Mapping, notes: &Notes) {
        self.notes.add(notes);
        for column in &mapping.unused {
            self.unused.entry(format!("column {}", mapping.unused_text(column))).or_default();
        }
        for (key, rows) in &notes.unused {
            *self.unused.entry(format!("key {}", mapping.unused_text(key))).or_default() += rows;
        }
    }

    /// Formats the summary as text.
    pub fn text(&self, elapsed: Duration, dry_run: bool) -> String {
        let mut lines = Vec::new();
        let mut line = |name: &str, value: String| lines.push(format!("{name:<14} {value}"));
        if dry_run {
            line("dry run", "nothing is recorded; an import would have this result".to_owned());
        }
        if self.resumed_rows > 0 {
            line(
                "resumed after",
                format!("{} rows ({} bad)", grouped(self.resumed_rows), grouped(self.resumed_bad_rows)),
            );
        }
        line("rows read", grouped(self.rows));
        line("accepted", grouped(self.accepted));
        line("duplicates", grouped(self.duplicates));
        line("conflicts", grouped(self.conflicts));
        line("rejected", grouped(self.rejected));
        line("unreadable", grouped(self.unreadable));
        line("unpriced", grouped(self.unpriced));
        line("input tokens", grouped(self.input_tokens));
        line("output tokens", grouped(self.output_tokens));
        line("cost", format!("{} {}", self.cost_text(), self.currency).trim_end().to_owned());
        let rate = rows_per_second(self.rows, elapsed);
        line("time", format!("{}.{:03} s, {} rows/s", elapsed.as_secs(), elapsed.subsec_millis(), grouped(rate)));
        lines.extend(self.hints(dry_run).into_iter().map(|hint| format!("note: {hint}")));
        lines.join("\n")
    }

    /// Converts the summary to JSON. Large sums are strings, because JSON numbers are often doubles.
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
            "new_clients": { "count": self.new_clients.len(), "first": self.new_clients.iter().take(NAMED_CLIENTS_MAX).collect::<Vec<_>>() },
            "unused": self.unused.keys().collect::<Vec<_>>(),
            "rows_counted_as_one": self.notes.rows_counted_as_one,
            "rows_with_filled_units": self.notes.rows_with_filled_units,
            "local_times": self.notes.local_times,
            "serial_times": self.notes.serial_times,
            "trimmed_cells": self.notes.trimmed_cells,
            "null_cells": self.notes.null_cells,
            "formula_cells": self.notes.formula_cells,
            "rounded_quantities": self.notes.rounded_quantities,
            "repeats_of_other_files": self.notes.repeats_of_other_files,
            "repeated_headers": self.notes.repeated_headers,
            "notes": self.hints(dry_run),
            "elapsed_ms": u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
            "rows_per_second": rows_per_second(self.rows, elapsed),
        })
    }

    fn cost_text(&self) -> String {
        let text = self.cost.to_plain_string();
        decimal::plain(&text).unwrap_or(text)
    }
}

/// The bad row for an event that the server rejected.
fn rejected_row(result: &UsageResult, event: &UsageEvent, line: u64, text: &str, mapping: &Mapping) -> BadRow {
    let error = result.error.clone().unwrap_or_default();
    let column = match &error.field_violations[..] {
        [one] => mapping.column_of(&one.field),
        _ => String::new(),
    };
    let mut message = reason_text(&error, mapping);
    if error.reason == "EVENT_TOO_OLD" {
        // Replace the hint of the server, which is about its API.
        let reason = message.split("; send old events").next().unwrap_or_default();
        message = format!("{reason}; add --backfill to accept it");
    }
    if error.reason.starts_with("EVENT_") && event.event_time.is_some() {
        message.push_str(&format!("; the time was interpreted as {}", time_text(event.event_time.as_ref())));
    }
    BadRow {
        line,
        column,
        reason: match error.reason.is_empty() {
            true => result.outcome().as_str_name().trim_start_matches("EVENT_OUTCOME_").to_owned(),
            false => error.reason.clone(),
        },
        message,
        text: text.to_owned(),
    }
}

/// Formats the error of the server with the names of the columns.
fn reason_text(error: &EventError, mapping: &Mapping) -> String {
    match &error.field_violations[..] {
        [] => error.message.clone(),
        [one] => one.description.clone(),
        all => {
            let one = |violation: &crate::proto::FieldViolation| {
                format!("{}: {}", mapping.column_of(&violation.field), violation.description)
            };
            all.iter().map(one).collect::<Vec<_>>().join("; ")
        }
    }
}

/// Formats a bad row as a line of text.
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
