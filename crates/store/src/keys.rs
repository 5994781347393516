//! The key ledger: who claims a key records its event.

use crate::numeric;
use bigdecimal::BigDecimal;
use chrono::{DateTime, NaiveTime, Utc};
use meterd_domain::event::{Charge, KEY_LEAD, UnpricedReason};
use meterd_domain::period::Month;
use sqlx::PgPool;

/// Keys that were deleted.
pub struct Pruned {
    pub count: i64,
    /// Where the next chunk begins: at the time of the last one.
    pub last_time: Option<DateTime<Utc>>,
}

/// Whether keys of live events came before this time, and their events are as old: those that [`prune_live`] deletes.
pub async fn is_any_live_before(pool: &PgPool, before: DateTime<Utc>) -> crate::Result<bool> {
    sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT FROM idempotency_keys WHERE NOT backfill AND claim_time < $1 AND event_time < $2) AS "any!""#,
        before,
        before + KEY_LEAD
    )
    .fetch_one(pool)
    .await.map_err(Into::into)
}

/// Deletes keys that came before this time, not in a backfill, the oldest first. From `after` on, where the chunk before
/// ended, so that what it has left behind is not walked over again.
///
/// A key whose event is younger stays, because a repeat of such an event is not refused: the database's clock was behind when
/// the key came.
pub async fn prune_live(
    pool: &PgPool,
    before: DateTime<Utc>,
    after: Option<DateTime<Utc>>,
    limit: i64,
) -> crate::Result<Pruned> {
    sqlx::query_as!(
        Pruned,
        r#"WITH pruned AS (
               DELETE FROM idempotency_keys WHERE ctid = ANY(ARRAY(
                   SELECT ctid FROM idempotency_keys
                   WHERE NOT backfill AND claim_time < $1 AND claim_time >= COALESCE($2, '-infinity'::timestamptz)
                     AND event_time < $4
                   ORDER BY claim_time LIMIT $3))
               RETURNING claim_time
           )
           SELECT count(*) AS "count!", max(claim_time) AS last_time FROM pruned"#,
        before,
        after,
        limit,
        before + KEY_LEAD
    )
    .fetch_one(pool)
    .await
    .map_err(Into::into)
}

/// Deletes keys that came before this time, in a backfill, and whose month is closed in any time zone, in the order
/// of their events' times. From `after` on, as with [`prune_live`].
pub async fn prune_backfill(
    pool: &PgPool,
    before: DateTime<Utc>,
    closed_through: Month,
    after: Option<DateTime<Utc>>,
    limit: i64,
) -> crate::Result<Pruned> {
    // What lies before the last closed month by UTC is at most in that month.
    let events_before = closed_through.first_day().and_time(NaiveTime::MIN).and_utc();
    sqlx::query_as!(
        Pruned,
        r#"WITH pruned AS (
               DELETE FROM idempotency_keys WHERE ctid = ANY(ARRAY(
                   SELECT ctid FROM idempotency_keys
                   WHERE backfill AND event_time < $2 AND claim_time < $1
                     AND event_time >= COALESCE($3, '-infinity'::timestamptz)
                   ORDER BY event_time LIMIT $4))
               RETURNING event_time
           )
           SELECT count(*) AS "count!", max(event_time) AS last_time FROM pruned"#,
        before,
        events_before,
        after,
        limit
    )
    .fetch_one(pool)
    .await
    .map_err(Into::into)
}

/// A charge from its three columns; nothing where all are null.
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
