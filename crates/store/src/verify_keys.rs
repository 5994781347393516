//! Whether keys and events name each other.

use crate::verify::Scope;
use chrono::{DateTime, NaiveDate, Utc};
use meterd_domain::event::EventId;
use meterd_domain::period::Month;
use sqlx::{Executor, PgConnection};

/// A key or an event that is wrong.
pub struct KeyDifference {
    pub client_id: String,
    pub month: Month,
    pub idempotency_key: String,
    /// The event that has the key, or that the key names.
    pub event: EventId,
    pub fault: KeyFault,
}

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyFault {
    /// The event's key has no row.
    KeyMissing,
    /// The row of the event's key names another event.
    KeyOfAnother,
    /// There is no event that the row of the key names.
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

/// Keys and events of a scope that do not name each other, ordered. Without those whose keys may be pruned by now. Of a scope
/// that begins with an open month, so that the events are kept. The last statement of its transaction: planned without nested
/// loops from here on.
pub async fn key_differences(conn: &mut PgConnection, scope: &Scope) -> crate::Result<Vec<KeyDifference>> {
    let pruned_through =
        sqlx::query_scalar!("SELECT NULLIF(keys_pruned_through, '-infinity') AS pruned_through FROM deployment")
            .fetch_optional(&mut *conn)
            .await?;
    // Where nothing was analysed yet, the planner takes partitions for small, and would look through them for each key.
    conn.execute("SET LOCAL enable_nestloop = off").await?;
    let rows = sqlx::query_file_as!(
        KeyRow,
        "src/key_differences.sql",
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
