//! Generations of idempotency keys: a key is unique across all of them, whatever a replica knows of the closed ones.

use crate::harness::*;
use chrono::{DateTime, TimeDelta};
use meterd::proto::{BatchTrackUsageRequest, EventOutcome, UsageEvent, UsageResult};
use meterd_engine::clock::Clock;
use meterd_store::usage::generations::{self, KeyRetention};
use rand::seq::SliceRandom;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tonic::Code;

/// Each run of the job closes the current generation.
const CLOSE_ALWAYS: &str = "--key-generation-bytes=1";

fn keyed(key: &str, units: &str) -> UsageEvent {
    UsageEvent { idempotency_key: key.into(), ..event("acme", "sms", units) }
}

fn outcomes(results: &[UsageResult]) -> Vec<EventOutcome> {
    results.iter().map(UsageResult::outcome).collect()
}

async fn close(server: &TestServer) {
    let done = server.run_job("key_generations").await;
    assert_eq!(done, "1 generation closed and 1 filter built");
}

async fn read_filters(server: &TestServer) {
    server.context.engine.key_filters.refresh(&server.pool).await.unwrap();
}

/// Returns the number of keys in each generation that has keys, oldest first.
async fn key_counts(server: &TestServer) -> Vec<i64> {
    let counts = "SELECT count(*) FROM idempotency_keys GROUP BY generation ORDER BY generation";
    sqlx::query_scalar(counts).fetch_all(&server.pool).await.unwrap()
}

#[tokio::test]
async fn a_key_of_a_closed_generation_is_taken_with_and_without_its_filter() {
    use EventOutcome::{Accepted, Duplicate};
    let server = TestServer::start_with(&[CLOSE_ALWAYS], Clock::system()).await;
    // It has read which generations there are before any was closed.
    let other = TestServer::replica(&server.database_url, &[CLOSE_ALWAYS], Clock::system()).await;
    let first = server.track(keyed("first", "1")).await.unwrap();
    close(&server).await;
    server.track(keyed("second", "1")).await.unwrap();
    close(&server).await;
    for replica in [&server, &other] {
        for round in 0..2 {
            let again = replica.track(keyed("first", "1")).await.unwrap();
            assert_eq!((again.outcome(), &again.event_id), (Duplicate, &first.event_id));
            assert_eq!(again.charge, first.charge);
            let changed = replica.track(keyed("first", "2")).await.unwrap_err();
            assert_eq!(changed.code(), Code::AlreadyExists);
            assert!(changed.message().contains("differs in units"), "{changed}");
            // Small batches use statements, large ones COPY.
            for size in [3, 70] {
                let new = |number| keyed(&format!("{round}-{size}-{number}"), "1");
                let mut batch: Vec<UsageEvent> = (0..size).map(new).collect();
                batch[1] = keyed("second", "1");
                let results = replica.batch(batch.clone(), false).await;
                let expected = if std::ptr::eq(replica, &server) { Accepted } else { Duplicate };
                assert_eq!(results[1].outcome(), Duplicate);
                assert!(results.iter().enumerate().all(|(at, result)| at == 1 || result.outcome() == expected));
                let request = BatchTrackUsageRequest { events: batch, validate_only: true, ..Default::default() };
                let preview = replica.usage().batch_track_usage(request).await.unwrap().into_inner().results;
                assert_eq!(outcomes(&preview), vec![Duplicate; size]);
            }
            read_filters(replica).await;
        }
    }
    assert_eq!(key_counts(&server).await, [1, 1, 2 * (2 + 69)]);
    server.assert_exact(2 + 2 * (2 + 69)).await;
    other.stop().await;
    server.stop().await;
}

/// Each key is sent many times, to both replicas, while generations are closed and rewritten and filters come and go.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_counts_once_while_generations_are_closed_on_two_replicas() {
    const KEYS: usize = 400;
    const CALLERS: usize = 6;
    let server = Arc::new(TestServer::start_with(&[], Clock::system()).await);
    let other = Arc::new(TestServer::replica(&server.database_url, &[], Clock::system()).await);
    let is_done = Arc::new(AtomicBool::new(false));
    let closed = {
        let (server, other, is_done) = (server.clone(), other.clone(), is_done.clone());
        tokio::spawn(async move {
            let keep_all = KeyRetention { before: DateTime::UNIX_EPOCH, closed_through: None };
            let mut closed = 0;
            while !is_done.load(Ordering::Relaxed) {
                generations::prepare(&server.pool, closed + 1).await.unwrap();
                assert!(generations::close(&server.pool, closed).await.unwrap());
                closed += 1;
                if closed % 2 == 0 {
                    generations::rewrite_closed(&server.pool, closed / 2, keep_all).await.unwrap();
                }
                if closed % 3 == 0 {
                    meterd_engine::ingest::build_filter(&server.pool, closed - 1).await.unwrap();
                    read_filters(if closed % 2 == 0 { &server } else { &other }).await;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            closed
        })
    };
    let accepted = Arc::new(AtomicUsize::new(0));
    let callers = (0..CALLERS).map(|caller| {
        let (replica, accepted) = (if caller % 2 == 0 { server.clone() } else { other.clone() }, accepted.clone());
        tokio::spawn(async move {
            for _ in 0..3 {
                let mut keys: Vec<usize> = (0..KEYS).collect();
                keys.shuffle(&mut rand::rng());
                for part in keys.chunks(25) {
                    let events = part.iter().map(|key| keyed(&format!("key-{key}"), "1")).collect();
                    let results = replica.batch(events, false).await;
                    let new = results.iter().filter(|result| result.outcome() == EventOutcome::Accepted).count();
                    let repeated = results.iter().filter(|result| result.outcome() == EventOutcome::Duplicate).count();
                    assert_eq!(new + repeated, part.len());
                    accepted.fetch_add(new, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
        })
    });
    for caller in callers.collect::<Vec<_>>() {
        caller.await.unwrap();
    }
    is_done.store(true, Ordering::Relaxed);
    let closed = closed.await.unwrap();
    println!("{closed} generations closed");
    assert!(closed > 10, "too few generations were closed to prove anything");
    assert_eq!(accepted.load(Ordering::Relaxed), KEYS);
    assert!(key_counts(&server).await.len() > 3, "the keys are in too few generations to prove anything");
    server.assert_exact(KEYS as i64).await;
    Arc::into_inner(other).unwrap().stop().await;
    Arc::into_inner(server).unwrap().stop().await;
}

#[tokio::test]
async fn filters_beyond_the_memory_limit_are_not_kept_and_not_needed() {
    let flags = [CLOSE_ALWAYS, "--key-filter-bytes-max=20"];
    let server = TestServer::start_with(&flags, Clock::system()).await;
    for number in 0..3 {
        server.track(keyed(&format!("key-{number}"), "1")).await.unwrap();
        close(&server).await;
    }
    read_filters(&server).await;
    let bytes = server.context.engine.key_filters.memory_bytes();
    assert!((1..=20).contains(&bytes), "{bytes} bytes of filters");
    for number in 0..3 {
        let again = server.track(keyed(&format!("key-{number}"), "1")).await.unwrap();
        assert_eq!(again.outcome(), EventOutcome::Duplicate);
    }
    server.assert_exact(3).await;
    server.stop().await;
}

#[tokio::test]
async fn a_generation_is_closed_only_when_it_is_large() {
    let server = TestServer::start_with(&["--key-generation-bytes=200000"], Clock::system()).await;
    let nothing = "0 generations closed and 0 filters built";
    server.track(keyed("first", "1")).await.unwrap();
    assert_eq!(server.run_job("key_generations").await, nothing);
    server.batch((0..2_000).map(|number| keyed(&format!("key-{number}"), "1")).collect(), false).await;
    close(&server).await;
    assert_eq!(server.run_job("key_generations").await, nothing);
    server.stop().await;
}

/// A generation is closed after an eighth of the retention.
#[tokio::test]
async fn a_generation_with_keys_is_closed_when_it_is_old() {
    let server = TestServer::start_with(&["--key-retention-days=80"], Clock::system()).await;
    let nothing = "0 generations closed and 0 filters built";
    server.sql("UPDATE deployment SET create_time = now() - interval '11 days'").await;
    assert_eq!(server.run_job("key_generations").await, nothing, "it has no keys");
    server.track(keyed("first", "1")).await.unwrap();
    close(&server).await;
    server.track(keyed("second", "1")).await.unwrap();
    server.sql("UPDATE key_generations SET close_time = close_time - interval '9 days'").await;
    assert_eq!(server.run_job("key_generations").await, nothing);
    server.sql("UPDATE key_generations SET close_time = close_time - interval '1 day'").await;
    close(&server).await;
    server.stop().await;
}

#[tokio::test]
async fn a_generation_is_dropped_when_all_its_keys_are_past_their_retention() {
    const NOW: &str = "2024-11-21T12:00:00Z";
    let server = TestServer::start_with(&[CLOSE_ALWAYS, "--retention-months=3"], Clock::fixed(time(NOW))).await;
    let at = |key: &str, time: &str| UsageEvent { idempotency_key: key.into(), ..event_at("acme", "sms", "1", time) };
    let old = at("old", NOW);
    server.track(old.clone()).await.unwrap();
    let age = "UPDATE idempotency_keys SET claim_time = claim_time - interval '401 days' WHERE generation = ";
    server.sql(&format!("{age}0")).await;
    close(&server).await;
    let filled = at("filled", "2024-10-15T12:00:00Z");
    server.batch(vec![at("live", NOW), filled.clone()], true).await;
    server.sql(&format!("{age}1")).await;
    close(&server).await;
    server.sql("UPDATE usage_events SET record_time = record_time - interval '401 days'").await;
    assert_eq!(server.run_job("key_pruning").await, "1 key and 0 request ids deleted");
    // The generation was rewritten without its key. It is still too young to be dropped.
    let tables = async || {
        let tables = "SELECT relname::text FROM pg_class WHERE relname ~ '^idempotency_keys_[0-9]+$' ORDER BY 1";
        sqlx::query_scalar::<_, String>(tables).fetch_all(&server.pool).await.unwrap()
    };
    assert_eq!(tables().await, ["idempotency_keys_0", "idempotency_keys_1", "idempotency_keys_2"]);
    server.sql("UPDATE key_generations SET close_time = close_time - interval '401 days'").await;
    assert_eq!(server.run_job("key_pruning").await, "0 keys and 0 request ids deleted");
    assert_eq!(tables().await, ["idempotency_keys_1", "idempotency_keys_2"], "the backfill's month is open");
    server.clock.set(time(NOW) + TimeDelta::days(401));
    assert_invalid(server.track(old).await, "EVENT_TOO_OLD", &["event.event_time"]);
    assert_eq!(server.batch(vec![filled], true).await[0].outcome(), EventOutcome::Duplicate);
    // The filters in memory still know the dropped generation.
    server.assert_exact(3).await;
    server.stop().await;
}

/// As after a failover to a copy in which the generation was closed at another time, with other keys.
#[tokio::test]
async fn a_filter_is_not_used_for_a_generation_that_was_closed_at_another_time() {
    let server = TestServer::start_with(&[CLOSE_ALWAYS], Clock::system()).await;
    server.track(keyed("first", "1")).await.unwrap();
    close(&server).await;
    read_filters(&server).await;
    server.sql("ALTER TABLE idempotency_keys_0 DROP CONSTRAINT idempotency_keys_0_is_closed").await;
    server.sql("UPDATE idempotency_keys SET idempotency_key = 'other'").await;
    server.sql("UPDATE key_generations SET close_time = now(), filter = NULL, filter_format = NULL").await;
    read_filters(&server).await;
    assert_eq!(server.track(keyed("other", "1")).await.unwrap().outcome(), EventOutcome::Duplicate);
    server.stop().await;
}

/// Inserts keys as a replica of a release without generations would.
#[tokio::test]
async fn postgresql_rejects_a_key_of_a_closed_generation() {
    let server = TestServer::start_with(&[CLOSE_ALWAYS], Clock::system()).await;
    server.track(keyed("first", "1")).await.unwrap();
    let insert = "INSERT INTO idempotency_keys (client_id, idempotency_key, payload_hash, event_time, event_seq)
                  VALUES ('acme', 'other', '', now(), 1)";
    server.sql(insert).await;
    server.sql("DELETE FROM idempotency_keys WHERE idempotency_key = 'other'").await;
    // During an upgrade, such replicas may still run.
    server.sql("UPDATE deployment SET keys_stay_until = now() + interval '1 hour'").await;
    assert_eq!(server.run_job("key_generations").await, "0 generations closed and 0 filters built");
    server.sql("UPDATE deployment SET keys_stay_until = now()").await;
    close(&server).await;
    let error = sqlx::query(insert).execute(&server.pool).await.unwrap_err();
    assert!(error.to_string().contains("idempotency_keys_0_is_closed"), "{error}");
    server.assert_exact(1).await;
    server.stop().await;
}

#[tokio::test]
async fn verify_finds_a_key_that_is_in_two_generations() {
    let server = TestServer::start_with(&[CLOSE_ALWAYS], Clock::system()).await;
    server.track(keyed("twice", "1")).await.unwrap();
    close(&server).await;
    let copy =
        "INSERT INTO idempotency_keys (client_id, idempotency_key, payload_hash, event_time, event_seq, generation)
                SELECT client_id, idempotency_key, payload_hash, event_time, event_seq + 1, 1 FROM idempotency_keys";
    assert_eq!(server.sql(copy).await, 1);
    let verified = server.verify().await;
    assert_eq!(verified.differences, 2, "one for the key of another event, one for the missing event");
    server.stop().await;
}
