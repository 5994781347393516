//! Opens a file of an import: its mapping, the plan to read it, and its checkpoint.

use super::ImportArgs;
use super::batches::{Keys, ReadPlan};
use super::checkpoint::{Checkpoint, path_for};
use super::event::EventRules;
use super::fields::Field;
use super::input::{Input, open};
use super::keys::{KeyMaker, OtherFiles, hex};
use super::mapping::Mapping;
use super::rows::{Format, Layout, RowReader};
use crate::cli::decimal::NumberRules;
use crate::cli::time::TimeRules;
use anyhow::bail;
use sha2::{Digest, Sha256};
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// An open file with its mapping.
pub struct Opened {
    pub reader: RowReader<BufReader<Box<dyn std::io::Read + Send>>>,
    pub mapping: Mapping,
    pub mapping_name: String,
    pub bytes: Option<u64>,
    pub is_file: bool,
    pub may_have_comma: bool,
    /// Description of the format and the mapping, for the user.
    pub description: String,
}

/// Opens a file and chooses its mapping.
pub fn open_mapped(args: &ImportArgs, path: &Path) -> anyhow::Result<Opened> {
    let Input { reader, bytes, is_file, layout, may_have_comma, notes } = open(path, args)?;
    let reader = RowReader::new(reader, layout)?;
    let mapping = match layout.format {
        Format::Csv => Mapping::for_csv(&args.mapping, &reader.header()).map_err(|message| anyhow::anyhow!(message))?,
        Format::Ndjson | Format::Json => Mapping::for_json(&args.mapping),
    };
    if args.strict && !mapping.unused.is_empty() {
        let unused: Vec<String> =
            mapping.unused.iter().map(|column| format!("column {}", mapping.unused_text(column))).collect();
        bail!("unused {}; add --ignore-column for columns that are unused on purpose", unused.join("; unused "));
    }
    let mapping_name = mapping_name(args, layout, may_have_comma);
    let description = notes.into_iter().chain([mapping.describe()]).collect::<Vec<_>>().join("; ");
    Ok(Opened { reader, mapping, mapping_name, bytes, is_file, may_have_comma, description })
}

/// Returns a digest of all settings that affect rows and keys. A checkpoint is only valid with the same digest.
fn mapping_name(args: &ImportArgs, layout: Layout, may_have_comma: bool) -> String {
    let values = (
        args.time_zone,
        &args.time_format,
        numbers(args, may_have_comma),
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

fn numbers(args: &ImportArgs, may_have_comma: bool) -> NumberRules {
    NumberRules { mark: args.decimal_mark(), may_have_comma }
}

pub fn keys(
    args: &ImportArgs,
    shared: Option<Arc<Mutex<KeyMaker>>>,
    others: Option<Arc<Mutex<OtherFiles>>>,
    number: usize,
) -> Keys {
    let maker = shared.unwrap_or_else(|| Arc::new(Mutex::new(KeyMaker::new(&args.key_prefix))));
    Keys { maker, others, file: u32::try_from(number).unwrap_or(u32::MAX) }
}

pub fn plan(
    args: &ImportArgs,
    mapping: &Mapping,
    may_have_comma: bool,
    keys: Keys,
    resume: Option<Checkpoint>,
) -> ReadPlan {
    ReadPlan {
        mapping: mapping.clone(),
        rules: EventRules {
            time: TimeRules { zone: args.time_zone, formats: args.time_format.clone() },
            numbers: numbers(args, may_have_comma),
            empty_units: args.empty_units.clone(),
            total_rows: args.total_rows,
            strict: args.strict,
        },
        keys,
        batch_events_max: usize::from(args.batch),
        keep_text: args.rejects.is_some(),
        source: None,
        resume,
    }
}

/// Returns the path of the checkpoint, and the checkpoint to resume from.
pub fn checkpoint(
    args: &ImportArgs,
    path: &Path,
    is_file: bool,
    mapping: &str,
) -> anyhow::Result<(Option<PathBuf>, Option<Checkpoint>)> {
    let flag = args.checkpoint.clone();
    let checkpoint = flag.or_else(|| is_file.then(|| path_for(path)));
    let Some(checkpoint) = checkpoint.filter(|_| !args.dry_run) else {
        return Ok((None, None));
    };
    let found = match args.resume {
        true => Checkpoint::load(&checkpoint)?,
        false => None,
    };
    match &found {
        Some(found) if found.mapping != mapping => {
            let parts = if args.split_files { " or other parts" } else { "" };
            bail!(
                "{} was created with other flags{parts}: use the same flags, or remove --resume",
                checkpoint.display()
            )
        }
        Some(found) => eprintln!("{}: continuing after line {}", path.display(), found.line),
        None if args.resume => eprintln!("{}: no checkpoint found, starting at the beginning", path.display()),
        None if checkpoint.exists() => {
            eprintln!("{}: an interrupted import left {}; --resume continues it", path.display(), checkpoint.display());
        }
        None => {}
    }
    Ok((Some(checkpoint), found))
}

/// The names of the columns of the client and the time.
pub fn columns(mapping: &Mapping) -> [String; 2] {
    [Field::Client, Field::Time].map(|field| mapping.source(field).column(field))
}
