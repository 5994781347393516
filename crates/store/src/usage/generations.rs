//! Generations of idempotency keys. Keys are claimed in the current generation. A closed generation gets no more keys, so what a
//! replica knows of its keys stays true, except that keys are deleted.

use crate::locks;
use crate::usage::keys::closed_events_before;
use chrono::{DateTime, Utc};
use futures_util::stream::{BoxStream, TryStreamExt};
use meterd_domain::event::EVENT_LEAD_MAX;
use meterd_domain::period::Month;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, PgPool};

/// Longest wait for the lock of a table, in milliseconds. All other transactions on the table queue behind it, so it is much
/// shorter than the lock timeout of a writer.
const TABLE_LOCK_TIMEOUT_MS: u32 = 200;

fn name(generation: i32) -> String {
    format!("idempotency_keys_{generation}")
}

/// The generations of one moment.
#[derive(Clone, Debug)]
pub struct Generations {
    /// The generation in which keys are claimed.
    pub current: i32,
    /// The closed generations that still exist, oldest first.
    pub closed: Vec<ClosedGeneration>,
}

/// A closed generation.
#[derive(Clone, Debug)]
pub struct ClosedGeneration {
    pub generation: i32,
    pub close_time: DateTime<Utc>,
    /// The format of its filter. `None` if it has no filter yet.
    pub filter_format: Option<i16>,
}

/// Returns the current and the closed generations.
pub async fn list(pool: &PgPool) -> crate::Result<Generations> {
    let rows = sqlx::query!(
        r#"SELECT d.key_generation AS current, g.generation AS "generation?", g.close_time AS "close_time?", g.filter_format
           FROM deployment d LEFT JOIN key_generations g ON true ORDER BY g.generation"#
    )
    .fetch_all(pool)
    .await?;
    let closed = rows.iter().filter_map(|row| {
        let (generation, close_time) = row.generation.zip(row.close_time)?;
        Some(ClosedGeneration { generation, close_time, filter_format: row.filter_format })
    });
    Ok(Generations { current: rows.first().map_or(0, |row| row.current), closed: closed.collect() })
}

/// Returns the bytes that a generation takes on the disks, with its indexes.
pub async fn disk_bytes(pool: &PgPool, generation: i32) -> crate::Result<i64> {
    let size = sqlx::query_scalar!("SELECT disk_bytes($1)", name(generation));
    Ok(size.fetch_one(pool).await?.unwrap_or_default())
}

/// Returns the bytes of memory in which PostgreSQL keeps pages.
pub async fn shared_buffers(pool: &PgPool) -> crate::Result<i64> {
    let size = sqlx::query_scalar!("SELECT pg_size_bytes(current_setting('shared_buffers'))");
    Ok(size.fetch_one(pool).await?.unwrap_or_default())
}

/// Creates the partition of a generation, unless it exists. Attaching it does not lock out writers; creating the partition in place
/// would.
pub async fn prepare(pool: &PgPool, generation: i32) -> crate::Result<()> {
    let mut tx = pool.begin().await?;
    locks::make_partitions(&mut tx).await?;
    let name = name(generation);
    let exists = sqlx::query_scalar!(r#"SELECT to_regclass($1) IS NOT NULL AS "exists!""#, name);
    if !exists.fetch_one(&mut *tx).await? {
        let create = format!(
            "CREATE TABLE {name} (LIKE idempotency_keys INCLUDING DEFAULTS, PRIMARY KEY (client_id, idempotency_key))"
        );
        let attach = format!("ALTER TABLE idempotency_keys ATTACH PARTITION {name} FOR VALUES IN ({generation})");
        tx.execute(AssertSqlSafe(create)).await?;
        tx.execute(AssertSqlSafe(attach)).await?;
    }
    tx.commit().await.map_err(Into::into)
}

/// Closes a generation and makes the next one the current one. Returns `false` if it is not the current one, or must not be closed
/// yet because of the migration from a release without generations. The next one must be prepared.
///
/// The exclusive versions lock waits for every transaction that may claim keys in this generation. So when this function
/// returns, all keys of the generation are committed, and no transaction can add one. A constraint of the partition makes
/// PostgreSQL reject keys of a writer that does not know generations.
pub async fn close(pool: &PgPool, generation: i32) -> crate::Result<bool> {
    let mut tx = pool.begin().await?;
    locks::change_versions(&mut tx).await?;
    let updated = sqlx::query!(
        "UPDATE deployment SET key_generation = key_generation + 1 WHERE key_generation = $1 AND keys_stay_until <= now()",
        generation
    );
    let is_closed = updated.execute(&mut *tx).await?.rows_affected() == 1;
    if is_closed {
        sqlx::query!("INSERT INTO key_generations (generation) VALUES ($1)", generation).execute(&mut *tx).await?;
        let name = name(generation);
        let closed = format!("ALTER TABLE {name} ADD CONSTRAINT {name}_is_closed CHECK (false) NOT VALID");
        tx.execute(AssertSqlSafe(format!("SET LOCAL lock_timeout = {TABLE_LOCK_TIMEOUT_MS}"))).await?;
        tx.execute(AssertSqlSafe(closed)).await?;
    }
    tx.commit().await?;
    Ok(is_closed)
}

/// A client and a key.
pub struct ClientKey {
    pub client_id: String,
    pub idempotency_key: String,
}

/// Returns the number of keys of a generation.
pub async fn count(conn: &mut PgConnection, generation: i32) -> crate::Result<i64> {
    let count =
        sqlx::query_scalar!(r#"SELECT count(*) AS "count!" FROM idempotency_keys WHERE generation = $1"#, generation);
    count.fetch_one(conn).await.map_err(Into::into)
}

/// Returns all keys of a generation, in no particular order.
pub fn keys(conn: &mut PgConnection, generation: i32) -> BoxStream<'_, crate::Result<ClientKey>> {
    let keys = sqlx::query_as!(
        ClientKey,
        "SELECT client_id, idempotency_key FROM idempotency_keys WHERE generation = $1",
        generation
    );
    Box::pin(keys.fetch(conn).map_err(Into::into))
}

/// Stores the filter of a closed generation.
pub async fn store_filter(
    conn: &mut PgConnection,
    generation: i32,
    key_count: i64,
    format: i16,
    filter: &[u8],
) -> crate::Result<()> {
    sqlx::query!(
        "UPDATE key_generations SET key_count = $2, filter_format = $3, filter = $4 WHERE generation = $1",
        generation,
        key_count,
        format,
        filter
    )
    .execute(conn)
    .await
    .map(drop)
    .map_err(Into::into)
}

/// Returns the filter of a closed generation, if it has one of this format.
pub async fn filter(pool: &PgPool, generation: i32, format: i16) -> crate::Result<Option<Vec<u8>>> {
    let filter = sqlx::query_scalar!(
        r#"SELECT filter AS "filter!" FROM key_generations
           WHERE generation = $1 AND filter_format = $2 AND filter IS NOT NULL"#,
        generation,
        format
    );
    filter.fetch_optional(pool).await.map_err(Into::into)
}

/// Returns whether a generation has a key that must be kept: a key that was claimed at or after `before`, when the
/// retention began, or the key of a live event that may still be accepted, or of a backfilled event of a month that is
/// not closed. Without the LIMIT, Citus would collect all such keys.
pub async fn has_keys_to_keep(
    pool: &PgPool,
    generation: i32,
    before: DateTime<Utc>,
    closed_through: Option<Month>,
) -> crate::Result<bool> {
    sqlx::query_scalar!(
        r#"SELECT EXISTS (
               SELECT 1 FROM idempotency_keys
               WHERE generation = $1 AND (claim_time >= $2 OR CASE WHEN backfill THEN COALESCE(event_time >= $4, true) ELSE event_time >= $3 END)
               LIMIT 1
           ) AS "any!""#,
        generation,
        before,
        before + EVENT_LEAD_MAX,
        closed_through.map(closed_events_before)
    )
    .fetch_one(pool)
    .await
    .map_err(Into::into)
}

/// Drops a closed generation with its keys. This locks out all other transactions for a moment, so it waits at most
/// `TABLE_LOCK_TIMEOUT_MS` for its lock and then fails.
pub async fn drop_closed(conn: &mut PgConnection, generation: i32) -> crate::Result<()> {
    let mut tx = conn.begin().await?;
    let name = name(generation);
    tx.execute(AssertSqlSafe(format!("SET LOCAL lock_timeout = {TABLE_LOCK_TIMEOUT_MS}"))).await?;
    tx.execute(AssertSqlSafe(format!("ALTER TABLE idempotency_keys DETACH PARTITION {name}"))).await?;
    tx.execute(AssertSqlSafe(format!("DROP TABLE {name}"))).await?;
    sqlx::query!("DELETE FROM key_generations WHERE generation = $1", generation).execute(&mut *tx).await?;
    tx.commit().await.map_err(Into::into)
}
