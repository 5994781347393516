//! A database whose processes are stopped: its connections stay open, it takes new ones, and nothing answers.

use crate::database::Database;
use crate::place::Place;
use crate::replica::Replica;
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
/// The bound that the setting documents.
const LATER_MAX: Duration = Duration::from_secs(5);
/// What callers would wait for.
const DEADLINE: Duration = Duration::from_secs(100);
const CALLERS: u64 = 10;

/// Processes that are stopped, until it is dropped.
struct Frozen(Vec<Pid>);

impl Frozen {
    /// SIGSTOP to all processes of a database, the first of them first, so that none is added.
    fn all_of(database: &Database) -> Self {
        let postmaster: i32 = database.postmaster().expect("it runs").parse().unwrap();
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

impl Drop for Frozen {
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
async fn callers_of_a_database_whose_processes_are_stopped_hear_of_it_in_time_and_what_they_resend_counts_once() {
    let place = Place::new();
    let data_dir = place.path("data");
    let replica = Replica::with_data_dir(&place, &data_dir, &["--retry-seconds=2"]).await;
    let database = Database::of_replica(data_dir);
    track(&replica.address(), "before").await.unwrap();

    let frozen = Frozen::all_of(&database);
    assert!(frozen.0.len() > 5, "its connections are processes, too: {:?}", frozen.0);
    let mut callers = JoinSet::new();
    for number in 0..CALLERS {
        let address = replica.address();
        callers.spawn(async move {
            // Some come while a batch hangs, some while it is tried again, some while a connection is made.
            tokio::time::sleep(Duration::from_millis(600 * number)).await;
            let begun = Instant::now();
            let status = track(&address, &format!("k{number}")).await.unwrap_err();
            (status, begun.elapsed())
        });
    }
    let mut longest = Duration::ZERO;
    for (status, waited) in callers.join_all().await {
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        assert_eq!(status.get_error_details().error_info().unwrap().reason, "DATABASE_UNAVAILABLE");
        longest = longest.max(waited);
    }
    drop(frozen);
    println!("database stopped, --retry-seconds 2: {CALLERS} callers heard of it, the last after {longest:.1?}");
    assert!(longest < RETRY + LATER_MAX, "{longest:?}");

    for number in 0..CALLERS {
        let outcome = track(&replica.address(), &format!("k{number}")).await.unwrap();
        assert!(matches!(outcome, EventOutcome::Accepted | EventOutcome::Duplicate), "{outcome:?}");
    }
    let pool = database.pool().await;
    assert_eq!(count(&pool).await, 1 + CALLERS as i64);
    pool.close().await;
    assert_eq!(replica.stop(&place).await, Some(0));
}
