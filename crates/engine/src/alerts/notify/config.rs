//! How notifications are sent.

use std::time::Duration;

/// A setting that is never shown.
#[derive(Clone)]
pub struct Secret(String);

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl Secret {
    /// Returns the secret. Not for logs and errors.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("…")
    }
}

/// An SMTP server, which sends e-mail.
#[derive(Clone, Debug)]
pub struct SmtpConfig {
    pub url: Secret,
    pub from: String,
}

/// A Twilio account, which sends SMS.
#[derive(Clone, Debug)]
pub struct TwilioConfig {
    pub account_sid: String,
    pub auth_token: Secret,
    pub from: String,
    pub api_url: String,
}

/// How notifications are sent. Webhooks can always be sent.
#[derive(Clone, Debug)]
pub struct NotifyConfig {
    pub smtp: Option<SmtpConfig>,
    pub twilio: Option<TwilioConfig>,
    /// Whether webhooks may have URLs that begin with http://.
    pub webhook_allow_http: bool,
    /// Whether webhooks may go to private, loopback and link-local addresses.
    pub webhook_allow_private: bool,
    /// Maximum number of attempts for one notification.
    pub attempts_max: u32,
    /// Maximum pause after the first attempt.
    pub backoff: Duration,
    /// Maximum duration of one attempt.
    pub timeout: Duration,
    /// Maximum number of notifications of one channel per hour.
    pub hourly_max: u32,
}
