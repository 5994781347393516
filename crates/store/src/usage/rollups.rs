//! Reads and locks the rows of days and months. [`super::record`] adds to them.

use crate::numeric::{self, Numeric};
use bigdecimal::BigDecimal;
use chrono::NaiveDate;
use meterd_domain::alert::{AlertSet, MonthFacts};
use meterd_domain::decimal::Total;
use meterd_domain::period::Month;
use sqlx::PgConnection;
use std::collections::HashSet;

/// The columns of a month's row that the alert rules need. This transaction holds the lock of the row.
#[derive(Clone, Debug)]
pub struct MonthRow {
    pub client_id: String,
    pub month: Month,
    pub cost: Total,
    /// Alerts that were raised in this month, open or resolved.
    pub raised: AlertSet,
    /// Alerts that are open now.
    pub open: AlertSet,
    /// Below this cost, no alert rule raises an alert. `None`: no rule raises one, whatever the cost is.
    pub alert_bound: Option<Total>,
}

/// The columns of a [`MonthRow`] as they are stored.
pub(super) struct StoredMonth {
    pub client_id: String,
    pub month: NaiveDate,
    pub cost: Numeric,
    pub raised_alerts: i32,
    pub open_alerts: i32,
    pub alert_bound: Option<Numeric>,
}

impl From<StoredMonth> for MonthRow {
    fn from(row: StoredMonth) -> Self {
        Self {
            client_id: row.client_id,
            month: Month::of(row.month),
            cost: row.cost.into(),
            raised: AlertSet(row.raised_alerts),
            open: AlertSet(row.open_alerts),
            alert_bound: row.alert_bound.map(Total::from),
        }
    }
}

/// Costs that the alert rules need and that are not in the month's row.
#[derive(Clone, Copy, Debug, Default)]
pub struct MonthContext {
    /// Cost of recurring services in the month.
    pub recurring_cost: Total,
    /// Total cost of the previous month.
    pub previous_cost: Total,
}

impl MonthRow {
    /// Returns the input of the alert rules.
    pub fn facts(&self, today: NaiveDate, context: MonthContext) -> MonthFacts {
        let MonthContext { recurring_cost, previous_cost } = context;
        MonthFacts { month: self.month, cost: self.cost, recurring_cost, previous_cost, today }
    }
}

/// Locks month rows in order of client and month. `months` has the first day of the month of each client.
pub async fn lock_months(conn: &mut PgConnection, clients: &[String], months: &[NaiveDate]) -> crate::Result<()> {
    sqlx::query!("SELECT lock_months($1, $2)", clients, months).execute(conn).await.map(drop).map_err(Into::into)
}

/// Locks month rows in order of client and month, as [`lock_months`] does, and creates those that do not exist.
pub async fn lock_or_create_months(
    conn: &mut PgConnection,
    clients: &[String],
    months: &[NaiveDate],
) -> crate::Result<()> {
    let locked = sqlx::query!("SELECT lock_or_create_months($1, $2)", clients, months);
    locked.execute(conn).await.map(drop).map_err(Into::into)
}

/// Locks the rows of a client's months, in order, and returns them. Months without a row are left out.
pub async fn lock_client_months(
    conn: &mut PgConnection,
    client_id: &str,
    months: &[Month],
) -> crate::Result<Vec<MonthRow>> {
    let months: Vec<NaiveDate> = months.iter().map(|month| month.first_day()).collect();
    let rows = sqlx::query_as!(
        StoredMonth,
        r#"SELECT client_id, month, cost AS "cost: Numeric", raised_alerts, open_alerts, alert_bound AS "alert_bound: Numeric"
           FROM usage_months WHERE client_id = $1 AND month = ANY($2) ORDER BY month FOR UPDATE"#,
        client_id,
        &months
    )
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(MonthRow::from).collect())
}

/// Stores alert bounds of months, for the day and the version for which their rows have one. This transaction holds the locks of the
/// rows.
pub async fn set_alert_bounds(conn: &mut PgConnection, bounds: &[(&MonthRow, Option<Total>)]) -> crate::Result<()> {
    let (mut clients, mut months, mut costs) = (vec![], vec![], vec![]);
    for (row, bound) in bounds {
        clients.push(row.client_id.clone());
        months.push(row.month.first_day());
        costs.push(bound.map(numeric::of));
    }
    sqlx::query!(
        "UPDATE usage_months t SET alert_bound = new.alert_bound
         FROM unnest($1::text[], $2::date[], $3::numeric[]) AS new (client_id, month, alert_bound)
         WHERE t.client_id = new.client_id AND t.month = new.month",
        &clients,
        &months,
        &costs as &[Option<BigDecimal>]
    )
    .execute(conn)
    .await
    .map(drop)
    .map_err(Into::into)
}

/// Makes the next change of these months evaluate their alert rules. `months` has the first day of the month of each client.
/// This transaction holds the locks of the rows.
pub async fn reset_alert_bounds(
    conn: &mut PgConnection,
    clients: &[String],
    months: &[NaiveDate],
) -> crate::Result<()> {
    sqlx::query!(
        "UPDATE usage_months t SET alert_bound = 0
         FROM unnest($1::text[], $2::date[]) AS reset (client_id, month)
         WHERE t.client_id = reset.client_id AND t.month = reset.month",
        clients,
        months
    )
    .execute(conn)
    .await
    .map(drop)
    .map_err(Into::into)
}

/// Returns the context of each month, in the order of `months`, whose rows must exist.
///
/// Call it after the rows of the months are locked, as a separate statement: a statement that waits for a lock may have
/// read other rows before it waited.
///
/// The statement joins the rows of the months first. Citus can then join the other tables where these rows are; otherwise it would
/// read all of `usage_months`.
pub async fn month_contexts(conn: &mut PgConnection, months: &[&MonthRow]) -> crate::Result<Vec<MonthContext>> {
    let clients: Vec<String> = months.iter().map(|row| row.client_id.clone()).collect();
    let firsts: Vec<NaiveDate> = months.iter().map(|row| row.month.first_day()).collect();
    sqlx::query_as!(
        MonthContext,
        r#"SELECT COALESCE(r.cost, 0) AS "recurring_cost!: Numeric", COALESCE(p.cost, 0) AS "previous_cost!: Numeric"
           FROM unnest($1::text[], $2::date[]) WITH ORDINALITY AS wanted (client_id, month, number)
           JOIN usage_months m USING (client_id, month)
           LEFT JOIN usage_months p ON p.client_id = m.client_id AND p.month = (m.month - interval '1 month')::date
           CROSS JOIN LATERAL (
               SELECT sum(u.cost) AS cost FROM all_usage_month_services u JOIN services s USING (service)
               WHERE u.client_id = m.client_id AND u.month = m.month AND s.recurring
           ) AS r
           ORDER BY number"#,
        &clients,
        &firsts
    )
    .fetch_all(conn)
    .await
    .map_err(Into::into)
}

/// Deletes the day and service rows of a client's month whose sums are all zero, as after all of their events have
/// moved to another day. The transaction must hold the lock of the month, and have applied the pending usage of the client if it
/// has changed sums. Keeps the month's own row, because its
/// summary depends on it.
pub async fn delete_zeros(conn: &mut PgConnection, client_id: &str, month: Month) -> crate::Result<()> {
    sqlx::query!(
        "DELETE FROM usage_month_services
         WHERE client_id = $1 AND month = $2
           AND (request_count, units, input_tokens, output_tokens, cached_input_tokens, cost, unpriced_event_count)
               = (0, 0, 0, 0, 0, 0, 0)",
        client_id,
        month.first_day()
    )
    .execute(&mut *conn)
    .await?;
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
        "DELETE FROM usage_day_measures WHERE client_id = $1 AND day >= $2 AND day < $3 AND quantity = 0",
        client_id,
        month.first_day(),
        month.next().first_day()
    )
    .execute(conn)
    .await
    .map(drop)
    .map_err(Into::into)
}

/// Returns the services that a client used before this month.
pub async fn services_before(conn: &mut PgConnection, client_id: &str, month: Month) -> crate::Result<HashSet<String>> {
    let services = sqlx::query_scalar!(
        r#"SELECT DISTINCT service AS "service!" FROM all_usage_month_services
           WHERE client_id = $1 AND month < $2 AND request_count > 0"#,
        client_id,
        month.first_day()
    );
    Ok(services.fetch_all(conn).await?.into_iter().collect())
}

/// Usage of one service on one day.
pub struct DayRow {
    pub day: NaiveDate,
    pub service: String,
    pub units: Total,
    pub cost: Total,
}

/// Returns a client's usage by day and service from `first` to `last`, both included. Days without usage have no row.
pub async fn days(
    conn: &mut PgConnection,
    client_id: &str,
    first: NaiveDate,
    last: NaiveDate,
) -> crate::Result<Vec<DayRow>> {
    let rows = sqlx::query!(
        r#"SELECT day AS "day!", service AS "service!", sum(units) AS "units!", sum(cost) AS "cost!" FROM all_usage_days
           WHERE client_id = $1 AND day BETWEEN $2 AND $3 AND (request_count > 0 OR cost <> 0)
           GROUP BY day, service"#,
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
