//! Used keys: the cost of a repeated event, what counts as a repeat, and what a conflict says.

use crate::harness::*;
use meterd::proto::{EventOutcome, TrackUsageRequest, UsageEvent};
use meterd_domain::period::{Month, parse_day};
use meterd_engine::clock::Clock;
use meterd_store::usage::holders::{self, WantedKeys};
use meterd_store::usage::partitions;
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use sqlx::Executor;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tonic::Code;
use tonic_types::StatusExt;

const NOW: &str = "2026-11-21T12:00:00Z";

fn event_with_key(key: &str, event: UsageEvent) -> UsageEvent {
    UsageEvent { idempotency_key: key.into(), ..event }
}

/// Returns `count` months up to that of `NOW`, the oldest first.
fn months(count: usize) -> Vec<Month> {
    let last = Month::of(parse_day("2026-11-01").unwrap());
    let mut months: Vec<Month> =
        std::iter::successors(Some(last), |month| Some(month.previous())).take(count).collect();
    months.reverse();
    months
}

/// Keys of the client `acme` in the first generation.
fn wanted(keys: &[&str]) -> WantedKeys {
    let mut wanted = WantedKeys::default();
    keys.iter().for_each(|key| wanted.push(0, "acme", key));
    wanted
}

/// Starts a server with this number of monthly partitions.
async fn server_with_months(count: usize, clock: Clock) -> TestServer {
    let server = TestServer::start_with(&[], clock).await;
    let mut conn = server.pool.acquire().await.unwrap();
    for month in months(count) {
        partitions::ensure(&mut conn, month).await.unwrap();
    }
    drop(conn);
    server
}

#[tokio::test]
async fn the_event_of_a_key_is_read_only_from_the_partition_of_its_month() {
    let server = server_with_months(40, Clock::fixed(time(NOW))).await;
    let old = event_with_key("old", event_at("acme", "sms", "2", "2024-02-03T04:05:06Z"));
    let new = event_with_key("new", event("acme", "sms", "1"));
    server.batch(vec![old, new], true).await;
    let mut tx = server.pool.begin().await.unwrap();
    // The settings of a writer's connection.
    tx.execute("SET LOCAL plan_cache_mode = force_generic_plan").await.unwrap();
    let holders = holders::find(&mut tx, &wanted(&["old", "free", "new"])).await.unwrap();
    let charged: Vec<_> = holders.iter().map(|holder| holder.as_ref().map(|holder| holder.charge.is_some())).collect();
    assert_eq!(charged, [Some(true), None, Some(true)]);
    let ids: Vec<_> = holders.iter().flatten().map(|holder| ("acme", holder.id)).collect();
    let events = holders::events(&mut tx, &ids).await.unwrap();
    let units: Vec<_> = events.iter().map(|event| event.as_ref().unwrap().event.measures.units.to_string()).collect();
    assert_eq!(units, ["2", "1"]);
    // PostgreSQL locks every table that it plans for or reads until the end of the transaction.
    let locked = "SELECT relation::regclass::text FROM pg_locks JOIN pg_class c ON c.oid = relation
                  WHERE pid = pg_backend_pid() AND c.relispartition AND c.relkind = 'r' ORDER BY 1";
    let locked: Vec<String> = sqlx::query_scalar(locked).fetch_all(&mut *tx).await.unwrap();
    assert_eq!(locked, ["idempotency_keys_0", "usage_events_2024_02", "usage_events_2026_11"]);
    drop(tx);
    server.stop().await;
}

#[tokio::test]
async fn the_event_of_a_key_is_read_by_index_without_table_statistics() {
    let server = server_with_months(2, Clock::fixed(time(NOW))).await;
    server.sql("ALTER TABLE usage_events_2026_11 SET (autovacuum_enabled = false)").await;
    let events = (0..2_000).map(|number| event_with_key(&format!("k{number}"), event("acme", "sms", "1")));
    server.batch(events.collect(), false).await;
    let reads = async || -> (i64, i64) {
        let sums =
            "SELECT idx_tup_fetch, seq_tup_read FROM pg_stat_xact_user_tables WHERE relname = 'usage_events_2026_11'";
        let mut tx = server.pool.begin().await.unwrap();
        holders::find(&mut tx, &wanted(&["k7"])).await.unwrap();
        sqlx::query_as(sums).fetch_one(&mut *tx).await.unwrap()
    };
    assert_eq!(reads().await, (1, 0));
    server.stop().await;
}

fn metadata(key: &str, value: &str) -> Option<Struct> {
    let value = Value { kind: Some(Kind::StringValue(value.into())) };
    Some(Struct { fields: [(key.to_string(), value)].into() })
}

/// A change of an event, and the name of the changed field.
type Change = (&'static str, fn(UsageEvent) -> UsageEvent);

const CHANGES: [Change; 12] = [
    ("service", |event| UsageEvent { service: "email".into(), ..event }),
    ("operation", |event| UsageEvent { operation: "other".into(), ..event }),
    ("model", |event| UsageEvent { model: "other".into(), ..event }),
    ("units", |event| UsageEvent { units: "4".into(), ..event }),
    ("input_tokens", |event| UsageEvent { input_tokens: 11, ..event }),
    ("output_tokens", |event| UsageEvent { output_tokens: 12, ..event }),
    ("cached_input_tokens", |event| UsageEvent { cached_input_tokens: 3, ..event }),
    ("amount", |event| UsageEvent { amount: String::new(), ..event }),
    ("event_time", |event| UsageEvent { event_time: Some(timestamp("2026-11-21T11:00:00Z")), ..event }),
    ("subject", |event| UsageEvent { subject: "other".into(), ..event }),
    ("external_id", |event| UsageEvent { external_id: "other".into(), ..event }),
    ("metadata", |event| UsageEvent { metadata: metadata("secret", "other"), ..event }),
];

fn full_event() -> UsageEvent {
    let event = UsageEvent {
        operation: "send".into(),
        model: "m".into(),
        input_tokens: 10,
        output_tokens: 2,
        cached_input_tokens: 1,
        amount: "2.50".into(),
        subject: "u".into(),
        external_id: "x".into(),
        metadata: metadata("secret", "hunter2"),
        ..event("acme", "sms", "3")
    };
    event_with_key("k", event)
}

#[tokio::test]
async fn a_conflict_names_the_different_fields_without_values() {
    let server = TestServer::start_with(&[], Clock::fixed(time(NOW))).await;
    server.track(full_event()).await.unwrap();
    for (field, change) in CHANGES {
        let status =
            assert_error(server.track(change(full_event())).await, Code::AlreadyExists, "IDEMPOTENCY_CONFLICT");
        let info = status.get_error_details().error_info().unwrap().metadata.clone();
        assert_eq!(info["differing_fields"], field);
        assert!(status.message().contains(&format!("differs in {field};")), "{status}");
        assert!(!format!("{status:?}").contains("hunter2"), "{status}");
        // A conflict with a recorded event and one with an event of the same batch have the same message.
        let results = server
            .batch(
                vec![
                    change(full_event()),
                    event_with_key("new", full_event()),
                    event_with_key("new", change(full_event())),
                ],
                false,
            )
            .await;
        for result in [&results[0], &results[2]] {
            let error = result.error.as_ref().unwrap();
            assert_eq!(
                (result.outcome(), &*error.differing_fields),
                (EventOutcome::Conflict, &[field.to_string()][..])
            );
        }
        server.sql("DELETE FROM idempotency_keys WHERE idempotency_key = 'new'").await;
    }
    let all = CHANGES.iter().fold(full_event(), |event, (_, change)| change(event));
    let conflict = &server.batch(vec![all], false).await[0];
    let fields = &conflict.error.as_ref().unwrap().differing_fields;
    assert_eq!(*fields, CHANGES.map(|(field, _)| field));
    server.stop().await;
}

#[tokio::test]
async fn a_conflict_names_the_time_if_it_differs() {
    let server = TestServer::start_with(&[], Clock::fixed(time(NOW))).await;
    let timed = event_with_key("timed", event_at("acme", "sms", "1", "2026-11-20T00:00:00Z"));
    let untimed = event_with_key("untimed", event("acme", "sms", "1"));
    server.batch(vec![timed.clone(), untimed.clone()], false).await;
    let units = |event: &UsageEvent| UsageEvent { units: "2".into(), ..event.clone() };
    let without = |event: &UsageEvent| UsageEvent { event_time: None, ..event.clone() };
    let at = |event: &UsageEvent, at: &str| UsageEvent { event_time: Some(timestamp(at)), ..event.clone() };
    let cases = [
        (without(&timed), vec!["event_time"]),
        (without(&units(&timed)), vec!["units", "event_time"]),
        (units(&timed), vec!["units"]),
        (at(&timed, NOW), vec!["event_time"]),
        (units(&untimed), vec!["units"]),
        (at(&untimed, "2026-11-20T00:00:00Z"), vec!["event_time"]),
        (at(&units(&untimed), NOW), vec!["units"]),
    ];
    for (event, fields) in cases {
        let result = &server.batch(vec![event], false).await[0];
        assert_eq!(result.error.as_ref().unwrap().differing_fields, fields);
    }
    server.assert_exact(2).await;
    server.stop().await;
}

#[tokio::test]
async fn the_filled_in_time_is_the_same_payload_and_any_other_time_a_conflict() {
    let clock = Clock::fixed(time("2026-11-21T12:00:00.123456Z"));
    let server = TestServer::start_with(&[], clock.clone()).await;
    let sent = event_with_key("k", event("acme", "sms", "1"));
    let first = server.track(sent.clone()).await.unwrap();
    clock.set(time("2026-11-21T12:05:00Z"));
    let exported = UsageEvent { event_time: first.event_time, ..sent.clone() };
    let again = server.track(exported.clone()).await.unwrap();
    assert_eq!((again.outcome(), &again.event_id), (EventOutcome::Duplicate, &first.event_id));
    assert_eq!(server.track(sent).await.unwrap().outcome(), EventOutcome::Duplicate);
    for other in [
        UsageEvent { event_time: Some(timestamp("2026-11-21T12:00:00.123457Z")), ..exported.clone() },
        UsageEvent { units: "2".into(), ..exported },
    ] {
        assert_error(server.track(other).await, Code::AlreadyExists, "IDEMPOTENCY_CONFLICT");
    }
    server.assert_exact(1).await;
    server.stop().await;
}

const CALLERS: usize = 32;
const RATE_TIME: Duration = Duration::from_secs(5);

/// Measures calls per second of several callers of one client. `event_of` returns the event of a call.
async fn rate(server: &TestServer, event_of: impl Fn(usize) -> UsageEvent + Clone + Send + 'static) -> f64 {
    let (next, started) = (Arc::new(AtomicUsize::new(0)), Instant::now());
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        let (mut usage, next, event_of) = (server.usage(), next.clone(), event_of.clone());
        callers.spawn(async move {
            while started.elapsed() < RATE_TIME {
                let event = event_of(next.fetch_add(1, Ordering::Relaxed));
                usage.track_usage(TrackUsageRequest { event: Some(event) }).await.unwrap();
            }
        });
    }
    callers.join_all().await;
    next.load(Ordering::Relaxed) as f64 / started.elapsed().as_secs_f64()
}

/// Measures calls per second with new keys, and when half of the calls repeat keys of any month.
async fn rates(month_count: usize) -> (f64, f64) {
    const EACH: usize = 200;
    let server = server_with_months(month_count, Clock::fixed(time(NOW))).await;
    let months = months(month_count);
    for month in &months {
        server
            .sql(&format!(
                "ALTER TABLE usage_events_{} SET (autovacuum_enabled = false)",
                month.to_string().replace('-', "_")
            ))
            .await;
    }
    let old = move |number: usize| {
        let month = months[number % months.len()];
        event_with_key(
            &format!("old-{number}"),
            event_at("acme", "sms", "1", &format!("{}T00:00:00Z", month.first_day())),
        )
    };
    let imported: Vec<UsageEvent> = (0..month_count * EACH).map(&old).collect();
    for part in imported.chunks(5_000) {
        server.batch(part.to_vec(), true).await;
    }
    let fresh = |name: &'static str| {
        move |number: usize| event_with_key(&format!("{name}-{number}"), event("acme", "sms", "1"))
    };
    let new = rate(&server, fresh("new")).await;
    let (mixed, count) = (fresh("mixed"), month_count * EACH);
    let resent = rate(&server, move |number| {
        // Spread over the months like random numbers.
        if number % 2 == 0 { mixed(number) } else { old(number.wrapping_mul(7_919) % count) }
    })
    .await;
    assert_eq!(server.verify().await.differences, 0);
    server.stop().await;
    (new, resent)
}

/// Run with `cargo test --test api -- --ignored --nocapture repeats_cost`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures for a minute"]
async fn repeats_cost_the_same_with_any_number_of_partitions() {
    let mut first = None;
    for partitions in [4, 63, 243] {
        let (new, resent) = rates(partitions).await;
        let (ratio, first) = (resent / new, *first.get_or_insert(resent));
        println!(
            "{partitions} partitions: {new:.0} calls/s with new keys, {resent:.0} where half are resent: {ratio:.2} of \
             new ones, {:.2} of that with 4 partitions",
            resent / first
        );
        assert!(ratio > 0.5 && resent / first > 0.6, "{partitions} partitions");
    }
}
