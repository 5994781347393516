//! `meterd unpriced`: lists usage without a price and shows how to set one.

mod remedy;

pub use remedy::Scope;
use remedy::remedy;

use super::chart::{grouped, table};
use super::connect::{self, ConnectArgs, Connection};
use super::hints;
use super::period::PeriodArgs;
use super::sheet::{self, Cell};
use crate::proto::{ListUsageEventsRequest, QueryUsageRequest, RecordedUsageEvent, UsageDimension, UsageRow};
use chrono::{Days, NaiveDate};
use clap::Args;
use meterd_domain::period::day_of;
use meterd_engine::clock::Clock;
use serde_json::json;
use std::collections::BTreeMap;
use std::process::ExitCode;

const CALL_SECONDS: u64 = 60;
/// Maximum range of one query, in days.
const WINDOW_DAYS: u64 = 366;
/// Maximum range of the command, in days: ten years.
const RANGE_DAYS_MAX: i64 = 3_660;
/// Maximum number of models whose reason is queried. Each needs a call.
const REASONS_MAX: usize = 50;

/// List usage without a price and show how to set one
///
/// Usage without a price is recorded, and its requests, units and tokens are counted, but it is not included in any cost.
/// meterd prices it as soon as a price applies to it. The default range is the last 366 days.
#[derive(Args, Clone, Debug)]
pub struct UnpricedArgs {
    /// Only this client; repeat for more
    #[arg(long = "client", value_name = "ID")]
    pub clients: Vec<String>,
    #[command(flatten)]
    pub period: PeriodArgs,
    /// Print JSON, one row per line
    #[arg(long, conflicts_with = "csv")]
    pub json: bool,
    /// Print CSV
    #[arg(long)]
    pub csv: bool,
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// A client and a model without a price.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct UnpricedKey {
    pub client: String,
    pub scope: Scope,
}

/// Prints the usage without a price.
pub async fn run(args: UnpricedArgs) -> anyhow::Result<ExitCode> {
    let (start, end) = range(&args.period)?;
    let channel = args.connect.channel().await?;
    hints::check_clients(&args.connect, &channel, &args.clients).await?;
    let rows = rows(&args.connect, &channel, &args.clients, start, end).await?;
    let found = causes(&args.connect, &channel, &rows, start, end).await?;
    if args.json {
        rows.iter().for_each(|(key, count)| println!("{}", to_json(key, *count, found.get(&key.scope))));
    } else if args.csv {
        println!("{}", sheet::lines(&to_csv(&rows, &found)?));
    } else {
        to_text(&rows, &found, start, end).iter().for_each(|line| println!("{line}"));
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns the first and the last day. The default is the last year.
fn range(period: &PeriodArgs) -> anyhow::Result<(NaiveDate, NaiveDate)> {
    let (start, end) = period.days()?;
    // In some time zones the next day has begun.
    let end = end.unwrap_or_else(|| day_of(Clock::system().now(), chrono_tz::UTC) + Days::new(1));
    let start = start.unwrap_or(end - Days::new(WINDOW_DAYS - 1));
    anyhow::ensure!(start <= end, "--start {start} is in the future: use an earlier day");
    let days = (end - start).num_days() + 1;
    anyhow::ensure!(
        days <= RANGE_DAYS_MAX,
        "--start and --end: the range must have at most {RANGE_DAYS_MAX} days, got {days}"
    );
    Ok((start, end))
}

/// Returns the number of unpriced events by client and model.
pub async fn rows(
    connect: &ConnectArgs,
    channel: &Connection,
    clients: &[String],
    start: NaiveDate,
    end: NaiveDate,
) -> anyhow::Result<BTreeMap<UnpricedKey, i64>> {
    let mut usage = connect::usage_client(channel.clone());
    let mut counts = BTreeMap::new();
    let mut first = start;
    while first <= end {
        let last = (first + Days::new(WINDOW_DAYS - 1)).min(end);
        let by = [UsageDimension::Client, UsageDimension::Service, UsageDimension::Operation, UsageDimension::Model];
        let mut request = QueryUsageRequest {
            client_ids: clients.to_vec(),
            start_date: first.to_string(),
            end_date: last.to_string(),
            group_by: by.map(i32::from).into(),
            unpriced_only: true,
            ..Default::default()
        };
        loop {
            let answer = usage.query_usage(connect.request(request.clone(), CALL_SECONDS)).await;
            let page = answer.map_err(|status| connect::status_error(&status))?.into_inner();
            for row in page.rows {
                let count = row.totals.as_ref().map_or(0, |totals| totals.unpriced_event_count);
                *counts.entry(key_of(row)).or_default() += count;
            }
            request.page_token = page.next_page_token;
            if request.page_token.is_empty() {
                break;
            }
        }
        first = last + Days::new(1);
    }
    Ok(counts)
}

fn key_of(row: UsageRow) -> UnpricedKey {
    let scope = Scope {
        service: row.service.unwrap_or_default(),
        operation: row.operation.unwrap_or_default(),
        model: row.model.unwrap_or_default(),
    };
    UnpricedKey { client: row.client_id.unwrap_or_default(), scope }
}

/// Returns an event of each model, which has the reason, for at most [`REASONS_MAX`] models.
pub async fn causes(
    connect: &ConnectArgs,
    channel: &Connection,
    rows: &BTreeMap<UnpricedKey, i64>,
    start: NaiveDate,
    end: NaiveDate,
) -> anyhow::Result<BTreeMap<Scope, RecordedUsageEvent>> {
    let by_scope: BTreeMap<&Scope, &str> = rows.keys().map(|key| (&key.scope, key.client.as_str())).collect();
    let mut usage = connect::usage_client(channel.clone());
    let mut found = BTreeMap::new();
    // The range is wide enough for every time zone. Any unpriced event has the reason.
    let midnight = |day: NaiveDate| prost_types::Timestamp {
        seconds: day.and_time(chrono::NaiveTime::MIN).and_utc().timestamp().max(0),
        nanos: 0,
    };
    for (scope, client) in by_scope.into_iter().take(REASONS_MAX) {
        let request = ListUsageEventsRequest {
            client_id: client.to_owned(),
            start_time: Some(midnight(start - Days::new(1))),
            end_time: Some(midnight(end + Days::new(2))),
            services: vec![scope.service.clone()],
            operations: vec![scope.operation.clone()],
            models: vec![scope.model.clone()],
            unpriced_only: true,
            page_size: 1,
            ..Default::default()
        };
        let answer = usage.list_usage_events(connect.request(request, CALL_SECONDS)).await;
        let events = answer.map_err(|status| connect::status_error(&status))?.into_inner().events;
        found.extend(events.into_iter().next().map(|event| (scope.clone(), event)));
    }
    Ok(found)
}

fn reason(event: &RecordedUsageEvent) -> &'static str {
    event.unpriced_reason().as_str_name().trim_start_matches("UNPRICED_REASON_")
}

fn to_text(
    rows: &BTreeMap<UnpricedKey, i64>,
    found: &BTreeMap<Scope, RecordedUsageEvent>,
    start: NaiveDate,
    end: NaiveDate,
) -> Vec<String> {
    if rows.is_empty() {
        return vec![format!("no unpriced usage from {start} to {end}")];
    }
    let mut cells = vec![["client", "service", "operation", "model", "events", "reason"].map(str::to_owned).to_vec()];
    cells.extend(rows.iter().map(|(UnpricedKey { client, scope }, count)| {
        vec![
            client.clone(),
            scope.service.clone(),
            scope.operation.clone(),
            scope.model.clone(),
            grouped(count),
            found.get(scope).map_or("", reason).to_owned(),
        ]
    }));
    let mut lines = table(&cells, &[false, false, false, false, true]);
    let total: i64 = rows.values().sum();
    lines.push(String::new());
    lines.push(format!("{} events from {start} to {end} are not included in any cost. To fix this:", grouped(total)));
    let scopes: std::collections::BTreeSet<_> = rows.keys().map(|key| &key.scope).collect();
    let mut remedies: Vec<String> = vec![];
    for scope in scopes {
        let remedy = remedy(scope, found.get(scope));
        let line = match remedy.starts_with("meterd ") {
            true => format!("  {remedy}"),
            false => format!("  {}: {remedy}", scope.text()),
        };
        if !remedies.contains(&line) {
            remedies.push(line);
        }
    }
    lines.extend(remedies);
    lines
}

/// Converts a row to JSON.
pub fn to_json(key: &UnpricedKey, count: i64, event: Option<&RecordedUsageEvent>) -> serde_json::Value {
    json!({
        "client_id": key.client,
        "service": key.scope.service,
        "operation": key.scope.operation,
        "model": key.scope.model,
        "unpriced_event_count": count,
        "reason": event.map(reason),
    })
}

fn to_csv(rows: &BTreeMap<UnpricedKey, i64>, found: &BTreeMap<Scope, RecordedUsageEvent>) -> anyhow::Result<String> {
    let header = ["client_id", "service", "operation", "model", "unpriced_event_count", "reason"];
    let cells = rows.iter().map(|(UnpricedKey { client, scope }, count)| {
        vec![
            Cell::text(client),
            Cell::text(&scope.service),
            Cell::text(&scope.operation),
            Cell::text(&scope.model),
            Cell::plain(count),
            Cell::plain(found.get(scope).map_or("", reason)),
        ]
    });
    sheet::csv(&sheet::header(&header), &cells.collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{UnpricedReason, UsageEvent};

    fn scope(service: &str, operation: &str, model: &str) -> Scope {
        Scope { service: service.into(), operation: operation.into(), model: model.into() }
    }

    fn event(reason: UnpricedReason, input_tokens: i64) -> RecordedUsageEvent {
        let event = Some(UsageEvent { input_tokens, ..Default::default() });
        RecordedUsageEvent { event, unpriced_reason: reason.into(), ..Default::default() }
    }

    #[test]
    fn unpriced_usage_is_shown_with_its_reason_and_one_fix_for_each_model() {
        let key = |client: &str| UnpricedKey { client: client.into(), scope: scope("openai", "chat", "gpt-9") };
        let rows = BTreeMap::from([(key("acme"), 3), (key("beta"), 1_000)]);
        let found = BTreeMap::from([(scope("openai", "chat", "gpt-9"), event(UnpricedReason::NoPrice, 1))]);
        let day = |text: &str| text.parse().unwrap();
        let lines = to_text(&rows, &found, day("2026-11-01"), day("2026-11-30"));
        assert_eq!(lines[1], "acme    openai   chat       gpt-9       3  NO_PRICE");
        assert_eq!(lines[4], "1,003 events from 2026-11-01 to 2026-11-30 are not included in any cost. To fix this:");
        assert_eq!(lines.len(), 6, "{lines:?}");
        let file = to_csv(&rows, &found).unwrap();
        assert!(file.ends_with("beta,openai,chat,gpt-9,1000,NO_PRICE\r\n"), "{file}");
        assert_eq!(scope("openai", "chat", "gpt-9").text(), "openai gpt-9 (chat)");
    }
}
