//! Adding to the rows of days and months, in lock order.

use crate::domain::alert::AlertSet;
use crate::domain::decimal::Total;
use crate::domain::period::Month;
use crate::domain::rollup::Deltas;
use crate::store::numeric;
use crate::store::sums::SumsColumns;
use bigdecimal::BigDecimal;
use chrono::NaiveDate;
use sqlx::PgConnection;
use std::collections::HashSet;

/// A client's month, as far as the alert rules need it. Who holds one has its row locked.
#[derive(Clone, Debug)]
pub struct MonthRow {
    pub client_id: String,
    pub month: Month,
    pub cost: Total,
    /// Of the month before.
    pub previous_cost: Total,
    /// Alerts that the month has had.
    pub raised: AlertSet,
    /// Those of them that are open.
    pub open: AlertSet,
}

/// As the statements give it.
struct RawMonthRow {
    client_id: String,
    month: NaiveDate,
    cost: BigDecimal,
    previous_cost: BigDecimal,
    raised_alerts: i32,
    open_alerts: i32,
}

impl TryFrom<RawMonthRow> for MonthRow {
    type Error = sqlx::Error;

    fn try_from(row: RawMonthRow) -> sqlx::Result<Self> {
        Ok(Self {
            client_id: row.client_id,
            month: Month::of(row.month),
            cost: numeric::total(&row.cost)?,
            previous_cost: numeric::total(&row.previous_cost)?,
            raised: AlertSet(row.raised_alerts),
            open: AlertSet(row.open_alerts),
        })
    }
}

/// Adds the deltas to months, their services and days, and gives the months as they are now. Everyone takes the rows in this
/// order, each table's sorted, so that no two writers wait for each other.
pub async fn add(conn: &mut PgConnection, deltas: &Deltas) -> sqlx::Result<Vec<MonthRow>> {
    let mut months = add_months(conn, deltas).await?;
    add_month_services(conn, deltas).await?;
    let previous_costs = add_days(conn, deltas).await?;
    for (row, cost) in months.iter_mut().zip(previous_costs) {
        row.previous_cost = cost;
    }
    Ok(months)
}

async fn add_months(conn: &mut PgConnection, deltas: &Deltas) -> sqlx::Result<Vec<MonthRow>> {
    let clients: Vec<String> = deltas.months.keys().map(|key| key.0.to_string()).collect();
    let months: Vec<NaiveDate> = deltas.months.keys().map(|key| key.1.first_day()).collect();
    let sums: SumsColumns = deltas.months.values().collect();
    let rows = sqlx::query_as!(
        RawMonthRow,
        r#"INSERT INTO usage_months AS t (client_id, month, request_count, units, input_tokens, output_tokens,
             cached_input_tokens, cost, unpriced_event_count, summary_stale_since)
         SELECT *, now() FROM unnest($1::text[], $2::date[], $3::bigint[], $4::numeric[], $5::bigint[], $6::bigint[],
             $7::bigint[], $8::numeric[], $9::bigint[])
         ON CONFLICT (client_id, month) DO UPDATE SET
             request_count = t.request_count + excluded.request_count,
             units = t.units + excluded.units,
             input_tokens = t.input_tokens + excluded.input_tokens,
             output_tokens = t.output_tokens + excluded.output_tokens,
             cached_input_tokens = t.cached_input_tokens + excluded.cached_input_tokens,
             cost = t.cost + excluded.cost,
             unpriced_event_count = t.unpriced_event_count + excluded.unpriced_event_count,
             summary_stale_since = COALESCE(t.summary_stale_since, now())
         RETURNING client_id, month, cost, raised_alerts, open_alerts, 0::numeric AS "previous_cost!""#,
        &clients,
        &months,
        &sums.request_counts,
        &sums.units,
        &sums.input_tokens,
        &sums.output_tokens,
        &sums.cached_input_tokens,
        &sums.costs,
        &sums.unpriced_event_counts
    )
    .fetch_all(conn)
    .await?;
    // In the order of the deltas, which is that of the previous costs.
    let mut rows = rows.into_iter().map(MonthRow::try_from).collect::<sqlx::Result<Vec<_>>>()?;
    rows.sort_by(|left, right| (&left.client_id, left.month).cmp(&(&right.client_id, right.month)));
    Ok(rows)
}

async fn add_month_services(conn: &mut PgConnection, deltas: &Deltas) -> sqlx::Result<()> {
    let keys = deltas.month_services.keys();
    let clients: Vec<String> = keys.clone().map(|key| key.0.to_string()).collect();
    let months: Vec<NaiveDate> = keys.clone().map(|key| key.1.first_day()).collect();
    let services: Vec<String> = keys.map(|key| key.2.to_string()).collect();
    let sums: SumsColumns = deltas.month_services.values().collect();
    sqlx::query!(
        "INSERT INTO usage_month_services AS t (client_id, month, service, request_count, units, input_tokens,
             output_tokens, cached_input_tokens, cost, unpriced_event_count)
         SELECT * FROM unnest($1::text[], $2::date[], $3::text[], $4::bigint[], $5::numeric[], $6::bigint[],
             $7::bigint[], $8::bigint[], $9::numeric[], $10::bigint[])
         ON CONFLICT (client_id, month, service) DO UPDATE SET
             request_count = t.request_count + excluded.request_count,
             units = t.units + excluded.units,
             input_tokens = t.input_tokens + excluded.input_tokens,
             output_tokens = t.output_tokens + excluded.output_tokens,
             cached_input_tokens = t.cached_input_tokens + excluded.cached_input_tokens,
             cost = t.cost + excluded.cost,
             unpriced_event_count = t.unpriced_event_count + excluded.unpriced_event_count",
        &clients,
        &months,
        &services,
        &sums.request_counts,
        &sums.units,
        &sums.input_tokens,
        &sums.output_tokens,
        &sums.cached_input_tokens,
        &sums.costs,
        &sums.unpriced_event_counts
    )
    .execute(conn)
    .await
    .map(drop)
}

/// Adds to the days, and reads what the months before those of the deltas have cost: here, since this statement begins when
/// the months are locked, and sees what others had committed by then. The statement that locks them may be older than that.
async fn add_days(conn: &mut PgConnection, deltas: &Deltas) -> sqlx::Result<Vec<Total>> {
    let month_clients: Vec<String> = deltas.months.keys().map(|key| key.0.to_string()).collect();
    let months_before: Vec<NaiveDate> = deltas.months.keys().map(|key| key.1.previous().first_day()).collect();
    let keys = deltas.days.keys();
    let clients: Vec<String> = keys.clone().map(|key| key.0.to_string()).collect();
    let days: Vec<NaiveDate> = keys.clone().map(|key| key.1).collect();
    let services: Vec<String> = keys.clone().map(|key| key.2.to_string()).collect();
    let operations: Vec<String> = keys.clone().map(|key| key.3.to_string()).collect();
    let models: Vec<String> = keys.map(|key| key.4.to_string()).collect();
    let sums: SumsColumns = deltas.days.values().collect();
    let costs = sqlx::query_scalar!(
        r#"WITH added AS (
         INSERT INTO usage_days AS t (client_id, day, service, operation, model, request_count, units, input_tokens,
             output_tokens, cached_input_tokens, cost, unpriced_event_count)
         SELECT * FROM unnest($1::text[], $2::date[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::numeric[],
             $8::bigint[], $9::bigint[], $10::bigint[], $11::numeric[], $12::bigint[])
         ON CONFLICT (client_id, day, service, operation, model) DO UPDATE SET
             request_count = t.request_count + excluded.request_count,
             units = t.units + excluded.units,
             input_tokens = t.input_tokens + excluded.input_tokens,
             output_tokens = t.output_tokens + excluded.output_tokens,
             cached_input_tokens = t.cached_input_tokens + excluded.cached_input_tokens,
             cost = t.cost + excluded.cost,
             unpriced_event_count = t.unpriced_event_count + excluded.unpriced_event_count
         )
         SELECT COALESCE(p.cost, 0) AS "cost!"
         FROM unnest($13::text[], $14::date[]) WITH ORDINALITY AS wanted (client_id, month, number)
         LEFT JOIN usage_months p USING (client_id, month) ORDER BY number"#,
        &clients,
        &days,
        &services,
        &operations,
        &models,
        &sums.request_counts,
        &sums.units,
        &sums.input_tokens,
        &sums.output_tokens,
        &sums.cached_input_tokens,
        &sums.costs,
        &sums.unpriced_event_counts,
        &month_clients,
        &months_before
    )
    .fetch_all(conn)
    .await?;
    costs.iter().map(numeric::total).collect()
}

/// Locks the month rows of these clients and first days, in order.
pub async fn lock_months(conn: &mut PgConnection, clients: &[String], months: &[NaiveDate]) -> sqlx::Result<()> {
    sqlx::query!(
        "SELECT 1 AS one FROM usage_months JOIN unnest($1::text[], $2::date[]) AS wanted (client_id, month)
             USING (client_id, month) ORDER BY client_id, month FOR UPDATE OF usage_months",
        clients,
        months
    )
    .fetch_all(conn)
    .await
    .map(drop)
}

/// Locks months of a client that have a row, in order, and gives them as they are then. What the months before have cost is
/// read after that, since the statement that waits for a row may have read others before.
pub async fn lock_client_months(
    conn: &mut PgConnection,
    client_id: &str,
    months: &[Month],
) -> sqlx::Result<Vec<MonthRow>> {
    let months: Vec<NaiveDate> = months.iter().map(|month| month.first_day()).collect();
    let rows = sqlx::query_as!(
        RawMonthRow,
        r#"SELECT client_id, month, cost, raised_alerts, open_alerts, 0::numeric AS "previous_cost!"
           FROM usage_months WHERE client_id = $1 AND month = ANY($2) ORDER BY month FOR UPDATE"#,
        client_id,
        &months
    )
    .fetch_all(&mut *conn)
    .await?;
    let mut rows = rows.into_iter().map(MonthRow::try_from).collect::<sqlx::Result<Vec<_>>>()?;
    let before: Vec<NaiveDate> = rows.iter().map(|row| row.month.previous().first_day()).collect();
    let costs = sqlx::query_scalar!(
        r#"SELECT COALESCE((SELECT cost FROM usage_months WHERE client_id = $1 AND month = wanted.month), 0) AS "cost!"
           FROM unnest($2::date[]) WITH ORDINALITY AS wanted (month, number) ORDER BY number"#,
        client_id,
        &before
    )
    .fetch_all(conn)
    .await?;
    for (row, cost) in rows.iter_mut().zip(costs) {
        row.previous_cost = numeric::total(&cost)?;
    }
    Ok(rows)
}

/// What recurring services have cost in these months, in their order.
pub async fn recurring_costs(conn: &mut PgConnection, months: &[&MonthRow]) -> sqlx::Result<Vec<Total>> {
    let clients: Vec<String> = months.iter().map(|row| row.client_id.clone()).collect();
    let firsts: Vec<NaiveDate> = months.iter().map(|row| row.month.first_day()).collect();
    let costs = sqlx::query_scalar!(
        r#"SELECT COALESCE((SELECT sum(u.cost) FROM usage_month_services u JOIN services s USING (service)
                            WHERE u.client_id = wanted.client_id AND u.month = wanted.month AND s.recurring), 0) AS "cost!"
           FROM unnest($1::text[], $2::date[]) WITH ORDINALITY AS wanted (client_id, month, number) ORDER BY number"#,
        &clients,
        &firsts
    )
    .fetch_all(conn)
    .await?;
    costs.iter().map(numeric::total).collect()
}

/// Services that a client had used before this month.
pub async fn services_before(conn: &mut PgConnection, client_id: &str, month: Month) -> sqlx::Result<HashSet<String>> {
    let services = sqlx::query_scalar!(
        "SELECT DISTINCT service FROM usage_month_services WHERE client_id = $1 AND month < $2 AND request_count > 0",
        client_id,
        month.first_day()
    );
    Ok(services.fetch_all(conn).await?.into_iter().collect())
}

/// A service on a day.
pub struct DayRow {
    pub day: NaiveDate,
    pub service: String,
    pub units: Total,
    pub cost: Total,
}

/// A client's days from `first` to `last` by service, as far as they have usage.
pub async fn days(
    conn: &mut PgConnection,
    client_id: &str,
    first: NaiveDate,
    last: NaiveDate,
) -> sqlx::Result<Vec<DayRow>> {
    let rows = sqlx::query!(
        r#"SELECT day, service, sum(units) AS "units!", sum(cost) AS "cost!" FROM usage_days
           WHERE client_id = $1 AND day BETWEEN $2 AND $3 AND request_count > 0 GROUP BY day, service"#,
        client_id,
        first,
        last
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter()
        .map(|row| {
            let (units, cost) = (numeric::total(&row.units)?, numeric::total(&row.cost)?);
            Ok(DayRow { day: row.day, service: row.service, units, cost })
        })
        .collect()
}
