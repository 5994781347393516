//! BillingService: the handlers of limits.

use crate::grpc::Context;
use crate::grpc::wire::convert::timestamp;
use crate::grpc::wire::idempotent_create::{answer, idempotency};
use crate::proto::*;
use meterd_domain::limit as domain;
use meterd_domain::period::Month;
use meterd_engine::auth::Caller;
use meterd_engine::limits::{self, BatchCheckInput, CheckInput, ClientStatus, Dimensions, LimitInput, ListInput};
use meterd_engine::refusal::Refusal;
use prost::Message;
use std::sync::Arc;

impl From<domain::Limit> for Limit {
    fn from(limit: domain::Limit) -> Self {
        let domain::LimitFilter { services, operations, models, subjects, labels } = limit.filter;
        Self {
            client_id: limit.client_id,
            limit_id: limit.limit_id,
            display_name: limit.display_name,
            filter: Some(LimitFilter { services, operations, models, subjects, labels }),
            measure: limit.measure as i32,
            period: limit.period as i32,
            amount: limit.amount.to_string(),
            hard: limit.is_hard,
            alert_percents: limit.alert_percents.into_iter().map(i32::from).collect(),
            create_time: Some(timestamp(limit.create_time)),
            update_time: Some(timestamp(limit.update_time)),
        }
    }
}

impl From<Limit> for LimitInput {
    fn from(limit: Limit) -> Self {
        let LimitFilter { services, operations, models, subjects, labels } = limit.filter.unwrap_or_default();
        Self {
            client_id: limit.client_id,
            limit_id: limit.limit_id,
            display_name: limit.display_name,
            services,
            operations,
            models,
            subjects,
            labels,
            measure: limit.measure,
            period: limit.period,
            amount: limit.amount,
            is_hard: limit.hard,
            alert_percents: limit.alert_percents,
        }
    }
}

impl From<&domain::LimitFinding> for AlertLimit {
    fn from(limit: &domain::LimitFinding) -> Self {
        Self {
            limit_id: limit.limit_id.clone(),
            display_name: limit.display_name.clone(),
            measure: limit.measure as i32,
            period: limit.period as i32,
            amount: limit.amount.to_string(),
            percent: limit.percent.into(),
            hard: limit.is_hard,
        }
    }
}

impl From<limits::LimitStatus> for LimitStatus {
    fn from(status: limits::LimitStatus) -> Self {
        let period = match status.limit.period {
            domain::LimitPeriod::Day => status.period_start.to_string(),
            domain::LimitPeriod::Month => Month::of(status.period_start).to_string(),
        };
        Self {
            state: state(status.state).into(),
            used: status.used.to_string(),
            reserved: status.reserved.to_string(),
            remaining: status.remaining.to_string(),
            period,
            reset_time: Some(timestamp(status.reset_time)),
            limit: Some(status.limit.into()),
        }
    }
}

impl From<ClientStatus> for ClientLimits {
    fn from(status: ClientStatus) -> Self {
        Self {
            client_id: status.client_id,
            state: state(status.state).into(),
            allowed: status.is_allowed,
            binding_limit_id: status.binding_limit_id,
            limits: status.limits.into_iter().map(LimitStatus::from).collect(),
        }
    }
}

fn state(state: domain::LimitState) -> LimitState {
    match state {
        domain::LimitState::Green => LimitState::Green,
        domain::LimitState::Yellow => LimitState::Yellow,
        domain::LimitState::Red => LimitState::Red,
    }
}

fn created(limit: domain::Limit) -> CreateLimitResponse {
    CreateLimitResponse { limit: Some(limit.into()) }
}

/// Creates a limit.
pub async fn create(
    context: Arc<Context>,
    caller: Arc<Caller>,
    request: CreateLimitRequest,
) -> Result<CreateLimitResponse, Refusal> {
    let encode = |limit: &domain::Limit| created(limit.clone()).encode_to_vec();
    let idempotency = idempotency(&caller, &request, &request.request_id, encode);
    let limit = LimitInput::from(request.limit.unwrap_or_default());
    answer(limits::create(&context.engine, limit, request.allow_below_used, idempotency).await?, created)
}

/// Changes a limit.
pub async fn update(context: Arc<Context>, request: UpdateLimitRequest) -> Result<UpdateLimitResponse, Refusal> {
    let names = request.update_mask.unwrap_or_default().paths;
    let limit = request.limit.map(LimitInput::from);
    let limit = limits::update(&context.engine, limit, &names, request.allow_below_used).await?;
    Ok(UpdateLimitResponse { limit: Some(limit.into()) })
}

/// Deletes a limit.
pub async fn delete(context: Arc<Context>, request: DeleteLimitRequest) -> Result<DeleteLimitResponse, Refusal> {
    limits::delete(&context.engine, &request.client_id, &request.limit_id).await?;
    Ok(DeleteLimitResponse {})
}

/// Returns a limit.
pub async fn get(context: Arc<Context>, request: GetLimitRequest) -> Result<GetLimitResponse, Refusal> {
    let limit = limits::get(&context.engine, &request.client_id, &request.limit_id).await?;
    Ok(GetLimitResponse { limit: Some(limit.into()) })
}

/// Lists limits.
pub async fn list(context: Arc<Context>, mut request: ListLimitsRequest) -> Result<ListLimitsResponse, Refusal> {
    let (page, next_token) = context.page(&mut request);
    let found = limits::list(&context.engine, ListInput { client_id: request.client_id, page }).await?;
    Ok(ListLimitsResponse {
        limits: found.rows.into_iter().map(Limit::from).collect(),
        next_page_token: next_token.of(found.next),
    })
}

/// Returns how much of the limits of a client is left.
pub async fn check(context: Arc<Context>, request: CheckLimitRequest) -> Result<CheckLimitResponse, Refusal> {
    let CheckLimitRequest { client_id, service, operation, model, subject, labels } = request;
    let of = Dimensions { service, operation, model, subject, labels };
    let status = limits::check(&context.engine, CheckInput { client_id, of }).await?;
    Ok(CheckLimitResponse { status: Some(status.into()) })
}

/// Returns how much of the limits of clients is left.
pub async fn check_batch(
    context: Arc<Context>,
    mut request: BatchCheckLimitsRequest,
) -> Result<BatchCheckLimitsResponse, Refusal> {
    let (page, next_token) = context.page(&mut request);
    let found = limits::check_batch(&context.engine, BatchCheckInput { client_ids: request.client_ids, page }).await?;
    Ok(BatchCheckLimitsResponse {
        statuses: found.rows.into_iter().map(ClientLimits::from).collect(),
        next_page_token: next_token.of(found.next),
    })
}
