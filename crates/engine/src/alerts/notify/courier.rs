//! One delivery, by whatever way its channel names.

use super::config::NotifyConfig;
use super::email::Mailer;
use super::reason::cleaned;
use super::sms::Texter;
use super::text::Told;
use super::webhook::Poster;
use crate::clock::Clock;
use meterd_domain::notification::ChannelKind;
use meterd_store::outbox::{DueChannel, Taken};
use std::time::Duration;

/// Why a delivery has failed.
#[derive(Debug, PartialEq, Eq)]
pub enum Failure {
    /// Trying again may help.
    Passing(String),
    /// Trying again does not help.
    Final(String),
}

impl Failure {
    /// With as much of the error as is kept, whosever words they are.
    pub fn cleaned(self) -> Self {
        match self {
            Self::Passing(error) => Self::Passing(cleaned(&error)),
            Self::Final(error) => Self::Final(cleaned(&error)),
        }
    }
}

/// Delivers.
pub struct Courier {
    clock: Clock,
    currency: String,
    timeout: Duration,
    mailer: Option<Mailer>,
    texter: Option<Texter>,
    poster: Poster,
}

/// The ways to send that the settings name, or what is wrong with them.
fn transports(config: &NotifyConfig) -> anyhow::Result<(Option<Mailer>, Option<Texter>)> {
    let timeout = config.timeout;
    let mailer = config.smtp.as_ref().map(|smtp| Mailer::new(smtp, timeout)).transpose()?;
    let texter = config.twilio.as_ref().map(|twilio| Texter::new(twilio, timeout)).transpose()?;
    Ok((mailer, texter))
}

/// Refuses settings by which nothing could be sent.
pub fn check(config: &NotifyConfig) -> anyhow::Result<()> {
    transports(config).map(drop)
}

impl Courier {
    /// By settings, which are checked; says in the log which ways there are.
    pub fn new(config: &NotifyConfig, currency: &str, clock: &Clock) -> anyhow::Result<Self> {
        let (mailer, texter) = transports(config)?;
        let timeout = config.timeout;
        let poster = Poster::new(config);
        match (&mailer, &texter) {
            (None, None) => {
                tracing::info!("notifications: no SMTP server and no Twilio account is set, only webhooks are sent")
            }
            (Some(_), None) => tracing::info!("notifications: e-mail and webhooks are sent; no Twilio account is set"),
            (None, Some(_)) => tracing::info!("notifications: SMS and webhooks are sent; no SMTP server is set"),
            (Some(_), Some(_)) => tracing::info!("notifications: e-mail, SMS and webhooks are sent"),
        }
        Ok(Self { clock: clock.clone(), currency: currency.into(), timeout, mailer, texter, poster })
    }

    /// Delivers one, within the time of an attempt.
    pub async fn deliver(&self, kind: ChannelKind, channel: &DueChannel, taken: &Taken) -> Result<(), Failure> {
        let Taken { notification_id: id, alerts, alert_count, create_time, .. } = taken;
        let told = Told { alerts, alert_count: *alert_count, create_time: *create_time, currency: &self.currency };
        let (target, now) = (channel.target.as_str(), self.clock.now());
        let sending = async {
            match kind {
                ChannelKind::Email => match &self.mailer {
                    Some(mailer) => mailer.send(id, target, &told, now.into()).await,
                    None => Err(Failure::Passing("no SMTP server is set: see the setting smtp_url".into())),
                },
                ChannelKind::Sms => match &self.texter {
                    Some(texter) => texter.send(target, &told).await,
                    None => Err(Failure::Passing("no Twilio account is set: see the settings twilio_…".into())),
                },
                ChannelKind::Webhook => self.poster.send(id, target, &channel.secrets, &told, now.timestamp()).await,
            }
        };
        let done = tokio::time::timeout(self.timeout, sending).await;
        done.unwrap_or_else(|_| Err(Failure::Passing("no answer in time".into())))
    }
}
