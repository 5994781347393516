//! The reading half of an import: a file into batches of events, on its own thread, in bounded memory.

use std::collections::BTreeSet;
use std::io::BufRead;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use prost::Message;
use sha2::{Digest, Sha256};

use super::checkpoint::Checkpoint;
use super::event::{EventRules, Fault, ReadEvent, event_of};
use super::input::Stamp;
use super::keys::{KeyMaker, OtherFiles, hex};
use super::mapping::Mapping;
use super::notes::Notes;
use super::rows::{Position, Row, RowReader};
use crate::cli::time::TimeValue;
use crate::proto::UsageEvent;

/// Room for the envelope below the contract's 16 MiB.
const BATCH_BYTES_MAX: usize = 12 * 1024 * 1024;
/// A batch of nothing but bad rows ends too.
const BAD_ROWS_MAX: usize = 10_000;

/// Reason of a row that is no event.
pub const UNREADABLE: &str = "UNREADABLE";

/// A row that is not recorded, and why.
#[derive(Clone, Debug)]
pub struct BadRow {
    /// Line in the file, from 1.
    pub line: u64,
    /// Column that is wrong; empty: the row as a whole.
    pub column: String,
    /// Name of an ErrorReason, or UNREADABLE.
    pub reason: String,
    /// For people.
    pub message: String,
    /// The row as it stands in the file. Empty unless rejects are written.
    pub text: String,
}

/// Where an event stands in its file.
#[derive(Clone, Debug, Default)]
pub struct Origin {
    /// Line in the file, from 1.
    pub line: u64,
    /// Its time, if that still needs its client's zone.
    pub local_time: Option<TimeValue>,
    /// The row as it stands in the file. Empty unless rejects are written.
    pub text: String,
}

/// Rows that are sent together.
#[derive(Debug, Default)]
pub struct Batch {
    /// Counts the file's batches, from 0.
    pub number: u64,
    /// Each with a key.
    pub events: Vec<UsageEvent>,
    /// One for each event.
    pub origins: Vec<Origin>,
    /// Rows between them that are no events.
    pub bad_rows: Vec<BadRow>,
    /// What was done to its rows.
    pub notes: Notes,
    /// Clients of its events that do not exist yet.
    pub new_clients: BTreeSet<String>,
    /// Zones that its times without one were taken in.
    pub zones: BTreeSet<&'static str>,
    /// Files of the run that have some of its rows too.
    pub repeats_of: BTreeSet<u32>,
    /// Where the file goes on after this batch.
    pub end: Position,
}

/// What tells equal rows apart.
#[derive(Clone, Debug)]
pub struct Keys {
    /// Shared by files that are parts of one.
    pub maker: Arc<Mutex<KeyMaker>>,
    /// None: of a single file, or of parts of one.
    pub others: Option<Arc<Mutex<OtherFiles>>>,
    /// Number of the file in the run.
    pub file: u32,
}

/// How to read a file.
#[derive(Debug)]
pub struct ReadPlan {
    /// Where fields come from.
    pub mapping: Mapping,
    /// How values are read.
    pub rules: EventRules,
    /// How rows get their keys.
    pub keys: Keys,
    /// Events in a batch.
    pub batch_events_max: usize,
    /// Keep the rows' text.
    pub keep_text: bool,
    /// The file, and how it was when it was opened.
    pub source: Option<(PathBuf, Stamp)>,
    /// What an earlier run has settled.
    pub resume: Option<Checkpoint>,
}

/// Reads to the end and hands out batches in order. `sink` returns false when nobody wants more.
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
        if reader.is_open_ended()
            && plan.source.as_ref().is_some_and(|(path, stamp)| Stamp::of(path).as_ref() != Some(stamp))
        {
            row.cells =
                Err("has no line end yet, and the file is being written: import it again when it is complete".into());
        }
        batch.notes.repeated_headers += reader.take_repeated_headers();
        batch.notes.open_ended_files += u64::from(reader.is_open_ended());
        match keyed_event(&row, plan, &mut keys) {
            Ok(keyed) => {
                bytes += keyed.event.encoded_len() + 8;
                batch.notes.add(&keyed.notes);
                batch.repeats_of.extend(keyed.repeat_of);
                batch.events.push(keyed.event);
                batch.origins.push(Origin { line: row.line, local_time: keyed.local_time, text: kept(row.text, plan) });
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

/// Reads what is settled again, because the keys of later rows depend on how often their like came before.
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
            "the file is not the one that the checkpoint was made of: it differs before line {}\n\
             run without --resume: what is recorded already comes back as a duplicate and is not counted again",
            checkpoint.line + 1
        );
    }
    Ok(())
}

/// Digest of all bytes up to a position.
pub fn digest_of(position: &Position) -> String {
    let digest: Sha256 = position.digest.clone();
    hex(&digest.finalize())
}

/// An event with its key.
struct Keyed {
    event: UsageEvent,
    local_time: Option<TimeValue>,
    notes: Notes,
    repeat_of: Option<u32>,
}

fn keyed_event(row: &Row, plan: &ReadPlan, keys: &mut KeyMaker) -> Result<Keyed, Vec<Fault>> {
    let wrong = |message: String| vec![Fault { column: String::new(), message: format!("the row {message}") }];
    let cells = row.cells.as_ref().map_err(|message| wrong(message.clone()))?;
    if let Some((first, line)) = swallowed_row(row, plan) {
        return Err(wrong(format!(
            "has rows of their own within a quoted value, the first in line {line}: is a quote in line {first} never closed? \
             Nothing of its lines is recorded"
        )));
    }
    let read = event_of(cells, &plan.mapping, &plan.rules)?;
    let made = read.event.idempotency_key.is_empty().then(|| keys.next_key(&read.as_written()));
    let ReadEvent { event, local_time, notes, .. } = read;
    let mut keyed = Keyed { event, local_time, notes, repeat_of: None };
    if let Some((key, occurrence)) = made {
        keyed.event.idempotency_key = key;
        let others = plan.keys.others.as_ref().map(|others| others.lock().unwrap_or_else(PoisonError::into_inner));
        keyed.repeat_of = others.and_then(|mut others| others.find(occurrence, plan.keys.file));
    }
    if keyed.repeat_of.is_some() && plan.rules.strict {
        let what = "equals a row of an earlier file: give --split-files if both count, or leave one of the files out";
        return Err(wrong(what.to_owned()));
    }
    keyed.notes.repeats_of_other_files += u64::from(keyed.repeat_of.is_some());
    Ok(keyed)
}

/// The line of a row, and the first of its later lines that is an event by itself.
fn swallowed_row(row: &Row, plan: &ReadPlan) -> Option<(u64, u64)> {
    let is_event = |cells| plan.mapping.tells_rows_from_text() && event_of(cells, &plan.mapping, &plan.rules).is_ok();
    row.inner.iter().find(|(_, cells)| is_event(cells)).map(|(line, _)| (row.line, *line))
}

fn unreadable(row: Row, faults: Vec<Fault>, plan: &ReadPlan) -> BadRow {
    let (column, message) = match &faults[..] {
        [fault] => (fault.column.clone(), fault.message.clone()),
        _ => (String::new(), told(&faults)),
    };
    BadRow { line: row.line, column, reason: UNREADABLE.to_owned(), message, text: kept(row.text, plan) }
}

/// All that is wrong, each with its column.
fn told(faults: &[Fault]) -> String {
    faults.iter().map(|fault| format!("{}: {}", fault.column, fault.message)).collect::<Vec<_>>().join("; ")
}

fn kept(text: String, plan: &ReadPlan) -> String {
    match plan.keep_text {
        true => text,
        false => String::new(),
    }
}

#[cfg(test)]
#[path = "batches_tests.rs"]
mod tests;
