//! The feed of what happens to alerts: numbered without gaps in the order of the commits.

use crate::domain::alert::{Alert, Change};
use chrono::{DateTime, Utc};
use sqlx::types::Json;
use sqlx::{PgConnection, PgPool};

/// What readers of the feed listen to.
pub const CHANNEL: &str = "meterd_alerts";

/// A change of an alert.
#[derive(Clone, Debug)]
pub struct FeedEntry {
    pub sequence: i64,
    pub change: Change,
    /// As it was then.
    pub alert: Alert,
    pub change_time: DateTime<Utc>,
}

/// Where the feed begins and ends: it has the numbers after `pruned` up to `last`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    pub last: i64,
    pub pruned: i64,
}

/// Adds changes to the feed and wakes its readers. The last statement before the commit: until then it holds the one row
/// that gives out the numbers, which is what makes them gapless and in commit order.
pub async fn append(conn: &mut PgConnection, changes: &[(Change, Alert)]) -> sqlx::Result<()> {
    if changes.is_empty() {
        return Ok(());
    }
    let clients: Vec<String> = changes.iter().map(|(_, alert)| alert.client_id.clone()).collect();
    let kinds: Vec<i16> = changes.iter().map(|(_, alert)| alert.finding.kind.into()).collect();
    let severities: Vec<i16> = changes.iter().map(|(_, alert)| alert.finding.severity.into()).collect();
    let numbers: Vec<i16> = changes.iter().map(|(change, _)| (*change).into()).collect();
    let alerts: Vec<String> = changes.iter().map(|(_, alert)| json(alert)).collect::<sqlx::Result<_>>()?;
    sqlx::query!(
        r#"WITH counter AS (
               UPDATE alert_feed_counter SET sequence = sequence + cardinality($1::text[]) RETURNING sequence
           ), added AS (
               INSERT INTO alert_feed (sequence, client_id, type, severity, change, alert, change_time)
               SELECT counter.sequence - cardinality($1) + new.number, client_id, type, severity, change, alert::jsonb, clock_timestamp()
               FROM counter, unnest($1, $2::smallint[], $3::smallint[], $4::smallint[], $5::text[]) WITH ORDINALITY
                   AS new (client_id, type, severity, change, alert, number)
           )
           SELECT pg_notify($6, '') AS "notified: ()""#,
        &clients,
        &kinds,
        &severities,
        &numbers,
        &alerts,
        CHANNEL
    )
    .execute(conn)
    .await
    .map(drop)
}

/// An alert as it is kept in the feed and in notifications.
pub fn json(alert: &Alert) -> sqlx::Result<String> {
    serde_json::to_string(alert).map_err(|error| sqlx::Error::Encode(error.into()))
}

/// Where the feed begins and ends.
pub async fn bounds(pool: &PgPool) -> sqlx::Result<Bounds> {
    sqlx::query_as!(Bounds, "SELECT sequence AS last, pruned_sequence AS pruned FROM alert_feed_counter")
        .fetch_one(pool)
        .await
}

/// Which changes to read. Empty filters let everything through.
#[derive(Clone, Debug, Default)]
pub struct FeedFilter {
    pub client_ids: Vec<String>,
    pub kinds: Vec<i16>,
    pub min_severity: i16,
}

/// Changes after `after` up to and with `to`, in order, at most `limit`.
pub async fn page(pool: &PgPool, filter: &FeedFilter, after: i64, to: i64, limit: i64) -> sqlx::Result<Vec<FeedEntry>> {
    let rows = sqlx::query!(
        r#"SELECT sequence, change, alert AS "alert: Json<Alert>", change_time FROM alert_feed
           WHERE sequence > $1 AND sequence <= $2 AND (cardinality($3::text[]) = 0 OR client_id = ANY($3))
             AND (cardinality($4::smallint[]) = 0 OR type = ANY($4)) AND severity >= $5
           ORDER BY sequence LIMIT $6"#,
        after,
        to,
        &filter.client_ids,
        &filter.kinds,
        filter.min_severity,
        limit
    )
    .fetch_all(pool)
    .await?;
    rows.into_iter()
        .map(|row| {
            let change = Change::try_from(row.change).map_err(|error| sqlx::Error::Decode(error.into()))?;
            Ok(FeedEntry { sequence: row.sequence, change, alert: row.alert.0, change_time: row.change_time })
        })
        .collect()
}
