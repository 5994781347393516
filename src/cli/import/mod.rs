//! `meterd import`: files of events, safe to run twice.

pub mod batches;
pub mod cells;
pub mod check;
pub mod checkpoint;
pub mod clients;
pub mod encoding;
pub mod event;
#[cfg(test)]
mod fake_server;
pub mod fields;
pub mod hints;
pub mod input;
pub mod json_scanner;
pub mod keys;
pub mod mapping;
pub mod names;
pub mod notes;
pub mod objects;
pub mod preview;
pub mod progress;
pub mod quotes;
pub mod rejects;
pub mod report;
pub mod rows;
pub mod run;
pub mod send;
pub mod unpack;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::bail;
use chrono_tz::Tz;
use clap::Args;
use tokio::time::Instant;

use self::encoding::Encoding;
use self::fields::MappingArgs;
use self::quotes::Quotes;
use self::rows::Format;
use self::run::{Ended, Run};
use crate::cli::connect::ConnectArgs;
use crate::cli::decimal::{self, DecimalMark};
use crate::cli::time::{check_format, usual_forms};

const INTERRUPTED: u8 = 130;

/// Import events from CSV or JSON files
#[derive(Args, Clone, Debug)]
#[command(after_long_help = long_help())]
pub struct ImportArgs {
    /// Files to import, plain or packed with gzip; "-" for standard input
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Form of the files [default: by extension and first line]
    #[arg(long, value_enum)]
    pub format: Option<Format>,
    /// What separates CSV columns; "tab" for a tab [default: by the header line]
    #[arg(long, value_parser = parse_delimiter)]
    pub delimiter: Option<u8>,
    /// Encoding of the files [default: by their first bytes, else utf-8]
    #[arg(long, value_enum)]
    pub encoding: Option<Encoding>,
    /// Pass over so many lines before the header
    #[arg(long, value_name = "LINES", default_value_t = 0, hide_default_value = true)]
    pub skip_lines: u64,
    /// How CSV values have quotes in them
    #[arg(long, value_enum, default_value = "doubled", hide_default_value = true)]
    pub quotes: Quotes,
    /// Numbers have a comma before the decimals: 2,5 is two and a half, and 1.234 is 1234
    #[arg(long, conflicts_with = "decimal_point")]
    pub decimal_comma: bool,
    /// Numbers have a point before the decimals: 1,234 is 1234, and 1.234 has three decimals
    #[arg(long)]
    pub decimal_point: bool,
    /// Units of rows whose units are empty [default: such a row is refused, unless it has tokens or an amount]
    #[arg(long, value_name = "DECIMAL", value_parser = decimal::quantity)]
    pub empty_units: Option<String>,
    /// Record rows whose client or first value is "total" or the like [default: they are refused as sums of other rows]
    #[arg(long)]
    pub total_rows: bool,
    /// The files are parts of one: equal rows of different files are events of their own. Name all parts in one run, also with
    /// --resume
    #[arg(long)]
    pub split_files: bool,
    /// Refuse rows of clients that do not exist yet, instead of creating them
    #[arg(long)]
    pub no_new_clients: bool,
    /// Accept old events, however far back
    #[arg(long)]
    pub backfill: bool,
    /// Events in one call
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    pub batch: u16,
    /// Calls at the same time
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub concurrency: u16,
    /// How long to try again when the server goes away or is full; one that is not there at first is told at once
    #[arg(long, default_value_t = 120, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(0..=86_400))]
    pub retry_seconds: u64,
    /// Start of the keys that are made; another one makes equal rows of another file events of their own
    #[arg(long, default_value = "import", value_parser = parse_prefix)]
    pub key_prefix: String,
    /// Write each row that is not recorded to this CSV file, with the reason
    #[arg(long, value_name = "FILE")]
    pub rejects: Option<PathBuf>,
    /// Let the server check each row and say what it comes to, and record nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Check all files before anything is sent, and refuse columns and keys that nothing comes from, rows without any units,
    /// tokens or amount, and equal rows of different files; then stop at the first row that is not recorded
    #[arg(long)]
    pub strict: bool,
    /// Go on where a cut run stood
    #[arg(long)]
    pub resume: bool,
    /// Where to keep how far the run is [default: FILE.meterd-import]
    #[arg(long, value_name = "FILE")]
    pub checkpoint: Option<PathBuf>,
    /// Print the summary as JSON
    #[arg(long)]
    pub json: bool,
    /// Show no progress
    #[arg(long, short)]
    pub quiet: bool,
    /// IANA time zone of times without an offset, such as Europe/Berlin [default: each client's own]
    #[arg(long, value_name = "ZONE", value_parser = parse_zone)]
    pub time_zone: Option<Tz>,
    /// strftime format of times, such as "%d.%m.%Y %H:%M"; repeat for a column that has several
    #[arg(long, value_name = "FORMAT", value_parser = check_format)]
    pub time_format: Vec<String>,
    #[command(flatten)]
    pub mapping: MappingArgs,
    #[command(flatten)]
    pub connect: ConnectArgs,
}

impl ImportArgs {
    /// What the flags say of numbers.
    pub fn decimal_mark(&self) -> Option<DecimalMark> {
        match (self.decimal_comma, self.decimal_point) {
            (true, _) => Some(DecimalMark::Comma),
            (_, true) => Some(DecimalMark::Point),
            _ => None,
        }
    }
}

fn long_help() -> String {
    format!(
        "A row without an idempotency key gets one made from its content, so running an import again counts nothing twice, \
         while two equal rows of one file are two events. What was assumed about rows is in the notes at the end.\n\n\
         Blanks around values are removed, and NULL, N/A, None and the like are empty. Keys belong to a client: a row whose \
         client id or key an earlier version recorded with its blanks is another event now, and counts again.\n\n\
         Times: {}. Each is read by itself. A time without an offset, and a day alone, is in the time zone of its client, \
         unless --time-zone names another. Other forms need --time-format.\n\n\
         Columns and keys are matched without regard to case, blanks and punctuation: \"Client ID\" is client_id.",
        usual_forms()
    )
}

/// Imports the files one after the other. Fails when a row was not recorded.
pub async fn run(args: ImportArgs) -> anyhow::Result<ExitCode> {
    if args.checkpoint.is_some() && args.files.len() > 1 {
        bail!("--checkpoint goes with one file; each file has its own checkpoint beside it without the flag");
    }
    if args.split_files && args.files.len() == 1 {
        bail!("--split-files needs all parts in one run, also with --resume; one file is named");
    }
    let sender = send::Sender::connect(&args).await?;
    let started = Instant::now();
    let mut run = Run::new(&args, sender)?;
    if args.strict && !run.check_files().await? {
        eprintln!("--strict: nothing was sent");
        return Ok(ExitCode::FAILURE);
    }
    let mut ended = Ok(Ended::Whole);
    for file in &args.files {
        ended = run.import_file(file).await;
        if !matches!(ended, Ok(Ended::Whole)) {
            break;
        }
    }
    let outcome = match &ended {
        Ok(Ended::Whole) => "finished",
        Ok(Ended::Strict) => "stopped at a bad row",
        Ok(Ended::Interrupted) => "interrupted",
        Err(_) => "failed",
    };
    if args.json {
        let summary = run.tally.json(started.elapsed(), args.dry_run, outcome);
        println!("{summary}");
    } else if ended.is_ok() || run.tally.rows > 0 {
        println!("{}", run.tally.text(started.elapsed(), args.dry_run));
    }
    match ended? {
        Ended::Interrupted => {
            eprintln!("interrupted: run again with --resume, or without it (nothing is counted twice)");
            Ok(ExitCode::from(INTERRUPTED))
        }
        Ended::Strict => Ok(ExitCode::FAILURE),
        Ended::Whole if run.tally.bad() > 0 => Ok(ExitCode::FAILURE),
        Ended::Whole => Ok(ExitCode::SUCCESS),
    }
}

fn parse_delimiter(text: &str) -> Result<u8, String> {
    match text {
        "tab" | "\\t" => Ok(b'\t'),
        _ => match text.as_bytes() {
            [byte] if byte.is_ascii() && !b"\"\r\n".contains(byte) => Ok(*byte),
            _ => Err("must be one ASCII character, or \"tab\"".to_owned()),
        },
    }
}

/// A key has at most 128 bytes, of which hash and number take up to 45.
fn parse_prefix(text: &str) -> Result<String, String> {
    match (1..=64).contains(&text.len()) && !text.chars().any(char::is_control) {
        true => Ok(text.to_owned()),
        false => Err("must be 1 to 64 bytes without control characters".to_owned()),
    }
}

fn parse_zone(text: &str) -> Result<Tz, String> {
    text.parse().map_err(|_| format!("{text:?} is not an IANA time zone such as Europe/Berlin"))
}
