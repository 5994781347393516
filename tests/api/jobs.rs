//! Scheduled jobs: when they run, that only one run is active at a time, and what they show.

use crate::harness::*;
use crate::http;
use meterd::proto::{Job, ListJobsRequest, ListMonthlySummariesRequest, RunJobRequest};
use meterd_engine::clock::Clock;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};
use tonic::Code;

/// Due in January and therefore not during a test.
const YEARLY: &str = "0 0 0 1 1 *";

async fn jobs(server: &TestServer) -> Vec<Job> {
    server.jobs().list_jobs(ListJobsRequest {}).await.unwrap().into_inner().jobs
}

async fn job(server: &TestServer, name: &str) -> Job {
    jobs(server).await.into_iter().find(|job| job.job == name).unwrap()
}

async fn run(server: &TestServer, name: &str) -> Job {
    let request = RunJobRequest { job: name.into() };
    server.jobs().run_job(request).await.unwrap().into_inner().job.unwrap()
}

/// Waits until a job is in the wanted state.
async fn until(server: &TestServer, name: &str, what: &str, wanted: impl Fn(&Job) -> bool) -> Job {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let job = job(server, name).await;
        if wanted(&job) {
            return job;
        }
        assert!(Instant::now() < deadline, "{what}: {job:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn seconds(time: &Option<prost_types::Timestamp>) -> f64 {
    let time = time.as_ref().unwrap();
    time.seconds as f64 + f64::from(time.nanos) / 1e9
}

/// Delays each run of key_pruning and counts runs that overlap with another one. The counts are sequences, because a
/// rollback does not reset them.
async fn slow_down(server: &TestServer, seconds: f64) {
    server
        .sql(&format!(
            "CREATE SEQUENCE runs_begun MINVALUE 0 START 0;
             CREATE SEQUENCE runs_beside MINVALUE 0 START 0;
             SELECT nextval('runs_begun'), nextval('runs_beside');
             CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN
                 PERFORM nextval('runs_begun');
                 IF NOT pg_try_advisory_xact_lock(4711) THEN PERFORM nextval('runs_beside'); END IF;
                 PERFORM pg_sleep({seconds});
                 RETURN NULL;
             END $$;
             CREATE TRIGGER slow BEFORE DELETE ON create_requests FOR EACH STATEMENT EXECUTE FUNCTION slow()"
        ))
        .await;
}

async fn count(server: &TestServer, sequence: &str) -> i64 {
    sqlx::query_scalar(sqlx::AssertSqlSafe(format!("SELECT last_value FROM {sequence}")))
        .fetch_one(&server.pool)
        .await
        .unwrap()
}

async fn meterd(server: &TestServer, arguments: &[&str]) -> Output {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_meterd"));
    command.args(arguments).env("METERD_SERVER", &server.address).env("DATABASE_URL", &server.database_url);
    command.stdin(Stdio::null()).output().await.unwrap()
}

#[tokio::test]
async fn a_job_runs_by_its_schedule_and_shows_its_result() {
    let server = TestServer::start_with(
        &["--schedule-monthly-summaries=* * * * * *"],
        Clock::fixed(time("2026-11-21T12:00:00Z")),
    )
    .await;
    server.track(event("acme", "sms", "2")).await.unwrap();
    let after = until(&server, "monthly_summaries", "three runs", |job| job.run_count >= 3).await;
    assert_eq!((&*after.schedule, &*after.last_error, after.failure_count), ("* * * * * *", "", 0));
    assert!(after.last_result.ends_with(" refreshed"), "{}", after.last_result);
    assert!(seconds(&after.last_finish_time) >= seconds(&after.last_start_time));
    assert!(seconds(&after.next_run_time) > seconds(&after.last_start_time));
    assert_eq!(after.next_run_time.unwrap().nanos, 0, "the job must be due at a full second");
    let list = server.usage().list_monthly_summaries(ListMonthlySummariesRequest::default()).await.unwrap();
    assert_eq!(list.into_inner().summaries.len(), 1, "the job must write the summary");
    server.stop().await;
}

#[tokio::test]
async fn a_job_without_a_schedule_runs_only_on_demand() {
    let server = TestServer::start().await;
    let names: Vec<String> = jobs(&server).await.into_iter().map(|job| job.job).collect();
    assert_eq!(
        names,
        [
            "alert_checks",
            "key_generations",
            "key_pruning",
            "monthly_summaries",
            "partitions",
            "pending_usage",
            "retention"
        ]
    );
    for name in names {
        let before = job(&server, &name).await;
        assert_eq!((&*before.schedule, before.next_run_time, before.run_count), ("", None, 0));
        let after = run(&server, &name).await;
        assert_eq!((&*after.last_error, after.run_count, after.next_run_time), ("", 1, None), "{name}");
        assert!(!after.last_result.is_empty() && !after.running, "{after:?}");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_new_job_is_due_at_once_and_a_missed_run_is_caught_up_once() {
    let flags = [format!("--schedule-partitions={YEARLY}")];
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let server = TestServer::start_with(&flags, Clock::system()).await;
    until(&server, "partitions", "the first run", |job| job.run_count == 1).await;
    let url = server.database_url.clone();
    server.stop().await;

    let server = TestServer::replica(&url, &[], Clock::system()).await;
    // This includes a job whose schedule has changed meanwhile.
    let missed = "schedule = '0 0 12 1 1 *', next_run_time = now() - interval '3 years' WHERE job = 'partitions'";
    server.sql(&format!("UPDATE jobs SET {missed}")).await;
    server.stop().await;
    let server = TestServer::replica(&url, &flags, Clock::system()).await;
    let caught_up = until(&server, "partitions", "the missed run", |job| job.run_count == 2).await;
    assert!(seconds(&caught_up.next_run_time) > seconds(&caught_up.last_finish_time) + 1.0, "{caught_up:?}");
    // All due jobs are started in one check, so another job's run shows that a check is complete.
    run(&server, "key_pruning").await;
    run(&server, "key_pruning").await;
    assert_eq!(job(&server, "partitions").await.run_count, 2, "one run must make up for three missed years");
    server.stop().await;
}

#[tokio::test]
async fn a_changed_schedule_takes_effect_at_the_start_and_an_unchanged_one_keeps_its_time() {
    let server = TestServer::start_with(&[&format!("--schedule-retention={YEARLY}")], Clock::system()).await;
    let first = until(&server, "retention", "the first run", |job| job.run_count == 1).await;
    let url = server.database_url.clone();
    server.stop().await;
    let server = TestServer::replica(&url, &[&format!("--schedule-retention={YEARLY}")], Clock::system()).await;
    assert_eq!(job(&server, "retention").await, first);
    server.stop().await;
    let server = TestServer::replica(&url, &["--schedule-retention=0 0 12 29 2 *"], Clock::system()).await;
    let changed = job(&server, "retention").await;
    assert_eq!((&*changed.schedule, changed.run_count), ("0 0 12 29 2 *", 1));
    let next = chrono::DateTime::from_timestamp(changed.next_run_time.unwrap().seconds, 0).unwrap();
    assert_eq!(next.format("%m-%d %H:%M:%S").to_string(), "02-29 12:00:00");
    server.stop().await;
    let server = TestServer::replica(&url, &[], Clock::system()).await;
    let off = job(&server, "retention").await;
    assert_eq!((&*off.schedule, off.next_run_time), ("", None));
    server.stop().await;
}

#[tokio::test]
async fn a_failed_job_is_counted_shown_and_retried_within_a_minute() {
    let server = TestServer::start_with(&[&format!("--schedule-key-pruning={YEARLY}")], Clock::system()).await;
    until(&server, "key_pruning", "the first run", |job| job.run_count == 1).await;
    server.sql("ALTER TABLE create_requests RENAME TO away").await;
    let failed = run(&server, "key_pruning").await;
    assert_eq!((failed.run_count, failed.failure_count, &*failed.last_result), (2, 1, ""));
    assert!(failed.last_error.contains("create_requests"), "{}", failed.last_error);
    let retry_in = seconds(&failed.next_run_time) - seconds(&failed.last_finish_time);
    assert!((59.0..=60.0).contains(&retry_in), "the job is retried in {retry_in} s");
    let command = meterd(&server, &["jobs", "run", "key_pruning"]).await;
    let printed = String::from_utf8_lossy(&command.stdout).into_owned();
    assert_eq!(command.status.code(), Some(1));
    assert!(printed.starts_with("key_pruning: FAILED: ") && printed.contains("create_requests"), "{printed}");

    server.sql("ALTER TABLE away RENAME TO create_requests").await;
    server.sql("UPDATE jobs SET next_run_time = now() WHERE job = 'key_pruning'").await;
    let repaired = until(&server, "key_pruning", "the retry", |job| job.last_error.is_empty()).await;
    assert_eq!((repaired.run_count, repaired.failure_count), (4, 2));
    server.stop().await;
}

#[tokio::test]
async fn run_job_returns_a_run_that_started_after_the_call_and_callers_share_it() {
    let server = TestServer::start().await;
    slow_down(&server, 1.0).await;
    let call = || {
        let mut client = server.jobs();
        tokio::spawn(async move { client.run_job(RunJobRequest { job: "key_pruning".into() }).await })
    };
    let first = call();
    until(&server, "key_pruning", "the first run", |job| job.running).await;
    let others = [call(), call(), call()];
    let first = first.await.unwrap().unwrap().into_inner().job.unwrap();
    assert_eq!(first.run_count, 1);
    for other in others {
        let other = other.await.unwrap().unwrap().into_inner().job.unwrap();
        assert_eq!(other.run_count, 2, "one more run must serve all waiting callers");
        assert!(seconds(&other.last_start_time) >= seconds(&first.last_finish_time));
    }
    assert_eq!(count(&server, "runs_beside").await, 0);
    server.stop().await;
}

#[tokio::test]
async fn a_cancelled_run_job_call_does_not_stop_the_run() {
    let server = TestServer::start().await;
    slow_down(&server, 1.0).await;
    let mut request = tonic::Request::new(RunJobRequest { job: "key_pruning".into() });
    request.set_timeout(Duration::from_millis(500));
    let gave_up = server.jobs().run_job(request).await.unwrap_err();
    assert!(matches!(gave_up.code(), Code::DeadlineExceeded | Code::Cancelled), "{gave_up:?}");
    let done = until(&server, "key_pruning", "the run", |job| job.run_count == 1).await;
    assert_eq!(done.last_error, "");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_replicas_never_run_a_job_at_the_same_time() {
    let flags = ["--schedule-key-pruning=* * * * * *"];
    let first = TestServer::start_with(&[], Clock::system()).await;
    slow_down(&first, 0.3).await;
    let url = first.database_url.clone();
    first.stop().await;
    let first = TestServer::replica(&url, &flags, Clock::system()).await;
    let second = TestServer::replica(&url, &flags, Clock::system()).await;
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut requested = 0;
    while job(&first, "key_pruning").await.run_count < 12 {
        assert!(Instant::now() < deadline);
        // Both replicas are also asked to run the job as often as they can.
        requested += 1;
        tokio::join!(run(&first, "key_pruning"), run(&second, "key_pruning"));
    }
    let (runs, overlaps) = (count(&first, "runs_begun").await, count(&first, "runs_beside").await);
    println!("{runs} runs, asked for twice {requested} times: {overlaps} beside another");
    assert_eq!((overlaps, job(&second, "key_pruning").await.failure_count), (0, 0));
    first.stop().await;
    second.stop().await;
}

#[tokio::test]
async fn a_normal_stop_of_the_server_does_not_end_a_run() {
    let server = TestServer::start().await;
    slow_down(&server, 1.5).await;
    let mut client = server.jobs();
    let call = tokio::spawn(async move { client.run_job(RunJobRequest { job: "key_pruning".into() }).await });
    until(&server, "key_pruning", "the run", |job| job.running).await;
    let url = server.database_url.clone();
    server.stop().await;
    assert_error(call.await.unwrap(), Code::Unavailable, "SHUTTING_DOWN");
    let server = TestServer::replica(&url, &[], Clock::system()).await;
    let done = job(&server, "key_pruning").await;
    assert_eq!((done.run_count, done.running, &*done.last_error), (1, false, ""));
    server.stop().await;
}

#[tokio::test]
async fn a_claimed_job_runs_although_another_one_cannot_be_claimed() {
    let server = TestServer::start().await;
    server
        .sql(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not this one'; END $$;
             CREATE TRIGGER refuse BEFORE UPDATE OF holder ON jobs FOR EACH ROW
                 WHEN (NEW.job = 'retention') EXECUTE FUNCTION refuse()",
        )
        .await;
    server.sql("UPDATE jobs SET next_run_time = now() WHERE job IN ('key_pruning', 'retention')").await;
    until(&server, "key_pruning", "the run", |job| job.run_count == 1).await;
    server.stop().await;
}

#[tokio::test]
async fn a_job_with_a_schedule_of_a_newer_version_is_ignored() {
    let server = TestServer::start().await;
    let newer = "schedule = 'every second tuesday', next_run_time = now() - interval '1 minute'";
    server.sql(&format!("UPDATE jobs SET {newer} WHERE job = 'key_pruning'")).await;
    let before = job(&server, "key_pruning").await;
    // All due jobs are started in one check, so another job's run shows that a check is complete.
    run(&server, "retention").await;
    run(&server, "retention").await;
    assert_eq!(job(&server, "key_pruning").await, before);
    assert!(before.next_run_time.is_some() && before.run_count == 0);
    server.stop().await;
}

#[tokio::test]
async fn a_run_that_takes_too_long_is_ended_and_the_next_waits_for_its_statements() {
    let server = TestServer::start_with(&["--job-run-seconds=2"], Clock::system()).await;
    slow_down(&server, 6.0).await;
    let dropped = run(&server, "key_pruning").await;
    assert!(dropped.last_error.contains("longer than 2 s") && !dropped.running, "{dropped:?}");
    assert_eq!((dropped.run_count, dropped.failure_count, dropped.next_run_time), (1, 1, None));
    let next = run(&server, "key_pruning").await;
    assert_eq!((next.run_count, count(&server, "runs_begun").await), (2, 2));
    assert_eq!(count(&server, "runs_beside").await, 0);
    let started = seconds(&next.last_start_time) - seconds(&dropped.last_finish_time);
    assert!(started < 25.0, "the next run started only after {started} s");
    server.stop().await;
}

#[tokio::test]
async fn an_unknown_job_is_rejected_with_the_names_of_all_jobs() {
    let server = TestServer::start().await;
    let rejected = server.jobs().run_job(RunJobRequest { job: "retentoin".into() }).await;
    let status = assert_error(rejected, Code::NotFound, "JOB_NOT_FOUND");
    assert!(status.message().contains("key_pruning") && status.message().contains("retention"), "{status}");
    assert_invalid(server.jobs().run_job(RunJobRequest::default()).await, "INVALID_FIELD", &["job"]);
    server.stop().await;
}

#[tokio::test]
async fn jobs_are_printed_as_a_table() {
    let server = TestServer::start_with(&[&format!("--schedule-partitions={YEARLY}")], Clock::system()).await;
    until(&server, "partitions", "the first run", |job| job.run_count == 1).await;
    let ran = meterd(&server, &["jobs", "run", "retention"]).await;
    assert!(ran.status.success());
    assert_eq!(
        String::from_utf8_lossy(&ran.stdout),
        "retention: every month is kept; 0 changes of alerts and 0 notifications pruned\n"
    );
    let listed = String::from_utf8(meterd(&server, &["jobs"]).await.stdout).unwrap();
    let lines: Vec<&str> = listed.lines().collect();
    assert_eq!(lines.len(), 8, "{listed}");
    let partitions = lines[5];
    assert!(partitions.starts_with("partitions") && partitions.contains(YEARLY), "{listed}");
    assert!(partitions.contains("-01-01 00:00:00") && partitions.contains("there are all through"), "{listed}");
    assert!(lines[7].contains("  off  ") && lines[7].contains("every month is kept"), "{listed}");
    let unknown = meterd(&server, &["jobs", "run", "x"]).await;
    assert_eq!(unknown.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("JOB_NOT_FOUND"));
    server.stop().await;
}

#[tokio::test]
async fn metrics_show_runs_durations_and_the_last_success_of_each_job() {
    let server = TestServer::start().await;
    run(&server, "partitions").await;
    server.sql("ALTER TABLE create_requests RENAME TO away").await;
    run(&server, "key_pruning").await;
    let deadline = Instant::now() + Duration::from_secs(10);
    let wanted = [
        "meterd_job_runs_total{job=\"partitions\",result=\"ok\"}",
        "meterd_job_runs_total{job=\"key_pruning\",result=\"failed\"}",
        "meterd_job_seconds_count{job=\"partitions\"}",
        "meterd_job_last_success_timestamp_seconds{job=\"partitions\"}",
    ];
    loop {
        let page = http::get(&server.http_address, "/metrics").await;
        let missing: Vec<_> = wanted.iter().filter(|line| !page.text().contains(**line)).collect();
        if missing.is_empty() {
            break;
        }
        assert!(Instant::now() < deadline, "no {missing:?} in {}", page.text());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    server.stop().await;
}

#[tokio::test]
async fn wrong_schedules_and_contradicting_settings_are_rejected_at_the_start() {
    let nowhere = ["--database-url=postgres://127.0.0.1:1/none", "--listen=127.0.0.1:0", "--http-listen=127.0.0.1:0"];
    let cases: [(&[&str], &[&str]); 4] = [
        (&["--schedule-retention=hourly"], &["--schedule-retention", "cron expression"]),
        (&["--schedule-alert-checks=0 0 31 2 *"], &["--schedule-alert-checks", "does not exist in any year"]),
        (&["--retention-months=2", "--accept-past-days=60"], &["--retention-months 2", "--accept-past-days 60"]),
        (&["--key-retention-days=30"], &["--key-retention-days 30", "--accept-past-days 35"]),
    ];
    for (flags, expected) in cases {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_meterd"));
        let output = command.arg("serve").args(nowhere).args(flags).stdin(Stdio::null()).output().await.unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && expected.iter().all(|text| error.contains(text)), "{flags:?}: {error}");
    }
}
