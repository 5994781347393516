//! Streams all events of a range.

use crate::database::connect::allow_long_statements;
use crate::numeric::Numeric;
use crate::usage::events::labels_filter;
use chrono::{DateTime, NaiveDate, Utc};
use futures_util::{Stream, TryStreamExt};
use meterd_domain::decimal::Total;
use meterd_domain::event::{EventId, Labels};
use meterd_domain::period::widest_range;
use sqlx::pool::PoolConnection;
use sqlx::types::Json;
use sqlx::{Executor, PgConnection, PgPool, Postgres};

/// Which events to export. An empty filter matches everything.
#[derive(Debug)]
pub struct ExportFilter {
    pub client_id: Option<String>,
    pub start_time: Option<DateTime<Utc>>,
    pub end_time: Option<DateTime<Utc>>,
    /// Days in the time zone of the client, both included.
    pub start_day: Option<NaiveDate>,
    pub end_day: Option<NaiveDate>,
    pub services: Vec<String>,
    /// Only events that have all of these labels.
    pub labels: Labels,
}

impl ExportFilter {
    /// Returns a range of event times that includes every matching event. It lets the database skip partitions.
    fn times(&self) -> (Option<DateTime<Utc>>, Option<DateTime<Utc>>) {
        let start = self.start_time.max(self.start_day.map(|day| widest_range(day).0));
        let ends = [self.end_time, self.end_day.map(|day| widest_range(day).1)];
        (start, ends.into_iter().flatten().min())
    }
}

/// An event's row for export. There may be millions of them, so they are not converted to a domain type.
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
    pub amount: Option<Numeric>,
    pub charge: Option<Numeric>,
    pub price_id: Option<i64>,
    /// Number of an [`UnpricedReason`](meterd_domain::event::UnpricedReason).
    pub unpriced_reason: Option<i16>,
    pub subject: String,
    pub external_id: String,
    pub idempotency_key: String,
    /// JSON text.
    pub metadata: Option<String>,
    pub service_tier: Option<String>,
    /// The measures that have no column, as JSON text.
    pub measures: Option<String>,
    pub reported_cost: Option<Numeric>,
    /// JSON text.
    pub labels: Option<String>,
    pub tier_residue: Option<Numeric>,
    pub void_time: Option<DateTime<Utc>>,
    pub record_time: DateTime<Utc>,
}

impl ExportRow {
    /// Returns the event's id.
    pub fn id(&self) -> EventId {
        EventId { time: self.event_time, seq: self.event_seq }
    }
}

/// A snapshot of the events on its own connection.
pub struct Snapshot {
    conn: PoolConnection<Postgres>,
    /// Start of the transaction. The snapshot is taken later, so it includes everything that was acknowledged before
    /// this time.
    pub complete_as_of: DateTime<Utc>,
}

impl Snapshot {
    /// Begins a transaction without a statement timeout.
    pub async fn begin(pool: &PgPool) -> crate::Result<Self> {
        let mut conn = pool.acquire().await?;
        // Closing the connection also ends the transaction. An export that ends early leaves unread rows, which the
        // pool would read before it could use the connection again.
        conn.close_on_drop();
        conn.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
        allow_long_statements(&mut conn).await?;
        let complete_as_of = snapshot_time(&mut conn).await?;
        Ok(Self { conn, complete_as_of })
    }

    /// Streams the matching events in order of client, time and sequence number. The server sends the rows while the
    /// caller reads them.
    pub fn events<'a>(
        &'a mut self,
        filter: &'a ExportFilter,
    ) -> impl Stream<Item = crate::Result<ExportRow>> + Send + 'a {
        stream(&mut self.conn, filter)
    }
}

fn stream<'a>(
    conn: &'a mut PgConnection,
    filter: &'a ExportFilter,
) -> impl Stream<Item = crate::Result<ExportRow>> + Send + 'a {
    let (start_time, end_time) = filter.times();
    sqlx::query_as!(
        ExportRow,
        r#"SELECT client_id, event_time, event_seq, day, service, operation, model, units AS "units: Numeric", input_tokens,
               output_tokens, cached_input_tokens, amount AS "amount: Numeric", charge AS "charge: Numeric", price_id,
               unpriced_reason, subject, external_id, idempotency_key, metadata::text AS metadata, service_tier,
               measures::text AS measures, reported_cost AS "reported_cost: Numeric", labels::text AS labels, tier_residue AS "tier_residue: Numeric", void_time, record_time
           FROM usage_events
           WHERE ($1::text IS NULL OR client_id = $1)
             AND event_time >= COALESCE($2, '-infinity'::timestamptz) AND event_time < COALESCE($3, 'infinity'::timestamptz)
             AND (cardinality($4::text[]) = 0 OR service = ANY($4))
             AND ($7::jsonb IS NULL OR labels @> $7)
             AND day >= COALESCE($5, '-infinity'::date) AND day <= COALESCE($6, 'infinity'::date)
           ORDER BY client_id, event_time, event_seq"#,
        filter.client_id,
        start_time,
        end_time,
        &filter.services,
        filter.start_day,
        filter.end_day,
        labels_filter(&filter.labels) as Option<Json<&Labels>>
    )
    .fetch(conn)
    .map_err(Into::into)
}

async fn snapshot_time(conn: &mut PgConnection) -> crate::Result<DateTime<Utc>> {
    sqlx::query_scalar!(r#"SELECT now() AS "now!""#).fetch_one(conn).await.map_err(Into::into)
}
