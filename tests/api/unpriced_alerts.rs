//! Alerts about events without a charge: raised with the events, once for each client, service and month, and resolved when the
//! events have a charge or no longer count.

use crate::alerts::{alerts, assert_sets_match, check, kinds};
use crate::harness::*;
use crate::policies::try_update;
use meterd::proto::*;
use meterd_engine::clock::Clock;
use std::collections::HashMap;
use tokio::task::JoinSet;

const NOW: &str = "2026-11-21T12:00:00Z";

async fn november() -> TestServer {
    TestServer::start_with(&[], Clock::fixed(time(NOW))).await
}

/// A call to a model for which there is no price.
fn call_of(model: &str) -> UsageEvent {
    UsageEvent { model: model.into(), ..model_call("acme", 1_000, 100) }
}

fn keyed(key: &str, event: UsageEvent) -> UsageEvent {
    UsageEvent { idempotency_key: key.into(), ..event }
}

fn by_key(key: &str) -> EventReference {
    EventReference { idempotency_key: key.into(), ..Default::default() }
}

/// Returns the only alert of the client.
async fn only_alert(server: &TestServer) -> Alert {
    let mut alerts = alerts(server, "acme").await;
    assert_eq!(alerts.len(), 1, "{alerts:#?}");
    alerts.remove(0)
}

async fn is_open(server: &TestServer) -> bool {
    only_alert(server).await.resolve_time.is_none()
}

/// Returns the changes in the feed: 1 raised, 3 resolved.
async fn changes(server: &TestServer) -> Vec<i16> {
    sqlx::query_scalar("SELECT change FROM alert_feed ORDER BY sequence").fetch_all(&server.pool).await.unwrap()
}

async fn create_price(server: &TestServer, price: Price) -> String {
    let request = CreatePriceRequest { price: Some(price), confirm_high_rates: true, ..Default::default() };
    server.catalog().create_price(request).await.unwrap().into_inner().price.unwrap().price_id
}

async fn void(server: &TestServer, key: &str) {
    let (client_id, reason) = ("acme".into(), "sent twice".into());
    let request = VoidUsageRequest { client_id, events: vec![by_key(key)], reason, ..Default::default() };
    let results = server.usage().void_usage(request).await.unwrap().into_inner().results;
    assert_eq!(results[0].error, None);
}

async fn correct(server: &TestServer, key: &str, corrected: UsageEvent) {
    let corrected = Some(UsageEvent { client_id: String::new(), ..corrected });
    let request = CorrectUsageRequest {
        client_id: "acme".into(),
        corrections: vec![UsageCorrection { event: Some(by_key(key)), corrected }],
        reason: "the wrong model".into(),
        ..Default::default()
    };
    let results = server.usage().correct_usage(request).await.unwrap().into_inner().results;
    assert_eq!(results[0].error, None);
}

async fn set_policy(server: &TestServer, policy: AlertPolicy, paths: &[&str]) {
    try_update(server, policy, paths).await.unwrap();
}

fn minimum(client_id: &str, unpriced_events_min: i32) -> AlertPolicy {
    AlertPolicy { client_id: client_id.into(), unpriced_events_min: Some(unpriced_events_min), ..Default::default() }
}

#[tokio::test]
async fn an_alert_is_raised_once_for_a_thousand_unpriced_events_and_names_their_models() {
    let server = november().await;
    // Seven models. The first ones have one event more.
    server.batch((0..1_000).map(|number| call_of(&format!("new-{}", number % 7))).collect(), false).await;
    let alert = only_alert(&server).await;
    assert_eq!((alert.r#type(), alert.severity()), (AlertType::Unpriced, AlertSeverity::Warning));
    assert_eq!((&*alert.service, &*alert.period, &*alert.currency), ("openai", "2026-11", ""));
    assert_eq!((&*alert.threshold, alert.raise_count, &alert.resolve_time), ("1", 1, &None));
    let count: i64 = alert.current.parse().unwrap();
    assert!((1..=1_000).contains(&count), "{count}");
    if count == 1_000 {
        assert_eq!(
            alert.message,
            "acme has 1000 events of openai without a charge in November 2026: reason NO_PRICE; \
             models new-0, new-1, new-2, new-3, new-4 and 2 more."
        );
    }
    for _ in 0..20 {
        server.track(call_of("newer")).await.unwrap();
    }
    assert_eq!((check(&server, "acme").await.raised, only_alert(&server).await), (vec![], alert));
    assert_eq!(changes(&server).await, [1]);
    assert_sets_match(&server).await;
    server.assert_exact(1_020).await;
    server.stop().await;
}

#[tokio::test]
async fn each_service_and_each_month_has_its_alert() {
    let server = november().await;
    let priced = server.track(event("acme", "sms", "1")).await.unwrap();
    assert!(priced.charge.is_some() && alerts(&server, "acme").await.is_empty());
    server.track(call_of("new")).await.unwrap();
    server.track(event("acme", "social", "1")).await.unwrap();
    server.track(event_at("acme", "social", "1", "2026-10-31T12:00:00Z")).await.unwrap();
    server.track(event("globex", "social", "1")).await.unwrap();
    let described: Vec<_> = alerts(&server, "acme").await.into_iter().map(|alert| alert.message).collect();
    assert_eq!(
        described,
        [
            "acme has 1 event of openai without a charge in November 2026: reason NO_PRICE; model new.",
            "acme has 1 event of social without a charge in November 2026: reason NO_PRICE.",
            "acme has 1 event of social without a charge in October 2026: reason NO_PRICE."
        ]
    );
    assert_eq!(kinds(&server, "globex").await, ["2026-11 UNPRICED WARNING"]);
    let request = ListAlertsRequest { types: vec![AlertType::Unpriced.into()], ..Default::default() };
    assert_eq!(server.alerts().list_alerts(request).await.unwrap().into_inner().alerts.len(), 4);
    server.stop().await;
}

#[tokio::test]
async fn the_alert_is_resolved_when_the_events_are_priced_and_raised_again_by_new_ones() {
    let server = november().await;
    server.batch(vec![call_of("new"), call_of("newer"), call_of("newer")], false).await;
    assert!(is_open(&server).await);
    let rates =
        || Rates { input_token: Some("0.001".into()), output_token: Some("0.001".into()), ..Default::default() };
    let price = |model| Price { rates: Some(rates()), ..unit_price("openai", model, "") };
    create_price(&server, price("newer")).await;
    wait_until(async || server.month("acme").await.totals.unwrap().unpriced_event_count == 1).await;
    assert!(is_open(&server).await, "one event has no charge yet");
    create_price(&server, price("new")).await;
    wait_until(async || !is_open(&server).await).await;
    assert_eq!(server.month("acme").await.totals.unwrap().unpriced_event_count, 0);
    assert_eq!(changes(&server).await, [1, 3]);
    assert_eq!(check(&server, "acme").await.raised, []);

    server.track(call_of("newest")).await.unwrap();
    let again = only_alert(&server).await;
    assert_eq!((&*again.current, again.raise_count, &again.resolve_time), ("1", 2, &None));
    assert!(again.message.ends_with("model newest."), "{}", again.message);
    assert_eq!(changes(&server).await, [1, 3, 1]);
    assert_sets_match(&server).await;
    server.stop().await;
}

#[tokio::test]
async fn voids_and_corrections_resolve_and_raise_the_alert() {
    let server = november().await;
    for key in ["first", "second"] {
        server.track(keyed(key, call_of("new"))).await.unwrap();
    }
    void(&server, "first").await;
    assert!(is_open(&server).await, "one event has no charge yet");
    void(&server, "second").await;
    assert!(!is_open(&server).await);

    // The correction takes the charge away, and the next one gives it back.
    server.track(keyed("third", model_call("acme", 1_000, 100))).await.unwrap();
    correct(&server, "third", call_of("mistyped")).await;
    let alert = only_alert(&server).await;
    assert!(alert.resolve_time.is_none() && alert.message.ends_with("model mistyped."), "{}", alert.message);
    correct(&server, "third", model_call("acme", 1_000, 200)).await;
    assert!(!is_open(&server).await);
    assert_eq!(changes(&server).await, [1, 3, 1, 3]);
    server.assert_exact(1).await;
    server.stop().await;
}

#[tokio::test]
async fn repricing_raises_the_alert_of_events_that_lose_their_price_and_resolves_it() {
    let server = november().await;
    let price_id = create_price(&server, unit_price("social", "", "1")).await;
    server.batch(vec![event("acme", "social", "2"); 3], false).await;
    server.catalog().retire_price(RetirePriceRequest { price_id, end_time: None }).await.unwrap();
    let reprice = RepriceUsageRequest {
        start_month: "2026-11".into(),
        end_month: "2026-11".into(),
        reason: "withdrawn".into(),
        ..Default::default()
    };
    assert_eq!(alerts(&server, "acme").await, []);
    server.catalog().reprice_usage(reprice.clone()).await.unwrap();
    wait_until(async || !alerts(&server, "acme").await.is_empty()).await;
    assert_eq!(only_alert(&server).await.current, "3");
    create_price(&server, unit_price("social", "", "2")).await;
    wait_until(async || !is_open(&server).await).await;
    server.assert_exact(3).await;
    server.stop().await;
}

#[tokio::test]
async fn a_rule_that_is_off_raises_nothing_and_resolves_its_alerts() {
    let server = november().await;
    server.create_client_in_zone("acme", "UTC").await;
    let switch = |unpriced_enabled| AlertPolicy {
        client_id: "acme".into(),
        unpriced_enabled: Some(unpriced_enabled),
        ..Default::default()
    };
    set_policy(&server, switch(false), &["unpriced_enabled"]).await;
    for _ in 0..3 {
        server.track(call_of("new")).await.unwrap();
    }
    assert_eq!(alerts(&server, "acme").await, []);
    // What was recorded before is found at once.
    set_policy(&server, switch(true), &["unpriced_enabled"]).await;
    let alert = only_alert(&server).await;
    assert_eq!((&*alert.current, &alert.resolve_time), ("3", &None));
    assert!(
        alert.message.ends_with("3 events of openai without a charge in November 2026: reason NO_PRICE; model new.")
    );
    set_policy(&server, switch(false), &["unpriced_enabled"]).await;
    assert!(!is_open(&server).await);
    server.track(call_of("new")).await.unwrap();
    assert!(!is_open(&server).await);
    server.stop().await;
}

#[tokio::test]
async fn the_alert_is_raised_by_the_event_that_reaches_the_minimum_and_names_all_models() {
    let server = november().await;
    server.create_client_in_zone("acme", "UTC").await;
    set_policy(&server, minimum("acme", 4), &["unpriced_events_min"]).await;
    for model in ["a", "b", "b"] {
        server.track(call_of(model)).await.unwrap();
        server.track(event("acme", "social", "1")).await.unwrap();
        assert_eq!(check(&server, "acme").await.raised, []);
    }
    server.track(keyed("fourth", call_of("c"))).await.unwrap();
    let alert = only_alert(&server).await;
    assert_eq!((&*alert.service, &*alert.current, &*alert.threshold), ("openai", "4", "4"));
    assert!(alert.message.ends_with("reason NO_PRICE; models b, a, c."), "{}", alert.message);
    // Three events are left, fewer than the minimum.
    void(&server, "fourth").await;
    assert!(!is_open(&server).await);
    set_policy(&server, minimum("acme", 3), &["unpriced_events_min"]).await;
    let open: Vec<_> = alerts(&server, "acme").await;
    assert_eq!(open.iter().filter(|alert| alert.resolve_time.is_none()).count(), 2, "{open:#?}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_replicas_raise_one_alert_for_each_service() {
    let first = november().await;
    let second = TestServer::replica(&first.database_url, &[], first.clock.clone()).await;
    let channels = [first.channel(), second.channel()];
    for round in 0..4 {
        let client_id = format!("race-{round}");
        first.create_client_in_zone(&client_id, "UTC").await;
        let mut writers = JoinSet::new();
        for writer in 0..64 {
            let mut usage = usage_service_client::UsageServiceClient::new(channels[writer % 2].clone());
            let service = ["social", "openai"][writer / 2 % 2];
            let event = UsageEvent { model: "new".into(), ..event(&client_id, service, "1") };
            writers.spawn(async move { usage.track_usage(TrackUsageRequest { event: Some(event) }).await.unwrap() });
        }
        check(&first, &client_id).await;
        writers.join_all().await;
        let alerts = alerts(&second, &client_id).await;
        assert_eq!(alerts.len(), 2, "{alerts:#?}");
        assert!(alerts.iter().all(|alert| alert.raise_count == 1));
    }
    assert_eq!(changes(&first).await, [1; 8]);
    first.assert_exact(4 * 64).await;
    first.stop().await;
    second.stop().await;
}

/// A void leaves no event, or the new event is already there: in each order, the alert is open at the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_comes_together_with_the_void_of_the_last_one_has_its_alert() {
    let first = november().await;
    let second = TestServer::replica(&first.database_url, &[], first.clock.clone()).await;
    let key = |round: usize| format!("event-{round}");
    first.track(keyed(&key(0), call_of("new"))).await.unwrap();
    for round in 0..60 {
        let [servers, others] = if round % 2 == 0 { [&first, &second] } else { [&second, &first] };
        let event = keyed(&key(round + 1), call_of("new"));
        let (voided, recorded) = (key(round), others.track(event));
        let (_, recorded) = tokio::join!(void(servers, &voided), recorded);
        recorded.unwrap();
        assert!(is_open(&first).await, "round {round}");
        assert_eq!(check(&second, "acme").await.raised, []);
    }
    first.assert_exact(1).await;
    first.stop().await;
    second.stop().await;
}

#[tokio::test]
async fn subscribers_of_the_type_get_its_changes() {
    let server = november().await;
    let types = vec![AlertType::Unpriced.into(), AlertType::Silence.into()];
    let request = SubscribeAlertsRequest { types, from_start: true, ..Default::default() };
    let mut stream = server.alerts().subscribe_alerts(request).await.unwrap().into_inner();
    let mut next = async || loop {
        let message = stream.message().await.unwrap().unwrap().message.unwrap();
        if let subscribe_alerts_response::Message::Alert(event) = message {
            return (event.change(), event.alert.unwrap());
        }
    };
    server.track(keyed("first", event("acme", "stripe", "1"))).await.unwrap();
    let (change, alert) = next().await;
    assert_eq!((change, alert.r#type(), &*alert.current), (AlertChange::Raised, AlertType::Unpriced, "1"));
    assert!(alert.message.ends_with("reason AMOUNT_MISSING."), "{}", alert.message);
    void(&server, "first").await;
    let (change, alert) = next().await;
    assert_eq!((change, alert.resolve_time.is_some()), (AlertChange::Resolved, true));
    server.stop().await;
}

/// A replica of the previous release has recorded events, and could not read alerts of this type.
#[tokio::test]
async fn nothing_is_raised_while_the_previous_release_may_run_and_the_check_finds_it_afterwards() {
    let server = november().await;
    server.track(event("acme", "sms", "1")).await.unwrap();
    server
        .sql(
            "DROP FUNCTION check_unpriced_alerts; DROP INDEX alerts_open_silences;
             ALTER TABLE deployment DROP COLUMN previous_release_until",
        )
        .await;
    server.sql(include_str!("../../migrations/0024_unpriced_and_silence_alerts.sql")).await;
    let soon = "SELECT FROM deployment WHERE previous_release_until BETWEEN now() + interval '50 minutes' AND now() + interval '1 hour'";
    assert_eq!(server.sql(soon).await, 1);
    for _ in 0..3 {
        server.track(call_of("new")).await.unwrap();
    }
    assert_eq!(check(&server, "acme").await.raised, []);
    assert_eq!(alerts(&server, "acme").await, []);
    server.sql("UPDATE deployment SET previous_release_until = now()").await;
    let result = server.run_job("alert_checks").await;
    assert!(result.contains("1 client checked, 1 alert raised"), "{result}");
    let alert = only_alert(&server).await;
    assert_eq!(alert.current, "3");
    assert!(alert.message.ends_with("reason NO_PRICE; model new."), "{}", alert.message);
    server.stop().await;
}

#[tokio::test]
async fn a_backfill_raises_the_alert_without_notifications() {
    let server = november().await;
    let channel = NotificationChannel {
        kind: NotificationChannelKind::Webhook.into(),
        target: "https://hooks.example.com/meterd".into(),
        min_severity: AlertSeverity::Warning.into(),
        ..Default::default()
    };
    set_policy(&server, AlertPolicy { channels: vec![channel], ..Default::default() }, &["channels"]).await;
    server.batch(vec![event_at("acme", "social", "1", "2026-06-10T12:00:00Z")], true).await;
    let notified = async || {
        let notifications: i64 =
            sqlx::query_scalar("SELECT count(*) FROM notifications").fetch_one(&server.pool).await.unwrap();
        (kinds(&server, "acme").await.len(), notifications)
    };
    assert_eq!(notified().await, (1, 0));
    server.track(event("acme", "social", "1")).await.unwrap();
    assert_eq!(notified().await, (2, 1));
    server.stop().await;
}

/// Returns the calls of each function of the write path.
async fn calls(server: &TestServer) -> HashMap<String, i64> {
    let calls = sqlx::query_as("SELECT funcname::text, sum(calls)::bigint FROM pg_stat_user_functions GROUP BY 1");
    calls.fetch_all(&server.pool).await.unwrap().into_iter().collect()
}

#[tokio::test]
async fn priced_events_cost_no_check_and_unpriced_events_are_recorded_by_one_call_once_their_alert_is_open() {
    let url = fresh_database().await;
    let clock = Clock::fixed(time(NOW));
    let server = TestServer::replica(&url, &[], clock.clone()).await;
    let database: String = sqlx::query_scalar("SELECT current_database()::text").fetch_one(&server.pool).await.unwrap();
    server.sql(&format!("ALTER DATABASE {database} SET track_functions = 'pl'")).await;
    server.stop().await;
    // Each step has its own server, because a session reports its calls at its end.
    let step = async |service: &str, model: &str| {
        let before = TestServer::replica(&url, &[], clock.clone()).await;
        let counted = calls(&before).await;
        for _ in 0..20 {
            before.track(UsageEvent { model: model.into(), ..event("acme", service, "1") }).await.unwrap();
        }
        before.stop().await;
        let after = TestServer::replica(&url, &[], clock.clone()).await;
        let called = |calls: &HashMap<String, i64>, name| calls.get(name).copied().unwrap_or_default();
        wait_until(async || called(&calls(&after).await, "change_usage") >= called(&counted, "change_usage") + 20)
            .await;
        let calls = calls(&after).await;
        after.stop().await;
        ["record_events", "check_unpriced_alerts", "claim_keys"]
            .map(|name| called(&calls, name) - called(&counted, name))
    };
    let [one_call, checks, _] = step("sms", "").await;
    assert!(one_call >= 12, "{one_call} of 20 events were recorded by one call");
    assert_eq!(checks, 0, "a priced event has no check");
    step("openai", "new").await;
    let [one_call, checks, statements] = step("openai", "newer").await;
    assert!(one_call >= 12 && statements <= 8, "{one_call} of 20 events were recorded by one call");
    assert_eq!(checks, one_call);
    let server = TestServer::replica(&url, &[], clock.clone()).await;
    assert_eq!(kinds(&server, "acme").await, ["2026-11 UNPRICED WARNING"]);
    server.assert_exact(60).await;
    server.stop().await;
}
