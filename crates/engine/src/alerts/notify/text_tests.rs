use super::*;
use meterd_domain::alert::Finding;
use meterd_domain::decimal::Total;

fn alert(number: usize, message: &str) -> Alert {
    let total = |text: &str| text.parse::<Total>().unwrap();
    Alert {
        alert_id: format!("alert-{number}"),
        client_id: "acme".into(),
        finding: Finding {
            kind: AlertType::Anomaly,
            severity: Severity::Warning,
            service: "sms".into(),
            period: "2026-11-21".parse().unwrap(),
            current: total("123456789012345678901234567890.000000000001"),
            previous: Some(total("2")),
            threshold: total("6"),
            percent: None,
            projected: None,
            limit: None,
        },
        message: message.into(),
        raise_time: "2026-11-21T12:00:00Z".parse().unwrap(),
        raise_count: 2,
        acknowledge_time: None,
        acknowledged_by: String::new(),
        resolve_time: None,
    }
}

fn content(alerts: &[Alert], alert_count: i32) -> Content<'_> {
    Content { alerts, alert_count, create_time: "2026-11-21T13:00:00Z".parse().unwrap(), currency: "USD" }
}

#[test]
fn amounts_keep_every_digit_and_units_have_no_currency() {
    let alerts = [alert(1, "Too many.")];
    let body: serde_json::Value = serde_json::from_str(&content(&alerts, 1).json()).unwrap();
    let data = &body["data"];
    assert_eq!(data["current"], "123456789012345678901234567890.000000000001");
    assert_eq!(
        (&data["period"], &data["service"], &data["previous"]),
        (&"2026-11-21".into(), &"sms".into(), &"2".into())
    );
    assert!(["currency", "percent", "projected"].iter().all(|field| data.get(field).is_none()), "{data}");
    let mail = content(&alerts, 1).mail();
    assert!(mail.contains("123456789012345678901234567890.000000000001 units") && mail.contains("2 units"), "{mail}");
}

#[test]
fn numbers_of_events_and_hours_have_no_currency() {
    let of = |kind, service: &str| {
        let mut alert = alert(1, "Look.");
        let total = |text: &str| text.parse::<Total>().unwrap();
        let (current, threshold) = (total("25"), total("24"));
        let period = "2026-11-01".parse().unwrap();
        alert.finding =
            Finding { kind, service: service.into(), current, previous: None, threshold, period, ..alert.finding };
        alert
    };
    let cases = [
        (of(AlertType::Unpriced, "openai"), "ALERT_TYPE_UNPRICED", "2026-11", "25 events"),
        (of(AlertType::Silence, ""), "ALERT_TYPE_SILENCE", "2026-11-01", "25 hours"),
    ];
    for (alert, kind, period, current) in cases {
        let alerts = [alert];
        let content = content(&alerts, 1);
        let body: serde_json::Value = serde_json::from_str(&content.json()).unwrap();
        let data = &body["data"];
        assert_eq!((&data["type"], &data["period"], &data["current"]), (&kind.into(), &period.into(), &"25".into()));
        assert!(["currency", "previous"].iter().all(|field| data.get(field).is_none()), "{data}");
        let mail = content.mail();
        assert!(mail.contains(&format!("current         {current}\n")) && !mail.contains("USD"), "{mail}");
        assert_eq!(content.sms(), "[warning] Look.");
    }
}

#[test]
fn a_digest_shows_how_many_alerts_it_leaves_out() {
    let alerts: Vec<Alert> = (1..=4).map(|number| alert(number, &format!("Message {number}."))).collect();
    let digest = content(&alerts, 10);
    assert_eq!(digest.subject(), "[warning] 10 alerts");
    assert!(
        digest.mail().starts_with("10 alerts were raised:\n") && digest.mail().ends_with("- and 6 more\n"),
        "{}",
        digest.mail()
    );
    assert_eq!(digest.sms(), "10 alerts: Message 1. Message 2. Message 3. And 7 more.");
    assert!(!content(&alerts, 4).mail().contains("more"));
    let body: serde_json::Value = serde_json::from_str(&digest.json()).unwrap();
    assert_eq!((&body["type"], &body["data"]["alertCount"]), (&"alert.digest".into(), &10.into()));
    assert_eq!(
        (&body["timestamp"], &body["data"]["alerts"][3]["alertId"]),
        (&"2026-11-21T13:00:00Z".into(), &"alert-4".into())
    );
}

#[test]
fn subjects_and_sms_are_one_line_of_limited_length() {
    let alerts = [alert(1, &format!("Bell\u{7}\r\nBcc: x@y.example {}", "é".repeat(2_000)))];
    for text in [content(&alerts, 1).subject(), content(&alerts, 1).sms(), content(&alerts, 2).sms()] {
        assert!(text.chars().count() <= SMS_CHARS_MAX && text.ends_with('…'), "{text}");
        assert!(!text.chars().any(char::is_control), "{text}");
    }
    assert_eq!(content(&alerts, 1).subject().chars().count(), SUBJECT_CHARS_MAX);
}

#[test]
fn an_alert_about_a_limit_has_the_limit() {
    let mut alerts = [alert(1, "Nearly reached.")];
    let finding = &mut alerts[0].finding;
    finding.kind = AlertType::Limit;
    finding.service = String::new();
    finding.period = "2026-11-01".parse().unwrap();
    finding.limit = Some(Box::new(LimitFinding {
        limit_id: "spend".into(),
        display_name: String::new(),
        measure: LimitMeasure::Cost,
        period: LimitPeriod::Month,
        is_hard: true,
        amount: "50".parse().unwrap(),
        percent: 80,
    }));
    let body: serde_json::Value = serde_json::from_str(&content(&alerts, 1).json()).unwrap();
    let data = &body["data"];
    let expected = serde_json::json!({"limitId": "spend", "measure": "LIMIT_MEASURE_COST", "period": "LIMIT_PERIOD_MONTH",
        "amount": "50", "percent": 80, "hard": true});
    assert_eq!(data["limit"], expected);
    assert_eq!(
        (&data["type"], &data["period"], &data["currency"]),
        (&"ALERT_TYPE_LIMIT".into(), &"2026-11".into(), &"USD".into())
    );
}
