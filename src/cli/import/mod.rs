//! `meterd import`: files of events, safe to run twice.

pub mod batches;
pub mod checkpoint;
pub mod event;
#[cfg(test)]
mod fake_server;
pub mod fields;
pub mod input;
pub mod keys;
pub mod mapping;
pub mod progress;
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

use self::fields::MappingArgs;
use self::rows::Format;
use self::run::{Ended, Run};
use crate::cli::connect::ConnectArgs;
use crate::cli::time::check_format;

const INTERRUPTED: u8 = 130;

/// Import events from CSV or NDJSON files
///
/// A row without an idempotency key gets one made from its content, so running an import again counts nothing twice,
/// while two equal rows of one file are two events.
#[derive(Args, Clone, Debug)]
pub struct ImportArgs {
    /// Files to import, "-" for standard input
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Form of the files [default: by extension .csv, .ndjson, .jsonl]
    #[arg(long, value_enum)]
    pub format: Option<Format>,
    /// What separates CSV columns; "tab" for a tab
    #[arg(long, default_value = ",", value_parser = parse_delimiter)]
    pub delimiter: u8,
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
    /// Read and check everything, send nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Stop at the first bad row
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
    /// IANA time zone of times without an offset, such as Europe/Berlin [default: UTC]
    #[arg(long, value_name = "ZONE", value_parser = parse_zone)]
    pub time_zone: Option<Tz>,
    /// strftime format of times, such as "%d.%m.%Y %H:%M"
    #[arg(long, value_name = "FORMAT", value_parser = check_format)]
    pub time_format: Option<String>,
    #[command(flatten)]
    pub mapping: MappingArgs,
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// Imports the files one after the other. Fails when a row was not recorded.
pub async fn run(args: ImportArgs) -> anyhow::Result<ExitCode> {
    if args.checkpoint.is_some() && args.files.len() > 1 {
        bail!("--checkpoint goes with one file; each file has its own checkpoint beside it without the flag");
    }
    let sender = send::Sender::connect(&args).await?;
    let started = Instant::now();
    let mut run = Run::new(&args, sender)?;
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
