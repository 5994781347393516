//! SMS over Twilio's REST API.

use super::config::{Secret, TwilioConfig};
use super::text::Content;
use super::{Failure, http};
use anyhow::Context;
use reqwest::{Client, Response, StatusCode, Url};
use std::time::Duration;

/// Maximum number of bytes that are read of an error of Twilio. Its errors have a few hundred.
const ERROR_BYTES_MAX: usize = 4 * 1024;
/// Client errors that do not depend on the message: a changed token, a stopped account, a slow request, too many requests.
const TRANSIENT: [StatusCode; 4] =
    [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN, StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS];

/// Sends SMS over a Twilio account.
pub struct SmsSender {
    client: Client,
    messages: Url,
    account_sid: String,
    auth_token: Secret,
    from: String,
}

impl SmsSender {
    /// Checks the settings.
    pub fn new(config: &TwilioConfig, timeout: Duration) -> anyhow::Result<Self> {
        let mut messages = Url::parse(&config.api_url).ok().filter(|url| matches!(url.scheme(), "https" | "http"));
        let path = ["2010-04-01", "Accounts", &config.account_sid, "Messages.json"];
        let url = messages.as_mut().context("--twilio-api-url is no URL such as https://api.twilio.com")?;
        url.path_segments_mut().expect("http URLs have a path").pop_if_empty().extend(path);
        Ok(Self {
            client: http::client(timeout).build().context("no SMS can be sent from this machine")?,
            messages: url.clone(),
            account_sid: config.account_sid.clone(),
            auth_token: config.auth_token.clone(),
            from: config.from.clone(),
        })
    }

    /// Sends one notification.
    pub async fn send(&self, target: &str, content: &Content<'_>) -> Result<(), Failure> {
        let form = [("To", target), ("From", &self.from), ("Body", &content.sms())];
        let request = self.client.post(self.messages.clone()).form(&form);
        let response = request.basic_auth(&self.account_sid, Some(self.auth_token.reveal())).send().await;
        let response = response.map_err(|error| Failure::Transient(http::reason(error)))?;
        let status = response.status();
        if status.is_success() {
            return Ok(());
        }
        let error = format!("Twilio answered {status}{}", explanation(response).await);
        let is_permanent = status.is_client_error() && !TRANSIENT.contains(&status);
        Err(if is_permanent { Failure::Permanent(error) } else { Failure::Transient(error) })
    }
}

/// Returns the explanation in an error of Twilio, if there is one.
async fn explanation(mut response: Response) -> String {
    #[derive(serde::Deserialize)]
    struct TwilioError {
        code: i64,
        message: String,
    }
    let mut body = Vec::new();
    while let Ok(Some(chunk)) = response.chunk().await {
        body.extend_from_slice(&chunk);
        if body.len() > ERROR_BYTES_MAX {
            return String::new();
        }
    }
    match serde_json::from_slice::<TwilioError>(&body) {
        Ok(error) => format!(": {} ({})", error.message, error.code),
        Err(_) => String::new(),
    }
}
