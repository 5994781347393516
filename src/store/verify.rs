//! Whether rollups and totals equal the events, client-month by client-month.

use crate::domain::period::Month;
use crate::domain::rollup::Sums;
use crate::store::sums::SumsRow;
use bigdecimal::BigDecimal;
use chrono::NaiveDate;
use sqlx::{PgConnection, PgPool};

/// A row that does not equal its events.
pub struct Difference {
    pub row: RollupRow,
    /// What the events say.
    pub expected: Sums,
    /// What the row says.
    pub actual: Sums,
}

/// Which row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RollupRow {
    Month,
    MonthService { service: String },
    Day { day: NaiveDate, service: String, operation: String, model: String },
}

struct DifferenceRow {
    kind: String,
    day: NaiveDate,
    service: String,
    operation: String,
    model: String,
    request_count: i64,
    units: BigDecimal,
    input_tokens: i64,
    output_tokens: i64,
    cached_input_tokens: i64,
    cost: BigDecimal,
    unpriced_event_count: i64,
    actual_request_count: i64,
    actual_units: BigDecimal,
    actual_input_tokens: i64,
    actual_output_tokens: i64,
    actual_cached_input_tokens: i64,
    actual_cost: BigDecimal,
    actual_unpriced_event_count: i64,
}

impl TryFrom<DifferenceRow> for Difference {
    type Error = sqlx::Error;

    fn try_from(row: DifferenceRow) -> sqlx::Result<Self> {
        let expected = SumsRow {
            request_count: row.request_count,
            units: row.units,
            input_tokens: row.input_tokens,
            output_tokens: row.output_tokens,
            cached_input_tokens: row.cached_input_tokens,
            cost: row.cost,
            unpriced_event_count: row.unpriced_event_count,
        };
        let actual = SumsRow {
            request_count: row.actual_request_count,
            units: row.actual_units,
            input_tokens: row.actual_input_tokens,
            output_tokens: row.actual_output_tokens,
            cached_input_tokens: row.actual_cached_input_tokens,
            cost: row.actual_cost,
            unpriced_event_count: row.actual_unpriced_event_count,
        };
        let which = match row.kind.as_str() {
            "month" => RollupRow::Month,
            "month_service" => RollupRow::MonthService { service: row.service },
            _ => RollupRow::Day { day: row.day, service: row.service, operation: row.operation, model: row.model },
        };
        Ok(Self { row: which, expected: expected.try_into()?, actual: actual.try_into()? })
    }
}

/// Client-months that have an event or a row, ordered.
pub async fn client_months(
    pool: &PgPool,
    client_id: Option<&str>,
    start: Option<Month>,
    end: Option<Month>,
) -> sqlx::Result<Vec<(String, Month)>> {
    let mut tx = pool.begin().await?;
    crate::store::connect::allow_long_statements(&mut tx).await?;
    let rows = sqlx::query!(
        r#"SELECT client_id AS "client_id!", month AS "month!" FROM (
               SELECT client_id, date_trunc('month', day::timestamp)::date AS month FROM usage_events
               WHERE $1::text IS NULL OR client_id = $1 GROUP BY 1, 2
               UNION SELECT client_id, date_trunc('month', day::timestamp)::date FROM usage_days
               UNION SELECT client_id, month FROM usage_month_services
               UNION SELECT client_id, month FROM usage_months
           ) AS every
           WHERE ($1::text IS NULL OR client_id = $1) AND month >= COALESCE($2, '-infinity'::date)
             AND month <= COALESCE($3, 'infinity'::date)
           ORDER BY client_id, month"#,
        client_id,
        start.map(Month::first_day),
        end.map(Month::first_day)
    )
    .fetch_all(&mut *tx)
    .await?;
    tx.commit().await?;
    Ok(rows.into_iter().map(|row| (row.client_id, Month::of(row.month))).collect())
}

/// The rows of a client's month that do not equal its events, all of one snapshot.
pub async fn differences(conn: &mut PgConnection, client_id: &str, month: Month) -> sqlx::Result<Vec<Difference>> {
    let (from, to) = month.widest_range();
    let rows = sqlx::query_file_as!(
        DifferenceRow,
        "src/store/differences.sql",
        client_id,
        month.first_day(),
        month.next().first_day(),
        from,
        to
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(Difference::try_from).collect()
}

/// How many events a client's month has.
pub async fn event_count(conn: &mut PgConnection, client_id: &str, month: Month) -> sqlx::Result<i64> {
    let (from, to) = month.widest_range();
    sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!" FROM usage_events
           WHERE client_id = $1 AND day >= $2 AND day < $3 AND event_time >= $4 AND event_time < $5"#,
        client_id,
        month.first_day(),
        month.next().first_day(),
        from,
        to
    )
    .fetch_one(conn)
    .await
}
