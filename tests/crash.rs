//! The real binary with its own durable PostgreSQL, killed with -9 in the middle of load: nothing acknowledged is lost,
//! nothing is counted twice.

use meterd::cli::verify::verify_all;
use meterd::postgres;
use meterd::proto::alert_service_client::AlertServiceClient;
use meterd::proto::usage_service_client::UsageServiceClient;
use meterd::proto::{
    AlertPolicy, BatchTrackUsageRequest, EventOutcome, TrackUsageRequest, UpdateAlertPolicyRequest, UsageEvent,
};
use meterd::store::connect;
use prost_types::FieldMask;
use sqlx::{PgPool, Row};
use std::collections::HashSet;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tonic::transport::Channel;

/// Kills of one run. More by hand: `METERD_TEST_KILLS=200 cargo test --test crash`.
const KILLS: usize = 20;
const CALLERS: usize = 16;
const BATCH: usize = 20;

fn kills() -> usize {
    std::env::var("METERD_TEST_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(KILLS)
}

/// A server process over a data directory of its own; both end with the test.
struct Process {
    data_dir: PathBuf,
    ports: [u16; 2],
    server: Mutex<Child>,
}

impl Process {
    fn start() -> Self {
        let data_dir = tempfile::Builder::new().prefix("meterd-crash-").tempdir().unwrap().keep();
        let ports = [0; 2].map(|_: u16| TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port());
        let server = Mutex::new(spawn(&data_dir, ports));
        Self { data_dir, ports, server }
    }

    fn address(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports[0])
    }

    /// kill -9 of meterd, and a new one at once.
    fn kill_server(&self) {
        let mut server = self.server.lock().unwrap();
        server.kill().unwrap();
        server.wait().unwrap();
        *server = spawn(&self.data_dir, self.ports);
    }

    fn postmaster(&self) -> Option<String> {
        let file = std::fs::read_to_string(self.data_dir.join("postgres/postmaster.pid")).ok()?;
        file.lines().next().map(String::from)
    }

    /// kill -9 of PostgreSQL, which meterd brings back.
    fn kill_postgres(&self) {
        let pid = self.postmaster().unwrap();
        assert!(Command::new("kill").args(["-9", &pid]).status().unwrap().success());
    }

    /// How often the server repeated a batch by itself, without a caller's knowing.
    fn retried_batches(&self) -> usize {
        let log = std::fs::read_to_string(self.data_dir.with_extension("log")).unwrap();
        log.matches("is tried again with the same keys").count()
    }

    /// SIGTERM, and the exit code.
    fn stop(&self) -> Option<i32> {
        let mut server = self.server.lock().unwrap();
        assert!(Command::new("kill").args(["-TERM", &server.id().to_string()]).status().unwrap().success());
        server.wait().unwrap().code()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let server = self.server.get_mut().unwrap();
        drop(server.kill());
        drop(server.wait());
        if let Some(pid) = self.postmaster() {
            drop(Command::new("kill").args(["-QUIT", &pid]).stderr(Stdio::null()).status());
            std::thread::sleep(Duration::from_millis(500));
        }
        drop(std::fs::remove_dir_all(&self.data_dir));
        drop(std::fs::remove_file(self.data_dir.with_extension("log")));
    }
}

fn spawn(data_dir: &Path, [grpc, http]: [u16; 2]) -> Child {
    let log = std::fs::File::options().create(true).append(true).open(data_dir.with_extension("log")).unwrap();
    Command::new(env!("CARGO_BIN_EXE_meterd"))
        .arg("serve")
        .arg(format!("--data-dir={}", data_dir.display()))
        .arg(format!("--listen=127.0.0.1:{grpc}"))
        .arg(format!("--http-listen=127.0.0.1:{http}"))
        .env_remove("DATABASE_URL")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap()
}

/// Every other event is of one of five clients that have been there from the begin, the others of ever new ones, which cross
/// their lines after a few events: so alerts are raised all the time.
fn numbered(number: usize) -> UsageEvent {
    let client_id =
        if number.is_multiple_of(2) { format!("hot-{}", number % 5) } else { format!("new-{}", number / 40) };
    UsageEvent {
        client_id,
        service: "sms".into(),
        units: "1.5".into(),
        idempotency_key: format!("key-{number}"),
        ..Default::default()
    }
}

fn channel(address: String) -> Channel {
    Channel::from_shared(address)
        .unwrap()
        .connect_timeout(Duration::from_secs(2))
        .timeout(Duration::from_secs(20))
        .connect_lazy()
}

async fn wait_until_serving(process: &Process) {
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut client = UsageServiceClient::new(channel(process.address()));
    let first = || TrackUsageRequest { event: Some(numbered(0)) };
    while client.track_usage(first()).await.is_err() {
        assert!(Instant::now() < deadline, "the server did not come up");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Lines that twenty events cross.
async fn lower_the_lines(process: &Process) {
    let policy = AlertPolicy {
        monthly_warning: Some("0.05".into()),
        monthly_critical: Some("0.1".into()),
        projection_enabled: Some(false),
        ..Default::default()
    };
    let paths = ["monthly_warning", "monthly_critical", "projection_enabled"].map(String::from).into();
    let request = UpdateAlertPolicyRequest { policy: Some(policy), update_mask: Some(FieldMask { paths }) };
    AlertServiceClient::new(channel(process.address())).update_alert_policy(request).await.unwrap();
}

/// Every month has the alert of the line that it is over and none that it is not over, each is in the feed once, and the feed
/// has no gap. Gives how many alerts there are.
async fn alerts_match_the_months(pool: &PgPool) -> i64 {
    let row = sqlx::query(
        "WITH months AS (
             SELECT m.cost, EXISTS (SELECT FROM alerts a WHERE a.client_id = m.client_id AND severity = 2) AS critical,
                    EXISTS (SELECT FROM alerts a WHERE a.client_id = m.client_id AND severity = 1) AS warning
             FROM usage_months m)
         SELECT (SELECT count(*) FROM months WHERE critical <> (cost >= 0.1) OR (warning AND cost < 0.05)
                     OR (cost >= 0.05 AND NOT warning AND NOT critical)) AS wrong,
                (SELECT count(*) FROM alerts) AS alerts,
                (SELECT count(DISTINCT alert->>'alert_id') FROM alert_feed) AS in_feed,
                (SELECT count(*) FROM alert_feed) AS entries, (SELECT COALESCE(max(sequence), 0) FROM alert_feed) AS last,
                (SELECT sequence FROM alert_feed_counter) AS counter",
    )
    .fetch_one(pool)
    .await
    .unwrap();
    let count = |name: &str| row.get::<i64, _>(name);
    assert_eq!(count("wrong"), 0, "months whose alerts are not those of their cost");
    let counts = [count("in_feed"), count("entries"), count("last"), count("counter")];
    assert_eq!(counts, [count("alerts"); 4], "each alert is in the feed, once, without a gap");
    count("alerts")
}

/// One caller: sends events and repeats each call with the same keys until it is acknowledged.
async fn call(address: String, next: Arc<AtomicUsize>, done: Arc<AtomicBool>) -> (Vec<usize>, usize) {
    let mut client = UsageServiceClient::new(channel(address));
    let (mut acknowledged, mut repeats) = (Vec::new(), 0);
    while !done.load(Ordering::Relaxed) {
        let lone = acknowledged.len() % 3 == 0;
        let count = if lone { 1 } else { BATCH };
        let first = next.fetch_add(count, Ordering::Relaxed);
        let mut numbers: Vec<usize> = (first..first + count).collect();
        while !numbers.is_empty() {
            if lone {
                let request = TrackUsageRequest { event: Some(numbered(first)) };
                if client.track_usage(request).await.is_ok() {
                    acknowledged.append(&mut numbers);
                    continue;
                }
            } else {
                let events = numbers.iter().map(|number| numbered(*number)).collect();
                let request = BatchTrackUsageRequest { events, backfill: false };
                if let Ok(response) = client.batch_track_usage(request).await {
                    let mut results = response.into_inner().results.into_iter();
                    numbers.retain(|number| {
                        let outcome = results.next().unwrap().outcome();
                        let settled = matches!(outcome, EventOutcome::Accepted | EventOutcome::Duplicate);
                        if settled {
                            acknowledged.push(*number);
                        }
                        !settled
                    });
                }
            }
            if !numbers.is_empty() {
                repeats += 1;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
    (acknowledged, repeats)
}

async fn survives(what: &str, kill: fn(&Process)) {
    let process = Arc::new(Process::start());
    wait_until_serving(&process).await;
    lower_the_lines(&process).await;
    let (next, done) = (Arc::new(AtomicUsize::new(1)), Arc::new(AtomicBool::new(false)));
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        callers.spawn(call(process.address(), next.clone(), done.clone()));
    }
    for _ in 0..kills() {
        tokio::time::sleep(Duration::from_millis(rand::random_range(100..500))).await;
        let process_to_kill = process.clone();
        tokio::task::spawn_blocking(move || kill(&process_to_kill)).await.unwrap();
        wait_until_serving(&process).await;
    }
    done.store(true, Ordering::Relaxed);
    let mut acknowledged = HashSet::from([0]);
    let mut repeats = 0;
    while let Some(caller) = callers.join_next().await {
        let (of_caller, of_caller_repeated) = caller.unwrap();
        acknowledged.extend(of_caller);
        repeats += of_caller_repeated;
    }

    let url = postgres::attach(&process.data_dir).await.unwrap().unwrap();
    let pool = connect::pool(connect::options(&url).unwrap(), 2);
    let rows = sqlx::query("SELECT idempotency_key FROM usage_events").fetch_all(&pool).await.unwrap();
    let keys: Vec<String> = rows.iter().map(|row| row.get("idempotency_key")).collect();
    let there: HashSet<&str> = keys.iter().map(String::as_str).collect();
    let lost = acknowledged.iter().filter(|number| !there.contains(format!("key-{number}").as_str())).count();
    let twice = keys.len() - there.len();
    println!(
        "kill -9 of {what} × {}: {} events acknowledged, {repeats} calls repeated, {} batches retried, {} recorded: \
         lost {lost}, counted twice {twice}",
        kills(),
        acknowledged.len(),
        process.retried_batches(),
        keys.len(),
    );
    assert_eq!((lost, twice, keys.len()), (0, 0, acknowledged.len()));
    assert!(repeats + process.retried_batches() >= kills(), "the kills must have been in the middle of calls");
    let verified = verify_all(&pool, None, None).await.unwrap();
    assert_eq!((verified.events as usize, verified.differences), (acknowledged.len(), 0));
    let alerts = alerts_match_the_months(&pool).await;
    println!("{alerts} alerts, each with its event, in the feed once and without a gap");
    assert!(alerts > 100);
    pool.close().await;
    assert_eq!(process.stop(), Some(0), "an orderly stop ends with 0");
    assert_eq!(process.postmaster(), None, "and PostgreSQL with it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_loses_nothing_acknowledged_and_counts_nothing_twice() {
    survives("the server", Process::kill_server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_postgres_loses_nothing_acknowledged_and_counts_nothing_twice() {
    survives("PostgreSQL", Process::kill_postgres).await;
}
