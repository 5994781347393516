//! A run that charges recorded events again, next to callers of the same clients. The server that does it is killed.

use crate::calls::{Client, client, track};
use crate::check::assert_no_open_transaction;
use crate::database::Database;
use crate::replica::Replica;
use crate::run::{Length, Run, grouped};
use crate::scenario;
use crate::scenario_dir::ScenarioDir;
use chrono::TimeDelta;
use meterd::cli::verify::verify_all;
use meterd::proto::catalog_service_client::CatalogServiceClient;
use meterd::proto::{
    BatchTrackUsageRequest, CreatePriceRequest, EventOutcome, Price, Rates, RepriceUsageRequest, RetirePriceRequest,
    UsageEvent,
};
use meterd_engine::clock::Clock;
use sqlx::PgPool;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tonic::transport::Channel;

const CLIENTS: usize = 100;
const CALLERS: usize = 8;
const BATCH_EVENTS: usize = 5_000;
/// How long callers are measured before the run begins.
const BEFORE: Duration = Duration::from_secs(3);
/// Maximum time without progress.
const PROGRESS_TIMEOUT: Duration = Duration::from_secs(60);

/// What happens while a call is measured.
const PHASES: [&str; 3] = ["before", "during the run", "after the first kill"];

scenario! {
    a_run_of_repricing_survives_kills_and_serves_callers => reprice;
}

async fn reprice(run: Run) {
    let events = if run.length == Length::Short { 30_000 } else { 1_000_000 };
    let scenario_dir = ScenarioDir::new();
    let database = Database::start(&scenario_dir).await;
    let mut replicas = vec![];
    for number in 0..2 {
        replicas.push(Replica::on_database(&scenario_dir, number, &database, &["--log=warn,meterd=info"]).await);
    }
    let pool = database.pool().await;
    let mut catalog = Catalog::of(&replicas[0]);
    let wrong = catalog.create_price("1").await;
    record(&mut client(&replicas[0].address()), events).await;
    catalog.replace_price(wrong, "3").await;

    let callers = Callers::start(&replicas);
    tokio::time::sleep(BEFORE).await;
    callers.enter_phase(1);
    let begun = Instant::now();
    let run_id = catalog.reprice().await;
    let (mut memory, mut kills) = (vec![], 0);
    for part in 1..3 {
        wait_for(&pool, run_id, events * part / 3).await;
        let Some(replica) = working_replica(&replicas, &pool, run_id).await else { break };
        memory.push(replica.memory_peak_mib());
        callers.enter_phase(2);
        replica.kill();
        kills += 1;
        replica.launch(&scenario_dir).await;
    }
    // A short run may have ended before the second kill.
    assert!(kills >= if run.length == Length::Short { 1 } else { 2 }, "{kills} kills during the run");
    wait_for(&pool, run_id, events).await;
    let (changed, seconds) = (wait_for_end(&pool, run_id).await, begun.elapsed().as_secs_f64());
    let (tracked, latencies) = callers.finish().await;

    assert_no_open_transaction(&pool).await;
    assert_eq!(changed, events, "each event is charged again once");
    let adjusted: (i64, i64) = sqlx::query_as(
        "SELECT count(*), count(*) FILTER (WHERE number = 1 AND old_charge = 2 AND new_charge = 6) FROM usage_adjustments",
    )
    .fetch_one(&pool)
    .await
    .unwrap();
    assert_eq!(adjusted, (events as i64, events as i64));
    let repriced = "SELECT count(*) FROM usage_events WHERE service = 'social' AND charge = 6";
    assert_eq!(sqlx::query_scalar::<_, i64>(repriced).fetch_one(&pool).await.unwrap(), events as i64);
    let verified = verify_all(&pool, None, None).await.unwrap();
    assert_eq!((verified.events as usize, verified.differences), (events + tracked, 0));
    assert_eq!(database.count_in_log("deadlock detected"), 0);
    let latencies: Vec<String> = PHASES.iter().zip(latencies).map(|(phase, times)| times.text(phase)).collect();
    run.report(
        format!("{} events charged again, kill -9 of the server that does it × {kills}", grouped(events)),
        format!(
            "{seconds:.1} s, {} adjustments, {} events of callers, 0 lost; {}; at most {} MiB in a server",
            grouped(changed),
            grouped(tracked),
            latencies.join(", "),
            memory.into_iter().max().unwrap_or_default()
        ),
    );
    pool.close().await;
    for replica in replicas.iter().rev() {
        assert_eq!(replica.stop(&scenario_dir).await, Some(0));
    }
}

/// The catalogue of a replica.
struct Catalog(CatalogServiceClient<Channel>);

impl Catalog {
    fn of(replica: &Replica) -> Self {
        Self(CatalogServiceClient::new(Channel::from_shared(replica.address()).unwrap().connect_lazy()))
    }

    async fn create_price(&mut self, rate: &str) -> String {
        let rates = Rates { unit: Some(rate.into()), ..Default::default() };
        let price = Price { service: "social".into(), rates: Some(rates), ..Default::default() };
        let request = CreatePriceRequest { price: Some(price), ..Default::default() };
        self.0.create_price(request).await.unwrap().into_inner().price.unwrap().price_id
    }

    async fn replace_price(&mut self, price_id: String, rate: &str) {
        self.0.retire_price(RetirePriceRequest { price_id, end_time: None }).await.unwrap();
        self.create_price(rate).await;
    }

    /// Begins a run over all months that may have the events, and returns its id.
    async fn reprice(&mut self) -> i64 {
        let month = |days: i64| (Clock::system().now() + TimeDelta::days(days)).format("%Y-%m").to_string();
        let request = RepriceUsageRequest {
            start_month: month(-1),
            end_month: month(1),
            services: vec!["social".into()],
            reason: "another price".into(),
            ..Default::default()
        };
        self.0.reprice_usage(request).await.unwrap().into_inner().run.unwrap().run_id.parse().unwrap()
    }
}

fn client_of(number: usize) -> String {
    format!("client-{}", number % CLIENTS)
}

/// Records the events that are charged again.
async fn record(calls: &mut Client, count: usize) {
    for first in (0..count).step_by(BATCH_EVENTS) {
        let event = |number: usize| UsageEvent {
            client_id: client_of(number),
            service: "social".into(),
            units: "2".into(),
            ..Default::default()
        };
        let events = (first..count.min(first + BATCH_EVENTS)).map(event).collect();
        let request = BatchTrackUsageRequest { events, ..Default::default() };
        let results = calls.batch_track_usage(request).await.unwrap().into_inner().results;
        assert!(results.iter().all(|result| result.outcome() == EventOutcome::Accepted));
    }
}

/// Returns how many events a run has changed, and whether it has ended.
async fn progress(pool: &PgPool, run_id: i64) -> (usize, bool) {
    let row = "SELECT changed_count, finish_time IS NOT NULL FROM reprice_runs WHERE run_id = $1";
    let (changed, has_ended): (i64, bool) = sqlx::query_as(row).bind(run_id).fetch_one(pool).await.unwrap();
    (changed as usize, has_ended)
}

/// Waits until a run has changed this many events.
async fn wait_for(pool: &PgPool, run_id: i64, count: usize) {
    let (mut last, mut since) = (0, Instant::now());
    loop {
        let (changed, ..) = progress(pool, run_id).await;
        if changed >= count {
            return;
        }
        if changed > last {
            (last, since) = (changed, Instant::now());
        }
        assert!(since.elapsed() < PROGRESS_TIMEOUT, "the run made no progress after {changed} events");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Returns the replica that works on a run. `None` if the run has ended.
async fn working_replica<'a>(replicas: &'a [Replica], pool: &PgPool, run_id: i64) -> Option<&'a Replica> {
    let steps = || replicas.iter().map(|replica| replica.count_in_log("events charged by the present prices"));
    let before: Vec<usize> = steps().collect();
    loop {
        if let Some(at) = steps().zip(&before).position(|(now, before)| now > *before) {
            return (!progress(pool, run_id).await.1).then(|| &replicas[at]);
        }
        if progress(pool, run_id).await.1 {
            return None;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Waits until a run has ended. Returns how many events it has changed.
async fn wait_for_end(pool: &PgPool, run_id: i64) -> usize {
    let deadline = Instant::now() + PROGRESS_TIMEOUT;
    loop {
        let (changed, has_ended) = progress(pool, run_id).await;
        if has_ended {
            return changed;
        }
        assert!(Instant::now() < deadline, "the run does not end");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Callers of TrackUsage. Each event has a price that does not change, and a client whose events are charged again.
struct Callers {
    tasks: JoinSet<usize>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    phase: AtomicUsize,
    is_done: AtomicBool,
    latencies: Mutex<[Latencies; PHASES.len()]>,
}

#[derive(Clone, Default)]
struct Latencies(Vec<Duration>);

impl Latencies {
    fn text(mut self, phase: &str) -> String {
        self.0.sort_unstable();
        let at = |share: f64| self.0.get((self.0.len() as f64 * share) as usize).map_or(0.0, Duration::as_secs_f64);
        format!("{phase} p50 {:.1} ms and p99 {:.1} ms", at(0.5) * 1e3, at(0.99) * 1e3)
    }
}

impl Callers {
    fn start(replicas: &[Replica]) -> Self {
        let shared = Arc::new(Shared::default());
        let addresses: Vec<String> = replicas.iter().map(Replica::address).collect();
        let tasks = (0..CALLERS).map(|caller| work(caller, addresses.clone(), shared.clone())).collect();
        Self { tasks, shared }
    }

    fn enter_phase(&self, phase: usize) {
        self.shared.phase.store(phase, Ordering::Relaxed);
    }

    /// Returns the number of acknowledged events, and the latencies of each phase.
    async fn finish(self) -> (usize, [Latencies; PHASES.len()]) {
        self.shared.is_done.store(true, Ordering::Relaxed);
        let tracked = self.tasks.join_all().await.into_iter().sum();
        (tracked, self.shared.latencies.lock().unwrap().clone())
    }
}

/// Sends events until the end, each until it is acknowledged. Returns their number.
async fn work(caller: usize, addresses: Vec<String>, shared: Arc<Shared>) -> usize {
    let mut clients: Vec<Client> = addresses.iter().map(|address| client(address)).collect();
    let mut count = 0;
    while !shared.is_done.load(Ordering::Relaxed) {
        let event = UsageEvent {
            client_id: client_of(caller + count * CALLERS),
            service: "sms".into(),
            idempotency_key: format!("{caller}-{count}"),
            ..Default::default()
        };
        let (phase, begun) = (shared.phase.load(Ordering::Relaxed), Instant::now());
        let mut attempt = count;
        loop {
            let at = attempt % clients.len();
            match track(&mut clients[at], event.clone()).await {
                Ok(_) => break,
                Err(status) => assert!(begun.elapsed() < PROGRESS_TIMEOUT, "{status}"),
            }
            attempt += 1;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        shared.latencies.lock().unwrap()[phase].0.push(begun.elapsed());
        count += 1;
    }
    count
}
