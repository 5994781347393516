//! The feed of what happens to alerts: numbered without gaps in the order of the commits.

use chrono::{DateTime, Utc};
use meterd_domain::alert::{Alert, Change};
use sqlx::types::Json;
use sqlx::{PgConnection, PgExecutor, PgPool};

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
pub async fn append(conn: &mut PgConnection, changes: &[(Change, Alert)]) -> crate::Result<()> {
    if changes.is_empty() {
        return Ok(());
    }
    let clients: Vec<String> = changes.iter().map(|(_, alert)| alert.client_id.clone()).collect();
    let kinds: Vec<i16> = changes.iter().map(|(_, alert)| alert.finding.kind.into()).collect();
    let severities: Vec<i16> = changes.iter().map(|(_, alert)| alert.finding.severity.into()).collect();
    let numbers: Vec<i16> = changes.iter().map(|(change, _)| (*change).into()).collect();
    let alerts: Vec<String> = changes.iter().map(|(_, alert)| json(alert)).collect::<crate::Result<_>>()?;
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
    .map(drop).map_err(Into::into)
}

/// An alert as it is kept in the feed and in notifications.
pub fn json(alert: &Alert) -> crate::Result<String> {
    serde_json::to_string(alert).map_err(crate::StoreError::inconsistent)
}

/// Where the feed begins and ends.
pub async fn bounds(executor: impl PgExecutor<'_>) -> crate::Result<Bounds> {
    sqlx::query_as!(Bounds, "SELECT sequence AS last, pruned_sequence AS pruned FROM alert_feed_counter")
        .fetch_one(executor)
        .await
        .map_err(Into::into)
}

/// Which changes to read. Empty filters let everything through.
#[derive(Clone, Debug, Default)]
pub struct FeedFilter {
    /// Sorted.
    pub client_ids: Vec<String>,
    pub kinds: Vec<i16>,
    pub min_severity: i16,
}

impl FeedFilter {
    /// Whether a change passes: the same rule as in `page`.
    pub fn passes(&self, entry: &FeedEntry) -> bool {
        let Alert { client_id, finding, .. } = &entry.alert;
        i16::from(finding.severity) >= self.min_severity
            && (self.kinds.is_empty() || self.kinds.contains(&finding.kind.into()))
            && (self.client_ids.is_empty() || self.client_ids.binary_search(client_id).is_ok())
    }
}

/// Some changes, and where the feed began and ended when they were read: both of one snapshot, so that nothing can have been
/// pruned between the two.
#[derive(Debug)]
pub struct Page {
    pub bounds: Bounds,
    pub entries: Vec<FeedEntry>,
}

/// Changes after `after` up to and with `to`, in order, at most `limit`.
pub async fn page(
    executor: impl PgExecutor<'_>,
    filter: &FeedFilter,
    after: i64,
    to: i64,
    limit: i64,
) -> crate::Result<Page> {
    let rows = sqlx::query!(
        r#"SELECT c.sequence AS last, c.pruned_sequence AS pruned, f.sequence AS "sequence?", f.change AS "change?",
               f.alert AS "alert?: Json<Alert>", f.change_time AS "change_time?"
           FROM alert_feed_counter c LEFT JOIN LATERAL (
               SELECT sequence, change, alert, change_time FROM alert_feed
               WHERE sequence > $1 AND sequence <= $2 AND (cardinality($3::text[]) = 0 OR client_id = ANY($3))
                 AND (cardinality($4::smallint[]) = 0 OR type = ANY($4)) AND severity >= $5
               ORDER BY sequence LIMIT $6
           ) f ON true
           ORDER BY f.sequence"#,
        after,
        to,
        &filter.client_ids,
        &filter.kinds,
        filter.min_severity,
        limit
    )
    .fetch_all(executor)
    .await?;
    let bounds = rows.first().map(|row| Bounds { last: row.last, pruned: row.pruned });
    let bounds = bounds.ok_or_else(|| crate::StoreError::inconsistent("the counter of the alert feed is missing"))?;
    let mut entries = Vec::with_capacity(rows.len());
    for row in rows {
        // Without changes there is one row, of the bounds alone.
        if let (Some(sequence), Some(change), Some(alert), Some(change_time)) =
            (row.sequence, row.change, row.alert, row.change_time)
        {
            let change = Change::try_from(change).map_err(crate::StoreError::inconsistent)?;
            entries.push(FeedEntry { sequence, change, alert: alert.0, change_time });
        }
    }
    Ok(Page { bounds, entries })
}

/// Removes up to `limit` of the oldest changes that are from before a time, and notes up to where the feed is pruned; gives
/// how many. Stops at the first change that is to stay, so that nothing is ever missing in the middle.
pub async fn prune(pool: &PgPool, before: DateTime<Utc>, limit: i64) -> crate::Result<u64> {
    let mut tx = pool.begin().await?;
    let removed = sqlx::query_scalar!(
        "WITH oldest AS (SELECT sequence, change_time FROM alert_feed ORDER BY sequence LIMIT $2)
         DELETE FROM alert_feed WHERE sequence IN (
             SELECT sequence FROM oldest
             WHERE sequence < COALESCE((SELECT min(sequence) FROM oldest WHERE change_time >= $1), 9223372036854775807)
         )
         RETURNING sequence",
        before,
        limit
    )
    .fetch_all(&mut *tx)
    .await?;
    // Last, since it holds the row that every change of an alert waits for.
    if let Some(last) = removed.iter().max() {
        sqlx::query!("UPDATE alert_feed_counter SET pruned_sequence = GREATEST(pruned_sequence, $1)", last)
            .execute(&mut *tx)
            .await?;
    }
    tx.commit().await?;
    Ok(removed.len() as u64)
}
