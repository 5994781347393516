//! Deletes old idempotency keys, and reads the charge of an event.

use crate::numeric;
use bigdecimal::BigDecimal;
use chrono::{DateTime, NaiveTime, Utc};
use meterd_domain::event::{Charge, EVENT_LEAD_MAX, UnpricedReason};
use meterd_domain::period::Month;
use sqlx::PgPool;

/// The result of one deletion.
pub struct Pruned {
    /// Number of deleted keys.
    pub count: i64,
    /// Time of the last deleted key, at which the next deletion starts. `None` if no key was deleted.
    pub last_time: Option<DateTime<Utc>>,
}

/// Returns whether there is a key that [`prune_live`] deletes. Without the LIMIT, Citus would collect all such keys.
pub async fn is_any_live_before(pool: &PgPool, before: DateTime<Utc>) -> crate::Result<bool> {
    sqlx::query_scalar!(
        r#"SELECT EXISTS (
               SELECT 1 FROM idempotency_keys WHERE NOT backfill AND claim_time < $1 AND event_time < $2 LIMIT 1
           ) AS "any!""#,
        before,
        before + EVENT_LEAD_MAX
    )
    .fetch_one(pool)
    .await
    .map_err(Into::into)
}

/// Deletes up to `limit` keys of a generation that belong to live events and were claimed before `before`, oldest first. Starts
/// at `after`, where the previous deletion ended, so that it does not scan the keys that were left there.
///
/// Deletes a range of the index, because Citus does not delete rows by their address. The sequence number orders the keys that one
/// transaction has claimed.
///
/// Keeps a key if its event is not older than `before` plus [`EVENT_LEAD_MAX`], which happens if the database's clock was
/// behind when the key was claimed. A repeat of such an event would still be accepted.
pub async fn prune_live(
    pool: &PgPool,
    generation: i32,
    before: DateTime<Utc>,
    after: Option<DateTime<Utc>>,
    limit: i64,
) -> crate::Result<Pruned> {
    sqlx::query_as!(
        Pruned,
        r#"WITH first AS MATERIALIZED (
               SELECT claim_time, event_seq FROM idempotency_keys
               WHERE generation = $5 AND NOT backfill AND claim_time < $1 AND claim_time >= COALESCE($2, '-infinity'::timestamptz)
                 AND event_time < $4
               ORDER BY claim_time, event_seq LIMIT $3
           ), last AS MATERIALIZED (
               SELECT claim_time, event_seq FROM first ORDER BY claim_time DESC, event_seq DESC LIMIT 1
           ), pruned AS (
               DELETE FROM idempotency_keys
               WHERE generation = $5 AND NOT backfill AND event_time < $4
                 AND claim_time >= (SELECT min(claim_time) FROM first) AND claim_time <= (SELECT claim_time FROM last)
                 AND (claim_time, event_seq) <= ((SELECT claim_time FROM last), (SELECT event_seq FROM last))
               RETURNING claim_time
           )
           SELECT count(*) AS "count!", max(claim_time) AS last_time FROM pruned"#,
        before,
        after,
        limit,
        before + EVENT_LEAD_MAX,
        generation
    )
    .fetch_one(pool)
    .await
    .map_err(Into::into)
}

/// Deletes up to `limit` keys of a generation that belong to backfilled events, were claimed before `before`, and whose month is
/// closed in every time zone, in order of event time. Starts at `after` and deletes a range, as [`prune_live`] does.
pub async fn prune_backfill(
    pool: &PgPool,
    generation: i32,
    before: DateTime<Utc>,
    closed_through: Month,
    after: Option<DateTime<Utc>>,
    limit: i64,
) -> crate::Result<Pruned> {
    let events_before = closed_events_before(closed_through);
    sqlx::query_as!(
        Pruned,
        r#"WITH first AS MATERIALIZED (
               SELECT event_time, claim_time, event_seq FROM idempotency_keys
               WHERE generation = $5 AND backfill AND event_time < $2 AND claim_time < $1
                 AND event_time >= COALESCE($3, '-infinity'::timestamptz)
               ORDER BY event_time, claim_time, event_seq LIMIT $4
           ), last AS MATERIALIZED (
               SELECT event_time, claim_time, event_seq FROM first
               ORDER BY event_time DESC, claim_time DESC, event_seq DESC LIMIT 1
           ), pruned AS (
               DELETE FROM idempotency_keys
               WHERE generation = $5 AND backfill AND claim_time < $1
                 AND event_time >= (SELECT min(event_time) FROM first) AND event_time <= (SELECT event_time FROM last)
                 AND (event_time, claim_time, event_seq)
                     <= ((SELECT event_time FROM last), (SELECT claim_time FROM last), (SELECT event_seq FROM last))
               RETURNING event_time
           )
           SELECT count(*) AS "count!", max(event_time) AS last_time FROM pruned"#,
        before,
        events_before,
        after,
        limit,
        generation
    )
    .fetch_one(pool)
    .await
    .map_err(Into::into)
}

/// Returns a time before which all events belong to a closed month in every time zone. An event before the last closed month in
/// UTC belongs to that month at the latest.
pub(super) fn closed_events_before(closed_through: Month) -> DateTime<Utc> {
    closed_through.first_day().and_time(NaiveTime::MIN).and_utc()
}

/// Converts the three charge columns of an event. `None` if all are NULL.
pub fn charge(
    charge: Option<&BigDecimal>,
    price_id: Option<i64>,
    unpriced_reason: Option<i16>,
) -> crate::Result<Option<Charge>> {
    Ok(match (charge, unpriced_reason) {
        (Some(charge), _) => {
            Some(Charge::Priced { charge: numeric::decimal(charge)?, price_id: price_id.unwrap_or_default() })
        }
        (None, Some(reason)) => Some(Charge::Unpriced(UnpricedReason::from_number(reason))),
        (None, None) => None,
    })
}
