//! Sends the notifications in the outbox: the claims of workers and the results of attempts.
//!
//! A claim locks the row of its channel, so that the workers of all replicas count in the same hour and share the due
//! notifications.

use chrono::{DateTime, Utc};
use meterd_domain::alert::Alert;
use sqlx::types::Json;
use sqlx::{PgConnection, PgPool};
use std::time::Duration;

/// Largest number of notifications in one digest. The rest goes into another digest.
const DIGEST_NOTIFICATIONS_MAX: i64 = 10_000;

/// A locked channel with due notifications. Never log or return it as a whole: it contains the secrets of a webhook.
pub struct DueChannel {
    pub client_id: String,
    pub channel_id: i64,
    /// Number of a [`ChannelKind`](meterd_domain::notification::ChannelKind).
    pub kind: i16,
    pub target: String,
    pub secrets: Vec<String>,
    /// Notifications started in the current hour.
    pub hour_count: i32,
    /// Whether the next notification starts a new hour: the hour is over, or it starts in the future because the
    /// database's clock was ahead.
    pub hour_over: bool,
}

/// A notification that a worker has claimed.
#[derive(Debug)]
pub struct ClaimedNotification {
    pub notification_id: String,
    pub alerts: Vec<Alert>,
    pub alert_count: i32,
    /// Number of attempts, including the claimed one.
    pub attempt_count: i32,
    pub create_time: DateTime<Utc>,
    /// Whether this is the first attempt, which counts in the channel's hour.
    pub first: bool,
}

/// Locks and returns the channel whose due notifications have waited longest. Skips locked channels and those in
/// `busy`.
pub async fn lock_channel(conn: &mut PgConnection, busy: &[i64]) -> crate::Result<Option<DueChannel>> {
    sqlx::query_as!(
        DueChannel,
        r#"SELECT c.client_id, c.channel_id, c.kind, c.target, c.secrets, c.hour_count,
                  (c.hour_start_time <= now() - interval '1 hour' OR c.hour_start_time > now() + interval '1 minute')
                      AS "hour_over!"
           FROM notifications n JOIN notification_channels c ON c.client_id = n.client_id AND c.channel_id = n.channel_id
           WHERE n.state = 1 AND n.next_attempt_time <= now() AND c.channel_id <> ALL($1)
           ORDER BY n.next_attempt_time LIMIT 1 FOR UPDATE OF c SKIP LOCKED"#,
        busy
    )
    .fetch_optional(conn)
    .await.map_err(Into::into)
}

/// Combines the notifications that a full hour has delayed into one digest, if there are at least two. Returns how many
/// were combined. The digest has their first `alerts_max` alerts and the create time of the oldest, so that it is sent
/// before newer ones.
pub async fn digest(
    conn: &mut PgConnection,
    channel: &DueChannel,
    digest_id: &str,
    alerts_max: i64,
) -> crate::Result<u64> {
    let done = sqlx::query_file!(
        "sql/alerts/digest.sql",
        channel.client_id,
        channel.channel_id,
        digest_id,
        channel.kind,
        channel.target,
        DIGEST_NOTIFICATIONS_MAX,
        alerts_max
    )
    .execute(conn)
    .await?;
    Ok(done.rows_affected())
}

/// Fails the notifications that are due again after `attempts_max` attempts: no worker has stored the result of the
/// last attempt. Returns their number.
pub async fn give_up_tried(conn: &mut PgConnection, channel: &DueChannel, attempts_max: i32) -> crate::Result<u64> {
    let done = sqlx::query!(
        "UPDATE notifications SET state = 3, finish_time = now(),
             last_error = 'what became of the last attempt is not known'
                 || CASE WHEN last_error = '' THEN '' ELSE '; before it: ' || last_error END
         WHERE client_id = $1 AND channel_id = $2 AND state = 1 AND next_attempt_time <= now() AND attempt_count >= $3",
        channel.client_id,
        channel.channel_id,
        attempts_max
    )
    .execute(conn)
    .await?;
    Ok(done.rows_affected())
}

/// Claims up to `limit` due notifications, oldest first, of which at most `room` have not been counted in an hour yet.
/// No other worker claims them for `claim_seconds`.
pub async fn take(
    conn: &mut PgConnection,
    channel: &DueChannel,
    room: i64,
    limit: i64,
    claim_seconds: f64,
) -> crate::Result<Vec<ClaimedNotification>> {
    let rows =
        sqlx::query_file!("sql/alerts/take.sql", channel.client_id, channel.channel_id, room, limit, claim_seconds)
            .fetch_all(conn)
            .await?;
    let taken = rows.into_iter().map(|row| ClaimedNotification {
        notification_id: row.notification_id,
        alerts: row.alerts.0,
        alert_count: row.alert_count,
        attempt_count: row.attempt_count,
        create_time: row.create_time,
        first: row.first,
    });
    Ok(taken.collect())
}

/// Adds `begun` to the count of the channel's hour. Starts a new hour if the current one is over.
pub async fn count(conn: &mut PgConnection, channel: &DueChannel, begun: i32) -> crate::Result<()> {
    sqlx::query!(
        "UPDATE notification_channels SET
             hour_start_time = CASE WHEN $4 THEN now() ELSE hour_start_time END,
             hour_count = CASE WHEN $4 THEN 0 ELSE hour_count END + $3
         WHERE client_id = $1 AND channel_id = $2",
        channel.client_id,
        channel.channel_id,
        begun,
        channel.hour_over
    )
    .execute(conn)
    .await
    .map(drop)
    .map_err(Into::into)
}

/// Delays the due notifications that do not fit in the channel's hour until the hour is over.
pub async fn hold(conn: &mut PgConnection, channel: &DueChannel) -> crate::Result<()> {
    sqlx::query!(
        "UPDATE notifications n SET next_attempt_time = c.hour_start_time + interval '1 hour'
         FROM notification_channels c
         WHERE c.client_id = $1 AND c.channel_id = $2 AND n.client_id = $1 AND n.channel_id = $2 AND n.state = 1
           AND NOT n.counted AND n.next_attempt_time <= now()",
        channel.client_id,
        channel.channel_id
    )
    .execute(conn)
    .await
    .map(drop)
    .map_err(Into::into)
}

/// Marks a notification as sent, even if it was marked as failed in the meantime.
pub async fn mark_sent(pool: &PgPool, client_id: &str, notification_id: &str) -> crate::Result<()> {
    sqlx::query!(
        "UPDATE notifications SET state = 2, last_error = '', finish_time = now()
         WHERE client_id = $1 AND notification_id = $2 AND state IN (1, 3)",
        client_id,
        notification_id
    )
    .execute(pool)
    .await
    .map(drop)
    .map_err(Into::into)
}

/// Stores the failure of an attempt. The next attempt is due after `delay` seconds; without `delay`, the notification
/// fails. Does nothing if another worker has claimed it in the meantime.
pub async fn mark_failed(
    pool: &PgPool,
    client_id: &str,
    taken: &ClaimedNotification,
    error: &str,
    delay: Option<f64>,
) -> crate::Result<()> {
    sqlx::query!(
        "UPDATE notifications SET last_error = $4, state = CASE WHEN $5::float8 IS NULL THEN 3 ELSE 1 END,
             finish_time = CASE WHEN $5 IS NULL THEN now() END,
             next_attempt_time = now() + make_interval(secs => COALESCE($5, 0))
         WHERE client_id = $1 AND notification_id = $2 AND attempt_count = $3 AND state = 1",
        client_id,
        taken.notification_id,
        taken.attempt_count,
        error,
        delay
    )
    .execute(pool)
    .await
    .map(drop)
    .map_err(Into::into)
}

/// Fails up to `limit` pending notifications whose channel was removed. Returns their number. Locks them in order, so
/// that concurrent calls do not deadlock.
pub async fn give_up_without_channel(pool: &PgPool, limit: i64) -> crate::Result<u64> {
    let done = sqlx::query!(
        "WITH lost AS (
             SELECT client_id, notification_id FROM notifications n
             WHERE state = 1 AND NOT EXISTS (
                 SELECT FROM notification_channels c WHERE c.client_id = n.client_id AND c.channel_id = n.channel_id)
             ORDER BY client_id, notification_id LIMIT $1 FOR UPDATE
         )
         UPDATE notifications n SET state = 3, last_error = 'the channel was removed', finish_time = now()
         FROM lost WHERE n.client_id = lost.client_id AND n.notification_id = lost.notification_id",
        limit
    )
    .execute(pool)
    .await?;
    Ok(done.rows_affected())
}

/// Deletes up to `limit` notifications that ended before `before`. Returns their number.
pub async fn prune(pool: &PgPool, before: DateTime<Utc>, limit: i64) -> crate::Result<u64> {
    let done = sqlx::query!(
        "WITH ended AS (
             SELECT client_id, notification_id FROM notifications WHERE state <> 1 AND finish_time < $1
             ORDER BY finish_time LIMIT $2 FOR UPDATE SKIP LOCKED
         )
         DELETE FROM notifications n USING ended
         WHERE n.client_id = ended.client_id AND n.notification_id = ended.notification_id",
        before,
        limit
    )
    .execute(pool)
    .await?;
    Ok(done.rows_affected())
}

/// Makes notifications due that would wait longer than `longest`, because the database's clock was ahead. Returns their
/// number.
pub async fn bring_forward(pool: &PgPool, longest: Duration) -> crate::Result<u64> {
    let done = sqlx::query!(
        "UPDATE notifications SET next_attempt_time = now()
         WHERE state = 1 AND next_attempt_time > now() + make_interval(secs => $1)",
        longest.as_secs_f64()
    )
    .execute(pool)
    .await?;
    Ok(done.rows_affected())
}

/// Returns the number of pending notifications of all channels.
pub async fn pending_count(pool: &PgPool) -> crate::Result<i64> {
    sqlx::query_scalar!(r#"SELECT count(*) AS "count!" FROM notifications WHERE state = 1"#)
        .fetch_one(pool)
        .await
        .map_err(Into::into)
}
