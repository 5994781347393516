//! CatalogService: runs of RepriceUsage.

use crate::grpc::Context;
use crate::grpc::wire::convert::timestamp;
use crate::grpc::wire::idempotent_create::{answer, idempotency};
use crate::proto::{
    CancelRepriceRunRequest, CancelRepriceRunResponse, CostDifference, GetRepriceRunRequest, GetRepriceRunResponse,
    RepriceRun, RepriceUsageRequest, RepriceUsageResponse,
};
use meterd_domain::period::Month;
use meterd_engine::auth::Caller;
use meterd_engine::corrections::reprice::{self, CostChange, DifferenceKey, RepriceInput, Run, RunReport};
use meterd_engine::refusal::Refusal;
use prost::Message;
use std::sync::Arc;

impl From<Run> for RepriceRun {
    fn from(run: Run) -> Self {
        Self {
            run_id: run.run_id.to_string(),
            start_month: Month::of(run.start_month).to_string(),
            end_month: Month::of(run.end_month).to_string(),
            validate_only: run.is_dry,
            event_count: run.event_count,
            examined_count: run.examined_count,
            changed_count: run.changed_count,
            reason: run.reason,
            create_time: Some(timestamp(run.create_time)),
            cancel_time: run.cancel_time.map(timestamp),
            finish_time: run.finish_time.map(timestamp),
        }
    }
}

/// Begins a run.
pub async fn begin(
    context: Arc<Context>,
    caller: Arc<Caller>,
    request: RepriceUsageRequest,
) -> Result<RepriceUsageResponse, Refusal> {
    let encode = |run: &Run| RepriceUsageResponse { run: Some(run.clone().into()) }.encode_to_vec();
    let idempotency = idempotency(&caller, &request, &request.request_id, encode);
    let input = RepriceInput {
        start_month: request.start_month,
        end_month: request.end_month,
        client_ids: request.client_ids,
        services: request.services,
        models: request.models,
        validate_only: request.validate_only,
        reason: request.reason,
    };
    let begun = reprice::begin(&context.engine, &caller, input, idempotency).await?;
    answer(begun, |run| RepriceUsageResponse { run: Some(run.into()) })
}

/// Returns a run with its differences.
pub async fn get(context: Arc<Context>, mut request: GetRepriceRunRequest) -> Result<GetRepriceRunResponse, Refusal> {
    let (page, next_token) = context.page(&mut request);
    let RunReport { run, total, differences } = reprice::get(&context.engine, &request.run_id, page).await?;
    Ok(GetRepriceRunResponse {
        run: Some(run.into()),
        total: Some(context.cost_difference((DifferenceKey::default(), total))),
        differences: differences.rows.into_iter().map(|row| context.cost_difference(row)).collect(),
        next_page_token: next_token.of(differences.next),
    })
}

/// Ends a run.
pub async fn cancel(
    context: Arc<Context>,
    request: CancelRepriceRunRequest,
) -> Result<CancelRepriceRunResponse, Refusal> {
    Ok(CancelRepriceRunResponse { run: Some(reprice::cancel(&context.engine, &request.run_id).await?.into()) })
}

impl Context {
    fn cost_difference(&self, (key, change): (DifferenceKey, CostChange)) -> CostDifference {
        let (client_id, service, model) = key;
        let CostChange { event_count, old_cost, new_cost } = change;
        let (old_cost, new_cost) = (Some(self.money(old_cost)), Some(self.money(new_cost)));
        CostDifference { client_id, service, model, event_count, old_cost, new_cost }
    }
}
