//! The feed of alert changes, numbered without gaps in commit order.

use chrono::{DateTime, Utc};
use meterd_domain::alert::{Alert, Change};
use sqlx::types::Json;
use sqlx::{PgConnection, PgExecutor, PgPool};

/// PostgreSQL notification channel that announces new changes to readers.
pub const CHANNEL: &str = "meterd_alerts";

/// A change of an alert.
#[derive(Clone, Debug)]
pub struct FeedEntry {
    pub sequence: i64,
    pub change: Change,
    /// The alert after the change.
    pub alert: Alert,
    pub change_time: DateTime<Utc>,
}

/// The range of the feed: it has the sequence numbers after `pruned` up to and including `last`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    pub last: i64,
    pub pruned: i64,
}

/// Appends changes to the feed and wakes its readers.
///
/// Must be the last statement before the commit. It locks the one row that assigns the sequence numbers until the
/// commit. This makes the numbers gapless and puts them in commit order.
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

/// Returns the JSON of an alert that the feed and notifications store.
pub fn json(alert: &Alert) -> crate::Result<String> {
    serde_json::to_string(alert).map_err(crate::StoreError::inconsistent)
}

/// Returns the range of the feed.
pub async fn bounds(executor: impl PgExecutor<'_>) -> crate::Result<Bounds> {
    sqlx::query_as!(Bounds, "SELECT sequence AS last, pruned_sequence AS pruned FROM alert_feed_counter")
        .fetch_one(executor)
        .await
        .map_err(Into::into)
}

/// Which changes to read. An empty filter matches everything.
#[derive(Clone, Debug, Default)]
pub struct FeedFilter {
    /// Must be sorted.
    pub client_ids: Vec<String>,
    pub kinds: Vec<i16>,
    pub min_severity: i16,
}

impl FeedFilter {
    /// Returns whether a change matches. [`page`] uses the same rule.
    pub fn passes(&self, entry: &FeedEntry) -> bool {
        let Alert { client_id, finding, .. } = &entry.alert;
        i16::from(finding.severity) >= self.min_severity
            && (self.kinds.is_empty() || self.kinds.contains(&finding.kind.into()))
            && (self.client_ids.is_empty() || self.client_ids.binary_search(client_id).is_ok())
    }
}

/// Changes and the range of the feed. Both are from one snapshot, so no change can have been pruned between the two.
#[derive(Debug)]
pub struct Page {
    pub bounds: Bounds,
    pub entries: Vec<FeedEntry>,
}

/// Returns up to `limit` matching changes after `after` up to and including `to`, in order.
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
        // Without changes there is one row, which has only the bounds.
        if let (Some(sequence), Some(change), Some(alert), Some(change_time)) =
            (row.sequence, row.change, row.alert, row.change_time)
        {
            let change = Change::try_from(change).map_err(crate::StoreError::inconsistent)?;
            entries.push(FeedEntry { sequence, change, alert: alert.0, change_time });
        }
    }
    Ok(Page { bounds, entries })
}

/// Deletes up to `limit` of the oldest changes made before `before`, and stores the new start of the feed. Returns the
/// number of deleted changes. Stops at the first change to keep, so that the feed never has a gap.
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
    // Last, because it locks the row that every change of an alert waits for.
    if let Some(last) = removed.iter().max() {
        sqlx::query!("UPDATE alert_feed_counter SET pruned_sequence = GREATEST(pruned_sequence, $1)", last)
            .execute(&mut *tx)
            .await?;
    }
    tx.commit().await?;
    Ok(removed.len() as u64)
}
