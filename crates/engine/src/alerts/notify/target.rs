//! Checks of channels: targets and the keys of webhooks.

use super::address::{REFUSED, is_internal_name, is_public};
use super::config::NotifyConfig;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use meterd_domain::notification::ChannelKind;
use reqwest::Url;
use std::net::IpAddr;

/// The prefix of a key, before its base64.
const SECRET_PREFIX: &str = "whsec_";
/// Size of a key, by the Standard Webhooks specification.
const SECRET_BYTES: std::ops::RangeInclusive<usize> = 24..=64;
/// Number of digits of a phone number. The maximum is from E.164; the shortest numbers in use have seven.
const PHONE_DIGITS: std::ops::RangeInclusive<usize> = 7..=15;

/// Checks that notifications can be sent to this target with these settings. The error says what is wrong.
pub fn check_target(kind: ChannelKind, target: &str, config: &NotifyConfig) -> Result<(), String> {
    match kind {
        ChannelKind::Email => {
            target.parse::<lettre::Address>().map_err(|_| "must be an e-mail address such as ops@example.com")?;
            let missing = || "e-mail needs the settings smtp_url and smtp_from, which this server does not have".into();
            config.smtp.as_ref().map(drop).ok_or_else(missing)
        }
        ChannelKind::Sms => {
            let digits = target.strip_prefix('+').unwrap_or_default();
            let phone = PHONE_DIGITS.contains(&digits.len())
                && digits.bytes().all(|byte| byte.is_ascii_digit())
                && !digits.starts_with('0');
            if !phone {
                return Err("must be a phone number with country code, such as +15551234567".into());
            }
            let missing = || "SMS need the settings twilio_account_sid, twilio_auth_token and twilio_from, which this server does not have";
            config.twilio.as_ref().map(drop).ok_or_else(|| missing().into())
        }
        ChannelKind::Webhook => webhook_url(target, config).map(drop),
    }
}

/// Returns the URL of a webhook, if the settings allow it. The addresses of its host name are checked when it is connected to.
pub(super) fn webhook_url(target: &str, config: &NotifyConfig) -> Result<Url, String> {
    let url = Url::parse(target).map_err(|_| "must be a URL such as https://example.com/alerts")?;
    match url.scheme() {
        "https" => {}
        "http" if config.webhook_allow_http => {}
        "http" => return Err("must be https (http is taken with the setting webhook_allow_http only)".into()),
        _ => return Err("must be an https URL".into()),
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("must not contain a user or password".into());
    }
    if url.fragment().is_some() {
        return Err("must not contain a fragment".into());
    }
    let host = url.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    let is_internal = host.parse::<IpAddr>().map_or_else(|_| is_internal_name(host), |address| !is_public(address));
    if is_internal && !config.webhook_allow_private {
        return Err(format!(
            "{REFUSED}. Name a host of the public internet, or let the operator turn on the setting webhook_allow_private"
        ));
    }
    Ok(url)
}

/// Returns a new key for signatures of webhooks.
pub fn new_secret() -> String {
    format!("{SECRET_PREFIX}{}", STANDARD.encode(rand::random::<[u8; 32]>()))
}

/// Checks a key for signatures of webhooks.
pub fn check_secret(secret: &str) -> Result<(), String> {
    secret_bytes(secret).map(drop).ok_or_else(|| {
        let (least, most) = (SECRET_BYTES.start(), SECRET_BYTES.end());
        format!("must be {SECRET_PREFIX:?} and {least} to {most} bytes in base64")
    })
}

/// Returns the bytes of a key.
pub(super) fn secret_bytes(secret: &str) -> Option<Vec<u8>> {
    let bytes = STANDARD.decode(secret.strip_prefix(SECRET_PREFIX)?).ok()?;
    SECRET_BYTES.contains(&bytes.len()).then_some(bytes)
}

#[cfg(test)]
#[path = "target_tests.rs"]
mod tests;
