//! Sends one notification by e-mail, SMS or webhook.

use super::config::NotifyConfig;
use super::email::EmailSender;
use super::reason::cleaned;
use super::sms::SmsSender;
use super::text::Content;
use super::webhook::WebhookSender;
use crate::clock::Clock;
use meterd_domain::notification::ChannelKind;
use meterd_store::alerts::outbox::{ClaimedNotification, DueChannel};
use std::time::Duration;

/// Why a delivery has failed.
#[derive(Debug, PartialEq, Eq)]
pub enum Failure {
    /// Another attempt may succeed.
    Transient(String),
    /// Another attempt cannot succeed.
    Permanent(String),
}

impl Failure {
    /// Returns the failure with the part of its error that is stored.
    pub fn cleaned(self) -> Self {
        match self {
            Self::Transient(error) => Self::Transient(cleaned(&error)),
            Self::Permanent(error) => Self::Permanent(cleaned(&error)),
        }
    }
}

/// Sends notifications.
pub struct Sender {
    clock: Clock,
    currency: String,
    timeout: Duration,
    email: Option<EmailSender>,
    sms: Option<SmsSender>,
    webhooks: WebhookSender,
}

/// Returns the senders of e-mail and SMS that the settings configure.
fn transports(config: &NotifyConfig) -> anyhow::Result<(Option<EmailSender>, Option<SmsSender>)> {
    let timeout = config.timeout;
    let email = config.smtp.as_ref().map(|smtp| EmailSender::new(smtp, timeout)).transpose()?;
    let sms = config.twilio.as_ref().map(|twilio| SmsSender::new(twilio, timeout)).transpose()?;
    Ok((email, sms))
}

/// Checks that the settings can be used.
pub fn check(config: &NotifyConfig) -> anyhow::Result<()> {
    transports(config).map(drop)
}

impl Sender {
    /// Checks the settings and logs which kinds of notifications are sent.
    pub fn new(config: &NotifyConfig, currency: &str, clock: &Clock) -> anyhow::Result<Self> {
        let (email, sms) = transports(config)?;
        let timeout = config.timeout;
        let webhooks = WebhookSender::new(config);
        match (&email, &sms) {
            (None, None) => {
                tracing::info!("notifications: no SMTP server and no Twilio account is set, only webhooks are sent")
            }
            (Some(_), None) => tracing::info!("notifications: e-mail and webhooks are sent; no Twilio account is set"),
            (None, Some(_)) => tracing::info!("notifications: SMS and webhooks are sent; no SMTP server is set"),
            (Some(_), Some(_)) => tracing::info!("notifications: e-mail, SMS and webhooks are sent"),
        }
        Ok(Self { clock: clock.clone(), currency: currency.into(), timeout, email, sms, webhooks })
    }

    /// Sends one notification within the timeout of an attempt.
    pub async fn send(
        &self,
        kind: ChannelKind,
        channel: &DueChannel,
        taken: &ClaimedNotification,
    ) -> Result<(), Failure> {
        let ClaimedNotification { notification_id: id, alerts, alert_count, create_time, .. } = taken;
        let content =
            Content { alerts, alert_count: *alert_count, create_time: *create_time, currency: &self.currency };
        let (target, now) = (channel.target.as_str(), self.clock.now());
        let sending = async {
            match kind {
                ChannelKind::Email => match &self.email {
                    Some(email) => email.send(id, target, &content, now.into()).await,
                    None => Err(Failure::Transient("no SMTP server is set: see the setting smtp_url".into())),
                },
                ChannelKind::Sms => match &self.sms {
                    Some(sms) => sms.send(target, &content).await,
                    None => Err(Failure::Transient("no Twilio account is set: see the settings twilio_…".into())),
                },
                ChannelKind::Webhook => {
                    self.webhooks.send(id, target, &channel.secrets, &content, now.timestamp()).await
                }
            }
        };
        let done = tokio::time::timeout(self.timeout, sending).await;
        done.unwrap_or_else(|_| Err(Failure::Transient("no answer in time".into())))
    }
}
