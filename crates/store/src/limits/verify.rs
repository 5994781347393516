//! Compares the counters of limits with the usage.

use super::counters::{Counter, Wanted, read};
use crate::usage::verify::Scope;
use meterd_domain::period::Month;
use sqlx::PgConnection;

/// Maximum number of counters that one statement computes again.
const CHUNK_COUNTERS: usize = 1_000;

/// Returns the counters of a scope that differ from the usage, computed again. Counters of deleted limits and of
/// earlier revisions are not compared.
pub async fn differences(conn: &mut PgConnection, scope: &Scope) -> crate::Result<Vec<Counter>> {
    let rows = sqlx::query!(
        "SELECT c.client_id, c.limit_id, c.period_start FROM limit_counters c
         JOIN usage_limits l ON l.client_id = c.client_id AND l.limit_id = c.limit_id AND l.revision = c.revision
         WHERE l.delete_time IS NULL AND ($1::text IS NULL OR c.client_id > $1) AND ($2::text IS NULL OR c.client_id <= $2)
           AND ($5::text IS NULL OR c.client_id = $5) AND c.period_start >= COALESCE($3, '-infinity'::date)
           AND c.period_start < COALESCE($4, 'infinity'::date)
         ORDER BY c.client_id, c.limit_id, c.period_start",
        scope.after,
        scope.upto,
        scope.first.map(Month::first_day),
        scope.last.map(|last| last.next().first_day()),
        scope.client_id
    )
    .fetch_all(&mut *conn)
    .await?;
    let mut differences = vec![];
    for chunk in rows.chunks(CHUNK_COUNTERS) {
        let mut wanted = Wanted::default();
        chunk.iter().for_each(|row| wanted.push(&row.client_id, &row.limit_id, row.period_start));
        let counters = read(conn, &wanted, true).await?.into_iter().map(|(_, counter)| counter);
        differences.extend(counters.filter(|counter| counter.stored != counter.computed));
    }
    Ok(differences)
}
