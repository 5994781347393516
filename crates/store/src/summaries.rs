//! The list of all clients of a month, ordered by cost: a read model of the rollups.

use crate::numeric::{self, Numeric};
use crate::rollups;
use crate::sums::sums_of;
use crate::usage::{AsOf, ServiceSums};
use chrono::{DateTime, NaiveDate, Utc};
use meterd_domain::decimal::Total;
use meterd_domain::period::Month;
use meterd_domain::rollup::Sums;
use serde::Deserialize;
use sqlx::types::Json;
use sqlx::{Connection, PgConnection, PgPool};

/// A client's month.
pub struct Summary {
    pub client_id: String,
    pub display_name: String,
    /// IANA name of the client's time zone.
    pub time_zone: String,
    pub sums: Sums,
    /// The costliest first.
    pub services: Vec<ServiceSums>,
    pub counts: Counts,
    pub last_month_cost: Total,
}

/// What the categories count.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    pub messages: Total,
    pub ai_calls: i64,
    pub voice_minutes: Total,
}

/// Totals over all clients of a month.
pub struct SummaryTotals {
    pub client_count: i64,
    pub sums: Sums,
    pub counts: Counts,
    pub last_month_cost: Total,
}

/// A row of either source.
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

/// A service in the JSON of a summary.
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

/// Marks the months in which a service was used. Locks them first, in order.
pub async fn mark_stale(conn: &mut PgConnection, service: &str) -> crate::Result<()> {
    let rows = sqlx::query!(
        "SELECT client_id, month FROM usage_month_services WHERE service = $1 ORDER BY client_id, month",
        service
    )
    .fetch_all(&mut *conn)
    .await?;
    let (clients, months): (Vec<_>, Vec<_>) = rows.into_iter().map(|row| (row.client_id, row.month)).unzip();
    rollups::lock_months(conn, &clients, &months).await?;
    sqlx::query!(
        "UPDATE usage_months t SET summary_stale_since = COALESCE(t.summary_stale_since, now())
         FROM unnest($1::text[], $2::date[]) AS used (client_id, month)
         WHERE t.client_id = used.client_id AND t.month = used.month",
        &clients,
        &months
    )
    .execute(conn)
    .await
    .map(drop)
    .map_err(Into::into)
}

/// Client-months whose summary has been stale since `before` or longer, the longest waiting first; and those that a database
/// clock which was ahead has marked.
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

/// Writes the summaries of these client-months from the rollups. Locks their month rows first and in order, as every
/// change of a month does, so that a summary is of one state of the month.
pub async fn refresh(conn: &mut PgConnection, mut months: Vec<(String, Month)>) -> crate::Result<()> {
    months.sort();
    let clients: Vec<String> = months.iter().map(|(client_id, _)| client_id.clone()).collect();
    let firsts: Vec<NaiveDate> = months.iter().map(|(_, month)| month.first_day()).collect();
    let mut tx = conn.begin().await?;
    rollups::lock_months(&mut tx, &clients, &firsts).await?;
    sqlx::query!(
        "INSERT INTO monthly_summaries (client_id, month, request_count, units, input_tokens, output_tokens,
             cached_input_tokens, cost, unpriced_event_count, messages, ai_calls, voice_minutes, services)
         SELECT client_id, month, request_count, units, input_tokens, output_tokens, cached_input_tokens, cost,
             unpriced_event_count, messages, ai_calls, voice_minutes, services
         FROM unnest($1::text[], $2::date[]) AS wanted (client_id, month) JOIN live_summaries USING (client_id, month)
         ON CONFLICT (client_id, month) DO UPDATE SET
             request_count = excluded.request_count, units = excluded.units, input_tokens = excluded.input_tokens,
             output_tokens = excluded.output_tokens, cached_input_tokens = excluded.cached_input_tokens,
             cost = excluded.cost, unpriced_event_count = excluded.unpriced_event_count, messages = excluded.messages,
             ai_calls = excluded.ai_calls, voice_minutes = excluded.voice_minutes, services = excluded.services,
             update_time = now()",
        &clients,
        &firsts
    )
    .execute(&mut *tx)
    .await?;
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

/// A page of a month: its clients after `after` (cost and id), the costliest first; and the month's totals.
pub struct Page {
    pub summaries: Vec<Summary>,
    pub totals: SummaryTotals,
}

/// Reads a page.
pub async fn page(pool: &PgPool, month: Month, after: Option<(Total, &str)>, limit: i64) -> crate::Result<AsOf<Page>> {
    let mut tx = pool.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
    let (first, before) = (month.first_day(), month.previous().first_day());
    let (totals, complete_as_of) = totals(&mut tx, first, before).await?;
    let rows = sqlx::query_as!(
        SummaryRow,
        r#"SELECT s.client_id, COALESCE(c.display_name, '') AS "display_name!",
               COALESCE(c.time_zone, 'UTC') AS "time_zone!", s.request_count,
               s.units AS "units: Numeric", s.input_tokens, s.output_tokens, s.cached_input_tokens, s.cost AS "cost: Numeric",
               s.unpriced_event_count, s.messages AS "messages: Numeric", s.ai_calls,
               s.voice_minutes AS "voice_minutes: Numeric", s.services AS "services: Json<Vec<ServiceJson>>",
               COALESCE(b.cost, 0) AS "last_month_cost!: Numeric"
           FROM monthly_summaries s
           LEFT JOIN clients c USING (client_id)
           LEFT JOIN usage_months b ON b.client_id = s.client_id AND b.month = $2
           WHERE s.month = $1 AND s.request_count > 0
             AND ($3::numeric IS NULL OR s.cost < $3 OR (s.cost = $3 AND s.client_id > $4))
           ORDER BY s.cost DESC, s.client_id LIMIT $5"#,
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

/// One client's month, from the rollups themselves.
pub async fn live(pool: &PgPool, client_id: &str, month: Month) -> crate::Result<AsOf<Page>> {
    let mut tx = pool.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
    let (first, before) = (month.first_day(), month.previous().first_day());
    let complete_as_of = sqlx::query_scalar!(r#"SELECT now() AS "now!""#).fetch_one(&mut *tx).await?;
    let row = sqlx::query_as!(
        SummaryRow,
        r#"SELECT l.client_id AS "client_id!", COALESCE(c.display_name, '') AS "display_name!",
               COALESCE(c.time_zone, 'UTC') AS "time_zone!",
               l.request_count AS "request_count!", l.units AS "units!: Numeric", l.input_tokens AS "input_tokens!",
               l.output_tokens AS "output_tokens!", l.cached_input_tokens AS "cached_input_tokens!", l.cost AS "cost!: Numeric",
               l.unpriced_event_count AS "unpriced_event_count!", l.messages AS "messages!: Numeric", l.ai_calls AS "ai_calls!",
               l.voice_minutes AS "voice_minutes!: Numeric", l.services AS "services!: Json<Vec<ServiceJson>>",
               COALESCE(b.cost, 0) AS "last_month_cost!: Numeric"
           FROM live_summaries l
           LEFT JOIN clients c USING (client_id)
           LEFT JOIN usage_months b ON b.client_id = l.client_id AND b.month = $3
           WHERE l.client_id = $1 AND l.month = $2 AND l.request_count > 0"#,
        client_id,
        first,
        before
    )
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

/// A row of totals, kept or added up just now.
struct TotalsRow {
    client_count: i64,
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
    last_month_cost: Total,
}

impl From<TotalsRow> for SummaryTotals {
    fn from(row: TotalsRow) -> Self {
        Self {
            client_count: row.client_count,
            sums: sums_of!(row),
            counts: Counts { messages: row.messages, ai_calls: row.ai_calls, voice_minutes: row.voice_minutes },
            last_month_cost: row.last_month_cost,
        }
    }
}

/// The totals of a month: those that are kept, where they are of the summaries as this snapshot has them, and no cost of the
/// month before has changed since; else they are added up. And since when summaries are not up to date.
async fn totals(
    conn: &mut PgConnection,
    month: NaiveDate,
    before: NaiveDate,
) -> crate::Result<(SummaryTotals, DateTime<Utc>)> {
    let complete_as_of = sqlx::query_scalar!(
        r#"SELECT LEAST(now(), (SELECT min(summary_stale_since) FROM usage_months
                                WHERE month = $1 AND summary_stale_since IS NOT NULL)) AS "complete_as_of!""#,
        month
    )
    .fetch_one(&mut *conn)
    .await?;
    let kept = sqlx::query_as!(
        TotalsRow,
        r#"SELECT client_count, request_count, units AS "units: Numeric", input_tokens, output_tokens, cached_input_tokens,
               cost AS "cost: Numeric", unpriced_event_count, messages AS "messages: Numeric", ai_calls,
               voice_minutes AS "voice_minutes: Numeric", last_month_cost AS "last_month_cost: Numeric"
           FROM monthly_totals JOIN summary_versions USING (month, version)
           WHERE month = $1
             AND NOT EXISTS (SELECT FROM usage_months WHERE month = $2 AND summary_stale_since IS NOT NULL)"#,
        month,
        before
    )
    .fetch_optional(&mut *conn)
    .await?;
    let row = match kept {
        Some(row) => row,
        None => added_up(conn, month, before).await?,
    };
    Ok((row.into(), complete_as_of))
}

async fn added_up(conn: &mut PgConnection, month: NaiveDate, before: NaiveDate) -> crate::Result<TotalsRow> {
    sqlx::query_as!(
        TotalsRow,
        r#"SELECT count(*) AS "client_count!",
               COALESCE(sum(request_count), 0)::bigint AS "request_count!", COALESCE(sum(units), 0) AS "units!: Numeric",
               COALESCE(sum(input_tokens), 0)::bigint AS "input_tokens!",
               COALESCE(sum(output_tokens), 0)::bigint AS "output_tokens!",
               COALESCE(sum(cached_input_tokens), 0)::bigint AS "cached_input_tokens!",
               COALESCE(sum(cost), 0) AS "cost!: Numeric",
               COALESCE(sum(unpriced_event_count), 0)::bigint AS "unpriced_event_count!",
               COALESCE(sum(messages), 0) AS "messages!: Numeric", COALESCE(sum(ai_calls), 0)::bigint AS "ai_calls!",
               COALESCE(sum(voice_minutes), 0) AS "voice_minutes!: Numeric",
               (SELECT COALESCE(sum(b.cost), 0) FROM usage_months b JOIN monthly_summaries s USING (client_id)
                WHERE b.month = $2 AND s.month = $1 AND s.request_count > 0) AS "last_month_cost!: Numeric"
           FROM monthly_summaries WHERE month = $1 AND request_count > 0"#,
        month,
        before
    )
    .fetch_one(conn)
    .await.map_err(Into::into)
}

/// Months whose totals are not those of their summaries any more.
pub async fn months_to_total(pool: &PgPool) -> crate::Result<Vec<Month>> {
    let months = sqlx::query_scalar!(
        "SELECT v.month FROM summary_versions v LEFT JOIN monthly_totals t ON t.month = v.month
         WHERE t.version IS DISTINCT FROM v.version ORDER BY v.month"
    );
    Ok(months.fetch_all(pool).await?.into_iter().map(Month::of).collect())
}

/// Events without a charge in all months, as of their totals.
pub async fn unpriced_event_count(pool: &PgPool) -> crate::Result<i64> {
    sqlx::query_scalar!(r#"SELECT COALESCE(sum(unpriced_event_count), 0)::bigint AS "count!" FROM monthly_totals"#)
        .fetch_one(pool)
        .await
        .map_err(Into::into)
}

/// Adds a month's summaries up and keeps the totals. One statement: they and their version are of one snapshot.
pub async fn write_totals(conn: &mut PgConnection, month: Month) -> crate::Result<()> {
    sqlx::query!(
        "INSERT INTO monthly_totals AS t (month, version, client_count, request_count, units, input_tokens, output_tokens,
             cached_input_tokens, cost, unpriced_event_count, messages, ai_calls, voice_minutes, last_month_cost)
         SELECT $1, COALESCE((SELECT version FROM summary_versions WHERE month = $1), 0), count(*),
             COALESCE(sum(request_count), 0), COALESCE(sum(units), 0), COALESCE(sum(input_tokens), 0),
             COALESCE(sum(output_tokens), 0), COALESCE(sum(cached_input_tokens), 0), COALESCE(sum(cost), 0),
             COALESCE(sum(unpriced_event_count), 0), COALESCE(sum(messages), 0), COALESCE(sum(ai_calls), 0),
             COALESCE(sum(voice_minutes), 0),
             (SELECT COALESCE(sum(b.cost), 0) FROM usage_months b JOIN monthly_summaries s USING (client_id)
              WHERE b.month = $2 AND s.month = $1 AND s.request_count > 0)
         FROM monthly_summaries WHERE month = $1 AND request_count > 0
         ON CONFLICT (month) DO UPDATE SET
             version = excluded.version, client_count = excluded.client_count, request_count = excluded.request_count,
             units = excluded.units, input_tokens = excluded.input_tokens, output_tokens = excluded.output_tokens,
             cached_input_tokens = excluded.cached_input_tokens, cost = excluded.cost,
             unpriced_event_count = excluded.unpriced_event_count, messages = excluded.messages,
             ai_calls = excluded.ai_calls, voice_minutes = excluded.voice_minutes,
             last_month_cost = excluded.last_month_cost
         WHERE excluded.version > t.version",
        month.first_day(),
        month.previous().first_day()
    )
    .execute(conn)
    .await
    .map(drop).map_err(Into::into)
}
