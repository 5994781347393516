//! Runs that charge recorded events by the present prices. The state of a run is a row.

use crate::numeric::{self, Numeric};
use crate::usage::events::{EventRow, RecordedEvent};
use crate::usage::tiers;
use bigdecimal::BigDecimal;
use chrono::{DateTime, NaiveDate, Utc};
use meterd_domain::decimal::Total;
use meterd_domain::period::Month;
use sqlx::{PgConnection, PgPool};
use std::collections::BTreeMap;

/// Which events a run examines, and what it does.
#[derive(Clone, Debug)]
pub struct NewRun {
    pub start_month: Month,
    pub end_month: Month,
    /// Empty filters select everything.
    pub client_ids: Vec<String>,
    pub services: Vec<String>,
    pub models: Vec<String>,
    /// Whether only the differences are computed.
    pub is_dry: bool,
    pub reason: String,
    /// The principal of the caller.
    pub actor: String,
}

/// A run.
#[derive(Clone, Debug)]
pub struct Run {
    pub run_id: i64,
    pub start_month: NaiveDate,
    pub end_month: NaiveDate,
    pub client_ids: Vec<String>,
    pub services: Vec<String>,
    pub models: Vec<String>,
    pub is_dry: bool,
    pub reason: String,
    pub actor: String,
    /// The last event that was examined. It is before all events at the start.
    pub client_id: String,
    pub event_time: Option<DateTime<Utc>>,
    pub event_seq: i64,
    /// Number of events to examine, as of the start.
    pub event_count: i64,
    pub examined_count: i64,
    pub changed_count: i64,
    pub create_time: DateTime<Utc>,
    pub cancel_time: Option<DateTime<Utc>>,
    pub finish_time: Option<DateTime<Utc>>,
}

impl Run {
    /// Returns where the run continues.
    pub fn position(&self) -> Position {
        let Self { client_id, event_time, event_seq, .. } = self;
        Position { client_id: client_id.clone(), event_time: *event_time, event_seq: *event_seq }
    }
}

/// Client, service and model.
pub type DifferenceKey = (String, String, String);

/// How the costs of some events change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CostChange {
    pub event_count: i64,
    pub old_cost: Total,
    pub new_cost: Total,
}

/// Creates a run.
pub async fn create(conn: &mut PgConnection, run: &NewRun) -> crate::Result<i64> {
    sqlx::query_scalar!(
        "INSERT INTO reprice_runs (start_month, end_month, client_ids, services, models, is_dry, reason, actor, event_count)
         SELECT $1, $2, $3, $4, $5, $6, $7, $8, COALESCE(sum(request_count), 0)::bigint FROM usage_months
         WHERE month BETWEEN $1 AND $2 AND (cardinality($3::text[]) = 0 OR client_id = ANY($3))
         RETURNING run_id",
        run.start_month.first_day(),
        run.end_month.first_day(),
        &run.client_ids,
        &run.services,
        &run.models,
        run.is_dry,
        run.reason,
        run.actor
    )
    .fetch_one(conn)
    .await
    .map_err(Into::into)
}

/// Returns a run.
pub async fn find(conn: &mut PgConnection, run_id: i64) -> crate::Result<Option<Run>> {
    sqlx::query_as!(
        Run,
        "SELECT run_id, start_month, end_month, client_ids, services, models, is_dry, reason, actor, client_id,
             NULLIF(event_time, '-infinity') AS event_time, event_seq, event_count, examined_count, changed_count,
             create_time, cancel_time, finish_time
         FROM reprice_runs WHERE run_id = $1",
        run_id
    )
    .fetch_optional(conn)
    .await
    .map_err(Into::into)
}

/// Locks and returns the oldest run that is not finished and that no other replica has locked.
pub async fn take(conn: &mut PgConnection) -> crate::Result<Option<Run>> {
    sqlx::query_as!(
        Run,
        "SELECT run_id, start_month, end_month, client_ids, services, models, is_dry, reason, actor, client_id,
             NULLIF(event_time, '-infinity') AS event_time, event_seq, event_count, examined_count, changed_count,
             create_time, cancel_time, finish_time
         FROM reprice_runs WHERE finish_time IS NULL ORDER BY run_id LIMIT 1 FOR UPDATE SKIP LOCKED"
    )
    .fetch_optional(conn)
    .await
    .map_err(Into::into)
}

/// Ends a run at its next step. Returns `false` if it has ended.
pub async fn cancel(conn: &mut PgConnection, run_id: i64) -> crate::Result<bool> {
    let done = sqlx::query!(
        "UPDATE reprice_runs SET cancel_time = COALESCE(cancel_time, now()) WHERE run_id = $1 AND finish_time IS NULL",
        run_id
    );
    Ok(done.execute(conn).await?.rows_affected() > 0)
}

/// An event of a client that was examined last. All events of clients before it, in byte order, were examined, too.
#[derive(Clone, Debug)]
pub struct Position {
    /// Empty: none was examined.
    pub client_id: String,
    /// `None`: no event of the client was examined.
    pub event_time: Option<DateTime<Utc>>,
    pub event_seq: i64,
}

/// Stores the progress of a run: its new position, and how many events were examined and changed.
pub async fn advance(
    conn: &mut PgConnection,
    run_id: i64,
    position: &Position,
    examined: i64,
    changed: i64,
) -> crate::Result<()> {
    sqlx::query!(
        "UPDATE reprice_runs SET client_id = $2, event_time = COALESCE($3, '-infinity'::timestamptz), event_seq = $4,
             examined_count = examined_count + $5, changed_count = changed_count + $6
         WHERE run_id = $1",
        run_id,
        position.client_id,
        position.event_time,
        position.event_seq,
        examined,
        changed
    )
    .execute(conn)
    .await
    .map(drop)
    .map_err(Into::into)
}

/// Finishes a run.
pub async fn finish(conn: &mut PgConnection, run_id: i64) -> crate::Result<()> {
    tiers::delete_of_run(conn, run_id).await?;
    sqlx::query!("UPDATE reprice_runs SET finish_time = now() WHERE run_id = $1", run_id)
        .execute(conn)
        .await
        .map(drop)
        .map_err(Into::into)
}

/// Returns the next client after `client_id` that may have events of a run.
pub async fn next_client(conn: &mut PgConnection, run: &Run, client_id: &str) -> crate::Result<Option<String>> {
    if !run.client_ids.is_empty() {
        let later = run.client_ids.iter().filter(|next| next.as_str() > client_id);
        return Ok(later.min().cloned());
    }
    sqlx::query_scalar!(
        "SELECT client_id FROM usage_months WHERE client_id > $1 AND month BETWEEN $2 AND $3
         ORDER BY client_id LIMIT 1",
        client_id,
        run.start_month,
        run.end_month
    )
    .fetch_optional(conn)
    .await
    .map_err(Into::into)
}

/// Returns up to `limit` events of a client after a position that count, in order of time and sequence number. The events are of
/// these days, both included.
pub async fn next_events(
    conn: &mut PgConnection,
    after: &Position,
    days: (NaiveDate, NaiveDate),
    limit: i64,
) -> crate::Result<Vec<RecordedEvent>> {
    let (from, to) = (Month::of(days.0).widest_range().0, Month::of(days.1).widest_range().1);
    let from = after.event_time.map_or(from, |time| time.max(from));
    let rows = sqlx::query_as!(
        EventRow,
        "SELECT client_id, event_time, event_seq, day, service, operation, model, units, input_tokens, output_tokens,
             cached_input_tokens, amount, charge, price_id, unpriced_reason, subject, external_id, idempotency_key,
             metadata::text AS metadata, service_tier, measures::text AS measures, reported_cost, labels::text AS labels, tier_month, tier_charge, tier_uses::text AS tier_uses,
               tier_residue, void_time, record_time
         FROM usage_events
         WHERE client_id = $1 AND (event_time, event_seq) > (COALESCE($2, '-infinity'::timestamptz), $3)
           AND event_time >= $6 AND event_time < $7 AND day BETWEEN $4 AND $5 AND void_time IS NULL
         ORDER BY event_time, event_seq LIMIT $8",
        after.client_id,
        after.event_time,
        after.event_seq,
        days.0,
        days.1,
        from,
        to,
        limit
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(RecordedEvent::try_from).collect()
}

/// Adds to the differences of a run.
pub async fn add_differences(
    conn: &mut PgConnection,
    run_id: i64,
    differences: &BTreeMap<DifferenceKey, CostChange>,
) -> crate::Result<()> {
    let (mut clients, mut services, mut models) = (vec![], vec![], vec![]);
    let (mut counts, mut old, mut new) = (vec![], vec![], vec![]);
    for ((client_id, service, model), change) in differences {
        clients.push(client_id.clone());
        services.push(service.clone());
        models.push(model.clone());
        counts.push(change.event_count);
        old.push(numeric::of(change.old_cost));
        new.push(numeric::of(change.new_cost));
    }
    sqlx::query!(
        "INSERT INTO reprice_differences AS t (run_id, client_id, service, model, event_count, old_cost, new_cost)
         SELECT $1, * FROM unnest($2::text[], $3::text[], $4::text[], $5::bigint[], $6::numeric[], $7::numeric[])
         ON CONFLICT (run_id, client_id, service, model) DO UPDATE SET
             event_count = t.event_count + excluded.event_count, old_cost = t.old_cost + excluded.old_cost,
             new_cost = t.new_cost + excluded.new_cost",
        run_id,
        &clients,
        &services,
        &models,
        &counts,
        &old as &[BigDecimal],
        &new as &[BigDecimal]
    )
    .execute(conn)
    .await
    .map(drop)
    .map_err(Into::into)
}

/// Returns up to `limit` differences of a run after `after`, ordered by client, service and model.
pub async fn differences(
    pool: &PgPool,
    run_id: i64,
    after: &DifferenceKey,
    limit: i64,
) -> crate::Result<Vec<(DifferenceKey, CostChange)>> {
    let rows = sqlx::query!(
        r#"SELECT client_id, service, model, event_count, old_cost AS "old_cost: Numeric", new_cost AS "new_cost: Numeric"
           FROM reprice_differences WHERE run_id = $1 AND (client_id, service, model) > ($2, $3, $4)
           ORDER BY client_id, service, model LIMIT $5"#,
        run_id,
        after.0,
        after.1,
        after.2,
        limit
    )
    .fetch_all(pool)
    .await?;
    let change = |event_count, old: Numeric, new: Numeric| CostChange {
        event_count,
        old_cost: old.into(),
        new_cost: new.into(),
    };
    let rows = rows.into_iter();
    Ok(rows
        .map(|row| ((row.client_id, row.service, row.model), change(row.event_count, row.old_cost, row.new_cost)))
        .collect())
}

/// Returns the sums of all differences of a run.
pub async fn total(pool: &PgPool, run_id: i64) -> crate::Result<CostChange> {
    let row = sqlx::query!(
        r#"SELECT COALESCE(sum(event_count), 0)::bigint AS "event_count!", COALESCE(sum(old_cost), 0) AS "old_cost!: Numeric",
               COALESCE(sum(new_cost), 0) AS "new_cost!: Numeric"
           FROM reprice_differences WHERE run_id = $1"#,
        run_id
    )
    .fetch_one(pool)
    .await?;
    Ok(CostChange { event_count: row.event_count, old_cost: row.old_cost.into(), new_cost: row.new_cost.into() })
}
