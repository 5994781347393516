//! Sums are exact for many callers, many replicas and any interleaving.

use crate::harness::*;
use meterd::proto::*;
use meterd_engine::clock::Clock;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use sqlx::Row;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::task::JoinSet;

const CALLERS: usize = 64;
/// Number of distinct events per run.
const EVENTS: usize = 200_000;
/// One in this many events is sent again.
const RESENT_EVERY: usize = 10;
/// Number of events per batch. Nine of ten calls are batches, and the tenth is a single event.
const BATCH: usize = 100;

/// Returns the event with this number: 0.001 to 1 units of one of three services.
fn numbered_event(number: usize, clients: usize) -> UsageEvent {
    let service = ["sms", "email", "whatsapp"][number % 3];
    let units = format!("{}.{:03}", number % 7, number % 1_000);
    let client_id = format!("client-{}", number % clients);
    UsageEvent { idempotency_key: format!("key-{number}"), ..event(&client_id, service, &units) }
}

/// Sends all events from many callers to the servers in turn. Returns the number of each outcome.
async fn send_all(servers: &[&TestServer], clients: usize) -> HashMap<EventOutcome, usize> {
    let next = Arc::new(AtomicUsize::new(0));
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        let mut client = servers[caller % servers.len()].usage();
        let next = next.clone();
        callers.spawn(async move {
            let mut outcomes: HashMap<_, usize> = HashMap::new();
            let mut call = 0;
            loop {
                call += 1;
                let count = if call % 10 == 0 { 1 } else { BATCH };
                let first = next.fetch_add(count, Ordering::Relaxed);
                let numbers = first..(first + count).min(EVENTS);
                if numbers.is_empty() {
                    return outcomes;
                }
                let mut events: Vec<_> = numbers.clone().map(|number| numbered_event(number, clients)).collect();
                // A resent event was sent by this caller before, or is being sent by another one now.
                let again = numbers.filter(|number| number % RESENT_EVERY == 0);
                events.extend(again.map(|number| numbered_event(number.saturating_sub(RESENT_EVERY * 30), clients)));
                let mut results = Vec::new();
                if events.len() == 1 {
                    let request = TrackUsageRequest { event: events.pop() };
                    results.push(client.track_usage(request).await.unwrap().into_inner().result.unwrap());
                } else {
                    let request = BatchTrackUsageRequest { events, backfill: false, ..Default::default() };
                    results = client.batch_track_usage(request).await.unwrap().into_inner().results;
                }
                for result in results {
                    *outcomes.entry(result.outcome()).or_default() += 1;
                }
            }
        });
    }
    let mut all: HashMap<_, usize> = HashMap::new();
    while let Some(outcomes) = callers.join_next().await {
        for (outcome, count) in outcomes.unwrap() {
            *all.entry(outcome).or_default() += count;
        }
    }
    all
}

/// Returns units and requests of all clients from the month totals.
async fn totals(server: &TestServer) -> (i64, String, String) {
    let row = sqlx::query(
        "SELECT sum(request_count)::bigint AS requests, trim_scale(sum(units))::text AS units,
             trim_scale(sum(cost))::text AS cost FROM usage_months",
    )
    .fetch_one(&server.pool)
    .await
    .unwrap();
    (row.get("requests"), row.get("units"), row.get("cost"))
}

async fn deadlocks(server: &TestServer) -> i64 {
    // Backends report deadlocks when they become idle or end.
    tokio::time::sleep(std::time::Duration::from_millis(1_100)).await;
    let row = sqlx::query("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()");
    row.fetch_one(&server.pool).await.unwrap().get("deadlocks")
}

async fn assert_everything_counts_once(replicas: usize, clients: usize) {
    let url = fresh_database().await;
    let mut servers = Vec::new();
    for _ in 0..replicas {
        servers.push(TestServer::replica(&url, &[], Clock::system()).await);
    }
    let outcomes = send_all(&servers.iter().collect::<Vec<_>>(), clients).await;
    let resent = EVENTS / RESENT_EVERY - EVENTS / RESENT_EVERY / BATCH / 10;
    let (accepted, duplicates) = (outcomes[&EventOutcome::Accepted], outcomes[&EventOutcome::Duplicate]);
    println!(
        "{replicas} replicas, {clients} clients: {accepted} accepted, {duplicates} duplicates of about {resent} resent"
    );
    assert_eq!(accepted, EVENTS);
    assert_eq!(accepted + duplicates, outcomes.values().sum::<usize>(), "{outcomes:?}");
    assert!(duplicates > EVENTS / RESENT_EVERY / 2);
    let (mut units, mut cost) = (0u128, 0u128);
    for number in 0..EVENTS as u128 {
        let milli_units = number % 7 * 1_000 + number % 1_000;
        units += milli_units;
        cost += milli_units * [75, 10, 50][number as usize % 3];
    }
    let plain = |scaled: u128, decimals: usize| {
        let digits = format!("{scaled:0>width$}", width = decimals + 1);
        let (integer, fraction) = digits.split_at(digits.len() - decimals);
        format!("{integer}.{fraction}").trim_end_matches('0').trim_end_matches('.').to_string()
    };
    assert_eq!(totals(&servers[0]).await, (EVENTS as i64, plain(units, 3), plain(cost, 7)));
    servers[0].assert_exact(EVENTS as i64).await;
    assert_eq!(deadlocks(&servers[0]).await, 0);
    for server in servers {
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_callers_of_one_client_lose_and_duplicate_nothing() {
    assert_everything_counts_once(1, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_callers_of_a_thousand_clients_lose_and_duplicate_nothing() {
    assert_everything_counts_once(1, 1_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_replicas_with_the_same_clients_lose_and_duplicate_nothing() {
    assert_everything_counts_once(2, 1).await;
    assert_everything_counts_once(2, 1_000).await;
}

/// An event with few possible values around the end of a month, so that many events share rows.
fn any_event() -> impl Strategy<Value = UsageEvent> {
    let client = prop::sample::select(vec!["kiribati", "samoa", "berlin", "new"]);
    let service =
        prop::sample::select(vec![("sms", ""), ("twilio_voice", "recording"), ("social", ""), ("openai", "chat")]);
    // Up to three hours before and after midnight UTC at the end of October, when Berlin's clocks are set back.
    (client, service, 0u32..1_000_000, 0i64..1_000, -600i64..600, 0u32..40).prop_map(
        |(client, (service, operation), units, tokens, minutes, key)| UsageEvent {
            operation: operation.into(),
            model: if service == "openai" { "gpt-4o-mini".into() } else { String::new() },
            input_tokens: tokens,
            event_time: Some(prost_types::Timestamp { seconds: 1_793_491_200 + minutes * 60, nanos: 0 }),
            idempotency_key: if key < 20 { format!("key-{key}") } else { String::new() },
            ..event(client, service, &format!("0.{units:06}"))
        },
    )
}

/// Something that happens while other things happen.
#[derive(Clone, Debug)]
enum Action {
    Record(Vec<UsageEvent>),
    /// A single event, which is recorded in one call if its key is free.
    Track(Box<UsageEvent>),
    /// Closes the current generation of keys.
    Close,
    /// Applies pending usage.
    Apply,
    Rebuild,
    RefreshSummaries,
}

fn any_action() -> impl Strategy<Value = Action> {
    prop_oneof![
        6 => prop::collection::vec(any_event(), 1..20).prop_map(Action::Record),
        2 => prop::collection::vec(any_event(), 50..80).prop_map(Action::Record),
        8 => any_event().prop_map(|event| Action::Track(Box::new(event))),
        2 => Just(Action::Close),
        3 => Just(Action::Apply),
        1 => Just(Action::Rebuild),
        1 => Just(Action::RefreshSummaries),
    ]
}

/// Does an action, and returns the outcomes of its events.
async fn act(server: &TestServer, action: Action) -> Vec<EventOutcome> {
    let mut usage = server.usage();
    match action {
        Action::Record(events) => {
            let request = BatchTrackUsageRequest { events, backfill: true, ..Default::default() };
            let response = usage.batch_track_usage(request).await.unwrap().into_inner();
            return response.results.iter().map(|result| result.outcome()).collect();
        }
        Action::Track(event) => {
            return match usage.track_usage(TrackUsageRequest { event: Some(*event) }).await {
                Ok(response) => vec![response.into_inner().result.unwrap().outcome()],
                Err(error) => {
                    assert_eq!(error.code(), tonic::Code::AlreadyExists, "{error}");
                    vec![EventOutcome::Conflict]
                }
            };
        }
        // The job may be running on the other replica.
        Action::Close => drop(server.jobs().run_job(RunJobRequest { job: "key_generations".into() }).await),
        Action::Apply => drop(server.jobs().run_job(RunJobRequest { job: "pending_usage".into() }).await),
        Action::Rebuild => {
            let request = RebuildRollupsRequest {
                start_date: "2026-10-01".into(),
                end_date: "2026-11-30".into(),
                ..Default::default()
            };
            let rebuilt = usage.rebuild_rollups(request).await.unwrap().into_inner();
            assert_eq!(rebuilt.corrected_row_count, 0, "the sums differed from the events");
        }
        Action::RefreshSummaries => {
            usage.update_monthly_summaries(UpdateMonthlySummariesRequest::default()).await.unwrap();
        }
    }
    vec![]
}

/// Compares the sums with the events in one snapshot.
async fn assert_exact_now(pool: &sqlx::PgPool) {
    let counts: Vec<String> = sqlx::query_scalar(
        "SELECT concat_ws(' ', count(*), COALESCE(trim_scale(sum(charge)), 0)) FROM usage_events
         UNION ALL SELECT concat_ws(' ', COALESCE(sum(request_count), 0), COALESCE(trim_scale(sum(cost)), 0)) FROM all_usage_days
         UNION ALL SELECT concat_ws(' ', COALESCE(sum(request_count), 0), COALESCE(trim_scale(sum(cost)), 0)) FROM all_usage_month_services
         UNION ALL SELECT concat_ws(' ', COALESCE(sum(request_count), 0), COALESCE(trim_scale(sum(cost)), 0)) FROM usage_months",
    )
    .fetch_all(pool)
    .await
    .unwrap();
    let keys: i64 =
        sqlx::query_scalar("SELECT count(*) - count(DISTINCT (client_id, idempotency_key)) FROM idempotency_keys")
            .fetch_one(pool)
            .await
            .unwrap();
    assert_eq!(counts, vec![counts[0].clone(); 4], "events, days, months of services, months");
    assert_eq!(keys, 0, "a key is in two generations");
}

#[test]
fn sums_equal_their_events_at_every_commit_for_any_interleaving_on_two_replicas() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let clock = Clock::fixed(time("2026-11-02T00:00:00Z"));
    let flags = ["--key-generation-bytes=1"];
    let (first, second) = runtime.block_on(async {
        let first = TestServer::start_with(&flags, clock.clone()).await;
        let second = TestServer::replica(&first.database_url, &flags, clock.clone()).await;
        for (client_id, zone) in
            [("kiribati", "Pacific/Kiritimati"), ("samoa", "Pacific/Pago_Pago"), ("berlin", "Europe/Berlin")]
        {
            first.create_client_in_zone(client_id, zone).await;
        }
        (Arc::new(first), Arc::new(second))
    });
    let servers = [&first, &second];
    let mut runner =
        TestRunner::new(Config { cases: 40, failure_persistence: None, max_shrink_iters: 0, ..Config::default() });
    // All actions of a case happen at once, each on a replica.
    let actions = prop::collection::vec((any_action(), 0usize..2), 1..16);
    let (accepted, reads) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let outcome = runner.run(&actions, |actions| {
        runtime.block_on(async {
            let mut running = JoinSet::new();
            for (action, replica) in actions {
                let server = servers[replica].clone();
                running.spawn(async move { act(&server, action).await });
            }
            while !running.is_empty() {
                assert_exact_now(&first.pool).await;
                reads.fetch_add(1, Ordering::Relaxed);
                while let Some(outcomes) = running.try_join_next() {
                    for outcome in outcomes.unwrap() {
                        let settled = [EventOutcome::Accepted, EventOutcome::Duplicate, EventOutcome::Conflict];
                        prop_assert!(settled.contains(&outcome), "{outcome:?}");
                        accepted.fetch_add(usize::from(outcome == EventOutcome::Accepted), Ordering::Relaxed);
                    }
                }
            }
            let verified = first.verify().await;
            prop_assert_eq!((verified.differences, verified.events as usize), (0, accepted.load(Ordering::Relaxed)));
            Ok(())
        })
    });
    outcome.unwrap();
    let generations = runtime.block_on(async { first.sql("SELECT 1 FROM key_generations").await });
    println!("{accepted:?} events, {reads:?} reads meanwhile, {generations} generations of keys closed");
    assert!(generations > 10, "{generations}");
    runtime.block_on(async {
        for server in [first, second] {
            Arc::into_inner(server).unwrap().stop().await;
        }
    });
}
