//! Reading and locking the rows of days and months. [`super::record`] adds to them.

use crate::numeric::{self, Numeric};
use chrono::NaiveDate;
use meterd_domain::alert::{AlertSet, MonthFacts};
use meterd_domain::decimal::Total;
use meterd_domain::period::Month;
use sqlx::PgConnection;
use std::collections::HashSet;

/// A client's month, as far as the alert rules need it. Who holds one has its row locked.
#[derive(Clone, Debug)]
pub struct MonthRow {
    pub client_id: String,
    pub month: Month,
    pub cost: Total,
    /// Alerts that the month has had.
    pub raised: AlertSet,
    /// Those of them that are open.
    pub open: AlertSet,
}

/// What the alert rules need beside a month.
#[derive(Clone, Copy, Debug, Default)]
pub struct Beside {
    /// What recurring services have cost in it.
    pub recurring_cost: Total,
    /// What the month before has cost.
    pub previous_cost: Total,
}

impl MonthRow {
    /// What the rules look at.
    pub fn facts(&self, today: NaiveDate, beside: Beside) -> MonthFacts {
        let Beside { recurring_cost, previous_cost } = beside;
        MonthFacts { month: self.month, cost: self.cost, recurring_cost, previous_cost, today }
    }
}

/// Locks the month rows of these clients and first days, in order.
pub async fn lock_months(conn: &mut PgConnection, clients: &[String], months: &[NaiveDate]) -> crate::Result<()> {
    sqlx::query!(
        "SELECT 1 AS one FROM usage_months JOIN unnest($1::text[], $2::date[]) AS wanted (client_id, month)
             USING (client_id, month) ORDER BY client_id, month FOR UPDATE OF usage_months",
        clients,
        months
    )
    .fetch_all(conn)
    .await
    .map(drop)
    .map_err(Into::into)
}

/// Locks months of a client that have a row, in order, and gives them as they are then.
pub async fn lock_client_months(
    conn: &mut PgConnection,
    client_id: &str,
    months: &[Month],
) -> crate::Result<Vec<MonthRow>> {
    let months: Vec<NaiveDate> = months.iter().map(|month| month.first_day()).collect();
    let rows = sqlx::query!(
        r#"SELECT client_id, month, cost AS "cost: Numeric", raised_alerts, open_alerts
           FROM usage_months WHERE client_id = $1 AND month = ANY($2) ORDER BY month FOR UPDATE"#,
        client_id,
        &months
    )
    .fetch_all(conn)
    .await?;
    let rows = rows.into_iter().map(|row| MonthRow {
        client_id: row.client_id,
        month: Month::of(row.month),
        cost: row.cost.into(),
        raised: AlertSet(row.raised_alerts),
        open: AlertSet(row.open_alerts),
    });
    Ok(rows.collect())
}

/// What is beside these months, in their order. Read while their rows are held, in a statement of its own: one that waits for a
/// row may have read others before.
pub async fn beside(conn: &mut PgConnection, months: &[&MonthRow]) -> crate::Result<Vec<Beside>> {
    let clients: Vec<String> = months.iter().map(|row| row.client_id.clone()).collect();
    let firsts: Vec<NaiveDate> = months.iter().map(|row| row.month.first_day()).collect();
    let before: Vec<NaiveDate> = months.iter().map(|row| row.month.previous().first_day()).collect();
    sqlx::query_as!(
        Beside,
        r#"SELECT COALESCE((SELECT sum(u.cost) FROM usage_month_services u JOIN services s USING (service)
                            WHERE u.client_id = wanted.client_id AND u.month = wanted.month AND s.recurring), 0)
                      AS "recurring_cost!: Numeric",
                  COALESCE(p.cost, 0) AS "previous_cost!: Numeric"
           FROM unnest($1::text[], $2::date[], $3::date[]) WITH ORDINALITY AS wanted (client_id, month, before, number)
           LEFT JOIN usage_months p ON p.client_id = wanted.client_id AND p.month = wanted.before
           ORDER BY number"#,
        &clients,
        &firsts,
        &before
    )
    .fetch_all(conn)
    .await
    .map_err(Into::into)
}

/// Deletes rows of a client's month that have come to be zeros, as those do that all events were moved away from. In a
/// transaction that holds the month. The month's own row stays: its summary follows it.
pub async fn delete_zeros(conn: &mut PgConnection, client_id: &str, month: Month) -> crate::Result<()> {
    sqlx::query!(
        "DELETE FROM usage_days
         WHERE client_id = $1 AND day >= $2 AND day < $3
           AND (request_count, units, input_tokens, output_tokens, cached_input_tokens, cost, unpriced_event_count)
               = (0, 0, 0, 0, 0, 0, 0)",
        client_id,
        month.first_day(),
        month.next().first_day()
    )
    .execute(&mut *conn)
    .await?;
    sqlx::query!(
        "DELETE FROM usage_month_services
         WHERE client_id = $1 AND month = $2
           AND (request_count, units, input_tokens, output_tokens, cached_input_tokens, cost, unpriced_event_count)
               = (0, 0, 0, 0, 0, 0, 0)",
        client_id,
        month.first_day()
    )
    .execute(conn)
    .await
    .map(drop)
    .map_err(Into::into)
}

/// Services that a client had used before this month.
pub async fn services_before(conn: &mut PgConnection, client_id: &str, month: Month) -> crate::Result<HashSet<String>> {
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
) -> crate::Result<Vec<DayRow>> {
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
