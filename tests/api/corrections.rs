//! Voided, corrected and repriced events: their sums, alerts and adjustments.

use crate::commands::{meterd, succeed};
use crate::harness::*;
use crate::key_server::{KeyServer, usage_as};
use meterd::proto::*;
use meterd_domain::access::Scope;
use meterd_engine::clock::Clock;
use prost_types::value::Kind;
use prost_types::{FieldMask, Struct, Value};
use rand::RngExt;
use rand::seq::IndexedRandom;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tonic::{Code, Status};

const NOW: &str = "2026-11-21T12:00:00Z";

async fn november() -> TestServer {
    TestServer::start_with(&[], Clock::fixed(time(NOW))).await
}

fn by_id(event_id: &str) -> EventReference {
    EventReference { event_id: event_id.into(), ..Default::default() }
}

fn by_key(key: &str) -> EventReference {
    EventReference { idempotency_key: key.into(), ..Default::default() }
}

fn keyed(key: &str, event: UsageEvent) -> UsageEvent {
    UsageEvent { idempotency_key: key.into(), ..event }
}

async fn void(server: &TestServer, events: Vec<EventReference>) -> Vec<AdjustmentResult> {
    let request =
        VoidUsageRequest { client_id: "acme".into(), events, reason: "sent twice".into(), request_id: request_id() };
    retried(|| {
        let (mut client, request) = (server.usage(), request.clone());
        async move { client.void_usage(request).await }
    })
    .await
    .results
}

fn request_id() -> String {
    format!("{:032x}", rand::random::<u128>())
}

/// Repeats a call with a request id while the server is too busy, as callers do.
async fn retried<T, F>(call: impl Fn() -> F) -> T
where
    F: Future<Output = Result<tonic::Response<T>, Status>>,
{
    loop {
        match call().await {
            Err(status) if status.code() == Code::Unavailable => tokio::time::sleep(Duration::from_millis(100)).await,
            result => return result.unwrap().into_inner(),
        }
    }
}

async fn correct(server: &TestServer, corrections: Vec<(EventReference, UsageEvent)>) -> Vec<AdjustmentResult> {
    let corrections = corrections.into_iter().map(|(event, corrected)| UsageCorrection {
        event: Some(event),
        corrected: Some(UsageEvent { client_id: String::new(), ..corrected }),
    });
    let request = CorrectUsageRequest {
        client_id: "acme".into(),
        corrections: corrections.collect(),
        reason: "delivered later".into(),
        request_id: request_id(),
    };
    retried(|| {
        let (mut client, request) = (server.usage(), request.clone());
        async move { client.correct_usage(request).await }
    })
    .await
    .results
}

fn reason(result: &AdjustmentResult) -> &str {
    result.error.as_ref().map_or("", |error| &error.reason)
}

async fn adjustments(server: &TestServer) -> Vec<Adjustment> {
    let request = ListAdjustmentsRequest { client_id: "acme".into(), page_size: 1_000, ..Default::default() };
    server.usage().list_adjustments(request).await.unwrap().into_inner().adjustments
}

async fn explain(server: &TestServer, event_id: &str) -> ExplainChargeResponse {
    let request = ExplainChargeRequest { client_id: "acme".into(), event_id: event_id.into() };
    server.usage().explain_charge(request).await.unwrap().into_inner()
}

async fn cost(server: &TestServer) -> String {
    server.month("acme").await.totals.unwrap().cost.unwrap().amount
}

/// Sets the lines at which alerts are raised.
async fn set_lines(server: &TestServer, warning: &str, critical: &str) {
    let policy = AlertPolicy {
        monthly_warning: Some(warning.into()),
        monthly_critical: Some(critical.into()),
        ..Default::default()
    };
    let paths = ["monthly_warning", "monthly_critical"].map(String::from).into();
    let request = UpdateAlertPolicyRequest { policy: Some(policy), update_mask: Some(FieldMask { paths }) };
    server.alerts().update_alert_policy(request).await.unwrap();
}

/// Returns the alerts about the cost of the month: severity, and whether they are resolved.
async fn threshold_alerts(server: &TestServer) -> Vec<(AlertSeverity, bool)> {
    let request = ListAlertsRequest { types: vec![AlertType::Threshold.into()], ..Default::default() };
    let alerts = server.alerts().list_alerts(request).await.unwrap().into_inner().alerts;
    let mut alerts: Vec<_> = alerts.into_iter().map(|alert| (alert.severity(), alert.resolve_time.is_some())).collect();
    alerts.sort_by_key(|(severity, _)| *severity as i32);
    alerts
}

async fn create_price(server: &TestServer, price: Price) -> String {
    let request = CreatePriceRequest { price: Some(price), confirm_high_rates: true, ..Default::default() };
    server.catalog().create_price(request).await.unwrap().into_inner().price.unwrap().price_id
}

/// Waits until a run has ended.
async fn ended(server: &TestServer, run_id: &str) -> GetRepriceRunResponse {
    let request = GetRepriceRunRequest { run_id: run_id.into(), page_size: 1_000, ..Default::default() };
    loop {
        let report = server.catalog().get_reprice_run(request.clone()).await.unwrap().into_inner();
        if report.run.as_ref().unwrap().finish_time.is_some() {
            return report;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn reprice(server: &TestServer, request: RepriceUsageRequest) -> GetRepriceRunResponse {
    let begun = server.catalog().reprice_usage(request).await.unwrap().into_inner().run.unwrap();
    ended(server, &begun.run_id).await
}

fn reprice_november(apply: bool) -> RepriceUsageRequest {
    RepriceUsageRequest {
        start_month: "2026-11".into(),
        end_month: "2026-11".into(),
        validate_only: !apply,
        reason: if apply { "mistyped price".into() } else { String::new() },
        ..Default::default()
    }
}

#[tokio::test]
async fn a_voided_event_counts_in_no_sum_and_its_alert_is_resolved() {
    let server = november().await;
    set_lines(&server, "1", "3").await;
    let first = server.track(keyed("k1", event("acme", "sms", "100"))).await.unwrap();
    let second = server.track(keyed("k2", event("acme", "sms", "400"))).await.unwrap();
    let call = UsageEvent {
        measures: [("pages".into(), "2".into())].into(),
        subject: "ann".into(),
        ..event("acme", "social", "1")
    };
    let unpriced = server.track(call).await.unwrap();
    assert_eq!((cost(&server).await.as_str(), server.month("acme").await.measures["pages"].as_str()), ("3.75", "2"));
    use AlertSeverity::Critical;
    assert_eq!(threshold_alerts(&server).await, [(Critical, false)]);

    let results = void(&server, vec![by_key("k2"), by_id(&unpriced.event_id), by_key("nothing")]).await;
    assert_eq!((&results[0].event_id, amount(&results[0].old_charge)), (&second.event_id, "3"));
    assert_eq!((&results[0].new_charge, reason(&results[0]), reason(&results[1])), (&None, "", ""));
    assert_eq!((reason(&results[2]), results[2].event_id.as_str()), ("EVENT_NOT_FOUND", ""));
    let month = server.month("acme").await;
    let totals = month.totals.unwrap();
    assert_eq!((totals.request_count, &*totals.units, totals.unpriced_event_count), (1, "100", 0));
    assert_eq!((totals.cost.unwrap().amount.as_str(), month.services.len(), month.measures.len()), ("0.75", 1, 0));
    assert_eq!(threshold_alerts(&server).await, [(Critical, true)]);
    server.assert_exact(1).await;
    let by_subject = QueryUsageRequest {
        start_date: "2026-11-01".into(),
        end_date: "2026-11-30".into(),
        count_subjects: true,
        ..Default::default()
    };
    assert_eq!(server.query(by_subject).await[0].totals.as_ref().unwrap().request_count, 1);

    // Again, by another name of the event.
    let again = void(&server, vec![by_id(&second.event_id), by_id(&first.event_id), by_key("k1")]).await;
    assert_eq!([reason(&again[0]), reason(&again[1]), reason(&again[2])], ["EVENT_VOIDED", "", "INVALID_FIELD"]);
    assert_eq!(
        correct(&server, vec![(by_key("k2"), event("acme", "sms", "1"))]).await[0].error.as_ref().unwrap().code,
        Code::FailedPrecondition as i32
    );
    // The event is still there, and a repeat is no new usage.
    let listed = ListUsageEventsRequest { client_id: "acme".into(), ..Default::default() };
    let listed = server.usage().list_usage_events(listed).await.unwrap().into_inner().events;
    assert!(listed.len() == 3 && listed.iter().all(|event| event.void_time.is_some()));
    let repeat = server.track(keyed("k2", event("acme", "sms", "400"))).await.unwrap();
    assert_eq!(repeat.outcome(), EventOutcome::Duplicate);
    assert_eq!((repeat.event_id, repeat.charge), (second.event_id.clone(), None), "a voided event has no charge");
    let shown = succeed(&server, &["track", "acme", "sms", "400", "--key", "k2"]).await;
    assert!(shown.contains("no charge  the event was voided"), "{shown}");
    let file = succeed(&server, &["export"]).await;
    assert_eq!(file.lines().filter(|line| line.contains(&second.event_id)).count(), 1);
    server.assert_exact(0).await;
    // A price that comes later does not charge a voided event.
    create_price(&server, unit_price("social", "", "5")).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    server.assert_exact(0).await;
    let explained = explain(&server, &second.event_id).await;
    assert!(explained.event.unwrap().void_time.is_some());
    assert_eq!(explained.adjustments[0].kind(), AdjustmentKind::Void);
    server.stop().await;
}

/// The first report of a message has one segment, the second one three. And a call was recorded with the wrong model.
#[tokio::test]
async fn a_corrected_event_has_the_charge_of_its_new_contents() {
    let server = november().await;
    let message = |units: &str| keyed("SM1", event("acme", "sms", units));
    let first = server.track(message("1")).await.unwrap();
    let call = UsageEvent { model: "gpt-4o".into(), ..keyed("call", model_call("acme", 1_000, 100)) };
    let call_id = server.track(call.clone()).await.unwrap().event_id;
    assert_eq!(server.track(message("3")).await.unwrap_err().code(), Code::AlreadyExists);
    let number = Value { kind: Some(Kind::NumberValue(1e20)) };
    let metadata = Some(Struct { fields: [("b".into(), number.clone()), ("a".into(), number)].into() });
    let cheaper = UsageEvent { model: "gpt-4o-mini".into(), subject: "ann".into(), metadata, ..call.clone() };
    let results = correct(&server, vec![(by_key("SM1"), message("3")), (by_id(&call_id), cheaper.clone())]).await;
    let charges: Vec<_> =
        results.iter().map(|result| (amount(&result.old_charge), amount(&result.new_charge), reason(result))).collect();
    assert_eq!(charges, [("0.0075", "0.0225", ""), ("0.0035", "0.00021", "")]);
    assert_eq!(cost(&server).await, "0.02271");
    server.assert_exact(2).await;
    // The same contents again change nothing, and the first contents are still those of the key.
    let same = vec![(by_key("SM1"), message("3.0")), (by_id(&call_id), cheaper)];
    assert!(correct(&server, same).await.iter().all(|result| result.error.is_none()));
    assert_eq!(server.track(message("1")).await.unwrap().outcome(), EventOutcome::Duplicate);
    let adjusted = adjustments(&server).await;
    let changes = |adjustment: &Adjustment| {
        let change = |change: &FieldChange| format!("{} {}>{}", change.field, change.old_value, change.new_value);
        adjustment.changes.iter().map(change).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(adjusted.len(), 2);
    let of = |event_id: &str| adjusted.iter().find(|adjustment| adjustment.event_id == event_id).unwrap();
    assert_eq!(changes(of(&first.event_id)), "units 1>3");
    let of_call = changes(of(&call_id));
    assert!(of_call.starts_with("metadata >{\"a\":") && of_call.ends_with(" model gpt-4o>gpt-4o-mini subject >ann"));
    assert_eq!((of(&call_id).number, of(&call_id).reason.as_str()), (1, "delivered later"));

    // To another service without a price, and back.
    let other =
        UsageEvent { service: "social".into(), measures: [("pages".into(), "2".into())].into(), ..message("1") };
    let unpriced = correct(&server, vec![(by_key("SM1"), other)]).await;
    assert_eq!((unpriced[0].unpriced_reason(), &unpriced[0].new_charge), (UnpricedReason::NoPrice, &None));
    let month = server.month("acme").await;
    assert_eq!((month.totals.unwrap().unpriced_event_count, month.measures["pages"].as_str()), (1, "2"));
    server.assert_exact(2).await;
    correct(&server, vec![(by_key("SM1"), message("2"))]).await;
    assert!(server.month("acme").await.measures.is_empty());
    assert_eq!(cost(&server).await, "0.01521");
    server.assert_exact(2).await;
    let explained = explain(&server, &first.event_id).await;
    assert_eq!(amount(&explained.event.unwrap().charge), "0.015");
    assert_eq!(
        (explained.components[0].component.as_str(), explained.components[0].amount.as_str()),
        ("unit", "0.015")
    );
    let numbers: Vec<_> = explained.adjustments.iter().map(|adjustment| adjustment.number).collect();
    assert_eq!(numbers, [1, 2, 3]);
    let shown = succeed(&server, &["explain", "acme", &first.event_id]).await;
    assert!(shown.contains("charge 0.015 USD") && shown.contains("units 1 to 3: delivered later"), "{shown}");
    let reason = ["--reason", "recount"];
    let arguments = ["correct", "acme", &first.event_id, "--units", "4", "--subject", "bob"];
    let printed = succeed(&server, &[&arguments[..], &reason].concat()).await;
    assert!(printed.ends_with("corrected, charge 0.015 USD is now 0.03 USD\n"), "{printed}");
    let repeated = meterd(&server, &[&arguments[..], &reason].concat()).await;
    let error = String::from_utf8_lossy(&repeated.stderr).into_owned();
    assert!(!repeated.status.success() && error.contains("has these values already"), "{error}");
    let arguments = ["correct", "acme", &first.event_id, "--units=2", "--subject=", "--measure=pages=2", "--json"];
    let printed = meterd(&server, &[&arguments[..], &reason].concat()).await;
    let printed: serde_json::Value = serde_json::from_slice(&printed.stdout).unwrap();
    assert_eq!((&printed["old_charge"], &printed["new_charge"]), (&"0.03".into(), &serde_json::Value::Null));
    correct(&server, vec![(by_key("SM1"), message("2"))]).await;
    server.assert_exact(2).await;
    let listed = succeed(&server, &["adjustments", "acme", "--limit", "1"]).await;
    assert!(listed.contains("corrected: ") && listed.contains("there are newer adjustments"), "{listed}");
    let listed = succeed(&server, &["adjustments", "acme", "--event", &first.event_id, "--json"]).await;
    let json: Vec<serde_json::Value> = listed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(
        (json.len(), &json[0]["newCharge"], &json[0]["changes"]["units"][1]),
        (6, &"0.0225".into(), &"3".into())
    );
    assert_eq!(succeed(&server, &["adjustments", "acme", "--run", "7"]).await, "no adjustments\n");
    server.stop().await;
}

#[tokio::test]
async fn an_event_is_named_by_its_external_id_if_only_one_that_counts_has_it() {
    let server = november().await;
    let message = |id: &str| UsageEvent { external_id: id.into(), ..event("acme", "sms", "1") };
    let by = |id: &str| EventReference { external_id: id.into(), ..Default::default() };
    let first = server.track(message("SM1")).await.unwrap();
    server.batch(vec![message("SM2"), message("SM2"), event("acme", "sms", "1")], false).await;
    let other = UsageEvent { client_id: "other".into(), ..message("SM3") };
    server.track(other).await.unwrap();
    let old = UsageEvent { event_time: Some(timestamp("2026-10-01T12:00:00Z")), ..message("SM4") };
    server.batch(vec![old], true).await;
    // The delivery report of a message says that it had three segments.
    let three = UsageEvent { external_id: "SM1".into(), ..event("acme", "sms", "3") };
    let results = correct(&server, vec![(by("SM1"), three)]).await;
    assert_eq!((&results[0].event_id, amount(&results[0].new_charge)), (&first.event_id, "0.0225"));
    let results = void(&server, vec![by("SM1"), by("SM2"), by("SM3"), by("SM4"), by("")]).await;
    let reasons: Vec<&str> = results.iter().map(reason).collect();
    assert_eq!(reasons, ["", "INVALID_FIELD", "EVENT_NOT_FOUND", "EVENT_NOT_FOUND", "INVALID_FIELD"]);
    let message_of = |at: usize| results[at].error.as_ref().unwrap().message.clone();
    assert!(message_of(1).contains("2 events have the external_id \"SM2\""), "{}", message_of(1));
    assert_eq!(reason(&void(&server, vec![by("SM1")]).await[0]), "EVENT_VOIDED");
    server.assert_exact(5).await;
    server.stop().await;
}

#[tokio::test]
async fn a_price_that_comes_later_continues_the_adjustments_of_a_corrected_event() {
    let server = november().await;
    let message = |units: &str| keyed("k", event("acme", "social", units));
    let event_id = server.track(message("1")).await.unwrap().event_id;
    server.track(event("acme", "social", "5")).await.unwrap();
    correct(&server, vec![(by_key("k"), message("3"))]).await;
    let price = create_price(&server, unit_price("social", "", "2")).await;
    wait_until(async || cost(&server).await == "16").await;
    server.assert_exact(2).await;
    let adjustments = adjustments(&server).await;
    let kinds: Vec<_> = adjustments.iter().map(|of| (of.kind(), of.number, &*of.event_id, &*of.new_price_id)).collect();
    let expected =
        [(AdjustmentKind::Correction, 1, &*event_id, ""), (AdjustmentKind::LatePrice, 2, &*event_id, &*price)];
    assert_eq!(kinds, expected, "the other event has no adjustments");
    correct(&server, vec![(by_key("k"), message("4"))]).await;
    assert_eq!(cost(&server).await, "18");
    server.assert_exact(2).await;
    server.stop().await;
}

/// Three clients in a run: each has its own line of alerts, and the second run goes back.
#[tokio::test]
async fn a_run_over_many_clients_raises_and_resolves_the_alerts_of_each() {
    let server = november().await;
    set_lines(&server, "100", "150").await;
    let mut price = create_price(&server, unit_price("social", "", "1")).await;
    for client in ["acme", "beta", "gamma", "quiet"] {
        let service = if client == "quiet" { "sms" } else { "social" };
        server.batch(vec![event(client, service, "30"); 3], false).await;
    }
    for (rate, is_resolved) in [("2", false), ("1", true)] {
        server.catalog().retire_price(RetirePriceRequest { price_id: price, end_time: None }).await.unwrap();
        price = create_price(&server, unit_price("social", "", rate)).await;
        let run = reprice(&server, reprice_november(true)).await.run.unwrap();
        assert_eq!((run.examined_count, run.changed_count), (12, 9));
        use AlertSeverity::Critical;
        assert_eq!(threshold_alerts(&server).await, [(Critical, is_resolved); 3]);
        server.assert_exact(12).await;
    }
    let report = reprice(&server, reprice_november(false)).await;
    assert_eq!((report.run.unwrap().changed_count, report.differences.len()), (0, 0));
    server.stop().await;
}

#[tokio::test]
async fn wrong_corrections_are_rejected_one_by_one_with_their_fields() {
    let server = november().await;
    let recorded = server.track(keyed("k", event("acme", "sms", "1"))).await.unwrap();
    server.track(keyed("other", event("beta", "sms", "1"))).await.unwrap();
    let good = event("acme", "sms", "2");
    let with =
        |event: Option<EventReference>, corrected: UsageEvent| UsageCorrection { event, corrected: Some(corrected) };
    let of_key = || Some(by_key("k"));
    let moved = UsageEvent { event_time: Some(timestamp("2026-11-20T12:00:00Z")), ..good.clone() };
    let corrections = vec![
        with(None, good.clone()),
        with(
            Some(EventReference {
                event_id: recorded.event_id.clone(),
                idempotency_key: "k".into(),
                ..Default::default()
            }),
            good.clone(),
        ),
        with(Some(by_key("other")), good.clone()),
        with(Some(by_id("00000000000000000000000000000000")), good.clone()),
        with(of_key(), UsageEvent { units: "-1".into(), ..good.clone() }),
        with(of_key(), good.clone()),
    ];
    let run = async |corrections: Vec<UsageCorrection>| {
        let request =
            CorrectUsageRequest { client_id: "acme".into(), corrections, reason: "r".into(), ..Default::default() };
        server.usage().correct_usage(request).await.unwrap().into_inner().results
    };
    let shown = |result: &AdjustmentResult| {
        let error = result.error.clone().unwrap_or_default();
        let field = error.field_violations.first().map(|violation| violation.field.clone()).unwrap_or_default();
        (error.reason, field)
    };
    let invalid = |field: &str| ("INVALID_FIELD".to_owned(), field.to_owned());
    let results = run(corrections).await;
    let shown_results: Vec<_> = results.iter().map(shown).collect();
    let missing = || ("EVENT_NOT_FOUND".to_owned(), String::new());
    let expected = [
        invalid("corrections[0].event"),
        invalid("corrections[1].event"),
        missing(),
        missing(),
        invalid("corrections[4].corrected.units"),
        invalid("corrections"),
    ];
    assert_eq!(shown_results, expected, "the last one names an event of the list again");
    let changed = |field: &str| invalid(&format!("corrections[0].corrected.{field}"));
    for (corrected, expected) in [
        (UsageEvent { client_id: "beta".into(), ..good.clone() }, changed("client_id")),
        (keyed("x", good.clone()), changed("idempotency_key")),
        (moved, changed("event_time")),
        (
            UsageEvent { service: "nosuch".into(), ..good.clone() },
            ("UNKNOWN_SERVICE".to_owned(), "corrections[0].corrected.service".to_owned()),
        ),
    ] {
        let results = run(vec![with(of_key(), corrected)]).await;
        assert_eq!(shown(&results[0]), expected);
    }
    let many = VoidUsageRequest {
        client_id: "acme".into(),
        events: vec![by_key("k"); 1_001],
        reason: String::new(),
        ..Default::default()
    };
    let result = server.usage().void_usage(many).await;
    assert_invalid(result, "INVALID_FIELD", &["events"]);
    assert!(adjustments(&server).await.is_empty());
    server.assert_exact(2).await;
    let failed = meterd(&server, &["void", "acme", "nothing", "--reason", "r"]).await;
    assert!(!failed.status.success() && String::from_utf8_lossy(&failed.stdout).contains("EVENT_NOT_FOUND"));
    let voided = succeed(&server, &["void", "acme", "--key", "k", "--reason", "r"]).await;
    assert_eq!(voided, "k: voided, the charge of 0.0075 USD is gone\n");
    server.stop().await;
}

#[tokio::test]
async fn a_repeated_call_with_its_request_id_returns_the_first_results() {
    let server = november().await;
    server.track(keyed("k", event("acme", "sms", "1"))).await.unwrap();
    let request = VoidUsageRequest {
        client_id: "acme".into(),
        events: vec![by_key("k")],
        reason: "r".into(),
        request_id: "void-1".into(),
    };
    let first = server.usage().void_usage(request.clone()).await.unwrap().into_inner();
    assert_eq!(amount(&first.results[0].old_charge), "0.0075");
    assert_eq!(server.usage().void_usage(request.clone()).await.unwrap().into_inner(), first);
    let other = VoidUsageRequest { reason: "another".into(), ..request };
    assert_error(server.usage().void_usage(other).await, Code::AlreadyExists, "REQUEST_ID_REUSED");
    assert_eq!(adjustments(&server).await.len(), 1);
    server.assert_exact(0).await;
    server.stop().await;
}

#[tokio::test]
async fn ingest_keys_change_recent_events_of_their_clients_and_admin_keys_all() {
    let server = KeyServer::start().await;
    let ingest = server.key(Scope::Ingest, &["acme"]).await;
    let (admin, reader, stranger) = (
        server.key(Scope::Admin, &["acme"]).await,
        server.key(Scope::Read, &[]).await,
        server.key(Scope::Ingest, &["beta"]).await,
    );
    let now = server.server.clock.now();
    let at = |key: &str, days: i64| {
        let time = (now - chrono::TimeDelta::days(days)).to_rfc3339();
        keyed(key, event_at("acme", "sms", "1", &time))
    };
    let all = server.key(Scope::Ingest, &[]).await;
    let request =
        BatchTrackUsageRequest { events: vec![at("new", 1), at("old", 40)], backfill: true, ..Default::default() };
    usage_as(&server.server, &all).batch_track_usage(request).await.unwrap();
    let void = async |token: &crate::key_server::Token, key: &str| -> Result<String, Status> {
        let request = VoidUsageRequest {
            client_id: "acme".into(),
            events: vec![by_key(key)],
            reason: "r".into(),
            ..Default::default()
        };
        let results = usage_as(&server.server, token).void_usage(request).await?.into_inner().results;
        Ok(reason(&results[0]).to_owned())
    };
    assert_eq!(void(&reader, "new").await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(void(&stranger, "new").await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(void(&ingest, "old").await.unwrap(), "SCOPE_MISSING");
    assert_eq!(void(&ingest, "new").await.unwrap(), "");
    assert_eq!(void(&admin, "old").await.unwrap(), "");
    let request = ListAdjustmentsRequest { client_id: "acme".into(), ..Default::default() };
    let made = usage_as(&server.server, &reader).list_adjustments(request).await.unwrap().into_inner().adjustments;
    let mut actors: Vec<_> = made.iter().map(|adjustment| adjustment.actor.clone()).collect();
    actors.sort();
    let mut expected = [format!("2:{}", ingest.key_id), format!("2:{}", admin.key_id)];
    expected.sort();
    assert_eq!(actors, expected);
    server.server.assert_exact(0).await;
    server.server.stop().await;
}

#[tokio::test]
async fn events_of_closed_months_stay_as_they_are() {
    let server = TestServer::start_with(&["--retention-months=3"], Clock::fixed(time(NOW))).await;
    let old = keyed("old", event_at("acme", "sms", "1", "2026-03-15T12:00:00Z"));
    server.batch(vec![old, keyed("new", event("acme", "sms", "1"))], true).await;
    server.run_job("retention").await;
    let results = void(&server, vec![by_key("old"), by_key("new")]).await;
    // The partition of the closed month is detached, with its events.
    assert_eq!([reason(&results[0]), reason(&results[1])], ["EVENT_NOT_FOUND", ""]);
    let request = RepriceUsageRequest { start_month: "2026-03".into(), ..reprice_november(true) };
    assert_error(server.catalog().reprice_usage(request).await, Code::FailedPrecondition, "MONTH_CLOSED");
    server.stop().await;
}

/// Both replicas void the same events at the same time, with the same and with other calls.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_two_replicas_void_at_once_is_voided_once() {
    const EVENTS: usize = 60;
    let server = november().await;
    let other = TestServer::replica(&server.database_url, &[], Clock::fixed(time(NOW))).await;
    let keys: Vec<String> = (0..EVENTS).map(|number| format!("k{number}")).collect();
    server.batch(keys.iter().map(|key| keyed(key, event("acme", "sms", "1"))).collect(), false).await;
    let voided = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let all = |replica: &TestServer, size: usize| {
        let (channel, keys, voided) = (replica.usage(), keys.clone(), voided.clone());
        tokio::spawn(async move {
            for part in keys.chunks(size) {
                let events = part.iter().map(|key| by_key(key)).collect();
                let request =
                    VoidUsageRequest { client_id: "acme".into(), events, reason: "r".into(), ..Default::default() };
                let results = channel.clone().void_usage(request).await.unwrap().into_inner().results;
                let (done, refused): (Vec<_>, Vec<_>) = results.iter().partition(|result| result.error.is_none());
                assert!(refused.iter().all(|result| reason(result) == "EVENT_VOIDED"));
                voided.fetch_add(done.len(), Ordering::Relaxed);
            }
        })
    };
    for task in [all(&server, 1), all(&other, 1), all(&server, 7), all(&other, 7), all(&server, EVENTS)] {
        task.await.unwrap();
    }
    assert_eq!(voided.load(Ordering::Relaxed), EVENTS);
    assert_eq!(adjustments(&server).await.len(), EVENTS);
    server.assert_exact(0).await;
    other.stop().await;
    server.stop().await;
}

/// A price per million was sent as a price per token: a thousand events, an alert, and the way back.
#[tokio::test]
async fn a_mistyped_price_is_repaired_by_repricing_and_everything_is_explained() {
    let server = november().await;
    set_lines(&server, "1000", "1000000").await;
    let token_price = |rate: &str| {
        let rates =
            Rates { input_token: Some(rate.into()), output_token: Some("0.00001".into()), ..Default::default() };
        Price { service: "openai".into(), model: "gpt-9".into(), rates: Some(rates), ..Default::default() }
    };
    let wrong = create_price(&server, token_price("2.5")).await;
    let call = UsageEvent { model: "gpt-9".into(), ..model_call("acme", 1_000, 10) };
    let results = server.batch(vec![call; 1_000], false).await;
    server.track(event("acme", "sms", "1")).await.unwrap();
    assert_eq!(cost(&server).await, "2500000.1075");
    use AlertSeverity::Critical;
    assert_eq!(threshold_alerts(&server).await, [(Critical, false)]);
    server.catalog().retire_price(RetirePriceRequest { price_id: wrong.clone(), end_time: None }).await.unwrap();
    let right = create_price(&server, token_price("0.0000025")).await;

    let dry = reprice(&server, reprice_november(false)).await;
    let run = dry.run.unwrap();
    assert_eq!((run.event_count, run.examined_count, run.changed_count), (1_001, 1_001, 1_000));
    let row = &dry.differences[0];
    assert_eq!((&*row.client_id, &*row.service, &*row.model, row.event_count), ("acme", "openai", "gpt-9", 1_000));
    assert_eq!((amount(&row.old_cost), amount(&row.new_cost)), ("2500000.1", "2.6"));
    assert_eq!(cost(&server).await, "2500000.1075", "a dry run must change nothing");
    let shown = succeed(&server, &["prices", "reprice", "--month", "2026-11"]).await;
    assert!(shown.contains("1000 of 1001 events would be charged otherwise"), "{shown}");
    assert!(shown.contains("--apply --reason"), "{shown}");

    let shown = succeed(&server, &["prices", "reprice", "--month", "2026-11", "--apply", "--reason", "mistyped"]).await;
    assert!(shown.contains("1000 of 1001 events are charged otherwise"), "{shown}");
    assert_eq!(cost(&server).await, "2.6075");
    server.assert_exact(1_001).await;
    assert_eq!(threshold_alerts(&server).await, [(Critical, true)]);
    let explained = explain(&server, &results[0].event_id).await;
    let recorded = explained.event.unwrap();
    assert_eq!((amount(&recorded.charge), &recorded.price_id), ("0.0026", &right));
    let components: Vec<_> = explained.components.iter().map(|of| (&*of.component, &*of.amount)).collect();
    assert_eq!(components, [("input_token", "0.0025"), ("output_token", "0.0001")]);
    let adjustment = &explained.adjustments[0];
    assert_eq!((amount(&adjustment.old_charge), &adjustment.old_price_id), ("2500.0001", &wrong));
    assert_eq!((adjustment.kind(), &*adjustment.reason), (AdjustmentKind::Reprice, "mistyped"));
    let all = adjustments(&server).await;
    assert_eq!(all.len(), 1_000);
    let of_run = ListAdjustmentsRequest {
        client_id: "acme".into(),
        run_id: adjustment.run_id.clone(),
        page_size: 10,
        ..Default::default()
    };
    assert_eq!(server.usage().list_adjustments(of_run).await.unwrap().into_inner().adjustments.len(), 10);
    // Again, there is nothing to do.
    assert_eq!(reprice(&server, reprice_november(true)).await.run.unwrap().changed_count, 0);
    server.stop().await;
}

/// The first server ends in the middle of a run, and a replica continues it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_whose_server_ended_is_continued_by_a_replica_with_the_same_result() {
    const EVENTS: i64 = 30_000;
    let server = november().await;
    let first = create_price(&server, unit_price("social", "", "1")).await;
    for client in ["acme", "beta", "gamma"] {
        for _ in 0..EVENTS / 3 / 5_000 {
            server.batch(vec![event(client, "social", "2"); 5_000], false).await;
        }
    }
    server.catalog().retire_price(RetirePriceRequest { price_id: first, end_time: None }).await.unwrap();
    create_price(&server, unit_price("social", "", "3")).await;
    let only = RepriceUsageRequest { client_ids: vec!["acme".into(), "gamma".into()], ..reprice_november(true) };
    let run = server.catalog().reprice_usage(only).await.unwrap().into_inner().run.unwrap();
    let get = GetRepriceRunRequest { run_id: run.run_id.clone(), ..Default::default() };
    let progress = loop {
        let found = server.catalog().get_reprice_run(get.clone()).await.unwrap().into_inner().run.unwrap();
        if found.examined_count > 0 {
            break found;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    };
    let url = server.database_url.clone();
    let replica = TestServer::replica(&url, &[], Clock::fixed(time(NOW))).await;
    server.stop().await;
    println!("the first server ended after {} of {} events", progress.examined_count, progress.event_count);
    assert!(progress.finish_time.is_none(), "the run must not have ended with the first server");
    let report = ended(&replica, &run.run_id).await;
    let run = report.run.unwrap();
    assert_eq!((run.examined_count, run.changed_count), (20_000, 20_000));
    let costs: BTreeMap<_, _> =
        report.differences.iter().map(|row| (row.client_id.as_str(), amount(&row.new_cost))).collect();
    assert_eq!(costs, BTreeMap::from([("acme", "60000"), ("gamma", "60000")]));
    for (client, expected) in [("acme", "60000"), ("beta", "20000"), ("gamma", "60000")] {
        assert_eq!(replica.month(client).await.totals.unwrap().cost.unwrap().amount, expected);
    }
    replica.assert_exact(EVENTS).await;
    replica.stop().await;
}

#[tokio::test]
async fn a_run_can_be_cancelled_and_wrong_runs_are_rejected() {
    let server = november().await;
    let wrong = RepriceUsageRequest { start_month: "2026-12".into(), reason: String::new(), ..reprice_november(true) };
    assert_invalid(server.catalog().reprice_usage(wrong).await, "INVALID_FIELD", &["end_month", "reason"]);
    let get = GetRepriceRunRequest { run_id: "999".into(), ..Default::default() };
    assert_error(server.catalog().get_reprice_run(get).await, Code::NotFound, "REPRICE_RUN_NOT_FOUND");
    // The lock that the run shares stalls it.
    let stalled = server.stall_writers().await;
    let run = server.catalog().reprice_usage(reprice_november(true)).await.unwrap().into_inner().run.unwrap();
    let cancel = CancelRepriceRunRequest { run_id: run.run_id.clone() };
    let cancelled = server.catalog().cancel_reprice_run(cancel.clone()).await.unwrap().into_inner().run.unwrap();
    assert!(cancelled.cancel_time.is_some() && cancelled.finish_time.is_none());
    stalled.rollback().await.unwrap();
    let run = ended(&server, &run.run_id).await.run.unwrap();
    assert_eq!((run.examined_count, run.cancel_time), (0, cancelled.cancel_time));
    let with_id = RepriceUsageRequest { request_id: "once".into(), ..reprice_november(false) };
    let begin = async || server.catalog().reprice_usage(with_id.clone()).await.unwrap().into_inner();
    assert_eq!(begin().await, begin().await);
    let again = server.catalog().cancel_reprice_run(cancel).await.unwrap().into_inner().run.unwrap();
    assert_eq!(again, run);
    server.stop().await;
}

#[tokio::test]
async fn verify_finds_charges_and_voids_without_their_adjustments() {
    let server = november().await;
    let results =
        server.batch((0..4).map(|n| keyed(&format!("k{n}"), event("acme", "sms", "2"))).collect(), false).await;
    correct(&server, vec![(by_key("k0"), event("acme", "sms", "1")), (by_key("k1"), event("acme", "sms", "3"))]).await;
    correct(&server, vec![(by_key("k1"), event("acme", "sms", "4"))]).await;
    void(&server, vec![by_key("k2")]).await;
    server.assert_exact(3).await;
    let one = "0.000000000001";
    for damage in [
        // The charge of a corrected event and the sums that have it.
        format!(
            "UPDATE usage_events SET charge = charge + {one} WHERE idempotency_key = 'k0';
             UPDATE usage_months SET cost = cost + {one};
             UPDATE usage_month_services SET cost = cost + {one};
             UPDATE usage_days SET cost = cost + {one}"
        ),
        "UPDATE usage_adjustments SET new_charge = new_charge + 1 WHERE number = 1 AND kind = 2 AND new_charge > 0.01".into(),
        "DELETE FROM usage_adjustments WHERE number = 1 AND event_seq IN (SELECT event_seq FROM usage_adjustments WHERE number = 2)".into(),
        "DELETE FROM usage_adjustments WHERE kind = 1".into(),
    ] {
        let server = &server;
        let mut tx = server.pool.begin().await.unwrap();
        sqlx::raw_sql(sqlx::AssertSqlSafe(damage.clone())).execute(&mut *tx).await.unwrap();
        let scope = meterd_store::usage::verify::Scope::default();
        let found = meterd_store::usage::verify_adjustments::chain_differences(&mut tx, &scope).await.unwrap();
        assert_eq!(found.len(), 1, "{damage}");
        tx.rollback().await.unwrap();
    }
    assert_eq!(results.len(), 4);
    server.assert_exact(3).await;
    server.stop().await;
}

/// Writers, voids, corrections, prices and runs at random on two replicas. Each verification reads one snapshot, so the sums must equal
/// the events at any time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sums_equal_the_events_at_any_time_while_events_are_recorded_voided_corrected_and_repriced() {
    let server = Arc::new(november().await);
    let other = Arc::new(TestServer::replica(&server.database_url, &[], Clock::fixed(time(NOW))).await);
    set_lines(&server, "40", "400").await;
    let is_done = Arc::new(AtomicBool::new(false));
    let random_event = |key: String| {
        let mut rng = rand::rng();
        // Models of social without a price are charged when another worker creates it.
        let services =
            [("social", "a"), ("social", "b"), ("social", "c"), ("social", "d"), ("sms", ""), ("record_created", "")];
        let (service, model) = *services.choose(&mut rng).unwrap();
        let time = *["2026-10-31T12:00:00Z", "2026-11-05T12:00:00Z", NOW].choose(&mut rng).unwrap();
        let measures = if rng.random_bool(0.3) {
            [("pages".to_owned(), rng.random_range(1..5).to_string())].into()
        } else {
            BTreeMap::new()
        };
        let event = event_at("acme", service, &rng.random_range(0..9).to_string(), time);
        let reported_cost = if rng.random_bool(0.2) { rng.random_range(0..3).to_string() } else { String::new() };
        UsageEvent { measures, model: model.into(), reported_cost, ..keyed(&key, event) }
    };
    // Tiers that the events of a run reach within seconds.
    let tiered = |round: usize| {
        let tiers = [("0", "0"), ("50", "0.4"), ("200", "0.1"), ("1000", "0.3")];
        let tier = |(above, rate): &(&str, &str)| Tier {
            above: (*above).into(),
            rate: (*rate).into(),
            flat_fee: if round.is_multiple_of(2) { "0.75".into() } else { String::new() },
        };
        let (mode, package_size) = match round % 3 {
            0 => (TierMode::Graduated, ""),
            1 => (TierMode::Volume, ""),
            _ => (TierMode::Package, "7"),
        };
        let count = if mode == TierMode::Package { 1 } else { tiers.len() };
        let rate = TieredRate {
            component: if round % 4 == 2 { "pages" } else { "unit" }.into(),
            mode: mode.into(),
            tiers: tiers[..count].iter().map(tier).collect(),
            package_size: package_size.into(),
        };
        Rates { tiers: vec![rate], ..Default::default() }
    };
    create_price(&server, Price { rates: Some(tiered(0)), ..unit_price("social", "d", "0") }).await;
    let workers = (0..4).map(|worker| {
        let (replica, is_done) = (if worker % 2 == 0 { server.clone() } else { other.clone() }, is_done.clone());
        tokio::spawn(async move {
            let mut counts = [0; 4];
            for round in 0.. {
                if is_done.load(Ordering::Relaxed) {
                    return counts;
                }
                let keys: Vec<String> = (0..6).map(|n| format!("{worker}-{round}-{n}")).collect();
                let events = keys.iter().map(|key| random_event(key.clone())).collect();
                counts[0] += replica.batch(events, false).await.len();
                let results = void(&replica, vec![by_key(&keys[0]), by_key(&keys[1])]).await;
                counts[1] += results.iter().filter(|result| result.error.is_none()).count();
                // The other workers change the same months.
                let corrections = keys[1..4].iter().map(|key| {
                    let corrected =
                        UsageEvent { event_time: None, idempotency_key: String::new(), ..random_event(key.clone()) };
                    (by_key(key), corrected)
                });
                let results = correct(&replica, corrections.collect()).await;
                counts[2] += results.iter().filter(|result| result.error.is_none()).count();
                assert_eq!(reason(&results[0]), "EVENT_VOIDED");
                if round % 5 == worker {
                    let day = format!("2026-{}-{:02}T00:00:{:02}Z", 10 + round % 2, 1 + round % 20, round % 60);
                    let price = Price {
                        effective_time: Some(timestamp(&day)),
                        ..unit_price("social", ["a", "b", "c"][round % 3], &format!("0.{}", 1 + round % 7))
                    };
                    let price =
                        if round.is_multiple_of(2) { Price { rates: Some(tiered(round / 2)), ..price } } else { price };
                    let client_id = if round.is_multiple_of(3) { "acme".to_owned() } else { String::new() };
                    // Another worker may have created it.
                    let request =
                        CreatePriceRequest { price: Some(Price { client_id, ..price }), ..Default::default() };
                    if let Ok(created) = replica.catalog().create_price(request).await
                        && round % 4 == 1
                    {
                        let price_id = created.into_inner().price.unwrap().price_id;
                        let retire = RetirePriceRequest { price_id, ..Default::default() };
                        retried(|| {
                            let (mut client, request) = (replica.catalog(), retire.clone());
                            async move { client.retire_price(request).await }
                        })
                        .await;
                    }
                    let general = unit_price("record_created", "", &format!("0.{}", 1 + round % 9));
                    let general = Price {
                        effective_time: Some(timestamp(&format!("2026-10-01T00:00:{:02}Z", round % 60))),
                        ..general
                    };
                    let request = CreatePriceRequest { price: Some(general), ..Default::default() };
                    drop(replica.catalog().create_price(request).await);
                    let run = RepriceUsageRequest { start_month: "2026-10".into(), ..reprice_november(true) };
                    let run = RepriceUsageRequest { request_id: request_id(), ..run };
                    retried(|| {
                        let (mut client, request) = (replica.catalog(), run.clone());
                        async move { client.reprice_usage(request).await }
                    })
                    .await;
                    counts[3] += 1;
                }
            }
            unreachable!()
        })
    });
    let workers: Vec<_> = workers.collect();
    for round in 0..25 {
        assert_eq!(server.verify().await.differences, 0, "verification {round}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    is_done.store(true, Ordering::Relaxed);
    let mut total = [0; 4];
    for worker in workers {
        total.iter_mut().zip(worker.await.unwrap()).for_each(|(sum, count)| *sum += count);
    }
    let late = "SELECT count(*) FROM usage_adjustments WHERE kind = 4";
    let late: i64 = sqlx::query_scalar(late).fetch_one(&server.pool).await.unwrap();
    let tiers = "SELECT count(*) FILTER (WHERE tier_uses IS NOT NULL), count(tier_residue) FROM usage_events";
    let tiers: (i64, i64) = sqlx::query_as(tiers).fetch_one(&server.pool).await.unwrap();
    println!("{} events charged by tiers, {} that left something in them", tiers.0, tiers.1);
    assert!(tiers.0 > 3 && tiers.1 > 3);
    println!(
        "{} events, {} voids, {} corrections, {} runs, {late} adjustments by a later price",
        total[0], total[1], total[2], total[3]
    );
    assert!(total.iter().all(|count| *count > 3), "{total:?}");
    let open = "SELECT count(*) FROM reprice_runs WHERE finish_time IS NULL";
    wait_until(async || sqlx::query_scalar::<_, i64>(open).fetch_one(&server.pool).await.unwrap() == 0).await;
    server.assert_exact((total[0] - total[1]) as i64).await;
    // After the last run, every charge is that of the present prices.
    let last = reprice(&server, RepriceUsageRequest { start_month: "2026-10".into(), ..reprice_november(true) }).await;
    let run = last.run.unwrap();
    println!("the last run changed {} of {} events", run.changed_count, run.examined_count);
    let none = reprice(&server, RepriceUsageRequest { start_month: "2026-10".into(), ..reprice_november(false) }).await;
    assert_eq!(none.run.unwrap().changed_count, 0);
    server.assert_exact((total[0] - total[1]) as i64).await;
    Arc::into_inner(other).unwrap().stop().await;
    Arc::into_inner(server).unwrap().stop().await;
}
