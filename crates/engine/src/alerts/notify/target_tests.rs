use super::*;
use crate::alerts::notify::{SmtpConfig, TwilioConfig};
use std::time::Duration;

fn plain() -> NotifyConfig {
    NotifyConfig {
        smtp: None,
        twilio: None,
        webhook_allow_http: false,
        webhook_allow_private: false,
        attempts_max: 1,
        backoff: Duration::from_secs(1),
        timeout: Duration::from_secs(1),
        hourly_max: 1,
    }
}

fn with_smtp(url: &str) -> NotifyConfig {
    let smtp = SmtpConfig { url: url.to_string().into(), from: "meterd <alerts@example.com>".into() };
    NotifyConfig { smtp: Some(smtp), ..plain() }
}

fn with_twilio(auth_token: &str) -> NotifyConfig {
    let twilio = TwilioConfig {
        account_sid: "AC1".into(),
        auth_token: auth_token.to_string().into(),
        from: "+15550000000".into(),
        api_url: "https://api.twilio.com".into(),
    };
    NotifyConfig { twilio: Some(twilio), ..plain() }
}

#[test]
fn webhooks_are_https_urls_of_the_public_internet_unless_a_setting_allows_more() {
    let plain = plain();
    let check = |target: &str, config: &NotifyConfig| check_target(ChannelKind::Webhook, target, config);
    for target in
        ["https://example.com/alerts?of=all", "https://example.com:8443", "https://1.1.1.1/", "https://[2606:4700::1]/"]
    {
        assert_eq!(check(target, &plain), Ok(()), "{target}");
    }
    let refused = [
        "",
        "example.com",
        "ftp://example.com",
        "file:///etc/passwd",
        "http://example.com/",
        "https://user@example.com/",
        "https://user:password@example.com/",
        "https://example.com/#part",
        "https://",
        "https://exa mple.com/",
    ];
    let special = [
        "https://127.0.0.1/",
        "https://127.1/",
        "https://2130706433/",
        "https://0x7f000001/",
        "https://0177.0.0.1/",
        "https://127.0.0.1./",
        "https://[::1]/",
        "https://[::ffff:127.0.0.1]/",
        "https://[::ffff:7f00:1]/",
        "https://10.1.2.3/",
        "https://169.254.169.254/latest/meta-data/",
        "https://[fe80::1]/",
        "https://[fd00::1]/",
        "https://0.0.0.0/",
        "https://[::]/",
        "https://[64:ff9b::10.0.0.1]/",
        "https://①②⑦.0.0.1/",
    ];
    for target in refused.iter().chain(&special) {
        assert!(check(target, &plain).is_err(), "{target}");
    }
    let private = NotifyConfig { webhook_allow_private: true, ..plain.clone() };
    for target in special {
        assert_eq!(check(target, &private), Ok(()), "{target}");
    }
    let with_http = NotifyConfig { webhook_allow_http: true, ..plain.clone() };
    assert_eq!(check("http://example.com/", &with_http), Ok(()));
    assert!(check("http://10.0.0.1/", &with_http).is_err());
    assert!(check("http://10.0.0.1/", &private).is_err());
}

#[test]
fn e_mail_needs_an_address_and_a_server() {
    let check = |target: &str, config: &NotifyConfig| check_target(ChannelKind::Email, target, config);
    assert_eq!(check("ops@example.com", &with_smtp("smtp://localhost")), Ok(()));
    assert!(check("ops@example.com", &plain()).unwrap_err().contains("smtp_url"));
    for target in [
        "",
        "ops",
        "ops@",
        "@example.com",
        "Ops <ops@example.com>",
        "a@b.example, c@d.example",
        "a@b.example\r\nBcc: c@d.example",
    ] {
        assert!(check(target, &with_smtp("smtp://localhost")).is_err(), "{target}");
    }
}

#[test]
fn sms_need_a_phone_number_and_an_account() {
    let check = |target: &str, config: &NotifyConfig| check_target(ChannelKind::Sms, target, config);
    assert_eq!(check("+15551234567", &with_twilio("t")), Ok(()));
    assert!(check("+15551234567", &plain()).unwrap_err().contains("twilio_account_sid"));
    for target in
        ["", "+", "15551234567", "+0551234567", "+1555", "+1 555 1234567", "+1234567890123456", "+15551234a67"]
    {
        assert!(check(target, &with_twilio("t")).is_err(), "{target}");
    }
}

#[test]
fn keys_have_24_to_64_bytes_and_new_ones_differ() {
    let secret = |bytes: usize| format!("whsec_{}", STANDARD.encode(vec![7; bytes]));
    for (bytes, fine) in [(0, false), (23, false), (24, true), (32, true), (64, true), (65, false)] {
        assert_eq!(check_secret(&secret(bytes)).is_ok(), fine, "{bytes}");
    }
    assert!(check_secret(secret(32).trim_start_matches("whsec_")).is_err());
    assert!(check_secret("whsec_not base64 at all, is it").is_err());
    let (one, other) = (new_secret(), new_secret());
    assert_eq!((check_secret(&one), one == other), (Ok(()), false));
}

#[test]
fn settings_with_secrets_are_never_shown() {
    for config in [with_smtp("smtp://user:hunter2@localhost"), with_twilio("hunter2")] {
        assert!(!format!("{config:?}").contains("hunter2"));
    }
}
