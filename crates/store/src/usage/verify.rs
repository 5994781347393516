//! Compares rollups with the events, client-month by client-month.

use crate::numeric::Numeric;
use chrono::NaiveDate;
use meterd_domain::decimal::Total;
use meterd_domain::period::Month;
use meterd_domain::rollup::Sums;
use sqlx::{PgConnection, PgPool};

/// A rollup row that differs from the sums of its events.
pub struct Difference {
    pub client_id: String,
    pub month: Month,
    pub row: RollupRow,
    /// Sums of the events.
    pub expected: Sums,
    /// Sums in the row.
    pub actual: Sums,
}

/// A sum of a measure that differs from the sum of its events.
pub struct MeasureDifference {
    pub client_id: String,
    pub day: NaiveDate,
    pub service: String,
    pub operation: String,
    pub model: String,
    pub measure: String,
    /// Sum of the events.
    pub expected: Total,
    /// Sum in the row.
    pub actual: Total,
}

/// Identifies a rollup row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RollupRow {
    Month,
    MonthService { service: String },
    Day { day: NaiveDate, service: String, operation: String, model: String },
}

/// What to compare; everything by default.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    pub client_id: Option<String>,
    /// Only clients whose id is greater than this one.
    pub after: Option<String>,
    /// Only clients whose id is at most this one.
    pub upto: Option<String>,
    /// First month, included.
    pub first: Option<Month>,
    /// Last month, included.
    pub last: Option<Month>,
}

/// The result of a comparison, from one snapshot.
pub struct Compared {
    pub client_months: i64,
    pub events: i64,
    /// Ordered by client and month.
    pub differences: Vec<Difference>,
}

struct ComparedRow {
    client_months: i64,
    events: i64,
    kind: Option<String>,
    client_id: Option<String>,
    day: Option<NaiveDate>,
    service: Option<String>,
    operation: Option<String>,
    model: Option<String>,
    request_count: Option<i64>,
    units: Option<Numeric>,
    input_tokens: Option<i64>,
    output_tokens: Option<i64>,
    cached_input_tokens: Option<i64>,
    cost: Option<Numeric>,
    unpriced_event_count: Option<i64>,
    actual_request_count: Option<i64>,
    actual_units: Option<Numeric>,
    actual_input_tokens: Option<i64>,
    actual_output_tokens: Option<i64>,
    actual_cached_input_tokens: Option<i64>,
    actual_cost: Option<Numeric>,
    actual_unpriced_event_count: Option<i64>,
}

impl ComparedRow {
    /// Returns `None` for a row that has only counts and no difference.
    fn difference(self) -> Option<Difference> {
        let (day, service) = (self.day?, self.service?);
        let row = match self.kind?.as_str() {
            "month" => RollupRow::Month,
            "month_service" => RollupRow::MonthService { service },
            _ => RollupRow::Day { day, service, operation: self.operation?, model: self.model? },
        };
        let expected = Sums {
            request_count: self.request_count?,
            units: self.units?.into(),
            input_tokens: self.input_tokens?,
            output_tokens: self.output_tokens?,
            cached_input_tokens: self.cached_input_tokens?,
            cost: self.cost?.into(),
            unpriced_event_count: self.unpriced_event_count?,
        };
        let actual = Sums {
            request_count: self.actual_request_count?,
            units: self.actual_units?.into(),
            input_tokens: self.actual_input_tokens?,
            output_tokens: self.actual_output_tokens?,
            cached_input_tokens: self.actual_cached_input_tokens?,
            cost: self.actual_cost?.into(),
            unpriced_event_count: self.actual_unpriced_event_count?,
        };
        Some(Difference { client_id: self.client_id?, month: Month::of(day), row, expected, actual })
    }
}

/// Returns every n-th client id in order, where n is `clients`. The ids divide the clients into ranges, which are
/// compared one after the other.
pub async fn bounds(conn: &mut PgConnection, clients: i64) -> crate::Result<Vec<String>> {
    sqlx::query_scalar!(
        "SELECT client_id FROM (SELECT client_id, row_number() OVER (ORDER BY client_id) AS number FROM clients) AS numbered
         WHERE number % $1 = 0 ORDER BY client_id",
        clients
    )
    .fetch_all(conn)
    .await.map_err(Into::into)
}

/// Compares all rows of a scope with their events. One statement does this, so the result is from one snapshot.
pub async fn compare(conn: &mut PgConnection, scope: &Scope) -> crate::Result<Compared> {
    let rows = sqlx::query_file_as!(
        ComparedRow,
        "sql/usage/differences.sql",
        scope.after,
        scope.upto,
        scope.first.map(Month::first_day),
        scope.last.map(|last| last.next().first_day()),
        scope.first.map(|first| first.widest_range().0),
        scope.last.map(|last| last.widest_range().1),
        scope.client_id
    )
    .fetch_all(conn)
    .await?;
    let (client_months, events) = rows.first().map_or((0, 0), |row| (row.client_months, row.events));
    let differences = rows.into_iter().filter_map(ComparedRow::difference).collect();
    Ok(Compared { client_months, events, differences })
}

/// Returns the sums of measures of a scope that differ from their events, ordered by client and day.
pub async fn measure_differences(conn: &mut PgConnection, scope: &Scope) -> crate::Result<Vec<MeasureDifference>> {
    sqlx::query_file_as!(
        MeasureDifference,
        "sql/usage/measure_differences.sql",
        scope.after,
        scope.upto,
        scope.first.map(Month::first_day),
        scope.last.map(|last| last.next().first_day()),
        scope.first.map(|first| first.widest_range().0),
        scope.last.map(|last| last.widest_range().1),
        scope.client_id
    )
    .fetch_all(conn)
    .await
    .map_err(Into::into)
}

/// Returns the number of client-months in a scope up to and including `last`.
pub async fn count_until(conn: &mut PgConnection, scope: &Scope, last: Month) -> crate::Result<i64> {
    sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!" FROM (
               SELECT client_id, month FROM usage_months UNION SELECT client_id, month FROM all_usage_month_services
           ) AS every
           WHERE ($1::text IS NULL OR client_id = $1) AND month >= COALESCE($2, '-infinity'::date)
             AND month <= COALESCE($3, 'infinity'::date) AND month <= $4"#,
        scope.client_id,
        scope.first.map(Month::first_day),
        scope.last.map(Month::first_day),
        last.first_day()
    )
    .fetch_one(conn)
    .await
    .map_err(Into::into)
}

/// Returns the client-months from `start` to `end`, both included, that have an event or a rollup row, ordered.
pub async fn client_months(
    pool: &PgPool,
    client_id: Option<&str>,
    start: Option<Month>,
    end: Option<Month>,
) -> crate::Result<Vec<(String, Month)>> {
    let mut tx = pool.begin().await?;
    crate::database::connect::allow_long_statements(&mut tx).await?;
    let rows = sqlx::query!(
        r#"SELECT client_id AS "client_id!", month AS "month!" FROM (
               SELECT client_id, date_trunc('month', day::timestamp)::date AS month FROM usage_events
               WHERE $1::text IS NULL OR client_id = $1 GROUP BY 1, 2
               UNION SELECT client_id, date_trunc('month', day::timestamp)::date FROM all_usage_days
               UNION SELECT client_id, month FROM all_usage_month_services
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

impl Scope {
    /// Returns the scope of a month of a client.
    pub fn of_month(client_id: &str, month: Month) -> Self {
        Self { client_id: Some(client_id.into()), first: Some(month), last: Some(month), ..Self::default() }
    }
}
