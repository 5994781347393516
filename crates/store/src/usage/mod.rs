//! Reads sums of months, ranges of days and the whole platform.
//!
//! Each answer is from one snapshot. Its `complete_as_of` is `now()`, the start of the transaction. The snapshot is
//! taken later, so it includes everything that was acknowledged before that time.

pub mod changes;
pub mod event_days;
pub mod events;
pub mod export;
pub mod generations;
pub mod holders;
pub mod keys;
pub mod partitions;
pub mod pending;
pub mod query;
pub mod record;
pub mod rollups;
pub mod summaries;
pub mod summary_totals;
pub mod verify;
pub mod verify_keys;

use crate::numeric::Numeric;
use crate::sums::sums_of;
use chrono::{DateTime, NaiveDate, Utc};
use meterd_domain::period::Month;
use meterd_domain::rollup::Sums;
use sqlx::PgPool;

/// An answer and the time up to which it is complete.
pub struct AsOf<T> {
    pub complete_as_of: DateTime<Utc>,
    pub rows: T,
}

/// Sums of one service.
pub struct ServiceSums {
    pub service: String,
    pub sums: Sums,
}

/// Rows of a client, and the client's time zone from the same snapshot.
pub struct OfClient<T> {
    /// IANA time zone name.
    pub time_zone: String,
    pub rows: Vec<T>,
}

/// Returns a client's months from `first` to `last`, both included, by service, highest cost first. `None` if the
/// client does not exist.
pub async fn months(
    pool: &PgPool,
    client_id: &str,
    first: Month,
    last: Month,
) -> crate::Result<Option<AsOf<OfClient<(Month, ServiceSums)>>>> {
    let rows = sqlx::query!(
        r#"SELECT now() AS "now!", time_zone, month AS "month?", service AS "service?",
               sum(request_count)::bigint AS "request_count?", sum(units) AS "units?: Numeric",
               sum(input_tokens)::bigint AS "input_tokens?", sum(output_tokens)::bigint AS "output_tokens?",
               sum(cached_input_tokens)::bigint AS "cached_input_tokens?", sum(cost) AS "cost?: Numeric",
               sum(unpriced_event_count)::bigint AS "unpriced_event_count?"
           FROM clients c
           LEFT JOIN all_usage_month_services u
               ON u.client_id = $1 AND month BETWEEN $2 AND $3 AND request_count > 0
           WHERE c.client_id = $1
           GROUP BY time_zone, month, service
           ORDER BY sum(cost) DESC, service"#,
        client_id,
        first.first_day(),
        last.first_day()
    )
    .fetch_all(pool)
    .await?;
    let Some((complete_as_of, time_zone)) = rows.first().map(|row| (row.now, row.time_zone.clone())) else {
        return Ok(None);
    };
    let rows = rows.into_iter().filter_map(|row| {
        let sums = Sums {
            request_count: row.request_count?,
            units: row.units?.into(),
            input_tokens: row.input_tokens?,
            output_tokens: row.output_tokens?,
            cached_input_tokens: row.cached_input_tokens?,
            cost: row.cost?.into(),
            unpriced_event_count: row.unpriced_event_count?,
        };
        Some((Month::of(row.month?), ServiceSums { service: row.service?, sums }))
    });
    Ok(Some(AsOf { complete_as_of, rows: OfClient { time_zone, rows: rows.collect() } }))
}

/// One row of a range's summary. The fields that are `Some` are the dimensions of the row.
pub struct RangeRow {
    pub day: Option<NaiveDate>,
    pub service: Option<String>,
    pub operation: Option<String>,
    pub sums: Sums,
}

/// Returns the sums of a client's days from `start` to `end`, both included: in total, by service, by day, and for the
/// `top` operations with the highest cost. `None` if the client does not exist.
///
/// The statement ranks operations by cost first and then reads the other sums of the top ones only, because a client
/// may have many operations.
pub async fn range(
    pool: &PgPool,
    client_id: &str,
    start: NaiveDate,
    end: NaiveDate,
    top: i64,
) -> crate::Result<Option<AsOf<OfClient<RangeRow>>>> {
    let rows = sqlx::query_file!("sql/usage/range.sql", client_id, start, end, top).fetch_all(pool).await?;
    let zone = rows.first().and_then(|row| Some((row.now, row.time_zone.clone()?)));
    let Some((complete_as_of, time_zone)) = zone else { return Ok(None) };
    let rows = rows.into_iter().map(|row| {
        let sums = sums_of!(row);
        RangeRow { day: row.day, service: row.service, operation: row.operation, sums }
    });
    Ok(Some(AsOf { complete_as_of, rows: OfClient { time_zone, rows: rows.collect() } }))
}

/// Returns up to `limit` months with usage, newest first: those of one client, or of all clients if `client_id` is
/// `None`.
pub async fn latest_months(pool: &PgPool, client_id: Option<&str>, limit: i64) -> crate::Result<Vec<Month>> {
    let months = sqlx::query_scalar!(
        "SELECT DISTINCT month FROM usage_months WHERE ($1::text IS NULL OR client_id = $1) AND request_count > 0
         ORDER BY month DESC LIMIT $2",
        client_id,
        limit
    );
    Ok(months.fetch_all(pool).await?.into_iter().map(Month::of).collect())
}

/// Totals of all clients in a month.
pub struct Platform {
    pub client_count: i64,
    pub active_client_count: i64,
    pub services: Vec<ServiceSums>,
}

/// Returns the totals of the platform in a month.
pub async fn platform(pool: &PgPool, month: Month) -> crate::Result<AsOf<Platform>> {
    let mut tx = pool.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
    let counts = sqlx::query!(
        r#"SELECT now() AS "now!", (SELECT count(*) FROM clients) AS "client_count!",
               (SELECT count(*) FROM usage_months WHERE month = $1 AND request_count > 0) AS "active_client_count!""#,
        month.first_day()
    )
    .fetch_one(&mut *tx)
    .await?;
    let rows = sqlx::query!(
        r#"SELECT service AS "service!", sum(request_count)::bigint AS "request_count!", sum(units) AS "units!: Numeric",
               sum(input_tokens)::bigint AS "input_tokens!", sum(output_tokens)::bigint AS "output_tokens!",
               sum(cached_input_tokens)::bigint AS "cached_input_tokens!", sum(cost) AS "cost!: Numeric",
               sum(unpriced_event_count)::bigint AS "unpriced_event_count!"
           FROM all_usage_month_services WHERE month = $1 AND request_count > 0
           GROUP BY service ORDER BY sum(cost) DESC, service"#,
        month.first_day()
    )
    .fetch_all(&mut *tx)
    .await?;
    tx.commit().await?;
    let services = rows
        .into_iter()
        .map(|row| {
            let sums = sums_of!(row);
            ServiceSums { service: row.service, sums }
        })
        .collect();
    Ok(AsOf {
        complete_as_of: counts.now,
        rows: Platform { client_count: counts.client_count, active_client_count: counts.active_client_count, services },
    })
}
