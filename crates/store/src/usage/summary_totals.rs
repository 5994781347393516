//! Totals of the monthly summaries. They are stored, because a month may have very many clients.

use crate::locks;
use crate::numeric::Numeric;
use crate::sums::sums_of;
use chrono::{DateTime, NaiveDate, Utc};
use meterd_domain::decimal::Total;
use meterd_domain::period::Month;
use meterd_domain::rollup::Sums;
use sqlx::{PgConnection, PgPool};
use std::collections::BTreeSet;

/// Quantities that are counted by service category.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    pub messages: Total,
    pub ai_calls: i64,
    pub voice_minutes: Total,
}

/// Totals of all clients in a month.
pub struct SummaryTotals {
    pub client_count: i64,
    pub sums: Sums,
    pub counts: Counts,
    pub last_month_cost: Total,
}

/// A row of totals, either stored or just computed.
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

/// Returns the totals of a month and the time up to which its summaries are complete. Uses the stored totals if they
/// match the summaries of this snapshot and no cost of the previous month has changed since. Otherwise computes them.
pub(super) async fn totals(
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
             AND NOT EXISTS (SELECT 1 FROM usage_months WHERE month = $2 AND summary_stale_since IS NOT NULL LIMIT 1)"#,
        month,
        before
    )
    .fetch_optional(&mut *conn)
    .await?;
    let row = match kept {
        Some(row) => row,
        None => compute(conn, month, before).await?,
    };
    Ok((row.into(), complete_as_of))
}

/// Computes the totals of a month from its summaries.
async fn compute(conn: &mut PgConnection, month: NaiveDate, before: NaiveDate) -> crate::Result<TotalsRow> {
    sqlx::query_file_as!(TotalsRow, "sql/usage/compute_totals.sql", month, before)
        .fetch_one(conn)
        .await
        .map_err(Into::into)
}

/// Counts a change of the summaries of these months, given by their first days. Their totals, and those of the months after them, are
/// then computed again. Takes a lock until the commit, so that versions are in the order of the commits.
///
/// In a database that is not distributed, triggers count too, for replicas of earlier releases.
pub(super) async fn count_changes(conn: &mut PgConnection, months: &[NaiveDate]) -> crate::Result<()> {
    locks::change_summaries(conn).await?;
    let affected: BTreeSet<NaiveDate> =
        months.iter().flat_map(|month| [*month, Month::of(*month).next().first_day()]).collect();
    sqlx::query!(
        "INSERT INTO summary_versions AS v (month, version) SELECT unnest($1::date[]), 1
         ON CONFLICT (month) DO UPDATE SET version = v.version + 1",
        &affected.into_iter().collect::<Vec<_>>()
    )
    .execute(conn)
    .await
    .map(drop)
    .map_err(Into::into)
}

/// Returns the months whose stored totals no longer match their summaries.
pub async fn months_to_total(pool: &PgPool) -> crate::Result<Vec<Month>> {
    let months = sqlx::query_scalar!(
        "SELECT v.month FROM summary_versions v LEFT JOIN monthly_totals t ON t.month = v.month
         WHERE t.version IS DISTINCT FROM v.version ORDER BY v.month"
    );
    Ok(months.fetch_all(pool).await?.into_iter().map(Month::of).collect())
}

/// Returns the number of events without a charge in all months, from the stored totals.
pub async fn unpriced_event_count(pool: &PgPool) -> crate::Result<i64> {
    sqlx::query_scalar!(r#"SELECT COALESCE(sum(unpriced_event_count), 0)::bigint AS "count!" FROM monthly_totals"#)
        .fetch_one(pool)
        .await
        .map_err(Into::into)
}

/// Computes and stores the totals of a month. One statement, so the totals and their version are from the same
/// snapshot.
pub async fn write_totals(conn: &mut PgConnection, month: Month) -> crate::Result<()> {
    sqlx::query_file!("sql/usage/write_totals.sql", month.first_day(), month.previous().first_day())
        .execute(conn)
        .await
        .map(drop)
        .map_err(Into::into)
}
