//! `meterd usage`: what a client used, as a table with bars.

use std::process::ExitCode;
use std::str::FromStr;

use anyhow::bail;
use bigdecimal::{BigDecimal, Zero};
use chrono::NaiveDate;
use clap::Args;
use serde_json::json;

use super::chart::{bar, grouped, shown_amount, table};
use super::connect::{self, ConnectArgs};
use crate::proto::{
    DayUsage, GetCurrentMonthUsageRequest, GetCurrentMonthUsageResponse, GetUsageSummaryRequest,
    GetUsageSummaryResponse, Money, ServiceUsage, UsageTotals,
};

const CALL_SECONDS: u64 = 30;
const BAR_WIDTH: u32 = 30;
/// More days than these are drawn by month.
const DAY_BARS_MAX: i64 = 92;

/// Show what a client used: the current month, or any days
#[derive(Args, Clone, Debug)]
pub struct UsageArgs {
    /// The client
    #[arg(value_name = "CLIENT")]
    pub client: String,
    /// First day, in the client's time zone
    #[arg(long, value_name = "YYYY-MM-DD", requires = "end")]
    pub start: Option<NaiveDate>,
    /// Last day, included
    #[arg(long, value_name = "YYYY-MM-DD", requires = "start")]
    pub end: Option<NaiveDate>,
    /// Print JSON, with exact amounts
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// Prints the current month, or the given days.
pub async fn run(args: UsageArgs) -> anyhow::Result<ExitCode> {
    let mut client = connect::usage_client(args.connect.channel().await?);
    let client_id = args.client.clone();
    match (args.start, args.end) {
        (Some(start), Some(end)) if start > end => bail!("--start {start} is after --end {end}"),
        (Some(start), Some(end)) => {
            let request = GetUsageSummaryRequest {
                client_id,
                start_date: start.to_string(),
                end_date: end.to_string(),
                top_operation_count: 0,
            };
            let answer = client.get_usage_summary(args.connect.request(request, CALL_SECONDS)).await;
            let summary = answer.map_err(|status| connect::status_error(&status))?.into_inner();
            match args.json {
                true => println!("{}", summary_json(&summary)),
                false => println!("{}", summary_text(&summary, start, end)?),
            }
        }
        _ => {
            let request = GetCurrentMonthUsageRequest { client_id };
            let answer = client.get_current_month_usage(args.connect.request(request, CALL_SECONDS)).await;
            let month = answer.map_err(|status| connect::status_error(&status))?.into_inner();
            match args.json {
                true => println!("{}", month_json(&month)),
                false => println!("{}", month_text(&month)?),
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn month_text(month: &GetCurrentMonthUsageResponse) -> anyhow::Result<String> {
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
    lines.extend(totals_lines(&totals));
    lines.push(String::new());
    lines.extend(services_lines(&month.services)?);
    Ok(lines.join("\n"))
}

fn summary_text(summary: &GetUsageSummaryResponse, start: NaiveDate, end: NaiveDate) -> anyhow::Result<String> {
    let totals = summary.totals.clone().unwrap_or_default();
    let mut lines = vec![
        format!("{}  {} to {} ({})", summary.client_id, summary.start_date, summary.end_date, summary.time_zone),
        format!("{} in all", money_text(totals.cost.as_ref())?),
    ];
    lines.extend(totals_lines(&totals));
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

fn totals_lines(totals: &UsageTotals) -> Vec<String> {
    let mut lines = vec![format!(
        "{} requests, {} input tokens ({} cached), {} output tokens",
        grouped(totals.request_count),
        grouped(totals.input_tokens),
        grouped(totals.cached_input_tokens),
        grouped(totals.output_tokens)
    )];
    if totals.unpriced_event_count > 0 {
        lines
            .push(format!("{} events have no price yet and are not in the cost", grouped(totals.unpriced_event_count)));
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

/// A bar for each day of the range, those without usage too, or for each month when there are many days.
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

fn cost_of(totals: &UsageTotals) -> anyhow::Result<BigDecimal> {
    amount_of(totals.cost.as_ref())
}

fn amount_of(money: Option<&Money>) -> anyhow::Result<BigDecimal> {
    Ok(match money {
        Some(money) => BigDecimal::from_str(&money.amount)?,
        None => BigDecimal::zero(),
    })
}

fn money_text(money: Option<&Money>) -> anyhow::Result<String> {
    let currency = money.map_or("", |money| money.currency.as_str());
    Ok(format!("{} {currency}", shown_amount(&amount_of(money)?)).trim_end().to_owned())
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
        "services": month.services.iter().map(service_json).collect::<Vec<_>>(),
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
        "days": days.map(|day| json!({ "day": day.day, "totals": totals(&day.totals) })).collect::<Vec<_>>(),
        "top_operations": operations
            .map(|of| json!({ "service": of.service, "operation": of.operation, "totals": totals(&of.totals) }))
            .collect::<Vec<_>>(),
    })
}

fn service_json(service: &ServiceUsage) -> serde_json::Value {
    json!({
        "service": service.service,
        "display_name": service.display_name,
        "totals": service.totals.as_ref().map(totals_json),
        "projected_cost": service.projected_cost.as_ref().map(money_json),
    })
}

fn totals_json(totals: &UsageTotals) -> serde_json::Value {
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

fn money_json(money: &Money) -> serde_json::Value {
    json!({ "currency": money.currency, "amount": money.amount })
}

#[cfg(test)]
#[path = "usage_tests.rs"]
mod tests;
