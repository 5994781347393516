//! Checks of alerts that time makes due, and anomalies.

use crate::alerts::{alerts, check, kinds, metered, server_at, spend};
use crate::harness::*;
use meterd::proto::*;

#[tokio::test]
async fn a_check_finds_anomalies_in_cost_and_in_the_units_of_each_service() {
    let server = server_at("2026-11-21T12:00:00Z").await;
    metered(&server, "other").await;
    let mut events = vec![];
    for day in 10..=20 {
        let noon = format!("2026-11-{day}T12:00:00Z");
        events.push(event_at("acme", "metered", "1", &noon));
        events.push(event_at("acme", "other", "10", &noon));
        // Six days are not enough for an anomaly.
        if day > 14 {
            events.push(event_at("globex", "metered", "0.5", &noon));
        }
    }
    server.batch(events, false).await;
    // A day had 1 metered unit, 10 other units, and a cost of 11. The threshold is three times that.
    spend(&server, "acme", "11").await;
    spend(&server, "globex", "11").await;
    server.track(event("acme", "other", "22")).await.unwrap();
    let found = check(&server, "acme").await;
    let anomalies = |found: &CheckAlertsResponse| -> Vec<(String, String, String)> {
        let found = found.raised.iter().filter(|alert| alert.r#type() == AlertType::Anomaly);
        found.map(|alert| (alert.service.clone(), alert.period.clone(), alert.currency.clone())).collect()
    };
    assert_eq!(anomalies(&found), [("metered".into(), "2026-11-21".into(), String::new())]);
    server.track(event("acme", "other", "0.1")).await.unwrap();
    let found = check(&server, "acme").await;
    assert_eq!(anomalies(&found), [(String::new(), "2026-11-21".into(), "USD".into())]);
    assert_eq!((found.raised[0].current.as_str(), found.raised[0].previous.as_str()), ("33.1", "11"));
    assert_eq!(check(&server, "acme").await.raised_count, 0);
    assert!(anomalies(&check(&server, "globex").await).is_empty());
    // The day is over, late usage arrives, and the next check still includes the day.
    server.clock.set(time("2026-11-22T01:00:00Z"));
    server.track(event_at("acme", "other", "8", "2026-11-21T23:00:00Z")).await.unwrap();
    let found = check(&server, "acme").await;
    assert_eq!(anomalies(&found), [("other".into(), "2026-11-21".into(), String::new())]);
}

#[tokio::test]
async fn days_of_the_last_week_are_checked_and_a_changed_rule_resolves_anomalies() {
    let server = server_at("2026-11-21T12:00:00Z").await;
    server.create_client_in_zone("far", "Pacific/Kiritimati").await;
    let mut events = vec![];
    for day in 1..=12 {
        for client in ["acme", "far"] {
            events.push(event_at(client, "metered", "1", &format!("2026-11-{day:02}T12:00:00Z")));
        }
    }
    // No check ran for six days. In Kiribati it was already the next day.
    events.push(event_at("acme", "metered", "20", "2026-11-15T11:00:00Z"));
    events.push(event_at("far", "metered", "20", "2026-11-15T11:00:00Z"));
    events.push(event_at("acme", "metered", "20", "2026-11-14T11:00:00Z"));
    server.batch(events, false).await;
    let periods = async |client: &str| {
        let found = check(&server, client).await.raised;
        let found = found.iter().filter(|alert| alert.r#type() == AlertType::Anomaly && alert.service.is_empty());
        found.map(|alert| alert.period.clone()).collect::<Vec<_>>()
    };
    assert_eq!(periods("acme").await, ["2026-11-15"]);
    assert_eq!(periods("far").await, ["2026-11-16"]);
    // With this policy, twenty times the mean is not an anomaly.
    let policy = AlertPolicy { client_id: "acme".into(), anomaly_factor: Some("50".into()), ..Default::default() };
    crate::policies::try_update(&server, policy, &["anomaly_factor"]).await.unwrap();
    let open = async |client: &str| {
        let alerts = alerts(&server, client).await;
        let open = alerts.iter().filter(|alert| alert.r#type() == AlertType::Anomaly && alert.resolve_time.is_none());
        open.count()
    };
    assert_eq!((open("acme").await, open("far").await), (0, 2));
    let off = AlertPolicy { client_id: "far".into(), anomaly_enabled: Some(false), ..Default::default() };
    crate::policies::try_update(&server, off, &["anomaly_enabled"]).await.unwrap();
    assert_eq!(open("far").await, 0);
}

#[tokio::test]
async fn the_hourly_job_raises_alerts_that_are_due_by_time() {
    let server = server_at("2026-11-02T12:00:00Z").await;
    spend(&server, "acme", "16").await;
    server.clock.set(time("2026-11-03T12:00:00Z"));
    let result = server.run_job("alert_checks").await;
    assert!(result.contains("1 client checked, 1 alert raised"), "{result}");
    assert_eq!(kinds(&server, "acme").await, ["2026-11 PROJECTION WARNING"]);
}

#[tokio::test]
async fn a_check_of_all_clients_continues_after_a_failure_and_reports_it() {
    let server = server_at("2026-11-02T12:00:00Z").await;
    for client in ["a", "b", "c", "quiet"] {
        spend(&server, client, "16").await;
    }
    // The usage is so old that the client is not active.
    server.sql("UPDATE usage_months SET month = '2026-06-01' WHERE client_id = 'quiet'").await;
    server.sql("UPDATE clients SET time_zone = 'Mars/Olympus_Mons' WHERE client_id = 'b'").await;
    server.clock.set(time("2026-11-03T12:00:00Z"));
    let report = check(&server, "").await;
    assert_eq!((report.checked_count, report.raised_count, report.failed_count), (2, 2, 1));
    assert_eq!(report.failed[0].client_id, "b");
    let mut raised: Vec<_> = report.raised.iter().map(|alert| alert.client_id.as_str()).collect();
    raised.sort();
    assert_eq!(raised, ["a", "c"]);
}
