//! Monthly summaries: the clients of a month ordered by cost, a read model that is built from the rollups.

use crate::numeric::{self, Numeric};
use crate::sums::sums_of;
use crate::usage::summary_totals::{Counts, SummaryTotals, totals};
use crate::usage::{AsOf, ServiceSums};
use crate::usage::{rollups, summary_totals};
use chrono::{DateTime, NaiveDate, Utc};
use meterd_domain::decimal::Total;
use meterd_domain::period::Month;
use meterd_domain::rollup::Sums;
use serde::Deserialize;
use sqlx::types::Json;
use sqlx::{Connection, PgConnection, PgPool};

/// One client's summary of a month.
pub struct Summary {
    pub client_id: String,
    pub display_name: String,
    /// IANA name of the client's time zone.
    pub time_zone: String,
    pub sums: Sums,
    /// Highest cost first.
    pub services: Vec<ServiceSums>,
    pub counts: Counts,
    pub last_month_cost: Total,
}

/// A row of `monthly_summaries` or of the view `live_summaries`.
struct SummaryRow {
    client_id: String,
    display_name: String,
    time_zone: String,
    request_count: i64,
    units: Total,
    input_tokens: i64,
    output_tokens: i64,
    cached_input_tokens: i64,
    cost: Total,
    unpriced_event_count: i64,
    messages: Total,
    ai_calls: i64,
    voice_minutes: Total,
    services: Json<Vec<ServiceJson>>,
    last_month_cost: Total,
}

/// A service in the `services` JSON of a summary.
#[derive(Deserialize)]
struct ServiceJson {
    service: String,
    request_count: i64,
    units: String,
    input_tokens: i64,
    output_tokens: i64,
    cached_input_tokens: i64,
    cost: String,
    unpriced_event_count: i64,
}

impl TryFrom<ServiceJson> for ServiceSums {
    type Error = crate::StoreError;

    fn try_from(json: ServiceJson) -> crate::Result<Self> {
        let number = |text: String| text.parse::<Total>().map_err(crate::StoreError::inconsistent);
        let sums = Sums {
            request_count: json.request_count,
            units: number(json.units)?,
            input_tokens: json.input_tokens,
            output_tokens: json.output_tokens,
            cached_input_tokens: json.cached_input_tokens,
            cost: number(json.cost)?,
            unpriced_event_count: json.unpriced_event_count,
        };
        Ok(Self { service: json.service, sums })
    }
}

impl TryFrom<SummaryRow> for Summary {
    type Error = crate::StoreError;

    fn try_from(row: SummaryRow) -> crate::Result<Self> {
        let sums = sums_of!(row);
        Ok(Self {
            client_id: row.client_id,
            display_name: row.display_name,
            time_zone: row.time_zone,
            sums,
            services: row.services.0.into_iter().map(ServiceSums::try_from).collect::<crate::Result<_>>()?,
            counts: Counts { messages: row.messages, ai_calls: row.ai_calls, voice_minutes: row.voice_minutes },
            last_month_cost: row.last_month_cost,
        })
    }
}

/// Marks summaries as stale: those of all months in which the service was used. Locks the month rows first, in order.
pub async fn mark_stale(conn: &mut PgConnection, service: &str) -> crate::Result<()> {
    let rows = sqlx::query!(
        r#"SELECT DISTINCT client_id AS "client_id!", month AS "month!" FROM all_usage_month_services WHERE service = $1
           ORDER BY 1, 2"#,
        service
    )
    .fetch_all(&mut *conn)
    .await?;
    let (clients, months): (Vec<_>, Vec<_>) = rows.into_iter().map(|row| (row.client_id, row.month)).unzip();
    rollups::lock_months(conn, &clients, &months).await?;
    sqlx::query!(
        "UPDATE usage_months t SET summary_stale_since = now()
         FROM unnest($1::text[], $2::date[]) AS used (client_id, month)
         WHERE t.client_id = used.client_id AND t.month = used.month AND t.summary_stale_since IS NULL",
        &clients,
        &months
    )
    .execute(conn)
    .await
    .map(drop)
    .map_err(Into::into)
}

/// Returns up to `limit` client-months whose summary became stale at `before` or earlier, oldest first. Also returns
/// those whose stale time is in the future, because the database's clock was ahead when it was set.
pub async fn stale(
    pool: &PgPool,
    client_id: Option<&str>,
    month: Option<Month>,
    before: DateTime<Utc>,
    limit: i64,
) -> crate::Result<Vec<(String, Month)>> {
    let rows = sqlx::query!(
        "SELECT client_id, month FROM usage_months
         WHERE summary_stale_since IS NOT NULL AND ($1::text IS NULL OR client_id = $1) AND ($2::date IS NULL OR month = $2)
           AND (summary_stale_since <= $4 OR summary_stale_since > now())
         ORDER BY summary_stale_since LIMIT $3",
        client_id,
        month.map(Month::first_day),
        limit,
        before
    )
    .fetch_all(pool)
    .await?;
    Ok(rows.into_iter().map(|row| (row.client_id, Month::of(row.month))).collect())
}

/// Rewrites the summaries of these client-months from the rollups. Locks the month rows first, in order, as every
/// change of a month does. Each summary therefore matches one state of its month.
pub async fn refresh(conn: &mut PgConnection, mut months: Vec<(String, Month)>) -> crate::Result<()> {
    months.sort();
    let clients: Vec<String> = months.iter().map(|(client_id, _)| client_id.clone()).collect();
    let firsts: Vec<NaiveDate> = months.iter().map(|(_, month)| month.first_day()).collect();
    let mut tx = conn.begin().await?;
    rollups::lock_months(&mut tx, &clients, &firsts).await?;
    sqlx::query_file!("sql/usage/refresh_summaries.sql", &clients, &firsts).execute(&mut *tx).await?;
    summary_totals::count_changes(&mut tx, &firsts).await?;
    sqlx::query!(
        "UPDATE usage_months t SET summary_stale_since = NULL FROM unnest($1::text[], $2::date[]) AS done (client_id, month)
         WHERE t.client_id = done.client_id AND t.month = done.month",
        &clients,
        &firsts
    )
    .execute(&mut *tx)
    .await?;
    tx.commit().await.map_err(Into::into)
}

/// A page of a month's summaries, and the totals of the whole month.
pub struct Page {
    pub summaries: Vec<Summary>,
    pub totals: SummaryTotals,
}

/// Returns up to `limit` summaries after `after` (cost and client id), highest cost first.
pub async fn page(pool: &PgPool, month: Month, after: Option<(Total, &str)>, limit: i64) -> crate::Result<AsOf<Page>> {
    let mut tx = pool.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
    let (first, before) = (month.first_day(), month.previous().first_day());
    let (totals, complete_as_of) = totals(&mut tx, first, before).await?;
    let rows = sqlx::query_file_as!(
        SummaryRow,
        "sql/usage/summary_page.sql",
        first,
        before,
        after.map(|(cost, _)| numeric::of(cost)),
        after.map(|(_, client_id)| client_id),
        limit
    )
    .fetch_all(&mut *tx)
    .await?;
    let summaries = rows.into_iter().map(Summary::try_from).collect::<crate::Result<Vec<_>>>()?;
    tx.commit().await?;
    Ok(AsOf { complete_as_of, rows: Page { summaries, totals } })
}

/// Returns the summary of one client's month, read from the rollups instead of the stored summaries. The page is empty
/// if the client has no usage in the month.
pub async fn live(pool: &PgPool, client_id: &str, month: Month) -> crate::Result<AsOf<Page>> {
    let mut tx = pool.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
    let (first, before) = (month.first_day(), month.previous().first_day());
    let complete_as_of = sqlx::query_scalar!(r#"SELECT now() AS "now!""#).fetch_one(&mut *tx).await?;
    let row = sqlx::query_file_as!(SummaryRow, "sql/usage/live_summary.sql", client_id, first, before)
        .fetch_optional(&mut *tx)
        .await?;
    let summaries: Vec<Summary> = row.map(Summary::try_from).transpose()?.into_iter().collect();
    tx.commit().await?;
    let totals = SummaryTotals {
        client_count: summaries.len() as i64,
        sums: summaries.iter().map(|summary| summary.sums).sum(),
        counts: summaries.first().map(|summary| summary.counts).unwrap_or_default(),
        last_month_cost: summaries.iter().map(|summary| summary.last_month_cost).sum(),
    };
    Ok(AsOf { complete_as_of, rows: Page { summaries, totals } })
}
