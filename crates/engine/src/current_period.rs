//! The current period of a client: what it has used, and what it pays.

use crate::engine::Engine;
use crate::fields::Fields;
use crate::plans::{self, PlanFees};
use crate::refusal::Refusal;
use crate::usage::{ServiceUsage, services};
use chrono::TimeDelta;
use chrono_tz::Tz;
use meterd_domain::decimal::Total;
use meterd_domain::event::ID_BYTES_MAX;
use meterd_domain::period::{Month, day_of};
use meterd_domain::rollup::Sums;
use meterd_store::clients::zone;
use meterd_store::credits;
use meterd_store::usage::{self, AsOf, OfClient, ServiceSums};

/// What a client has used and paid in its current month.
#[derive(Debug)]
pub struct CurrentPeriod {
    pub month: Month,
    /// The plan that the client has now. Empty: none.
    pub plan_id: String,
    /// For the whole month.
    pub plan_fees: Total,
    pub sums: Sums,
    /// What credits have paid of the cost.
    pub credits_used: Total,
    /// The rest of the cost.
    pub payable: Total,
    /// What is left of the grants that are valid today.
    pub credits_available: Total,
    /// Ordered by cost, the highest first.
    pub services: Vec<ServiceUsage>,
}

/// Returns what a client has used and paid in its current month, from one snapshot.
pub async fn current_period(engine: &Engine, client_id: &str) -> Result<CurrentPeriod, Refusal> {
    let mut fields = Fields::default();
    fields.required("client_id", client_id, ID_BYTES_MAX);
    fields.finish()?;
    let now = engine.clock.now();
    let mut tx = engine.pool.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
    // The current month of a client in any time zone is one of these two.
    let month_around = |days| Month::of(day_of(now + TimeDelta::days(days), Tz::UTC));
    let read = usage::months(&mut tx, client_id, month_around(-1), month_around(1), None).await?;
    let AsOf { rows: OfClient { time_zone, usage }, .. } = read.ok_or_else(|| Refusal::client_not_found(client_id))?;
    let zone = zone(&time_zone)?;
    let today = day_of(now, zone);
    let month = Month::of(today);
    let rows: Vec<ServiceSums> =
        usage.services.into_iter().filter_map(|(of, row)| (of == month).then_some(row)).collect();
    let sums: Sums = rows.iter().map(|row| row.sums).sum();
    let credits_used = credits::paid(&mut tx, client_id, month).await?;
    let grants = credits::valid_on(&mut tx, client_id, today).await?;
    let credits_available = grants.iter().map(|grant| grant.grant().remaining).sum();
    let plans = meterd_store::clients::settings(&mut tx, &[client_id.to_owned()]).await?.plans;
    let days = plans.of(client_id).map(|plans| plans.days(month, zone)).unwrap_or_default();
    let PlanFees { total: plan_fees, .. } = plans::fees_of(&mut tx, &engine.currency, month, days).await?;
    tx.commit().await?;
    Ok(CurrentPeriod {
        month,
        plan_id: plans.at(client_id, now).to_owned(),
        plan_fees,
        sums,
        credits_used,
        payable: sums.cost - credits_used,
        credits_available,
        services: services(&engine.catalog.current(), rows),
    })
}
