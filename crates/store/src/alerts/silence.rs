//! When clients have sent their last event, for the alerts about silent clients.

use crate::clients;
use chrono::{DateTime, NaiveDate, Utc};
use chrono_tz::Tz;
use meterd_domain::alert::{AlertType, SilenceFacts};
use meterd_domain::period::{Month, widest_range};
use sqlx::{PgConnection, PgPool};

/// Returns when a client has sent the last event that is not voided. `None` if it has none.
pub async fn facts(
    conn: &mut PgConnection,
    client_id: &str,
    zone: Tz,
    now: DateTime<Utc>,
) -> crate::Result<Option<SilenceFacts>> {
    let last = sqlx::query_scalar!(
        "SELECT max(day) FROM (
             SELECT max(day) AS day FROM usage_days WHERE client_id = $1 AND request_count > 0
             UNION ALL SELECT max(day) FROM pending_usage_days WHERE client_id = $1
         ) AS last_days",
        client_id
    );
    let Some(recorded_day) = last.fetch_one(&mut *conn).await? else { return Ok(None) };
    let (start, end) = widest_range(recorded_day);
    let last_event_time = sqlx::query_scalar!(
        "SELECT max(event_time) FROM usage_events
         WHERE client_id = $1 AND event_time >= $2 AND event_time < $3 AND void_time IS NULL",
        client_id,
        start,
        end
    )
    .fetch_one(conn)
    .await?;
    Ok(Some(SilenceFacts { recorded_day, last_event_time, now, zone }))
}

/// Returns whether a policy has the rule enabled, or an alert about a silence is open.
pub async fn is_used(pool: &PgPool) -> crate::Result<bool> {
    sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT FROM alert_policies WHERE policy->>'silence_enabled' = 'true')
               OR EXISTS (SELECT FROM alerts WHERE type = 6 AND resolve_time IS NULL) AS "is_used!""#
    )
    .fetch_one(pool)
    .await
    .map_err(Into::into)
}

/// A client without usage in the last months.
#[derive(Debug)]
pub struct InactiveClient {
    pub client_id: String,
    pub zone: Tz,
    /// The last day with usage. `None` if the client has never sent an event.
    pub last_day: Option<NaiveDate>,
    /// The day of the open alert.
    pub open: Option<NaiveDate>,
}

/// Returns up to `limit` clients, in the order of their ids after `after`, that have no usage in `month` or later, and the id of
/// the last client that was examined. `None`: there are no more clients.
pub async fn inactive_since(
    pool: &PgPool,
    month: Month,
    after: &str,
    limit: i64,
) -> crate::Result<(Vec<InactiveClient>, Option<String>)> {
    let rows = sqlx::query!(
        r#"SELECT c.client_id, c.time_zone, GREATEST(usage.last_day, pending.last_day) AS last_day
           FROM clients c
           CROSS JOIN LATERAL (
               SELECT max(d.day) AS last_day FROM usage_days d WHERE d.client_id = c.client_id AND d.request_count > 0
           ) AS usage
           CROSS JOIN LATERAL (
               SELECT max(p.day) AS last_day FROM pending_usage_days p WHERE p.client_id = c.client_id
           ) AS pending
           WHERE c.client_id > $1 ORDER BY c.client_id LIMIT $2"#,
        after,
        limit
    )
    .fetch_all(pool)
    .await?;
    let last = rows.last().map(|row| row.client_id.clone());
    let rows: Vec<_> = rows.into_iter().filter(|row| row.last_day.is_none_or(|day| Month::of(day) < month)).collect();
    let ids: Vec<String> = rows.iter().map(|row| row.client_id.clone()).collect();
    let open = sqlx::query!(
        r#"SELECT client_id, max(period) AS "period!" FROM alerts
           WHERE client_id = ANY($1) AND type = $2 AND resolve_time IS NULL GROUP BY client_id"#,
        &ids,
        i16::from(AlertType::Silence)
    )
    .fetch_all(pool)
    .await?;
    let mut open: std::collections::HashMap<String, NaiveDate> =
        open.into_iter().map(|row| (row.client_id, row.period)).collect();
    let inactive = rows.into_iter().map(|row| {
        let zone = clients::zone(&row.time_zone)?;
        Ok(InactiveClient { open: open.remove(&row.client_id), client_id: row.client_id, zone, last_day: row.last_day })
    });
    Ok((inactive.collect::<crate::Result<_>>()?, last))
}
