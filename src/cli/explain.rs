//! `meterd explain`: shows where the charge of an event, or the cost of days, comes from.

mod usage;

use super::chart::table;
use super::connect::{self, ConnectArgs};
use super::time::time_text;
use crate::proto::{Adjustment, AdjustmentKind, ExplainChargeRequest, ExplainChargeResponse, Money};
use clap::Args;
use std::process::ExitCode;

const CALL_SECONDS: u64 = 30;

/// Arguments of `explain`.
#[derive(Args, Clone, Debug)]
pub struct ExplainArgs {
    /// Id of the client
    #[arg(value_name = "CLIENT")]
    pub client: String,
    /// Id of the event, as in an export
    #[arg(value_name = "EVENT_ID", conflicts_with_all = ["month", "start", "end"])]
    pub event: Option<String>,
    /// Explain the cost of days instead, by price
    #[command(flatten)]
    pub usage: usage::UsageArgs,
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// Prints the event, its price, the components of the charge, and its adjustments.
pub async fn run(args: ExplainArgs) -> anyhow::Result<ExitCode> {
    let Some(event_id) = args.event.clone() else {
        return usage::run(&args.client, &args.usage, &args.connect).await;
    };
    let request = ExplainChargeRequest { client_id: args.client.clone(), event_id };
    let mut usage = connect::usage_client(args.connect.channel().await?);
    let answer = usage.explain_charge(args.connect.request(request, CALL_SECONDS)).await;
    let explained = answer.map_err(|status| connect::status_error(&status))?.into_inner();
    println!("{}", text(&explained));
    Ok(ExitCode::SUCCESS)
}

/// Describes a charge.
pub fn money(money: Option<&Money>) -> String {
    money.map_or_else(|| "no charge".to_owned(), |money| format!("{} {}", money.amount, money.currency))
}

fn text(explained: &ExplainChargeResponse) -> String {
    let recorded = explained.event.clone().unwrap_or_default();
    let event = recorded.event.clone().unwrap_or_default();
    let of = [&event.service, &event.operation, &event.model, &event.service_tier];
    let of: Vec<&str> = of.into_iter().map(String::as_str).filter(|name| !name.is_empty()).collect();
    let mut lines = vec![
        format!("{}  {}  {}", recorded.event_id, recorded.day, of.join(" ")),
        format!("charge {}", money(recorded.charge.as_ref())),
    ];
    if let Some(residue) = &recorded.tier_residue {
        lines.push(format!(
            "{} {} in addition: what remains in the tiers of the month, because later events keep their charges",
            residue.amount, residue.currency
        ));
    }
    if let Some(time) = &recorded.void_time {
        lines.push(format!("voided at {}: it counts in no sum", time_text(Some(time))));
    }
    if recorded.charge.is_none() {
        let reason = recorded.unpriced_reason().as_str_name();
        lines.push(format!("unpriced: {}", reason.trim_start_matches("UNPRICED_REASON_")));
    } else {
        let plan = match explained.price_plan_id.as_str() {
            "" => String::new(),
            plan => format!("plan {plan}"),
        };
        let parts = [
            &explained.price_client_id,
            &plan,
            &explained.price_service,
            &explained.price_operation,
            &explained.price_model,
            &explained.price_service_tier,
        ];
        let parts: Vec<&str> = parts.into_iter().map(String::as_str).filter(|name| !name.is_empty()).collect();
        let bound = explained.price_above_input_tokens.map(|bound| format!(" above {bound} input tokens"));
        let from = match &explained.price_effective_time {
            None => "the beginning".to_owned(),
            time => time_text(time.as_ref()),
        };
        let withdrawn = if explained.price_withdraw_time.is_some() { ", withdrawn since" } else { "" };
        let bound = bound.unwrap_or_default();
        lines.push(format!(
            "price {} of {}{bound}, in force from {from}{withdrawn}",
            recorded.price_id,
            parts.join(" ")
        ));
        let mut rows = vec![["", "quantity", "rate", "amount"].map(str::to_owned).to_vec()];
        rows.extend(explained.components.iter().map(|line| {
            let component = match line.tier_above.as_str() {
                "" => line.component.clone(),
                above => format!("{} above {above}", line.component),
            };
            vec![component, line.quantity.clone(), line.rate.clone(), line.amount.clone()]
        }));
        lines.extend(table(&rows, &[false, true, true, true]));
    }
    lines.extend(explained.adjustments.iter().map(adjustment_text));
    lines.join("\n")
}

/// Describes an adjustment in a line.
pub fn adjustment_text(adjustment: &Adjustment) -> String {
    let kind = match adjustment.kind() {
        AdjustmentKind::Void => "voided".to_owned(),
        AdjustmentKind::Correction => "corrected".to_owned(),
        AdjustmentKind::Reprice => format!("charged by other prices (run {})", adjustment.run_id),
        AdjustmentKind::LatePrice => "charged by a later price".to_owned(),
        AdjustmentKind::Unspecified => "changed".to_owned(),
    };
    let changes = adjustment.changes.iter().map(|change| {
        let shown = |value: &str| if value.is_empty() { "none".to_owned() } else { value.to_owned() };
        format!(", {} {} to {}", change.field, shown(&change.old_value), shown(&change.new_value))
    });
    let residue = adjustment.tier_residue.as_ref();
    let residue = residue.map(|residue| format!(", {} {} remain in the tiers", residue.amount, residue.currency));
    format!(
        "{} {kind}: {} to {}{}{}: {}",
        time_text(adjustment.adjust_time.as_ref()),
        money(adjustment.old_charge.as_ref()),
        money(adjustment.new_charge.as_ref()),
        residue.unwrap_or_default(),
        changes.collect::<String>(),
        adjustment.reason
    )
}
