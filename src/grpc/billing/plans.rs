//! BillingService: the handlers of plans.

use crate::grpc::Context;
use crate::grpc::wire::convert::{timestamp, unix_time};
use crate::grpc::wire::idempotent_create::{answer, idempotency};
use crate::proto::*;
use meterd_engine::auth::Caller;
use meterd_engine::plans::{self, NewPlan, PlanChange, PlanFees};
use meterd_engine::refusal::Refusal;
use meterd_store::plans as store;
use prost::Message;
use std::sync::Arc;

impl From<store::Plan> for Plan {
    fn from(plan: store::Plan) -> Self {
        Self {
            plan_id: plan.plan_id,
            display_name: plan.display_name,
            monthly_fee: plan.monthly_fee.to_string(),
            included_credits: plan.included_credits.to_string(),
            rollover_months: plan.rollover_months,
            built_in: plan.built_in,
            create_time: Some(timestamp(plan.create_time)),
        }
    }
}

impl From<store::ClientPlan> for ClientPlan {
    fn from(change: store::ClientPlan) -> Self {
        Self {
            plan_id: change.plan_id,
            effective_time: Some(timestamp(change.effective_time)),
            create_time: Some(timestamp(change.create_time)),
        }
    }
}

impl From<plans::PlanFee> for PlanFee {
    fn from(fee: plans::PlanFee) -> Self {
        Self {
            plan_id: fee.plan_id,
            first_date: fee.first_day.to_string(),
            last_date: fee.last_day.to_string(),
            days: fee.days as i32,
            monthly_fee: fee.monthly_fee.to_string(),
            amount: fee.amount.to_string(),
        }
    }
}

fn created(plan: store::Plan) -> CreatePlanResponse {
    CreatePlanResponse { plan: Some(plan.into()) }
}

/// Creates a plan.
pub async fn create(
    context: Arc<Context>,
    caller: Arc<Caller>,
    request: CreatePlanRequest,
) -> Result<CreatePlanResponse, Refusal> {
    let encode = |plan: &store::Plan| created(plan.clone()).encode_to_vec();
    let idempotency = idempotency(&caller, &request, &request.request_id, encode);
    let Plan { plan_id, display_name, monthly_fee, included_credits, rollover_months, .. } =
        request.plan.unwrap_or_default();
    let plan = NewPlan { plan_id, display_name, monthly_fee, included_credits, rollover_months };
    answer(plans::create(&context.engine, plan, idempotency).await?, created)
}

/// Reads a plan.
pub async fn get(context: Arc<Context>, request: GetPlanRequest) -> Result<GetPlanResponse, Refusal> {
    Ok(GetPlanResponse { plan: Some(plans::get(&context.engine, &request.plan_id).await?.into()) })
}

/// Lists plans.
pub async fn list(context: Arc<Context>, mut request: ListPlansRequest) -> Result<ListPlansResponse, Refusal> {
    let (page, next_token) = context.page(&mut request);
    let found = plans::list(&context.engine, page).await?;
    Ok(ListPlansResponse {
        plans: found.rows.into_iter().map(Plan::from).collect(),
        next_page_token: next_token.of(found.next),
    })
}

/// Sets the plan of a client.
pub async fn set(context: Arc<Context>, request: SetClientPlanRequest) -> Result<SetClientPlanResponse, Refusal> {
    let SetClientPlanRequest { client_id, plan_id, effective_time } = request;
    let change = PlanChange { client_id, plan_id, effective_time: effective_time.as_ref().map(unix_time) };
    Ok(SetClientPlanResponse { client_plan: Some(plans::set(&context.engine, change).await?.into()) })
}

/// Lists the changes of the plan of a client.
pub async fn changes(
    context: Arc<Context>,
    mut request: ListClientPlansRequest,
) -> Result<ListClientPlansResponse, Refusal> {
    let (page, next_token) = context.page(&mut request);
    let found = plans::changes(&context.engine, &request.client_id, page).await?;
    Ok(ListClientPlansResponse {
        client_plans: found.rows.into_iter().map(ClientPlan::from).collect(),
        next_page_token: next_token.of(found.next),
    })
}

/// Returns the fees of a client for a month.
pub async fn fees(context: Arc<Context>, request: GetPlanFeesRequest) -> Result<GetPlanFeesResponse, Refusal> {
    let PlanFees { month, fees, total } = plans::fees(&context.engine, &request.client_id, &request.month).await?;
    Ok(GetPlanFeesResponse {
        month: month.to_string(),
        currency: context.engine.currency.clone(),
        fees: fees.into_iter().map(PlanFee::from).collect(),
        total: total.to_string(),
    })
}
