//! Plans, and the plans of clients over time.

use crate::clients;
use crate::engine::Engine;
use crate::fields::{Fields, UnixTime};
use crate::idempotency::{CreateCall, Created, Idempotency};
use crate::paging::{Page, PageRequest};
use crate::previous_release;
use crate::refusal::{Reason, Refusal, shown};
use chrono::{DateTime, NaiveDate, Utc};
use iso_currency::Currency;
use meterd_domain::catalog::Catalog;
use meterd_domain::decimal::{Decimal, Total};
use meterd_domain::event::ID_BYTES_MAX;
use meterd_domain::period::{Month, day_of};
use meterd_domain::plan::{ClientPlans, PlanDays};
use meterd_store::catalog::pricing;
use meterd_store::clients::zone;
use meterd_store::database::deployment;
use meterd_store::locks;
use meterd_store::plans::{self as store, ClientPlan, Plan};
use sqlx::PgConnection;
use std::collections::BTreeSet;

/// The plans that meterd ships, in US dollars: id, display name, monthly fee and included credits.
const BUILT_IN: [(&str, &str, u16, u16); 4] = [
    ("trial", "Trial", 0, 50),
    ("starter", "Starter", 29, 10),
    ("professional", "Professional", 99, 50),
    ("enterprise", "Enterprise", 499, 200),
];
/// Maximum number of further months in which the credits of a month can be used.
pub const ROLLOVER_MONTHS_MAX: i32 = 12;
/// Decimals of a currency whose ISO 4217 code is not known.
const MINOR_DIGITS: u16 = 2;

/// A plan to create, unchecked.
#[derive(Debug, Default)]
pub struct NewPlan {
    pub plan_id: String,
    pub display_name: String,
    /// A decimal. If absent, 0.
    pub monthly_fee: String,
    /// A decimal. If absent, 0.
    pub included_credits: String,
    pub rollover_months: i32,
}

/// A change of the plan of a client, unchecked.
#[derive(Debug, Default)]
pub struct PlanChange {
    pub client_id: String,
    /// Empty: no plan.
    pub plan_id: String,
    /// `None`: now.
    pub effective_time: Option<UnixTime>,
}

/// The fee of one plan for days of a month.
#[derive(Debug)]
pub struct PlanFee {
    pub plan_id: String,
    pub first_day: NaiveDate,
    pub last_day: NaiveDate,
    pub days: u32,
    pub monthly_fee: Decimal,
    pub amount: Decimal,
}

/// The fees of a client for a month.
#[derive(Debug)]
pub struct PlanFees {
    pub month: Month,
    pub fees: Vec<PlanFee>,
    pub total: Total,
}

/// Creates the plans that meterd ships, if they do not exist. The currency must be US dollars.
pub async fn seed(conn: &mut PgConnection) -> meterd_store::Result<()> {
    let dollars = |amount: u16| Decimal::from_scaled(Decimal::ONE.scaled() * i128::from(amount));
    for (plan_id, display_name, fee, credits) in BUILT_IN {
        let new = store::NewPlan {
            plan_id,
            display_name,
            monthly_fee: dollars(fee),
            included_credits: dollars(credits),
            rollover_months: 0,
            built_in: true,
        };
        store::insert(conn, &new).await?;
    }
    Ok(())
}

/// Creates a plan.
pub async fn create(engine: &Engine, plan: NewPlan, idempotency: Idempotency<Plan>) -> Result<Created<Plan>, Refusal> {
    let NewPlan { plan_id, display_name, monthly_fee, included_credits, rollover_months } = &plan;
    let mut fields = Fields::default();
    fields.required_identifier("plan.plan_id", plan_id, ID_BYTES_MAX);
    fields.text("plan.display_name", display_name, clients::DISPLAY_NAME_BYTES_MAX);
    let mut amount = |field: &str, value: &str| match value {
        "" => Decimal::ZERO,
        value => fields.decimal(field, value),
    };
    let monthly_fee = amount("plan.monthly_fee", monthly_fee);
    let included_credits = amount("plan.included_credits", included_credits);
    fields.count("plan.rollover_months", (*rollover_months).into(), ROLLOVER_MONTHS_MAX.into());
    idempotency.check(&mut fields);
    fields.finish()?;
    let mut creation = match idempotency.begin(engine).await? {
        CreateCall::New(creation) => creation,
        CreateCall::Repeat(answer) => return Ok(Created::Repeat(answer)),
    };
    let new = store::NewPlan {
        plan_id,
        display_name,
        monthly_fee,
        included_credits,
        rollover_months: *rollover_months,
        built_in: false,
    };
    if !store::insert(creation.conn(), &new).await? {
        let message = format!("plan {plan_id:?} exists; plans do not change: create one with another id");
        return Err(Refusal::new(Reason::PlanExists, message));
    }
    let created = existing(creation.conn(), plan_id).await?;
    creation.commit(&created).await?;
    Ok(Created::New(created))
}

/// Returns a plan.
///
/// # Errors
/// `PLAN_NOT_FOUND` if it does not exist.
pub async fn existing(conn: &mut PgConnection, plan_id: &str) -> Result<Plan, Refusal> {
    let not_found = || Refusal::new(Reason::PlanNotFound, format!("there is no plan {}", shown(plan_id)));
    store::find(conn, plan_id).await?.ok_or_else(not_found)
}

/// Checks the id and returns the plan.
pub async fn get(engine: &Engine, plan_id: &str) -> Result<Plan, Refusal> {
    let mut fields = Fields::default();
    fields.required("plan_id", plan_id, ID_BYTES_MAX);
    fields.finish()?;
    existing(&mut *engine.pool.acquire().await?, plan_id).await
}

/// Lists plans, ordered by id. The cursor is the id of the last plan.
pub async fn list(engine: &Engine, page: PageRequest<String>) -> Result<Page<Plan, String>, Refusal> {
    let mut fields = Fields::default();
    let size = page.check_size(&mut fields);
    fields.finish()?;
    let after = page.after?.unwrap_or_default();
    let plans = store::list(&mut *engine.pool.acquire().await?, &after, size + 1).await?;
    Ok(Page::of(plans, size, |last| last.plan_id.clone()))
}

/// Sets the plan of a client from a time until its next change, and prices its unpriced events that the prices of the plan apply to.
/// Events that already have a charge keep it.
pub async fn set(engine: &Engine, change: PlanChange) -> Result<ClientPlan, Refusal> {
    let PlanChange { client_id, plan_id, .. } = &change;
    let mut fields = Fields::default();
    fields.required("client_id", client_id, ID_BYTES_MAX);
    fields.text("plan_id", plan_id, ID_BYTES_MAX);
    let effective_time = change.effective_time.and_then(|time| fields.time("effective_time", time));
    fields.finish()?;
    let effective_time = effective_time.unwrap_or_else(|| engine.clock.now());
    let client = clients::existing(engine, client_id).await?;
    // Before the lock, which blocks all batches. A price of the plan that is created meanwhile has a task of its own.
    let catalog = engine.catalog.refresh(&engine.pool).await?;
    let mut tx = engine.pool.begin().await?;
    let plan = match plan_id.as_str() {
        "" => None,
        plan_id => Some(existing(&mut tx, plan_id).await?),
    };
    if plan.as_ref().is_some_and(|plan| plan.included_credits > Decimal::ZERO) {
        previous_release::check_gone(&mut tx, "credits").await?;
    }
    locks::change_versions(&mut tx).await?;
    let month = Month::of(client.day_of(effective_time)?);
    if let Some(closed) = deployment::closed_through(&mut tx).await?.filter(|closed| month <= *closed) {
        return Err(Refusal::month_closed(closed));
    }
    // Unpriced events of the client may have a price by the plan, or without the one that it had.
    let mut plan_ids = store::ids_of_clients(&mut tx, std::slice::from_ref(client_id)).await?;
    plan_ids.push(plan_id.clone());
    let services: BTreeSet<&str> = plan_ids.iter().flat_map(|plan_id| catalog.services_of_plan(plan_id)).collect();
    let changed = store::set(&mut tx, client_id, plan.as_ref(), effective_time).await?;
    for service in services {
        pricing::insert_task(&mut tx, service).await?;
    }
    tx.commit().await?;
    engine.pricing_wanted.notify_one();
    Ok(changed)
}

/// Lists the changes of the plan of a client, ordered by time. The cursor is the time of the last change.
pub async fn changes(
    engine: &Engine,
    client_id: &str,
    page: PageRequest<DateTime<Utc>>,
) -> Result<Page<ClientPlan, DateTime<Utc>>, Refusal> {
    let mut fields = Fields::default();
    fields.required("client_id", client_id, ID_BYTES_MAX);
    let size = page.check_size(&mut fields);
    fields.finish()?;
    let after = page.after?;
    clients::existing(engine, client_id).await?;
    let changes = store::changes(&mut *engine.pool.acquire().await?, client_id, after, size + 1).await?;
    Ok(Page::of(changes, size, |last| last.effective_time))
}

/// Reads the plans of clients for a [`meterd_domain::pricing::Pricing`]. Makes no call if no price is for a plan.
pub async fn of_clients(
    conn: &mut PgConnection,
    catalog: &Catalog,
    client_ids: impl IntoIterator<Item = &str>,
) -> meterd_store::Result<ClientPlans> {
    if !catalog.has_plans() {
        return Ok(ClientPlans::default());
    }
    let client_ids: BTreeSet<&str> = client_ids.into_iter().collect();
    let client_ids: Vec<String> = client_ids.into_iter().map(str::to_owned).collect();
    Ok(meterd_store::clients::settings(conn, &client_ids).await?.plans)
}

/// Returns the fees of a client for a month, one for each plan in turn. An empty month is the present one.
pub async fn fees(engine: &Engine, client_id: &str, month: &str) -> Result<PlanFees, Refusal> {
    let mut fields = Fields::default();
    fields.required("client_id", client_id, ID_BYTES_MAX);
    let wanted = if month.is_empty() { None } else { fields.month("month", month) };
    fields.finish()?;
    let client = clients::existing(engine, client_id).await?;
    let zone = zone(&client.time_zone)?;
    let month = wanted.unwrap_or_else(|| Month::of(day_of(engine.clock.now(), zone)));
    let mut conn = engine.pool.acquire().await?;
    let plans = meterd_store::clients::settings(&mut conn, &[client_id.to_owned()]).await?.plans;
    let days = plans.of(client_id).map(|plans| plans.days(month, zone)).unwrap_or_default();
    fees_of(&mut conn, &engine.currency, month, days).await
}

/// Returns the fees of a month for these days.
pub(crate) async fn fees_of(
    conn: &mut PgConnection,
    currency: &str,
    month: Month,
    days: Vec<PlanDays>,
) -> Result<PlanFees, Refusal> {
    let digits = Currency::from_code(currency).and_then(Currency::exponent).unwrap_or(MINOR_DIGITS);
    let mut fees = PlanFees { month, fees: vec![], total: Total::ZERO };
    for days in days {
        let Plan { plan_id, monthly_fee, .. } = existing(conn, &days.terms.plan_id).await?;
        let amount = days.fee(monthly_fee, digits.into());
        fees.total += amount;
        let (first_day, last_day, days) = (days.first_day, days.last_day, days.count());
        fees.fees.push(PlanFee { plan_id, first_day, last_day, days, monthly_fee, amount });
    }
    Ok(fees)
}
