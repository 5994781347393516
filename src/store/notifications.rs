//! The outbox of notifications.

use crate::domain::alert::Alert;
use crate::store::alert_feed::json;
use sqlx::PgConnection;

/// Queues notifications of alerts that were raised, for every channel that wants them, in the transaction that raises them.
///
/// The id is made of the alert, which raising of it this is, and the channel: it is the same whoever makes it.
pub async fn insert(conn: &mut PgConnection, alerts: &[Alert]) -> sqlx::Result<u64> {
    if alerts.is_empty() {
        return Ok(0);
    }
    let clients: Vec<String> = alerts.iter().map(|alert| alert.client_id.clone()).collect();
    let severities: Vec<i16> = alerts.iter().map(|alert| alert.finding.severity.into()).collect();
    let ids: Vec<String> = alerts.iter().map(|alert| format!("{}-{}", alert.alert_id, alert.raise_count)).collect();
    let texts: Vec<String> = alerts.iter().map(json).collect::<sqlx::Result<_>>()?;
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
