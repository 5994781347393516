//! `meterd export`: writes recorded events to a file or to standard output.

use std::fs::File;
use std::io::{self, BufWriter, ErrorKind, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::anyhow;
use chrono::NaiveDate;
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use prost_types::Timestamp;
use tonic::{Code, Status};

use super::chart::grouped;
use super::connect::{self, ConnectArgs, Connection};
use super::hints;
use super::period::{PeriodArgs, days_text, parse_instant, parse_month};
use super::track::parse_label;
use crate::print;
use crate::proto::usage_service_client::UsageServiceClient;
use crate::proto::{ExportFormat, ExportUsageRequest, ExportUsageResponse};
use meterd_domain::period::{self, Month};

/// Format of the exported file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Comma-separated with a header line
    Csv,
    /// One JSON object per line
    Ndjson,
}

/// Arguments of `export`.
#[derive(Args, Clone, Debug)]
pub struct ExportArgs {
    /// Only this client
    #[arg(long, default_value = "", value_name = "ID", hide_default_value = true)]
    pub client: String,
    /// Only this month, such as 2026-11, in each client's time zone
    #[arg(long, value_name = "YYYY-MM", value_parser = parse_month, conflicts_with_all = ["start", "end"])]
    pub month: Option<Month>,
    /// First day, in each client's time zone, included; or an exact time, such as 2026-11-01T00:00:00+01:00, included
    #[arg(long, value_name = "YYYY-MM-DD", value_parser = parse_bound)]
    pub start: Option<Bound>,
    /// Last day, in each client's time zone, included; or an exact time, not included
    #[arg(long, value_name = "YYYY-MM-DD", value_parser = parse_bound)]
    pub end: Option<Bound>,
    /// Only this service; repeat the flag for more
    #[arg(long, value_name = "NAME")]
    pub service: Vec<String>,
    /// Only events with this label, such as project=apollo; an event must have all labels
    #[arg(long = "label", value_name = "NAME=VALUE", value_parser = parse_label)]
    pub labels: Vec<(String, String)>,
    /// Format of the file [default: from the extension of --output, else csv]
    #[arg(long, value_enum)]
    pub format: Option<Format>,
    /// Write to this file; it is created when the export is complete [default: standard output]
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Exit with 0 if there are no events, and write a file without events
    #[arg(long)]
    pub allow_empty: bool,
    /// Do not show progress
    #[arg(long, short)]
    pub quiet: bool,
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// The start or the end of an export.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    /// A day in each client's time zone; included.
    Day(NaiveDate),
    /// A point in time; included as the start, not included as the end.
    Instant(Timestamp),
}

impl Bound {
    fn day(bound: Option<Self>) -> Option<NaiveDate> {
        match bound {
            Some(Self::Day(day)) => Some(day),
            _ => None,
        }
    }

    fn instant(bound: Option<Self>) -> Option<Timestamp> {
        match bound {
            Some(Self::Instant(time)) => Some(time),
            _ => None,
        }
    }
}

/// Returns the first and the last day.
fn days(args: &ExportArgs) -> anyhow::Result<(Option<NaiveDate>, Option<NaiveDate>)> {
    let days = PeriodArgs { month: args.month, start: Bound::day(args.start), end: Bound::day(args.end) };
    days.days()
}

fn request(args: &ExportArgs) -> anyhow::Result<ExportUsageRequest> {
    let (start, end) = days(args)?;
    let text = |day: Option<NaiveDate>| day.map(|day| day.to_string()).unwrap_or_default();
    Ok(ExportUsageRequest {
        client_id: args.client.clone(),
        start_time: Bound::instant(args.start),
        end_time: Bound::instant(args.end),
        services: args.service.clone(),
        format: match format_of(args) {
            Format::Csv => ExportFormat::Csv.into(),
            Format::Ndjson => ExportFormat::Ndjson.into(),
        },
        start_date: text(start),
        end_date: text(end),
        labels: args.labels.iter().cloned().collect(),
    })
}

/// Runs the export. After an error and after Ctrl-C, an existing output file is unchanged, and no new one exists.
pub async fn run(args: ExportArgs) -> anyhow::Result<ExitCode> {
    let request = request(&args)?;
    let channel = args.connect.channel().await?;
    let mut client = connect::usage_client(channel.clone());
    if let Err(status) = check_supports_days(&mut client, &request).await? {
        return Err(hints::client_error(&args.connect, &channel, &status, &args.client).await);
    }
    // No timeout unless the user sets one, because an export can take long.
    let request = match args.connect.timeout {
        Some(seconds) => args.connect.request(request, seconds),
        None => tonic::Request::new(request),
    };
    let mut pieces = match client.export_usage(request).await {
        Ok(answer) => answer.into_inner(),
        Err(status) => return Err(hints::client_error(&args.connect, &channel, &status, &args.client).await),
    };
    let mut target = Target::open(args.output.as_deref())?;
    let bar = progress(&args);
    let mut last = ExportUsageResponse::default();
    loop {
        let piece = tokio::select! {
            piece = pieces.message() => piece.map_err(|status| connect::status_error(&status))?,
            _ = tokio::signal::ctrl_c() => anyhow::bail!("interrupted: no file was written"),
        };
        let Some(piece) = piece else { break };
        // Checked before anything is written. An empty export has a single piece, the header.
        if piece.event_count == 0 && !args.allow_empty {
            return Err(nothing_to_export(&args, &channel).await);
        }
        target.write(&piece.data)?;
        // For example in `meterd export | head`.
        if print::has_failed() {
            return Ok(ExitCode::SUCCESS);
        }
        bar.inc(piece.data.len() as u64);
        bar.set_message(format!("{} events", grouped(piece.event_count)));
        last = piece;
    }
    check_services(&args, &channel, &last.empty_services).await?;
    target.finish()?;
    bar.finish_and_clear();
    if !args.quiet {
        let target = args.output.as_ref().map(|path| format!(" to {}", path.display())).unwrap_or_default();
        eprintln!("exported {} events{target}", grouped(last.event_count));
    }
    Ok(ExitCode::SUCCESS)
}

/// Checks that the server supports ranges of days. An older server ignores these fields and would export everything. Sends an
/// invalid day, which a server that supports days rejects. Returns an error of the server for any other reason.
async fn check_supports_days(
    client: &mut UsageServiceClient<Connection>,
    request: &ExportUsageRequest,
) -> anyhow::Result<Result<(), Status>> {
    if request.start_date.is_empty() && request.end_date.is_empty() {
        return Ok(Ok(()));
    }
    let question = ExportUsageRequest { start_date: "no day".to_owned(), end_date: String::new(), ..request.clone() };
    match client.export_usage(question).await {
        Err(status) if status.code() == Code::InvalidArgument && status.message().contains("start_date") => Ok(Ok(())),
        Err(status) => Ok(Err(status)),
        Ok(_) => anyhow::bail!(
            "the server is older than this meterd and would export all days: update the server, or use exact times for \
             --start and --end, such as 2026-11-01T00:00:00Z"
        ),
    }
}

/// Checks services without events. A service that is not in the catalogue is an error, because its name may be misspelt.
/// Prints a note for the others.
async fn check_services(args: &ExportArgs, channel: &Connection, empty: &[String]) -> anyhow::Result<()> {
    if empty.is_empty() {
        return Ok(());
    }
    let known = hints::services(&args.connect, channel).await.map_err(|status| connect::status_error(&status))?;
    for service in empty {
        if !known.contains(service) {
            let hint = hints::did_you_mean(service, known.iter().map(String::as_str));
            let hint = hint.unwrap_or_else(|| "`meterd prices list` shows all services with prices".to_owned());
            anyhow::bail!("--service: service {service:?} does not exist and has no events; {hint}");
        }
        if !args.quiet {
            eprintln!("no events of service {service}");
        }
    }
    Ok(())
}

/// The error for an empty export, with a hint.
async fn nothing_to_export(args: &ExportArgs, channel: &Connection) -> anyhow::Error {
    if let Err(misspelt) = check_services(&ExportArgs { quiet: true, ..args.clone() }, channel, &args.service).await {
        return misspelt;
    }
    let (client, whose) = match args.client.as_str() {
        "" => (None, String::new()),
        client => (Some(client), format!(" of client {client:?}")),
    };
    let services = match args.service.is_empty() {
        true => String::new(),
        false => format!(" of service {}", args.service.join(" or ")),
    };
    let (start, end) = days(args).unwrap_or_default();
    let when = match (args.start, args.end) {
        (Some(Bound::Instant(_)), _) | (_, Some(Bound::Instant(_))) => "at these times".to_owned(),
        _ => days_text(start, end),
    };
    let when = if when.is_empty() { when } else { format!(" {when}") };
    let months = hints::months_with_usage(&args.connect, channel, client, end).await;
    anyhow::anyhow!(
        "nothing to export: there are no events{whose}{services}{when}; {}. Add --allow-empty to write an empty file",
        hints::elsewhere(&months)
    )
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
    let template = "{spinner} {bytes} {bytes_per_sec} {msg}";
    bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner()));
    bar
}

fn parse_bound(text: &str) -> Result<Bound, String> {
    if let Some(day) = period::parse_day(text) {
        return Ok(Bound::Day(day));
    }
    let hint = match Month::parse(text) {
        Some(month) => format!("; for the whole month use --month {month}"),
        None => String::new(),
    };
    let time = parse_instant(text).map_err(|_| {
        format!("must be a day such as 2026-11-25, or a time with an offset such as 2026-11-25T00:00:00Z{hint}")
    })?;
    Ok(Bound::Instant(time))
}

/// Standard output, or a file that is created when it is complete.
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
        let file = File::create(&part.0).map_err(|error| output_error(path, &error))?;
        Ok(Target::File { writer: BufWriter::new(file), part, path: path.to_owned() })
    }

    fn write(&mut self, data: &[u8]) -> anyhow::Result<()> {
        match self {
            Target::Stdout => {
                print::bytes(data);
                Ok(())
            }
            Target::File { writer, path, .. } => writer.write_all(data).map_err(|error| output_error(path, &error)),
        }
    }

    fn finish(self) -> anyhow::Result<()> {
        match self {
            Target::Stdout => Ok(()),
            Target::File { writer, part, path } => {
                let synced = writer.into_inner().map_err(|error| error.into_error()).and_then(|file| file.sync_all());
                let finished = synced.and_then(|()| std::fs::rename(&part.0, &path));
                finished.map_err(|error| output_error(&path, &error))
            }
        }
    }
}

/// The error of writing the file of `--output`. It names this file and not the temporary one.
fn output_error(path: &Path, error: &io::Error) -> anyhow::Error {
    let path = path.display();
    match error.kind() {
        ErrorKind::NotFound => {
            anyhow!("--output {path}: its directory does not exist; create it, or choose another file")
        }
        ErrorKind::IsADirectory => anyhow!("--output {path}: must be a file, but this is a directory; add a file name"),
        _ => anyhow!("--output {path}: cannot write the file: {error}"),
    }
}

/// A temporary file. It is deleted when the value is dropped, unless it was renamed.
struct PartFile(PathBuf);

impl Drop for PartFile {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).ok();
    }
}

#[cfg(test)]
#[path = "export_old_server_tests.rs"]
mod old_server_tests;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_only_when_it_is_complete() {
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
    fn bounds_are_days_or_times_with_an_offset() {
        assert_eq!(parse_bound("2026-11-01"), Ok(Bound::Day("2026-11-01".parse().unwrap())));
        let instant = Bound::Instant(Timestamp { seconds: 1_793_491_200, nanos: 0 });
        assert_eq!(parse_bound("2026-11-01T00:00:00Z"), Ok(instant));
        assert_eq!(parse_bound("2026-11-01T01:00:00+01:00"), Ok(instant));
        for text in ["november", "2026-11-01 00:00:00", "2026-11-01T00:00:00", "20261101", "1793491200", "2026-11-31"] {
            assert!(parse_bound(text).unwrap_err().contains("with an offset"), "{text}");
        }
        assert!(parse_bound("2026-11").unwrap_err().contains("--month 2026-11"));
    }
}
