//! VoidUsage, CorrectUsage, ListAdjustments and ExplainCharge.

use crate::grpc::Context;
use crate::grpc::usage::events::raw_event;
use crate::grpc::wire::convert::{charge_fields, residue, timestamp, unix_time};
use crate::grpc::wire::idempotent_create::{answer, idempotency};
use crate::proto::{
    self, ChargeComponent, CorrectUsageRequest, CorrectUsageResponse, ExplainChargeRequest, ExplainChargeResponse,
    ExplainUsageRequest, ExplainUsageResponse, FieldChange, ListAdjustmentsRequest, ListAdjustmentsResponse,
    VoidUsageRequest, VoidUsageResponse,
};
use meterd_domain::decimal::Total;
use meterd_engine::auth::Caller;
use meterd_engine::catalog::estimate::EstimateLine;
use meterd_engine::corrections::explain::{self, ExplainedPrice, ExplainedUsage, Explanation, UsageToExplain};
use meterd_engine::corrections::list::{self, Adjustment, AdjustmentListInput};
use meterd_engine::corrections::{self, Adjusted, AdjustmentResult, EventReference, Target};
use meterd_engine::refusal::Refusal;
use prost::Message;
use std::sync::Arc;

impl From<proto::EventReference> for EventReference {
    fn from(reference: proto::EventReference) -> Self {
        let proto::EventReference { event_id, idempotency_key, external_id } = reference;
        Self { event_id, idempotency_key, external_id }
    }
}

/// Voids events.
pub async fn void(
    context: Arc<Context>,
    caller: Arc<Caller>,
    request: VoidUsageRequest,
) -> Result<VoidUsageResponse, Refusal> {
    let encode = |done: &Adjusted| VoidUsageResponse { results: results(done) }.encode_to_vec();
    let idempotency = idempotency(&caller, &request, &request.request_id, encode);
    let target = Target { client_id: request.client_id, reason: request.reason };
    let events = request.events.into_iter().map(EventReference::from).collect();
    let done = corrections::void(&context.engine, &caller, target, events, idempotency).await?;
    answer(done, |done| VoidUsageResponse { results: results(&done) })
}

/// Corrects events.
pub async fn correct(
    context: Arc<Context>,
    caller: Arc<Caller>,
    request: CorrectUsageRequest,
) -> Result<CorrectUsageResponse, Refusal> {
    let encode = |done: &Adjusted| CorrectUsageResponse { results: results(done) }.encode_to_vec();
    let idempotency = idempotency(&caller, &request, &request.request_id, encode);
    let target = Target { client_id: request.client_id, reason: request.reason };
    let corrections = request.corrections.into_iter().map(|correction| {
        let reference = EventReference::from(correction.event.unwrap_or_default());
        (reference, raw_event(correction.corrected.unwrap_or_default()))
    });
    let done = corrections::correct(&context.engine, &caller, target, corrections.collect(), idempotency).await?;
    answer(done, |done| CorrectUsageResponse { results: results(&done) })
}

fn results(done: &Adjusted) -> Vec<proto::AdjustmentResult> {
    let result = |result: &AdjustmentResult| {
        let (old_charge, ..) = charge_fields(&done.currency, result.old);
        let (new_charge, price_id, unpriced_reason) = charge_fields(&done.currency, result.new);
        proto::AdjustmentResult {
            event_id: result.event_id.map(|id| id.to_string()).unwrap_or_default(),
            old_charge,
            new_charge,
            price_id,
            unpriced_reason,
            tier_residue: residue(&done.currency, result.tier_residue),
            error: result.error.clone().map(proto::EventError::from),
        }
    };
    done.results.iter().map(result).collect()
}

/// Lists adjustments.
pub async fn list(
    context: Arc<Context>,
    mut request: ListAdjustmentsRequest,
) -> Result<ListAdjustmentsResponse, Refusal> {
    let (page, next_token) = context.page(&mut request);
    let input = AdjustmentListInput {
        client_id: request.client_id,
        event_id: request.event_id,
        run_id: request.run_id,
        start_time: request.start_time.as_ref().map(unix_time),
        end_time: request.end_time.as_ref().map(unix_time),
    };
    let found = list::list(&context.engine, input, page).await?;
    Ok(ListAdjustmentsResponse {
        adjustments: found.rows.into_iter().map(|adjustment| context.adjustment(adjustment)).collect(),
        next_page_token: next_token.of(found.next),
    })
}

/// Explains the charge of an event.
pub async fn explain_charge(
    context: Arc<Context>,
    request: ExplainChargeRequest,
) -> Result<ExplainChargeResponse, Refusal> {
    let Explanation { recorded, price, lines, adjustments } =
        explain::explain(&context.engine, &request.client_id, &request.event_id).await?;
    let price = price.map(proto::Price::from).unwrap_or_default();
    Ok(ExplainChargeResponse {
        event: Some(context.event(recorded)),
        components: lines.into_iter().map(component).collect(),
        price_client_id: price.client_id,
        price_plan_id: price.plan_id,
        price_service: price.service,
        price_operation: price.operation,
        price_model: price.model,
        price_service_tier: price.service_tier,
        price_above_input_tokens: price.above_input_tokens,
        price_effective_time: price.effective_time,
        price_withdraw_time: price.withdraw_time,
        adjustments: adjustments.into_iter().map(|adjustment| context.adjustment(adjustment)).collect(),
    })
}

/// Explains the cost of days by price.
pub async fn explain_usage(
    context: Arc<Context>,
    request: ExplainUsageRequest,
) -> Result<ExplainUsageResponse, Refusal> {
    let input = UsageToExplain {
        client_id: request.client_id,
        start_date: request.start_date,
        end_date: request.end_date,
        services: request.services,
        operations: request.operations,
        models: request.models,
    };
    let ExplainedUsage { prices, has_more, complete_as_of } = explain::explain_usage(&context.engine, input).await?;
    Ok(ExplainUsageResponse {
        prices: prices.into_iter().map(|price| context.explained(price)).collect(),
        has_more,
        complete_as_of_time: Some(timestamp(complete_as_of)),
    })
}

fn component(line: EstimateLine) -> ChargeComponent {
    let EstimateLine { component, tier_above, quantity, rate, amount } = line;
    let tier_above = tier_above.map(|above| above.to_string()).unwrap_or_default();
    ChargeComponent { component, quantity: quantity.to_string(), rate: rate.to_string(), amount, tier_above }
}

impl Context {
    fn explained(&self, explained: ExplainedPrice) -> proto::ExplainedPrice {
        let ExplainedPrice { key: (service, operation, model, price_id), usage, lines, rounding } = explained;
        let unless_zero = |amount: Total| (amount != Total::ZERO).then(|| self.money(amount));
        proto::ExplainedPrice {
            price_id: price_id.map(|price_id| price_id.to_string()).unwrap_or_default(),
            service,
            operation,
            model,
            event_count: usage.event_count,
            components: lines.into_iter().map(component).collect(),
            tier_charge: unless_zero(usage.tier_charge),
            tier_residue: unless_zero(usage.tier_residue),
            rounding: unless_zero(rounding),
            cost: Some(self.money(usage.cost)),
        }
    }

    fn adjustment(&self, adjustment: Adjustment) -> proto::Adjustment {
        let (old_charge, old_price_id, _) = charge_fields(&self.engine.currency, adjustment.old);
        let (new_charge, new_price_id, _) = charge_fields(&self.engine.currency, adjustment.new);
        let changes = adjustment.changes.into_iter();
        proto::Adjustment {
            event_id: adjustment.event.to_string(),
            number: adjustment.number,
            kind: i16::from(adjustment.kind).into(),
            old_charge,
            old_price_id,
            new_charge,
            new_price_id,
            changes: changes
                .map(|(field, [old_value, new_value])| FieldChange { field, old_value, new_value })
                .collect(),
            tier_residue: residue(&self.engine.currency, adjustment.tier_residue),
            reason: adjustment.reason,
            actor: adjustment.actor,
            run_id: adjustment.run_id.map(|run_id| run_id.to_string()).unwrap_or_default(),
            adjust_time: Some(timestamp(adjustment.adjust_time)),
        }
    }
}
