//! A soak: half of the top rate for long, with every kind of caller, subscribers and reads, and no growth.

use crate::calls::{Answer, Client, client};
use crate::events::numbered;
use crate::journal::Journal;
use crate::load::Tally;
use crate::run::{Length, Run, grouped, variable};
use crate::scenario;
use crate::world::World;
use meterd::proto::{GetCurrentMonthUsageRequest, GetUsageSummaryRequest, QueryUsageRequest};
use rand::RngExt;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

/// How long, unless the environment says otherwise.
const SECONDS: &str = "METERD_SOAK_SECONDS";
const SHORT_SECONDS: u64 = 10;
const LONG_SECONDS: u64 = 1_800;
/// How long the top rate is measured for, and how much of the soak is its warm-up: a tenth, at most two minutes.
const TOP_SECONDS: [u64; 2] = [3, 20];
const WARM_UP_MAX: Duration = Duration::from_secs(120);
/// Callers of each kind while the top rate is measured, and events of their calls.
const KINDS: [Kind; 3] =
    [Kind { callers: 32, events: 1 }, Kind { callers: 4, events: 100 }, Kind { callers: 4, events: 100 }];
/// Calls that are under way at once. Further ones are late, and their latency says so.
const UNDER_WAY_MAX: usize = 2_000;
const READS_EVERY: Duration = Duration::from_millis(100);
/// A server may hold half as much again as after its warm-up: caches of clients and months fill, and allocators keep what
/// the busiest moment has needed. What leaks grows with the events, by far more than that in half an hour.
const GROWTH_MAX: f64 = 1.5;
/// Below this, growth is the allocator's.
const RSS_FLOOR_MIB: f64 = 64.0;

scenario! {
    a_soak_at_half_the_top_rate_loses_nothing_and_grows_nothing => soak;
}

struct Kind {
    callers: usize,
    events: u64,
}

/// What all callers share.
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
    let world = World::start_with_keeper(run).await;
    let subscribers = world.subscribers();
    let shared = Arc::new(Shared {
        addresses: world.addresses(),
        journal: world.journal.clone(),
        next: AtomicU64::new(0),
        settled: AtomicU64::new(0),
        done: AtomicBool::new(false),
    });
    let start = memory(&world);
    let (top, mut tally) = top_rates(&shared, Duration::from_secs(TOP_SECONDS[usize::from(length)])).await;
    let held = world.held().await;
    let reading = tokio::spawn(read(shared.clone()));
    let begin = Instant::now();
    let settled_before = shared.settled.load(Ordering::Relaxed);
    let mut paced = JoinSet::new();
    for (number, rate) in top.iter().enumerate() {
        paced.spawn(pace(shared.clone(), number, rate / 2.0, soak));
    }
    let warm_up = WARM_UP_MAX.min(soak / 10);
    tokio::time::sleep(warm_up).await;
    let warm = memory(&world);
    tokio::time::sleep((soak / 2).saturating_sub(begin.elapsed())).await;
    let middle = memory(&world);
    let mut latencies = vec![];
    for (of_kind, kind_tally) in paced.join_all().await {
        latencies.extend(of_kind);
        tally.add(kind_tally);
    }
    let reached = (shared.settled.load(Ordering::Relaxed) - settled_before) as f64 / begin.elapsed().as_secs_f64();
    let end = memory(&world);
    shared.done.store(true, Ordering::Relaxed);
    let reads = reading.await.unwrap();
    let found = world.find(tally, subscribers, held).await;
    latencies.sort_unstable();
    let percentile = |percent: usize| latencies[(latencies.len() - 1) * percent / 100].as_secs_f64() * 1e3;
    let (top, [asked, reached]) =
        (top.iter().sum::<f64>(), [top.iter().sum::<f64>() / 2.0, reached].map(|rate| rate as usize));
    world.run.report(
        format!("soak of {seconds} s"),
        format!(
            "top {} events/s, asked {}/s, reached {}/s, p50 {:.1} ms, p99 {:.1} ms, {} reads, {found}; MiB of both servers and \
             PostgreSQL at the start {start}, after the warm-up {warm}, in the middle {middle}, at the end {end}",
            grouped(top as usize),
            grouped(asked),
            grouped(reached),
            percentile(50),
            percentile(99),
            grouped(reads)
        ),
    );
    assert_eq!(found.checked.recorded, found.checked.acknowledged);
    assert!(reached as f64 > 0.9 * asked as f64, "half of the top rate must be reached");
    for (warm, end) in warm.replicas.iter().zip(end.replicas) {
        assert!(end <= GROWTH_MAX * warm.max(RSS_FLOOR_MIB), "a server grew from {warm:.0} MiB to {end:.0} MiB");
    }
    world.stop().await;
}

/// Sends a call of a kind until each of its events is acknowledged.
async fn send(shared: &Shared, clients: &mut [Client], kind: usize, tally: &mut Tally) {
    let first = shared.next.fetch_add(KINDS[kind].events, Ordering::Relaxed);
    let mut numbers: Vec<u64> = (first..first + KINDS[kind].events).collect();
    while !numbers.is_empty() && tally.hung == 0 && tally.wrong.is_empty() {
        let mut answer = Answer::default();
        let client = &mut clients[(first % 2) as usize];
        match kind {
            0 => answer.of_unary(client, first).await,
            1 => answer.of_batch(client, &numbers).await,
            _ => answer.of_stream(client, &numbers).await,
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

/// Events a second of each kind, all of them going as fast as they can together.
async fn top_rates(shared: &Arc<Shared>, time: Duration) -> ([f64; KINDS.len()], Tally) {
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
    for (number, events, of_caller) in callers.join_all().await {
        rates[number] += events as f64 / time.as_secs_f64();
        tally.add(of_caller);
    }
    (rates, tally)
}

/// Calls of a kind at a rate, whether or not the earlier ones have been answered. Gives the latencies from when each was due.
async fn pace(shared: Arc<Shared>, kind: usize, rate: f64, time: Duration) -> (Vec<Duration>, Tally) {
    let every = Duration::from_secs_f64(KINDS[kind].events as f64 / rate);
    let mut ticks = tokio::time::interval(every.max(Duration::from_micros(100)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let room = Arc::new(Semaphore::new(UNDER_WAY_MAX));
    // A few connections, as a caller would have.
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

/// Reads of a dashboard, all of which must be answered. Gives how many there were.
async fn read(shared: Arc<Shared>) -> usize {
    let mut clients = clients(&shared);
    let mut reads = 0;
    while !shared.done.load(Ordering::Relaxed) {
        tokio::time::sleep(READS_EVERY).await;
        let last = shared.settled.load(Ordering::Relaxed).saturating_sub(1);
        let client_id = numbered(rand::rng().random_range(0..=last / 2)).client_id;
        let client = &mut clients[reads % 2];
        let month = client.get_current_month_usage(GetCurrentMonthUsageRequest { client_id: client_id.clone() }).await;
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

/// Memory in MiB: what is resident of each replica, and PostgreSQL's proportional share of all of its processes.
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

fn memory(world: &World) -> Memory {
    let field = |file: String, name: &str| {
        let text = fs::read_to_string(file).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.split_whitespace().next().and_then(|kib| kib.parse::<f64>().ok()).unwrap_or_default() / 1_024.0
    };
    let replica = |at: usize| field(format!("/proc/{}/status", world.replicas[at].pid()), "VmRSS:");
    let postmaster = world.database.postmaster().unwrap_or_default();
    let children = fs::read_to_string(format!("/proc/{postmaster}/task/{postmaster}/children")).unwrap_or_default();
    let processes = children.split_whitespace().chain([postmaster.as_str()]);
    let postgres = processes.map(|pid| field(format!("/proc/{pid}/smaps_rollup"), "Pss:")).sum();
    Memory { replicas: [replica(0), replica(1)], postgres }
}
