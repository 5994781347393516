//! `meterd correct`: replaces fields of a recorded event.

use super::connect::{self, ConnectArgs};
use super::explain::money;
use super::track::{parse_label, parse_measure};
use super::{decimal, json as metadata_json};
use crate::proto::{
    AdjustmentResult, CorrectUsageRequest, EventReference, GetUsageEventRequest, UsageCorrection, UsageEvent,
};
use clap::Args;
use prost_types::Struct;
use serde_json::json;
use std::process::ExitCode;

const CALL_SECONDS: u64 = 30;

/// Arguments of `correct`.
#[derive(Args, Clone, Debug)]
pub struct CorrectArgs {
    /// Id of the client
    #[arg(value_name = "CLIENT")]
    pub client: String,
    /// Id of the event, as in an export
    #[arg(value_name = "EVENT_ID")]
    pub event: String,
    /// Why the event is corrected; it is stored with the change
    #[arg(long, value_name = "TEXT")]
    pub reason: String,
    #[command(flatten)]
    pub fields: FieldArgs,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// The new values. Fields that are not set stay.
#[derive(Args, Clone, Debug, Default)]
pub struct FieldArgs {
    /// Name of the service
    #[arg(long, value_name = "NAME")]
    pub service: Option<String>,
    /// Name of the operation; "" for none, as for other names
    #[arg(long, value_name = "NAME")]
    pub operation: Option<String>,
    /// Name of the model or variant
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    /// Service tier
    #[arg(long, value_name = "NAME")]
    pub service_tier: Option<String>,
    /// Number of units
    #[arg(long, value_name = "DECIMAL", value_parser = decimal::quantity)]
    pub units: Option<String>,
    /// Number of input tokens, including cached ones
    #[arg(long, value_name = "COUNT", value_parser = decimal::tokens)]
    pub input_tokens: Option<i64>,
    /// Number of output tokens
    #[arg(long, value_name = "COUNT", value_parser = decimal::tokens)]
    pub output_tokens: Option<i64>,
    /// Number of input tokens that were read from a cache
    #[arg(long, value_name = "COUNT", value_parser = decimal::tokens)]
    pub cached_input_tokens: Option<i64>,
    /// Amount of money to which a percentage price applies
    #[arg(long, value_name = "DECIMAL", value_parser = decimal::quantity)]
    pub amount: Option<String>,
    /// What the provider charges by its own report
    #[arg(long, value_name = "DECIMAL", value_parser = decimal::quantity)]
    pub reported_cost: Option<String>,
    /// A label, such as project=apollo, or project= to remove it; repeat the flag for more. Other labels stay
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_label)]
    pub label: Vec<(String, String)>,
    /// Another quantity, such as pages=3; repeat the flag for more. Other measures stay
    #[arg(long, value_name = "NAME=DECIMAL", value_parser = parse_measure)]
    pub measure: Vec<(String, String)>,
    /// Id of the user inside the client
    #[arg(long, value_name = "ID")]
    pub subject: Option<String>,
    /// Your own reference for the event
    #[arg(long, value_name = "ID")]
    pub external_id: Option<String>,
    /// Additional data, a JSON object
    #[arg(long, value_name = "JSON", value_parser = metadata_json::metadata)]
    pub metadata: Option<Struct>,
}

impl FieldArgs {
    /// Returns an event with the new values.
    fn apply(&self, mut event: UsageEvent) -> UsageEvent {
        fn set<T: Clone>(field: &mut T, new: &Option<T>) {
            if let Some(new) = new {
                *field = new.clone();
            }
        }
        set(&mut event.service, &self.service);
        set(&mut event.operation, &self.operation);
        set(&mut event.model, &self.model);
        set(&mut event.service_tier, &self.service_tier);
        set(&mut event.units, &self.units);
        set(&mut event.input_tokens, &self.input_tokens);
        set(&mut event.output_tokens, &self.output_tokens);
        set(&mut event.cached_input_tokens, &self.cached_input_tokens);
        set(&mut event.amount, &self.amount);
        set(&mut event.reported_cost, &self.reported_cost);
        set(&mut event.subject, &self.subject);
        set(&mut event.external_id, &self.external_id);
        event.measures.extend(self.measure.iter().cloned());
        event.labels.extend(self.label.iter().cloned());
        event.labels.retain(|_, value| !value.is_empty());
        event.metadata = self.metadata.clone().or(event.metadata);
        event
    }
}

/// Reads the event, corrects it and prints the result.
pub async fn run(args: CorrectArgs) -> anyhow::Result<ExitCode> {
    let mut usage = connect::usage_client(args.connect.channel().await?);
    let request = GetUsageEventRequest { client_id: args.client.clone(), event_id: args.event.clone() };
    let answer = usage.get_usage_event(args.connect.request(request, CALL_SECONDS)).await;
    let recorded = answer.map_err(|status| connect::status_error(&status))?.into_inner();
    let event = recorded.event.and_then(|recorded| recorded.event).unwrap_or_default();
    let corrected = args.fields.apply(event.clone());
    anyhow::ensure!(corrected != event, "the event has these values already: set a field, such as --units 3");
    let correction = UsageCorrection {
        event: Some(EventReference { event_id: args.event.clone(), ..Default::default() }),
        corrected: Some(corrected),
    };
    let request = CorrectUsageRequest {
        client_id: args.client.clone(),
        corrections: vec![correction],
        reason: args.reason.clone(),
        request_id: String::new(),
    };
    let answer = usage.correct_usage(args.connect.request(request, CALL_SECONDS)).await;
    let results = answer.map_err(|status| connect::status_error(&status))?.into_inner().results;
    let result = results.into_iter().next().unwrap_or_default();
    match args.json {
        true => println!("{}", to_json(&args.event, &result)),
        false => println!("{}", text(&args.event, &result)),
    }
    Ok(if result.error.is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn text(event: &str, result: &AdjustmentResult) -> String {
    match &result.error {
        Some(error) => format!("{event}: {}: {}", error.reason, connect::event_error_text(error)),
        None => format!(
            "{event}: corrected, charge {} is now {}",
            money(result.old_charge.as_ref()),
            money(result.new_charge.as_ref())
        ),
    }
}

fn to_json(event: &str, result: &AdjustmentResult) -> serde_json::Value {
    json!({
        "event": event,
        "old_charge": result.old_charge.as_ref().map(|charge| &charge.amount),
        "new_charge": result.new_charge.as_ref().map(|charge| &charge.amount),
        "error": result.error.as_ref().map(connect::event_error_json),
    })
}
