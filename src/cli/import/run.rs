//! Imports a file: a thread that reads, concurrent calls, and the results of the rows.

use std::collections::HashMap;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use anyhow::{Context, bail};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::ImportArgs;
use super::batches::{BadRow, Batch, Keys, ReadPlan, read_batches};
use super::checkpoint::{Checkpoint, SettledPrefix, path_for};
use super::event::EventRules;
use super::fields::Field;
use super::input::{FileVersion, Input, display_name, open};
use super::keys::{KeyMaker, OtherFiles, hex};
use super::mapping::Mapping;
use super::notes::Notes;
use super::preview::Preview;
use super::progress::{Printer, Progress};
use super::rejects::Rejects;
use super::report::{Tally, bad_row_text};
use super::rows::{Format, RowReader};
use super::send::Sender;
use crate::cli::decimal::NumberRules;
use crate::cli::time::TimeRules;
use crate::proto::UsageResult;

const SHOWN_BAD_ROWS_MAX: u64 = 20;
/// Maximum number of batches that are read in advance.
const READ_AHEAD: usize = 2;

/// How the import of a file ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileEnd {
    /// All rows are settled.
    Complete,
    /// Stopped at a bad row because of --strict.
    StoppedAtBadRow,
    /// Stopped by Ctrl-C.
    Interrupted,
}

/// The import of all files.
pub struct Run<'a> {
    pub(super) args: &'a ImportArgs,
    pub(super) sender: Sender,
    pub(super) rejects: Option<Rejects>,
    shown_bad_rows: u64,
    started: Instant,
    /// One future for the whole run, so that no Ctrl-C is missed between two files.
    interrupt: Pin<Box<dyn Future<Output = std::io::Result<()>> + Send>>,
    /// Names of the files that were imported so far.
    files: Vec<String>,
    /// The keys of files that are parts of one file.
    shared_keys: Option<Arc<Mutex<KeyMaker>>>,
    pub(super) others: Option<Arc<Mutex<OtherFiles>>>,
    /// Files that --strict has checked, with their versions.
    pub(super) checked: HashMap<PathBuf, FileVersion>,
    /// The events that a dry run would have recorded.
    preview: Option<Preview>,
    /// Counts of all files.
    pub tally: Tally,
}

/// An open file with its mapping.
pub(super) struct Opened {
    pub reader: RowReader<BufReader<Box<dyn std::io::Read + Send>>>,
    pub mapping: Mapping,
    mapping_name: String,
    bytes: Option<u64>,
    is_file: bool,
    pub may_have_comma: bool,
    /// Description of the format and the mapping, for the user.
    description: String,
}

/// State of the import of one file.
struct FileRun {
    name: String,
    mapping: Mapping,
    mapping_name: String,
    checkpoint: Option<PathBuf>,
    prefix: SettledPrefix,
    progress: Progress,
    notes: Notes,
}

type Settled = (Batch, anyhow::Result<Vec<UsageResult>>);

impl<'a> Run<'a> {
    /// Creates the import.
    pub fn new(args: &'a ImportArgs, sender: Sender) -> anyhow::Result<Run<'a>> {
        let rejects = args.rejects.as_ref().map(|path| Rejects::open(path, args.resume)).transpose()?;
        let shared_keys = args.split_files.then(|| Arc::new(Mutex::new(KeyMaker::new(&args.key_prefix))));
        let others = (!args.split_files && args.files.len() > 1).then(Arc::default);
        Ok(Run {
            args,
            sender,
            rejects,
            shown_bad_rows: 0,
            started: Instant::now(),
            interrupt: Box::pin(tokio::signal::ctrl_c()),
            files: Vec::new(),
            shared_keys,
            others,
            checked: HashMap::new(),
            preview: args.dry_run.then(Preview::default),
            tally: Tally { time_zone: args.time_zone, split_files: args.split_files, ..Tally::default() },
        })
    }

    /// Imports one file.
    pub async fn import_file(&mut self, path: &Path) -> anyhow::Result<FileEnd> {
        let name = display_name(path);
        let version = FileVersion::of(path);
        if self.checked.get(path).is_some_and(|checked| Some(checked) != version.as_ref()) {
            bail!("{name}: the file changed after --strict had checked it, and was not sent: run the command again");
        }
        let opened = self.open(path).with_context(|| name.clone())?;
        let Opened { mut reader, mapping, mapping_name, bytes, is_file, .. } = opened;
        if !self.args.quiet {
            eprintln!("{name}: {}", opened.description);
            mapping.unused.iter().for_each(|column| {
                eprintln!("{name}: unused column {}", mapping.unused_text(column));
            });
        }
        let (checkpoint, resume) = self.checkpoint(path, is_file, &mapping_name)?;
        let resumed_bad_rows = resume.as_ref().map_or(0, |resume| resume.bad_rows);
        self.tally.resumed_rows += resume.as_ref().map_or(0, |resume| resume.rows);
        self.tally.resumed_bad_rows += resumed_bad_rows;
        let keys = self.keys(self.shared_keys.clone(), self.others.clone(), self.files.len());
        self.files.push(name.clone());
        let source = version.map(|version| (path.to_owned(), version));
        let plan = ReadPlan { source: source.clone(), ..self.plan(&mapping, opened.may_have_comma, keys, resume) };
        let (batches, receiver) = mpsc::channel(READ_AHEAD);
        // A separate thread, because reading standard input can block forever and must not prevent the process from exiting.
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
            notes: Notes::default(),
        };
        let ended = self.send_batches(&mut file, receiver).await;
        file.progress.finish();
        file.notes.changed_files +=
            u64::from(source.is_some_and(|(path, version)| FileVersion::of(&path) != Some(version)));
        self.tally.add_notes(&file.mapping, &file.notes);
        if let (Ok(FileEnd::Complete), Some(checkpoint)) = (&ended, &file.checkpoint) {
            std::fs::remove_file(checkpoint).ok();
        }
        ended.with_context(|| file.name.clone())
    }

    pub(super) fn open(&self, path: &Path) -> anyhow::Result<Opened> {
        let Input { reader, bytes, is_file, layout, may_have_comma, notes } = open(path, self.args)?;
        let reader = RowReader::new(reader, layout)?;
        let mapping = match layout.format {
            Format::Csv => {
                Mapping::for_csv(&self.args.mapping, &reader.header()).map_err(|message| anyhow::anyhow!(message))?
            }
            Format::Ndjson | Format::Json => Mapping::for_json(&self.args.mapping),
        };
        if self.args.strict && !mapping.unused.is_empty() {
            let unused: Vec<String> =
                mapping.unused.iter().map(|column| format!("column {}", mapping.unused_text(column))).collect();
            bail!("unused {}; add --ignore-column for columns that are unused on purpose", unused.join("; unused "));
        }
        let mapping_name = self.mapping_name(layout, may_have_comma);
        let description = notes.into_iter().chain([mapping.describe()]).collect::<Vec<_>>().join("; ");
        Ok(Opened { reader, mapping, mapping_name, bytes, is_file, may_have_comma, description })
    }

    /// Returns a digest of all settings that affect rows and keys. A checkpoint is only valid with the same digest.
    fn mapping_name(&self, layout: super::rows::Layout, may_have_comma: bool) -> String {
        let args = self.args;
        let values = (
            args.time_zone,
            &args.time_format,
            self.numbers(may_have_comma),
            &args.empty_units,
            args.encoding,
            args.total_rows,
        );
        // The keys of a part depend on the rows of the other parts.
        let mut files: Vec<_> = args.files.iter().filter(|_| args.split_files).map(|path| path.file_name()).collect();
        files.sort();
        let parts = (&args.mapping, layout, &args.key_prefix, files, values);
        hex(&Sha256::digest(format!("{parts:?}")))
    }

    fn numbers(&self, may_have_comma: bool) -> NumberRules {
        NumberRules { mark: self.args.decimal_mark(), may_have_comma }
    }

    pub(super) fn keys(
        &self,
        shared: Option<Arc<Mutex<KeyMaker>>>,
        others: Option<Arc<Mutex<OtherFiles>>>,
        number: usize,
    ) -> Keys {
        let maker = shared.unwrap_or_else(|| Arc::new(Mutex::new(KeyMaker::new(&self.args.key_prefix))));
        Keys { maker, others, file: u32::try_from(number).unwrap_or(u32::MAX) }
    }

    pub(super) fn plan(
        &self,
        mapping: &Mapping,
        may_have_comma: bool,
        keys: Keys,
        resume: Option<Checkpoint>,
    ) -> ReadPlan {
        ReadPlan {
            mapping: mapping.clone(),
            rules: EventRules {
                time: TimeRules { zone: self.args.time_zone, formats: self.args.time_format.clone() },
                numbers: self.numbers(may_have_comma),
                empty_units: self.args.empty_units.clone(),
                total_rows: self.args.total_rows,
                strict: self.args.strict,
            },
            keys,
            batch_events_max: usize::from(self.args.batch),
            keep_text: self.rejects.is_some(),
            source: None,
            resume,
        }
    }

    /// Returns the path of the checkpoint, and the checkpoint to resume from.
    fn checkpoint(
        &self,
        path: &Path,
        is_file: bool,
        mapping: &str,
    ) -> anyhow::Result<(Option<PathBuf>, Option<Checkpoint>)> {
        let flag = self.args.checkpoint.clone();
        let checkpoint = flag.or_else(|| is_file.then(|| path_for(path)));
        let Some(checkpoint) = checkpoint.filter(|_| !self.args.dry_run) else {
            return Ok((None, None));
        };
        let found = match self.args.resume {
            true => Checkpoint::load(&checkpoint)?,
            false => None,
        };
        match &found {
            Some(found) if found.mapping != mapping => {
                let parts = if self.args.split_files { " or other parts" } else { "" };
                bail!(
                    "{} was created with other flags{parts}: use the same flags, or remove --resume",
                    checkpoint.display()
                )
            }
            Some(found) => eprintln!("{}: continuing after line {}", path.display(), found.line),
            None if self.args.resume => eprintln!("{}: no checkpoint found, starting at the beginning", path.display()),
            None if checkpoint.exists() => {
                eprintln!(
                    "{}: an interrupted import left {}; --resume continues it",
                    path.display(),
                    checkpoint.display()
                );
            }
            None => {}
        }
        Ok((Some(checkpoint), found))
    }

    /// Sends the batches of a file with concurrent calls. After an error or Ctrl-C no further batch is sent; the checkpoint
    /// contains the settled rows.
    async fn send_batches(
        &mut self,
        file: &mut FileRun,
        mut batches: mpsc::Receiver<anyhow::Result<Batch>>,
    ) -> anyhow::Result<FileEnd> {
        let mut in_flight: JoinSet<Settled> = JoinSet::new();
        let mut is_open = true;
        let mut failure = None;
        let mut ended = FileEnd::Complete;
        // In a dry run, the result of a row depends on the rows before it.
        let concurrency = if self.args.dry_run { 1 } else { usize::from(self.args.concurrency) };
        let columns = Arc::new(columns(&file.mapping));
        while is_open || !in_flight.is_empty() {
            tokio::select! {
                biased;
                _ = &mut self.interrupt => return Ok(FileEnd::Interrupted),
                Some(joined) = in_flight.join_next(), if !in_flight.is_empty() => {
                    let (batch, results) = joined?;
                    let bad_rows = results.and_then(|results| self.settle(file, &batch, results));
                    match bad_rows {
                        Ok(0) => {}
                        Ok(_) if self.args.strict => (ended, is_open) = (FileEnd::StoppedAtBadRow, false),
                        Ok(_) => {}
                        Err(error) => (failure, is_open) = (failure.or(Some(error)), false),
                    }
                }
                read = batches.recv(), if is_open && in_flight.len() < concurrency => match read {
                    Some(Ok(batch)) => {
                        in_flight.spawn(send(self.sender.clone(), file.progress.printer(), columns.clone(), batch));
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

    /// Handles the results of a batch. Returns the number of bad rows.
    fn settle(&mut self, file: &mut FileRun, batch: &Batch, mut results: Vec<UsageResult>) -> anyhow::Result<u64> {
        if let Some(preview) = &mut self.preview {
            preview.settle(batch, &mut results);
        }
        let bad_rows = self.tally.add(batch, &results, &file.mapping)?;
        file.notes.add(&batch.notes);
        self.tally.repeated_files.extend(batch.repeats_of.iter().map(|file| self.files[*file as usize].clone()));
        self.show(&file.name, &file.progress, &bad_rows);
        if let Some(rejects) = &mut self.rejects {
            rejects.add(&file.name, &bad_rows)?;
        }
        let count = bad_rows.len() as u64;
        if let Some((end, bad_rows)) = file.prefix.settle(batch.number, batch.end.clone(), count) {
            let strict_stop = self.args.strict && self.tally.bad() > 0;
            if let Some(path) = file.checkpoint.as_ref().filter(|_| !strict_stop)
                && let Err(error) = Checkpoint::at(&end, &file.mapping_name, bad_rows).save(path)
            {
                let effect = "an interrupted import cannot be resumed, but can be repeated; nothing is counted twice";
                file.progress.print(&format!("{error:#}; {effect}"));
                file.checkpoint = None;
            }
            let per_second = u128::from(self.tally.rows) * 1000 / self.started.elapsed().as_millis().max(1);
            file.progress.update(end.offset, &self.tally, u64::try_from(per_second).unwrap_or(u64::MAX));
        }
        Ok(count)
    }

    pub(super) fn show(&mut self, name: &str, progress: &Progress, bad_rows: &[BadRow]) {
        for bad in bad_rows {
            self.shown_bad_rows += 1;
            match self.shown_bad_rows {
                ..=SHOWN_BAD_ROWS_MAX => progress.print(&bad_row_text(name, bad)),
                count if count == SHOWN_BAD_ROWS_MAX + 1 => {
                    progress.print(
                        "further bad rows are counted but not shown; add --rejects FILE to write all of them to a file",
                    );
                }
                _ => return,
            }
        }
    }
}

async fn send(mut sender: Sender, printer: Printer, columns: Arc<[String; 2]>, mut batch: Batch) -> Settled {
    if let Err(error) = sender.prepare(&mut batch, &printer, &columns).await {
        return (batch, Err(error));
    }
    let results = match batch.events.is_empty() {
        true => Ok(Vec::new()),
        false => sender.settle(&batch, &printer).await,
    };
    (batch, results)
}

/// The names of the columns of the client and the time.
pub(super) fn columns(mapping: &Mapping) -> [String; 2] {
    [Field::Client, Field::Time].map(|field| mapping.source(field).column(field))
}

#[cfg(test)]
#[path = "run_tests.rs"]
mod tests;
