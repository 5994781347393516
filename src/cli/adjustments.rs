//! `meterd adjustments`: lists the changes of recorded events.

use super::connect::{self, ConnectArgs};
use super::explain::adjustment_text;
use super::time::time_text;
use crate::proto::{Adjustment, ListAdjustmentsRequest, Money};
use clap::Args;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::process::ExitCode;

const CALL_SECONDS: u64 = 30;
const PAGE_SIZE: usize = 1_000;

/// Arguments of `adjustments`.
#[derive(Args, Clone, Debug)]
pub struct AdjustmentsArgs {
    /// Id of the client
    #[arg(value_name = "CLIENT")]
    pub client: String,
    /// Only adjustments of this event
    #[arg(long, value_name = "EVENT_ID")]
    pub event: Option<String>,
    /// Only adjustments by this run of `meterd prices reprice`
    #[arg(long, value_name = "RUN_ID")]
    pub run: Option<String>,
    /// Maximum number of adjustments
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub limit: u32,
    /// Print JSON, one adjustment per line
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// Prints the adjustments, the oldest first.
pub async fn run(args: AdjustmentsArgs) -> anyhow::Result<ExitCode> {
    let mut client = connect::usage_client(args.connect.channel().await?);
    let (mut adjustments, mut page_token) = (vec![], String::new());
    loop {
        let left = args.limit as usize - adjustments.len();
        let request = ListAdjustmentsRequest {
            client_id: args.client.clone(),
            event_id: args.event.clone().unwrap_or_default(),
            run_id: args.run.clone().unwrap_or_default(),
            page_size: left.min(PAGE_SIZE) as i32,
            page_token,
            ..Default::default()
        };
        let answer = client.list_adjustments(args.connect.request(request, CALL_SECONDS)).await;
        let page = answer.map_err(|status| connect::status_error(&status))?.into_inner();
        adjustments.extend(page.adjustments);
        page_token = page.next_page_token;
        if page_token.is_empty() || adjustments.len() >= args.limit as usize {
            break;
        }
    }
    match args.json {
        true => adjustments.iter().for_each(|adjustment| println!("{}", to_json(adjustment))),
        false if adjustments.is_empty() => println!("no adjustments"),
        false => adjustments.iter().for_each(|adjustment| {
            println!("{}  {}", adjustment.event_id, adjustment_text(adjustment));
        }),
    }
    if !args.json && !page_token.is_empty() {
        println!("there are newer adjustments: increase --limit");
    }
    Ok(ExitCode::SUCCESS)
}

fn to_json(adjustment: &Adjustment) -> Value {
    let amount = |money: &Option<Money>| money.as_ref().map(|money| money.amount.clone());
    let changes: BTreeMap<&str, [&str; 2]> = adjustment
        .changes
        .iter()
        .map(|change| (change.field.as_str(), [change.old_value.as_str(), change.new_value.as_str()]))
        .collect();
    json!({
        "eventId": adjustment.event_id,
        "number": adjustment.number,
        "kind": adjustment.kind().as_str_name().trim_start_matches("ADJUSTMENT_KIND_"),
        "oldCharge": amount(&adjustment.old_charge),
        "oldPriceId": adjustment.old_price_id,
        "newCharge": amount(&adjustment.new_charge),
        "tierResidue": amount(&adjustment.tier_residue),
        "newPriceId": adjustment.new_price_id,
        "changes": changes,
        "reason": adjustment.reason,
        "actor": adjustment.actor,
        "runId": adjustment.run_id,
        "adjustTime": time_text(adjustment.adjust_time.as_ref()),
    })
}
