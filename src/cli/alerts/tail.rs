//! `meterd alerts tail`: follows changes of alerts live. After a lost connection it continues with the last resume token.

use super::{FilterArgs, show};
use crate::cli::connect::Connection;
use crate::cli::connect::{self, ConnectArgs, alerts_client, status_error};
use crate::cli::retry::Backoff;
use crate::cli::time::{time_of, time_text};
use crate::print;
use crate::proto::subscribe_alerts_response::Message;
use crate::proto::{AlertChange, AlertEvent, SubscribeAlertsRequest};
use chrono::SecondsFormat;
use clap::Args;
use serde_json::json;
use std::process::ExitCode;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;
use tonic::Status;

/// Timeout for the next message of a stream. The server sends a heartbeat every 15 s.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(45);

#[derive(Args, Clone, Debug)]
pub struct TailArgs {
    #[command(flatten)]
    filter: FilterArgs,
    /// Start with the oldest change that the server keeps [default: start now]
    #[arg(long, conflicts_with = "resume")]
    from_start: bool,
    /// Continue after the message with this resume token; needs the same filters
    // A token can begin with a hyphen.
    #[arg(long, default_value = "", value_name = "TOKEN", hide_default_value = true, allow_hyphen_values = true)]
    resume: String,
    /// How long to retry while the server is unavailable, in seconds [default: no limit]
    #[arg(long, value_name = "SECONDS")]
    retry_seconds: Option<u32>,
    /// Print JSON, one change per line, each with its resume token
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// Follows alerts until it is interrupted, and then prints the flag to continue.
pub async fn run(args: TailArgs) -> anyhow::Result<ExitCode> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let mut request = SubscribeAlertsRequest {
        client_ids: args.filter.clients.clone(),
        types: args.filter.types(),
        min_severity: args.filter.min_severity(),
        resume_token: args.resume.clone(),
        from_start: args.from_start,
    };
    // If the server is unavailable at the start, the command fails immediately.
    let channel = args.connect.channel().await?;
    let ended = tokio::select! {
        _ = interrupt.recv() => Ok(ExitCode::SUCCESS),
        _ = terminate.recv() => Ok(ExitCode::SUCCESS),
        ended = follow(&args, channel, &mut request) => ended,
    };
    if !request.resume_token.is_empty() {
        eprintln!("to continue here: --resume {}", request.resume_token);
    }
    ended
}

/// Opens streams one after the other. Keeps the position in `request`.
async fn follow(
    args: &TailArgs,
    channel: Connection,
    request: &mut SubscribeAlertsRequest,
) -> anyhow::Result<ExitCode> {
    let unlimited = Duration::from_secs(u32::MAX.into());
    let budget = args.retry_seconds.map_or(unlimited, |seconds| Duration::from_secs(seconds.into()));
    let mut backoff = Backoff::new(budget);
    loop {
        let status = match stream(args, channel.clone(), request, &mut backoff).await {
            Ok(()) => return Ok(ExitCode::SUCCESS),
            Err(status) if connect::is_retryable(&status) => status,
            Err(status) => return Err(status_error(&status)),
        };
        let hint = connect::retry_delay(&status);
        let Some(wait) = backoff.next_wait(Instant::now(), hint) else { return Err(status_error(&status)) };
        eprintln!("{}; retrying in {:.1} s", connect::status_text(&status).replace('\n', " "), wait.as_secs_f64());
        tokio::time::sleep(wait).await;
    }
}

/// Prints the messages of one stream. Returns `Ok` if standard output is closed.
async fn stream(
    args: &TailArgs,
    channel: Connection,
    request: &mut SubscribeAlertsRequest,
    backoff: &mut Backoff,
) -> Result<(), Status> {
    let mut messages = alerts_client(channel).subscribe_alerts(request.clone()).await?.into_inner();
    loop {
        let message = tokio::time::timeout(MESSAGE_TIMEOUT, messages.message()).await;
        let message = message.map_err(|_| Status::unavailable("no message within 45 s"))??;
        let Some(message) = message else { return Err(Status::unavailable("the server ended the stream")) };
        backoff.reset();
        if let Some(Message::Alert(event)) = message.message {
            let line = match args.json {
                true => event_json(&event, &message.resume_token),
                false => event_text(&event),
            };
            println!("{line}");
            if print::has_failed() {
                return Ok(());
            }
        }
        // Set only after printing, so that an interrupted message is sent again.
        request.resume_token = message.resume_token;
        request.from_start = false;
    }
}

fn change_name(event: &AlertEvent) -> String {
    event.change().as_str_name().trim_start_matches("ALERT_CHANGE_").to_lowercase()
}

fn event_text(event: &AlertEvent) -> String {
    let alert = event.alert.clone().unwrap_or_default();
    let by = match event.change() {
        AlertChange::Acknowledged => format!(" by {}", alert.acknowledged_by),
        _ => String::new(),
    };
    format!(
        "{}  {}{by}  {}  {}  {}  {}  {}  {}",
        time_text(event.change_time.as_ref()),
        change_name(event),
        show::severity_name(&alert),
        show::type_name(&alert),
        alert.client_id,
        alert.period,
        alert.alert_id,
        alert.message
    )
}

fn event_json(event: &AlertEvent, resume_token: &str) -> String {
    json!({
        "sequence": event.sequence,
        "change": change_name(event),
        "change_time": time_of(event.change_time.as_ref(), SecondsFormat::AutoSi),
        "alert": event.alert.as_ref().map(show::json),
        "resume_token": resume_token,
    })
    .to_string()
}
