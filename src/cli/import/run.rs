//! One file from its first row to its last: reading thread, calls in flight, and what becomes of each row.

use std::path::{Path, PathBuf};
use std::pin::Pin;

use anyhow::{Context, bail};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::ImportArgs;
use super::batches::{BadRow, Batch, ReadPlan, read_batches};
use super::checkpoint::{Checkpoint, SettledPrefix, path_for};
use super::input::{format_of, name_of, open};
use super::keys::hex;
use super::mapping::Mapping;
use super::progress::{Printer, Progress};
use super::rejects::Rejects;
use super::report::{Tally, bad_row_text};
use super::rows::{Format, RowReader};
use super::send::Sender;
use crate::cli::time::TimeRules;
use crate::proto::UsageResult;

const SHOWN_BAD_ROWS_MAX: u64 = 20;
/// Batches that are read ahead of the calls.
const READ_AHEAD: usize = 2;

/// How a file ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// All rows are settled.
    Whole,
    /// At a bad row, as --strict asks.
    Strict,
    /// By Ctrl-C.
    Interrupted,
}

/// An import of some files.
pub struct Run<'a> {
    args: &'a ImportArgs,
    sender: Option<Sender>,
    rejects: Option<Rejects>,
    shown_bad_rows: u64,
    started: Instant,
    /// One for the whole run, so that no Ctrl-C falls between two.
    interrupt: Pin<Box<dyn Future<Output = std::io::Result<()>> + Send>>,
    /// Over all files.
    pub tally: Tally,
}

/// What is needed while one file runs.
struct FileRun {
    name: String,
    mapping: Mapping,
    mapping_name: String,
    checkpoint: Option<PathBuf>,
    prefix: SettledPrefix,
    progress: Progress,
}

type Settled = (Batch, anyhow::Result<Vec<UsageResult>>);

impl<'a> Run<'a> {
    /// Without a sender it is a dry run.
    pub fn new(args: &'a ImportArgs, sender: Option<Sender>) -> anyhow::Result<Run<'a>> {
        let rejects = args.rejects.as_ref().map(|path| Rejects::open(path, args.resume)).transpose()?;
        Ok(Run {
            args,
            sender,
            rejects,
            shown_bad_rows: 0,
            started: Instant::now(),
            interrupt: Box::pin(tokio::signal::ctrl_c()),
            tally: Tally::default(),
        })
    }

    /// Imports one file.
    pub async fn import_file(&mut self, path: &Path) -> anyhow::Result<Ended> {
        let (input, bytes) = open(path).with_context(|| format!("cannot read {}", path.display()))?;
        let format = format_of(path, self.args.format)?;
        let name = name_of(path);
        let mut reader = RowReader::new(input, format, self.args.delimiter).with_context(|| name.clone())?;
        let mapping = match format {
            Format::Csv => Mapping::for_csv(&self.args.mapping, &reader.header())
                .map_err(|message| anyhow::anyhow!("{name}: {message}"))?,
            Format::Ndjson => Mapping::for_json(&self.args.mapping),
        };
        if !self.args.quiet {
            eprintln!("{name}: {}", mapping.describe());
        }
        let mapping_name = self.mapping_name(format);
        let (checkpoint, resume) = self.checkpoint(path, bytes.is_some(), &mapping_name)?;
        let resumed_bad_rows = resume.as_ref().map_or(0, |resume| resume.bad_rows);
        self.tally.resumed_rows += resume.as_ref().map_or(0, |resume| resume.rows);
        self.tally.resumed_bad_rows += resumed_bad_rows;
        let plan = self.plan(&mapping, resume);
        let (batches, receiver) = mpsc::channel(READ_AHEAD);
        // A thread of its own: reading standard input may block for ever, and must not keep the process from ending.
        std::thread::spawn(move || {
            let sink = |batch| batches.blocking_send(Ok(batch)).is_ok();
            if let Err(error) = read_batches(&mut reader, &plan, sink) {
                batches.blocking_send(Err(error)).ok();
            }
        });
        let mut file = FileRun {
            progress: Progress::new(&name, bytes, self.args.quiet),
            name,
            mapping,
            mapping_name,
            checkpoint,
            prefix: SettledPrefix::new(resumed_bad_rows),
        };
        let ended = self.pump(&mut file, receiver).await;
        file.progress.finish();
        if let (Ok(Ended::Whole), Some(checkpoint)) = (&ended, &file.checkpoint) {
            std::fs::remove_file(checkpoint).ok();
        }
        ended.with_context(|| file.name.clone())
    }

    /// Names all that rows and keys depend on, so that a checkpoint is not used with anything else.
    fn mapping_name(&self, format: Format) -> String {
        let args = self.args;
        let parts = (&args.mapping, format, args.delimiter, &args.key_prefix, args.time_zone, &args.time_format);
        hex(&Sha256::digest(format!("{parts:?}")))
    }

    fn plan(&self, mapping: &Mapping, resume: Option<Checkpoint>) -> ReadPlan {
        ReadPlan {
            mapping: mapping.clone(),
            time: TimeRules { zone: self.args.time_zone, format: self.args.time_format.clone() },
            key_prefix: self.args.key_prefix.clone(),
            batch_events_max: usize::from(self.args.batch),
            keep_text: self.rejects.is_some(),
            strict: self.args.strict,
            resume,
        }
    }

    /// Where the checkpoint goes, and the one to resume from.
    fn checkpoint(
        &self,
        path: &Path,
        is_file: bool,
        mapping: &str,
    ) -> anyhow::Result<(Option<PathBuf>, Option<Checkpoint>)> {
        let given = self.args.checkpoint.clone();
        let place = given.or_else(|| is_file.then(|| path_for(path)));
        let Some(place) = place.filter(|_| self.sender.is_some()) else {
            return Ok((None, None));
        };
        let found = match self.args.resume {
            true => Checkpoint::load(&place)?,
            false => None,
        };
        match &found {
            Some(found) if found.mapping != mapping => {
                bail!("{} was made with other flags: give the same ones, or run without --resume", place.display())
            }
            Some(found) => eprintln!("{}: going on after line {}", path.display(), found.line),
            None if self.args.resume => eprintln!("{}: no checkpoint, starting at the beginning", path.display()),
            None if place.exists() => {
                eprintln!("{}: a cut run left {}; --resume goes on after it", path.display(), place.display());
            }
            None => {}
        }
        Ok((Some(place), found))
    }

    /// Keeps calls in flight until the file is through. On an error or Ctrl-C nothing new is sent, and what is settled
    /// stands in the checkpoint.
    async fn pump(
        &mut self,
        file: &mut FileRun,
        mut batches: mpsc::Receiver<anyhow::Result<Batch>>,
    ) -> anyhow::Result<Ended> {
        let mut in_flight: JoinSet<Settled> = JoinSet::new();
        let mut is_open = true;
        let mut failure = None;
        let mut ended = Ended::Whole;
        let concurrency = usize::from(self.args.concurrency);
        while is_open || !in_flight.is_empty() {
            tokio::select! {
                biased;
                _ = &mut self.interrupt => return Ok(Ended::Interrupted),
                Some(joined) = in_flight.join_next(), if !in_flight.is_empty() => {
                    let (batch, results) = joined?;
                    let bad_rows = results.and_then(|results| self.settle(file, &batch, &results));
                    match bad_rows {
                        Ok(0) => {}
                        Ok(_) if self.args.strict => (ended, is_open) = (Ended::Strict, false),
                        Ok(_) => {}
                        Err(error) => (failure, is_open) = (failure.or(Some(error)), false),
                    }
                }
                read = batches.recv(), if is_open && in_flight.len() < concurrency => match read {
                    Some(Ok(batch)) => {
                        in_flight.spawn(send(self.sender.clone(), file.progress.printer(), batch));
                    }
                    Some(Err(error)) => (failure, is_open) = (failure.or(Some(error)), false),
                    None => is_open = false,
                },
            }
        }
        match failure {
            Some(error) => Err(error),
            None => Ok(ended),
        }
    }

    /// Takes what became of a batch. Answers how many rows of it are bad.
    fn settle(&mut self, file: &mut FileRun, batch: &Batch, results: &[UsageResult]) -> anyhow::Result<u64> {
        let bad_rows = match self.sender {
            Some(_) => self.tally.add(batch, results, &file.mapping)?,
            None => self.tally.add_unsent(batch),
        };
        self.show(file, &bad_rows);
        if let Some(rejects) = &mut self.rejects {
            rejects.add(&file.name, &bad_rows)?;
        }
        let count = bad_rows.len() as u64;
        if let Some((end, bad_rows)) = file.prefix.settle(batch.number, batch.end.clone(), count) {
            let strict_stop = self.args.strict && self.tally.bad() > 0;
            if let Some(path) = file.checkpoint.as_ref().filter(|_| !strict_stop)
                && let Err(error) = Checkpoint::at(&end, &file.mapping_name, bad_rows).save(path)
            {
                let what = "a cut run will have to start again, which counts nothing twice";
                file.progress.print(&format!("{error:#}; {what}"));
                file.checkpoint = None;
            }
            let per_second = u128::from(self.tally.rows) * 1000 / self.started.elapsed().as_millis().max(1);
            file.progress.update(end.offset, &self.tally, u64::try_from(per_second).unwrap_or(u64::MAX));
        }
        Ok(count)
    }

    fn show(&mut self, file: &FileRun, bad_rows: &[BadRow]) {
        for bad in bad_rows {
            self.shown_bad_rows += 1;
            match self.shown_bad_rows {
                ..=SHOWN_BAD_ROWS_MAX => file.progress.print(&bad_row_text(&file.name, bad)),
                count if count == SHOWN_BAD_ROWS_MAX + 1 => {
                    file.progress.print("more bad rows are counted, but not shown; --rejects FILE gets them all");
                }
                _ => return,
            }
        }
    }
}

async fn send(sender: Option<Sender>, printer: Printer, batch: Batch) -> Settled {
    let results = match sender {
        Some(mut sender) if !batch.events.is_empty() => sender.settle(&batch, &printer).await,
        _ => Ok(Vec::new()),
    };
    (batch, results)
}

#[cfg(test)]
#[path = "run_tests.rs"]
mod tests;
