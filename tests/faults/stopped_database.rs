//! A database whose processes are stopped. Its connections stay open, it accepts new ones, and it does not answer.

use crate::database::Database;
use crate::replica::Replica;
use crate::scenario_dir::ScenarioDir;
use meterd::proto::usage_service_client::UsageServiceClient;
use meterd::proto::{EventOutcome, TrackUsageRequest, UsageEvent};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sqlx::PgPool;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;

const RETRY: Duration = Duration::from_secs(2);
/// The limit that the documentation of the setting states.
const EXTRA_MAX: Duration = Duration::from_secs(5);
/// Deadline of the callers.
const DEADLINE: Duration = Duration::from_secs(100);
const CALLERS: u64 = 10;

/// Stopped processes. They continue when this is dropped.
struct StoppedProcesses(Vec<Pid>);

impl StoppedProcesses {
    /// Stops all processes of a database. The postmaster is stopped first, so that it starts no further process.
    fn all_of(database: &Database) -> Self {
        let postmaster: i32 = database.postmaster().expect("the database is running").parse().unwrap();
        let stop = |pid: i32| kill(Pid::from_raw(pid), Signal::SIGSTOP).map(|()| Pid::from_raw(pid));
        let first = stop(postmaster).unwrap();
        let is_child = |pid: &i32| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let parent = stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(1)?.parse().ok());
            parent == Some(postmaster)
        };
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        let pids = processes.filter_map(|process| process.file_name().to_str()?.parse::<i32>().ok());
        let children = pids.filter(is_child).filter_map(|pid| stop(pid).ok());
        Self([first].into_iter().chain(children).collect())
    }
}

impl Drop for StoppedProcesses {
    fn drop(&mut self) {
        for pid in &self.0 {
            kill(*pid, Signal::SIGCONT).ok();
        }
    }
}

async fn track(address: &str, key: &str) -> Result<EventOutcome, Status> {
    let channel = Channel::from_shared(address.to_string()).unwrap().connect_lazy();
    let event = UsageEvent {
        client_id: "acme".into(),
        service: "sms".into(),
        units: "1".into(),
        idempotency_key: key.into(),
        ..Default::default()
    };
    let mut request = Request::new(TrackUsageRequest { event: Some(event) });
    request.set_timeout(DEADLINE);
    let answer = UsageServiceClient::new(channel).track_usage(request).await?.into_inner();
    Ok(answer.result.unwrap().outcome())
}

async fn count(pool: &PgPool) -> i64 {
    sqlx::query_scalar("SELECT count(*) FROM usage_events").fetch_one(pool).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_fail_in_time_if_the_database_is_stopped_and_resent_events_count_once() {
    let scenario_dir = ScenarioDir::new();
    let data_dir = scenario_dir.path("data");
    let replica = Replica::with_data_dir(&scenario_dir, &data_dir, &["--retry-seconds=2"]).await;
    let database = Database::of_replica(data_dir);
    track(&replica.address(), "before").await.unwrap();

    let stopped = StoppedProcesses::all_of(&database);
    assert!(stopped.0.len() > 5, "the connections of the database are processes, too: {:?}", stopped.0);
    let mut callers = JoinSet::new();
    for number in 0..CALLERS {
        let address = replica.address();
        callers.spawn(async move {
            // Some calls arrive while a batch hangs, some while it is retried, and some while a connection is opened.
            tokio::time::sleep(Duration::from_millis(600 * number)).await;
            let started = Instant::now();
            let status = track(&address, &format!("k{number}")).await.unwrap_err();
            (status, started.elapsed())
        });
    }
    let mut longest = Duration::ZERO;
    for (status, waited) in callers.join_all().await {
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        assert_eq!(status.get_error_details().error_info().unwrap().reason, "DATABASE_UNAVAILABLE");
        longest = longest.max(waited);
    }
    drop(stopped);
    println!("database stopped, --retry-seconds 2: {CALLERS} callers got an error, the last after {longest:.1?}");
    assert!(longest < RETRY + EXTRA_MAX, "{longest:?}");

    for number in 0..CALLERS {
        let outcome = track(&replica.address(), &format!("k{number}")).await.unwrap();
        assert!(matches!(outcome, EventOutcome::Accepted | EventOutcome::Duplicate), "{outcome:?}");
    }
    let pool = database.pool().await;
    assert_eq!(count(&pool).await, 1 + CALLERS as i64);
    pool.close().await;
    assert_eq!(replica.stop(&scenario_dir).await, Some(0));
}
