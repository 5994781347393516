//! The database's clock was ahead for a while and was set back. Rows that were written meanwhile must not delay
//! anything until that time.

use crate::harness::*;
use crate::notifications::{raise, sent, server_with, set_channels, webhook};
use crate::receivers::HttpReceiver;
use meterd::proto::*;
use meterd_engine::clock::Clock;
use std::time::{Duration, Instant};

async fn job(server: &TestServer, name: &str) -> Job {
    let jobs = server.jobs().list_jobs(ListJobsRequest {}).await.unwrap().into_inner().jobs;
    jobs.into_iter().find(|job| job.job == name).unwrap()
}

fn seconds_ahead(time: &Option<prost_types::Timestamp>) -> i64 {
    time.unwrap().seconds - Clock::system().now().timestamp()
}

#[tokio::test]
async fn a_job_runs_at_its_next_time_by_the_schedule() {
    let flags = ["--schedule-partitions=*/2 * * * * *", "--schedule-retention=0 0 3 1 * *"];
    let server = TestServer::start_with(&flags, Clock::system()).await;
    wait_until(async || {
        job(&server, "partitions").await.run_count > 0 && job(&server, "retention").await.run_count == 1
    })
    .await;
    // Each job ran while the clock was 40 days ahead. The stored next time of the monthly job is now one run too late.
    server.sql("UPDATE jobs SET next_run_time = now() + interval '40 days' WHERE job = 'partitions'").await;
    server
        .sql(
            "UPDATE jobs SET next_run_time = date_trunc('month', now() + interval '40 days') + interval '1 month 3 hours'
             WHERE job = 'retention'",
        )
        .await;
    let runs = job(&server, "partitions").await.run_count;
    wait_until(async || job(&server, "partitions").await.run_count > runs + 1).await;
    wait_until(async || seconds_ahead(&job(&server, "retention").await.next_run_time) <= 31 * 86_400).await;
    assert_eq!(
        job(&server, "retention").await.run_count,
        1,
        "its next time must be earlier, without an additional run"
    );
    server.stop().await;
}

#[tokio::test]
async fn a_clock_set_back_by_seconds_repeats_no_run() {
    let flags = ["--schedule-retention=0 0 3 1 1 *"];
    let server = TestServer::start_with(&flags, Clock::system()).await;
    wait_until(async || job(&server, "retention").await.run_count == 1).await;
    // As if the job had run 30 seconds from now at its scheduled time, and then the clock was set back.
    let at = Clock::system().now() + chrono::TimeDelta::seconds(30);
    let schedule = at.format("%-S %-M %-H %-d %-m *").to_string();
    let next = "date_trunc('second', now()) + interval '1 year 30 seconds'";
    server
        .sql(&format!("UPDATE jobs SET schedule = '{schedule}', next_run_time = {next} WHERE job = 'retention'"))
        .await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(seconds_ahead(&job(&server, "retention").await.next_run_time) > 300 * 86_400);
    server.stop().await;
}

#[tokio::test]
async fn a_lease_of_a_lost_holder_ends_like_a_new_one() {
    // This includes a job without a schedule.
    let server = TestServer::start_with(&["--schedule-partitions=*/2 * * * * *"], Clock::system()).await;
    server
        .sql(
            "UPDATE jobs SET holder = 'gone', lease_expire_time = now() + interval '40 days'
             WHERE job IN ('partitions', 'retention')",
        )
        .await;
    let left = "SELECT FROM jobs WHERE lease_expire_time > now() + interval '21 seconds'";
    let begin = Instant::now();
    wait_until(async || server.sql(left).await == 0).await;
    assert!(begin.elapsed() < Duration::from_secs(5));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_notification_is_sent_and_its_channel_starts_a_new_hour() {
    let hook = HttpReceiver::start([]).await;
    let server = server_with(&["--notifications-hourly-max=1"]).await;
    set_channels(&server, "acme", &[webhook(hook.url())]).await;
    server
        .sql(
            "CREATE FUNCTION ahead() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                 NEW.next_attempt_time := now() + interval '40 days'; RETURN NEW; END $$;
             CREATE TRIGGER ahead BEFORE INSERT ON notifications FOR EACH ROW EXECUTE FUNCTION ahead();
             UPDATE notification_channels SET hour_start_time = now() + interval '40 days', hour_count = 1",
        )
        .await;
    raise(&server, "acme").await;
    sent(&server, 1).await;
    assert_eq!(hook.received().len(), 1);
    assert_eq!(server.sql("SELECT FROM notification_channels WHERE hour_start_time > now()").await, 0);
    server.stop().await;
}

#[tokio::test]
async fn summaries_of_months_changed_meanwhile_are_refreshed() {
    let server = TestServer::start().await;
    server.track(event("acme", "sms", "1")).await.unwrap();
    server.sql("UPDATE usage_months SET summary_stale_since = now() + interval '40 days'").await;
    assert_eq!(server.run_job("monthly_summaries").await, "1 client-month refreshed");
    assert_eq!(server.sql("SELECT FROM usage_months WHERE summary_stale_since IS NOT NULL").await, 0);
    server.stop().await;
}
