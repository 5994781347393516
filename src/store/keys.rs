//! The key ledger: who claims a key records its event.

use crate::domain::event::{Charge, EventId, PayloadHash, UnpricedReason};
use crate::domain::period::Month;
use crate::store::numeric;
use crate::store::policies::Policies;
use bigdecimal::BigDecimal;
use chrono::{DateTime, NaiveTime, Utc};
use sqlx::{PgConnection, PgPool};
use std::collections::{HashMap, HashSet};

/// Keys to claim, one entry an event, sorted by client and key.
#[derive(Default)]
pub struct Claims {
    pub client_ids: Vec<String>,
    pub keys: Vec<String>,
    pub payload_hashes: Vec<Vec<u8>>,
    pub event_times: Vec<DateTime<Utc>>,
    pub event_seqs: Vec<i64>,
    pub backfills: Vec<bool>,
}

/// What was claimed, and what held at that moment.
pub struct Claimed {
    /// Of the catalogue.
    pub catalog_version: i64,
    /// The last month that is closed.
    pub closed_through: Option<Month>,
    /// Keys of live events that were claimed before may be gone.
    pub keys_pruned_through: Option<DateTime<Utc>>,
    /// Sequence numbers of the events whose keys were new.
    pub event_seqs: HashSet<i64>,
    /// Time zone of each client that exists.
    pub time_zones: HashMap<String, String>,
    /// Alert policies of the clients.
    pub policies: Policies,
}

/// The event that has a key.
#[derive(Clone)]
pub struct KeyHolder {
    pub payload_hash: Vec<u8>,
    pub id: EventId,
    /// Nothing, where the event itself is no longer kept.
    pub charge: Option<Charge>,
}

impl Claims {
    /// Adds one; the caller keeps the order.
    pub fn push(&mut self, client_id: &str, key: &str, payload_hash: &PayloadHash, id: EventId, backfill: bool) {
        self.client_ids.push(client_id.into());
        self.keys.push(key.into());
        self.payload_hashes.push(payload_hash.to_vec());
        self.event_times.push(id.time);
        self.event_seqs.push(id.seq);
        self.backfills.push(backfill);
    }
}

/// Claims what nobody has claimed; waits for a transaction that is claiming the same key. Reads the catalogue's version,
/// which months are closed, which keys are pruned, and the time zones and alert policies of `client_ids` in the same statement, which must come
/// after the versions lock: its snapshot then holds until the commit.
pub async fn claim(conn: &mut PgConnection, claims: &Claims, client_ids: &[String]) -> sqlx::Result<Claimed> {
    let row = sqlx::query!(
        r#"WITH claimed AS (
               INSERT INTO idempotency_keys (client_id, idempotency_key, payload_hash, event_time, event_seq, backfill)
               SELECT * FROM unnest($1::text[], $2::text[], $3::bytea[], $4::timestamptz[], $5::bigint[], $6::bool[])
               ON CONFLICT DO NOTHING
               RETURNING event_seq
           )
           SELECT (SELECT version FROM catalog_version) AS "catalog_version!",
                  (SELECT NULLIF(closed_through, '-infinity') FROM deployment) AS closed_through,
                  (SELECT NULLIF(keys_pruned_through, '-infinity') FROM deployment) AS keys_pruned_through,
                  ARRAY(SELECT event_seq FROM claimed) AS "event_seqs!",
                  ARRAY(SELECT client_id FROM clients WHERE client_id = ANY($7) ORDER BY client_id) AS "client_ids!",
                  ARRAY(SELECT time_zone FROM clients WHERE client_id = ANY($7) ORDER BY client_id) AS "time_zones!",
                  ARRAY(SELECT client_id FROM alert_policies WHERE client_id = '' OR client_id = ANY($7)
                        ORDER BY client_id) AS "policy_client_ids!",
                  ARRAY(SELECT policy::text FROM alert_policies WHERE client_id = '' OR client_id = ANY($7)
                        ORDER BY client_id) AS "policies!""#,
        &claims.client_ids,
        &claims.keys,
        &claims.payload_hashes,
        &claims.event_times,
        &claims.event_seqs,
        &claims.backfills,
        client_ids
    )
    .fetch_one(conn)
    .await?;
    Ok(Claimed {
        catalog_version: row.catalog_version,
        closed_through: row.closed_through.map(Month::of),
        keys_pruned_through: row.keys_pruned_through,
        event_seqs: row.event_seqs.into_iter().collect(),
        time_zones: row.client_ids.into_iter().zip(row.time_zones).collect(),
        policies: Policies::of_rows(row.policy_client_ids.into_iter().zip(row.policies))?,
    })
}

/// Gives keys back that this transaction has claimed.
pub async fn give_back(conn: &mut PgConnection, client_ids: &[String], keys: &[String]) -> sqlx::Result<()> {
    sqlx::query!(
        "DELETE FROM idempotency_keys k USING unnest($1::text[], $2::text[]) AS given (client_id, idempotency_key)
         WHERE k.client_id = given.client_id AND k.idempotency_key = given.idempotency_key",
        client_ids,
        keys
    )
    .execute(conn)
    .await
    .map(drop)
}

/// Who has these keys, by client and key.
pub async fn holders(
    conn: &mut PgConnection,
    client_ids: &[String],
    keys: &[String],
) -> sqlx::Result<HashMap<(String, String), KeyHolder>> {
    let rows = sqlx::query!(
        r#"SELECT k.client_id, k.idempotency_key, k.payload_hash, k.event_time, k.event_seq,
                  e.charge AS "charge?: BigDecimal", e.price_id AS "price_id?", e.unpriced_reason AS "unpriced_reason?"
           FROM unnest($1::text[], $2::text[]) AS wanted (client_id, idempotency_key)
           JOIN idempotency_keys k USING (client_id, idempotency_key)
           LEFT JOIN usage_events e USING (client_id, event_time, event_seq)"#,
        client_ids,
        keys
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter()
        .map(|row| {
            let holder = KeyHolder {
                payload_hash: row.payload_hash,
                id: EventId { time: row.event_time, seq: row.event_seq },
                charge: charge(row.charge.as_ref(), row.price_id, row.unpriced_reason)?,
            };
            Ok(((row.client_id, row.idempotency_key), holder))
        })
        .collect()
}

/// Keys that were deleted.
pub struct Pruned {
    pub count: i64,
    /// Where the next chunk begins: at the time of the last one.
    pub last_time: Option<DateTime<Utc>>,
}

/// The time so many days ago, if keys of live events are older than that.
pub async fn live_before(pool: &PgPool, retention_days: u32) -> sqlx::Result<Option<DateTime<Utc>>> {
    sqlx::query_scalar!(
        r#"SELECT now() - make_interval(days => $1) AS "before!"
           WHERE EXISTS (SELECT FROM idempotency_keys
                         WHERE NOT backfill AND claim_time < now() - make_interval(days => $1))"#,
        retention_days as i32
    )
    .fetch_optional(pool)
    .await
}

/// Deletes keys that came before this time, not in a backfill, the oldest first. From `after` on, where the chunk before
/// ended, so that what it has left behind is not walked over again.
pub async fn prune_live(
    pool: &PgPool,
    before: DateTime<Utc>,
    after: Option<DateTime<Utc>>,
    limit: i64,
) -> sqlx::Result<Pruned> {
    sqlx::query_as!(
        Pruned,
        r#"WITH pruned AS (
               DELETE FROM idempotency_keys WHERE ctid = ANY(ARRAY(
                   SELECT ctid FROM idempotency_keys
                   WHERE NOT backfill AND claim_time < $1 AND claim_time >= COALESCE($2, '-infinity'::timestamptz)
                   ORDER BY claim_time LIMIT $3))
               RETURNING claim_time
           )
           SELECT count(*) AS "count!", max(claim_time) AS last_time FROM pruned"#,
        before,
        after,
        limit
    )
    .fetch_one(pool)
    .await
}

/// Deletes keys that came more than so many days ago, in a backfill, and whose month is closed in any time zone, in the order
/// of their events' times. From `after` on, as with [`prune_live`].
pub async fn prune_backfill(
    pool: &PgPool,
    retention_days: u32,
    closed_through: Month,
    after: Option<DateTime<Utc>>,
    limit: i64,
) -> sqlx::Result<Pruned> {
    // What lies before the last closed month by UTC is at most in that month.
    let before = closed_through.first_day().and_time(NaiveTime::MIN).and_utc();
    sqlx::query_as!(
        Pruned,
        r#"WITH pruned AS (
               DELETE FROM idempotency_keys WHERE ctid = ANY(ARRAY(
                   SELECT ctid FROM idempotency_keys
                   WHERE backfill AND event_time < $2 AND claim_time < now() - make_interval(days => $1)
                     AND event_time >= COALESCE($3, '-infinity'::timestamptz)
                   ORDER BY event_time LIMIT $4))
               RETURNING event_time
           )
           SELECT count(*) AS "count!", max(event_time) AS last_time FROM pruned"#,
        retention_days as i32,
        before,
        after,
        limit
    )
    .fetch_one(pool)
    .await
}

/// A charge from its three columns; nothing where all are null.
pub fn charge(
    charge: Option<&BigDecimal>,
    price_id: Option<i64>,
    unpriced_reason: Option<i16>,
) -> sqlx::Result<Option<Charge>> {
    Ok(match (charge, unpriced_reason) {
        (Some(charge), _) => {
            Some(Charge::Priced { charge: numeric::decimal(charge)?, price_id: price_id.unwrap_or_default() })
        }
        (None, Some(reason)) => Some(Charge::Unpriced(UnpricedReason::from_number(reason))),
        (None, None) => None,
    })
}
