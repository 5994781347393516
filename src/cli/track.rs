//! `meterd track`: records one event.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use chrono::DateTime;
use clap::Args;
use meterd_domain::measures::check_name;
use serde_json::json;
use tokio::time::Instant;
use tonic::{Code, Status};

use super::connect::{self, ConnectArgs, Connection};
use super::retry::Backoff;
use super::signals;
use super::time::parse_flag_time;
use super::{decimal, json as metadata_json};
use crate::proto::usage_service_client::UsageServiceClient;
use crate::proto::{EventOutcome, TrackUsageRequest, UnpricedReason, UsageEvent, UsageResult};

const CALL_SECONDS: u64 = 10;
/// Exit code after a signal, the same as a shell reports for SIGINT.
const INTERRUPTED: u8 = 130;

/// Arguments of `track`.
#[derive(Args, Clone, Debug)]
pub struct TrackArgs {
    /// Client, service and units; replaces --client, --service and --units
    #[arg(value_name = "CLIENT SERVICE [UNITS]", num_args = 0..=3)]
    pub event: Vec<String>,
    /// Id of the client
    #[arg(long, value_name = "ID", required_unless_present = "event", conflicts_with = "event")]
    pub client: Option<String>,
    /// Name of the service, such as openai
    #[arg(long, value_name = "NAME", required_unless_present = "event", conflicts_with = "event")]
    pub service: Option<String>,
    /// Name of the operation, such as chat_completion
    #[arg(long, default_value = "", value_name = "NAME", hide_default_value = true)]
    pub operation: String,
    /// Name of the model or variant, such as gpt-4o-mini
    #[arg(long, default_value = "", value_name = "NAME", hide_default_value = true)]
    pub model: String,
    /// Number of units [default: 1]
    #[arg(long, value_name = "DECIMAL", value_parser = decimal::quantity)]
    pub units: Option<String>,
    /// Number of input tokens, including cached ones
    #[arg(long, default_value = "0", value_name = "COUNT", value_parser = decimal::tokens)]
    pub input_tokens: i64,
    /// Number of output tokens
    #[arg(long, default_value = "0", value_name = "COUNT", value_parser = decimal::tokens)]
    pub output_tokens: i64,
    /// Number of those input tokens that were read from a cache
    #[arg(long, default_value = "0", value_name = "COUNT", value_parser = decimal::tokens)]
    pub cached_input_tokens: i64,
    /// Amount of money to which a percentage price applies, in the currency of the deployment
    #[arg(long, value_name = "DECIMAL", value_parser = decimal::quantity)]
    pub amount: Option<String>,
    /// What the provider charges by its own report, in the currency of the deployment
    #[arg(long, value_name = "DECIMAL", value_parser = decimal::quantity)]
    pub reported_cost: Option<String>,
    /// Service tier, such as batch
    #[arg(long, default_value = "", value_name = "NAME", hide_default_value = true)]
    pub service_tier: String,
    /// Another quantity, such as pages=3; repeat the flag for more
    #[arg(long, value_name = "NAME=DECIMAL", value_parser = parse_measure)]
    pub measure: Vec<(String, String)>,
    /// What the event can be grouped by, such as project=apollo; repeat the flag for more
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_label)]
    pub label: Vec<(String, String)>,
    /// Time of the event, such as 2026-11-21T10:00:00Z [default: now]
    #[arg(long, value_name = "TIME", value_parser = parse_flag_time)]
    pub time: Option<prost_types::Timestamp>,
    /// Idempotency key [default: a random key]
    #[arg(long, value_name = "KEY", allow_hyphen_values = true)]
    pub key: Option<String>,
    /// Id of the user inside the client
    #[arg(long, default_value = "", value_name = "ID", hide_default_value = true)]
    pub subject: String,
    /// Your own reference for the event
    #[arg(long, default_value = "", value_name = "ID", hide_default_value = true)]
    pub external_id: String,
    /// Additional data, a JSON object
    #[arg(long, value_name = "JSON", value_parser = metadata_json::metadata)]
    pub metadata: Option<prost_types::Struct>,
    /// Total time for retries in seconds, including calls in progress, if the server is unavailable, full or hangs. 0 means one
    /// attempt. If no server answers at the start, the command fails immediately
    #[arg(long, default_value_t = 15, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(0..=3_600))]
    pub retry_seconds: u64,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// Records the event. The exit code is 0 if the event is recorded, by this call or by an earlier one.
pub async fn run(args: TrackArgs) -> anyhow::Result<ExitCode> {
    let event = event_of(&args)?;
    let mut client = connect::usage_client(args.connect.channel().await?);
    let key = event.idempotency_key.clone();
    let stop = signals::stop_signal()?;
    let tracked = tokio::select! {
        tracked = track(&mut client, &args, event) => tracked,
        () = stop => {
            eprintln!(
                "interrupted: the event was recorded once or not at all\nto send this event again, repeat the command with --key {key}"
            );
            return Ok(ExitCode::from(INTERRUPTED));
        }
    };
    let result = tracked.map_err(|status| {
        let error = connect::status_error(&status);
        match may_be_recorded(&status) {
            true => anyhow::anyhow!("{error:#}\nto send this event again, repeat the command with --key {key}"),
            false => error,
        }
    })?;
    match args.json {
        true => println!("{}", result_json(&result)),
        false => println!("{}", result_text(&result)),
    }
    Ok(match result.outcome() {
        EventOutcome::Accepted | EventOutcome::Duplicate => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

/// Whether the event may have been recorded in spite of the error.
fn may_be_recorded(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable | Code::DeadlineExceeded | Code::Unknown | Code::Internal | Code::Cancelled
    )
}

/// Sends the event and retries it. The idempotency key makes retries safe.
async fn track(
    client: &mut UsageServiceClient<Connection>,
    args: &TrackArgs,
    event: UsageEvent,
) -> Result<UsageResult, Status> {
    let budget = Duration::from_secs(args.retry_seconds);
    let give_up_at = Instant::now() + budget;
    let call_limit = Duration::from_secs(args.connect.timeout.unwrap_or(CALL_SECONDS));
    let mut backoff = Backoff::new(budget);
    loop {
        let limit = match args.retry_seconds {
            0 => call_limit,
            _ => call_limit.min(give_up_at.saturating_duration_since(Instant::now())),
        };
        let mut request = tonic::Request::new(TrackUsageRequest { event: Some(event.clone()) });
        request.set_timeout(limit);
        // The timeout of a request does not include the time to reconnect.
        let answer = tokio::time::timeout(limit, client.track_usage(request)).await;
        let answer = answer.unwrap_or_else(|_| {
            Err(Status::deadline_exceeded(format!("no answer within {} s", limit.as_secs_f32().round())))
        });
        let status = match answer {
            Ok(response) => return Ok(response.into_inner().result.unwrap_or_default()),
            Err(status) if connect::is_retryable(&status) => status,
            Err(status) => return Err(status),
        };
        match backoff.next_wait(Instant::now(), connect::retry_delay(&status)) {
            Some(wait) if Instant::now() + wait < give_up_at => tokio::time::sleep(wait).await,
            _ => return Err(status),
        }
    }
}

fn event_of(args: &TrackArgs) -> anyhow::Result<UsageEvent> {
    let (client, service, units) = match &args.event[..] {
        [] => (args.client.as_deref(), args.service.as_deref(), None),
        [client] => {
            anyhow::bail!("the service is missing after client {client:?}; usage: meterd track CLIENT SERVICE [UNITS]")
        }
        [client, service, rest @ ..] => (Some(client.as_str()), Some(service.as_str()), rest.first()),
    };
    anyhow::ensure!(units.is_none() || args.units.is_none(), "units are set twice: remove UNITS or --units");
    let units = match units {
        Some(units) => Some(decimal::quantity(units).map_err(|message| anyhow::anyhow!("UNITS {message}"))?),
        None => args.units.clone(),
    };
    Ok(UsageEvent {
        client_id: client.unwrap_or_default().to_owned(),
        service: service.unwrap_or_default().to_owned(),
        operation: args.operation.clone(),
        model: args.model.clone(),
        units: units.unwrap_or_default(),
        input_tokens: args.input_tokens,
        output_tokens: args.output_tokens,
        cached_input_tokens: args.cached_input_tokens,
        amount: args.amount.clone().unwrap_or_default(),
        event_time: args.time,
        idempotency_key: args.key.clone().unwrap_or_else(random_key),
        subject: args.subject.clone(),
        external_id: args.external_id.clone(),
        metadata: args.metadata.clone(),
        service_tier: args.service_tier.clone(),
        measures: args.measure.iter().cloned().collect(),
        reported_cost: args.reported_cost.clone().unwrap_or_default(),
        labels: args.label.iter().cloned().collect(),
    })
}

/// Parses the name and the quantity of a measure.
pub fn parse_measure(text: &str) -> Result<(String, String), String> {
    let (name, number) = text.split_once('=').ok_or("must be NAME=DECIMAL, such as pages=3")?;
    check_name(name).map_err(|predicate| format!("{name:?} {predicate}"))?;
    Ok((name.to_owned(), decimal::quantity(number)?))
}

/// Parses the name and the value of a label.
pub fn parse_label(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("must be NAME=VALUE, such as project=apollo")?;
    Ok((name.to_owned(), value.to_owned()))
}

fn random_key() -> String {
    format!("track-{:032x}", rand::random::<u128>())
}

fn outcome_name(result: &UsageResult) -> &'static str {
    result.outcome().as_str_name().trim_start_matches("EVENT_OUTCOME_")
}

fn unpriced_name(reason: UnpricedReason) -> &'static str {
    reason.as_str_name().trim_start_matches("UNPRICED_REASON_")
}

/// Explains why there is no charge, with the fix.
fn unpriced_text(reason: UnpricedReason) -> &'static str {
    match reason {
        UnpricedReason::TokensNotCovered => "the price has no rate for these tokens",
        UnpricedReason::TokensMissing => "the price is per token: add --input-tokens and --output-tokens",
        UnpricedReason::AmountMissing => "the price is a percentage: add --amount",
        UnpricedReason::UnknownService => "the service is not in the catalogue",
        UnpricedReason::MeasureNotCovered => "the price has no rate for one of the measures",
        UnpricedReason::TierQuantityTooLarge => "the month would have more than 10^15, which tiers cannot charge",
        UnpricedReason::ReportedCostMissing => "the price charges the reported cost: add --reported-cost",
        UnpricedReason::NoPrice | UnpricedReason::Unspecified => {
            "no price applies; the event is charged as soon as one does"
        }
    }
}

fn result_text(result: &UsageResult) -> String {
    let mut lines = vec![format!("{:<10} {}", outcome_name(result), result.event_id)];
    match &result.charge {
        Some(charge) => {
            lines.push(format!("charge     {} {}", charge.amount, charge.currency));
            if !result.matched_model.is_empty() {
                lines.push(format!("price of   {}", result.matched_model));
            }
        }
        None if result.outcome() == EventOutcome::Duplicate
            && result.unpriced_reason() == UnpricedReason::Unspecified =>
        {
            lines.push("no charge  the event was voided or has been removed".to_owned());
        }
        None if result.error.is_none() => {
            let reason = result.unpriced_reason();
            lines.push(format!("unpriced   {}: {}", unpriced_name(reason), unpriced_text(reason)));
        }
        None => {}
    }
    let rounded: BTreeMap<_, _> = result.rounded.iter().collect();
    lines.extend(rounded.into_iter().map(|(field, value)| format!("rounded    {field} to {value}")));
    if let Some(error) = &result.error {
        lines.push(format!("{}: {}", error.reason, connect::event_error_text(error)));
    }
    lines.push(format!("key        {}", result.idempotency_key));
    lines.join("\n")
}

fn result_json(result: &UsageResult) -> serde_json::Value {
    let time = result.event_time.and_then(|time| {
        let time = DateTime::from_timestamp(time.seconds, u32::try_from(time.nanos).ok()?)?;
        Some(time.to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true))
    });
    json!({
        "outcome": outcome_name(result),
        "event_id": result.event_id,
        "event_time": time,
        "idempotency_key": result.idempotency_key,
        "charge": result.charge.as_ref().map(|charge| json!({ "currency": charge.currency, "amount": charge.amount })),
        "price_id": result.price_id,
        "matched_model": result.matched_model,
        "unpriced_reason": match result.charge {
            Some(_) => None,
            None => Some(unpriced_name(result.unpriced_reason())),
        },
        "rounded": result.rounded,
        "error": result.error.as_ref().map(connect::event_error_json),
    })
}

#[cfg(test)]
#[path = "track_tests.rs"]
mod tests;
