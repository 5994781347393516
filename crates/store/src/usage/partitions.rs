//! Monthly partitions of the events.

use crate::database::deployment;
use crate::locks;
use meterd_domain::period::Month;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

const PREFIX: &str = "usage_events_";
/// Longest wait of a detach for its lock, in milliseconds. All other transactions on the table queue behind it, so it
/// is much shorter than the lock timeout of a writer.
const DETACH_LOCK_TIMEOUT_MS: u32 = 200;

fn name(month: Month) -> String {
    format!("{PREFIX}{}", month.to_string().replace('-', "_"))
}

/// Returns whether the partition of this UTC month exists.
pub async fn exists(conn: &mut PgConnection, month: Month) -> crate::Result<bool> {
    sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT FROM pg_inherits WHERE inhparent = 'usage_events'::regclass
                          AND inhrelid = to_regclass($1)) AS "exists!""#,
        name(month)
    )
    .fetch_one(conn)
    .await
    .map_err(Into::into)
}

/// Prevents the detaching of partitions until the end of the transaction. Later reads of open months find all their
/// events.
pub async fn keep(conn: &mut PgConnection) -> crate::Result<()> {
    conn.execute("LOCK TABLE ONLY usage_events IN ACCESS SHARE MODE").await.map(drop).map_err(Into::into)
}

/// Creates the partition of a UTC month, unless it exists or the month is closed. Returns whether it was created.
///
/// Creates a table like the parent and then attaches it. Attaching does not lock out writers; creating the partition in
/// place would.
pub async fn ensure(conn: &mut PgConnection, month: Month) -> crate::Result<bool> {
    if exists(conn, month).await? {
        return Ok(false);
    }
    let mut tx = conn.begin().await?;
    locks::make_partitions(&mut tx).await?;
    let closed = deployment::closed_through(&mut tx).await?.is_some_and(|closed| month < closed);
    let missing = !closed && !exists(&mut tx, month).await?;
    if missing {
        let (name, from, to) = (name(month), month.first_day(), month.next().first_day());
        let create = format!("CREATE TABLE {name} (LIKE usage_events INCLUDING ALL)");
        let attach = format!(
            "ALTER TABLE usage_events ATTACH PARTITION {name} \
             FOR VALUES FROM ('{from} 00:00:00+00') TO ('{to} 00:00:00+00')"
        );
        tx.execute(AssertSqlSafe(create)).await?;
        tx.execute(AssertSqlSafe(attach)).await?;
    }
    tx.commit().await?;
    Ok(missing)
}

/// Returns the partitions that have events of closed months only, oldest first. A client's month has events in the UTC
/// months from the previous to the next one, so these are the partitions before the last closed month.
pub async fn before(conn: &mut PgConnection, closed_through: Month) -> crate::Result<Vec<Month>> {
    let names = sqlx::query_scalar!(
        r#"SELECT c.relname::text AS "name!" FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
           WHERE i.inhparent = 'usage_events'::regclass"#
    )
    .fetch_all(conn)
    .await?;
    let month = |name: &String| Month::parse(&name.strip_prefix(PREFIX)?.replace('_', "-"));
    let mut months: Vec<Month> = names.iter().filter_map(month).filter(|month| *month < closed_through).collect();
    months.sort();
    Ok(months)
}

/// Detaches a partition and, if `drop_table` is set, drops its table. A detach locks out all other transactions for a
/// moment, so it waits at most `DETACH_LOCK_TIMEOUT_MS` for its lock and then fails.
pub async fn detach(conn: &mut PgConnection, month: Month, drop_table: bool) -> crate::Result<()> {
    let name = name(month);
    let mut tx = conn.begin().await?;
    tx.execute(AssertSqlSafe(format!("SET LOCAL lock_timeout = {DETACH_LOCK_TIMEOUT_MS}"))).await?;
    tx.execute(AssertSqlSafe(format!("ALTER TABLE usage_events DETACH PARTITION {name}"))).await?;
    if drop_table {
        tx.execute(AssertSqlSafe(format!("DROP TABLE {name}"))).await?;
    }
    tx.commit().await.map_err(Into::into)
}
