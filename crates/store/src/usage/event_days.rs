//! Reads and changes the days of events.

use chrono::{DateTime, NaiveDate, Utc};
use meterd_domain::event::EventId;
use sqlx::PgConnection;

/// Returns a client's events from `from` to before `to`, with their days.
pub async fn between(
    conn: &mut PgConnection,
    client_id: &str,
    from: DateTime<Utc>,
    to: DateTime<Utc>,
) -> crate::Result<Vec<(EventId, NaiveDate)>> {
    let rows = sqlx::query!(
        "SELECT event_time, event_seq, day FROM usage_events
         WHERE client_id = $1 AND event_time >= $2 AND event_time < $3",
        client_id,
        from,
        to
    )
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(|row| (EventId { time: row.event_time, seq: row.event_seq }, row.day)).collect())
}

/// Changes the days of a client's events. The transaction must hold the locks of the old and the new months.
pub async fn set(conn: &mut PgConnection, client_id: &str, moved: &[(EventId, NaiveDate)]) -> crate::Result<()> {
    let times: Vec<_> = moved.iter().map(|(id, _)| id.time).collect();
    let seqs: Vec<_> = moved.iter().map(|(id, _)| id.seq).collect();
    let days: Vec<_> = moved.iter().map(|(_, day)| *day).collect();
    sqlx::query!(
        "UPDATE usage_events t SET day = new.day
         FROM unnest($2::timestamptz[], $3::bigint[], $4::date[]) AS new (event_time, event_seq, day)
         WHERE t.client_id = $1 AND t.event_time = new.event_time AND t.event_seq = new.event_seq",
        client_id,
        &times,
        &seqs,
        &days
    )
    .execute(conn)
    .await
    .map(drop)
    .map_err(Into::into)
}
