//! Rebuilds the sums of months from their events, and moves events to other days after a client's time zone has changed.

use crate::clients;
use crate::fields::Fields;
use crate::ledger::{AlertEffect, Begun, MonthsLocked};
use crate::refusal::Refusal;
use crate::usage::SUMMARY_DAYS_MAX;
use crate::{Engine, alerts::raise::AlertSettings};
use chrono::NaiveDate;
use chrono_tz::Tz;
use meterd_domain::event::{EventId, ID_BYTES_MAX};
use meterd_domain::period::{Month, day_of};
use meterd_domain::rollup::Deltas;
use meterd_store::database::{connect, deployment};
use meterd_store::usage::verify::{
    Difference, MeasureDifference, RollupRow, Scope, client_months, compare, measure_differences,
};
use meterd_store::usage::{event_days, partitions};
use sqlx::PgConnection;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Which months to rebuild.
#[derive(Clone, Debug)]
pub struct RebuildInput {
    /// Empty for all clients.
    pub client_id: String,
    /// The first and the last day, such as "2026-11-01". Their whole months are rebuilt.
    pub start_date: String,
    pub end_date: String,
    /// Whether events get the days that they have in the present time zones of their clients.
    pub rezone: bool,
}

/// The result of a rebuild.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rebuilt {
    /// Client-months that were compared with their events.
    pub month_count: i64,
    /// Rows of sums that were corrected.
    pub corrected_row_count: i64,
    /// Events that were moved to another day.
    pub rezoned_event_count: i64,
}

/// Rebuilds months, each in a transaction of its own.
///
/// # Errors
/// `CLIENT_NOT_FOUND`, or `MONTH_CLOSED` if one of the months is past its retention.
pub async fn rebuild(engine: &Engine, input: RebuildInput) -> Result<Rebuilt, Refusal> {
    let RebuildInput { client_id, start_date, end_date, rezone } = input;
    let mut fields = Fields::default();
    fields.text("client_id", &client_id, ID_BYTES_MAX);
    let (start, end) = fields.days(&start_date, &end_date, SUMMARY_DAYS_MAX);
    fields.finish()?;
    let client_id = (!client_id.is_empty()).then_some(client_id);
    if let Some(client_id) = &client_id {
        clients::existing(engine, client_id).await?;
    }
    let months = Month::of(start)..=Month::of(end);
    let closed = deployment::closed_through(&mut *engine.pool.acquire().await?).await?;
    if let Some(closed) = closed.filter(|closed| months.start() <= closed) {
        return Err(Refusal::month_closed(closed));
    }
    let (first, last) = (months.start().previous(), months.end().next());
    let existing = client_months(&engine.pool, client_id.as_deref(), Some(first), Some(last)).await?;
    // A new time zone can move events into a neighbouring month that has no events yet.
    let touched = |month: Month| match rezone {
        true => vec![month.previous(), month, month.next()],
        false => vec![month],
    };
    let client_months: BTreeSet<(String, Month)> = existing
        .into_iter()
        .flat_map(|(client_id, month)| touched(month).into_iter().map(move |month| (client_id.clone(), month)))
        .filter(|(_, month)| months.contains(month))
        .collect();
    let mut rebuilt = Rebuilt::default();
    for (client_id, month) in client_months {
        let mut tx = engine.pool.begin().await?;
        let Some(one) = rebuild_month(&mut tx, &engine.alert_settings, &client_id, month, rezone).await? else {
            let closed = deployment::closed_through(&mut tx).await?;
            return Err(Refusal::month_closed(closed.unwrap_or(month)));
        };
        tx.commit().await?;
        rebuilt.month_count += 1;
        rebuilt.corrected_row_count += one.corrected_row_count;
        rebuilt.rezoned_event_count += one.rezoned_event_count;
    }
    Ok(rebuilt)
}

/// Makes the rows of a client's month equal its events, and checks the alerts of the months that were corrected.
///
/// With `rezone`, events of the month also get the days that they have in the client's present zone, and the neighbouring
/// months are corrected too. Events of closed months stay in them, and no event moves into one. Returns `None` if the month
/// itself is closed.
async fn rebuild_month(
    conn: &mut PgConnection,
    settings: &AlertSettings,
    client_id: &str,
    month: Month,
    rezone: bool,
) -> meterd_store::Result<Option<Rebuilt>> {
    let client: Arc<str> = client_id.into();
    connect::allow_long_statements(conn).await?;
    let mut months = if rezone { vec![month.previous(), month, month.next()] } else { vec![month] };
    let is_open = |closed: Option<Month>| move |month: &Month| closed.is_none_or(|closed| *month > closed);
    let (mut tx, zone, closed) = if rezone {
        // Only a rebuild with `rezone` shares the versions lock, so that no event is dated in another zone until the commit.
        // Otherwise no price could be changed while a long rebuild runs.
        let mut tx = Begun::new(conn).share_versions().await?;
        let zone = meterd_store::clients::time_zone(tx.conn(), client_id).await?;
        let closed = closed_through(tx.conn()).await?;
        months.retain(is_open(closed));
        if !months.contains(&month) {
            return Ok(None);
        }
        (tx.create_months(&client, &months).await?, zone, closed)
    } else {
        let mut tx = Begun::new(conn);
        let closed = closed_through(tx.conn()).await?;
        months.retain(is_open(closed));
        if !months.contains(&month) {
            return Ok(None);
        }
        (tx.create_months(&client, &months).await?, None, closed)
    };
    let rezoned_event_count = match zone {
        Some(zone) => rezone_events(&mut tx, client_id, month, zone, closed).await?,
        None => 0,
    };
    let mut corrections = Deltas::default();
    let mut corrected_row_count = 0;
    for &month in &months {
        let scope = Scope::of_month(client_id, month);
        for difference in compare(tx.conn(), &scope).await?.differences {
            corrected_row_count += 1;
            correct(&mut corrections, &client, difference);
        }
        for difference in measure_differences(tx.conn(), &scope).await? {
            corrected_row_count += 1;
            let MeasureDifference { day, service, operation, model, measure, expected, actual, .. } = difference;
            let key = (client.clone(), day, service.into(), operation.into(), model.into());
            corrections.day_measures.insert((key, measure.into()), expected - actual);
        }
    }
    let corrected: Vec<Month> = corrections.months.keys().map(|(_, month)| *month).collect();
    let mut posted = tx.post(corrections).await?;
    posted.delete_zeros(client_id, &months).await?;
    // Events may have moved to other days without a change of their sums. So all counters are computed again.
    posted.recount_limits(client_id, &months);
    // What is raised is not counted: a correction is no new usage.
    let done = posted.run_effects(settings, AlertEffect::Check { client_id, months: &corrected }).await?;
    corrected_row_count += done.corrected_counters();
    drop(done.into_raised());
    Ok(Some(Rebuilt { month_count: 1, corrected_row_count, rezoned_event_count }))
}

/// Returns the last closed month. Keeps all partitions attached until the commit, so that the events of open months stay.
async fn closed_through(conn: &mut PgConnection) -> meterd_store::Result<Option<Month>> {
    partitions::keep(conn).await?;
    deployment::closed_through(conn).await
}

/// Adds the correction of a row.
fn correct(corrections: &mut Deltas, client: &Arc<str>, difference: Difference) {
    let Difference { month, row, expected, actual, .. } = difference;
    let correction = expected - actual;
    match row {
        RollupRow::Month => {
            corrections.months.insert((client.clone(), month), correction);
        }
        RollupRow::MonthService { service } => {
            corrections.month_services.insert((client.clone(), month, service.into()), correction);
        }
        RollupRow::Day { day, service, operation, model } => {
            let key = (client.clone(), day, service.into(), operation.into(), model.into());
            corrections.days.insert(key, correction);
        }
    }
}

/// Moves the events of `month`, before or after the move, to the days that they have in `zone`. Returns how many were moved.
async fn rezone_events(
    tx: &mut MonthsLocked<'_>,
    client_id: &str,
    month: Month,
    zone: Tz,
    closed: Option<Month>,
) -> meterd_store::Result<i64> {
    let (from, to) = month.widest_range();
    let events = event_days::between(tx.conn(), client_id, from, to).await?;
    let moved: Vec<(EventId, NaiveDate)> = events
        .into_iter()
        .filter_map(|(id, old_day)| {
            let day = day_of(id.time, zone);
            let (old, new) = (Month::of(old_day), Month::of(day));
            let is_open = closed.is_none_or(|closed| old.min(new) > closed);
            (day != old_day && is_open && (old == month || new == month)).then_some((id, day))
        })
        .collect();
    event_days::set(tx.conn(), client_id, &moved).await?;
    Ok(moved.len() as i64)
}
