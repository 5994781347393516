//! Reads a file into batches of events, in its own thread and with bounded memory.

use std::collections::BTreeSet;
use std::io::BufRead;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use prost::Message;
use sha2::{Digest, Sha256};

use super::checkpoint::Checkpoint;
use super::event::{EventRules, Fault, ReadEvent, event_of};
use super::input::FileVersion;
use super::keys::{KeyMaker, OtherFiles, hex};
use super::mapping::Mapping;
use super::notes::Notes;
use super::rows::{Position, Row, RowReader};
use crate::cli::time::TimeValue;
use crate::proto::UsageEvent;

/// Maximum size of the events of a batch. Leaves room below the API's maximum message size of 16 MiB.
const BATCH_BYTES_MAX: usize = 12 * 1024 * 1024;
/// Maximum number of bad rows in a batch.
const BAD_ROWS_MAX: usize = 10_000;

/// Reason of a row that cannot be converted to an event.
pub const UNREADABLE: &str = "UNREADABLE";

/// A row that is not recorded, with the reason.
#[derive(Clone, Debug)]
pub struct BadRow {
    /// Line in the file, from 1.
    pub line: u64,
    /// The wrong column. Empty if the whole row is wrong.
    pub column: String,
    /// Name of an ErrorReason, or UNREADABLE.
    pub reason: String,
    /// Description of the error.
    pub message: String,
    /// The text of the row. Empty unless rejects are written.
    pub text: String,
}

/// The row of an event.
#[derive(Clone, Debug, Default)]
pub struct Origin {
    /// Line in the file, from 1.
    pub line: u64,
    /// The time, if it needs the client's time zone.
    pub local_time: Option<TimeValue>,
    /// The text of the row. Empty unless rejects are written.
    pub text: String,
}

/// Rows that are sent in one call.
#[derive(Debug, Default)]
pub struct Batch {
    /// Number of the batch in the file, from 0.
    pub number: u64,
    /// The events, each with an idempotency key.
    pub events: Vec<UsageEvent>,
    /// The row of each event.
    pub origins: Vec<Origin>,
    /// Rows of the batch that cannot be converted to events.
    pub bad_rows: Vec<BadRow>,
    /// Assumptions and changes.
    pub notes: Notes,
    /// Clients of the events that do not exist yet.
    pub new_clients: BTreeSet<String>,
    /// Time zones that were used for times without a zone.
    pub zones: BTreeSet<&'static str>,
    /// Earlier files that contain rows of the batch.
    pub repeats_of: BTreeSet<u32>,
    /// Position after the batch.
    pub end: Position,
}

/// State for the idempotency keys of equal rows.
#[derive(Clone, Debug)]
pub struct Keys {
    /// Shared by files that are parts of one file.
    pub maker: Arc<Mutex<KeyMaker>>,
    /// `None` for a single file and for parts of one file.
    pub others: Option<Arc<Mutex<OtherFiles>>>,
    /// Number of the file in the run.
    pub file: u32,
}

/// How to read a file.
#[derive(Debug)]
pub struct ReadPlan {
    /// The sources of the fields.
    pub mapping: Mapping,
    /// How to parse values.
    pub rules: EventRules,
    /// State for idempotency keys.
    pub keys: Keys,
    /// Maximum number of events in a batch.
    pub batch_events_max: usize,
    /// Whether to keep the text of rows.
    pub keep_text: bool,
    /// The file, with its version when it was opened.
    pub source: Option<(PathBuf, FileVersion)>,
    /// The checkpoint of an earlier run.
    pub resume: Option<Checkpoint>,
}

/// Reads the file to its end and passes the batches to `sink` in order. Stops if `sink` returns false.
pub fn read_batches<R: BufRead>(
    reader: &mut RowReader<R>,
    plan: &ReadPlan,
    mut sink: impl FnMut(Batch) -> bool,
) -> anyhow::Result<()> {
    let maker = Arc::clone(&plan.keys.maker);
    let mut keys = maker.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(checkpoint) = &plan.resume {
        skip_settled(reader, plan, checkpoint, &mut keys)?;
        reader.take_repeated_headers();
    }
    let mut batch = Batch::default();
    let mut bytes = 0;
    while let Some(mut row) = reader.next_row()? {
        if reader.lacks_line_end()
            && plan.source.as_ref().is_some_and(|(path, version)| FileVersion::of(path).as_ref() != Some(version))
        {
            row.cells =
                Err("has no line end, and the file is being written: import it again when it is complete".into());
        }
        batch.notes.repeated_headers += reader.take_repeated_headers();
        batch.notes.files_without_line_end += u64::from(reader.lacks_line_end());
        match keyed_event(&row, plan, &mut keys) {
            Ok(keyed) => {
                bytes += keyed.event.encoded_len() + 8;
                batch.notes.add(&keyed.notes);
                batch.repeats_of.extend(keyed.repeat_of);
                batch.events.push(keyed.event);
                batch.origins.push(Origin {
                    line: row.line,
                    local_time: keyed.local_time,
                    text: text_if_kept(row.text, plan),
                });
            }
            Err(faults) => batch.bad_rows.push(unreadable(row, faults, plan)),
        }
        let stop = plan.rules.strict && !batch.bad_rows.is_empty();
        if stop
            || batch.events.len() >= plan.batch_events_max
            || batch.bad_rows.len() >= BAD_ROWS_MAX
            || bytes >= BATCH_BYTES_MAX
        {
            let next = batch.number + 1;
            batch.end = reader.position().clone();
            if !sink(batch) || stop {
                return Ok(());
            }
            batch = Batch { number: next, ..Batch::default() };
            bytes = 0;
        }
    }
    batch.end = reader.position().clone();
    if !batch.events.is_empty() || !batch.bad_rows.is_empty() {
        sink(batch);
    }
    Ok(())
}

/// Reads the settled rows again, because the keys of later rows depend on the number of equal rows before them.
fn skip_settled<R: BufRead>(
    reader: &mut RowReader<R>,
    plan: &ReadPlan,
    checkpoint: &Checkpoint,
    keys: &mut KeyMaker,
) -> anyhow::Result<()> {
    while reader.position().offset < checkpoint.offset {
        let Some(row) = reader.next_row()? else { break };
        keyed_event(&row, plan, keys).ok();
    }
    let position = reader.position();
    if position.offset != checkpoint.offset || digest_of(position) != checkpoint.digest {
        anyhow::bail!(
            "the file differs from the file of the checkpoint before line {}\n\
             remove --resume: rows that are already recorded become duplicates and are not counted again",
            checkpoint.line + 1
        );
    }
    Ok(())
}

/// Returns the digest of all bytes up to a position.
pub fn digest_of(position: &Position) -> String {
    let digest: Sha256 = position.digest.clone();
    hex(&digest.finalize())
}

/// An event with its idempotency key.
struct Keyed {
    event: UsageEvent,
    local_time: Option<TimeValue>,
    notes: Notes,
    repeat_of: Option<u32>,
}

fn keyed_event(row: &Row, plan: &ReadPlan, keys: &mut KeyMaker) -> Result<Keyed, Vec<Fault>> {
    let wrong = |message: String| vec![Fault { column: String::new(), message: format!("the row {message}") }];
    let cells = row.cells.as_ref().map_err(|message| wrong(message.clone()))?;
    if let Some((first, line)) = row_inside_quotes(row, plan) {
        return Err(wrong(format!(
            "contains other rows inside a quoted value, the first in line {line}: a quote in line {first} may not be closed. \
             None of its lines is recorded"
        )));
    }
    let read = event_of(cells, &plan.mapping, &plan.rules)?;
    let made = read.event.idempotency_key.is_empty().then(|| keys.next_key(&read.original()));
    let ReadEvent { event, local_time, notes, .. } = read;
    let mut keyed = Keyed { event, local_time, notes, repeat_of: None };
    if let Some((key, occurrence)) = made {
        keyed.event.idempotency_key = key;
        let others = plan.keys.others.as_ref().map(|others| others.lock().unwrap_or_else(PoisonError::into_inner));
        keyed.repeat_of = others.and_then(|mut others| others.earlier_file(occurrence, plan.keys.file));
    }
    if keyed.repeat_of.is_some() && plan.rules.strict {
        let message = "equals a row of an earlier file: add --split-files to count both, or remove one of the files";
        return Err(wrong(message.to_owned()));
    }
    keyed.notes.repeats_of_other_files += u64::from(keyed.repeat_of.is_some());
    Ok(keyed)
}

/// Returns the line of a row and its first inner line that is also an event.
fn row_inside_quotes(row: &Row, plan: &ReadPlan) -> Option<(u64, u64)> {
    let is_event = |cells| plan.mapping.has_typed_column() && event_of(cells, &plan.mapping, &plan.rules).is_ok();
    row.inner.iter().find(|(_, cells)| is_event(cells)).map(|(line, _)| (row.line, *line))
}

fn unreadable(row: Row, faults: Vec<Fault>, plan: &ReadPlan) -> BadRow {
    let (column, message) = match &faults[..] {
        [fault] => (fault.column.clone(), fault.message.clone()),
        _ => (String::new(), faults_text(&faults)),
    };
    BadRow { line: row.line, column, reason: UNREADABLE.to_owned(), message, text: text_if_kept(row.text, plan) }
}

/// Lists all faults, each with its column.
fn faults_text(faults: &[Fault]) -> String {
    faults.iter().map(|fault| format!("{}: {}", fault.column, fault.message)).collect::<Vec<_>>().join("; ")
}

fn text_if_kept(text: String, plan: &ReadPlan) -> String {
    match plan.keep_text {
        true => text,
        false => String::new(),
    }
}

#[cfg(test)]
#[path = "batches_tests.rs"]
mod tests;
