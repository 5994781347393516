//! `meterd summary`: shows the costs of all clients in a month, by service, with the change and the projection.

mod csv;
mod overview;
mod table;

use super::connect::{self, ConnectArgs, Connection};
use super::hints;
use super::period::parse_month;
use super::sheet;
use super::usage::{money_json, totals_json};
use crate::proto::usage_service_client::UsageServiceClient;
use crate::proto::{ListMonthlySummariesRequest, MonthlySummary, UpdateMonthlySummariesRequest};
use clap::Args;
use meterd_domain::period::{Month, day_of};
use meterd_engine::clock::Clock;
use overview::Overview;
use serde_json::json;
use std::collections::HashSet;
use std::process::ExitCode;

const CALL_SECONDS: u64 = 60;
const REFRESH_SECONDS: u64 = 600;
const PAGE_SIZE: i32 = 1_000;
/// Maximum number of attempts to read all pages without a missing client.
const READS_MAX: usize = 5;

/// Arguments of `summary`.
#[derive(Args, Clone, Debug)]
pub struct SummaryArgs {
    /// The month in each client's time zone, such as 2026-11 [default: the current month]
    #[arg(long, value_name = "YYYY-MM", value_parser = parse_month)]
    pub month: Option<Month>,
    /// Only this client
    #[arg(long, default_value = "", value_name = "ID", hide_default_value = true)]
    pub client: String,
    /// Update the summaries first; needs an admin key
    #[arg(long)]
    pub refresh: bool,
    /// Exit with 0 if the month has no usage; the CSV output is then only the header, the JSON output is empty
    #[arg(long)]
    pub allow_empty: bool,
    /// Print CSV, with exact amounts and a column for each service
    #[arg(long, conflicts_with = "json")]
    pub csv: bool,
    /// Print JSON, one client per line
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// Prints the month.
pub async fn run(args: SummaryArgs) -> anyhow::Result<ExitCode> {
    let channel = args.connect.channel().await?;
    let mut usage = connect::usage_client(channel.clone());
    let month = args.month.map(|month| month.to_string()).unwrap_or_default();
    if !args.client.is_empty() {
        hints::check_clients(&args.connect, &channel, std::slice::from_ref(&args.client)).await?;
    }
    if args.refresh {
        let request = UpdateMonthlySummariesRequest { client_id: args.client.clone(), month: month.clone() };
        let done = usage.update_monthly_summaries(args.connect.request(request, REFRESH_SECONDS)).await;
        done.map_err(|status| connect::status_error(&status))?;
    }
    let overview = read_whole(&args, &mut usage, &month).await?;
    let is_empty = overview.clients.is_empty();
    if is_empty && !args.allow_empty {
        return Err(nothing_to_show(&args, &channel).await);
    }
    if args.json {
        overview.clients.iter().for_each(|row| println!("{}", to_json(&row.message)));
    } else if args.csv {
        println!("{}", sheet::lines(&overview.to_csv()?));
    } else if is_empty {
        println!("{}", why_empty(&args, &channel).await);
    } else {
        overview.to_text()?.iter().for_each(|line| println!("{line}"));
    }
    Ok(ExitCode::SUCCESS)
}

/// The error for a month without summaries. An empty report could be mistaken for a report without costs.
async fn nothing_to_show(args: &SummaryArgs, channel: &Connection) -> anyhow::Error {
    anyhow::anyhow!(
        "nothing to show: {}. Add --allow-empty to exit with 0 in this case",
        why_empty(args, channel).await
    )
}

/// Explains why there are no summaries, with a hint.
async fn why_empty(args: &SummaryArgs, channel: &Connection) -> String {
    let client = (!args.client.is_empty()).then_some(args.client.as_str());
    let months = hints::months_with_usage(&args.connect, channel, client, None).await;
    let month = args.month.unwrap_or_else(|| Month::of(day_of(Clock::system().now(), chrono_tz::UTC)));
    if months.contains(&month.to_string()) {
        return format!("the summaries of {month} do not exist yet: retry in a minute, or add --refresh");
    }
    let whose = client.map(|client| format!(" of client {client:?}")).unwrap_or_default();
    format!("no usage{whose} in {month}; {}", hints::elsewhere(&months))
}

/// Reads all pages, and reads them again if a client is missing. A client whose cost changes can move from a later page to an
/// earlier one.
async fn read_whole(
    args: &SummaryArgs,
    usage: &mut UsageServiceClient<Connection>,
    month: &str,
) -> anyhow::Result<Overview> {
    for _ in 0..READS_MAX {
        let (overview, clients) = read(args, usage, month).await?;
        if overview.clients.len() as i64 == clients {
            return Ok(overview);
        }
    }
    anyhow::bail!("costs changed during each of {READS_MAX} attempts to read them: retry when less usage is recorded")
}

/// Reads all pages once. Returns the summaries and the number of clients according to the last page.
async fn read(
    args: &SummaryArgs,
    usage: &mut UsageServiceClient<Connection>,
    month: &str,
) -> anyhow::Result<(Overview, i64)> {
    let mut request = ListMonthlySummariesRequest {
        month: month.to_owned(),
        client_id: args.client.clone(),
        page_size: PAGE_SIZE,
        page_token: String::new(),
    };
    let mut overview = Overview::default();
    // A client whose cost changes between two calls can be on two pages.
    let mut seen = HashSet::new();
    loop {
        let answer = usage.list_monthly_summaries(args.connect.request(request.clone(), CALL_SECONDS)).await;
        let page = answer.map_err(|status| connect::status_error(&status))?.into_inner();
        overview.complete_as_of = overview.complete_as_of.or(page.complete_as_of_time);
        for summary in page.summaries {
            if seen.insert(summary.client_id.clone()) {
                overview.add(summary)?;
            }
        }
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            return Ok((overview, page.totals.map_or(0, |totals| totals.client_count)));
        }
        // Keep the month of the first page, because the next month can begin between two calls.
        if let Some(first) = overview.clients.first() {
            request.month.clone_from(&first.message.month);
        }
    }
}

fn to_json(summary: &MonthlySummary) -> serde_json::Value {
    let services = summary
        .services
        .iter()
        .map(|service| json!({ "service": service.service, "totals": service.totals.as_ref().map(totals_json) }));
    json!({
        "client_id": summary.client_id,
        "display_name": summary.display_name,
        "month": summary.month,
        "totals": summary.totals.as_ref().map(totals_json),
        "last_month_cost": summary.last_month_cost.as_ref().map(money_json),
        "change_percent": summary.change_percent,
        "projected_cost": summary.projected_cost.as_ref().map(money_json),
        "messages": summary.messages,
        "ai_calls": summary.ai_calls,
        "voice_minutes": summary.voice_minutes,
        "services": services.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests;
