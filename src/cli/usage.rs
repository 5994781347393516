//! `meterd usage`: shows the usage of a client as a table with bars.

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::{bail, ensure};
use bigdecimal::{BigDecimal, Zero};
use chrono::NaiveDate;
use clap::Args;
use serde_json::json;

use super::chart::{bar, grouped, shown_amount, table};
use super::connect::{self, ConnectArgs, Connection};
use super::forecast::{forecast_json, forecast_lines};
use super::hints;
use super::money::money_text;
pub use super::money::{amount_of, money_json};
use super::period::PeriodArgs;
use super::unpriced::{self, UnpricedKey};
use crate::proto::{
    DayUsage, GetClientRequest, GetCurrentMonthUsageRequest, GetCurrentMonthUsageResponse, GetUsageSummaryRequest,
    GetUsageSummaryResponse, ServiceUsage, UsageTotals,
};
use meterd_domain::period::{Month, day_of};
use meterd_engine::clock::Clock;

const CALL_SECONDS: u64 = 30;
const BAR_WIDTH: u32 = 30;
/// Longer ranges have one bar for each month.
const DAY_BARS_MAX: i64 = 92;

/// Arguments of `usage`.
#[derive(Args, Clone, Debug)]
pub struct UsageArgs {
    /// Id of the client
    #[arg(value_name = "CLIENT")]
    pub client: String,
    #[command(flatten)]
    pub period: PeriodArgs,
    /// Print JSON, with exact amounts
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// Prints the usage of the current month or of the range of days.
pub async fn run(args: UsageArgs) -> anyhow::Result<ExitCode> {
    let days = args.period.days()?;
    let channel = args.connect.channel().await?;
    match days {
        (None, None) => current_month(&args, &channel).await?,
        (Some(start), Some(end)) => range(&args, &channel, start, end).await?,
        (Some(start), None) => {
            let today = today(&args, &channel).await?;
            ensure!(
                start <= today,
                "--start {start} is in the future: it must not be after today, which is {today} for this client"
            );
            range(&args, &channel, start, today).await?;
        }
        (None, Some(end)) => bail!("--end {end} needs --start: add the first day of the range"),
    }
    Ok(ExitCode::SUCCESS)
}

async fn current_month(args: &UsageArgs, channel: &Connection) -> anyhow::Result<()> {
    let mut client = connect::usage_client(channel.clone());
    let request = GetCurrentMonthUsageRequest { client_id: args.client.clone(), ..Default::default() };
    let month = match client.get_current_month_usage(args.connect.request(request, CALL_SECONDS)).await {
        Ok(answer) => answer.into_inner(),
        Err(status) => return Err(hints::client_error(&args.connect, channel, &status, &args.client).await),
    };
    let days = Month::parse(&month.month).map(|month| (month.first_day(), month.last_day()));
    let unpriced = unpriced_of(args, channel, month.totals.as_ref(), days).await?;
    if args.json {
        println!("{}", with_unpriced(month_json(&month), &unpriced));
        return Ok(());
    }
    println!("{}", month_text(&month, &unpriced)?);
    if month.services.is_empty() {
        println!("{}", hint(args, channel, days.map(|(_, last)| last)).await);
    }
    Ok(())
}

async fn range(args: &UsageArgs, channel: &Connection, start: NaiveDate, end: NaiveDate) -> anyhow::Result<()> {
    let mut client = connect::usage_client(channel.clone());
    let request = GetUsageSummaryRequest {
        client_id: args.client.clone(),
        start_date: start.to_string(),
        end_date: end.to_string(),
        top_operation_count: 0,
    };
    let summary = match client.get_usage_summary(args.connect.request(request, CALL_SECONDS)).await {
        Ok(answer) => answer.into_inner(),
        Err(status) => return Err(hints::client_error(&args.connect, channel, &status, &args.client).await),
    };
    let unpriced = unpriced_of(args, channel, summary.totals.as_ref(), Some((start, end))).await?;
    if args.json {
        println!("{}", with_unpriced(summary_json(&summary), &unpriced));
        return Ok(());
    }
    if summary.services.is_empty() {
        println!("{}  {} to {} ({})", summary.client_id, start, end, summary.time_zone);
        println!("no usage");
        println!("{}", hint(args, channel, Some(end)).await);
        return Ok(());
    }
    println!("{}", summary_text(&summary, &unpriced, start, end)?);
    Ok(())
}

/// Returns the current day in the client's time zone.
async fn today(args: &UsageArgs, channel: &Connection) -> anyhow::Result<NaiveDate> {
    let mut clients = connect::clients_client(channel.clone());
    let request = GetClientRequest { client_id: args.client.clone() };
    let client = match clients.get_client(args.connect.request(request, CALL_SECONDS)).await {
        Ok(answer) => answer.into_inner().client.unwrap_or_default(),
        Err(status) => return Err(hints::client_error(&args.connect, channel, &status, &args.client).await),
    };
    Ok(day_of(Clock::system().now(), client.time_zone.parse()?))
}

/// Describes the months with usage.
async fn hint(args: &UsageArgs, channel: &Connection, until: Option<NaiveDate>) -> String {
    let months = hints::months_with_usage(&args.connect, channel, Some(&args.client), until).await;
    hints::elsewhere(&months)
}

/// Returns the number of unpriced events by model. Calls the server only if there are unpriced events.
async fn unpriced_of(
    args: &UsageArgs,
    channel: &Connection,
    totals: Option<&UsageTotals>,
    days: Option<(NaiveDate, NaiveDate)>,
) -> anyhow::Result<BTreeMap<UnpricedKey, i64>> {
    let count = totals.map_or(0, |totals| totals.unpriced_event_count);
    match days {
        Some((start, end)) if count > 0 => {
            unpriced::rows(&args.connect, channel, std::slice::from_ref(&args.client), start, end).await
        }
        _ => Ok(BTreeMap::new()),
    }
}

fn month_text(month: &GetCurrentMonthUsageResponse, unpriced: &BTreeMap<UnpricedKey, i64>) -> anyhow::Result<String> {
    let totals = month.totals.clone().unwrap_or_default();
    let mut lines = vec![
        format!("{}  {} ({})", month.client_id, month.month, month.time_zone),
        format!(
            "day {} of {}: {} so far, {} projected",
            month.days_elapsed,
            month.days_elapsed + month.days_remaining,
            money_text(totals.cost.as_ref())?,
            money_text(month.projected_cost.as_ref())?
        ),
    ];
    if let Some(forecast) = &month.forecast {
        lines.extend(forecast_lines(forecast)?);
    }
    lines.extend(totals_lines(&totals, &month.measures, unpriced));
    lines.push(String::new());
    lines.extend(services_lines(&month.services)?);
    Ok(lines.join("\n"))
}

fn summary_text(
    summary: &GetUsageSummaryResponse,
    unpriced: &BTreeMap<UnpricedKey, i64>,
    start: NaiveDate,
    end: NaiveDate,
) -> anyhow::Result<String> {
    let totals = summary.totals.clone().unwrap_or_default();
    let mut lines = vec![
        format!("{}  {} to {} ({})", summary.client_id, summary.start_date, summary.end_date, summary.time_zone),
        format!("{} in total", money_text(totals.cost.as_ref())?),
    ];
    lines.extend(totals_lines(&totals, &summary.measures, unpriced));
    lines.push(String::new());
    lines.extend(services_lines(&summary.services)?);
    lines.push(String::new());
    lines.extend(day_lines(&summary.days, start, end)?);
    if !summary.top_operations.is_empty() {
        lines.push(String::new());
        let mut rows = vec![["operation", "requests", "cost"].map(str::to_owned).to_vec()];
        for operation in &summary.top_operations {
            let totals = operation.totals.clone().unwrap_or_default();
            let name = match operation.operation.is_empty() {
                true => operation.service.clone(),
                false => format!("{} {}", operation.service, operation.operation),
            };
            rows.push(vec![name, grouped(totals.request_count), shown_amount(&cost_of(&totals)?)]);
        }
        lines.extend(table(&rows, &[false, true, true]));
    }
    Ok(lines.join("\n"))
}

/// Maximum number of models without a price that are listed.
const UNPRICED_SHOWN_MAX: usize = 10;

fn totals_lines(
    totals: &UsageTotals,
    measures: &BTreeMap<String, String>,
    unpriced: &BTreeMap<UnpricedKey, i64>,
) -> Vec<String> {
    let mut lines = vec![format!(
        "{} requests, {} input tokens ({} cached), {} output tokens",
        grouped(totals.request_count),
        grouped(totals.input_tokens),
        grouped(totals.cached_input_tokens),
        grouped(totals.output_tokens)
    )];
    if !measures.is_empty() {
        let measures: Vec<String> = measures.iter().map(|(name, sum)| format!("{name} {sum}")).collect();
        lines.push(measures.join(", "));
    }
    if totals.unpriced_event_count > 0 {
        let count = grouped(totals.unpriced_event_count);
        lines.push(format!(
            "{count} events have no price yet and are not included in the cost (see `meterd unpriced`):"
        ));
        let named = unpriced.iter().take(UNPRICED_SHOWN_MAX);
        lines.extend(named.map(|(key, count)| format!("  {}: {} events", key.scope.text(), grouped(count))));
        if unpriced.len() > UNPRICED_SHOWN_MAX {
            lines.push(format!("  and {} more", unpriced.len() - UNPRICED_SHOWN_MAX));
        }
    }
    lines
}

fn services_lines(services: &[ServiceUsage]) -> anyhow::Result<Vec<String>> {
    if services.is_empty() {
        return Ok(vec!["no usage".to_owned()]);
    }
    let costs = services
        .iter()
        .map(|service| cost_of(&service.totals.clone().unwrap_or_default()))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let max = costs.iter().max().cloned().unwrap_or_default();
    let mut rows = vec![["service", "requests", "units", "cost"].map(str::to_owned).to_vec()];
    for (service, cost) in services.iter().zip(&costs) {
        let totals = service.totals.clone().unwrap_or_default();
        rows.push(vec![
            service.service.clone(),
            grouped(totals.request_count),
            totals.units,
            shown_amount(cost),
            bar(cost, &max, BAR_WIDTH),
        ]);
    }
    Ok(table(&rows, &[false, true, true, true]))
}

/// Returns a line with a bar for each day of the range, also for days without usage. Long ranges have a line for each month.
fn day_lines(days: &[DayUsage], start: NaiveDate, end: NaiveDate) -> anyhow::Result<Vec<String>> {
    let by_day = (end - start).num_days() < DAY_BARS_MAX;
    let label = |day: &str| day.get(..if by_day { 10 } else { 7 }).unwrap_or(day).to_owned();
    let mut costs: std::collections::BTreeMap<String, BigDecimal> = start
        .iter_days()
        .take_while(|day| *day <= end)
        .map(|day| (label(&day.to_string()), BigDecimal::zero()))
        .collect();
    for day in days {
        *costs.entry(label(&day.day)).or_default() += cost_of(&day.totals.clone().unwrap_or_default())?;
    }
    let max = costs.values().max().cloned().unwrap_or_default();
    let rows: Vec<Vec<String>> =
        costs.into_iter().map(|(label, cost)| vec![label, shown_amount(&cost), bar(&cost, &max, BAR_WIDTH)]).collect();
    Ok(table(&rows, &[false, true]))
}

/// Returns the cost of the totals.
pub fn cost_of(totals: &UsageTotals) -> anyhow::Result<BigDecimal> {
    amount_of(totals.cost.as_ref())
}

fn month_json(month: &GetCurrentMonthUsageResponse) -> serde_json::Value {
    json!({
        "client_id": month.client_id,
        "month": month.month,
        "time_zone": month.time_zone,
        "totals": month.totals.as_ref().map(totals_json),
        "projected_cost": month.projected_cost.as_ref().map(money_json),
        "days_elapsed": month.days_elapsed,
        "days_remaining": month.days_remaining,
        "forecast": month.forecast.as_ref().map(forecast_json),
        "services": month.services.iter().map(service_json).collect::<Vec<_>>(),
        "measures": month.measures,
    })
}

fn summary_json(summary: &GetUsageSummaryResponse) -> serde_json::Value {
    let totals = |totals: &Option<UsageTotals>| totals.as_ref().map(totals_json);
    let days = summary.days.iter();
    let operations = summary.top_operations.iter();
    json!({
        "client_id": summary.client_id,
        "start_date": summary.start_date,
        "end_date": summary.end_date,
        "time_zone": summary.time_zone,
        "totals": totals(&summary.totals),
        "services": summary.services.iter().map(service_json).collect::<Vec<_>>(),
        "measures": summary.measures,
        "days": days.map(|day| json!({ "day": day.day, "totals": totals(&day.totals) })).collect::<Vec<_>>(),
        "top_operations": operations
            .map(|of| json!({ "service": of.service, "operation": of.operation, "totals": totals(&of.totals) }))
            .collect::<Vec<_>>(),
    })
}

/// Adds the unpriced events to the JSON object.
fn with_unpriced(mut json: serde_json::Value, unpriced: &BTreeMap<UnpricedKey, i64>) -> serde_json::Value {
    let rows = unpriced.iter().map(|(key, count)| {
        json!({
            "service": key.scope.service,
            "operation": key.scope.operation,
            "model": key.scope.model,
            "unpriced_event_count": count,
        })
    });
    json["unpriced"] = rows.collect();
    json
}

fn service_json(service: &ServiceUsage) -> serde_json::Value {
    json!({
        "service": service.service,
        "display_name": service.display_name,
        "totals": service.totals.as_ref().map(totals_json),
        "projected_cost": service.projected_cost.as_ref().map(money_json),
    })
}

/// Converts totals to JSON.
pub fn totals_json(totals: &UsageTotals) -> serde_json::Value {
    json!({
        "request_count": totals.request_count,
        "units": totals.units,
        "input_tokens": totals.input_tokens,
        "output_tokens": totals.output_tokens,
        "cached_input_tokens": totals.cached_input_tokens,
        "cost": totals.cost.as_ref().map(money_json),
        "unpriced_event_count": totals.unpriced_event_count,
    })
}

#[cfg(test)]
#[path = "usage_tests.rs"]
mod tests;
