//! Notification channels: those of clients, and those of the operator, whose client id is ''.

use crate::locks;
use meterd_domain::alert::Severity;
use sqlx::PgConnection;

/// A destination of alert notifications. Never log or return a whole channel: it contains the secrets of a webhook.
#[derive(Clone)]
pub struct Channel {
    /// Number of a [`ChannelKind`](meterd_domain::notification::ChannelKind).
    pub kind: i16,
    pub target: String,
    pub min_severity: Severity,
    pub secrets: Vec<String>,
}

/// Returns the channels of a client or of the operator, in order of creation.
pub async fn list(conn: &mut PgConnection, client_id: &str) -> crate::Result<Vec<Channel>> {
    let rows = sqlx::query!(
        "SELECT kind, target, min_severity, secrets FROM notification_channels WHERE client_id = $1 ORDER BY channel_id",
        client_id
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter()
        .map(|row| {
            let min_severity = Severity::try_from(row.min_severity).map_err(crate::StoreError::inconsistent)?;
            Ok(Channel { kind: row.kind, target: row.target, min_severity, secrets: row.secrets })
        })
        .collect()
}

/// Locks the channels of a client or of the operator, and prevents other transactions from changing any channel until
/// the end of this one. It waits for workers that lock a channel, so it must come before the versions lock. Otherwise
/// all writers would wait, too.
pub async fn lock(conn: &mut PgConnection, client_id: &str) -> crate::Result<()> {
    locks::change_channels(&mut *conn).await?;
    sqlx::query!(
        "SELECT channel_id FROM notification_channels WHERE client_id = $1 ORDER BY channel_id FOR UPDATE",
        client_id
    )
    .fetch_all(conn)
    .await
    .map(drop)
    .map_err(Into::into)
}

/// Replaces the channels of a client or of the operator. Channels that stay keep their ids and hourly counts.
/// `outbox::give_up_without_channel` fails the notifications of removed channels later.
pub async fn replace(conn: &mut PgConnection, client_id: &str, channels: &[Channel]) -> crate::Result<()> {
    let kinds: Vec<i16> = channels.iter().map(|channel| channel.kind).collect();
    let targets: Vec<String> = channels.iter().map(|channel| channel.target.clone()).collect();
    sqlx::query!(
        "DELETE FROM notification_channels
         WHERE client_id = $1 AND (kind, target) NOT IN (SELECT * FROM unnest($2::smallint[], $3::text[]))",
        client_id,
        &kinds,
        &targets
    )
    .execute(&mut *conn)
    .await?;
    for channel in channels {
        sqlx::query!(
            "INSERT INTO notification_channels (client_id, kind, target, min_severity, secrets) VALUES ($1, $2, $3, $4, $5)
             ON CONFLICT (client_id, kind, target) DO UPDATE SET min_severity = excluded.min_severity, secrets = excluded.secrets",
            client_id,
            channel.kind,
            channel.target,
            i16::from(channel.min_severity),
            &channel.secrets
        )
        .execute(&mut *conn)
        .await?;
    }
    Ok(())
}
