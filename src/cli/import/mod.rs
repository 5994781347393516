//! `meterd import`: records the rows of files as events. A repeated import counts nothing twice.

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
pub mod gzip;
pub mod hints;
pub mod input;
pub mod json_scanner;
pub mod keys;
pub mod mapping;
pub mod names;
pub mod notes;
pub mod objects;
mod open;
pub mod preview;
pub mod progress;
pub mod quotes;
pub mod rejects;
pub mod report;
pub mod rows;
pub mod run;
pub mod send;

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
use self::run::{FileEnd, Run};
use crate::cli::connect::ConnectArgs;
use crate::cli::decimal::{self, DecimalMark};
use crate::cli::time::{check_format, usual_forms};

const INTERRUPTED: u8 = 130;

/// Arguments of `import`.
#[derive(Args, Clone, Debug)]
#[command(after_long_help = long_help())]
pub struct ImportArgs {
    /// Files to import, also compressed with gzip; "-" for standard input
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Format of the files [default: from the extension and the first line]
    #[arg(long, value_enum)]
    pub format: Option<Format>,
    /// Delimiter of CSV columns; "tab" for a tab [default: from the header line]
    #[arg(long, value_parser = parse_delimiter)]
    pub delimiter: Option<u8>,
    /// Encoding of the files [default: from the first bytes, else utf-8]
    #[arg(long, value_enum)]
    pub encoding: Option<Encoding>,
    /// Number of lines to skip before the header
    #[arg(long, value_name = "LINES", default_value_t = 0)]
    pub skip_lines: u64,
    /// How quotes are written inside CSV values
    #[arg(long, value_enum, default_value = "doubled")]
    pub quotes: Quotes,
    /// The decimal mark of numbers is a comma: 2,5 is two and a half, and 1.234 is 1234
    #[arg(long, conflicts_with = "decimal_point")]
    pub decimal_comma: bool,
    /// The decimal mark of numbers is a point: 1,234 is 1234, and 1.234 has three decimals
    #[arg(long)]
    pub decimal_point: bool,
    /// Units of rows with empty units [default: reject these rows, unless they have tokens or an amount]
    #[arg(long, value_name = "DECIMAL", value_parser = decimal::quantity)]
    pub empty_units: Option<String>,
    /// Record rows whose client or first value is a label such as "total" [default: reject them as sums of other rows]
    #[arg(long)]
    pub total_rows: bool,
    /// Treat the files as parts of one file: equal rows in different files are different events. Name all parts in one run,
    /// also with --resume
    #[arg(long)]
    pub split_files: bool,
    /// Reject rows of clients that do not exist, instead of creating the clients
    #[arg(long)]
    pub no_new_clients: bool,
    /// Accept events of any age, and send no notifications of alerts
    #[arg(long)]
    pub backfill: bool,
    /// Maximum number of events in one call
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    pub batch: u16,
    /// Maximum number of concurrent calls
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub concurrency: u16,
    /// How long to retry while the server is unavailable or full, in seconds. If no server answers at the start, the command
    /// fails immediately
    #[arg(long, default_value_t = 120, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(0..=86_400))]
    pub retry_seconds: u64,
    /// Prefix of generated idempotency keys; with different prefixes, equal rows of different files are different events
    #[arg(long, default_value = "import", value_parser = parse_prefix)]
    pub key_prefix: String,
    /// Write each row that is not recorded to this CSV file, with the reason
    #[arg(long, value_name = "FILE")]
    pub rejects: Option<PathBuf>,
    /// Show the outcome and the cost of each row according to the server, and record nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Check all files before anything is sent; reject unused columns and keys, rows without units, tokens and amount, and
    /// equal rows in different files; then stop at the first row that is not recorded
    #[arg(long)]
    pub strict: bool,
    /// Continue an interrupted import of the same files
    #[arg(long)]
    pub resume: bool,
    /// File that stores the progress, for --resume [default: FILE.meterd-import]
    #[arg(long, value_name = "FILE")]
    pub checkpoint: Option<PathBuf>,
    /// Print the summary as JSON
    #[arg(long)]
    pub json: bool,
    /// Do not show progress
    #[arg(long, short)]
    pub quiet: bool,
    /// IANA time zone of times without an offset, such as Europe/Berlin [default: each client's time zone]
    #[arg(long, value_name = "ZONE", value_parser = parse_zone)]
    pub time_zone: Option<Tz>,
    /// strftime format of times, such as "%d.%m.%Y %H:%M"; repeat the flag for a column with several formats
    #[arg(long, value_name = "FORMAT", value_parser = check_format)]
    pub time_format: Vec<String>,
    #[command(flatten)]
    pub mapping: MappingArgs,
    #[command(flatten)]
    pub connect: ConnectArgs,
}

impl ImportArgs {
    /// The decimal mark according to the flags.
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
        "If a row has no idempotency key, the import generates one from the contents of the row. A repeated import therefore \
         counts nothing twice, but two equal rows in one file are two events. The notes at the end list all assumptions.\n\n\
         Spaces around values are removed, and values such as NULL, N/A and None are empty. Earlier versions kept spaces in \
         client ids and keys: such rows are counted again if they are imported again.\n\n\
         Times: {}. Each row can use a different form. A time without an offset, and a day without a time, is in the time zone \
         of the client, unless --time-zone is set. Other forms need --time-format.\n\n\
         Case, spaces and punctuation in the names of columns and keys are ignored: \"Client ID\" is client_id.",
        usual_forms()
    )
}

/// Imports the files one after the other. The exit code is 1 if a row was not recorded.
pub async fn run(args: ImportArgs) -> anyhow::Result<ExitCode> {
    if args.checkpoint.is_some() && args.files.len() > 1 {
        bail!(
            "--checkpoint needs a single file; without the flag, each file has its own checkpoint in the same directory"
        );
    }
    if args.split_files && args.files.len() == 1 {
        bail!("--split-files needs all parts in one run, also with --resume, got one file");
    }
    let sender = send::Sender::connect(&args).await?;
    let started = Instant::now();
    let mut run = Run::new(&args, sender)?;
    if args.strict && !run.check_files().await? {
        eprintln!("--strict: nothing was sent");
        return Ok(ExitCode::FAILURE);
    }
    let mut ended = Ok(FileEnd::Complete);
    for file in &args.files {
        ended = run.import_file(file).await;
        if !matches!(ended, Ok(FileEnd::Complete)) {
            break;
        }
    }
    let outcome = match &ended {
        Ok(FileEnd::Complete) => "finished",
        Ok(FileEnd::StoppedAtBadRow) => "stopped at a bad row",
        Ok(FileEnd::Interrupted) => "interrupted",
        Err(_) => "failed",
    };
    if args.json {
        let summary = run.tally.json(started.elapsed(), args.dry_run, outcome);
        println!("{summary}");
    } else if ended.is_ok() || run.tally.rows > 0 {
        println!("{}", run.tally.text(started.elapsed(), args.dry_run));
    }
    match ended? {
        FileEnd::Interrupted => {
            eprintln!("interrupted: run the command again, with --resume to continue here (nothing is counted twice)");
            Ok(ExitCode::from(INTERRUPTED))
        }
        FileEnd::StoppedAtBadRow => Ok(ExitCode::FAILURE),
        FileEnd::Complete if run.tally.bad() > 0 => Ok(ExitCode::FAILURE),
        FileEnd::Complete => Ok(ExitCode::SUCCESS),
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

/// Parses the prefix of keys. A key has at most 128 bytes; the hash and the number need up to 45 of them.
fn parse_prefix(text: &str) -> Result<String, String> {
    match (1..=64).contains(&text.len()) && !text.chars().any(char::is_control) {
        true => Ok(text.to_owned()),
        false => Err("must have 1 to 64 bytes and no control characters".to_owned()),
    }
}

fn parse_zone(text: &str) -> Result<Tz, String> {
    text.parse().map_err(|_| format!("must be an IANA time zone such as Europe/Berlin, got {text:?}"))
}
