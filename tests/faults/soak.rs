//! Soak test: half of the maximum rate for a long time, with all kinds of callers, subscribers and reads. Memory must
//! not grow.

use crate::calls::{Answer, Client, client};
use crate::deployment::Deployment;
use crate::events::numbered_event;
use crate::journal::Journal;
use crate::load::Tally;
use crate::run::{Length, Run, grouped, variable};
use crate::scenario;
use meterd::proto::{GetCurrentMonthUsageRequest, GetUsageSummaryRequest, QueryUsageRequest};
use rand::RngExt;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

/// Duration of the soak test, if set in the environment.
const SECONDS: &str = "METERD_SOAK_SECONDS";
const SHORT_SECONDS: u64 = 10;
const LONG_SECONDS: u64 = 1_800;
/// When a generation of keys is closed. For some seconds after that, each key is looked up in it. If this happened every second of a
/// long soak, there would be more than a thousand generations, and their lookups would take most of the time.
const ROTATION_SHORT: &str = "--schedule-key-generations=* * * * * *";
const ROTATION_LONG: &str = "--schedule-key-generations=0 * * * * *";
/// How long the maximum rate is measured. The warm-up is a tenth of the soak test, at most two minutes.
const TOP_SECONDS: [u64; 2] = [3, 20];
const WARM_UP_MAX: Duration = Duration::from_secs(120);
/// For each kind of call: the number of callers while the maximum rate is measured, and the number of events per call.
const KINDS: [Kind; 3] =
    [Kind { callers: 32, events: 1 }, Kind { callers: 4, events: 100 }, Kind { callers: 4, events: 100 }];
/// Maximum number of calls at the same time. Further calls start late, which increases their latency.
const UNDER_WAY_MAX: usize = 2_000;
const READS_EVERY: Duration = Duration::from_millis(100);
/// A server may use 1.5 times the memory that it used after the warm-up, because allocators keep the memory of the busiest
/// moment, and this much more for each event: 2 bytes for the filters of keys, and 3 for the known clients, of which there is
/// one for 40 events. A leak grows with the events, too, but by far more.
const GROWTH_MAX: f64 = 1.5;
const BYTES_PER_EVENT: f64 = 5.0;
/// Below this size, the allocator dominates.
const RSS_FLOOR_MIB: f64 = 64.0;

scenario! {
    half_of_the_maximum_rate_for_long_loses_no_event_and_leaks_no_memory => soak;
}

struct Kind {
    callers: usize,
    events: u64,
}

/// State that all callers share.
struct Shared {
    addresses: Vec<String>,
    journal: Arc<Journal>,
    next: AtomicU64,
    settled: AtomicU64,
    done: AtomicBool,
}

async fn soak(run: Run) {
    let length = run.length == Length::Long;
    let seconds = variable(SECONDS).unwrap_or(if length { LONG_SECONDS } else { SHORT_SECONDS });
    let soak = Duration::from_secs(seconds);
    let rotation = if length { ROTATION_LONG } else { ROTATION_SHORT };
    let deployment = Deployment::start_with_embedded(run, &[rotation]).await;
    let subscribers = deployment.subscribers();
    let shared = Arc::new(Shared {
        addresses: deployment.addresses(),
        journal: deployment.journal.clone(),
        next: AtomicU64::new(0),
        settled: AtomicU64::new(0),
        done: AtomicBool::new(false),
    });
    let start = memory(&deployment);
    let (top, mut tally) = measure_maximum_rates(&shared, Duration::from_secs(TOP_SECONDS[usize::from(length)])).await;
    let baseline = deployment.resources().await;
    let reading = tokio::spawn(read(shared.clone()));
    let begin = Instant::now();
    let settled_before = shared.settled.load(Ordering::Relaxed);
    let mut paced = JoinSet::new();
    for (number, rate) in top.iter().enumerate() {
        paced.spawn(pace(shared.clone(), number, rate / 2.0, soak));
    }
    let warm_up = WARM_UP_MAX.min(soak / 10);
    tokio::time::sleep(warm_up).await;
    let warm = memory(&deployment);
    tokio::time::sleep((soak / 2).saturating_sub(begin.elapsed())).await;
    let middle = memory(&deployment);
    let mut latencies = vec![];
    for (kind_latencies, kind_tally) in paced.join_all().await {
        latencies.extend(kind_latencies);
        tally.add(kind_tally);
    }
    let reached = (shared.settled.load(Ordering::Relaxed) - settled_before) as f64 / begin.elapsed().as_secs_f64();
    let end = memory(&deployment);
    shared.done.store(true, Ordering::Relaxed);
    let reads = reading.await.unwrap();
    let found = deployment.find(tally, subscribers, baseline).await;
    latencies.sort_unstable();
    let percentile = |percent: usize| latencies[(latencies.len() - 1) * percent / 100].as_secs_f64() * 1e3;
    let (top, [requested, reached]) =
        (top.iter().sum::<f64>(), [top.iter().sum::<f64>() / 2.0, reached].map(|rate| rate as usize));
    deployment.run.report(
        format!("soak of {seconds} s"),
        format!(
            "top {} events/s, requested {}/s, reached {}/s, p50 {:.1} ms, p99 {:.1} ms, {} reads, {found}; MiB of both servers and \
             PostgreSQL at the start {start}, after the warm-up {warm}, in the middle {middle}, at the end {end}",
            grouped(top as usize),
            grouped(requested),
            grouped(reached),
            percentile(50),
            percentile(99),
            grouped(reads)
        ),
    );
    assert_eq!(found.checked.recorded, found.checked.acknowledged);
    assert!(reached as f64 > 0.9 * requested as f64, "half of the maximum rate was not reached");
    let of_events = BYTES_PER_EVENT * found.checked.recorded as f64 / f64::from(1 << 20);
    for (warm, end) in warm.replicas.iter().zip(end.replicas) {
        let most = GROWTH_MAX * warm.max(RSS_FLOOR_MIB) + of_events;
        assert!(end <= most, "a server grew from {warm:.0} MiB to {end:.0} MiB, at most {most:.0} was expected");
    }
    deployment.stop().await;
}

/// Sends a call of a kind until each of its events is acknowledged.
async fn send(shared: &Shared, clients: &mut [Client], kind: usize, tally: &mut Tally) {
    let first = shared.next.fetch_add(KINDS[kind].events, Ordering::Relaxed);
    let mut numbers: Vec<u64> = (first..first + KINDS[kind].events).collect();
    while !numbers.is_empty() && tally.hung == 0 && tally.wrong.is_empty() {
        let mut answer = Answer::default();
        let client = &mut clients[(first % 2) as usize];
        match kind {
            0 => answer.send_unary(client, first).await,
            1 => answer.send_batch(client, &numbers).await,
            _ => answer.send_stream(client, &numbers).await,
        }
        shared.journal.write(&answer.acknowledged);
        shared.settled.fetch_add(answer.acknowledged.len() as u64, Ordering::Relaxed);
        numbers.retain(|number| answer.acknowledged.iter().all(|acknowledged| acknowledged.number != *number));
        tally.take(answer);
        tally.repeats += usize::from(!numbers.is_empty());
    }
}

fn clients(shared: &Shared) -> Vec<Client> {
    shared.addresses.iter().map(|address| client(address)).collect()
}

/// Measures the events per second of each kind, while all kinds run as fast as they can together.
async fn measure_maximum_rates(shared: &Arc<Shared>, time: Duration) -> ([f64; KINDS.len()], Tally) {
    let mut callers = JoinSet::new();
    let begin = Instant::now();
    for (number, kind) in KINDS.iter().enumerate() {
        for _ in 0..kind.callers {
            let shared = shared.clone();
            callers.spawn(async move {
                let (mut clients, mut tally, mut events) = (clients(&shared), Tally::default(), 0);
                while begin.elapsed() < time {
                    send(&shared, &mut clients, number, &mut tally).await;
                    events += KINDS[number].events;
                }
                (number, events, tally)
            });
        }
    }
    let (mut rates, mut tally) = ([0.0; KINDS.len()], Tally::default());
    for (number, events, caller_tally) in callers.join_all().await {
        rates[number] += events as f64 / time.as_secs_f64();
        tally.add(caller_tally);
    }
    (rates, tally)
}

/// Starts calls of a kind at a fixed rate, even if earlier calls are not finished. Returns the latencies, measured from
/// the scheduled start of each call.
async fn pace(shared: Arc<Shared>, kind: usize, rate: f64, time: Duration) -> (Vec<Duration>, Tally) {
    let every = Duration::from_secs_f64(KINDS[kind].events as f64 / rate);
    let mut ticks = tokio::time::interval(every.max(Duration::from_micros(100)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let room = Arc::new(Semaphore::new(UNDER_WAY_MAX));
    // Uses a few connections, as a real caller does.
    let connections: Vec<Vec<Client>> = (0..4).map(|_| clients(&shared)).collect();
    let (mut calls, mut latencies, mut tally) = (JoinSet::new(), vec![], Tally::default());
    let begin = Instant::now();
    let mut take = |(latency, of_call): (Duration, Tally)| {
        latencies.push(latency);
        tally.add(of_call);
    };
    let mut number = 0;
    while begin.elapsed() < time {
        let due = ticks.tick().await.into_std();
        let permit = room.clone().acquire_owned().await.unwrap();
        let (shared, mut clients) = (shared.clone(), connections[number % connections.len()].clone());
        number += 1;
        calls.spawn(async move {
            let mut tally = Tally::default();
            send(&shared, &mut clients, kind, &mut tally).await;
            drop(permit);
            (due.elapsed(), tally)
        });
        while let Some(done) = calls.try_join_next() {
            take(done.unwrap());
        }
    }
    calls.join_all().await.into_iter().for_each(&mut take);
    (latencies, tally)
}

/// Reads as a dashboard does. All reads must succeed. Returns the number of reads.
async fn read(shared: Arc<Shared>) -> usize {
    let mut clients = clients(&shared);
    let mut reads = 0;
    while !shared.done.load(Ordering::Relaxed) {
        tokio::time::sleep(READS_EVERY).await;
        let last = shared.settled.load(Ordering::Relaxed).saturating_sub(1);
        let client_id = numbered_event(rand::rng().random_range(0..=last / 2)).client_id;
        let client = &mut clients[reads % 2];
        let month = client
            .get_current_month_usage(GetCurrentMonthUsageRequest { client_id: client_id.clone(), ..Default::default() })
            .await;
        let month = month.unwrap().into_inner().month;
        let (start_date, end_date) = (format!("{month}-01"), format!("{month}-28"));
        let request = GetUsageSummaryRequest {
            client_id: client_id.clone(),
            start_date: start_date.clone(),
            end_date: end_date.clone(),
            ..Default::default()
        };
        client.get_usage_summary(request).await.unwrap();
        let request = QueryUsageRequest { client_ids: vec![client_id], start_date, end_date, ..Default::default() };
        client.query_usage(request).await.unwrap();
        reads += 3;
    }
    reads
}

/// Memory in MiB: the resident memory of each replica, and the proportional share of all PostgreSQL processes.
#[derive(Clone, Copy)]
struct Memory {
    replicas: [f64; 2],
    postgres: f64,
}

impl std::fmt::Display for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { replicas: [first, second], postgres } = self;
        write!(f, "{first:.0} + {second:.0} + {postgres:.0}")
    }
}

fn memory(deployment: &Deployment) -> Memory {
    let field = |file: String, name: &str| {
        let text = fs::read_to_string(file).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.split_whitespace().next().and_then(|kib| kib.parse::<f64>().ok()).unwrap_or_default() / 1_024.0
    };
    let replica = |at: usize| field(format!("/proc/{}/status", deployment.replicas[at].pid()), "VmRSS:");
    let postmaster = deployment.database.postmaster().unwrap_or_default();
    let children = fs::read_to_string(format!("/proc/{postmaster}/task/{postmaster}/children")).unwrap_or_default();
    let processes = children.split_whitespace().chain([postmaster.as_str()]);
    let postgres = processes.map(|pid| field(format!("/proc/{pid}/smaps_rollup"), "Pss:")).sum();
    Memory { replicas: [replica(0), replica(1)], postgres }
}
