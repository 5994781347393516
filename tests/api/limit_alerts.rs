//! Alerts about limits: raised with the events, once for each limit, period and percent, and resolved when the usage is below again.

use crate::alerts::{alerts, check as check_alerts};
use crate::harness::*;
use crate::limit_counters::{correct, void};
use crate::limits::*;
use crate::policies::try_update;
use meterd::proto::*;
use meterd_engine::clock::Clock;
use tokio::task::JoinSet;

fn keyed(key: &str, event: UsageEvent) -> UsageEvent {
    UsageEvent { idempotency_key: key.into(), ..event }
}

/// Returns the alerts about limits: limit, period, percent, and whether the alert is open. Sorted.
async fn raised(server: &TestServer) -> Vec<(String, String, i32, bool)> {
    let alerts = alerts(server, "acme").await.into_iter().filter(|alert| alert.r#type() == AlertType::Limit);
    let mut rows: Vec<_> = alerts
        .map(|alert| {
            let limit = alert.limit.unwrap();
            (limit.limit_id, alert.period, limit.percent, alert.resolve_time.is_none())
        })
        .collect();
    rows.sort();
    rows
}

fn row(limit_id: &str, period: &str, percent: i32, is_open: bool) -> (String, String, i32, bool) {
    (limit_id.into(), period.into(), percent, is_open)
}

#[tokio::test]
async fn an_alert_is_raised_once_at_80_90_and_100_percent() {
    let server = november().await;
    server.create_client_in_zone("acme", "UTC").await;
    create(&server, Limit { display_name: "Messages".into(), hard: true, ..limit("a", "10") }).await;
    server.track(event("acme", "sms", "7.999999999999")).await.unwrap();
    assert_eq!(raised(&server).await, []);
    server.track(event("acme", "sms", "0.000000000001")).await.unwrap();
    assert_eq!(raised(&server).await, [row("a", "2026-11", 80, true)]);
    server.track(event("acme", "sms", "0.5")).await.unwrap();
    assert_eq!(raised(&server).await.len(), 1);
    server.track(event("acme", "sms", "0.5")).await.unwrap();
    assert_eq!(raised(&server).await.len(), 2);
    server.track(event("acme", "sms", "1")).await.unwrap();
    for _ in 0..3 {
        server.track(event("acme", "sms", "1")).await.unwrap();
    }
    let percents = [80, 90, 100].map(|percent| row("a", "2026-11", percent, true));
    assert_eq!(raised(&server).await, percents);
    let all = alerts(&server, "acme").await;
    let of =
        |percent: i32| all.iter().find(|alert| alert.limit.as_ref().is_some_and(|of| of.percent == percent)).unwrap();
    let ninety = of(90);
    assert_eq!((&*ninety.current, &*ninety.threshold, &*ninety.currency), ("9", "9", ""));
    assert_eq!(ninety.message, "acme has used 9 units in November 2026: 90 % of the hard limit Messages of 10 units.");
    assert_eq!((ninety.severity(), of(100).severity()), (AlertSeverity::Warning, AlertSeverity::Critical));
    let expected = AlertLimit {
        limit_id: "a".into(),
        display_name: "Messages".into(),
        measure: LimitMeasure::Units.into(),
        period: LimitPeriod::Month.into(),
        amount: "10".into(),
        percent: 90,
        hard: true,
    };
    assert_eq!(ninety.limit, Some(expected));
    assert!(all.iter().all(|alert| alert.raise_count == 1 && alert.service.is_empty()));
    server.stop().await;
}

#[tokio::test]
async fn any_percents_can_raise_alerts_and_one_event_can_reach_all_of_them() {
    let server = november().await;
    server.create_client_in_zone("acme", "UTC").await;
    let percents = vec![250, 1, 33, 33, 100];
    let created = create(&server, Limit { alert_percents: percents, ..daily(limit("a", "3")) }).await;
    assert_eq!(created.alert_percents, [1, 33, 100, 250]);
    server.track(event("acme", "sms", "3")).await.unwrap();
    let mut expected =
        vec![1, 33, 100].into_iter().map(|percent| row("a", "2026-11-21", percent, true)).collect::<Vec<_>>();
    assert_eq!(raised(&server).await, expected);
    server.batch((0..100).map(|_| event("acme", "sms", "1")).collect(), false).await;
    expected.push(row("a", "2026-11-21", 250, true));
    assert_eq!(raised(&server).await, expected);
    server.stop().await;
}

#[tokio::test]
async fn a_void_or_correction_below_a_percent_resolves_its_alert_and_more_usage_raises_it_again() {
    let server = november().await;
    server.create_client_in_zone("acme", "UTC").await;
    create(&server, limit("a", "10")).await;
    create(&server, daily(limit("day", "10"))).await;
    server.track(keyed("k1", event("acme", "sms", "8"))).await.unwrap();
    server.track(keyed("k2", event("acme", "sms", "2"))).await.unwrap();
    void(&server, "k2").await;
    let states = |eighty: bool, ninety: bool, hundred: bool| {
        let of = |limit: &str, period: &str| {
            [(80, eighty), (90, ninety), (100, hundred)].map(|(percent, open)| row(limit, period, percent, open))
        };
        [of("a", "2026-11"), of("day", "2026-11-21")].concat()
    };
    let mut expected = states(true, false, false);
    expected.sort_by_key(|row| (row.0.clone(), row.2));
    let sorted = async || raised(&server).await;
    assert_eq!(sorted().await, states(true, false, false));
    correct(&server, "k1", event("acme", "sms", "1")).await;
    assert_eq!(sorted().await, states(false, false, false));
    server.track(event("acme", "sms", "8")).await.unwrap();
    assert_eq!(sorted().await, states(true, true, false));
    let again = alerts(&server, "acme").await.into_iter().filter(|alert| alert.resolve_time.is_none());
    assert!(again.into_iter().all(|alert| alert.raise_count == 2));
    // The feed has every change: 3 and 3 raised, 2 and 2 resolved, 1 and 1 resolved, 2 and 2 raised.
    let changes: Vec<i16> = sqlx::query_scalar("SELECT change FROM alert_feed WHERE type = 7 ORDER BY sequence")
        .fetch_all(&server.pool)
        .await
        .unwrap();
    assert_eq!(changes, [1, 1, 1, 1, 1, 1, 3, 3, 3, 3, 3, 3, 1, 1, 1, 1]);
    server.stop().await;
}

#[tokio::test]
async fn a_new_or_changed_limit_raises_and_resolves_alerts_at_once() {
    let server = november().await;
    server.track(event("acme", "sms", "9")).await.unwrap();
    create(&server, limit("a", "10")).await;
    assert_eq!(raised(&server).await, [row("a", "2026-11", 80, true), row("a", "2026-11", 90, true)]);
    change(&server, limit("a", "11"), &["amount"]).await;
    assert_eq!(raised(&server).await, [row("a", "2026-11", 80, true), row("a", "2026-11", 90, false)]);
    change(&server, Limit { alert_percents: vec![50, 60], ..limit("a", "11") }, &["alert_percents"]).await;
    let expected = [(50, true), (60, true), (80, false), (90, false)];
    assert_eq!(raised(&server).await, expected.map(|(percent, open)| row("a", "2026-11", percent, open)));
    change(&server, of_services(&["voice"], limit("a", "11")), &["filter"]).await;
    assert!(raised(&server).await.iter().all(|row| !row.3));
    change(&server, limit("a", "11"), &["filter"]).await;
    let request = DeleteLimitRequest { client_id: "acme".into(), limit_id: "a".into() };
    billing(&server).delete_limit(request).await.unwrap();
    assert!(raised(&server).await.iter().all(|row| !row.3));
    server.track(event("acme", "sms", "9")).await.unwrap();
    assert!(raised(&server).await.iter().all(|row| !row.3));
    server.assert_exact(2).await;
    server.stop().await;
}

#[tokio::test]
async fn alerts_of_earlier_periods_are_resolved_when_the_amount_is_raised() {
    let server = november().await;
    server.create_client_in_zone("acme", "UTC").await;
    create(&server, daily(limit("day", "10"))).await;
    server.track(event_at("acme", "sms", "10", "2026-11-03T10:00:00Z")).await.unwrap();
    server.track(event_at("acme", "sms", "10", "2026-10-31T10:00:00Z")).await.unwrap();
    assert_eq!(raised(&server).await.len(), 6);
    change(&server, daily(limit("day", "11")), &["amount"]).await;
    let open: Vec<_> = raised(&server).await.into_iter().filter(|row| row.3).collect();
    let expected = ["2026-10-31", "2026-11-03"].map(|day| [80, 90].map(|percent| row("day", day, percent, true)));
    assert_eq!(open, expected.concat());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_replicas_raise_each_alert_once() {
    let clock = Clock::fixed(time(NOW));
    let first = TestServer::start_with(&[], clock.clone()).await;
    let second = TestServer::replica(&first.database_url, &[], clock).await;
    first.create_client_in_zone("acme", "UTC").await;
    let percents: Vec<i32> = (1..=20).map(|number| number * 5).collect();
    create(&first, Limit { alert_percents: percents, ..limit("a", "200") }).await;
    let mut writers = JoinSet::new();
    for writer in 0..10 {
        let mut usage = if writer % 2 == 0 { first.usage() } else { second.usage() };
        writers.spawn(async move {
            for _ in 0..20 {
                let request = TrackUsageRequest { event: Some(event("acme", "sms", "1")) };
                usage.track_usage(request).await.unwrap();
            }
        });
    }
    while let Some(done) = writers.join_next().await {
        done.unwrap();
    }
    assert_eq!(raised(&first).await.len(), 20);
    let changes: Vec<i64> =
        sqlx::query_scalar("SELECT count(*) FROM alert_feed WHERE type = 7").fetch_all(&first.pool).await.unwrap();
    assert_eq!(changes, [20]);
    first.assert_exact(200).await;
    second.stop().await;
    first.stop().await;
}

#[tokio::test]
async fn alerts_are_streamed_filtered_and_sent_to_channels_but_not_for_backfills() {
    let server = november().await;
    server.create_client_in_zone("acme", "UTC").await;
    let channel = NotificationChannel {
        kind: NotificationChannelKind::Webhook.into(),
        target: "https://hooks.example.com/meterd".into(),
        min_severity: AlertSeverity::Critical.into(),
        ..Default::default()
    };
    let policy = AlertPolicy { client_id: "acme".into(), channels: vec![channel], ..Default::default() };
    try_update(&server, policy, &["channels"]).await.unwrap();
    let request = SubscribeAlertsRequest { types: vec![AlertType::Limit.into()], ..Default::default() };
    let mut stream = server.alerts().subscribe_alerts(request).await.unwrap().into_inner();
    stream.message().await.unwrap();
    create(&server, measuring(LimitMeasure::Requests, limit("a", "2"))).await;
    let notifications = async || -> i64 {
        sqlx::query_scalar("SELECT count(*) FROM notifications").fetch_one(&server.pool).await.unwrap()
    };
    server.batch(vec![event_at("acme", "sms", "1", "2026-10-10T00:00:00Z"); 2], true).await;
    assert_eq!((raised(&server).await.len(), notifications().await), (3, 0));
    server.track(event("acme", "sms", "1")).await.unwrap();
    server.track(event("acme", "sms", "1")).await.unwrap();
    assert_eq!((raised(&server).await.len(), notifications().await), (6, 1));
    let mut seen = vec![];
    while seen.len() < 6 {
        let message = stream.message().await.unwrap().unwrap();
        if let Some(subscribe_alerts_response::Message::Alert(event)) = message.message {
            let alert = event.alert.unwrap();
            seen.push((alert.period, alert.limit.unwrap().percent));
        }
    }
    seen.sort();
    let expected = ["2026-10", "2026-11"].map(|month| [80, 90, 100].map(|percent| (month.to_owned(), percent)));
    assert_eq!(seen, expected.concat());
    server.stop().await;
}

#[tokio::test]
async fn the_check_of_alerts_raises_what_a_gap_has_left_out() {
    let server = november().await;
    server.create_client_in_zone("acme", "UTC").await;
    server.sql("UPDATE deployment SET previous_release_until = now() + interval '1 hour'").await;
    create(&server, limit("a", "10")).await;
    server.track(event("acme", "sms", "9.5")).await.unwrap();
    assert_eq!(check_alerts(&server, "acme").await.raised, []);
    assert_eq!(raised(&server).await, []);
    server.sql("UPDATE deployment SET previous_release_until = now()").await;
    assert_eq!(check_alerts(&server, "acme").await.raised.len(), 2);
    assert_eq!(raised(&server).await, [row("a", "2026-11", 80, true), row("a", "2026-11", 90, true)]);
    assert_eq!(check_alerts(&server, "acme").await.raised, []);
    server.track(event("acme", "sms", "0.1")).await.unwrap();
    assert_eq!(raised(&server).await.len(), 2);
    server.stop().await;
}

#[tokio::test]
async fn a_spend_threshold_is_a_soft_limit_on_the_cost_of_a_month() {
    let server = november().await;
    let rates = Rates { unit: Some("1".into()), ..Default::default() };
    let price = Price {
        service: "sms".into(),
        rates: Some(rates),
        effective_time: Some(timestamp("2026-01-01T00:00:00Z")),
        ..Default::default()
    };
    let request = CreatePriceRequest { price: Some(price), ..Default::default() };
    server.catalog().create_price(request).await.unwrap();
    server.create_client_in_zone("acme", "UTC").await;
    for amount in ["5", "7.5", "20"] {
        let threshold = measuring(LimitMeasure::Cost, limit(&format!("spend-{amount}"), amount));
        create(&server, Limit { alert_percents: vec![100], ..threshold }).await;
    }
    server.track(event("acme", "sms", "7.5")).await.unwrap();
    let expected = ["spend-5", "spend-7.5"].map(|id| row(id, "2026-11", 100, true));
    assert_eq!(raised(&server).await, expected);
    let alert = alerts(&server, "acme").await.into_iter().find(|alert| alert.limit.is_some()).unwrap();
    assert_eq!(alert.currency, "USD");
    server.stop().await;
}
