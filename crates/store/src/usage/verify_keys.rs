//! Checks that idempotency keys and events refer to each other.

use crate::usage::verify::Scope;
use chrono::{DateTime, NaiveDate, Utc};
use meterd_domain::event::EventId;
use meterd_domain::period::Month;
use sqlx::{Executor, PgConnection};

/// A key or an event with a fault.
pub struct KeyDifference {
    pub client_id: String,
    pub month: Month,
    pub idempotency_key: String,
    /// The event with the key, or the event to which the key refers.
    pub event: EventId,
    pub fault: KeyFault,
}

/// The kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyFault {
    /// The key of the event has no row.
    KeyMissing,
    /// The row of the event's key refers to another event.
    KeyOfAnother,
    /// The key refers to an event that does not exist.
    EventMissing,
}

struct KeyRow {
    kind: String,
    client_id: String,
    day: NaiveDate,
    idempotency_key: String,
    event_time: DateTime<Utc>,
    event_seq: i64,
}

impl From<KeyRow> for KeyDifference {
    fn from(row: KeyRow) -> Self {
        Self {
            client_id: row.client_id,
            month: Month::of(row.day),
            idempotency_key: row.idempotency_key,
            event: EventId { time: row.event_time, seq: row.event_seq },
            fault: match row.kind.as_str() {
                "key_missing" => KeyFault::KeyMissing,
                "key_of_another" => KeyFault::KeyOfAnother,
                _ => KeyFault::EventMissing,
            },
        }
    }
}

/// Returns the keys and events of a scope that do not refer to each other, ordered. Leaves out events whose keys may
/// have been pruned.
///
/// The scope must begin with an open month, because events of closed months may have been removed. Must be the last
/// statement of its transaction, because it turns off nested loops until the end of the transaction.
pub async fn key_differences(conn: &mut PgConnection, scope: &Scope) -> crate::Result<Vec<KeyDifference>> {
    let pruned_through =
        sqlx::query_scalar!("SELECT NULLIF(keys_pruned_through, '-infinity') AS pruned_through FROM deployment")
            .fetch_optional(&mut *conn)
            .await?;
    // Before the first ANALYZE, the planner assumes that partitions are small and would scan them for each key.
    conn.execute("SET LOCAL enable_nestloop = off").await?;
    let rows = sqlx::query_file_as!(
        KeyRow,
        "sql/usage/key_differences.sql",
        scope.after,
        scope.upto,
        scope.first.map(Month::first_day),
        scope.last.map(|last| last.next().first_day()),
        scope.first.map(|first| first.widest_range().0),
        scope.last.map(|last| last.widest_range().1),
        scope.client_id,
        pruned_through.flatten()
    )
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(KeyDifference::from).collect())
}
