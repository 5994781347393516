//! Notifications in the outbox: adding, listing and retrying them. [`super::outbox`] covers sending.

use crate::alerts::feed::json;
use crate::database::connect;
use chrono::{DateTime, Utc};
use meterd_domain::alert::Alert;
use sqlx::{PgConnection, PgPool};

/// Adds notifications of raised alerts for every channel that wants them, in the transaction that raises the alerts.
/// Returns the number of notifications.
///
/// The id consists of the alert id, its raise count and the channel id, so repeated calls use the same id.
pub async fn insert(conn: &mut PgConnection, alerts: &[Alert]) -> crate::Result<u64> {
    if alerts.is_empty() {
        return Ok(0);
    }
    let clients: Vec<String> = alerts.iter().map(|alert| alert.client_id.clone()).collect();
    let severities: Vec<i16> = alerts.iter().map(|alert| alert.finding.severity.into()).collect();
    let ids: Vec<String> = alerts.iter().map(|alert| format!("{}-{}", alert.alert_id, alert.raise_count)).collect();
    let texts: Vec<String> = alerts.iter().map(json).collect::<crate::Result<_>>()?;
    let done = sqlx::query!(
        "INSERT INTO notifications (client_id, notification_id, channel_id, kind, target, alerts)
         SELECT c.client_id, new.id || '-' || c.channel_id, c.channel_id, c.kind, c.target, jsonb_build_array(new.alert::jsonb)
         FROM unnest($1::text[], $2::smallint[], $3::text[], $4::text[]) AS new (client_id, severity, id, alert)
         JOIN notification_channels c ON c.client_id IN ('', new.client_id) AND c.min_severity <= new.severity
         ON CONFLICT DO NOTHING",
        &clients,
        &severities,
        &ids,
        &texts
    )
    .execute(conn)
    .await?;
    Ok(done.rows_affected())
}

/// Adds a test notification for every channel of a client. Returns their ids.
pub async fn insert_tests(pool: &PgPool, client_id: &str, id: &str) -> crate::Result<Vec<String>> {
    sqlx::query_scalar!(
        "INSERT INTO notifications (client_id, notification_id, channel_id, kind, target, alerts, alert_count)
         SELECT client_id, $2 || '-' || channel_id, channel_id, kind, target, '[]', 0
         FROM notification_channels WHERE client_id = $1
         RETURNING notification_id",
        client_id,
        id
    )
    .fetch_all(pool)
    .await
    .map_err(Into::into)
}

/// A stored notification.
#[derive(Clone, Debug)]
pub struct Notification {
    pub client_id: String,
    pub notification_id: String,
    /// Number of a [`ChannelKind`](meterd_domain::notification::ChannelKind).
    pub kind: i16,
    pub target: String,
    pub alert_ids: Vec<String>,
    pub alert_count: i32,
    /// Number of a [`NotificationState`](meterd_domain::notification::NotificationState).
    pub state: i16,
    pub attempt_count: i32,
    pub next_attempt_time: DateTime<Utc>,
    pub last_error: String,
    pub digest_id: Option<String>,
    pub create_time: DateTime<Utc>,
    pub finish_time: Option<DateTime<Utc>>,
}

/// Returns up to `limit` notifications after a cursor (create time and id), newest first. If `client_id` is set, only
/// those for the channels of this client; '' is the operator. An empty `states` matches all states.
pub async fn list(
    pool: &PgPool,
    client_id: Option<&str>,
    states: &[i16],
    after: Option<(DateTime<Utc>, &str)>,
    limit: i64,
) -> crate::Result<Vec<Notification>> {
    let mut tx = pool.begin().await?;
    // Failed notifications are few among many. A plan for these states finds them by index.
    connect::plan_for_values(&mut tx).await?;
    sqlx::query_as!(
        Notification,
        r#"SELECT client_id, notification_id, kind, target,
               ARRAY(SELECT alert ->> 'alert_id' FROM jsonb_array_elements(alerts) AS alert) AS "alert_ids!", alert_count,
               state, attempt_count, next_attempt_time, last_error, digest_id, create_time, finish_time
           FROM notifications
           WHERE ($1::text IS NULL OR client_id = $1) AND (cardinality($2::smallint[]) = 0 OR state = ANY($2))
             AND ($3::timestamptz IS NULL OR (create_time, notification_id) < ($3, $4))
           ORDER BY create_time DESC, notification_id DESC LIMIT $5"#,
        client_id,
        states,
        after.map(|(time, _)| time),
        after.map_or("", |(_, notification_id)| notification_id),
        limit
    )
    .fetch_all(&mut *tx)
    .await.map_err(Into::into)
}

/// Returns one notification. `None` if it does not exist.
pub async fn find(pool: &PgPool, notification_id: &str) -> crate::Result<Option<Notification>> {
    sqlx::query_as!(
        Notification,
        r#"SELECT client_id, notification_id, kind, target,
               ARRAY(SELECT alert ->> 'alert_id' FROM jsonb_array_elements(alerts) AS alert) AS "alert_ids!", alert_count,
               state, attempt_count, next_attempt_time, last_error, digest_id, create_time, finish_time
           FROM notifications WHERE notification_id = $1"#,
        notification_id
    )
    .fetch_optional(pool)
    .await.map_err(Into::into)
}

/// Makes a failed notification due at once, like a new one, and returns it as it then is. `None` if it had not failed. If its channel
/// was removed and created again, it goes to the new channel.
pub async fn retry(pool: &PgPool, notification_id: &str) -> crate::Result<Option<Notification>> {
    sqlx::query_as!(
        Notification,
        r#"UPDATE notifications n SET state = 1, attempt_count = 0, counted = true, next_attempt_time = now(), last_error = '',
             finish_time = NULL, channel_id = COALESCE(
                 (SELECT c.channel_id FROM notification_channels c
                  WHERE c.client_id = n.client_id AND c.kind = n.kind AND c.target = n.target), n.channel_id)
         WHERE notification_id = $1 AND state = 3
         RETURNING client_id, notification_id, kind, target,
             ARRAY(SELECT alert ->> 'alert_id' FROM jsonb_array_elements(alerts) AS alert) AS "alert_ids!", alert_count,
             state, attempt_count, next_attempt_time, last_error, digest_id, create_time, finish_time"#,
        notification_id
    )
    .fetch_optional(pool)
    .await
    .map_err(Into::into)
}
