//! Floor (r) of `meterd-bench reads`: each read as a plain query of the rollups, on one connection. Only the benchmarks
//! use it.

use bigdecimal::BigDecimal;
use chrono::{DateTime, NaiveDate, Utc};
use futures_util::TryStreamExt;
use meterd_domain::period::Month;
use sqlx::PgConnection;

/// A row of any of the reads. A field that the read does not group by is `None`.
pub struct FloorRow {
    pub day: Option<NaiveDate>,
    pub service: Option<String>,
    pub operation: Option<String>,
    pub request_count: i64,
    pub units: BigDecimal,
    pub input_tokens: i64,
    pub output_tokens: i64,
    pub cached_input_tokens: i64,
    pub cost: BigDecimal,
    pub unpriced_event_count: i64,
}

/// Returns a client's month by service, and the cost of the days from `start` to `end`, both included, which a forecast needs. The
/// rows of days have no requests.
pub async fn month(
    conn: &mut PgConnection,
    client_id: &str,
    month: Month,
    start: NaiveDate,
    end: NaiveDate,
) -> crate::Result<Vec<FloorRow>> {
    sqlx::query_as!(
        FloorRow,
        r#"SELECT NULL::date AS day, service AS "service?", NULL::text AS operation, request_count AS "request_count!",
               units AS "units!", input_tokens AS "input_tokens!", output_tokens AS "output_tokens!",
               cached_input_tokens AS "cached_input_tokens!", cost AS "cost!", unpriced_event_count AS "unpriced_event_count!"
           FROM usage_month_services WHERE client_id = $1 AND month = $2
           UNION ALL
           SELECT day, NULL, NULL, 0, 0, 0, 0, 0, sum(cost), 0
           FROM usage_days WHERE client_id = $1 AND day BETWEEN $3 AND $4 GROUP BY day"#,
        client_id,
        month.first_day(),
        start,
        end
    )
    .fetch_all(conn)
    .await
    .map_err(Into::into)
}

/// Returns the sums of a client's days from `start` to `end`, both included: in total, by service, by day, and by
/// service and operation.
pub async fn summary(
    conn: &mut PgConnection,
    client_id: &str,
    start: NaiveDate,
    end: NaiveDate,
) -> crate::Result<Vec<FloorRow>> {
    sqlx::query_as!(
        FloorRow,
        r#"SELECT day AS "day?", service AS "service?", operation AS "operation?",
               sum(request_count)::bigint AS "request_count!", sum(units) AS "units!",
               sum(input_tokens)::bigint AS "input_tokens!", sum(output_tokens)::bigint AS "output_tokens!",
               sum(cached_input_tokens)::bigint AS "cached_input_tokens!", sum(cost) AS "cost!",
               sum(unpriced_event_count)::bigint AS "unpriced_event_count!"
           FROM usage_days WHERE client_id = $1 AND day BETWEEN $2 AND $3
           GROUP BY GROUPING SETS ((), (service), (day), (service, operation))"#,
        client_id,
        start,
        end
    )
    .fetch_all(conn)
    .await
    .map_err(Into::into)
}

/// Returns a client's sums by day from `start` to `end`, both included.
pub async fn by_day(
    conn: &mut PgConnection,
    client_id: &str,
    start: NaiveDate,
    end: NaiveDate,
) -> crate::Result<Vec<FloorRow>> {
    sqlx::query_as!(
        FloorRow,
        r#"SELECT day AS "day?", NULL::text AS service, NULL::text AS operation,
               sum(request_count)::bigint AS "request_count!", sum(units) AS "units!",
               sum(input_tokens)::bigint AS "input_tokens!", sum(output_tokens)::bigint AS "output_tokens!",
               sum(cached_input_tokens)::bigint AS "cached_input_tokens!", sum(cost) AS "cost!",
               sum(unpriced_event_count)::bigint AS "unpriced_event_count!"
           FROM usage_days WHERE client_id = $1 AND day BETWEEN $2 AND $3 GROUP BY day ORDER BY day"#,
        client_id,
        start,
        end
    )
    .fetch_all(conn)
    .await
    .map_err(Into::into)
}

/// Returns up to `limit` clients of a month, highest cost first. `service` has the client id.
pub async fn summaries(conn: &mut PgConnection, month: Month, limit: i64) -> crate::Result<Vec<FloorRow>> {
    sqlx::query_as!(
        FloorRow,
        r#"SELECT NULL::date AS day, client_id AS "service?", NULL::text AS operation, request_count, units, input_tokens,
               output_tokens, cached_input_tokens, cost, unpriced_event_count
           FROM monthly_summaries WHERE month = $1 ORDER BY cost DESC, client_id LIMIT $2"#,
        month.first_day(),
        limit
    )
    .fetch_all(conn)
    .await.map_err(Into::into)
}

/// Copies the events of a time range as CSV, in the order of an export, and discards them. Returns the number of bytes.
pub async fn copy_out(conn: &mut PgConnection, start: DateTime<Utc>, end: DateTime<Utc>) -> crate::Result<u64> {
    // COPY takes no parameters. The program formats both times itself, so it is safe to insert them.
    let statement = format!(
        "COPY (SELECT * FROM usage_events WHERE event_time >= '{}' AND event_time < '{}' \
         ORDER BY client_id, event_time, event_seq) TO STDOUT (FORMAT csv)",
        start.to_rfc3339(),
        end.to_rfc3339()
    );
    let mut pieces = conn.copy_out_raw(&statement).await?;
    let mut bytes = 0;
    while let Some(piece) = pieces.try_next().await? {
        bytes += piece.len() as u64;
    }
    Ok(bytes)
}
