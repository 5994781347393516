//! CatalogService: the handler of EstimateCost.

use crate::grpc::Context;
use crate::grpc::wire::convert::unix_time;
use crate::proto::{ChargeLine, EstimateCostRequest, EstimateCostResponse, Price};
use meterd_engine::auth::Caller;
use meterd_engine::catalog::estimate::{self, EstimateInput, EstimateLine};
use meterd_engine::ingest::RawMeasures;
use meterd_engine::refusal::Refusal;
use std::sync::Arc;

fn line_message(line: EstimateLine) -> ChargeLine {
    ChargeLine {
        component: line.component,
        tier_above: line.tier_above.map(|above| above.to_string()).unwrap_or_default(),
        quantity: line.quantity.to_string(),
        rate: line.rate.to_string(),
        amount: line.amount,
    }
}

/// Estimates the charge of an event.
pub async fn estimate(
    context: Arc<Context>,
    caller: Arc<Caller>,
    request: EstimateCostRequest,
) -> Result<EstimateCostResponse, Refusal> {
    let measures = RawMeasures {
        units: &request.units,
        input_tokens: request.input_tokens,
        output_tokens: request.output_tokens,
        cached_input_tokens: request.cached_input_tokens,
        amount: &request.amount,
        reported_cost: &request.reported_cost,
        others: &request.measures,
    };
    let event_time = request.event_time.as_ref().map(unix_time);
    let EstimateCostRequest { client_id, service, operation, model, service_tier, .. } = &request;
    let input = EstimateInput { client_id, service, operation, model, service_tier, measures, event_time };
    let estimate = estimate::estimate(&context.engine, &caller, input).await?;
    let found = EstimateCostResponse {
        price_id: estimate.price.as_ref().map(|price| price.price_id.to_string()).unwrap_or_default(),
        price: estimate.price.map(Price::from),
        price_match: estimate.price_match.map_or(0, |price_match| price_match as i32),
        matched_model: estimate.matched_model.map(|model| model.to_string()).unwrap_or_default(),
        ..Default::default()
    };
    Ok(match estimate.charge {
        Ok((charge, lines)) => EstimateCostResponse {
            charge: Some(context.money(charge.into())),
            lines: lines.into_iter().map(line_message).collect(),
            ..found
        },
        Err(reason) => EstimateCostResponse { unpriced_reason: reason as i32, ..found },
    })
}
