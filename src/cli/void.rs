//! `meterd void`: voids events.

use super::connect::{self, ConnectArgs};
use crate::proto::{AdjustmentResult, EventReference, VoidUsageRequest};
use clap::Args;
use serde_json::json;
use std::process::ExitCode;

const CALL_SECONDS: u64 = 30;

/// Arguments of `void`.
#[derive(Args, Clone, Debug)]
pub struct VoidArgs {
    /// Id of the client
    #[arg(value_name = "CLIENT")]
    pub client: String,
    /// Ids of the events, as in an export
    #[arg(value_name = "EVENT_ID", required_unless_present_any = ["key", "external_id"])]
    pub event: Vec<String>,
    /// Idempotency key of an event; repeat the flag for more
    #[arg(long, value_name = "KEY")]
    pub key: Vec<String>,
    /// External id of an event, such as the id of a message; repeat the flag for more
    #[arg(long, value_name = "ID")]
    pub external_id: Vec<String>,
    /// Why the events are voided; it is stored with each event
    #[arg(long, value_name = "TEXT")]
    pub reason: String,
    /// Print JSON, one event per line
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// Voids the events and prints the result of each. The exit code is 1 if one of them was not voided.
pub async fn run(args: VoidArgs) -> anyhow::Result<ExitCode> {
    let of_id = |event_id: &String| EventReference { event_id: event_id.clone(), ..Default::default() };
    let of_key = |key: &String| EventReference { idempotency_key: key.clone(), ..Default::default() };
    let of_external = |id: &String| EventReference { external_id: id.clone(), ..Default::default() };
    let names: Vec<&String> = args.event.iter().chain(&args.key).chain(&args.external_id).collect();
    let by_name = args.key.iter().map(of_key).chain(args.external_id.iter().map(of_external));
    let request = VoidUsageRequest {
        client_id: args.client.clone(),
        events: args.event.iter().map(of_id).chain(by_name).collect(),
        reason: args.reason.clone(),
        request_id: String::new(),
    };
    let mut usage = connect::usage_client(args.connect.channel().await?);
    let answer = usage.void_usage(args.connect.request(request, CALL_SECONDS)).await;
    let results = answer.map_err(|status| connect::status_error(&status))?.into_inner().results;
    for (name, result) in names.into_iter().zip(&results) {
        match args.json {
            true => println!("{}", to_json(name, result)),
            false => println!("{name}: {}", text(result)),
        }
    }
    let failed = results.iter().any(|result| result.error.is_some());
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn text(result: &AdjustmentResult) -> String {
    match (&result.error, &result.old_charge) {
        (Some(error), _) => format!("{}: {}", error.reason, connect::event_error_text(error)),
        (None, Some(charge)) => {
            let residue = result.tier_residue.as_ref();
            let residue =
                residue.map(|residue| format!("; {} {} remain in the tiers", residue.amount, residue.currency));
            let residue = residue.unwrap_or_default();
            format!("voided, the charge of {} {} is gone{residue}", charge.amount, charge.currency)
        }
        (None, None) => "voided, it had no charge".to_owned(),
    }
}

fn to_json(name: &str, result: &AdjustmentResult) -> serde_json::Value {
    json!({
        "event": name,
        "event_id": result.event_id,
        "old_charge": result.old_charge.as_ref().map(|charge| &charge.amount),
        "tier_residue": result.tier_residue.as_ref().map(|residue| &residue.amount),
        "error": result.error.as_ref().map(connect::event_error_json),
    })
}
