use super::*;
use clap::Parser;

fn settings(flags: &[&str]) -> NotificationSettings {
    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        settings: NotificationSettings,
    }
    Flags::parse_from(std::iter::once(&"test").chain(flags)).settings
}

const SMTP: [&str; 2] = ["--smtp-url=smtp://localhost", "--smtp-from=meterd <alerts@example.com>"];
const TWILIO: [&str; 3] = ["--twilio-account-sid=AC1", "--twilio-auth-token=t", "--twilio-from=+15550000000"];

#[test]
fn webhooks_are_https_urls_of_the_public_internet_unless_a_setting_allows_more() {
    let plain = settings(&[]);
    let check = |target: &str, settings: &NotificationSettings| check_target(ChannelKind::Webhook, target, settings);
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
    let private = settings(&["--webhook-allow-private"]);
    for target in special {
        assert_eq!(check(target, &private), Ok(()), "{target}");
    }
    assert_eq!(check("http://example.com/", &settings(&["--webhook-allow-http"])), Ok(()));
    assert!(check("http://10.0.0.1/", &settings(&["--webhook-allow-http"])).is_err());
    assert!(check("http://10.0.0.1/", &private).is_err());
}

#[test]
fn e_mail_needs_an_address_and_a_server() {
    let check = |target: &str, flags: &[&str]| check_target(ChannelKind::Email, target, &settings(flags));
    assert_eq!(check("ops@example.com", &SMTP), Ok(()));
    assert!(check("ops@example.com", &[]).unwrap_err().contains("smtp_url"));
    for target in [
        "",
        "ops",
        "ops@",
        "@example.com",
        "Ops <ops@example.com>",
        "a@b.example, c@d.example",
        "a@b.example\r\nBcc: c@d.example",
    ] {
        assert!(check(target, &SMTP).is_err(), "{target}");
    }
}

#[test]
fn sms_need_a_phone_number_and_an_account() {
    let check = |target: &str, flags: &[&str]| check_target(ChannelKind::Sms, target, &settings(flags));
    assert_eq!(check("+15551234567", &TWILIO), Ok(()));
    assert!(check("+15551234567", &[]).unwrap_err().contains("twilio_account_sid"));
    for target in
        ["", "+", "15551234567", "+0551234567", "+1555", "+1 555 1234567", "+1234567890123456", "+15551234a67"]
    {
        assert!(check(target, &TWILIO).is_err(), "{target}");
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
fn settings_that_hold_secrets_are_shown_nowhere() {
    let settings = settings(&["--smtp-url=smtp://user:hunter2@localhost", "--twilio-auth-token=hunter2"]);
    assert!(!format!("{settings:?}").contains("hunter2"));
}
