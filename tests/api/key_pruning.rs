//! Idempotency keys are deleted after their retention, but never so early that a live event could be counted twice.

use crate::harness::*;
use chrono::{DateTime, TimeDelta, Utc};
use meterd::proto::{Client, CreateClientRequest, EventOutcome, RunJobRequest, UsageEvent};
use meterd_engine::clock::Clock;
use sqlx::AssertSqlSafe;

const NOW: &str = "2024-11-21T12:00:00Z";

/// Each run of the job `key_generations` closes the current generation. Only keys of closed generations are deleted.
const CLOSE_ALWAYS: &str = "--key-generation-bytes=1";

async fn server(flags: &[&str]) -> TestServer {
    TestServer::start_with(&[&[CLOSE_ALWAYS], flags].concat(), Clock::fixed(time(NOW))).await
}

async fn close_generation(server: &TestServer) {
    assert_eq!(server.run_job("key_generations").await, "1 generation closed and 1 filter built");
}

fn event_with_key(key: &str, event: UsageEvent) -> UsageEvent {
    UsageEvent { idempotency_key: key.into(), ..event }
}

/// Makes all keys, generations and events this many days older, also the keys of closed generations, which PostgreSQL would not
/// let be changed.
async fn age(server: &TestServer, days: u32) {
    server
        .sql(&format!(
            "DO $$
             DECLARE
                 closed regclass[] := ARRAY(SELECT conrelid FROM pg_constraint WHERE conname LIKE '%\\_is_closed');
                 generation regclass;
             BEGIN
                 FOREACH generation IN ARRAY closed LOOP
                     EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', generation, generation || '_is_closed');
                 END LOOP;
                 UPDATE idempotency_keys SET claim_time = claim_time - interval '{days} days';
                 FOREACH generation IN ARRAY closed LOOP
                     EXECUTE format('ALTER TABLE %s ADD CONSTRAINT %I CHECK (false) NOT VALID', generation,
                         generation || '_is_closed');
                 END LOOP;
                 UPDATE key_generations SET close_time = close_time - interval '{days} days';
                 UPDATE usage_events SET record_time = record_time - interval '{days} days';
             END $$"
        ))
        .await;
}

async fn keys(server: &TestServer) -> Vec<String> {
    let keys = "SELECT idempotency_key FROM idempotency_keys ORDER BY 1";
    sqlx::query_scalar(keys).fetch_all(&server.pool).await.unwrap()
}

async fn count(server: &TestServer, rows: &str) -> i64 {
    sqlx::query_scalar(AssertSqlSafe(format!("SELECT count(*) FROM {rows}"))).fetch_one(&server.pool).await.unwrap()
}

#[tokio::test]
async fn a_live_event_is_a_duplicate_while_its_key_is_kept_and_too_old_afterwards() {
    let server = server(&[]).await;
    let first = event_with_key("k", event_at("acme", "sms", "1", NOW));
    server.track(first.clone()).await.unwrap();
    close_generation(&server).await;
    age(&server, 399).await;
    server.clock.set(time(NOW) + TimeDelta::days(399));
    assert_eq!(server.run_job("key_pruning").await, "0 keys and 0 request ids deleted");
    assert_eq!(server.track(first.clone()).await.unwrap().outcome(), EventOutcome::Duplicate);
    age(&server, 2).await;
    server.clock.set(time(NOW) + TimeDelta::days(401));
    assert_eq!(server.run_job("key_pruning").await, "1 key and 0 request ids deleted");
    assert_invalid(server.track(first).await, "EVENT_TOO_OLD", &["event.event_time"]);
    server.assert_exact(1).await;
    server.stop().await;
}

/// The generation also has keys of live events. It is rewritten when at least half of its keys can be deleted.
#[tokio::test]
async fn a_backfilled_event_is_a_duplicate_while_its_month_is_open() {
    let server = server(&["--retention-months=3"]).await;
    let of_month = |name: &str, month: &str| {
        event_with_key(name, event_at("acme", "sms", "1", &format!("2024-{month}-15T12:00:00Z")))
    };
    let all = vec![of_month("august", "08"), of_month("july", "07"), of_month("march", "03"), of_month("may", "05")];
    server.batch(all.clone(), true).await;
    let live = |number: i32| event_with_key(&format!("live-{number}"), event_at("acme", "sms", "1", NOW));
    server.batch((0..4).map(live).collect(), false).await;
    close_generation(&server).await;
    age(&server, 401).await;
    assert_eq!(server.run_job("key_pruning").await, "4 keys and 0 request ids deleted");
    assert_eq!(keys(&server).await, ["august", "july", "march", "may"]);
    assert_eq!(server.run_job("key_pruning").await, "0 keys and 0 request ids deleted");
    // It also closes the next generation, which has no keys.
    assert_eq!(server.run_job("key_generations").await, "1 generation closed and 2 filters built");
    for result in server.batch(all.clone(), true).await {
        assert_eq!(result.outcome(), EventOutcome::Duplicate);
    }

    // July is the last closed month. Its partition may contain events of August, so its keys are kept for one more
    // month.
    server.run_job("retention").await;
    assert_eq!(server.run_job("key_pruning").await, "2 keys and 0 request ids deleted");
    assert_eq!(keys(&server).await, ["august", "july"]);
    let outcomes: Vec<_> = server.batch(all, true).await.iter().map(|result| result.outcome()).collect();
    use EventOutcome::{Duplicate, Rejected};
    assert_eq!(outcomes, [Duplicate, Duplicate, Rejected, Rejected]);
    let counted = "usage_months WHERE month < date '2024-11-01' AND request_count <> 1";
    assert_eq!(count(&server, counted).await, 0, "each month must still have one event");
    let insert = "INSERT INTO idempotency_keys (client_id, idempotency_key, payload_hash, event_time, event_seq)
                  VALUES ('acme', 'other', '', now(), 1)";
    let error = sqlx::query(insert).execute(&server.pool).await.unwrap_err();
    assert!(error.to_string().contains("idempotency_keys_0_is_closed"), "{error}");
    server.stop().await;
}

#[tokio::test]
async fn a_young_key_of_a_closed_month_is_kept_for_its_retention() {
    let server = server(&["--retention-months=3"]).await;
    let march = event_with_key("march", event_at("acme", "sms", "1", "2024-03-15T12:00:00Z"));
    server.batch(vec![march.clone()], true).await;
    close_generation(&server).await;
    server.run_job("retention").await;
    assert_eq!(server.run_job("key_pruning").await, "0 keys and 0 request ids deleted");
    assert_eq!(server.batch(vec![march], true).await[0].outcome(), EventOutcome::Duplicate);
    server.stop().await;
}

/// By default, keys are kept for 400 days.
#[tokio::test]
async fn a_live_event_whose_key_may_be_deleted_is_rejected_with_any_settings() {
    let now = Clock::system().now();
    let came = now - TimeDelta::days(400) - TimeDelta::minutes(5);
    let flags = [CLOSE_ALWAYS, "--accept-future-seconds=86400", "--accept-past-days=390"];
    let first = TestServer::start_with(&flags, Clock::fixed(came)).await;
    let at = |time: DateTime<Utc>| event_at("acme", "sms", "1", &time.to_rfc3339());
    let missing = event_with_key("gone", at(came - TimeDelta::days(1)));
    let ahead = event_with_key("ahead", at(came + TimeDelta::seconds(86_300)));
    first.batch(vec![missing.clone(), ahead.clone()], false).await;
    close_generation(&first).await;
    age(&first, 401).await;
    let kept = event_with_key("kept", at(came));
    first.track(kept.clone()).await.unwrap();
    assert_eq!(first.run_job("key_pruning").await, "2 keys and 0 request ids deleted");

    // With the settings of the other replica, the events are recent enough and their keys would still be kept.
    let flags = ["--accept-past-days=1000", "--key-retention-days=1100"];
    let lenient = TestServer::replica(&first.database_url, &flags, Clock::fixed(now)).await;
    for event in [&missing, &ahead] {
        assert_invalid(lenient.track(event.clone()).await, "EVENT_TOO_OLD", &["event.event_time"]);
    }
    let young = event_with_key("young", at(came + TimeDelta::days(2)));
    let results = lenient.batch(vec![missing.clone(), kept, young, missing], false).await;
    let outcomes: Vec<_> = results.iter().map(|result| result.outcome()).collect();
    use EventOutcome::{Accepted, Duplicate, Rejected};
    assert_eq!(outcomes, [Rejected, Duplicate, Accepted, Rejected]);
    assert_eq!(results[0].error.as_ref().unwrap().reason, "EVENT_TOO_OLD");
    assert_eq!(keys(&first).await, ["kept", "young"], "a rejected event must not leave a key");
    // An event that was never sent can be sent as a backfill.
    let missed = event_with_key("missed", at(came));
    assert_eq!(lenient.batch(vec![missed], true).await[0].outcome(), Accepted);
    lenient.assert_exact(5).await;
    lenient.stop().await;
    first.stop().await;
}

#[tokio::test]
async fn a_run_that_deletes_no_key_causes_no_rejections() {
    let server = TestServer::start_with(&[CLOSE_ALWAYS, "--key-retention-days=40"], Clock::system()).await;
    server.track(event_with_key("young", event("acme", "sms", "1"))).await.unwrap();
    close_generation(&server).await;
    server.run_job("key_pruning").await;
    let flags = ["--accept-past-days=300"];
    let lenient = TestServer::replica(&server.database_url, &flags, Clock::system()).await;
    let old = lenient.clock.now() - TimeDelta::days(200);
    let result = lenient.track(event_at("acme", "sms", "1", &old.to_rfc3339())).await.unwrap();
    assert_eq!(result.outcome(), EventOutcome::Accepted);
    lenient.stop().await;
    server.stop().await;
}

#[tokio::test]
async fn old_keys_of_a_large_generation_are_deleted_and_the_others_stay() {
    let server = server(&["--key-retention-days=40"]).await;
    let insert = |count: u32, prefix: &str, days: u32, backfill: bool| {
        format!(
            "INSERT INTO idempotency_keys (client_id, idempotency_key, payload_hash, event_time, event_seq, claim_time,
                 backfill)
             SELECT 'acme', '{prefix}' || n, '', now() - make_interval(days => {days}), n,
                 now() - make_interval(days => {days}), {backfill}
             FROM generate_series(1, {count}) AS n"
        )
    };
    server.sql(&insert(25_000, "old", 41, false)).await;
    server.sql(&insert(100, "kept", 41, true)).await;
    server.sql(&insert(50, "young", 39, false)).await;
    server.sql(&insert(300, "older", 80, false)).await;
    close_generation(&server).await;
    assert_eq!(server.run_job("key_pruning").await, "25300 keys and 0 request ids deleted");
    assert_eq!(count(&server, "idempotency_keys").await, 150);
    server.stop().await;
}

/// This is the state after the clock was 500 days behind.
#[tokio::test]
async fn a_key_claimed_while_the_databases_clock_was_behind_is_kept_as_long_as_needed() {
    let server = TestServer::start_with(&[CLOSE_ALWAYS], Clock::system()).await;
    let now = server.clock.now();
    let at = |time: DateTime<Utc>| event_at("acme", "sms", "1", &time.to_rfc3339());
    let (live, ahead) = (
        event_with_key("live", at(now - TimeDelta::days(3))),
        event_with_key("ahead", at(now + TimeDelta::minutes(4))),
    );
    server.batch(vec![live.clone(), ahead.clone()], false).await;
    let dated_by_server = event_with_key("dated by the server", event("acme", "sms", "1"));
    server.track(dated_by_server.clone()).await.unwrap();
    close_generation(&server).await;
    age(&server, 500).await;
    assert_eq!(server.run_job("key_pruning").await, "0 keys and 0 request ids deleted");
    for event in [live, ahead, dated_by_server] {
        assert_eq!(server.track(event).await.unwrap().outcome(), EventOutcome::Duplicate);
    }
    // No event is rejected because of it.
    let flags = ["--accept-past-days=450", "--key-retention-days=500"];
    let lenient = TestServer::replica(&server.database_url, &flags, Clock::system()).await;
    let old = lenient.track(at(now - TimeDelta::days(420))).await.unwrap();
    assert_eq!(old.outcome(), EventOutcome::Accepted);
    lenient.assert_exact(4).await;
    lenient.stop().await;
    server.stop().await;
}

#[tokio::test]
async fn a_request_id_stored_while_the_databases_clock_was_behind_is_kept() {
    let server = TestServer::start().await;
    // The time of a transaction cannot be changed, but the default of a column can.
    server.sql("ALTER TABLE create_requests ALTER create_time SET DEFAULT now() - interval '500 days'").await;
    let client = Some(Client { client_id: "acme".into(), ..Default::default() });
    let request = CreateClientRequest { client, request_id: "r".into() };
    server.clients().create_client(request.clone()).await.unwrap();
    assert_eq!(server.run_job("key_pruning").await, "0 keys and 0 request ids deleted");
    server.clients().create_client(request).await.unwrap();
    server.stop().await;
}

#[tokio::test]
async fn request_ids_of_creates_are_deleted_after_their_retention() {
    let server = server(&[]).await;
    for name in ["old", "young"] {
        let client = Some(Client { client_id: name.into(), ..Default::default() });
        let request = CreateClientRequest { client, request_id: name.into() };
        server.clients().create_client(request).await.unwrap();
    }
    server.sql("UPDATE create_requests SET create_time = now() - interval '401 days' WHERE request_id = 'old'").await;
    assert_eq!(server.run_job("key_pruning").await, "0 keys and 1 request id deleted");
    assert_eq!(count(&server, "create_requests WHERE request_id = 'young'").await, 1);
    server.stop().await;
}

#[tokio::test]
async fn a_failing_deletion_does_not_stop_the_others_but_fails_the_run() {
    let server = server(&[]).await;
    server.track(event_with_key("k", event_at("acme", "sms", "1", NOW))).await.unwrap();
    let client = Some(Client { client_id: "old".into(), ..Default::default() });
    let request = CreateClientRequest { client, request_id: "old".into() };
    server.clients().create_client(request).await.unwrap();
    server.sql("UPDATE create_requests SET create_time = now() - interval '401 days'").await;
    close_generation(&server).await;
    age(&server, 401).await;
    server.sql("CREATE VIEW report AS SELECT * FROM idempotency_keys_0").await;
    let request = RunJobRequest { job: "key_pruning".into() };
    let job = server.jobs().run_job(request).await.unwrap().into_inner().job.unwrap();
    assert!(job.last_error.contains("1 request id deleted") && job.last_error.contains("depend on it"), "{job:?}");
    assert_eq!(count(&server, "create_requests").await, 0);
    server.stop().await;
}
