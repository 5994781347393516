//! BillingService: the handlers of credits and of the current period.

use crate::grpc::Context;
use crate::grpc::wire::convert::timestamp;
use crate::grpc::wire::idempotent_create::{answer, idempotency};
use crate::proto::*;
use meterd_domain::credits::GrantSource;
use meterd_engine::auth::Caller;
use meterd_engine::credits::{self, Balance, NewGrant};
use meterd_engine::current_period::current_period;
use meterd_engine::refusal::Refusal;
use meterd_engine::usage::ServiceUsage;
use meterd_store::credits as store;
use prost::Message;
use std::sync::Arc;

impl From<store::CreditGrant> for CreditGrant {
    fn from(grant: store::CreditGrant) -> Self {
        Self {
            grant_id: grant.grant_id,
            client_id: grant.client_id,
            amount: grant.amount.to_string(),
            source: grant.source.into(),
            priority: Some(grant.priority),
            first_date: grant.first_day.to_string(),
            last_date: grant.last_day.map(|day| day.to_string()).unwrap_or_default(),
            note: grant.note,
            plan_id: grant.plan_id,
            used: grant.used.to_string(),
            create_time: Some(timestamp(grant.create_time)),
            void_time: grant.void_time.map(timestamp),
        }
    }
}

fn created(grant: store::CreditGrant) -> CreateCreditGrantResponse {
    CreateCreditGrantResponse { grant: Some(grant.into()) }
}

/// Grants credits.
pub async fn create(
    context: Arc<Context>,
    caller: Arc<Caller>,
    request: CreateCreditGrantRequest,
) -> Result<CreateCreditGrantResponse, Refusal> {
    let encode = |grant: &store::CreditGrant| created(grant.clone()).encode_to_vec();
    let idempotency = idempotency(&caller, &request, &request.request_id, encode);
    let grant = request.grant.unwrap_or_default();
    let source = i16::try_from(grant.source).ok().and_then(|source| GrantSource::try_from(source).ok());
    let grant = NewGrant {
        source: source.ok_or(grant.source.to_string()),
        client_id: grant.client_id,
        amount: grant.amount,
        priority: grant.priority,
        first_date: grant.first_date,
        last_date: grant.last_date,
        note: grant.note,
    };
    answer(credits::create(&context.engine, grant, idempotency).await?, created)
}

/// Reads a grant.
pub async fn get(context: Arc<Context>, request: GetCreditGrantRequest) -> Result<GetCreditGrantResponse, Refusal> {
    let (grant, uses) = credits::get(&context.engine, &request.client_id, &request.grant_id).await?;
    let uses = uses
        .into_iter()
        .map(|(month, amount)| CreditUse { month: month.to_string(), amount: Some(context.money(amount)) });
    Ok(GetCreditGrantResponse { grant: Some(grant.into()), uses: uses.collect() })
}

/// Lists the grants of a client.
pub async fn list(
    context: Arc<Context>,
    mut request: ListCreditGrantsRequest,
) -> Result<ListCreditGrantsResponse, Refusal> {
    let (page, next_token) = context.page(&mut request);
    let found = credits::list(&context.engine, &request.client_id, page).await?;
    Ok(ListCreditGrantsResponse {
        grants: found.rows.into_iter().map(CreditGrant::from).collect(),
        next_page_token: next_token.of(found.next),
    })
}

/// Voids a grant.
pub async fn void(context: Arc<Context>, request: VoidCreditGrantRequest) -> Result<VoidCreditGrantResponse, Refusal> {
    let grant = credits::void(&context.engine, &request.client_id, &request.grant_id).await?;
    Ok(VoidCreditGrantResponse { grant: Some(grant.into()) })
}

/// Returns what is left of the grants of a client.
pub async fn balance(
    context: Arc<Context>,
    request: GetCreditBalanceRequest,
) -> Result<GetCreditBalanceResponse, Refusal> {
    let Balance { day, available, grants } =
        credits::balance(&context.engine, &request.client_id, &request.date).await?;
    let grants = grants
        .into_iter()
        .map(|(grant, remaining)| CreditBalanceGrant { grant: Some(grant.into()), remaining: remaining.to_string() });
    Ok(GetCreditBalanceResponse {
        date: day.to_string(),
        available: Some(context.money(available)),
        grants: grants.collect(),
    })
}

/// Returns what a client has used and paid in its current month.
pub async fn period(
    context: Arc<Context>,
    request: GetCurrentPeriodRequest,
) -> Result<GetCurrentPeriodResponse, Refusal> {
    let period = current_period(&context.engine, &request.client_id).await?;
    let services = period.services.into_iter().map(|ServiceUsage { service, sums, .. }| PeriodService {
        service: service.to_string(),
        cost: Some(context.money(sums.cost)),
        request_count: sums.request_count,
        units: sums.units.to_string(),
    });
    Ok(GetCurrentPeriodResponse {
        client_id: request.client_id,
        month: period.month.to_string(),
        plan_id: period.plan_id,
        plan_fees: Some(context.money(period.plan_fees)),
        cost: Some(context.money(period.sums.cost)),
        request_count: period.sums.request_count,
        unpriced_event_count: period.sums.unpriced_event_count,
        credits_used: Some(context.money(period.credits_used)),
        payable: Some(context.money(period.payable)),
        credits_available: Some(context.money(period.credits_available)),
        services: services.collect(),
    })
}
