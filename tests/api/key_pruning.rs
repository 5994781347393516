//! Idempotency keys are deleted after their retention, but never so early that a live event could be counted twice.

use crate::harness::*;
use chrono::{DateTime, TimeDelta, Utc};
use meterd::proto::{Client, CreateClientRequest, EventOutcome, RunJobRequest, UsageEvent};
use meterd_engine::clock::Clock;
use sqlx::AssertSqlSafe;

const NOW: &str = "2024-11-21T12:00:00Z";

async fn server(flags: &[&str]) -> TestServer {
    TestServer::start_with(flags, Clock::fixed(time(NOW))).await
}

fn event_with_key(key: &str, event: UsageEvent) -> UsageEvent {
    UsageEvent { idempotency_key: key.into(), ..event }
}

/// Makes all keys, events and requests this many days older.
async fn age(server: &TestServer, days: u32) {
    server.sql(&format!("UPDATE idempotency_keys SET claim_time = claim_time - make_interval(days => {days})")).await;
    server.sql(&format!("UPDATE usage_events SET record_time = record_time - make_interval(days => {days})")).await;
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

#[tokio::test]
async fn a_backfilled_event_is_a_duplicate_while_its_month_is_open() {
    let server = server(&["--retention-months=3"]).await;
    let march = event_with_key("march", event_at("acme", "sms", "1", "2024-03-15T12:00:00Z"));
    let july = event_with_key("july", event_at("acme", "sms", "1", "2024-07-15T12:00:00Z"));
    let august = event_with_key("august", event_at("acme", "sms", "1", "2024-08-15T12:00:00Z"));
    let all = vec![march.clone(), july.clone(), august.clone()];
    server.batch(all.clone(), true).await;
    let live = event_with_key("live", event_at("acme", "sms", "1", NOW));
    server.track(live.clone()).await.unwrap();
    age(&server, 401).await;
    assert_eq!(server.run_job("key_pruning").await, "1 key and 0 request ids deleted");
    assert_eq!(keys(&server).await, ["august", "july", "march"], "only the key of the live event must be deleted");
    for result in server.batch(all.clone(), true).await {
        assert_eq!(result.outcome(), EventOutcome::Duplicate);
    }

    // July is the last closed month. Its partition may contain events of August, so its keys are kept for one more
    // month.
    server.run_job("retention").await;
    assert_eq!(server.run_job("key_pruning").await, "1 key and 0 request ids deleted");
    assert_eq!(keys(&server).await, ["august", "july"]);
    let outcomes: Vec<_> = server.batch(all, true).await.iter().map(|result| result.outcome()).collect();
    assert_eq!(outcomes, [EventOutcome::Rejected, EventOutcome::Duplicate, EventOutcome::Duplicate]);
    let counted = "usage_months WHERE request_count <> 1";
    assert_eq!(count(&server, counted).await, 0, "each month must still have one event");
    server.stop().await;
}

#[tokio::test]
async fn a_young_key_of_a_closed_month_is_kept_for_its_retention() {
    let server = server(&["--retention-months=3"]).await;
    let march = event_with_key("march", event_at("acme", "sms", "1", "2024-03-15T12:00:00Z"));
    server.batch(vec![march.clone()], true).await;
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
    let flags = ["--accept-future-seconds=86400", "--accept-past-days=390"];
    let first = TestServer::start_with(&flags, Clock::fixed(came)).await;
    let at = |time: DateTime<Utc>| event_at("acme", "sms", "1", &time.to_rfc3339());
    let missing = event_with_key("gone", at(came - TimeDelta::days(1)));
    let ahead = event_with_key("ahead", at(came + TimeDelta::seconds(86_300)));
    first.batch(vec![missing.clone(), ahead.clone()], false).await;
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
    let server = TestServer::start_with(&["--key-retention-days=40"], Clock::system()).await;
    server.track(event_with_key("young", event("acme", "sms", "1"))).await.unwrap();
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
async fn many_keys_are_deleted_in_many_transactions_and_recent_keys_stay() {
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
    assert_eq!(server.run_job("key_pruning").await, "25300 keys and 0 request ids deleted");
    assert_eq!(count(&server, "idempotency_keys").await, 150);
    server.stop().await;
}

/// This is the state after the clock was 500 days behind.
#[tokio::test]
async fn a_key_claimed_while_the_databases_clock_was_behind_is_kept_as_long_as_needed() {
    let server = TestServer::start().await;
    let now = server.clock.now();
    let at = |time: DateTime<Utc>| event_at("acme", "sms", "1", &time.to_rfc3339());
    let (live, ahead) = (
        event_with_key("live", at(now - TimeDelta::days(3))),
        event_with_key("ahead", at(now + TimeDelta::minutes(4))),
    );
    server.batch(vec![live.clone(), ahead.clone()], false).await;
    let dated_by_server = event_with_key("dated by the server", event("acme", "sms", "1"));
    server.track(dated_by_server.clone()).await.unwrap();
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
    age(&server, 401).await;
    let refuse = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not today'; END $$;
         CREATE TRIGGER refuse BEFORE DELETE ON idempotency_keys FOR EACH ROW EXECUTE FUNCTION refuse()";
    server.sql(refuse).await;
    let request = RunJobRequest { job: "key_pruning".into() };
    let job = server.jobs().run_job(request).await.unwrap().into_inner().job.unwrap();
    assert!(job.last_error.contains("1 request id deleted") && job.last_error.contains("not today"), "{job:?}");
    assert_eq!(count(&server, "create_requests").await, 0);
    server.stop().await;
}
