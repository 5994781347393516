//! Settings of alert notifications.

use clap::Args;
use meterd_engine::alerts::notify::{NotifyConfig, Secret, SmtpConfig, TwilioConfig};
use std::time::Duration;

/// Settings of alert notifications. Without them, meterd can send webhooks only.
#[derive(Args, Clone, Debug)]
pub struct NotificationSettings {
    /// SMTP server for e-mail notifications, such as smtps://user:password@host:465 or smtp://host:587?tls=required
    #[arg(long, env = "METERD_SMTP_URL", hide_env_values = true, hide_default_value = true)]
    pub smtp_url: Option<Secret>,
    /// Sender of the e-mails, such as "meterd <alerts@example.com>"
    #[arg(long, env = "METERD_SMTP_FROM")]
    pub smtp_from: Option<String>,
    /// Twilio account for SMS notifications
    #[arg(long, env = "METERD_TWILIO_ACCOUNT_SID")]
    pub twilio_account_sid: Option<String>,
    /// Token of the Twilio account
    #[arg(long, env = "METERD_TWILIO_AUTH_TOKEN", hide_env_values = true, hide_default_value = true)]
    pub twilio_auth_token: Option<Secret>,
    /// Phone number that sends the SMS, such as +15551234567
    #[arg(long, env = "METERD_TWILIO_FROM")]
    pub twilio_from: Option<String>,
    /// URL of Twilio's API
    #[arg(long, env = "METERD_TWILIO_API_URL", default_value = "https://api.twilio.com")]
    pub twilio_api_url: String,
    /// Also accept webhooks with http://; everyone between the server and the receiver can then read them
    #[arg(long, env = "METERD_WEBHOOK_ALLOW_HTTP", num_args = 0..=1, default_missing_value = "true", default_value = "false", action = clap::ArgAction::Set)]
    pub webhook_allow_http: bool,
    /// Also send webhooks to private, loopback and link-local addresses; an admin who sets a channel can then reach the
    /// internal network
    #[arg(long, env = "METERD_WEBHOOK_ALLOW_PRIVATE", num_args = 0..=1, default_missing_value = "true", default_value = "false", action = clap::ArgAction::Set)]
    pub webhook_allow_private: bool,
    /// Maximum number of attempts to send a notification
    #[arg(long, env = "METERD_NOTIFICATION_ATTEMPTS_MAX", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub notification_attempts_max: u32,
    /// Maximum pause after the first attempt, in seconds; four times as long after each further attempt, at most an hour
    #[arg(long, env = "METERD_NOTIFICATION_BACKOFF_SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub notification_backoff_seconds: u32,
    /// Maximum duration of one attempt, in seconds
    #[arg(long, env = "METERD_NOTIFICATION_TIMEOUT_SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=300))]
    pub notification_timeout_seconds: u32,
    /// Maximum number of notifications to one channel in an hour; the rest is sent as one digest
    #[arg(long, env = "METERD_NOTIFICATIONS_HOURLY_MAX", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub notifications_hourly_max: u32,
}

impl NotificationSettings {
    /// The configuration of notifications.
    ///
    /// # Errors
    /// If an SMTP server or a Twilio account is only partly set.
    pub fn config(&self) -> anyhow::Result<NotifyConfig> {
        self.check()?;
        Ok(NotifyConfig {
            smtp: self.smtp(),
            twilio: self.twilio(),
            webhook_allow_http: self.webhook_allow_http,
            webhook_allow_private: self.webhook_allow_private,
            attempts_max: self.notification_attempts_max,
            backoff: Duration::from_secs(self.notification_backoff_seconds.into()),
            timeout: Duration::from_secs(self.notification_timeout_seconds.into()),
            hourly_max: self.notifications_hourly_max,
        })
    }

    fn smtp(&self) -> Option<SmtpConfig> {
        let url = self.smtp_url.as_ref().filter(|url| !url.reveal().is_empty())?.clone();
        Some(SmtpConfig { url, from: non_empty(&self.smtp_from)?.into() })
    }

    fn twilio(&self) -> Option<TwilioConfig> {
        Some(TwilioConfig {
            account_sid: non_empty(&self.twilio_account_sid)?.into(),
            auth_token: self.twilio_auth_token.as_ref().filter(|token| !token.reveal().is_empty())?.clone(),
            from: non_empty(&self.twilio_from)?.into(),
            api_url: self.twilio_api_url.clone(),
        })
    }

    /// Checks that the settings of each way to send are complete.
    fn check(&self) -> anyhow::Result<()> {
        let has = |secret: &Option<Secret>| secret.as_ref().is_some_and(|secret| !secret.reveal().is_empty());
        anyhow::ensure!(
            has(&self.smtp_url) == non_empty(&self.smtp_from).is_some(),
            "--smtp-url (METERD_SMTP_URL) and --smtp-from (METERD_SMTP_FROM): only one of them is set; set both or none"
        );
        let parts = [
            non_empty(&self.twilio_account_sid).is_some(),
            has(&self.twilio_auth_token),
            non_empty(&self.twilio_from).is_some(),
        ];
        anyhow::ensure!(
            parts.iter().all(|part| *part == parts[0]),
            "--twilio-account-sid, --twilio-auth-token and --twilio-from (METERD_TWILIO_…): only some of them are set; \
             set all or none"
        );
        Ok(())
    }
}

/// Returns the text unless it is empty. Container tools pass an unset variable as an empty one.
pub(super) fn non_empty(text: &Option<String>) -> Option<&str> {
    text.as_deref().filter(|text| !text.is_empty())
}
