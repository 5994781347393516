//! Advisory locks, and with them the beginning of the one lock order that everyone keeps: channels, versions, keys,
//! (client, month), (client, month, service), days.
//!
//! Of channels, who changes them has first a lock of all and then the rows; a worker that claims has a row, which it takes
//! without waiting, and after it nothing but what is in the outbox.

use sqlx::{AssertSqlSafe, Executor, PgConnection};

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
pub async fn share_versions(conn: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::query!("SELECT pg_advisory_xact_lock_shared($1)", VERSIONS_LOCK).execute(conn).await.map(drop)
}

/// Waits until nobody prices or dates by the old versions any more, and lets nobody begin until the end of the
/// transaction.
pub async fn change_versions(conn: &mut PgConnection) -> sqlx::Result<()> {
    exclusive(conn, VERSIONS_LOCK).await
}

/// One maker of partitions at a time.
pub async fn make_partitions(conn: &mut PgConnection) -> sqlx::Result<()> {
    exclusive(conn, PARTITIONS_LOCK).await
}

/// One changes channels at a time: so rows that it has locked before the versions lock are still all when it has that.
pub async fn change_channels(conn: &mut PgConnection) -> sqlx::Result<()> {
    exclusive(conn, CHANNELS_LOCK).await
}

/// One replica seeds the database.
pub async fn seed(conn: &mut PgConnection) -> sqlx::Result<()> {
    exclusive(conn, DEPLOYMENT_LOCK).await
}

async fn exclusive(conn: &mut PgConnection, key: i64) -> sqlx::Result<()> {
    sqlx::query!("SELECT pg_advisory_xact_lock($1)", key).execute(conn).await.map(drop)
}

/// Begins a transaction that shares the versions lock, in one round trip.
pub async fn begin_sharing_versions(conn: &mut PgConnection) -> sqlx::Result<()> {
    let begin = format!("BEGIN; SELECT pg_advisory_xact_lock_shared({VERSIONS_LOCK})");
    conn.execute(AssertSqlSafe(begin)).await.map(drop)
}
