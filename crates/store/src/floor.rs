//! The floors of `meterd-bench`: the same guarantees with one transaction per event; `statements`, with one transaction per batch;
//! `copy`, with no guarantee but the unique key; and other queries of the bench.

mod copy;
mod statements;

pub use copy::{CopyRows, copy, create_copied, sum_copied};
pub use statements::{HashedEvent, record_batch};

use crate::numeric;
use bigdecimal::BigDecimal;
use meterd_domain::event::{Charge, PayloadHash, PricedEvent};
use meterd_domain::period::Month;
use sqlx::{AssertSqlSafe, Executor, PgConnection};

/// What the database says of itself.
pub struct Facts {
    pub version: String,
    pub fsync: String,
    pub synchronous_commit: String,
    pub full_page_writes: String,
    pub wal_sync_method: String,
    /// Process of the asking connection.
    pub backend_pid: i32,
}

/// Asks what matters for a figure.
pub async fn facts(conn: &mut PgConnection) -> crate::Result<Facts> {
    sqlx::query_as!(
        Facts,
        r#"SELECT current_setting('server_version') AS "version!", current_setting('fsync') AS "fsync!",
               current_setting('synchronous_commit') AS "synchronous_commit!",
               current_setting('full_page_writes') AS "full_page_writes!",
               current_setting('wal_sync_method') AS "wal_sync_method!", pg_backend_pid() AS "backend_pid!""#
    )
    .fetch_one(conn)
    .await
    .map_err(Into::into)
}

/// How many events the months count.
pub async fn counted_events(conn: &mut PgConnection) -> crate::Result<u64> {
    let count = sqlx::query_scalar!(r#"SELECT COALESCE(sum(request_count), 0)::bigint AS "count!" FROM usage_months"#);
    Ok(u64::try_from(count.fetch_one(conn).await?).unwrap_or_default())
}

/// How far the log of changes has been written, in bytes.
pub async fn wal_position(conn: &mut PgConnection) -> crate::Result<u64> {
    let bytes = sqlx::query_scalar!(r#"SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint AS "bytes!""#);
    Ok(u64::try_from(bytes.fetch_one(conn).await?).unwrap_or_default())
}

/// A round trip that does nothing.
pub async fn round_trip(conn: &mut PgConnection) -> crate::Result<()> {
    sqlx::query!("SELECT 1 AS one").fetch_one(conn).await.map(drop).map_err(Into::into)
}

/// A round trip with the smallest transaction that has something to make durable.
pub async fn durable_commit(conn: &mut PgConnection) -> crate::Result<()> {
    sqlx::query!("SELECT pg_logical_emit_message(true, 'meterd bench', '')::text AS lsn")
        .fetch_one(conn)
        .await
        .map(drop)
        .map_err(Into::into)
}

/// Whether there is a database of this name.
pub async fn database_exists(conn: &mut PgConnection, name: &str) -> crate::Result<bool> {
    sqlx::query_scalar!(r#"SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1) AS "exists!""#, name)
        .fetch_one(conn)
        .await
        .map_err(Into::into)
}

/// Makes an empty database. The name is one that needs no quotes.
pub async fn create_database(conn: &mut PgConnection, name: &str) -> crate::Result<()> {
    conn.execute(AssertSqlSafe(format!("CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8'")))
        .await
        .map(drop)
        .map_err(Into::into)
}

/// Removes a database, and cuts off who is still there.
pub async fn drop_database(conn: &mut PgConnection, name: &str) -> crate::Result<()> {
    conn.execute(AssertSqlSafe(format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)")))
        .await
        .map(drop)
        .map_err(Into::into)
}

/// Records one event: key, event, month, month's service, day, each with a prepared statement and in the lock order that
/// everyone keeps. False, when the key was taken: then nothing is recorded.
pub async fn record(
    conn: &mut PgConnection,
    priced: &PricedEvent<'_>,
    payload_hash: &PayloadHash,
) -> crate::Result<bool> {
    if !claim(conn, priced, payload_hash).await? {
        return Ok(false);
    }
    let (charge, cost, price_id, reason) = match priced.charge {
        Charge::Priced { charge, price_id } => {
            let charge = numeric::of(charge);
            (Some(charge.clone()), charge, Some(price_id), None)
        }
        Charge::Unpriced(reason) => (None, BigDecimal::from(0), None, Some(reason as i16)),
    };
    insert(conn, priced, charge, price_id, reason).await?;
    let unpriced = i64::from(reason.is_some());
    add_month(conn, priced, &cost, unpriced).await?;
    add_month_service(conn, priced, &cost, unpriced).await?;
    add_day(conn, priced, &cost, unpriced).await?;
    Ok(true)
}

async fn claim(conn: &mut PgConnection, priced: &PricedEvent<'_>, payload_hash: &PayloadHash) -> crate::Result<bool> {
    let claimed = sqlx::query!(
        "INSERT INTO idempotency_keys (client_id, idempotency_key, payload_hash, event_time, event_seq)
         VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING",
        &*priced.event.client_id,
        &*priced.event.idempotency_key,
        &payload_hash[..],
        priced.id.time,
        priced.id.seq
    )
    .execute(conn)
    .await?;
    Ok(claimed.rows_affected() == 1)
}

async fn insert(
    conn: &mut PgConnection,
    priced: &PricedEvent<'_>,
    charge: Option<BigDecimal>,
    price_id: Option<i64>,
    unpriced_reason: Option<i16>,
) -> crate::Result<()> {
    let (event, measures) = (priced.event, &priced.event.measures);
    sqlx::query!(
        "INSERT INTO usage_events (client_id, event_time, event_seq, day, service, operation, model, units, input_tokens,
             output_tokens, cached_input_tokens, amount, charge, price_id, unpriced_reason, subject, external_id,
             idempotency_key, metadata)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19::text::jsonb)",
        &*event.client_id,
        priced.id.time,
        priced.id.seq,
        priced.day,
        &*event.service,
        &*event.operation,
        &*event.model,
        numeric::of(measures.units),
        measures.input_tokens,
        measures.output_tokens,
        measures.cached_input_tokens,
        measures.amount.map(numeric::of),
        charge,
        price_id,
        unpriced_reason,
        event.subject,
        event.external_id,
        &*event.idempotency_key,
        event.metadata
    )
    .execute(conn)
    .await
    .map(drop).map_err(Into::into)
}

async fn add_month(
    conn: &mut PgConnection,
    priced: &PricedEvent<'_>,
    cost: &BigDecimal,
    unpriced: i64,
) -> crate::Result<()> {
    let (event, measures) = (priced.event, &priced.event.measures);
    sqlx::query!(
        "INSERT INTO usage_months AS t (client_id, month, request_count, units, input_tokens, output_tokens,
             cached_input_tokens, cost, unpriced_event_count, summary_stale_since)
         VALUES ($1, $2, 1, $3, $4, $5, $6, $7, $8, now())
         ON CONFLICT (client_id, month) DO UPDATE SET
             request_count = t.request_count + 1,
             units = t.units + excluded.units,
             input_tokens = t.input_tokens + excluded.input_tokens,
             output_tokens = t.output_tokens + excluded.output_tokens,
             cached_input_tokens = t.cached_input_tokens + excluded.cached_input_tokens,
             cost = t.cost + excluded.cost,
             unpriced_event_count = t.unpriced_event_count + excluded.unpriced_event_count,
             summary_stale_since = COALESCE(t.summary_stale_since, now())",
        &*event.client_id,
        Month::of(priced.day).first_day(),
        numeric::of(measures.units),
        measures.input_tokens,
        measures.output_tokens,
        measures.cached_input_tokens,
        cost,
        unpriced
    )
    .execute(conn)
    .await
    .map(drop)
    .map_err(Into::into)
}

async fn add_month_service(
    conn: &mut PgConnection,
    priced: &PricedEvent<'_>,
    cost: &BigDecimal,
    unpriced: i64,
) -> crate::Result<()> {
    let (event, measures) = (priced.event, &priced.event.measures);
    sqlx::query!(
        "INSERT INTO usage_month_services AS t (client_id, month, service, request_count, units, input_tokens,
             output_tokens, cached_input_tokens, cost, unpriced_event_count)
         VALUES ($1, $2, $3, 1, $4, $5, $6, $7, $8, $9)
         ON CONFLICT (client_id, month, service) DO UPDATE SET
             request_count = t.request_count + 1,
             units = t.units + excluded.units,
             input_tokens = t.input_tokens + excluded.input_tokens,
             output_tokens = t.output_tokens + excluded.output_tokens,
             cached_input_tokens = t.cached_input_tokens + excluded.cached_input_tokens,
             cost = t.cost + excluded.cost,
             unpriced_event_count = t.unpriced_event_count + excluded.unpriced_event_count",
        &*event.client_id,
        Month::of(priced.day).first_day(),
        &*event.service,
        numeric::of(measures.units),
        measures.input_tokens,
        measures.output_tokens,
        measures.cached_input_tokens,
        cost,
        unpriced
    )
    .execute(conn)
    .await
    .map(drop)
    .map_err(Into::into)
}

async fn add_day(
    conn: &mut PgConnection,
    priced: &PricedEvent<'_>,
    cost: &BigDecimal,
    unpriced: i64,
) -> crate::Result<()> {
    let (event, measures) = (priced.event, &priced.event.measures);
    sqlx::query!(
        "INSERT INTO usage_days AS t (client_id, day, service, operation, model, request_count, units, input_tokens,
             output_tokens, cached_input_tokens, cost, unpriced_event_count)
         VALUES ($1, $2, $3, $4, $5, 1, $6, $7, $8, $9, $10, $11)
         ON CONFLICT (client_id, day, service, operation, model) DO UPDATE SET
             request_count = t.request_count + 1,
             units = t.units + excluded.units,
             input_tokens = t.input_tokens + excluded.input_tokens,
             output_tokens = t.output_tokens + excluded.output_tokens,
             cached_input_tokens = t.cached_input_tokens + excluded.cached_input_tokens,
             cost = t.cost + excluded.cost,
             unpriced_event_count = t.unpriced_event_count + excluded.unpriced_event_count",
        &*event.client_id,
        priced.day,
        &*event.service,
        &*event.operation,
        &*event.model,
        numeric::of(measures.units),
        measures.input_tokens,
        measures.output_tokens,
        measures.cached_input_tokens,
        cost,
        unpriced
    )
    .execute(conn)
    .await
    .map(drop)
    .map_err(Into::into)
}
