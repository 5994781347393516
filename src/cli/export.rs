//! `meterd export`: recorded events to a file or to standard output.

use std::fs::File;
use std::io::{BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use prost_types::Timestamp;

use super::chart::grouped;
use super::connect::{self, ConnectArgs};
use super::time::{TimeRules, parse_time};
use crate::print;
use crate::proto::{ExportFormat, ExportUsageRequest, ExportUsageResponse};

/// Form of the exported file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Comma-separated with a header line
    Csv,
    /// One JSON object a line
    Ndjson,
}

/// Export recorded events
///
/// All of one moment. `meterd import` reads the file again.
#[derive(Args, Clone, Debug)]
pub struct ExportArgs {
    /// Only this client
    #[arg(long, default_value = "", value_name = "ID", hide_default_value = true)]
    pub client: String,
    /// Only events at or after this time or UTC day, such as 2026-11-01 or 2026-11-01T00:00:00+01:00
    #[arg(long, value_name = "TIME", value_parser = parse_bound)]
    pub start: Option<Timestamp>,
    /// Only events before this time or UTC day
    #[arg(long, value_name = "TIME", value_parser = parse_bound)]
    pub end: Option<Timestamp>,
    /// Only this service (repeatable)
    #[arg(long, value_name = "NAME")]
    pub service: Vec<String>,
    /// Form of the file [default: by the extension of --output, else csv]
    #[arg(long, value_enum)]
    pub format: Option<Format>,
    /// Write to this file, which appears when it is whole [default: standard output]
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Show no progress
    #[arg(long, short)]
    pub quiet: bool,
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// Exports. On any error, and on Ctrl-C, there is no output file, or the one from before.
pub async fn run(args: ExportArgs) -> anyhow::Result<ExitCode> {
    let mut client = connect::usage_client(args.connect.channel().await?);
    let request = ExportUsageRequest {
        client_id: args.client.clone(),
        start_time: args.start,
        end_time: args.end,
        services: args.service.clone(),
        format: match format_of(&args) {
            Format::Csv => ExportFormat::Csv.into(),
            Format::Ndjson => ExportFormat::Ndjson.into(),
        },
    };
    // No time limit unless one is asked for: an export takes as long as it takes.
    let request = match args.connect.timeout {
        Some(seconds) => args.connect.request(request, seconds),
        None => tonic::Request::new(request),
    };
    let answer = client.export_usage(request).await;
    let mut pieces = answer.map_err(|status| connect::status_error(&status))?.into_inner();
    let mut target = Target::open(args.output.as_deref())?;
    let bar = progress(&args);
    let mut last = ExportUsageResponse::default();
    loop {
        let piece = tokio::select! {
            piece = pieces.message() => piece.map_err(|status| connect::status_error(&status))?,
            _ = tokio::signal::ctrl_c() => anyhow::bail!("interrupted: nothing is kept"),
        };
        let Some(piece) = piece else { break };
        target.write(&piece.data).context("cannot write")?;
        // Such as `meterd export | head`.
        if print::has_ended() {
            return Ok(ExitCode::SUCCESS);
        }
        bar.inc(piece.data.len() as u64);
        bar.set_message(format!("{} events", grouped(piece.event_count)));
        last = piece;
    }
    target.finish()?;
    bar.finish_and_clear();
    if !args.quiet {
        let place = args.output.as_ref().map(|path| format!(" to {}", path.display())).unwrap_or_default();
        eprintln!("exported {} events{place}", grouped(last.event_count));
    }
    Ok(ExitCode::SUCCESS)
}

fn format_of(args: &ExportArgs) -> Format {
    let extension = args.output.as_ref().and_then(|path| path.extension()).and_then(|name| name.to_str());
    match (args.format, extension) {
        (Some(format), _) => format,
        (None, Some("ndjson" | "jsonl")) => Format::Ndjson,
        _ => Format::Csv,
    }
}

fn progress(args: &ExportArgs) -> ProgressBar {
    if args.quiet || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::no_length();
    let form = "{spinner} {bytes} {bytes_per_sec} {msg}";
    bar.set_style(ProgressStyle::with_template(form).unwrap_or_else(|_| ProgressStyle::default_spinner()));
    bar
}

fn parse_bound(text: &str) -> Result<Timestamp, String> {
    parse_time(text, &TimeRules::default())
}

/// Standard output, or a file that appears only when it is whole.
enum Target {
    Stdout,
    File { writer: BufWriter<File>, part: PartFile, path: PathBuf },
}

impl Target {
    fn open(path: Option<&Path>) -> anyhow::Result<Target> {
        let Some(path) = path else {
            return Ok(Target::Stdout);
        };
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".part-{}", std::process::id()));
        let part = PartFile(PathBuf::from(name));
        let file = File::create(&part.0).with_context(|| format!("cannot write {}", part.0.display()))?;
        Ok(Target::File { writer: BufWriter::new(file), part, path: path.to_owned() })
    }

    fn write(&mut self, data: &[u8]) -> std::io::Result<()> {
        match self {
            Target::Stdout => {
                print::bytes(data);
                Ok(())
            }
            Target::File { writer, .. } => writer.write_all(data),
        }
    }

    fn finish(self) -> anyhow::Result<()> {
        match self {
            Target::Stdout => Ok(()),
            Target::File { writer, part, path } => {
                writer.into_inner().context("cannot write")?.sync_all()?;
                std::fs::rename(&part.0, &path).with_context(|| format!("cannot write {}", path.display()))
            }
        }
    }
}

/// A file that goes away with its owner, unless it was renamed.
struct PartFile(PathBuf);

impl Drop for PartFile {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_appears_only_when_it_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.csv");
        std::fs::write(&path, "before").unwrap();
        let mut target = Target::open(Some(&path)).unwrap();
        target.write(b"half").unwrap();
        drop(target);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "before");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        let mut target = Target::open(Some(&path)).unwrap();
        target.write(b"whole").unwrap();
        target.finish().unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "whole");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn bounds_are_times_or_days() {
        assert_eq!(parse_bound("2026-11-01").unwrap(), parse_bound("2026-11-01T01:00:00+01:00").unwrap());
        assert!(parse_bound("november").is_err());
    }
}
