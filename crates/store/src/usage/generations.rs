//! Generations of idempotency keys. Keys are claimed in the current generation. A closed generation gets no more keys, so what a
//! replica knows of its keys stays true, except that keys are deleted.

use crate::database::connect::allow_long_statements;
use crate::locks;
use crate::usage::keys::closed_events_before;
use chrono::{DateTime, Utc};
use futures_util::stream::{BoxStream, TryStreamExt};
use meterd_domain::event::EVENT_LEAD_MAX;
use meterd_domain::period::Month;
use sqlx::postgres::PgArguments;
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, Executor, PgConnection, PgPool, Postgres, Row};

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
    /// When it became the current one.
    pub begin_time: DateTime<Utc>,
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
        r#"SELECT d.key_generation AS current, d.create_time, g.generation AS "generation?", g.close_time AS "close_time?", g.filter_format
           FROM deployment d LEFT JOIN key_generations g ON true ORDER BY g.generation"#
    )
    .fetch_all(pool)
    .await?;
    let closed = rows.iter().filter_map(|row| {
        let (generation, close_time) = row.generation.zip(row.close_time)?;
        Some(ClosedGeneration { generation, close_time, filter_format: row.filter_format })
    });
    let closed: Vec<ClosedGeneration> = closed.collect();
    let deployment = rows.first().ok_or(sqlx::Error::RowNotFound)?;
    let begin_time = closed.last().map_or(deployment.create_time, |last| last.close_time);
    Ok(Generations { current: deployment.current, begin_time, closed })
}

/// Returns whether a generation has no keys.
pub async fn is_empty(pool: &PgPool, generation: i32) -> crate::Result<bool> {
    sqlx::query_scalar!(
        r#"SELECT NOT EXISTS (SELECT FROM idempotency_keys WHERE generation = $1 LIMIT 1) AS "empty!""#,
        generation
    )
    .fetch_one(pool)
    .await
    .map_err(Into::into)
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

/// Creates the partition of a generation, unless it exists.
pub async fn prepare(pool: &PgPool, generation: i32) -> crate::Result<()> {
    let mut tx = pool.begin().await?;
    locks::make_partitions(&mut tx).await?;
    let name = name(generation);
    let exists = sqlx::query_scalar!(r#"SELECT to_regclass($1) IS NOT NULL AS "exists!""#, name);
    if !exists.fetch_one(&mut *tx).await? {
        create_partition(&mut tx, &name).await?;
        attach_partition(&mut tx, generation).await?;
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
        tx.execute(AssertSqlSafe(format!("SET LOCAL lock_timeout = {TABLE_LOCK_TIMEOUT_MS}"))).await?;
        reject_keys(&mut tx, generation).await?;
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

/// The keys of a generation that must be kept: those claimed at or after $2, when the retention began, those of live events
/// that may still be accepted, and those of backfilled events of months that are not closed.
const IS_KEPT: &str =
    "(claim_time >= $2 OR CASE WHEN backfill THEN COALESCE(event_time >= $4, true) ELSE event_time >= $3 END)";

/// What the keys of a closed generation are kept for.
#[derive(Clone, Copy, Debug)]
pub struct KeyRetention {
    /// Keys that were claimed at or after this time are kept.
    pub before: DateTime<Utc>,
    pub closed_through: Option<Month>,
}

impl KeyRetention {
    /// Binds the parameters of [`IS_KEPT`].
    fn bind<'q>(&self, sql: String, generation: i32) -> Query<'q, Postgres, PgArguments> {
        sqlx::query(AssertSqlSafe(sql))
            .bind(generation)
            .bind(self.before)
            // A live event of this time is rejected, see `Refusal::key_pruned`, even if the clock of the database was
            // behind when its key was claimed.
            .bind(self.before + EVENT_LEAD_MAX)
            .bind(self.closed_through.map(closed_events_before))
    }
}

/// The number of keys of a generation.
pub struct KeyCount {
    pub all: i64,
    /// Those that must be kept.
    pub kept: i64,
}

/// Counts the keys of a generation. Reads all of them.
pub async fn count_kept(pool: &PgPool, generation: i32, retention: KeyRetention) -> crate::Result<KeyCount> {
    let mut tx = pool.begin().await?;
    allow_long_statements(&mut tx).await?;
    let sql = format!("SELECT count(*), count(*) FILTER (WHERE {IS_KEPT}) FROM idempotency_keys WHERE generation = $1");
    let row = retention.bind(sql, generation).fetch_one(&mut *tx).await?;
    tx.commit().await?;
    Ok(KeyCount { all: row.try_get(0)?, kept: row.try_get(1)? })
}

/// Drops a closed generation with its keys. This locks out all other transactions for a moment, so it waits at most
/// `TABLE_LOCK_TIMEOUT_MS` for its lock and then fails.
pub async fn drop_closed(pool: &PgPool, generation: i32) -> crate::Result<()> {
    let mut tx = pool.begin().await?;
    drop_partition(&mut tx, generation).await?;
    sqlx::query!("DELETE FROM key_generations WHERE generation = $1", generation).execute(&mut *tx).await?;
    tx.commit().await.map_err(Into::into)
}

/// Replaces the partition of a closed generation by one with only the keys that must be kept. Waits for locks as
/// [`drop_closed`] does.
///
/// The filter must be built again to become smaller. Until then, those in memory stay right.
pub async fn rewrite_closed(pool: &PgPool, generation: i32, retention: KeyRetention) -> crate::Result<()> {
    let name = name(generation);
    let kept = format!("{name}_kept");
    let mut tx = pool.begin().await?;
    allow_long_statements(&mut tx).await?;
    // A run that ended early may have left it.
    tx.execute(AssertSqlSafe(format!("DROP TABLE IF EXISTS {kept}"))).await?;
    create_partition(&mut tx, &kept).await?;
    let copy = format!("INSERT INTO {kept} SELECT * FROM idempotency_keys WHERE generation = $1 AND {IS_KEPT}");
    retention.bind(copy, generation).execute(&mut *tx).await?;
    // With this constraint, attaching the partition does not read it.
    let of_generation = format!("ALTER TABLE {kept} ADD CHECK (generation = {generation})");
    tx.execute(AssertSqlSafe(of_generation)).await?;
    tx.commit().await?;

    let mut tx = pool.begin().await?;
    // A transaction that claims keys must not see one partition with the snapshot of the other.
    locks::change_versions(&mut tx).await?;
    drop_partition(&mut tx, generation).await?;
    tx.execute(AssertSqlSafe(format!("ALTER TABLE {kept} RENAME TO {name}"))).await?;
    attach_partition(&mut tx, generation).await?;
    reject_keys(&mut tx, generation).await?;
    let no_filter =
        "UPDATE key_generations SET key_count = NULL, filter_format = NULL, filter = NULL WHERE generation = $1";
    sqlx::query(no_filter).bind(generation).execute(&mut *tx).await?;
    tx.commit().await.map_err(Into::into)
}

/// Creates a table for the keys of one generation.
async fn create_partition(conn: &mut PgConnection, name: &str) -> crate::Result<()> {
    let create = format!(
        "CREATE TABLE {name} (LIKE idempotency_keys INCLUDING DEFAULTS, PRIMARY KEY (client_id, idempotency_key))"
    );
    conn.execute(AssertSqlSafe(create)).await.map(drop).map_err(Into::into)
}

/// Attaching a partition does not lock out writers; creating it in place would.
async fn attach_partition(conn: &mut PgConnection, generation: i32) -> crate::Result<()> {
    let name = name(generation);
    let attach = format!("ALTER TABLE idempotency_keys ATTACH PARTITION {name} FOR VALUES IN ({generation})");
    conn.execute(AssertSqlSafe(attach)).await.map(drop).map_err(Into::into)
}

async fn drop_partition(conn: &mut PgConnection, generation: i32) -> crate::Result<()> {
    let name = name(generation);
    conn.execute(AssertSqlSafe(format!("SET LOCAL lock_timeout = {TABLE_LOCK_TIMEOUT_MS}"))).await?;
    conn.execute(AssertSqlSafe(format!("ALTER TABLE idempotency_keys DETACH PARTITION {name}"))).await?;
    conn.execute(AssertSqlSafe(format!("DROP TABLE {name}"))).await.map(drop).map_err(Into::into)
}

/// Makes PostgreSQL reject new keys of a generation.
async fn reject_keys(conn: &mut PgConnection, generation: i32) -> crate::Result<()> {
    let name = name(generation);
    let closed = format!("ALTER TABLE {name} ADD CONSTRAINT {name}_is_closed CHECK (false) NOT VALID");
    conn.execute(AssertSqlSafe(closed)).await.map(drop).map_err(Into::into)
}
