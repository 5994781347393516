//! Monthly partitions of the events.

use crate::{deployment, locks};
use meterd_domain::period::Month;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

const PREFIX: &str = "usage_events_";
/// How long everybody may have to wait behind who waits to detach: well below what a writer waits before it gives up.
const DETACH_LOCK_TIMEOUT_MS: u32 = 200;

fn name(month: Month) -> String {
    format!("{PREFIX}{}", month.to_string().replace('-', "_"))
}

/// Whether events of this UTC month have a place.
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

/// Keeps every partition where it is until the end of the transaction. What is read of the events after it is all there,
/// as far as the months are open.
pub async fn keep(conn: &mut PgConnection) -> crate::Result<()> {
    conn.execute("LOCK TABLE ONLY usage_events IN ACCESS SHARE MODE").await.map(drop).map_err(Into::into)
}

/// Makes the partition of a UTC month if it is not there and no closed month's; true, if it was made. Made like the parent
/// and then attached: attaching does not lock out writers, creating in place would.
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

/// The partitions in which only closed months have events, oldest first. A client's month has events in the UTC months from
/// the one before to the one after, so these are the ones before the last closed month.
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

/// Takes a partition away, and drops its table if asked. It locks out everybody for a moment, so it does not wait for who
/// reads for long: then it fails.
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
