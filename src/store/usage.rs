//! Reading sums: months, ranges, queries and the platform. Each answer is one statement, so one snapshot; `now()` is the
//! start of its transaction, which lies before that snapshot: what was acknowledged before it is in.

use crate::domain::period::Month;
use crate::domain::rollup::Sums;
use crate::store::sums::SumsRow;
use bigdecimal::BigDecimal;
use chrono::{DateTime, NaiveDate, Utc};
use serde::{Deserialize, Serialize};
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
            let sums = SumsRow {
                request_count: row.request_count,
                units: row.units,
                input_tokens: row.input_tokens,
                output_tokens: row.output_tokens,
                cached_input_tokens: row.cached_input_tokens,
                cost: row.cost,
                unpriced_event_count: row.unpriced_event_count,
            };
            Ok(RangeRow { day: row.day, service: row.service, operation: row.operation, sums: sums.try_into()? })
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
           FROM usage_month_services WHERE month = $1 AND request_count > 0
           GROUP BY service ORDER BY sum(cost) DESC, service"#,
        month.first_day()
    )
    .fetch_all(&mut *tx)
    .await?;
    tx.commit().await?;
    let services = rows
        .into_iter()
        .map(|row| {
            let sums = SumsRow {
                request_count: row.request_count,
                units: row.units,
                input_tokens: row.input_tokens,
                output_tokens: row.output_tokens,
                cached_input_tokens: row.cached_input_tokens,
                cost: row.cost,
                unpriced_event_count: row.unpriced_event_count,
            };
            Ok(ServiceSums { service: row.service, sums: sums.try_into()? })
        })
        .collect::<sqlx::Result<_>>()?;
    Ok(AsOf {
        complete_as_of: counts.now,
        rows: Platform { client_count: counts.client_count, active_client_count: counts.active_client_count, services },
    })
}

/// What to query. Empty filters let everything through.
#[derive(Debug, Default)]
pub struct UsageQuery {
    pub client_ids: Vec<String>,
    pub services: Vec<String>,
    pub operations: Vec<String>,
    pub models: Vec<String>,
    pub subjects: Vec<String>,
    pub start: NaiveDate,
    pub end: NaiveDate,
    pub group_by: GroupBy,
    pub count_subjects: bool,
    pub unpriced_only: bool,
}

/// The dimensions that make a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupBy {
    pub day: bool,
    pub month: bool,
    pub client: bool,
    pub service: bool,
    pub operation: bool,
    pub model: bool,
    pub subject: bool,
}

/// The dimensions of a row: those not grouped by hold the first day there is, or the empty string.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueryKey {
    pub day: NaiveDate,
    pub month: NaiveDate,
    pub client_id: String,
    pub service: String,
    pub operation: String,
    pub model: String,
    pub subject: String,
}

/// A row of a query.
#[derive(Default)]
pub struct QueryRow {
    pub key: QueryKey,
    pub sums: Sums,
    /// Distinct subjects, where the query counts them.
    pub subject_count: i64,
}

impl UsageQuery {
    /// Whether the answer is one row, there also where there is nothing to add up.
    pub fn wants_total(&self) -> bool {
        self.group_by == GroupBy::default() && !self.unpriced_only
    }

    /// Subjects are not in the rollups.
    fn needs_events(&self) -> bool {
        self.group_by.subject || self.count_subjects || !self.subjects.is_empty()
    }
}

/// Up to `limit` rows after `after`, ordered by key: from the rollups, or from the events where subjects matter.
pub async fn query(
    pool: &PgPool,
    query: &UsageQuery,
    after: Option<&QueryKey>,
    limit: i64,
) -> sqlx::Result<AsOf<Vec<QueryRow>>> {
    let mut tx = pool.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
    let complete_as_of = sqlx::query_scalar!(r#"SELECT now() AS "now!""#).fetch_one(&mut *tx).await?;
    let rows = if query.needs_events() {
        query_events(&mut tx, query, after, limit).await?
    } else {
        query_days(&mut tx, query, after, limit).await?
    };
    tx.commit().await?;
    Ok(AsOf { complete_as_of, rows })
}

/// Row of either source.
struct GroupedRow {
    day: NaiveDate,
    month: NaiveDate,
    client_id: String,
    service: String,
    operation: String,
    model: String,
    subject: String,
    request_count: i64,
    units: BigDecimal,
    input_tokens: i64,
    output_tokens: i64,
    cached_input_tokens: i64,
    cost: BigDecimal,
    unpriced_event_count: i64,
    subject_count: i64,
}

impl TryFrom<GroupedRow> for QueryRow {
    type Error = sqlx::Error;

    fn try_from(row: GroupedRow) -> sqlx::Result<Self> {
        let sums = SumsRow {
            request_count: row.request_count,
            units: row.units,
            input_tokens: row.input_tokens,
            output_tokens: row.output_tokens,
            cached_input_tokens: row.cached_input_tokens,
            cost: row.cost,
            unpriced_event_count: row.unpriced_event_count,
        };
        Ok(Self {
            key: QueryKey {
                day: row.day,
                month: row.month,
                client_id: row.client_id,
                service: row.service,
                operation: row.operation,
                model: row.model,
                subject: row.subject,
            },
            sums: sums.try_into()?,
            subject_count: row.subject_count,
        })
    }
}

async fn query_days(
    conn: &mut sqlx::PgConnection,
    query: &UsageQuery,
    after: Option<&QueryKey>,
    limit: i64,
) -> sqlx::Result<Vec<QueryRow>> {
    let by = query.group_by;
    let rows = sqlx::query_file_as!(
        GroupedRow,
        "src/store/query_days.sql",
        &query.client_ids,
        &query.services,
        &query.operations,
        &query.models,
        query.start,
        query.end,
        by.day,
        by.month,
        by.client,
        by.service,
        by.operation,
        by.model,
        query.unpriced_only,
        after.is_some(),
        after.map(|key| key.day),
        after.map(|key| key.month),
        after.map(|key| key.client_id.as_str()),
        after.map(|key| key.service.as_str()),
        after.map(|key| key.operation.as_str()),
        after.map(|key| key.model.as_str()),
        limit
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(QueryRow::try_from).collect()
}

async fn query_events(
    conn: &mut sqlx::PgConnection,
    query: &UsageQuery,
    after: Option<&QueryKey>,
    limit: i64,
) -> sqlx::Result<Vec<QueryRow>> {
    let by = query.group_by;
    let (from, to) = (Month::of(query.start).widest_range().0, Month::of(query.end).widest_range().1);
    let rows = sqlx::query_file_as!(
        GroupedRow,
        "src/store/query_events.sql",
        &query.client_ids,
        &query.services,
        &query.operations,
        &query.models,
        query.start,
        query.end,
        by.day,
        by.month,
        by.client,
        by.service,
        by.operation,
        by.model,
        query.unpriced_only,
        after.is_some(),
        after.map(|key| key.day),
        after.map(|key| key.month),
        after.map(|key| key.client_id.as_str()),
        after.map(|key| key.service.as_str()),
        after.map(|key| key.operation.as_str()),
        after.map(|key| key.model.as_str()),
        limit,
        by.subject,
        after.map(|key| key.subject.as_str()),
        &query.subjects,
        from,
        to
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(QueryRow::try_from).collect()
}
