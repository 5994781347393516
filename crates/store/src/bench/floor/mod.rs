//! The floors of `meterd-bench`: baselines that only the benchmarks use, and other queries of the benchmarks.
//!
//! This module records events with the same guarantees as meterd, in one transaction per event; `statements` does so in
//! one transaction per batch. `copy` guarantees only the unique key.

mod copy;
mod statements;
mod sums;

pub use copy::{CopyRows, copy, create_copied, sum_copied};
pub use statements::{HashedEvent, record_batch};

use crate::numeric;
use bigdecimal::BigDecimal;
use meterd_domain::event::{Charge, PayloadHash, PricedEvent};
use meterd_domain::period::Month;
use sqlx::{AssertSqlSafe, Executor, PgConnection};

/// Version and settings of the database that affect a figure.
pub struct Facts {
    pub version: String,
    pub fsync: String,
    pub synchronous_commit: String,
    pub full_page_writes: String,
    pub wal_sync_method: String,
    /// Process id of the server process of this connection.
    pub backend_pid: i32,
}

/// Reads the version and the settings.
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

/// Returns the number of events that the months count.
pub async fn counted_events(conn: &mut PgConnection) -> crate::Result<u64> {
    let count = sqlx::query_scalar!(r#"SELECT COALESCE(sum(request_count), 0)::bigint AS "count!" FROM usage_months"#);
    Ok(u64::try_from(count.fetch_one(conn).await?).unwrap_or_default())
}

/// Returns the current insert position of the write-ahead log, in bytes.
pub async fn wal_position(conn: &mut PgConnection) -> crate::Result<u64> {
    let bytes = sqlx::query_scalar!(r#"SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint AS "bytes!""#);
    Ok(u64::try_from(bytes.fetch_one(conn).await?).unwrap_or_default())
}

/// Makes a round trip that does nothing.
pub async fn round_trip(conn: &mut PgConnection) -> crate::Result<()> {
    sqlx::query!("SELECT 1 AS one").fetch_one(conn).await.map(drop).map_err(Into::into)
}

/// Makes a round trip with the smallest transaction that must be flushed to disk.
pub async fn durable_commit(conn: &mut PgConnection) -> crate::Result<()> {
    sqlx::query!("SELECT pg_logical_emit_message(true, 'meterd bench', '')::text AS lsn")
        .fetch_one(conn)
        .await
        .map(drop)
        .map_err(Into::into)
}

/// Returns whether a database with this name exists.
pub async fn database_exists(conn: &mut PgConnection, name: &str) -> crate::Result<bool> {
    sqlx::query_scalar!(r#"SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1) AS "exists!""#, name)
        .fetch_one(conn)
        .await
        .map_err(Into::into)
}

/// Creates an empty database. The name must not need quotes.
pub async fn create_database(conn: &mut PgConnection, name: &str) -> crate::Result<()> {
    conn.execute(AssertSqlSafe(format!("CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8'")))
        .await
        .map(drop)
        .map_err(Into::into)
}

/// Drops a database and ends its sessions.
pub async fn drop_database(conn: &mut PgConnection, name: &str) -> crate::Result<()> {
    conn.execute(AssertSqlSafe(format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)")))
        .await
        .map(drop)
        .map_err(Into::into)
}

/// Records one event: key, event, month, month service and day, each with a prepared statement, in the lock order of
/// [`crate::locks`]. Returns `false` and records nothing if the key was already taken.
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
    sqlx::query_file!(
        "sql/bench/floor_add_month.sql",
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
    sqlx::query_file!(
        "sql/bench/floor_add_month_service.sql",
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
    sqlx::query_file!(
        "sql/bench/floor_add_day.sql",
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
