//! Imports a file: a thread that reads, concurrent calls, and the results of the rows.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use anyhow::{Context, bail};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::ImportArgs;
use super::batches::{BadRow, Batch, ReadPlan, read_batches};
use super::checkpoint::{Checkpoint, SettledPrefix};
use super::input::{FileVersion, display_name};
use super::keys::{KeyMaker, OtherFiles};
use super::mapping::Mapping;
use super::notes::Notes;
use super::open::{Opened, checkpoint, columns, keys, open_mapped, plan};
use super::preview::Preview;
use super::progress::{Printer, Progress};
use super::rejects::Rejects;
use super::report::{Tally, bad_row_text};
use super::send::Sender;
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
        let opened = open_mapped(self.args, path).with_context(|| name.clone())?;
        let Opened { mut reader, mapping, mapping_name, bytes, is_file, .. } = opened;
        if !self.args.quiet {
            eprintln!("{name}: {}", opened.description);
            mapping.unused.iter().for_each(|column| {
                eprintln!("{name}: unused column {}", mapping.unused_text(column));
            });
        }
        let (checkpoint, resume) = checkpoint(self.args, path, is_file, &mapping_name)?;
        let resumed_bad_rows = resume.as_ref().map_or(0, |resume| resume.bad_rows);
        self.tally.resumed_rows += resume.as_ref().map_or(0, |resume| resume.rows);
        self.tally.resumed_bad_rows += resumed_bad_rows;
        let file_keys = keys(self.args, self.shared_keys.clone(), self.others.clone(), self.files.len());
        self.files.push(name.clone());
        let source = version.map(|version| (path.to_owned(), version));
        let plan =
            ReadPlan { source: source.clone(), ..plan(self.args, &mapping, opened.may_have_comma, file_keys, resume) };
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

#[cfg(test)]
#[path = "run_tests.rs"]
mod tests;
