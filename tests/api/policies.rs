//! Alert policies: the default policy, overrides of clients, and when changes take effect.

use crate::alerts::{alerts, assert_sets_match, kinds, metered, server_at};
use crate::harness::*;
use meterd::proto::*;
use prost_types::FieldMask;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;
use tokio::task::JoinSet;
use tonic::{Code, Status};

async fn policy(server: &TestServer, client_id: &str) -> AlertPolicy {
    let request = GetAlertPolicyRequest { client_id: client_id.into() };
    server.alerts().get_alert_policy(request).await.unwrap().into_inner().policy.unwrap()
}

/// Sends a policy with these fields in the mask.
pub async fn try_update(server: &TestServer, policy: AlertPolicy, paths: &[&str]) -> Result<AlertPolicy, Status> {
    let paths = paths.iter().map(|path| path.to_string()).collect();
    let request = UpdateAlertPolicyRequest { policy: Some(policy), update_mask: Some(FieldMask { paths }) };
    Ok(server.alerts().update_alert_policy(request).await?.into_inner().policy.unwrap())
}

async fn update(server: &TestServer, policy: AlertPolicy, paths: &[&str]) -> AlertPolicy {
    try_update(server, policy, paths).await.unwrap()
}

/// Returns a policy with these thresholds.
fn lines(client_id: &str, warning: &str, critical: &str) -> AlertPolicy {
    AlertPolicy {
        client_id: client_id.into(),
        monthly_warning: Some(warning.into()),
        monthly_critical: Some(critical.into()),
        ..Default::default()
    }
}

const LINES: [&str; 2] = ["monthly_warning", "monthly_critical"];

fn webhook(target: &str) -> NotificationChannel {
    let kind = NotificationChannelKind::Webhook.into();
    NotificationChannel { kind, target: target.into(), ..Default::default() }
}

#[tokio::test]
async fn a_client_has_the_default_policy_with_its_overrides() {
    let server = server_at("2026-11-02T12:00:00Z").await;
    server.create_client_in_zone("acme", "UTC").await;
    let default = policy(&server, "").await;
    assert_eq!(default.monthly_warning(), "50");
    assert_eq!(default.monthly_critical(), "100");
    assert_eq!((default.spike_warning_percent(), default.spike_critical_percent()), ("50", "100"));
    assert_eq!((default.spike_baseline_min(), default.projection_factor()), ("1", "1.5"));
    assert_eq!((default.projection_first_day(), default.anomaly_factor()), (3, "3"));
    assert!(default.threshold_enabled() && default.anomaly_enabled() && default.update_time.is_none());
    assert!(default.unpriced_enabled() && !default.silence_enabled());
    assert_eq!((default.unpriced_events_min(), default.silence_hours()), (1, 24));

    let own = update(&server, lines("acme", "5.50", "20"), &LINES).await;
    assert_eq!((own.monthly_warning(), own.monthly_critical(), own.spike_baseline_min()), ("5.5", "20", "1"));
    assert_eq!(own.overridden_fields.as_ref().unwrap().paths, ["monthly_critical", "monthly_warning"]);
    assert!(own.update_time.is_some());
    assert_eq!(policy(&server, "acme").await, own);

    // A changed default applies to the client except for its overrides.
    let default = AlertPolicy {
        monthly_critical: Some("500".into()),
        spike_baseline_min: Some("7".into()),
        ..Default::default()
    };
    update(&server, default, &["monthly_critical", "spike_baseline_min"]).await;
    let own = policy(&server, "acme").await;
    assert_eq!((own.monthly_critical(), own.spike_baseline_min()), ("20", "7"));
    // A named field without a value is reset to the default.
    let only_id = AlertPolicy { client_id: "acme".into(), ..Default::default() };
    let own = update(&server, only_id, &["monthly_critical"]).await;
    assert_eq!((own.monthly_critical(), own.monthly_warning()), ("500", "5.5"));
    assert_eq!(own.overridden_fields.unwrap().paths, ["monthly_warning"]);
}

#[tokio::test]
async fn a_clients_policy_is_evaluated_at_once_and_the_default_by_the_next_check() {
    let server = server_at("2026-11-02T12:00:00Z").await;
    for client in ["acme", "globex"] {
        server.track(event(client, "metered", "30")).await.unwrap();
    }
    assert_eq!(kinds(&server, "acme").await, [""; 0]);
    update(&server, lines("acme", "10", "20"), &LINES).await;
    assert_eq!(kinds(&server, "acme").await, ["2026-11 THRESHOLD CRITICAL"]);
    // The threshold is no longer reached: the alert is resolved, and no warning follows the critical alert.
    update(&server, lines("acme", "10", "40"), &LINES).await;
    let resolved = &alerts(&server, "acme").await[0];
    assert!(resolved.resolve_time.is_some());
    assert_eq!(kinds(&server, "acme").await, ["2026-11 THRESHOLD CRITICAL"]);
    // The threshold is reached again: the same alert is raised again.
    server.track(event("acme", "metered", "15")).await.unwrap();
    let again = &alerts(&server, "acme").await[0];
    assert_eq!((&again.alert_id, again.raise_count, again.resolve_time), (&resolved.alert_id, 2, None));
    assert_eq!(again.current, "45");
    assert_sets_match(&server).await;

    update(&server, lines("", "1", "25"), &LINES).await;
    assert_eq!(kinds(&server, "globex").await, [""; 0]);
    let request = CheckAlertsRequest::default();
    let report = server.alerts().check_alerts(request).await.unwrap().into_inner();
    assert_eq!((report.checked_count, report.raised_count), (2, 1));
    assert_eq!(kinds(&server, "globex").await, ["2026-11 THRESHOLD CRITICAL"]);
    let changes: Vec<i16> =
        sqlx::query_scalar("SELECT change FROM alert_feed ORDER BY sequence").fetch_all(&server.pool).await.unwrap();
    assert_eq!(changes, [1, 3, 1, 1]);
}

#[tokio::test]
async fn a_disabled_rule_raises_nothing_for_its_client_only() {
    let server = server_at("2026-11-02T12:00:00Z").await;
    server.create_client_in_zone("acme", "UTC").await;
    let off = AlertPolicy { client_id: "acme".into(), threshold_enabled: Some(false), ..Default::default() };
    update(&server, off, &["threshold_enabled"]).await;
    for client in ["acme", "globex"] {
        server.track(event(client, "metered", "200")).await.unwrap();
    }
    assert_eq!(kinds(&server, "acme").await, [""; 0]);
    assert_eq!(kinds(&server, "globex").await, ["2026-11 THRESHOLD CRITICAL"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_policy_applies_to_every_commit_after_its_call_on_both_replicas() {
    // Each client gets one event of 60. The warning threshold is 50 before the change and 70 after it. Clients whose
    // events were sent after the call returned get no alert; clients whose events were acknowledged before the call
    // started get one.
    let first = server_at("2026-11-02T12:00:00Z").await;
    let second = TestServer::replica(&first.database_url, &[], first.clock.clone()).await;
    let state = Arc::new(AtomicU8::new(0));
    let mut writers = JoinSet::new();
    for writer in 0..16 {
        let server = if writer % 2 == 0 { &first } else { &second };
        let (mut usage, state) = (server.usage(), state.clone());
        writers.spawn(async move {
            let mut seen = vec![];
            while state.load(Ordering::SeqCst) < 3 {
                let client_id = format!("{writer}-{}", seen.len());
                let sent = state.load(Ordering::SeqCst);
                let request = TrackUsageRequest { event: Some(event(&client_id, "metered", "60")) };
                usage.track_usage(request).await.unwrap();
                seen.push((client_id, sent, state.load(Ordering::SeqCst)));
            }
            seen
        });
    }
    tokio::time::sleep(Duration::from_millis(400)).await;
    state.store(1, Ordering::SeqCst);
    update(&first, lines("", "70", "100"), &LINES).await;
    state.store(2, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_millis(400)).await;
    state.store(3, Ordering::SeqCst);
    let seen = writers.join_all().await.concat();
    let alerted: std::collections::HashSet<String> =
        sqlx::query_scalar("SELECT client_id FROM alerts").fetch_all(&first.pool).await.unwrap().into_iter().collect();
    let (mut before, mut after) = (0, 0);
    for (client_id, sent, acknowledged) in &seen {
        if *acknowledged == 0 {
            assert!(alerted.contains(client_id), "{client_id}");
            before += 1;
        }
        if *sent >= 2 {
            assert!(!alerted.contains(client_id), "{client_id}");
            after += 1;
        }
    }
    assert!(before > 0 && after > 0);
    println!("{} events on 2 replicas: {before} before the change all alerted, {after} after it none", seen.len());
}

#[tokio::test]
async fn a_policy_update_waits_for_batches_that_use_the_old_policy() {
    let server = server_at("2026-11-02T12:00:00Z").await;
    server.track(event("acme", "metered", "30")).await.unwrap();
    // The batch has read the old policy and waits for this row. The first batch of a replica is not recorded in one call, which would
    // be repeated because it reaches the threshold.
    let mut holder = server.pool.begin().await.unwrap();
    sqlx::query("SELECT 1 FROM usage_months FOR UPDATE").execute(&mut *holder).await.unwrap();
    let replica = TestServer::replica(&server.database_url, &[], server.clock.clone()).await;
    let mut usage = replica.usage();
    let batch = tokio::spawn(async move {
        usage.track_usage(TrackUsageRequest { event: Some(event("acme", "metered", "30")) }).await.unwrap();
    });
    let waiting = async |count: u64| {
        let waits = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
        server.sql(waits).await == count
    };
    wait_until(async || waiting(1).await).await;
    let mut service = server.alerts();
    let paths = LINES.map(String::from).into();
    let policy = Some(lines("", "1000", "2000"));
    let request = UpdateAlertPolicyRequest { policy, update_mask: Some(FieldMask { paths }) };
    let update = tokio::spawn(async move { service.update_alert_policy(request).await.unwrap() });
    wait_until(async || waiting(2).await || update.is_finished()).await;
    assert!(!update.is_finished() && !batch.is_finished());
    holder.commit().await.unwrap();
    batch.await.unwrap();
    update.await.unwrap();
    assert_eq!(kinds(&server, "acme").await, ["2026-11 THRESHOLD WARNING"]);
}

#[tokio::test]
async fn channels_are_replaced_completely_and_their_keys_shown_once() {
    let server = server_at("2026-11-02T12:00:00Z").await;
    let one = AlertPolicy { channels: vec![webhook("https://example.com/a")], ..Default::default() };
    let created = update(&server, one.clone(), &["channels"]).await;
    let secret = created.channels[0].secrets[0].clone();
    assert!(secret.starts_with("whsec_"));
    assert_eq!((created.channels[0].min_severity(), created.channels[0].secret_count), (AlertSeverity::Critical, 1));
    assert!(policy(&server, "").await.channels[0].secrets.is_empty());
    // If the channel is sent again without a key, its key stays and is not shown.
    let mut two = one.clone();
    two.channels.push(webhook("https://example.com/b"));
    let both = update(&server, two, &["channels"]).await;
    assert!(both.channels[0].secrets.is_empty() && both.channels[1].secrets.len() == 1);
    let kept: Vec<String> = sqlx::query_scalar("SELECT secrets[1] FROM notification_channels ORDER BY channel_id")
        .fetch_all(&server.pool)
        .await
        .unwrap();
    assert_eq!(kept[0], secret);
    // A new key in addition to the old one, while the receiver changes its configuration.
    let new = format!("whsec_{}", "A".repeat(32));
    let rotated = NotificationChannel { secrets: vec![new, secret], ..webhook("https://example.com/a") };
    let policy = AlertPolicy { channels: vec![rotated], ..Default::default() };
    let rotated = update(&server, policy, &["channels"]).await;
    assert_eq!((rotated.channels.len(), rotated.channels[0].secret_count), (1, 2));
    assert!(rotated.channels[0].secrets.is_empty());
}

#[tokio::test]
async fn a_generated_key_is_returned_although_the_policy_cannot_be_evaluated_at_once() {
    let server = server_at("2026-11-02T12:00:00Z").await;
    server.track(event("acme", "metered", "30")).await.unwrap();
    // A transaction locks the client's month for longer than a call waits.
    let mut tx = server.pool.begin().await.unwrap();
    sqlx::query("SELECT 1 FROM usage_months FOR UPDATE").execute(&mut *tx).await.unwrap();
    let channels = vec![webhook("https://example.com/a")];
    let policy = AlertPolicy { channels, ..lines("acme", "5", "10") };
    let held = update(&server, policy, &["monthly_warning", "monthly_critical", "channels"]).await;
    assert_eq!(held.channels[0].secrets.len(), 1);
    tx.commit().await.unwrap();
    // The job for all clients evaluates it later.
    wait_until(async || kinds(&server, "acme").await == ["2026-11 THRESHOLD CRITICAL"]).await;
}

#[tokio::test]
async fn a_default_that_contradicts_a_clients_threshold_does_not_block_other_changes() {
    let server = server_at("2026-11-02T12:00:00Z").await;
    server.create_client_in_zone("acme", "UTC").await;
    update(&server, lines("", "50", "500"), &LINES).await;
    let warning = AlertPolicy { monthly_critical: None, ..lines("acme", "200", "") };
    update(&server, warning, &["monthly_warning"]).await;
    update(&server, lines("", "50", "100"), &LINES).await;
    let off = AlertPolicy { client_id: "acme".into(), spike_enabled: Some(false), ..Default::default() };
    update(&server, off, &["spike_enabled"]).await;
    // The client's critical threshold applies, and its warning threshold is above it.
    server.track(event("acme", "metered", "150")).await.unwrap();
    server.track(event("acme", "metered", "150")).await.unwrap();
    assert_eq!(kinds(&server, "acme").await, ["2026-11 THRESHOLD CRITICAL"]);
}

#[tokio::test]
async fn every_value_of_a_policy_has_its_effect() {
    let server = server_at("2026-11-02T12:00:00Z").await;
    for (client, october) in [("early", "0.5"), ("late", "0.5")] {
        server.track(event_at(client, "metered", october, "2026-10-20T12:00:00Z")).await.unwrap();
    }
    let early = AlertPolicy {
        client_id: "early".into(),
        projection_first_day: Some(2),
        projection_factor: Some("0.5".into()),
        spike_baseline_min: Some("0.5".into()),
        spike_warning_percent: Some("1000".into()),
        spike_critical_percent: Some("5000".into()),
        ..Default::default()
    };
    let paths = [
        "projection_first_day",
        "projection_factor",
        "spike_baseline_min",
        "spike_warning_percent",
        "spike_critical_percent",
    ];
    update(&server, early, &paths).await;
    // 6 × 30 ÷ 2 = 90 is at least 0.5 × 100, and 1,100 % above 0.5.
    for client in ["early", "late"] {
        server.track(event(client, "metered", "6")).await.unwrap();
    }
    assert_eq!(kinds(&server, "early").await, ["2026-11 PROJECTION WARNING", "2026-11 SPIKE WARNING"]);
    assert_eq!(kinds(&server, "late").await, [""; 0]);
}

#[tokio::test]
async fn contradictions_and_wrong_values_are_reported_with_the_field() {
    let server = server_at("2026-11-02T12:00:00Z").await;
    metered(&server, "other").await;
    server.create_client_in_zone("acme", "UTC").await;
    let wrong = async |policy: AlertPolicy, paths: &[&str], fields: &[&str]| {
        let result = try_update(&server, policy, paths).await;
        let message = result.as_ref().unwrap_err().message().to_string();
        assert_invalid(result, "INVALID_FIELD", fields);
        message
    };
    let reported = wrong(lines("acme", "200", "100"), &LINES, &["policy.monthly_warning"]).await;
    assert_eq!(reported, "policy.monthly_warning: must be at most monthly_critical, which is 100");
    // Compared with a value that the request does not contain, but the policy does.
    let reported = wrong(lines("acme", "", "20"), &["monthly_critical"], &["policy.monthly_critical"]).await;
    assert_eq!(reported, "policy.monthly_critical: must be at least monthly_warning, which is 50");
    for value in ["NaN", "-1", "1e3", "inf", "", "0.0000000000001"] {
        wrong(lines("", value, "100"), &["monthly_warning"], &["policy.monthly_warning"]).await;
    }
    let many = AlertPolicy {
        projection_factor: Some("0".into()),
        projection_first_day: Some(32),
        anomaly_factor: Some("x".into()),
        unpriced_events_min: Some(0),
        silence_hours: Some(8_761),
        ..Default::default()
    };
    let paths = [
        "projection_factor",
        "projection_first_day",
        "anomaly_factor",
        "unpriced_events_min",
        "silence_hours",
        "everything",
    ];
    let fields = [
        "policy.projection_factor",
        "policy.projection_first_day",
        "policy.anomaly_factor",
        "policy.unpriced_events_min",
        "policy.silence_hours",
        "update_mask",
    ];
    wrong(many, &paths, &fields).await;
    wrong(AlertPolicy::default(), &[], &["update_mask"]).await;
    wrong(AlertPolicy::default(), &["monthly_warning"; 101], &["update_mask"]).await;
    let update_mask = Some(FieldMask { paths: vec!["monthly_warning".into()] });
    let nobodys = server.alerts().update_alert_policy(UpdateAlertPolicyRequest { policy: None, update_mask }).await;
    assert_invalid(nobodys, "INVALID_FIELD", &["policy"]);

    let channels = [
        webhook("http://example.com/a"),
        webhook("https://127.0.0.1/a"),
        webhook("https://[::ffff:10.0.0.1]/a"),
        webhook("https://user:password@example.com/"),
        webhook(""),
        NotificationChannel { target: "x".into(), ..Default::default() },
        NotificationChannel { kind: 1, target: "nobody".into(), ..Default::default() },
        NotificationChannel { kind: 2, target: "12".into(), ..Default::default() },
        NotificationChannel { secrets: vec!["short".into()], ..webhook("https://example.com/a") },
        webhook("https://example.com/a"),
    ];
    let wrong_ones =
        ["0].target", "1].target", "2].target", "3].target", "4].target", "5].kind", "6].target", "7].target"];
    let fields: Vec<String> = wrong_ones
        .into_iter()
        .chain(["8].secrets[0]", "9].target"])
        .map(|field| format!("policy.channels[{field}"))
        .collect();
    let policy = AlertPolicy { channels: channels.into(), ..Default::default() };
    wrong(policy, &["channels"], &fields.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let nobody = try_update(&server, lines("nobody", "1", "2"), &LINES).await;
    assert_error(nobody, Code::NotFound, "CLIENT_NOT_FOUND");
}

#[tokio::test]
async fn missing_alerts_and_wrong_filters_have_documented_errors() {
    let server = server_at("2026-11-02T12:00:00Z").await;
    let mut service = server.alerts();
    let unknown = GetAlertRequest { alert_id: "none".into() };
    assert_error(service.get_alert(unknown).await, Code::NotFound, "ALERT_NOT_FOUND");
    let unknown = AcknowledgeAlertRequest { alert_id: "none".into(), acknowledged_by: "ann".into() };
    assert_error(service.acknowledge_alert(unknown).await, Code::NotFound, "ALERT_NOT_FOUND");
    let nothing = service.acknowledge_alert(AcknowledgeAlertRequest::default()).await;
    assert_invalid(nothing, "INVALID_FIELD", &["alert_id", "acknowledged_by"]);
    let wrong = ListAlertsRequest {
        client_ids: vec!["a\u{0}".into()],
        types: vec![0, 9],
        min_severity: 7,
        page_size: -1,
        ..Default::default()
    };
    let fields = ["client_ids[0]", "types[0]", "types[1]", "min_severity", "page_size"];
    assert_invalid(service.list_alerts(wrong).await, "INVALID_FIELD", &fields);
    let too_many = ListAlertsRequest { types: vec![1; 101], ..Default::default() };
    assert_invalid(service.list_alerts(too_many).await, "INVALID_FIELD", &["types"]);
    let too_many = ListNotificationsRequest { states: vec![1; 101], ..Default::default() };
    assert_invalid(service.list_notifications(too_many).await, "INVALID_FIELD", &["states"]);
    let forged = ListAlertsRequest { page_token: "x".into(), ..Default::default() };
    assert_invalid(service.list_alerts(forged).await, "PAGE_TOKEN_INVALID", &["page_token"]);
    let nobody = CheckAlertsRequest { client_id: "nobody".into() };
    assert_error(service.check_alerts(nobody).await, Code::NotFound, "CLIENT_NOT_FOUND");
    let nobody = GetAlertPolicyRequest { client_id: "nobody".into() };
    assert_error(service.get_alert_policy(nobody).await, Code::NotFound, "CLIENT_NOT_FOUND");
}
