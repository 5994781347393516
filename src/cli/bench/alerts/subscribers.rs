//! Streams of alerts, followed.

use crate::cli::connect::Connection;
use crate::cli::connect::{alerts_client, status_error};
use crate::proto::subscribe_alerts_response::Message;
use crate::proto::{AlertEvent, AlertSeverity, AlertType, SubscribeAlertsRequest, SubscribeAlertsResponse};
use anyhow::Context;
use std::time::Duration;
use tonic::Streaming;

/// How long a message that is waited for may take: a heartbeat comes every 15 s.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(60);

/// A stream of critical threshold alerts, which is what crossings raise.
pub struct Subscriber(Streaming<SubscribeAlertsResponse>);

impl Subscriber {
    /// Begins a stream, and waits until it has begun.
    pub async fn begin(channel: Connection) -> anyhow::Result<Self> {
        let request = SubscribeAlertsRequest {
            types: vec![AlertType::Threshold.into()],
            min_severity: AlertSeverity::Critical.into(),
            ..Default::default()
        };
        let stream = alerts_client(channel).subscribe_alerts(request).await;
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

    /// The next alert.
    pub async fn alert(&mut self) -> anyhow::Result<AlertEvent> {
        loop {
            if let Message::Alert(event) = self.message().await? {
                return Ok(event);
            }
        }
    }
}
