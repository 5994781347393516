//! Advisory locks, and the order in which all transactions take locks: channels, versions, keys, (client, month), pending
//! usage, (client, month, service), days. No transaction takes a lock of this list after a later one. The function
//! `apply_pending_usage` takes [`PENDING_USAGE_LOCK`].
//!
//! A transaction that changes channels takes the advisory lock of channels first and then the rows. A worker that
//! claims a channel locks its row without waiting, and after it only rows of the outbox.

use chrono::{DateTime, NaiveDate, Utc};
use meterd_domain::period::Month;
use sqlx::{AssertSqlSafe, PgConnection, Row, raw_sql};

/// Transactions that price or date events, or claim keys, share this lock. Transactions that change prices, aliases,
/// services, alert policies, time zones, plans or limits of clients, grant the first credits of a client, close months or generations of keys, or raise `keys_pruned_through`, take it
/// exclusively.
pub const VERSIONS_LOCK: i64 = 0x6d65_7465_7264_0001;
/// Taken to create a partition.
const PARTITIONS_LOCK: i64 = 0x6d65_7465_7264_0002;
/// Taken to seed a new database.
const DEPLOYMENT_LOCK: i64 = 0x6d65_7465_7264_0003;
/// Taken to change notification channels.
const CHANNELS_LOCK: i64 = 0x6d65_7465_7264_0004;
/// Taken to increase the versions of summaries, also by the trigger of migration 0009.
const SUMMARIES_LOCK: i64 = 0x6d65_7465_7264_0005;
/// Taken to apply pending usage, by the function `apply_pending_usage` of migration 0017.
pub const PENDING_USAGE_LOCK: i64 = 0x6d65_7465_7264_0006;

/// Prevents changes of prices, aliases and time zones until the end of the transaction.
pub async fn share_versions(conn: &mut PgConnection) -> crate::Result<()> {
    sqlx::query!("SELECT pg_advisory_xact_lock_shared($1)", VERSIONS_LOCK)
        .execute(conn)
        .await
        .map(drop)
        .map_err(Into::into)
}

/// Waits until no transaction prices or dates events by the old versions, and lets none begin until the end of this
/// transaction.
pub async fn change_versions(conn: &mut PgConnection) -> crate::Result<()> {
    exclusive(conn, VERSIONS_LOCK).await
}

/// Lets one transaction create partitions at a time.
pub async fn make_partitions(conn: &mut PgConnection) -> crate::Result<()> {
    exclusive(conn, PARTITIONS_LOCK).await
}

/// Lets one transaction change channels at a time. The channel rows that it locks before the versions lock are then
/// still complete when it gets the versions lock.
pub async fn change_channels(conn: &mut PgConnection) -> crate::Result<()> {
    exclusive(conn, CHANNELS_LOCK).await
}

/// Lets only one transaction at a time count a change of summaries.
pub async fn change_summaries(conn: &mut PgConnection) -> crate::Result<()> {
    exclusive(conn, SUMMARIES_LOCK).await
}

/// Lets one replica seed the database at a time.
pub async fn seed(conn: &mut PgConnection) -> crate::Result<()> {
    exclusive(conn, DEPLOYMENT_LOCK).await
}

async fn exclusive(conn: &mut PgConnection, key: i64) -> crate::Result<()> {
    sqlx::query!("SELECT pg_advisory_xact_lock($1)", key).execute(conn).await.map(drop).map_err(Into::into)
}

/// Values that a transaction of the write path needs. They do not change until its commit.
#[derive(Clone, Copy, Debug)]
pub struct Versions {
    /// Version of the catalog.
    pub catalog: i64,
    /// Version of time zones, plans, alert policies, limits, and of which clients have credits.
    pub client_settings: i64,
    /// The last closed month. `None` if no month is closed.
    pub closed_through: Option<Month>,
    /// Keys of live events that were claimed before this time may have been deleted.
    pub keys_pruned_through: Option<DateTime<Utc>>,
    /// The generation of idempotency keys in which keys are claimed. All smaller ones are closed: they get no more keys.
    pub key_generation: i32,
}

/// Begins a transaction, takes the shared versions lock and reads the values that it protects, in one round trip. These
/// are three statements: the snapshot of the last one is taken after the lock.
pub async fn begin_sharing_versions(conn: &mut PgConnection) -> crate::Result<Versions> {
    read_versions(conn, "BEGIN; ").await
}

/// Takes the shared versions lock until the end of the transaction and reads the values that it protects.
pub async fn share_and_read_versions(conn: &mut PgConnection) -> crate::Result<Versions> {
    read_versions(conn, "").await
}

async fn read_versions(conn: &mut PgConnection, begin: &str) -> crate::Result<Versions> {
    let read = format!(
        "{begin}SELECT pg_advisory_xact_lock_shared({VERSIONS_LOCK});
         SELECT version, client_settings_version, NULLIF(closed_through, '-infinity') AS closed_through,
             NULLIF(keys_pruned_through, '-infinity') AS keys_pruned_through, key_generation
         FROM catalog_version, deployment"
    );
    let rows = raw_sql(AssertSqlSafe(read)).fetch_all(conn).await?;
    let row = rows.last().ok_or_else(|| crate::StoreError::inconsistent("the row of the deployment is missing"))?;
    let closed_through: Option<NaiveDate> = row.try_get("closed_through")?;
    Ok(Versions {
        catalog: row.try_get("version")?,
        client_settings: row.try_get("client_settings_version")?,
        closed_through: closed_through.map(Month::of),
        keys_pruned_through: row.try_get("keys_pruned_through")?,
        key_generation: row.try_get("key_generation")?,
    })
}
