//! Monthly partitions of the events.

use crate::domain::period::Month;
use crate::store::locks;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

fn name(month: Month) -> String {
    format!("usage_events_{}", month.to_string().replace('-', "_"))
}

/// Whether events of this UTC month have a place.
pub async fn exists(conn: &mut PgConnection, month: Month) -> sqlx::Result<bool> {
    sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT FROM pg_inherits WHERE inhparent = 'usage_events'::regclass
                          AND inhrelid = to_regclass($1)) AS "exists!""#,
        name(month)
    )
    .fetch_one(conn)
    .await
}

/// Makes the partition of a UTC month if it is not there. Made like the parent and then attached: attaching does not lock
/// out writers, creating in place would.
pub async fn ensure(conn: &mut PgConnection, month: Month) -> sqlx::Result<()> {
    if exists(conn, month).await? {
        return Ok(());
    }
    let mut tx = conn.begin().await?;
    locks::make_partitions(&mut tx).await?;
    if !exists(&mut tx, month).await? {
        let (name, from, to) = (name(month), month.first_day(), month.next().first_day());
        let create = format!("CREATE TABLE {name} (LIKE usage_events INCLUDING ALL)");
        let attach = format!(
            "ALTER TABLE usage_events ATTACH PARTITION {name} \
             FOR VALUES FROM ('{from} 00:00:00+00') TO ('{to} 00:00:00+00')"
        );
        tx.execute(AssertSqlSafe(create)).await?;
        tx.execute(AssertSqlSafe(attach)).await?;
    }
    tx.commit().await
}
