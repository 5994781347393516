//! Pending usage: sums of new events that are not yet added to the rows of days and of the services of months.
//!
//! Readers of these sums use the views `all_usage_days` and `all_usage_month_services`, which include pending rows.

use sqlx::{Executor, PgConnection, PgPool};

/// Applies the pending usage of clients. Returns the number of pending rows. Waits for other transactions that apply.
///
/// The statement takes the lock of pending usage, and after it the locks of the rows of services and days, as
/// [`crate::locks`] describes.
pub async fn apply(conn: &mut PgConnection, clients: &[String]) -> crate::Result<i64> {
    let applied = sqlx::query_scalar!(r#"SELECT apply_pending_usage($1) AS "row_count!""#, clients);
    applied.fetch_one(conn).await.map_err(Into::into)
}

/// As [`apply`], in a transaction of its own that does not wait for the disk. If PostgreSQL crashes, the usage may be
/// pending again.
pub async fn apply_later_durable(pool: &PgPool, clients: &[String]) -> crate::Result<i64> {
    let mut tx = pool.begin().await?;
    tx.execute("SET LOCAL synchronous_commit = off").await?;
    let row_count = apply(&mut tx, clients).await?;
    tx.commit().await?;
    Ok(row_count)
}

/// Returns up to `limit` clients whose ids are greater than `after`, ordered, each with the number of its pending rows.
pub async fn clients(pool: &PgPool, after: &str, limit: i64) -> crate::Result<Vec<(String, i64)>> {
    let rows = sqlx::query!(
        r#"SELECT client_id, count(*) AS "row_count!" FROM pending_usage_days
           WHERE client_id > $1 GROUP BY client_id ORDER BY client_id LIMIT $2"#,
        after,
        limit
    )
    .fetch_all(pool)
    .await?;
    Ok(rows.into_iter().map(|row| (row.client_id, row.row_count)).collect())
}

/// Makes the space of applied rows available for new ones.
pub async fn vacuum(pool: &PgPool) -> crate::Result<()> {
    pool.execute("VACUUM (SKIP_LOCKED) pending_usage_days").await.map(drop).map_err(Into::into)
}
