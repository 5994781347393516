//! `meterd prices reprice`: charges recorded events by the present prices.

use super::CALL_SECONDS;
use crate::cli::chart::{shown_amount, table};
use crate::cli::connect::{self, ConnectArgs, Connection};
use crate::cli::period::parse_month;
use crate::cli::signals;
use crate::cli::usage::amount_of;
use crate::proto::{
    CancelRepriceRunRequest, CostDifference, GetRepriceRunRequest, GetRepriceRunResponse, RepriceRun,
    RepriceUsageRequest,
};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use meterd_domain::period::Month;
use serde_json::json;
use std::time::Duration;

/// Time between two looks at a run.
const LOOK_EVERY: Duration = Duration::from_millis(300);
const PAGE_SIZE: i32 = 1_000;
/// Maximum number of differences in the table.
const SHOWN_MAX: usize = 50;

/// Arguments of `prices reprice`.
#[derive(Args, Clone, Debug)]
pub struct RepriceArgs {
    /// Month of the events, such as 2026-11
    #[arg(long, value_name = "YYYY-MM", value_parser = parse_month, required_unless_present = "start_month")]
    pub month: Option<Month>,
    /// First month
    #[arg(long, value_name = "YYYY-MM", value_parser = parse_month, conflicts_with = "month", requires = "end_month")]
    pub start_month: Option<Month>,
    /// Last month, included
    #[arg(long, value_name = "YYYY-MM", value_parser = parse_month, requires = "start_month")]
    pub end_month: Option<Month>,
    /// Only this client; repeat the flag for more
    #[arg(long, value_name = "ID")]
    pub client: Vec<String>,
    /// Only this service; repeat the flag for more
    #[arg(long, value_name = "NAME")]
    pub service: Vec<String>,
    /// Only this model, as in the events; repeat the flag for more
    #[arg(long, value_name = "NAME")]
    pub model: Vec<String>,
    /// Change the charges. Without this flag, the command only shows what would change
    #[arg(long, requires = "reason")]
    pub apply: bool,
    /// Why the charges change; it is stored with each change
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
    /// Print JSON, one difference per line
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// Runs until the run of the server has ended, and prints the differences. A signal cancels the run.
pub async fn run(args: RepriceArgs) -> anyhow::Result<()> {
    let channel = args.connect.channel().await?;
    let stop = signals::stop_signal()?;
    let month = |month: Option<Month>| args.month.or(month).map(|month| month.to_string()).unwrap_or_default();
    let request = RepriceUsageRequest {
        start_month: month(args.start_month),
        end_month: month(args.end_month),
        client_ids: args.client.clone(),
        services: args.service.clone(),
        models: args.model.clone(),
        validate_only: !args.apply,
        reason: args.reason.clone().unwrap_or_default(),
        request_id: String::new(),
    };
    let mut catalog = connect::catalog_client(channel.clone());
    let answer = catalog.reprice_usage(args.connect.request(request, CALL_SECONDS)).await;
    let run = answer.map_err(|status| connect::status_error(&status))?.into_inner().run.unwrap_or_default();
    let run_id = run.run_id.clone();
    tokio::select! {
        ended = follow(&args, &channel, run) => drop(ended?),
        () = stop => {
            let request = CancelRepriceRunRequest { run_id: run_id.clone() };
            let cancelled = catalog.cancel_reprice_run(args.connect.request(request, CALL_SECONDS)).await;
            cancelled.map_err(|status| connect::status_error(&status))?;
            anyhow::bail!("run {run_id} is cancelled; what it has changed stays");
        }
    }
    let (report, differences) = all_differences(&args, &channel, &run_id).await?;
    match args.json {
        true => differences.iter().for_each(|difference| println!("{}", to_json(difference))),
        false => print(&args, &report, &differences)?,
    }
    Ok(())
}

/// Shows the progress of a run until it has ended.
async fn follow(args: &RepriceArgs, channel: &Connection, mut run: RepriceRun) -> anyhow::Result<RepriceRun> {
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} events, {msg} {eta}")?;
    // Shown only on a terminal.
    let progress = ProgressBar::new(run.event_count.unsigned_abs()).with_style(style);
    while run.finish_time.is_none() {
        tokio::time::sleep(LOOK_EVERY).await;
        run = page(args, channel, &run.run_id, 1, String::new()).await?.run.unwrap_or_default();
        progress.set_position(run.examined_count.unsigned_abs());
        progress.set_message(format!("{} differ", run.changed_count));
    }
    progress.finish_and_clear();
    Ok(run)
}

async fn page(
    args: &RepriceArgs,
    channel: &Connection,
    run_id: &str,
    page_size: i32,
    page_token: String,
) -> anyhow::Result<GetRepriceRunResponse> {
    let request = GetRepriceRunRequest { run_id: run_id.to_owned(), page_size, page_token };
    let mut catalog = connect::catalog_client(channel.clone());
    let answer = catalog.get_reprice_run(args.connect.request(request, CALL_SECONDS)).await;
    Ok(answer.map_err(|status| connect::status_error(&status))?.into_inner())
}

async fn all_differences(
    args: &RepriceArgs,
    channel: &Connection,
    run_id: &str,
) -> anyhow::Result<(GetRepriceRunResponse, Vec<CostDifference>)> {
    let (mut differences, mut page_token) = (vec![], String::new());
    loop {
        let page = page(args, channel, run_id, PAGE_SIZE, page_token).await?;
        differences.extend(page.differences.iter().cloned());
        if page.next_page_token.is_empty() {
            return Ok((page, differences));
        }
        page_token = page.next_page_token;
    }
}

fn row(difference: &CostDifference) -> anyhow::Result<Vec<String>> {
    let (old, new) = (amount_of(difference.old_cost.as_ref())?, amount_of(difference.new_cost.as_ref())?);
    Ok(vec![
        difference.client_id.clone(),
        difference.service.clone(),
        difference.model.clone(),
        difference.event_count.to_string(),
        shown_amount(&old),
        shown_amount(&new),
        shown_amount(&(new - old)),
    ])
}

fn print(args: &RepriceArgs, report: &GetRepriceRunResponse, differences: &[CostDifference]) -> anyhow::Result<()> {
    let run = report.run.clone().unwrap_or_default();
    let verb = if args.apply { "are charged" } else { "would be charged" };
    println!("{} of {} events {verb} otherwise (run {})", run.changed_count, run.examined_count, run.run_id);
    if differences.is_empty() {
        return Ok(());
    }
    let header = ["client", "service", "model", "events", "cost before", "cost after", "difference"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    for difference in differences.iter().take(SHOWN_MAX) {
        rows.push(row(difference)?);
    }
    let total = CostDifference { client_id: "total".into(), ..report.total.clone().unwrap_or_default() };
    rows.push(row(&total)?);
    table(&rows, &[false, false, false, true, true, true, true]).iter().for_each(|line| println!("{line}"));
    if differences.len() > SHOWN_MAX {
        println!("{} more rows are included in the total; --json shows all", differences.len() - SHOWN_MAX);
    }
    if !args.apply {
        println!("nothing is changed; add --apply --reason TEXT to change the charges");
    }
    Ok(())
}

fn to_json(difference: &CostDifference) -> serde_json::Value {
    json!({
        "client_id": difference.client_id,
        "service": difference.service,
        "model": difference.model,
        "event_count": difference.event_count,
        "old_cost": difference.old_cost.as_ref().map(|cost| &cost.amount),
        "new_cost": difference.new_cost.as_ref().map(|cost| &cost.amount),
    })
}
