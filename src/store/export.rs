//! All events of a range, streamed.

use crate::domain::decimal::Total;
use crate::domain::event::EventId;
use chrono::{DateTime, NaiveDate, Utc};
use futures_util::Stream;
use sqlx::PgConnection;

/// Which events to export. Empty filters let everything through.
pub struct ExportFilter {
    pub client_id: Option<String>,
    pub start_time: Option<DateTime<Utc>>,
    pub end_time: Option<DateTime<Utc>>,
    pub services: Vec<String>,
}

/// The row of an event, as it is exported: there are millions, so nothing is made of it on the way.
pub struct ExportRow {
    pub client_id: String,
    pub event_time: DateTime<Utc>,
    pub event_seq: i64,
    pub day: NaiveDate,
    pub service: String,
    pub operation: String,
    pub model: String,
    pub units: Total,
    pub input_tokens: i64,
    pub output_tokens: i64,
    pub cached_input_tokens: i64,
    pub amount: Option<Total>,
    pub charge: Option<Total>,
    pub price_id: Option<i64>,
    /// Of [`crate::domain::event::UnpricedReason`].
    pub unpriced_reason: Option<i16>,
    pub subject: String,
    pub external_id: String,
    pub idempotency_key: String,
    /// JSON.
    pub metadata: Option<String>,
    pub record_time: DateTime<Utc>,
}

impl ExportRow {
    /// The event's id.
    pub fn id(&self) -> EventId {
        EventId { time: self.event_time, seq: self.event_seq }
    }
}

/// The events, read as they are taken, all of one snapshot.
pub fn stream<'a>(
    conn: &'a mut PgConnection,
    filter: &'a ExportFilter,
) -> impl Stream<Item = sqlx::Result<ExportRow>> + Send + 'a {
    sqlx::query_as!(
        ExportRow,
        r#"SELECT client_id, event_time, event_seq, day, service, operation, model, units AS "units: Total", input_tokens,
               output_tokens, cached_input_tokens, amount AS "amount: Total", charge AS "charge: Total", price_id,
               unpriced_reason, subject, external_id, idempotency_key, metadata::text AS metadata, record_time
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
}

/// The start of the transaction, which lies before its snapshot: what was acknowledged before it is in.
pub async fn snapshot_time(conn: &mut PgConnection) -> sqlx::Result<DateTime<Utc>> {
    sqlx::query_scalar!(r#"SELECT now() AS "now!""#).fetch_one(conn).await
}
