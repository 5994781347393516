//! Sending what is in the outbox of notifications: claims of workers, and what became of them.
//!
//! A claim holds the row of its channel, so that workers of all replicas count in one hour and share what is due.

use chrono::{DateTime, Utc};
use meterd_domain::alert::Alert;
use sqlx::types::Json;
use sqlx::{PgConnection, PgPool};
use std::time::Duration;

/// Notifications that one digest takes in. What is beyond makes another one.
const DIGEST_NOTIFICATIONS_MAX: i64 = 10_000;

/// A channel that has something to send, locked. Not to be shown as a whole: it has the keys of a webhook.
pub struct DueChannel {
    pub client_id: String,
    pub channel_id: i64,
    /// Number of proto enum NotificationChannelKind.
    pub kind: i16,
    pub target: String,
    pub secrets: Vec<String>,
    /// Notifications begun in its hour.
    pub hour_count: i32,
    /// Whether the hour is over, so that the next notification begins another; or begins later, as the database's clock was
    /// ahead.
    pub hour_over: bool,
}

/// A notification that a worker has taken.
#[derive(Debug)]
pub struct Taken {
    pub notification_id: String,
    pub alerts: Vec<Alert>,
    pub alert_count: i32,
    /// With the one that it was taken for.
    pub attempt_count: i32,
    pub create_time: DateTime<Utc>,
    /// Whether it has now taken its place in the channel's hour.
    pub first: bool,
}

/// Locks the channel that has waited longest, of those that nobody has locked and that are not among `busy`.
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

/// Makes one notification of those that a full hour has held up, if there are several; gives how many. The digest has their
/// first `alerts_max` alerts and is as old as the oldest, so that it goes before what has come since.
pub async fn digest(
    conn: &mut PgConnection,
    channel: &DueChannel,
    digest_id: &str,
    alerts_max: i64,
) -> crate::Result<u64> {
    let done = sqlx::query!(
        "WITH held AS (
             SELECT notification_id, alerts, alert_count, create_time FROM notifications
             WHERE client_id = $1 AND channel_id = $2 AND state = 1 AND NOT counted AND alert_count = 1
               AND next_attempt_time <= now() AND next_attempt_time > create_time
             ORDER BY create_time, notification_id LIMIT $6
         ), told AS (
             SELECT alert, row_number() OVER (ORDER BY create_time, notification_id, number) AS place
             FROM held, jsonb_array_elements(held.alerts) WITH ORDINALITY AS of_one (alert, number)
         ), digest AS (
             INSERT INTO notifications (client_id, notification_id, channel_id, kind, target, alerts, alert_count, create_time)
             SELECT $1, $3, $2, $4, $5, (SELECT jsonb_agg(alert ORDER BY place) FROM told WHERE place <= $7),
                 sum(alert_count), min(create_time)
             FROM held HAVING count(*) > 1
             RETURNING notification_id
         )
         UPDATE notifications n SET state = 4, digest_id = digest.notification_id, finish_time = now()
         FROM held, digest
         WHERE n.client_id = $1 AND n.notification_id = held.notification_id AND n.state = 1",
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

/// Gives up what was tried so often and is due again: nobody has noted what became of the last attempt.
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

/// Takes what is due, the oldest first: at most `limit`, of them at most `room` that have no place in an hour yet. Nobody
/// else takes it for `claim_seconds`.
pub async fn take(
    conn: &mut PgConnection,
    channel: &DueChannel,
    room: i64,
    limit: i64,
    claim_seconds: f64,
) -> crate::Result<Vec<Taken>> {
    let rows = sqlx::query!(
        r#"WITH due AS (
               (SELECT notification_id, counted, create_time FROM notifications
                WHERE client_id = $1 AND channel_id = $2 AND state = 1 AND next_attempt_time <= now() AND counted
                ORDER BY create_time, notification_id LIMIT $4)
               UNION ALL
               (SELECT notification_id, counted, create_time FROM notifications
                WHERE client_id = $1 AND channel_id = $2 AND state = 1 AND next_attempt_time <= now() AND NOT counted
                ORDER BY create_time, notification_id LIMIT least($3::bigint, $4))
           ), taken AS (
               SELECT notification_id, counted FROM due ORDER BY create_time, notification_id LIMIT $4
           )
           UPDATE notifications n SET attempt_count = n.attempt_count + 1, counted = true,
               next_attempt_time = now() + make_interval(secs => $5)
           FROM taken WHERE n.client_id = $1 AND n.notification_id = taken.notification_id AND n.state = 1
           RETURNING n.notification_id, n.alerts AS "alerts: Json<Vec<Alert>>", n.alert_count, n.attempt_count,
               n.create_time, NOT taken.counted AS "first!""#,
        channel.client_id,
        channel.channel_id,
        room,
        limit,
        claim_seconds
    )
    .fetch_all(conn)
    .await?;
    let taken = rows.into_iter().map(|row| Taken {
        notification_id: row.notification_id,
        alerts: row.alerts.0,
        alert_count: row.alert_count,
        attempt_count: row.attempt_count,
        create_time: row.create_time,
        first: row.first,
    });
    Ok(taken.collect())
}

/// Counts notifications in the channel's hour, and begins another where it is over.
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

/// Lets what has no place in the channel's full hour wait until that is over.
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

/// Notes that the receiver has taken it, whatever was thought of it meanwhile.
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

/// Notes that an attempt has failed, and when the next one is: with no `delay` it is given up. Nothing where another worker
/// has taken it meanwhile.
pub async fn mark_failed(
    pool: &PgPool,
    client_id: &str,
    taken: &Taken,
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

/// Gives up what waits for a channel that is gone, at most `limit`; in an order, so that two who do it take turns.
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

/// Removes what ended before a time, at most `limit`; gives how many.
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

/// Makes due what would wait longer than `longest`: the database's clock was ahead and was set back. Gives how many.
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

/// How many wait, over all channels.
pub async fn pending_count(pool: &PgPool) -> crate::Result<i64> {
    sqlx::query_scalar!(r#"SELECT count(*) AS "count!" FROM notifications WHERE state = 1"#)
        .fetch_one(pool)
        .await
        .map_err(Into::into)
}
