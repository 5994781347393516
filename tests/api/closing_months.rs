//! Months are closed while events are recorded, rebuilt and read.

use crate::harness::*;
use crate::retention::*;
use meterd::proto::{BatchTrackUsageRequest, EventOutcome, RunJobRequest};
use meterd_engine::clock::Clock;
use sqlx::{AssertSqlSafe, Executor, Postgres, Transaction};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Two replicas record backfills while their months are closed one after the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backfill_during_the_closing_of_its_months_is_counted_or_rejected() {
    const CALLERS: usize = 6;
    const BATCHES: usize = 30;
    let first = TestServer::start_with(&["--retention-months=2"], Clock::fixed(time(NOW))).await;
    let second = TestServer::replica(&first.database_url, &["--retention-months=2"], first.clock.clone()).await;
    let servers = [&first, &second];
    let settled = AtomicUsize::new(0);
    let callers = (0..CALLERS).map(|caller| {
        let mut usage = servers[caller % 2].usage();
        let settled = &settled;
        async move {
            let mut outcomes = [0, 0];
            for batch in 0..BATCHES {
                let day = |number: usize| format!("2024-{:02}-{:02}T12:00:00Z", 1 + number % 6, 1 + number % 28);
                let events =
                    (0..40).map(|number| event_at(&format!("c{}", number % 3), "sms", "1", &day(number + batch)));
                let request = BatchTrackUsageRequest { events: events.collect(), backfill: true, ..Default::default() };
                for result in usage.batch_track_usage(request).await.unwrap().into_inner().results {
                    settled.fetch_add(1, Ordering::Relaxed);
                    match result.outcome() {
                        EventOutcome::Accepted => outcomes[0] += 1,
                        _ => {
                            assert_eq!(result.error.unwrap().reason, "MONTH_CLOSED");
                            outcomes[1] += 1;
                        }
                    }
                }
            }
            outcomes
        }
    });
    let closing = async {
        for month in [7, 8, 9] {
            let part = CALLERS * BATCHES * 40 / 4 * (month - 6);
            while settled.load(Ordering::Relaxed) < part {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            first.clock.set(time(&format!("2024-{month:02}-21T12:00:00Z")));
            // A detach waits only briefly for other transactions, and is retried.
            let request = RunJobRequest { job: "retention".into() };
            first.jobs().run_job(request).await.unwrap();
        }
    };
    first.clock.set(time("2024-07-01T12:00:00Z"));
    let (outcomes, ()) = tokio::join!(futures_util::future::join_all(callers), closing);
    let [accepted, rejected] = outcomes.into_iter().fold([0, 0], |sum, of| [sum[0] + of[0], sum[1] + of[1]]);
    let closed =
        sqlx::query_scalar::<_, String>("SELECT closed_through::text FROM deployment").fetch_one(&first.pool).await;
    println!("{accepted} accepted, {rejected} refused; closed through {}", closed.unwrap());
    assert_eq!(accepted + rejected, CALLERS * BATCHES * 40);
    assert!(accepted > 0 && rejected > 0, "the months must be closed during the backfill");
    let counted: i64 =
        sqlx::query_scalar("SELECT sum(request_count)::bigint FROM usage_months").fetch_one(&first.pool).await.unwrap();
    assert_eq!(counted as usize, accepted);
    let keys: i64 = sqlx::query_scalar("SELECT count(*) FROM idempotency_keys").fetch_one(&first.pool).await.unwrap();
    assert_eq!(keys as usize, accepted, "each recorded event must have one key");
    first.run_job("retention").await;
    assert_eq!(partitions(&first).await.first().map(String::as_str), Some("2024-06"));
    assert_eq!(first.verify().await.differences, 0);
    second.stop().await;
    first.stop().await;
}

/// Waits until a statement that contains these words waits for a lock.
async fn wait_for_blocked_statement(server: &TestServer, words: &str) {
    let deadline = Instant::now() + Duration::from_secs(10);
    let waiting = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database()
         AND wait_event_type = 'Lock' AND query LIKE '%' || $1 || '%')";
    while !sqlx::query_scalar::<_, bool>(waiting).bind(words).fetch_one(&server.pool).await.unwrap() {
        assert!(Instant::now() < deadline, "no statement with {words:?} waits");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Locks a client's month, so that changes of it wait.
async fn lock_month(server: &TestServer, month: &str) -> Transaction<'static, Postgres> {
    let mut tx = server.pool.begin().await.unwrap();
    let hold = format!("SELECT FROM usage_months WHERE client_id = 'acme' AND month = '{month}-01' FOR UPDATE");
    tx.execute(AssertSqlSafe(hold)).await.unwrap();
    tx
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_a_month_waits_for_batches_that_saw_it_open() {
    let server = server(THREE_MONTHS).await;
    record_history(&server).await;
    let held = lock_month(&server, "2024-07").await;
    let mut usage = server.usage();
    let events = vec![event_with_key("late", event_at("acme", "sms", "1", "2024-07-20T12:00:00Z"))];
    let batch = tokio::spawn(async move {
        usage
            .batch_track_usage(BatchTrackUsageRequest { events, backfill: true, ..Default::default() })
            .await
            .unwrap()
            .into_inner()
    });
    wait_for_blocked_statement(&server, "record_events").await;
    let mut jobs = server.jobs();
    let job = tokio::spawn(async move { jobs.run_job(RunJobRequest { job: "retention".into() }).await.unwrap() });
    wait_for_blocked_statement(&server, "pg_advisory_xact_lock").await;
    held.rollback().await.unwrap();
    let results = batch.await.unwrap().results;
    job.await.unwrap();
    let july = summary(&server, "acme", "2024-07-01", "2024-07-31").await.0;
    match results[0].outcome() {
        EventOutcome::Accepted => assert_eq!(july, 2),
        _ => {
            assert_closed_result(&results[0], "2024-07");
            assert_eq!(july, 1);
        }
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebuild_that_started_before_its_month_was_closed_finds_all_events() {
    let server = server(THREE_MONTHS).await;
    record_history(&server).await;
    let held = lock_month(&server, "2024-06").await;
    let mut usage = server.usage();
    let rebuild = tokio::spawn(async move {
        usage.rebuild_rollups(rebuild_request("2024-06-01", "2024-06-30", false)).await.unwrap().into_inner()
    });
    wait_for_blocked_statement(&server, "FOR UPDATE").await;
    let job = server.jobs().run_job(RunJobRequest { job: "retention".into() }).await.unwrap().into_inner().job.unwrap();
    held.rollback().await.unwrap();
    assert_eq!(rebuild.await.unwrap().corrected_row_count, 0);
    assert!(job.last_error.contains("lock timeout"), "the job must not remove the events during the rebuild: {job:?}");
    assert_eq!(summary(&server, "acme", "2024-06-01", "2024-06-30").await, (1, "0.015".into()));
    server.run_job("retention").await;
    assert_eq!(partitions(&server).await[0], "2024-07");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebuild_whose_months_are_closed_meanwhile_names_the_last_closed_month() {
    let server = server(THREE_MONTHS).await;
    record_history(&server).await;
    let held = lock_month(&server, "2024-05").await;
    let mut usage = server.usage();
    let rebuild =
        tokio::spawn(async move { usage.rebuild_rollups(rebuild_request("2024-05-01", "2024-06-30", false)).await });
    wait_for_blocked_statement(&server, "FOR UPDATE").await;
    // The job closes the months but cannot remove the partitions.
    server.jobs().run_job(RunJobRequest { job: "retention".into() }).await.unwrap();
    held.rollback().await.unwrap();
    assert_closed(&rebuild.await.unwrap().unwrap_err(), "2024-07");
    server.stop().await;
}

#[tokio::test]
async fn a_long_read_keeps_its_events_and_the_job_is_retried() {
    let server = server(THREE_MONTHS).await;
    record_history(&server).await;
    let mut reader = server.pool.begin().await.unwrap();
    reader.execute("SELECT count(*) FROM usage_events").await.unwrap();
    let request = RunJobRequest { job: "retention".into() };
    let job = server.jobs().run_job(request).await.unwrap().into_inner().job.unwrap();
    assert!(job.last_error.contains("lock timeout"), "{job:?}");
    assert_eq!(partitions(&server).await[0], "2024-03");
    server.track(event("acme", "sms", "1")).await.unwrap();
    drop(reader);
    server.run_job("retention").await;
    assert_eq!(partitions(&server).await[0], "2024-07");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_short_read_only_delays_the_run() {
    let server = server(THREE_MONTHS).await;
    record_history(&server).await;
    let mut reader = server.pool.begin().await.unwrap();
    reader.execute("SELECT count(*) FROM usage_events").await.unwrap();
    let mut jobs = server.jobs();
    let job = tokio::spawn(async move { jobs.run_job(RunJobRequest { job: "retention".into() }).await.unwrap() });
    wait_for_blocked_statement(&server, "DETACH").await;
    let gave_way = "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database()
         AND wait_event_type = 'Lock' AND query LIKE 'ALTER TABLE%DETACH%')";
    wait_until(async || sqlx::query_scalar::<_, bool>(gave_way).fetch_one(&server.pool).await.unwrap()).await;
    drop(reader);
    assert_eq!(job.await.unwrap().into_inner().job.unwrap().last_error, "");
    assert_eq!(partitions(&server).await[0], "2024-07");
    server.stop().await;
}
