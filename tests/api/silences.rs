//! Alerts about clients that no longer send events: raised once for each silence, and resolved when an event arrives.

use crate::alerts::{alerts, check};
use crate::harness::*;
use crate::policies::try_update;
use meterd::proto::*;
use meterd_engine::clock::Clock;
use tokio::task::JoinSet;

async fn server_at(now: &str) -> TestServer {
    TestServer::start_with(&["--accept-past-days=93"], Clock::fixed(time(now))).await
}

/// Sets the rule of a client, or of all clients.
async fn watch(server: &TestServer, client_id: &str, hours: i32) {
    let policy = AlertPolicy {
        client_id: client_id.into(),
        silence_enabled: Some(true),
        silence_hours: Some(hours),
        ..Default::default()
    };
    try_update(server, policy, &["silence_enabled", "silence_hours"]).await.unwrap();
}

/// Sends an event of this time, at this time if it is later than the present.
async fn send(server: &TestServer, client_id: &str, at: &str) {
    server.clock.set(server.clock.now().max(time(at)));
    server.track(event_at(client_id, "sms", "1", at)).await.unwrap();
}

/// Checks all clients at this time. Returns the numbers of alerts that were raised and resolved.
async fn check_at(server: &TestServer, now: &str) -> (i64, i64) {
    server.clock.set(time(now));
    let report = check(server, "").await;
    assert_eq!(report.failed_count, 0);
    (report.raised_count, report.resolved_count)
}

/// Returns the period, the number of raises, and whether it is open, of each alert of a client.
async fn silences(server: &TestServer, client_id: &str) -> Vec<(String, i32, bool)> {
    let alerts = alerts(server, client_id).await;
    assert!(alerts.iter().all(|alert| alert.r#type() == AlertType::Silence));
    alerts.into_iter().map(|alert| (alert.period, alert.raise_count, alert.resolve_time.is_none())).collect()
}

#[tokio::test]
async fn a_silence_is_raised_once_resolved_by_an_event_and_the_next_one_is_raised_again() {
    let server = server_at("2026-11-10T08:00:00Z").await;
    server.create_client_in_zone("acme", "Europe/Berlin").await;
    watch(&server, "acme", 24).await;
    send(&server, "acme", "2026-11-10T07:30:00Z").await;
    // An earlier event that arrives later does not begin the silence.
    send(&server, "acme", "2026-11-09T10:00:00Z").await;
    assert_eq!(check_at(&server, "2026-11-11T07:29:59Z").await, (0, 0));
    assert_eq!(check_at(&server, "2026-11-11T08:31:00Z").await, (1, 0));
    let alert = alerts(&server, "acme").await.remove(0);
    assert_eq!((alert.r#type(), alert.severity()), (AlertType::Silence, AlertSeverity::Warning));
    assert_eq!((&*alert.period, &*alert.service, &*alert.currency), ("2026-11-10", "", ""));
    assert_eq!((&*alert.current, &*alert.threshold), ("25", "24"));
    assert_eq!(
        alert.message,
        "acme has sent no events for 25 hours: the last one was on 10 November 2026, 08:30 CET. The threshold is 24 hours."
    );
    assert_eq!(check_at(&server, "2026-11-12T09:00:00Z").await, (0, 0));
    assert_eq!(check_at(&server, "2027-01-12T09:00:00Z").await, (0, 0), "the client is no longer active");

    send(&server, "acme", "2027-01-12T08:59:00Z").await;
    assert_eq!(check_at(&server, "2027-01-12T10:00:00Z").await, (0, 1));
    assert_eq!(check_at(&server, "2027-01-13T09:00:00Z").await, (1, 0));
    assert_eq!(silences(&server, "acme").await, [("2026-11-10".into(), 1, false), ("2027-01-12".into(), 1, true)]);
    // One event between two checks ends the silence, and begins one on a later day.
    send(&server, "acme", "2027-01-13T10:00:00Z").await;
    assert_eq!(check_at(&server, "2027-01-15T10:00:00Z").await, (1, 1));
    assert_eq!(silences(&server, "acme").await.last().unwrap(), &("2027-01-13".into(), 1, true));
    let changes: Vec<i16> =
        sqlx::query_scalar("SELECT change FROM alert_feed ORDER BY sequence").fetch_all(&server.pool).await.unwrap();
    assert_eq!(changes, [1, 3, 1, 3, 1]);
    server.stop().await;
}

#[tokio::test]
async fn a_second_silence_of_the_same_day_raises_the_same_alert_again() {
    let server = server_at("2026-11-10T08:00:00Z").await;
    send(&server, "acme", "2026-11-10T08:00:00Z").await;
    watch(&server, "", 2).await;
    assert_eq!(check_at(&server, "2026-11-10T10:00:00Z").await, (1, 0));
    send(&server, "acme", "2026-11-10T10:30:00Z").await;
    assert_eq!(check_at(&server, "2026-11-10T11:00:00Z").await, (0, 1));
    assert_eq!(check_at(&server, "2026-11-10T13:00:00Z").await, (1, 0));
    assert_eq!(silences(&server, "acme").await, [("2026-11-10".into(), 2, true)]);
    server.stop().await;
}

#[tokio::test]
async fn nobody_is_silent_while_the_rule_is_off_and_a_client_that_never_sent_is_not() {
    let server = server_at("2026-11-10T08:00:00Z").await;
    server.create_client_in_zone("quiet", "UTC").await;
    send(&server, "acme", "2026-11-10T08:00:00Z").await;
    send(&server, "old", "2026-08-20T08:00:00Z").await;
    send(&server, "voided", "2026-11-09T08:00:00Z").await;
    assert_eq!(check_at(&server, "2026-11-30T08:00:00Z").await, (0, 0));

    let request = ListUsageEventsRequest { client_id: "voided".into(), ..Default::default() };
    let mut listed = server.usage().list_usage_events(request).await.unwrap().into_inner().events;
    let event_id = listed.remove(0).event_id;
    let events = vec![EventReference { event_id, ..Default::default() }];
    let request =
        VoidUsageRequest { client_id: "voided".into(), events, reason: "a test".into(), ..Default::default() };
    server.usage().void_usage(request).await.unwrap();

    watch(&server, "", 24).await;
    assert_eq!(check_at(&server, "2026-11-30T09:00:00Z").await, (2, 0));
    assert_eq!(silences(&server, "acme").await, [("2026-11-10".into(), 1, true)]);
    assert_eq!(silences(&server, "old").await, [("2026-08-20".into(), 1, true)]);
    for client in ["quiet", "voided"] {
        assert_eq!(silences(&server, client).await, [], "{client}");
    }
    // A client can be left out, and its alert is resolved at once. The others end with the rule.
    let off = AlertPolicy { client_id: "acme".into(), silence_enabled: Some(false), ..Default::default() };
    try_update(&server, off, &["silence_enabled"]).await.unwrap();
    assert_eq!(silences(&server, "acme").await, [("2026-11-10".into(), 1, false)]);
    try_update(&server, AlertPolicy::default(), &["silence_enabled"]).await.unwrap();
    assert_eq!(check_at(&server, "2026-11-30T10:00:00Z").await, (0, 1));
    assert_eq!(silences(&server, "old").await, [("2026-08-20".into(), 1, false)]);
    server.stop().await;
}

#[tokio::test]
async fn a_longer_line_resolves_a_silence_and_a_removed_event_leaves_its_day() {
    let server = server_at("2026-11-30T08:00:00Z").await;
    send(&server, "acme", "2026-09-02T08:00:00Z").await;
    send(&server, "removed", "2026-09-02T08:00:00Z").await;
    server.sql("DELETE FROM usage_events WHERE client_id = 'removed'").await;
    watch(&server, "", 24).await;
    assert_eq!(check_at(&server, "2026-11-30T09:00:00Z").await, (2, 0));
    let message = alerts(&server, "removed").await.remove(0).message;
    assert!(message.contains("the last one was on 2 September 2026. The threshold is 24 hours."), "{message}");
    assert_eq!(check_at(&server, "2026-11-30T10:00:00Z").await, (0, 0));
    watch(&server, "", 8_760).await;
    assert_eq!(check_at(&server, "2026-11-30T11:00:00Z").await, (0, 2));
    assert_eq!(check_at(&server, "2027-09-02T07:00:00Z").await, (0, 0));
    assert_eq!(check_at(&server, "2027-09-02T08:00:00Z").await, (1, 0));
    // The time of the removed event is not known. It was on this day in any time zone.
    assert_eq!(check_at(&server, "2027-09-04T00:00:00Z").await, (1, 0));
    server.stop().await;
}

#[tokio::test]
async fn concurrent_checks_of_two_replicas_raise_each_silence_once() {
    let first = server_at("2026-11-10T08:00:00Z").await;
    let second = TestServer::replica(&first.database_url, &[], first.clock.clone()).await;
    for client in 0..8 {
        send(&first, &format!("client-{client}"), "2026-11-01T08:00:00Z").await;
        send(&first, &format!("old-{client}"), "2026-08-20T08:00:00Z").await;
    }
    watch(&first, "", 24).await;
    let mut checks = JoinSet::new();
    for number in 0..6 {
        let mut alerts = [&first, &second][number % 2].alerts();
        checks.spawn(async move { alerts.check_alerts(CheckAlertsRequest::default()).await.unwrap().into_inner() });
    }
    let raised: i64 = checks.join_all().await.iter().map(|report| report.raised_count).sum();
    assert_eq!(raised, 16);
    let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM alert_feed").fetch_one(&first.pool).await.unwrap();
    assert_eq!(rows, 16);
    first.stop().await;
    second.stop().await;
}
