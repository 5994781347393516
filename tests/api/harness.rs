//! A real server on a free port with a fresh database, and helpers for tests.

pub use crate::assertions::*;
use chrono::{DateTime, Utc};
use clap::Parser;
use meterd::app;
use meterd::cli::verify::{Verified, verify_all};
use meterd::config::Settings;
use meterd::grpc::Context;
use meterd::proto::alert_service_client::AlertServiceClient;
use meterd::proto::catalog_service_client::CatalogServiceClient;
use meterd::proto::client_service_client::ClientServiceClient;
use meterd::proto::job_service_client::JobServiceClient;
use meterd::proto::usage_service_client::UsageServiceClient;
use meterd::proto::{
    BatchTrackUsageRequest, Client, CreateClientRequest, GetCurrentMonthUsageRequest, GetCurrentMonthUsageResponse,
    Price, QueryUsageRequest, Rates, RunJobRequest, TrackUsageRequest, UsageEvent, UsageResult, UsageRow,
};
use meterd_embedded_postgres::{Embedded, EmbeddedSettings};
use meterd_engine::clock::Clock;
use meterd_store::database::connect;
use meterd_store::locks::VERSIONS_LOCK;
use sqlx::{AssertSqlSafe, Executor, PgPool, Postgres, Transaction};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::Status;
use tonic::transport::Channel;

const TEMPLATE: &str = "meterd_template";

/// One PostgreSQL for all tests of this process. It ends with the process, however the process ends.
struct SharedPostgres {
    url: String,
    /// The pipe is open as long as this process lives. The cleanup script waits for its end.
    _keeper: ChildStdin,
}

/// Tables with triggers that only serve replicas of earlier releases. Without them, the code must do their work, as it
/// must in a distributed database.
const TABLES_WITH_TRIGGERS: [&str; 3] = ["clients", "alert_policies", "monthly_summaries"];

fn shared_postgres() -> &'static SharedPostgres {
    static SHARED: OnceLock<SharedPostgres> = OnceLock::new();
    SHARED.get_or_init(|| {
        // Uses its own thread, because the caller is inside a runtime.
        std::thread::spawn(|| {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            runtime.block_on(start_shared_postgres())
        })
        .join()
        .unwrap()
    })
}

#[expect(clippy::zombie_processes, reason = "the cleanup script outlives this process")]
async fn start_shared_postgres() -> SharedPostgres {
    let data_dir = tempfile::Builder::new().prefix("meterd-test-").tempdir().unwrap().keep();
    let settings = EmbeddedSettings {
        data_dir: data_dir.clone(),
        bin_dir: None,
        download_url: None,
        download: true,
        durable: false,
    };
    let embedded = Embedded::start(&settings).await.unwrap();
    let url = embedded.url().to_string();
    let pid = std::fs::read_to_string(data_dir.join("postgres/postmaster.pid")).unwrap();
    let script = format!(
        "cat > /dev/null; kill -QUIT {}; while kill -0 {} 2> /dev/null; do sleep 0.1; done; rm -rf '{}'",
        pid.lines().next().unwrap(),
        pid.lines().next().unwrap(),
        data_dir.display()
    );
    let mut keeper = Command::new("sh")
        .args(["-c", &script])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    execute(&url, &format!("CREATE DATABASE {TEMPLATE}")).await;
    let options = connect::options(&url).unwrap().database(TEMPLATE);
    app::prepare(&options, &settings_of(&[])).await.unwrap();
    let template = url.replace("/meterd?", &format!("/{TEMPLATE}?"));
    // The code must not depend on these triggers.
    for table in TABLES_WITH_TRIGGERS {
        execute(&template, &format!("ALTER TABLE {table} DISABLE TRIGGER USER")).await;
    }
    SharedPostgres { url, _keeper: keeper.stdin.take().unwrap() }
}

async fn execute(url: &str, sql: &str) {
    let pool = PgPool::connect(url).await.unwrap();
    pool.execute(AssertSqlSafe(sql.to_string())).await.unwrap();
    pool.close().await;
}

/// Returns the settings of these flags, with free ports.
pub fn settings_of(flags: &[&str]) -> Settings {
    #[derive(Parser)]
    #[command(args_override_self = true)]
    struct Flags {
        #[command(flatten)]
        settings: Settings,
    }
    let fixed = ["test", "--listen=127.0.0.1:0", "--http-listen=127.0.0.1:0", "--allow-non-durable-database"];
    // No job runs by schedule, unless a test sets one.
    let off = meterd_engine::jobs::names().into_iter().map(|job| format!("--schedule-{}=off", job.replace('_', "-")));
    let flags = fixed.iter().map(|flag| flag.to_string()).chain(off).chain(flags.iter().map(|flag| flag.to_string()));
    Flags::parse_from(flags).settings
}

/// Creates a fresh database with the built-in catalogue.
pub async fn fresh_database() -> String {
    database_like(TEMPLATE).await
}

/// Creates an empty database.
pub async fn empty_database() -> String {
    database_like("template0").await
}

async fn database_like(template: &str) -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let shared = shared_postgres();
    let name = format!("test_{}", NEXT.fetch_add(1, Ordering::Relaxed));
    execute(&shared.url, &format!("CREATE DATABASE {name} TEMPLATE {template}")).await;
    shared.url.replace("/meterd?", &format!("/{name}?"))
}

/// A running server.
pub struct TestServer {
    pub address: String,
    pub http_address: String,
    pub database_url: String,
    pub clock: Clock,
    /// A pool of the test, in addition to the server's own.
    pub pool: PgPool,
    pub context: Arc<Context>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<anyhow::Result<()>>,
}

impl TestServer {
    /// Starts a server with a fresh database and the system clock.
    pub async fn start() -> Self {
        Self::start_with(&[], Clock::system()).await
    }

    /// Starts a server with a fresh database, these flags and this clock.
    pub async fn start_with(flags: &[&str], clock: Clock) -> Self {
        Self::replica(&fresh_database().await, flags, clock).await
    }

    /// Starts another replica on an existing database.
    pub async fn replica(database_url: &str, flags: &[&str], clock: Clock) -> Self {
        let options = connect::options(database_url).unwrap();
        let settings = settings_of(flags);
        let deployment = app::prepare(&options, &settings).await.unwrap();
        let app = app::build(settings, &options, deployment, clock.clone()).await.unwrap();
        let (address, http_address) = (format!("http://{}", app.grpc_address()), app.http_address().to_string());
        let context = app.context().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(app.run(async { drop(stopped.await) }, None));
        let pool = connect::pool(options, 4);
        Self { address, http_address, database_url: database_url.into(), clock, pool, context, stop, task }
    }

    /// Stops the server normally.
    pub async fn stop(self) {
        drop(self.stop);
        self.task.await.unwrap().unwrap();
        self.pool.close().await;
    }

    /// Returns a channel with its own connection.
    pub fn channel(&self) -> Channel {
        Channel::from_shared(self.address.clone()).unwrap().connect_lazy()
    }

    pub fn usage(&self) -> UsageServiceClient<Channel> {
        UsageServiceClient::new(self.channel()).max_decoding_message_size(16 << 20).max_encoding_message_size(16 << 20)
    }

    pub fn alerts(&self) -> AlertServiceClient<Channel> {
        AlertServiceClient::new(self.channel())
    }

    pub fn catalog(&self) -> CatalogServiceClient<Channel> {
        CatalogServiceClient::new(self.channel())
    }

    pub fn jobs(&self) -> JobServiceClient<Channel> {
        JobServiceClient::new(self.channel())
    }

    /// Runs a scheduled job that must succeed, and returns what it did.
    pub async fn run_job(&self, job: &str) -> String {
        let request = RunJobRequest { job: job.into() };
        let job = self.jobs().run_job(request).await.unwrap().into_inner().job.unwrap();
        assert_eq!(job.last_error, "", "{}", job.job);
        job.last_result
    }

    pub fn clients(&self) -> ClientServiceClient<Channel> {
        ClientServiceClient::new(self.channel())
    }

    /// Records one event.
    pub async fn track(&self, event: UsageEvent) -> Result<UsageResult, Status> {
        let response = self.usage().track_usage(TrackUsageRequest { event: Some(event) }).await?;
        Ok(response.into_inner().result.unwrap())
    }

    /// Records a batch.
    pub async fn batch(&self, events: Vec<UsageEvent>, backfill: bool) -> Vec<UsageResult> {
        let request = BatchTrackUsageRequest { events, backfill, ..Default::default() };
        self.usage().batch_track_usage(request).await.unwrap().into_inner().results
    }

    /// Creates a client with this time zone.
    pub async fn create_client_in_zone(&self, client_id: &str, time_zone: &str) {
        let client = Client { client_id: client_id.into(), time_zone: time_zone.into(), ..Default::default() };
        let request = CreateClientRequest { client: Some(client), request_id: String::new() };
        self.clients().create_client(request).await.unwrap();
    }

    /// Reads a client's current month.
    pub async fn month(&self, client_id: &str) -> GetCurrentMonthUsageResponse {
        let request = GetCurrentMonthUsageRequest { client_id: client_id.into(), ..Default::default() };
        self.usage().get_current_month_usage(request).await.unwrap().into_inner()
    }

    /// Reads all rows of a query page by page.
    pub async fn query(&self, request: QueryUsageRequest) -> Vec<UsageRow> {
        let (mut usage, mut rows, mut page_token) = (self.usage(), vec![], String::new());
        loop {
            let page = QueryUsageRequest { page_token, ..request.clone() };
            let page = usage.query_usage(page).await.unwrap().into_inner();
            rows.extend(page.rows);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return rows;
            }
        }
    }

    /// Runs SQL directly on the database, and returns the number of rows.
    pub async fn sql(&self, sql: &str) -> u64 {
        self.pool.execute(AssertSqlSafe(sql.to_string())).await.unwrap().rows_affected()
    }

    /// Prevents all writers from committing until the transaction ends, by taking the lock that each batch shares.
    pub async fn stall_writers(&self) -> Transaction<'static, Postgres> {
        let mut tx = self.pool.begin().await.unwrap();
        sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(VERSIONS_LOCK).execute(&mut *tx).await.unwrap();
        tx
    }

    /// Waits until a writer is blocked by `stall_writers`.
    pub async fn wait_for_stalled_writer(&self) {
        // Jobs wait for the lock, too. Only writers begin their transaction in the same statement.
        let waiting = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'advisory'
                       AND query LIKE 'BEGIN; SELECT pg_advisory_xact_lock_shared%'";
        wait_until(async || self.sql(waiting).await > 0).await;
    }

    /// Compares sums and totals with the events.
    pub async fn verify(&self) -> Verified {
        verify_all(&self.pool, None, None).await.unwrap()
    }

    /// Checks that sums and totals are equal to those of the events, and that there are `events` events.
    pub async fn assert_exact(&self, events: i64) {
        let verified = self.verify().await;
        assert_eq!((verified.events, verified.differences), (events, 0));
    }
}

/// Creates an event with few fields.
pub fn event(client_id: &str, service: &str, units: &str) -> UsageEvent {
    UsageEvent { client_id: client_id.into(), service: service.into(), units: units.into(), ..Default::default() }
}

/// Creates an event of a call to gpt-4o-mini.
pub fn model_call(client_id: &str, input_tokens: i64, output_tokens: i64) -> UsageEvent {
    UsageEvent {
        operation: "chat_completion".into(),
        model: "gpt-4o-mini".into(),
        input_tokens,
        output_tokens,
        ..event(client_id, "openai", "")
    }
}

/// Creates a price per unit.
pub fn unit_price(service: &str, model: &str, rate: &str) -> Price {
    let rates = Rates { unit: Some(rate.into()), ..Default::default() };
    Price { service: service.into(), model: model.into(), rates: Some(rates), ..Default::default() }
}

/// Parses a time.
pub fn time(text: &str) -> DateTime<Utc> {
    text.parse().unwrap()
}

/// Parses a timestamp.
pub fn timestamp(text: &str) -> prost_types::Timestamp {
    let time = time(text);
    prost_types::Timestamp { seconds: time.timestamp(), nanos: time.timestamp_subsec_nanos() as i32 }
}

/// Creates an event with a time.
pub fn event_at(client_id: &str, service: &str, units: &str, time: &str) -> UsageEvent {
    UsageEvent { event_time: Some(timestamp(time)), ..event(client_id, service, units) }
}

/// Waits until a condition is true, with a timeout.
pub async fn wait_until(condition: impl AsyncFn() -> bool) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !condition().await {
        assert!(std::time::Instant::now() < deadline, "the condition was not true within 20 s");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}
