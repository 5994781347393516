//! All events of a range, streamed.

use crate::store::events::{EventRow, RecordedEvent};
use chrono::{DateTime, Utc};
use futures_util::{Stream, StreamExt};
use sqlx::PgConnection;

/// Which events to export. Empty filters let everything through.
pub struct ExportFilter {
    pub client_id: Option<String>,
    pub start_time: Option<DateTime<Utc>>,
    pub end_time: Option<DateTime<Utc>>,
    pub services: Vec<String>,
}

/// The events, read as they are taken, all of one snapshot.
pub fn stream<'a>(
    conn: &'a mut PgConnection,
    filter: &'a ExportFilter,
) -> impl Stream<Item = sqlx::Result<RecordedEvent>> + Send + 'a {
    sqlx::query_as!(
        EventRow,
        r#"SELECT client_id, event_time, event_seq, day, service, operation, model, units, input_tokens, output_tokens,
               cached_input_tokens, amount, charge, price_id, unpriced_reason, subject, external_id, idempotency_key,
               metadata::text AS metadata, record_time
           FROM usage_events
           WHERE ($1::text IS NULL OR client_id = $1)
             AND event_time >= COALESCE($2, '-infinity'::timestamptz) AND event_time < COALESCE($3, 'infinity'::timestamptz)
             AND (cardinality($4::text[]) = 0 OR service = ANY($4))
           ORDER BY client_id, event_time, event_seq"#,
        filter.client_id,
        filter.start_time,
        filter.end_time,
        &filter.services
    )
    .fetch(conn)
    .map(|row| RecordedEvent::try_from(row?))
}

/// The start of the transaction, which lies before its snapshot: what was acknowledged before it is in.
pub async fn snapshot_time(conn: &mut PgConnection) -> sqlx::Result<DateTime<Utc>> {
    sqlx::query_scalar!(r#"SELECT now() AS "now!""#).fetch_one(conn).await
}
