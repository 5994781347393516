//! What limits count: on every path that writes usage, and after every change of recorded usage.

use crate::harness::*;
use crate::limits::*;
use meterd::proto::*;
use meterd_engine::clock::Clock;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use prost_types::FieldMask;
use std::time::Duration;
use tokio::task::JoinSet;

fn keyed(key: &str, event: UsageEvent) -> UsageEvent {
    UsageEvent { idempotency_key: key.into(), ..event }
}

fn by_key(key: &str) -> EventReference {
    EventReference { idempotency_key: key.into(), ..Default::default() }
}

pub async fn void(server: &TestServer, key: &str) {
    let (client_id, reason) = ("acme".into(), "test".into());
    let request = VoidUsageRequest { client_id, events: vec![by_key(key)], reason, ..Default::default() };
    let results = server.usage().void_usage(request).await.unwrap().into_inner().results;
    assert_eq!(results[0].error, None);
}

pub async fn correct(server: &TestServer, key: &str, corrected: UsageEvent) {
    let corrected =
        Some(UsageEvent { client_id: String::new(), idempotency_key: String::new(), event_time: None, ..corrected });
    let request = CorrectUsageRequest {
        client_id: "acme".into(),
        corrections: vec![UsageCorrection { event: Some(by_key(key)), corrected }],
        reason: "test".into(),
        ..Default::default()
    };
    let results = server.usage().correct_usage(request).await.unwrap().into_inner().results;
    assert_eq!(results[0].error, None);
}

/// Creates a price since January, unless it has a time. It replaces a built-in one.
async fn create_price(server: &TestServer, mut price: Price) {
    price.effective_time.get_or_insert_with(|| timestamp("2026-01-01T00:00:00Z"));
    let request = CreatePriceRequest { price: Some(price), confirm_high_rates: true, ..Default::default() };
    server.catalog().create_price(request).await.unwrap();
}

async fn reprice(server: &TestServer) {
    let request = RepriceUsageRequest {
        start_month: "2026-10".into(),
        end_month: "2026-11".into(),
        reason: "test".into(),
        ..Default::default()
    };
    let run = server.catalog().reprice_usage(request).await.unwrap().into_inner().run.unwrap();
    let request = GetRepriceRunRequest { run_id: run.run_id, ..Default::default() };
    loop {
        let report = server.catalog().get_reprice_run(request.clone()).await.unwrap().into_inner();
        if report.run.unwrap().finish_time.is_some() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn filtered(change: impl FnOnce(&mut LimitFilter), limit: Limit) -> Limit {
    let mut filter = LimitFilter::default();
    change(&mut filter);
    Limit { filter: Some(filter), ..limit }
}

/// Creates a limit of each measure and of each kind of filter.
async fn create_all(server: &TestServer) {
    for limit in [
        limit("units", "1000000"),
        measuring(LimitMeasure::Tokens, limit("tokens", "1000000")),
        measuring(LimitMeasure::Requests, limit("requests", "1000000")),
        measuring(LimitMeasure::Cost, limit("cost", "1000000")),
        daily(limit("day", "1000000")),
        filtered(|filter| filter.services = vec!["sms".into()], limit("service", "1000000")),
        filtered(|filter| filter.operations = vec!["chat_completion".into()], limit("operation", "1000000")),
        filtered(|filter| filter.models = vec!["gpt-4o-mini".into()], limit("model", "1000000")),
        filtered(|filter| filter.subjects = vec!["u1".into()], limit("subject", "1000000")),
        filtered(|filter| filter.labels = labels(&[("team", "red")]), limit("label", "1000000")),
        measuring(
            LimitMeasure::Cost,
            filtered(|filter| filter.labels = labels(&[("team", "red")]), limit("label-cost", "1000000")),
        ),
    ] {
        create(server, limit).await;
    }
}

/// Returns what is used of all limits.
async fn all_used(server: &TestServer) -> Vec<(String, String)> {
    let limits = check(server, "acme").await.limits;
    limits.into_iter().map(|status| (status.limit.unwrap().limit_id, status.used)).collect()
}

fn expected(rows: &[(&str, &str)]) -> Vec<(String, String)> {
    let mut rows: Vec<(String, String)> = rows.iter().map(|(id, used)| ((*id).into(), (*used).into())).collect();
    rows.sort();
    rows
}

/// A text message of a user and a team, and a call to a model.
fn mixed() -> Vec<UsageEvent> {
    vec![
        UsageEvent { subject: "u1".into(), labels: labels(&[("team", "red")]), ..event("acme", "sms", "2.5") },
        UsageEvent { subject: "u2".into(), labels: labels(&[("team", "blue")]), ..event("acme", "sms", "4") },
        UsageEvent {
            cached_input_tokens: 20,
            labels: labels(&[("team", "red"), ("project", "x")]),
            ..model_call("acme", 100, 10)
        },
    ]
}

#[tokio::test]
async fn each_measure_and_each_kind_of_filter_counts_its_own_usage() {
    let server = november().await;
    create_price(&server, unit_price("sms", "", "0.5")).await;
    server.create_client_in_zone("acme", "UTC").await;
    create_all(&server).await;
    for event in mixed() {
        server.track(event).await.unwrap();
    }
    let cost = cost(&server.month("acme").await.totals).to_owned();
    let rows = [
        ("units", "7.5"),
        ("tokens", "110"),
        ("requests", "3"),
        ("cost", &*cost),
        ("day", "7.5"),
        ("service", "6.5"),
        ("operation", "1"),
        ("model", "1"),
        ("subject", "2.5"),
        ("label", "3.5"),
    ];
    let mut used = all_used(&server).await;
    used.retain(|(id, _)| id != "label-cost");
    assert_eq!(used, expected(&rows));
    server.assert_exact(3).await;
    server.stop().await;
}

#[tokio::test]
async fn a_limit_counts_the_usage_that_was_there_before_it() {
    let server = november().await;
    for event in mixed() {
        server.track(event).await.unwrap();
    }
    server.track(event_at("acme", "sms", "8", "2026-11-20T12:00:00Z")).await.unwrap();
    server.track(event_at("acme", "sms", "16", "2026-10-31T12:00:00Z")).await.unwrap();
    create_all(&server).await;
    let before = all_used(&server).await;
    // Each counter is stored at once, and goes on from there.
    assert_eq!(stored(&server, "units").await, [("2026-11-01".into(), "15.5".into())]);
    assert_eq!(stored(&server, "day").await, [("2026-11-21".into(), "7.5".into())]);
    // Computed by the read, it is the same.
    server.sql("DELETE FROM limit_counters").await;
    assert_eq!(all_used(&server).await, before);
    for event in mixed() {
        server.track(event).await.unwrap();
    }
    assert_eq!(stored(&server, "units").await, [("2026-11-01".into(), "23".into())]);
    assert_eq!(stored(&server, "subject").await, [("2026-11-01".into(), "5".into())]);
    assert_eq!(stored(&server, "label").await, [("2026-11-01".into(), "7".into())]);
    server.assert_exact(8).await;
    server.stop().await;
}

#[tokio::test]
async fn a_late_event_counts_in_the_period_of_its_day() {
    let server = november().await;
    server.create_client_in_zone("acme", "UTC").await;
    create(&server, daily(limit("day", "10"))).await;
    create(&server, limit("month", "10")).await;
    server.sql("SELECT 1").await;
    for (units, day) in [("1", "2026-11-21"), ("2", "2026-11-05"), ("4", "2026-10-31"), ("8", "2026-11-05")] {
        server.track(event_at("acme", "sms", units, &format!("{day}T10:00:00Z"))).await.unwrap();
    }
    let row = |day: &str, used: &str| (day.to_owned(), used.to_owned());
    assert_eq!(stored(&server, "day").await, [row("2026-10-31", "4"), row("2026-11-05", "10"), row("2026-11-21", "1")]);
    assert_eq!(stored(&server, "month").await, [row("2026-10-01", "4"), row("2026-11-01", "11")]);
    // A backfill, too.
    server.batch(vec![event_at("acme", "sms", "16", "2026-06-05T10:00:00Z")], true).await;
    assert_eq!(stored(&server, "month").await[0], row("2026-06-01", "16"));
    server.assert_exact(5).await;
    server.stop().await;
}

#[tokio::test]
async fn single_events_batches_streams_and_copies_count_alike_and_repeats_do_not_count() {
    let server = november().await;
    server.create_client_in_zone("acme", "UTC").await;
    create_all(&server).await;
    let numbered = |from: usize, count: usize| -> Vec<UsageEvent> {
        let events = (from..from + count).map(|number| {
            let event = mixed().remove(number % 3);
            keyed(&format!("k{number}"), event)
        });
        events.collect()
    };
    server.track(numbered(0, 1).remove(0)).await.unwrap();
    server.batch(numbered(1, 29), false).await;
    // At least 50 events are copied.
    server.batch(numbered(30, 120), false).await;
    // One of the keys is taken, so the copy fails and statements follow.
    server.batch(numbered(149, 121), false).await;
    let requests: Vec<StreamUsageRequest> =
        numbered(270, 90).into_iter().map(|event| StreamUsageRequest { event: Some(event) }).collect();
    let mut answers = server.usage().stream_usage(futures_util::stream::iter(requests)).await.unwrap().into_inner();
    while answers.message().await.unwrap().is_some() {}
    // Repeats.
    server.batch(numbered(0, 360), false).await;
    server.track(numbered(5, 1).remove(0)).await.unwrap();
    let used = all_used(&server).await;
    let of = |id: &str| used.iter().find(|(of, _)| of == id).unwrap().1.clone();
    assert_eq!((of("requests"), of("units"), of("tokens")), ("360".into(), "900".into(), "13200".into()));
    assert_eq!((of("subject"), of("label"), of("service")), ("300".into(), "420".into(), "780".into()));
    assert_eq!(of("cost"), cost(&server.month("acme").await.totals));
    server.assert_exact(360).await;
    server.stop().await;
}

#[tokio::test]
async fn events_of_clients_without_limits_are_still_recorded_by_one_call() {
    let url = fresh_database().await;
    let clock = Clock::fixed(time(NOW));
    let server = TestServer::replica(&url, &[], clock.clone()).await;
    server.create_client_in_zone("acme", "UTC").await;
    create(&server, of_services(&["sms"], limit("a", "1000000"))).await;
    let database: String = sqlx::query_scalar("SELECT current_database()::text").fetch_one(&server.pool).await.unwrap();
    server.sql(&format!("ALTER DATABASE {database} SET track_functions = 'pl'")).await;
    server.stop().await;
    let calls = async || -> i64 {
        let pool = sqlx::PgPool::connect(&url).await.unwrap();
        let calls =
            "SELECT COALESCE(sum(calls), 0)::bigint FROM pg_stat_user_functions WHERE funcname = 'record_events'";
        let calls = sqlx::query_scalar(calls).fetch_one(&pool).await.unwrap();
        pool.close().await;
        calls
    };
    let recorded_by_one_call = async |event: UsageEvent| {
        let before = calls().await;
        let server = TestServer::replica(&url, &[], clock.clone()).await;
        for _ in 0..20 {
            server.track(event.clone()).await.unwrap();
        }
        // The sessions report their calls at their end.
        server.stop().await;
        calls().await - before
    };
    assert!(recorded_by_one_call(event("other", "sms", "1")).await >= 12);
    // The limit does not count this event.
    assert!(recorded_by_one_call(event("acme", "social", "1")).await >= 12);
    assert_eq!(recorded_by_one_call(event("acme", "sms", "1")).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counters_are_exact_after_concurrent_writers_on_two_replicas() {
    let clock = Clock::fixed(time(NOW));
    let first = TestServer::start_with(&[], clock.clone()).await;
    let second = TestServer::replica(&first.database_url, &[], clock).await;
    first.create_client_in_zone("acme", "UTC").await;
    create(&first, limit("early", "1000000")).await;
    let mut writers = JoinSet::new();
    for writer in 0..12 {
        let server = if writer % 2 == 0 { &first } else { &second };
        let mut usage = server.usage();
        writers.spawn(async move {
            for number in 0..15 {
                let key = |index: i32| format!("w{writer}-{number}-{index}");
                let count = if number % 5 == 0 { 60 } else { 1 + number % 3 };
                let events = (0..count).map(|index| {
                    let mut event = keyed(&key(index), mixed().remove(index as usize % 3));
                    event.event_time = Some(timestamp(if index % 2 == 0 { NOW } else { "2026-11-03T00:00:00Z" }));
                    event
                });
                let request = BatchTrackUsageRequest { events: events.collect(), ..Default::default() };
                usage.batch_track_usage(request).await.unwrap();
            }
        });
    }
    // Limits that are created while usage arrives.
    create(&second, daily(limit("day", "1000000"))).await;
    create(&first, filtered(|filter| filter.subjects = vec!["u1".into()], limit("subject", "1000000"))).await;
    create(&second, measuring(LimitMeasure::Requests, limit("requests", "1000000"))).await;
    change(&first, of_services(&["sms"], limit("early", "1000000")), &["filter"]).await;
    while let Some(done) = writers.join_next().await {
        done.unwrap();
    }
    let events = 12 * (3 * 60 + (1..15).filter(|number| number % 5 != 0).map(|number| 1 + number % 3).sum::<i64>());
    assert_eq!(used(&second, "requests").await, events.to_string());
    let before = all_used(&first).await;
    first.assert_exact(events).await;
    first.sql("DELETE FROM limit_counters").await;
    assert_eq!(all_used(&second).await, before);
    second.stop().await;
    first.stop().await;
}

#[tokio::test]
async fn voids_and_corrections_change_what_is_used() {
    let server = november().await;
    create_price(&server, unit_price("sms", "", "0.5")).await;
    server.create_client_in_zone("acme", "UTC").await;
    create_all(&server).await;
    for (number, event) in mixed().into_iter().enumerate() {
        server.track(keyed(&format!("k{number}"), event)).await.unwrap();
    }
    void(&server, "k1").await;
    let of = async |id: &str| used(&server, id).await;
    assert_eq!(
        (of("units").await, of("service").await, of("requests").await),
        ("3.5".into(), "2.5".into(), "2".into())
    );
    // Another service, more units, another subject and team.
    let corrected = UsageEvent {
        subject: "u1".into(),
        labels: labels(&[("team", "blue")]),
        units: "10".into(),
        ..model_call("acme", 50, 5)
    };
    correct(&server, "k2", corrected.clone()).await;
    assert_eq!((of("units").await, of("tokens").await), ("12.5".into(), "55".into()));
    assert_eq!((of("subject").await, of("label").await), ("12.5".into(), "2.5".into()));
    // Only a label: the sums of the day stay, but another limit counts the event.
    let corrected = UsageEvent { labels: labels(&[("team", "red")]), ..corrected };
    correct(&server, "k2", corrected).await;
    assert_eq!((of("units").await, of("label").await), ("12.5".into(), "12.5".into()));
    assert_eq!(of("cost").await, cost(&server.month("acme").await.totals));
    server.assert_exact(2).await;
    server.stop().await;
}

#[tokio::test]
async fn prices_that_come_later_and_repricing_change_the_cost_that_is_used() {
    let server = november().await;
    server.create_client_in_zone("acme", "UTC").await;
    create_all(&server).await;
    let call = UsageEvent { model: "new".into(), labels: labels(&[("team", "red")]), ..model_call("acme", 100, 10) };
    server.track(call).await.unwrap();
    assert_eq!((used(&server, "cost").await, used(&server, "label-cost").await), ("0".into(), "0".into()));
    let rates = Rates { input_token: Some("0.01".into()), output_token: Some("0.1".into()), ..Default::default() };
    let price = Price { service: "openai".into(), model: "new".into(), rates: Some(rates), ..Default::default() };
    create_price(&server, price.clone()).await;
    wait_until(async || used(&server, "cost").await == "2").await;
    assert_eq!(used(&server, "label-cost").await, "2");
    server.assert_exact(1).await;
    let rates = Rates { input_token: Some("0.02".into()), output_token: Some("0.1".into()), ..Default::default() };
    let higher = Price { rates: Some(rates), effective_time: Some(timestamp("2026-11-01T00:00:00Z")), ..price };
    create_price(&server, higher).await;
    reprice(&server).await;
    assert_eq!((used(&server, "cost").await, used(&server, "label-cost").await), ("3".into(), "3".into()));
    server.assert_exact(1).await;
    server.stop().await;
}

#[tokio::test]
async fn charges_by_tiers_and_what_remains_of_them_count() {
    let server = november().await;
    let tier = |above: &str, rate: &str| Tier { above: above.into(), rate: rate.into(), ..Default::default() };
    let rate = TieredRate {
        component: "unit".into(),
        mode: TierMode::Graduated.into(),
        tiers: vec![tier("0", "1"), tier("10", "3")],
        ..Default::default()
    };
    let rates = Rates { tiers: vec![rate], ..Default::default() };
    create_price(&server, Price { service: "social".into(), rates: Some(rates), ..Default::default() }).await;
    server.create_client_in_zone("acme", "UTC").await;
    create_all(&server).await;
    let red = |key: &str, units: &str| {
        keyed(key, UsageEvent { labels: labels(&[("team", "red")]), ..event("acme", "social", units) })
    };
    for (key, units) in [("a", "8"), ("b", "4"), ("c", "1")] {
        server.track(red(key, units)).await.unwrap();
    }
    let costs = async || (used(&server, "cost").await, used(&server, "label-cost").await);
    assert_eq!(costs().await, ("19".into(), "19".into()));
    // The month then has 5 units, which cost 5, but the other events keep their charges.
    void(&server, "a").await;
    assert_eq!(costs().await, ("5".into(), "5".into()));
    assert_eq!(cost(&server.month("acme").await.totals), "5");
    server.sql("DELETE FROM limit_counters").await;
    assert_eq!(costs().await, ("5".into(), "5".into()));
    server.assert_exact(2).await;
    server.stop().await;
}

#[tokio::test]
async fn events_that_move_to_other_days_count_there() {
    let server = november().await;
    server.create_client_in_zone("acme", "UTC").await;
    create(&server, daily(limit("day", "1000"))).await;
    create(&server, limit("month", "1000")).await;
    create(&server, daily(filtered(|filter| filter.subjects = vec!["u1".into()], limit("subject", "1000")))).await;
    // The sums of 20 November do not change: one event comes, one goes, and one stays.
    for (subject, at) in [
        ("u1", "2026-11-19T13:00:00Z"),
        ("u2", "2026-11-20T13:00:00Z"),
        ("u1", "2026-11-20T05:00:00Z"),
        ("u3", "2026-10-31T13:00:00Z"),
    ] {
        let event = UsageEvent { subject: subject.into(), ..event_at("acme", "sms", "1", at) };
        server.track(event).await.unwrap();
    }
    let client = Client { client_id: "acme".into(), time_zone: "Pacific/Kiritimati".into(), ..Default::default() };
    let update_mask = Some(FieldMask { paths: vec!["time_zone".into()] });
    server.clients().update_client(UpdateClientRequest { client: Some(client), update_mask }).await.unwrap();
    let request = RebuildRollupsRequest {
        client_id: "acme".into(),
        start_date: "2026-10-01".into(),
        end_date: "2026-11-30".into(),
        rezone: true,
    };
    let rebuilt = server.usage().rebuild_rollups(request).await.unwrap().into_inner();
    assert_eq!(rebuilt.rezoned_event_count, 3);
    let row = |day: &str, used: &str| (day.to_owned(), used.to_owned());
    assert_eq!(stored(&server, "month").await, [row("2026-10-01", "0"), row("2026-11-01", "4")]);
    let subject = stored(&server, "subject").await;
    assert_eq!(subject, [row("2026-11-19", "0"), row("2026-11-20", "2"), row("2026-11-21", "0")]);
    assert_eq!(server.verify().await.differences, 0);
    let (day, before) = (stored(&server, "day").await, used(&server, "subject").await);
    assert!(day.contains(&row("2026-10-31", "0")), "{day:?}");
    server.sql("DELETE FROM limit_counters").await;
    assert_eq!(used(&server, "subject").await, before);
    server.stop().await;
}

#[tokio::test]
async fn a_changed_filter_counts_the_usage_of_the_period_again() {
    let server = november().await;
    server.create_client_in_zone("acme", "UTC").await;
    create(&server, of_services(&["sms"], limit("a", "1000"))).await;
    server.track(event("acme", "sms", "1")).await.unwrap();
    server.track(event("acme", "social", "2")).await.unwrap();
    server.track(UsageEvent { subject: "u1".into(), ..event("acme", "voice", "4") }).await.unwrap();
    assert_eq!(used(&server, "a").await, "1");
    change(&server, of_services(&["social"], limit("a", "1000")), &["filter"]).await;
    assert_eq!(used(&server, "a").await, "2");
    change(&server, filtered(|filter| filter.subjects = vec!["u1".into()], limit("a", "1000")), &["filter"]).await;
    assert_eq!(used(&server, "a").await, "4");
    server.track(UsageEvent { subject: "u1".into(), ..event("acme", "sms", "8") }).await.unwrap();
    assert_eq!(used(&server, "a").await, "12");
    // Other changes keep the counter.
    let other = Limit { display_name: "All".into(), hard: true, amount: "12".into(), ..limit("a", "12") };
    let changed = change(&server, other, &["display_name", "hard", "amount"]).await;
    assert_eq!((&*changed.display_name, changed.hard), ("All", true));
    assert_eq!(changed.filter.unwrap().subjects, ["u1"]);
    assert!(!check(&server, "acme").await.allowed);
    server.assert_exact(4).await;
    server.stop().await;
}

#[tokio::test]
async fn a_counter_that_was_changed_by_hand_is_found_and_rebuilt() {
    let server = november().await;
    server.create_client_in_zone("acme", "UTC").await;
    create_all(&server).await;
    for event in mixed() {
        server.track(event).await.unwrap();
    }
    server.track(event_at("acme", "sms", "1", "2026-10-31T00:00:00Z")).await.unwrap();
    server.assert_exact(4).await;
    for damage in [
        "UPDATE limit_counters SET used = used + 0.000000000001 WHERE limit_id = 'units' AND period_start = '2026-11-01'",
        "UPDATE limit_counters SET used = 0 WHERE limit_id = 'subject'",
        "UPDATE limit_counters SET used = 99 WHERE limit_id = 'label-cost' AND period_start = '2026-11-01'",
    ] {
        assert_eq!(server.sql(damage).await, 1, "{damage}");
        assert_eq!(server.verify().await.differences, 1, "{damage}");
        let request = RebuildRollupsRequest {
            client_id: "acme".into(),
            start_date: "2026-11-01".into(),
            end_date: "2026-11-30".into(),
            rezone: false,
        };
        let rebuilt = server.usage().rebuild_rollups(request).await.unwrap().into_inner();
        assert_eq!(rebuilt.corrected_row_count, 1, "{damage}");
        assert_eq!(server.verify().await.differences, 0, "{damage}");
    }
    server.stop().await;
}

/// Replicas of the previous release do not count for limits.
#[tokio::test]
async fn nothing_is_stored_while_the_previous_release_may_run_and_checks_are_right() {
    let server = november().await;
    server.create_client_in_zone("acme", "UTC").await;
    server.sql("UPDATE deployment SET previous_release_until = now() + interval '1 hour'").await;
    create(&server, limit("a", "10")).await;
    server.track(event("acme", "sms", "4")).await.unwrap();
    assert_eq!(used(&server, "a").await, "4");
    assert_eq!(stored(&server, "a").await, []);
    server.sql("UPDATE deployment SET previous_release_until = now()").await;
    server.track(event("acme", "sms", "1")).await.unwrap();
    assert_eq!(stored(&server, "a").await, [("2026-11-01".into(), "5".into())]);
    server.assert_exact(2).await;
    server.stop().await;
}

/// One step of a random history.
#[derive(Clone, Debug)]
enum Step {
    Track(Vec<(u8, u8, u8, u8, u16)>),
    Void(u8),
    Correct(u8, (u8, u8, u8, u8, u16)),
    Limit(u8, u8, u8),
    Filter(u8, u8),
    Forget,
}

fn random_event() -> impl Strategy<Value = (u8, u8, u8, u8, u16)> {
    // Service, subject, label, day and units.
    (0u8..3, 0u8..3, 0u8..3, 0u8..4, 0u16..2_000)
}

fn random_steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => proptest::collection::vec(random_event(), 1..4).prop_map(Step::Track),
        1 => proptest::collection::vec(random_event(), 50..60).prop_map(Step::Track),
        2 => any::<u8>().prop_map(Step::Void),
        2 => (any::<u8>(), random_event()).prop_map(|(which, event)| Step::Correct(which, event)),
        3 => (0u8..4, 0u8..2, 0u8..8).prop_map(|(measure, period, filter)| Step::Limit(measure, period, filter)),
        1 => (any::<u8>(), 0u8..8).prop_map(|(which, filter)| Step::Filter(which, filter)),
        1 => Just(Step::Forget),
    ];
    proptest::collection::vec(step, 4..14)
}

const SERVICES: [&str; 3] = ["sms", "social", "openai"];
const DAYS: [&str; 4] = ["2026-11-21", "2026-11-20", "2026-11-01", "2026-10-31"];

fn event_of((service, subject, label, day, units): (u8, u8, u8, u8, u16)) -> UsageEvent {
    let event = match SERVICES[usize::from(service)] {
        "openai" => model_call("acme", units.into(), 7),
        service => event("acme", service, &format!("{}.{:03}", units / 1_000, units % 1_000)),
    };
    UsageEvent {
        subject: ["", "u1", "u2"][usize::from(subject)].into(),
        labels: [labels(&[]), labels(&[("team", "red")]), labels(&[("team", "blue")])][usize::from(label)].clone(),
        event_time: Some(timestamp(&format!("{}T09:30:00Z", DAYS[usize::from(day)]))),
        ..event
    }
}

fn filter_of(filter: u8) -> LimitFilter {
    let mut of = LimitFilter::default();
    match filter {
        0 => {}
        1 => of.services = vec!["sms".into()],
        2 => of.services = vec!["sms".into(), "openai".into()],
        3 => of.models = vec!["gpt-4o-mini".into()],
        4 => of.subjects = vec!["u1".into()],
        5 => of.labels = labels(&[("team", "red")]),
        6 => (of.services, of.subjects) = (vec!["social".into()], vec!["u1".into(), "u2".into()]),
        _ => of.operations = vec!["chat_completion".into()],
    }
    of
}

/// Sums up the events of ListUsageEvents that a limit counts in the period of a day, in units of 10^-12.
fn expected_of(limit: &Limit, events: &[RecordedUsageEvent], day: &str) -> i128 {
    use meterd_domain::decimal::Decimal;
    let filter = limit.filter.as_ref().unwrap();
    let any = |values: &[String], value: &str| values.is_empty() || values.iter().any(|of| of == value);
    let prefix = if limit.period() == LimitPeriod::Day { day } else { &day[..7] };
    let counts = |recorded: &&RecordedUsageEvent| {
        let event = recorded.event.as_ref().unwrap();
        recorded.void_time.is_none()
            && recorded.day.starts_with(prefix)
            && any(&filter.services, &event.service)
            && any(&filter.operations, &event.operation)
            && any(&filter.models, &event.model)
            && any(&filter.subjects, &event.subject)
            && filter.labels.iter().all(|(name, value)| event.labels.get(name) == Some(value))
    };
    let scaled = |text: &str| Decimal::parse(text).unwrap().scaled();
    let of = |recorded: &RecordedUsageEvent| {
        let event = recorded.event.as_ref().unwrap();
        match limit.measure() {
            LimitMeasure::Units => scaled(&event.units),
            LimitMeasure::Tokens => i128::from(event.input_tokens + event.output_tokens) * Decimal::ONE.scaled(),
            LimitMeasure::Requests => Decimal::ONE.scaled(),
            _ => recorded.charge.as_ref().map_or(0, |charge| scaled(&charge.amount)),
        }
    };
    events.iter().filter(counts).map(of).sum()
}

async fn run(server: &TestServer, steps: Vec<Step>) {
    use meterd_domain::decimal::Decimal;
    let (mut keys, mut limits) = (Vec::<(String, bool)>::new(), Vec::<String>::new());
    for step in steps {
        match step {
            Step::Track(events) => {
                let mut new = vec![];
                for event in events {
                    let key = format!("k{}", keys.len());
                    new.push(keyed(&key, event_of(event)));
                    keys.push((key, true));
                }
                server.batch(new, false).await;
            }
            Step::Void(_) | Step::Correct(..) if !keys.iter().any(|(_, counts)| *counts) => {}
            Step::Void(which) => {
                let counting: Vec<usize> = (0..keys.len()).filter(|index| keys[*index].1).collect();
                let index = counting[usize::from(which) % counting.len()];
                keys[index].1 = false;
                void(server, &keys[index].0).await;
            }
            Step::Correct(which, event) => {
                let counting: Vec<usize> = (0..keys.len()).filter(|index| keys[*index].1).collect();
                let index = counting[usize::from(which) % counting.len()];
                correct(server, &keys[index].0, event_of(event)).await;
            }
            Step::Limit(measure, period, filter) => {
                let id = format!("l{}", limits.len());
                let new = Limit {
                    measure: i32::from(measure) + 1,
                    period: i32::from(period) + 1,
                    filter: Some(filter_of(filter)),
                    ..limit(&id, "1")
                };
                create(server, new).await;
                limits.push(id);
            }
            Step::Filter(which, filter) if !limits.is_empty() => {
                let id = &limits[usize::from(which) % limits.len()];
                change(server, Limit { filter: Some(filter_of(filter)), ..limit(id, "1") }, &["filter"]).await;
            }
            Step::Filter(..) => {}
            Step::Forget => {
                server.sql("DELETE FROM limit_counters WHERE random() < 0.5 AND open_percents = '{}'").await;
            }
        }
    }
    let request = ListUsageEventsRequest { client_id: "acme".into(), page_size: 1_000, ..Default::default() };
    let events = server.usage().list_usage_events(request).await.unwrap().into_inner();
    assert_eq!((events.events.len(), &*events.next_page_token), (keys.len(), ""));
    for status in check(server, "acme").await.limits {
        let limit = status.limit.unwrap();
        let expected = expected_of(&limit, &events.events, "2026-11-21");
        assert_eq!(Decimal::parse(&status.used).unwrap().scaled(), expected, "{limit:?}");
        for (start, used) in stored(server, &limit.limit_id).await {
            let expected = expected_of(&limit, &events.events, &start);
            assert_eq!(Decimal::parse(&used).unwrap().scaled(), expected, "{start} {limit:?}");
        }
    }
    assert_eq!(server.verify().await.differences, 0);
}

/// Compares counters with the sums of the events that ListUsageEvents returns, after random histories.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_any_history_the_counters_are_the_sums_of_the_listed_events() {
    let mut runner =
        TestRunner::new(Config { cases: 25, failure_persistence: None, max_shrink_iters: 0, ..Config::default() });
    let runtime = tokio::runtime::Handle::current();
    tokio::task::block_in_place(|| {
        runner
            .run(&random_steps(), |steps| {
                runtime.block_on(async {
                    let server = november().await;
                    server.create_client_in_zone("acme", "UTC").await;
                    create_price(&server, unit_price("sms", "", "0.5")).await;
                    run(&server, steps).await;
                    server.stop().await;
                });
                Ok(())
            })
            .unwrap();
    });
}
