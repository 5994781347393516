//! Advisory locks, and with them the beginning of the one lock order that everyone keeps: channels, versions, keys,
//! (client, month), (client, month, service), days.
//!
//! Of channels, who changes them has first a lock of all and then the rows; a worker that claims has a row, which it takes
//! without waiting, and after it nothing but what is in the outbox.

use chrono::{DateTime, NaiveDate, Utc};
use meterd_domain::period::Month;
use sqlx::{AssertSqlSafe, PgConnection, Row, raw_sql};

/// Shared by everyone who prices or dates events, exclusive for who changes prices, aliases or time zones.
pub const VERSIONS_LOCK: i64 = 0x6d65_7465_7264_0001;
/// Who makes a partition.
const PARTITIONS_LOCK: i64 = 0x6d65_7465_7264_0002;
/// Who seeds a new database.
const DEPLOYMENT_LOCK: i64 = 0x6d65_7465_7264_0003;
/// Who changes notification channels.
const CHANNELS_LOCK: i64 = 0x6d65_7465_7264_0004;
// 0x6d65_7465_7264_0005 is that of the trigger which counts the versions of summaries, in migration 0009.

/// Keeps prices, aliases and time zones as they are until the end of the transaction.
pub async fn share_versions(conn: &mut PgConnection) -> crate::Result<()> {
    sqlx::query!("SELECT pg_advisory_xact_lock_shared($1)", VERSIONS_LOCK)
        .execute(conn)
        .await
        .map(drop)
        .map_err(Into::into)
}

/// Waits until nobody prices or dates by the old versions any more, and lets nobody begin until the end of the
/// transaction.
pub async fn change_versions(conn: &mut PgConnection) -> crate::Result<()> {
    exclusive(conn, VERSIONS_LOCK).await
}

/// One maker of partitions at a time.
pub async fn make_partitions(conn: &mut PgConnection) -> crate::Result<()> {
    exclusive(conn, PARTITIONS_LOCK).await
}

/// One changes channels at a time: so rows that it has locked before the versions lock are still all when it has that.
pub async fn change_channels(conn: &mut PgConnection) -> crate::Result<()> {
    exclusive(conn, CHANNELS_LOCK).await
}

/// One replica seeds the database.
pub async fn seed(conn: &mut PgConnection) -> crate::Result<()> {
    exclusive(conn, DEPLOYMENT_LOCK).await
}

async fn exclusive(conn: &mut PgConnection, key: i64) -> crate::Result<()> {
    sqlx::query!("SELECT pg_advisory_xact_lock($1)", key).execute(conn).await.map(drop).map_err(Into::into)
}

/// What a transaction of the write path has to know, as it is until its commit.
#[derive(Clone, Copy, Debug)]
pub struct Versions {
    /// Of the catalogue.
    pub catalog: i64,
    /// Of time zones and alert policies.
    pub client_settings: i64,
    /// The last month that is closed.
    pub closed_through: Option<Month>,
    /// Keys of live events that were claimed before may be gone.
    pub keys_pruned_through: Option<DateTime<Utc>>,
}

/// Begins a transaction that shares the versions lock, and reads what it protects, in one round trip. Three statements: the
/// snapshot of the last one comes after the lock.
pub async fn begin_sharing_versions(conn: &mut PgConnection) -> crate::Result<Versions> {
    read_versions(conn, "BEGIN; ").await
}

/// Shares the versions lock until the end of the transaction, and reads what it protects.
pub async fn share_and_read_versions(conn: &mut PgConnection) -> crate::Result<Versions> {
    read_versions(conn, "").await
}

async fn read_versions(conn: &mut PgConnection, begin: &str) -> crate::Result<Versions> {
    let read = format!(
        "{begin}SELECT pg_advisory_xact_lock_shared({VERSIONS_LOCK});
         SELECT version, client_settings_version, NULLIF(closed_through, '-infinity') AS closed_through,
             NULLIF(keys_pruned_through, '-infinity') AS keys_pruned_through
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
    })
}
