//! Subscribers that follow streams of alerts.

use crate::connection::Connection;
use crate::product::proto::subscribe_alerts_response::Message;
use crate::product::proto::{AlertEvent, AlertSeverity, AlertType, SubscribeAlertsRequest, SubscribeAlertsResponse};
use crate::product::status_error;
use anyhow::Context;
use std::time::Duration;
use tonic::Streaming;

/// Longest time until the next message: the server sends a heartbeat every 15 s.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(60);

/// A stream of critical threshold alerts, the kind that crossings raise.
pub struct Subscriber(Streaming<SubscribeAlertsResponse>);

impl Subscriber {
    /// Opens a stream and waits for its first heartbeat.
    pub async fn begin(channel: Connection) -> anyhow::Result<Self> {
        let request = SubscribeAlertsRequest {
            types: vec![AlertType::Threshold.into()],
            min_severity: AlertSeverity::Critical.into(),
            ..Default::default()
        };
        let stream = channel.alerts().subscribe_alerts(request).await;
        let mut subscriber = Self(stream.map_err(|status| status_error(&status))?.into_inner());
        let first = subscriber.message().await?;
        anyhow::ensure!(matches!(first, Message::Heartbeat(_)), "a stream does not begin with a heartbeat");
        Ok(subscriber)
    }

    async fn message(&mut self) -> anyhow::Result<Message> {
        let message = tokio::time::timeout(MESSAGE_TIMEOUT, self.0.message()).await;
        let message = message.context("a stream is silent")?.map_err(|status| status_error(&status))?;
        message.and_then(|message| message.message).context("a stream ended")
    }

    /// Waits for the next alert.
    pub async fn alert(&mut self) -> anyhow::Result<AlertEvent> {
        loop {
            if let Message::Alert(event) = self.message().await? {
                return Ok(event);
            }
        }
    }
}
