//! Reading sums: months, ranges and the platform. Each answer is one statement, so one snapshot; `now()` is the
//! start of its transaction, which lies before that snapshot: what was acknowledged before it is in.

use crate::domain::period::Month;
use crate::domain::rollup::Sums;
use crate::store::sums::{SumsRow, sums_of};
use chrono::{DateTime, NaiveDate, Utc};
use sqlx::PgPool;

/// Rows, and the time up to which they are complete.
pub struct AsOf<T> {
    pub complete_as_of: DateTime<Utc>,
    pub rows: T,
}

/// Sums of a service.
pub struct ServiceSums {
    pub service: String,
    pub sums: Sums,
}

/// A client's month by service.
pub async fn month(pool: &PgPool, client_id: &str, month: Month) -> sqlx::Result<AsOf<Vec<ServiceSums>>> {
    let rows = sqlx::query!(
        r#"SELECT now() AS "now!", service AS "service?", request_count AS "request_count?", units AS "units?",
               input_tokens AS "input_tokens?", output_tokens AS "output_tokens?",
               cached_input_tokens AS "cached_input_tokens?", cost AS "cost?",
               unpriced_event_count AS "unpriced_event_count?"
           FROM (SELECT) AS always
           LEFT JOIN usage_month_services ON client_id = $1 AND month = $2 AND request_count > 0
           ORDER BY cost DESC, service"#,
        client_id,
        month.first_day()
    )
    .fetch_all(pool)
    .await?;
    let complete_as_of = rows.first().map_or(DateTime::UNIX_EPOCH, |row| row.now);
    let rows = rows
        .into_iter()
        .filter_map(|row| {
            let sums = SumsRow {
                request_count: row.request_count?,
                units: row.units?,
                input_tokens: row.input_tokens?,
                output_tokens: row.output_tokens?,
                cached_input_tokens: row.cached_input_tokens?,
                cost: row.cost?,
                unpriced_event_count: row.unpriced_event_count?,
            };
            let service = row.service?;
            Some(Sums::try_from(sums).map(|sums| ServiceSums { service, sums }))
        })
        .collect::<sqlx::Result<_>>()?;
    Ok(AsOf { complete_as_of, rows })
}

/// One row of a range's summary. Which of the fields are set says what it sums.
pub struct RangeRow {
    pub day: Option<NaiveDate>,
    pub service: Option<String>,
    pub operation: Option<String>,
    pub sums: Sums,
}

/// A client's range of days: in total, by service, by day, and by service and operation.
pub async fn range(
    pool: &PgPool,
    client_id: &str,
    start: NaiveDate,
    end: NaiveDate,
) -> sqlx::Result<AsOf<Vec<RangeRow>>> {
    let rows = sqlx::query!(
        r#"SELECT now() AS "now!", day AS "day?", service AS "service?", operation AS "operation?",
               COALESCE(sum(request_count), 0)::bigint AS "request_count!",
               COALESCE(sum(units), 0) AS "units!", COALESCE(sum(input_tokens), 0)::bigint AS "input_tokens!",
               COALESCE(sum(output_tokens), 0)::bigint AS "output_tokens!",
               COALESCE(sum(cached_input_tokens), 0)::bigint AS "cached_input_tokens!",
               COALESCE(sum(cost), 0) AS "cost!",
               COALESCE(sum(unpriced_event_count), 0)::bigint AS "unpriced_event_count!"
           FROM usage_days WHERE client_id = $1 AND day BETWEEN $2 AND $3 AND request_count > 0
           GROUP BY GROUPING SETS ((), (service), (day), (service, operation))
           ORDER BY day, COALESCE(sum(cost), 0) DESC, service, operation"#,
        client_id,
        start,
        end
    )
    .fetch_all(pool)
    .await?;
    let complete_as_of = rows.first().map_or(DateTime::UNIX_EPOCH, |row| row.now);
    let rows = rows
        .into_iter()
        .map(|row| {
            let sums = sums_of!(row)?;
            Ok(RangeRow { day: row.day, service: row.service, operation: row.operation, sums })
        })
        .collect::<sqlx::Result<_>>()?;
    Ok(AsOf { complete_as_of, rows })
}

/// Totals over all clients of a month.
pub struct Platform {
    pub client_count: i64,
    pub active_client_count: i64,
    pub services: Vec<ServiceSums>,
}

/// The platform's month.
pub async fn platform(pool: &PgPool, month: Month) -> sqlx::Result<AsOf<Platform>> {
    let mut tx = pool.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
    let counts = sqlx::query!(
        r#"SELECT now() AS "now!", (SELECT count(*) FROM clients) AS "client_count!",
               (SELECT count(*) FROM usage_months WHERE month = $1 AND request_count > 0) AS "active_client_count!""#,
        month.first_day()
    )
    .fetch_one(&mut *tx)
    .await?;
    let rows = sqlx::query!(
        r#"SELECT service, sum(request_count)::bigint AS "request_count!", sum(units) AS "units!",
               sum(input_tokens)::bigint AS "input_tokens!", sum(output_tokens)::bigint AS "output_tokens!",
               sum(cached_input_tokens)::bigint AS "cached_input_tokens!", sum(cost) AS "cost!",
               sum(unpriced_event_count)::bigint AS "unpriced_event_count!"
           FROM usage_month_services WHERE month = $1 GROUP BY service ORDER BY sum(cost) DESC, service"#,
        month.first_day()
    )
    .fetch_all(&mut *tx)
    .await?;
    tx.commit().await?;
    let services = rows
        .into_iter()
        .map(|row| {
            let sums = sums_of!(row)?;
            Ok(ServiceSums { service: row.service, sums })
        })
        .collect::<sqlx::Result<_>>()?;
    Ok(AsOf {
        complete_as_of: counts.now,
        rows: Platform { client_count: counts.client_count, active_client_count: counts.active_client_count, services },
    })
}
