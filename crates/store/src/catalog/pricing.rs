//! Tasks that price unpriced events after a change of the catalog.

use crate::numeric;
use crate::usage::events::{EventRow, RecordedEvent};
use bigdecimal::BigDecimal;
use chrono::{DateTime, NaiveDate, Utc};
use meterd_domain::event::{Charge, EventId};
use meterd_domain::period::Month;
use meterd_domain::tiers::{EventTiers, uses_json};
use sqlx::{PgConnection, PgPool};
use std::collections::HashSet;

/// A task and its progress.
pub struct Task {
    pub task_id: i64,
    pub service: String,
    /// Client of the last examined event.
    pub client_id: String,
    /// `None` before the first event.
    pub event_time: Option<DateTime<Utc>>,
    pub event_seq: i64,
}

/// An unpriced event, with the fields that a task needs before it locks months.
pub struct Waiting {
    pub client_id: String,
    pub event_time: DateTime<Utc>,
    pub event_seq: i64,
    pub day: NaiveDate,
    pub tier_month: Option<NaiveDate>,
}

impl Waiting {
    /// Returns the months of its day and of its tiers.
    pub fn months(&self) -> [Month; 2] {
        [Month::of(self.day), Month::of(self.tier_month.unwrap_or(self.day))]
    }
}

/// Adds a task that examines the unpriced events of a service.
pub async fn insert_task(conn: &mut PgConnection, service: &str) -> crate::Result<()> {
    sqlx::query!("INSERT INTO pricing_tasks (service) VALUES ($1)", service)
        .execute(conn)
        .await
        .map(drop)
        .map_err(Into::into)
}

/// Returns the number of open tasks.
pub async fn open_task_count(pool: &PgPool) -> crate::Result<i64> {
    sqlx::query_scalar!(r#"SELECT count(*) AS "count!" FROM pricing_tasks WHERE finish_time IS NULL"#)
        .fetch_one(pool)
        .await
        .map_err(Into::into)
}

/// Locks and returns the oldest open task that no other replica has locked. The lock lasts until the end of the
/// transaction.
pub async fn take_task(conn: &mut PgConnection) -> crate::Result<Option<Task>> {
    sqlx::query_as!(
        Task,
        r#"SELECT task_id, service, client_id, NULLIF(event_time, '-infinity') AS event_time, event_seq FROM pricing_tasks
           WHERE finish_time IS NULL ORDER BY task_id LIMIT 1 FOR UPDATE SKIP LOCKED"#
    )
    .fetch_optional(conn)
    .await.map_err(Into::into)
}

/// Returns up to `limit` next unpriced events of a task in months after `closed`, in order of client, time and sequence
/// number.
pub async fn next_waiting(
    conn: &mut PgConnection,
    task: &Task,
    closed: Option<Month>,
    limit: i64,
) -> crate::Result<Vec<Waiting>> {
    sqlx::query_as!(
        Waiting,
        "SELECT client_id, event_time, event_seq, day, tier_month FROM usage_events
         WHERE service = $1 AND unpriced_reason IS NOT NULL AND void_time IS NULL
           AND (client_id, event_time, event_seq) > ($2, COALESCE($3, '-infinity'::timestamptz), $4)
           AND day > COALESCE($6, '-infinity'::date)
         ORDER BY client_id, event_time, event_seq LIMIT $5",
        task.service,
        task.client_id,
        task.event_time,
        task.event_seq,
        limit,
        closed.map(Month::last_day)
    )
    .fetch_all(conn)
    .await
    .map_err(Into::into)
}

/// Returns the events that are still unpriced, with all fields. The transaction must hold the locks of their months, so
/// that the events do not change.
pub async fn still_waiting(conn: &mut PgConnection, waiting: &[Waiting]) -> crate::Result<Vec<RecordedEvent>> {
    let clients: Vec<String> = waiting.iter().map(|event| event.client_id.clone()).collect();
    let times: Vec<DateTime<Utc>> = waiting.iter().map(|event| event.event_time).collect();
    let seqs: Vec<i64> = waiting.iter().map(|event| event.event_seq).collect();
    let rows = sqlx::query_as!(
        EventRow,
        r#"SELECT client_id, event_time, event_seq, day, service, operation, model, units, input_tokens, output_tokens,
               cached_input_tokens, amount, charge, price_id, unpriced_reason, subject, external_id, idempotency_key,
               metadata::text AS metadata, service_tier,
               measures::text AS measures, reported_cost, labels::text AS labels, tier_month, tier_charge, tier_uses::text AS tier_uses,
               tier_residue, void_time, record_time
           FROM usage_events JOIN unnest($1::text[], $2::timestamptz[], $3::bigint[]) AS wanted (client_id, event_time, event_seq)
               USING (client_id, event_time, event_seq)
           WHERE unpriced_reason IS NOT NULL AND void_time IS NULL
           ORDER BY client_id, event_time, event_seq"#,
        &clients,
        &times,
        &seqs
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(RecordedEvent::try_from).collect()
}

/// Returns the client-months of those events that were recorded live and not by a backfill, according to their keys.
pub async fn live_months(
    conn: &mut PgConnection,
    events: &[&RecordedEvent],
) -> crate::Result<HashSet<(String, Month)>> {
    let clients: Vec<String> = events.iter().map(|recorded| recorded.event.client_id.to_string()).collect();
    let keys: Vec<String> = events.iter().map(|recorded| recorded.event.idempotency_key.to_string()).collect();
    let days: Vec<NaiveDate> = events.iter().map(|recorded| recorded.day).collect();
    let rows = sqlx::query!(
        r#"SELECT DISTINCT wanted.client_id AS "client_id!", date_trunc('month', day::timestamp)::date AS "month!"
           FROM unnest($1::text[], $2::text[], $3::date[]) AS wanted (client_id, idempotency_key, day)
           JOIN idempotency_keys k USING (client_id, idempotency_key) WHERE NOT k.backfill"#,
        &clients,
        &keys,
        &days
    )
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(|row| (row.client_id, Month::of(row.month))).collect())
}

/// The new charge of an event, or the new reason why it has none.
#[derive(Clone, Debug)]
pub struct NewCharge<'a> {
    pub client_id: &'a str,
    pub event: EventId,
    pub charge: Charge,
    pub tiers: Option<(Month, EventTiers)>,
}

/// Sets the charges of events. The transaction holds the locks of their months.
pub async fn set_charges(conn: &mut PgConnection, charges: &[NewCharge<'_>]) -> crate::Result<()> {
    let clients: Vec<String> = charges.iter().map(|new| new.client_id.to_owned()).collect();
    let times: Vec<DateTime<Utc>> = charges.iter().map(|new| new.event.time).collect();
    let seqs: Vec<i64> = charges.iter().map(|new| new.event.seq).collect();
    let (mut amounts, mut prices, mut reasons) = (vec![], vec![], vec![]);
    let (mut tier_months, mut tier_charges, mut tier_uses) = (vec![], vec![], vec![]);
    for NewCharge { charge, tiers, .. } in charges {
        let tiers = tiers.as_ref();
        tier_months.push(tiers.map(|(month, _)| month.first_day()));
        tier_charges.push(tiers.map(|(_, tiers)| numeric::of(tiers.charge)));
        tier_uses.push(tiers.map(|(_, tiers)| uses_json(&tiers.uses)));
        let (amount, price, reason) = match *charge {
            Charge::Priced { charge, price_id } => (Some(numeric::of(charge)), Some(price_id), None),
            Charge::Unpriced(reason) => (None, None, Some(reason as i16)),
        };
        amounts.push(amount);
        prices.push(price);
        reasons.push(reason);
    }
    sqlx::query!(
        "UPDATE usage_events t SET charge = new.charge, price_id = new.price_id, unpriced_reason = new.unpriced_reason,
             tier_month = COALESCE(t.tier_month, new.tier_month), tier_charge = new.tier_charge,
             tier_uses = new.tier_uses::jsonb
         FROM unnest($1::text[], $2::timestamptz[], $3::bigint[], $4::numeric[], $5::bigint[], $6::smallint[], $7::date[],
                 $8::numeric[], $9::text[])
             AS new (client_id, event_time, event_seq, charge, price_id, unpriced_reason, tier_month, tier_charge, tier_uses)
         WHERE t.client_id = new.client_id AND t.event_time = new.event_time AND t.event_seq = new.event_seq",
        &clients,
        &times,
        &seqs,
        &amounts as &[Option<BigDecimal>],
        &prices as &[Option<i64>],
        &reasons as &[Option<i16>],
        &tier_months as &[Option<NaiveDate>],
        &tier_charges as &[Option<BigDecimal>],
        &tier_uses as &[Option<String>]
    )
    .execute(conn)
    .await
    .map(drop)
    .map_err(Into::into)
}

/// Stores the progress of a task. The task is finished if `last` is `None`.
pub async fn advance(
    conn: &mut PgConnection,
    task_id: i64,
    last: Option<&Waiting>,
    examined: i64,
    priced: i64,
) -> crate::Result<()> {
    sqlx::query!(
        "UPDATE pricing_tasks SET client_id = COALESCE($2, client_id), event_time = COALESCE($3, event_time),
             event_seq = COALESCE($4, event_seq), examined_count = examined_count + $5, priced_count = priced_count + $6,
             finish_time = CASE WHEN $2::text IS NULL THEN now() END
         WHERE task_id = $1",
        task_id,
        last.map(|event| event.client_id.as_str()),
        last.map(|event| event.event_time),
        last.map(|event| event.event_seq),
        examined,
        priced
    )
    .execute(conn)
    .await
    .map(drop).map_err(Into::into)
}
