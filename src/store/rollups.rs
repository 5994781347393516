//! Adding to the rows of days and months, in lock order.

use crate::domain::rollup::Deltas;
use crate::store::sums::SumsColumns;
use chrono::NaiveDate;
use sqlx::PgConnection;

/// Adds the deltas to months, their services and days. Everyone takes the rows in this order, each table's sorted, so that
/// no two writers wait for each other.
pub async fn add(conn: &mut PgConnection, deltas: &Deltas) -> sqlx::Result<()> {
    add_months(conn, deltas).await?;
    add_month_services(conn, deltas).await?;
    add_days(conn, deltas).await
}

async fn add_months(conn: &mut PgConnection, deltas: &Deltas) -> sqlx::Result<()> {
    let clients: Vec<String> = deltas.months.keys().map(|key| key.0.to_string()).collect();
    let months: Vec<NaiveDate> = deltas.months.keys().map(|key| key.1.first_day()).collect();
    let sums: SumsColumns = deltas.months.values().collect();
    sqlx::query!(
        "INSERT INTO usage_months AS t (client_id, month, request_count, units, input_tokens, output_tokens,
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
             summary_stale_since = COALESCE(t.summary_stale_since, now())",
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
    .execute(conn)
    .await
    .map(drop)
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

async fn add_days(conn: &mut PgConnection, deltas: &Deltas) -> sqlx::Result<()> {
    let keys = deltas.days.keys();
    let clients: Vec<String> = keys.clone().map(|key| key.0.to_string()).collect();
    let days: Vec<NaiveDate> = keys.clone().map(|key| key.1).collect();
    let services: Vec<String> = keys.clone().map(|key| key.2.to_string()).collect();
    let operations: Vec<String> = keys.clone().map(|key| key.3.to_string()).collect();
    let models: Vec<String> = keys.map(|key| key.4.to_string()).collect();
    let sums: SumsColumns = deltas.days.values().collect();
    sqlx::query!(
        "INSERT INTO usage_days AS t (client_id, day, service, operation, model, request_count, units, input_tokens,
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
             unpriced_event_count = t.unpriced_event_count + excluded.unpriced_event_count",
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
        &sums.unpriced_event_counts
    )
    .execute(conn)
    .await
    .map(drop)
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
