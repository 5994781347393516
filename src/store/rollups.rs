//! Reading and locking the rows of days and months. [`super::record`] adds to them.

use crate::domain::alert::AlertSet;
use crate::domain::decimal::Total;
use crate::domain::period::Month;
use crate::store::numeric;
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
    /// Of the month before: as it was at some moment of the transaction. [`previous_costs`] gives it as it is while the row
    /// is held.
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

/// Locks months of a client that have a row, in order, and gives them as they are then.
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
    let costs = previous_costs(conn, &rows.iter().collect::<Vec<_>>()).await?;
    rows.iter_mut().zip(costs).for_each(|(row, cost)| row.previous_cost = cost);
    Ok(rows)
}

/// What the months before these have cost, in their order. A statement of its own: one that waits for a row may have read
/// others before.
pub async fn previous_costs(conn: &mut PgConnection, months: &[&MonthRow]) -> sqlx::Result<Vec<Total>> {
    let clients: Vec<String> = months.iter().map(|row| row.client_id.clone()).collect();
    let firsts: Vec<NaiveDate> = months.iter().map(|row| row.month.previous().first_day()).collect();
    let costs = sqlx::query_scalar!(
        r#"SELECT COALESCE(p.cost, 0) AS "cost!"
           FROM unnest($1::text[], $2::date[]) WITH ORDINALITY AS wanted (client_id, month, number)
           LEFT JOIN usage_months p USING (client_id, month) ORDER BY number"#,
        &clients,
        &firsts
    )
    .fetch_all(conn)
    .await?;
    costs.iter().map(numeric::total).collect()
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
