//! The cost of days by price.

use crate::cli::chart::{grouped, table};
use crate::cli::connect::{self, ConnectArgs, Connection};
use crate::cli::explain::money;
use crate::cli::period::PeriodArgs;
use crate::proto::{ExplainUsageRequest, ExplainedPrice, ListUsageEventsRequest, RecordedUsageEvent};
use clap::Args;
use std::process::ExitCode;

const CALL_SECONDS: u64 = 120;
/// Maximum number of events that are listed for a price.
const EVENTS_SHOWN_MAX: i32 = 100;

/// Flags of `explain` for days.
#[derive(Args, Clone, Debug)]
pub struct UsageArgs {
    #[command(flatten)]
    pub period: PeriodArgs,
    /// Only this service; repeat the flag for more
    #[arg(long, value_name = "NAME")]
    pub service: Vec<String>,
    /// Only this model; repeat the flag for more
    #[arg(long, value_name = "NAME")]
    pub model: Vec<String>,
    /// List the events of each price, the newest first, at most 100
    #[arg(long)]
    pub events: bool,
}

/// Prints each price with its quantities, rates and amounts.
pub async fn run(client: &str, args: &UsageArgs, connect: &ConnectArgs) -> anyhow::Result<ExitCode> {
    let (start, end) = args.period.days()?;
    let start = start.ok_or_else(|| {
        anyhow::anyhow!("add EVENT_ID for the charge of an event, or --month or --start for the cost of days")
    })?;
    let end = end.unwrap_or(start);
    let channel = connect.channel().await?;
    let request = ExplainUsageRequest {
        client_id: client.to_owned(),
        start_date: start.to_string(),
        end_date: end.to_string(),
        services: args.service.clone(),
        models: args.model.clone(),
        ..Default::default()
    };
    let answer = connect::usage_client(channel.clone()).explain_usage(connect.request(request, CALL_SECONDS)).await;
    let explained = answer.map_err(|status| connect::status_error(&status))?.into_inner();
    if explained.prices.is_empty() {
        println!("no usage from {start} to {end}");
    }
    for price in &explained.prices {
        println!("{}", text(price)?);
        if args.events && !price.price_id.is_empty() {
            for recorded in events(client, price, connect, &channel).await? {
                println!("  {}  {}  {}", recorded.event_id, recorded.day, money(recorded.charge.as_ref()));
            }
        }
    }
    if explained.has_more {
        eprintln!("note: there are more prices: add --service or --model, or choose fewer days");
    }
    Ok(ExitCode::SUCCESS)
}

fn text(price: &ExplainedPrice) -> anyhow::Result<String> {
    let of = [&price.service, &price.operation, &price.model];
    let of: Vec<&str> = of.into_iter().map(String::as_str).filter(|name| !name.is_empty()).collect();
    let of_price = match price.price_id.as_str() {
        "" => "without a charge".to_owned(),
        id => format!("price {id}, {}", money(price.cost.as_ref())),
    };
    let mut lines = vec![format!("{}: {} events, {of_price}", of.join(" "), grouped(price.event_count))];
    let mut rows: Vec<Vec<String>> = price
        .components
        .iter()
        .map(|line| {
            vec![format!("  {}", line.component), line.quantity.clone(), line.rate.clone(), line.amount.clone()]
        })
        .collect();
    let others =
        [("by tiers", &price.tier_charge), ("remains in tiers", &price.tier_residue), ("rounding", &price.rounding)];
    rows.extend(others.into_iter().filter_map(|(name, money)| {
        Some(vec![format!("  {name}"), String::new(), String::new(), money.as_ref()?.amount.clone()])
    }));
    if !rows.is_empty() {
        rows.insert(0, ["", "quantity", "rate", "amount"].map(str::to_owned).to_vec());
        lines.extend(table(&rows, &[false, true, true, true]));
    }
    Ok(lines.join("\n"))
}

async fn events(
    client: &str,
    price: &ExplainedPrice,
    connect: &ConnectArgs,
    channel: &Connection,
) -> anyhow::Result<Vec<RecordedUsageEvent>> {
    let request = ListUsageEventsRequest {
        client_id: client.to_owned(),
        services: vec![price.service.clone()],
        operations: vec![price.operation.clone()],
        models: vec![price.model.clone()],
        price_id: price.price_id.clone(),
        page_size: EVENTS_SHOWN_MAX,
        ..Default::default()
    };
    let answer = connect::usage_client(channel.clone()).list_usage_events(connect.request(request, CALL_SECONDS)).await;
    Ok(answer.map_err(|status| connect::status_error(&status))?.into_inner().events)
}
