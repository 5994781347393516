//! Webhooks by the Standard Webhooks specification.

use super::address::PublicResolver;
use super::config::NotifyConfig;
use super::target::{secret_bytes, webhook_url};
use super::text::Content;
use super::{Failure, http};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use reqwest::header::CONTENT_TYPE;
use reqwest::{Client, StatusCode};
use sha2::Sha256;
use std::sync::Arc;

/// Sends webhooks.
pub struct WebhookSender {
    /// The client, or the error if it cannot be created, for example without CA certificates. The server runs anyway.
    client: Result<Client, String>,
    config: NotifyConfig,
}

impl WebhookSender {
    /// Creates the HTTP client. It only connects to addresses that the settings allow.
    pub fn new(config: &NotifyConfig) -> Self {
        let mut client = http::client(config.timeout).https_only(!config.webhook_allow_http);
        if !config.webhook_allow_private {
            client = client.dns_resolver(Arc::new(PublicResolver));
        }
        let client = client.build().map_err(|error| {
            let reason = super::reason(&error);
            tracing::warn!(reason, "webhooks cannot be sent");
            format!("webhooks cannot be sent from this server: {reason}")
        });
        Self { client, config: config.clone() }
    }

    /// Sends one notification, signed with every key at `timestamp` (seconds). Only the status of the answer is read.
    pub async fn send(
        &self,
        id: &str,
        target: &str,
        secrets: &[String],
        content: &Content<'_>,
        timestamp: i64,
    ) -> Result<(), Failure> {
        // The settings may have become stricter since the channel was created.
        let url =
            webhook_url(target, &self.config).map_err(|wrong| Failure::Transient(format!("the target {wrong}")))?;
        let keys: Option<Vec<Vec<u8>>> = secrets.iter().map(|secret| secret_bytes(secret)).collect();
        let keys = keys.filter(|keys| !keys.is_empty());
        let keys = keys.ok_or_else(|| Failure::Permanent("the channel has no key to sign with".into()))?;
        let body = content.json();
        let client = self.client.as_ref().map_err(|error| Failure::Transient(error.clone()))?;
        let request = client
            .post(url)
            .header(CONTENT_TYPE, "application/json")
            .header("webhook-id", id)
            .header("webhook-timestamp", timestamp)
            .header("webhook-signature", signatures(&keys, id, timestamp, &body))
            .body(body);
        let status = request.send().await.map_err(|error| Failure::Transient(http::reason(error)))?.status();
        match status {
            _ if status.is_success() => Ok(()),
            StatusCode::GONE => Err(Failure::Permanent(format!("the receiver answered {status}"))),
            _ if status.is_redirection() => {
                Err(Failure::Transient(format!("the receiver answered {status}, and redirects are not followed")))
            }
            _ => Err(Failure::Transient(format!("the receiver answered {status}"))),
        }
    }
}

/// Returns one signature per key, so that a receiver with any of the keys can verify it.
fn signatures(keys: &[Vec<u8>], id: &str, timestamp: i64, body: &str) -> String {
    let sign = |key: &Vec<u8>| {
        let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
        mac.update(format!("{id}.{timestamp}.{body}").as_bytes());
        format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
    };
    keys.iter().map(sign).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example is from the specification and the tests of its reference libraries.
    #[test]
    fn a_signature_matches_the_example_of_the_specification() {
        let key = secret_bytes("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let body = r#"{"test": 2432232314}"#;
        assert_eq!(
            signatures(&[key], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, body),
            "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
        );
    }
}
