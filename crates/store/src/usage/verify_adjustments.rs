//! Checks that the adjustments of an event lead to its charge.

use crate::usage::verify::Scope;
use chrono::{DateTime, NaiveDate, Utc};
use meterd_domain::event::EventId;
use meterd_domain::period::Month;
use sqlx::PgConnection;

/// An event whose adjustments do not lead to its charge.
pub struct ChainDifference {
    pub client_id: String,
    pub day: NaiveDate,
    pub event: EventId,
    pub fault: &'static str,
}

struct ChainRow {
    client_id: String,
    day: NaiveDate,
    event_time: DateTime<Utc>,
    event_seq: i64,
    is_broken: bool,
    is_void: bool,
}

/// Returns the events of a scope whose adjustments are not a chain: each begins with the charge with which the one before it ends,
/// and the last one ends with the charge of the event, or is its void.
pub async fn chain_differences(conn: &mut PgConnection, scope: &Scope) -> crate::Result<Vec<ChainDifference>> {
    let rows = sqlx::query_file_as!(
        ChainRow,
        "sql/usage/chain_differences.sql",
        scope.after,
        scope.upto,
        scope.first.map(Month::first_day),
        scope.last.map(|last| last.next().first_day()),
        scope.first.map(|first| first.widest_range().0),
        scope.last.map(|last| last.widest_range().1),
        scope.client_id
    )
    .fetch_all(conn)
    .await?;
    let difference = |row: ChainRow| ChainDifference {
        client_id: row.client_id,
        day: row.day,
        event: EventId { time: row.event_time, seq: row.event_seq },
        fault: match (row.is_void, row.is_broken) {
            (true, _) => "is voided without an adjustment, or has an adjustment that voids it and counts",
            (false, true) => "has an adjustment that does not begin where the one before it ends",
            (false, false) => "has another charge than its last adjustment",
        },
    };
    Ok(rows.into_iter().map(difference).collect())
}
