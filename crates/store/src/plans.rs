//! Plans, and the plans of clients over time.

use crate::database::deployment;
use crate::numeric;
use bigdecimal::BigDecimal;
use chrono::{DateTime, Utc};
use meterd_domain::decimal::Decimal;
use sqlx::PgConnection;

/// A plan: prices of its own and a monthly fee.
#[derive(Clone, Debug)]
pub struct Plan {
    pub plan_id: String,
    pub display_name: String,
    pub monthly_fee: Decimal,
    /// Credits for each month.
    pub included_credits: Decimal,
    /// Number of further months in which the credits of a month can be used.
    pub rollover_months: i32,
    /// Whether meterd ships it.
    pub built_in: bool,
    pub create_time: DateTime<Utc>,
}

/// A plan to create.
#[derive(Clone, Copy, Debug)]
pub struct NewPlan<'a> {
    pub plan_id: &'a str,
    pub display_name: &'a str,
    pub monthly_fee: Decimal,
    pub included_credits: Decimal,
    pub rollover_months: i32,
    pub built_in: bool,
}

/// A change of the plan of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientPlan {
    /// Empty: no plan.
    pub plan_id: String,
    /// The client has the plan from this time until that of the next change.
    pub effective_time: DateTime<Utc>,
    pub create_time: DateTime<Utc>,
}

struct PlanRow {
    plan_id: String,
    display_name: String,
    monthly_fee: BigDecimal,
    included_credits: BigDecimal,
    rollover_months: i32,
    built_in: bool,
    create_time: DateTime<Utc>,
}

impl TryFrom<PlanRow> for Plan {
    type Error = crate::StoreError;

    fn try_from(row: PlanRow) -> crate::Result<Self> {
        Ok(Self {
            plan_id: row.plan_id,
            display_name: row.display_name,
            monthly_fee: numeric::decimal(&row.monthly_fee)?,
            included_credits: numeric::decimal(&row.included_credits)?,
            rollover_months: row.rollover_months,
            built_in: row.built_in,
            create_time: row.create_time,
        })
    }
}

/// Returns one plan. `None` if it does not exist.
pub async fn find(conn: &mut PgConnection, plan_id: &str) -> crate::Result<Option<Plan>> {
    let row = sqlx::query_as!(
        PlanRow,
        "SELECT plan_id, display_name, monthly_fee, included_credits, rollover_months, built_in, create_time
         FROM plans WHERE plan_id = $1",
        plan_id
    );
    row.fetch_optional(conn).await?.map(Plan::try_from).transpose()
}

/// Returns up to `limit` plans with ids after `after`, ordered by id.
pub async fn list(conn: &mut PgConnection, after: &str, limit: i64) -> crate::Result<Vec<Plan>> {
    let rows = sqlx::query_as!(
        PlanRow,
        "SELECT plan_id, display_name, monthly_fee, included_credits, rollover_months, built_in, create_time FROM plans
         WHERE plan_id > $1 ORDER BY plan_id LIMIT $2",
        after,
        limit
    );
    rows.fetch_all(conn).await?.into_iter().map(Plan::try_from).collect()
}

/// Creates a plan. Returns `false` if it already exists.
pub async fn insert(conn: &mut PgConnection, new: &NewPlan<'_>) -> crate::Result<bool> {
    let done = sqlx::query!(
        "INSERT INTO plans (plan_id, display_name, monthly_fee, included_credits, rollover_months, built_in)
         VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING",
        new.plan_id,
        new.display_name,
        numeric::of(new.monthly_fee),
        numeric::of(new.included_credits),
        new.rollover_months,
        new.built_in
    );
    Ok(done.execute(conn).await?.rows_affected() > 0)
}

/// Sets the plan of a client, or none, from a time until its next change, and returns the change. It replaces an earlier change for the same time.
/// The transaction must hold the exclusive versions lock.
pub async fn set(
    conn: &mut PgConnection,
    client_id: &str,
    plan: Option<&Plan>,
    effective_time: DateTime<Utc>,
) -> crate::Result<ClientPlan> {
    deployment::count_client_settings_change(conn).await?;
    sqlx::query_as!(
        ClientPlan,
        "INSERT INTO client_plans (client_id, effective_time, plan_id, included_credits, rollover_months)
         VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (client_id, effective_time) DO UPDATE SET plan_id = excluded.plan_id,
             included_credits = excluded.included_credits, rollover_months = excluded.rollover_months, create_time = excluded.create_time
         RETURNING plan_id, effective_time, create_time",
        client_id,
        effective_time,
        plan.map_or("", |plan| &plan.plan_id),
        numeric::of(plan.map_or(Decimal::ZERO, |plan| plan.included_credits)),
        plan.map_or(0, |plan| plan.rollover_months)
    )
    .fetch_one(conn)
    .await
    .map_err(Into::into)
}

/// Returns up to `limit` changes of the plan of a client after a time, ordered by time. `None`: from the first one on.
pub async fn changes(
    conn: &mut PgConnection,
    client_id: &str,
    after: Option<DateTime<Utc>>,
    limit: i64,
) -> crate::Result<Vec<ClientPlan>> {
    sqlx::query_as!(
        ClientPlan,
        "SELECT plan_id, effective_time, create_time FROM client_plans
         WHERE client_id = $1 AND effective_time > COALESCE($2, '-infinity'::timestamptz)
         ORDER BY effective_time LIMIT $3",
        client_id,
        after,
        limit
    )
    .fetch_all(conn)
    .await
    .map_err(Into::into)
}

/// Returns the ids of the plans that some of these clients have, had, or will have.
pub async fn ids_of_clients(conn: &mut PgConnection, client_ids: &[String]) -> crate::Result<Vec<String>> {
    sqlx::query_scalar!(
        "SELECT DISTINCT plan_id FROM client_plans JOIN unnest($1::text[]) AS wanted (client_id) USING (client_id)
         WHERE plan_id <> ''",
        client_ids
    )
    .fetch_all(conn)
    .await
    .map_err(Into::into)
}
