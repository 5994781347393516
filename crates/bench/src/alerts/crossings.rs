//! Events that cross a line, among others that do not: the time until the answer, and until a subscriber has the alert.

use super::Bench;
use super::subscribers::Subscriber;
use crate::connection::Connection;
use crate::events::Events;
use crate::load;
use crate::product::proto::{AlertSeverity, AlertType, TrackUsageRequest, UsageEvent};
use crate::product::status_error;
use crate::window::percentile;
use anyhow::Context;
use meterd_store::alerts::feed::{self as alert_feed, FeedFilter};
use sqlx::PgPool;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// At 0.0000006 each, they cost 120, which is above the line at 100.
const CROSSING_TOKENS: i64 = 200_000_000;
/// Most concurrent calls: with more, the server does not keep up.
const CALLS_MAX: usize = 10_000;
/// Time before the first crossing.
const WARM_UP: Duration = Duration::from_secs(1);
/// Longest time until the last alert arrives.
const LAST_ALERT_TIMEOUT: Duration = Duration::from_secs(60);
/// Most entries of a page when the feed is counted at the end.
const PAGE_ENTRIES: i64 = 1_000;

/// Percentiles of one kind of latency.
#[derive(Clone, Copy, Debug)]
pub struct Latency {
    pub samples: usize,
    pub p50_us: u32,
    pub p90_us: u32,
    pub p99_us: u32,
    pub max_us: u32,
}

impl Latency {
    fn of(mut samples: Vec<u32>) -> Self {
        samples.sort_unstable();
        let [p50_us, p90_us, p99_us, max_us] = [50, 90, 99, 100].map(|percent| percentile(&samples, percent));
        Self { samples: samples.len(), p50_us, p90_us, p99_us, max_us }
    }
}

/// What was measured.
#[derive(Debug)]
pub struct Crossings {
    /// TrackUsage calls that cross no line.
    pub plain: Latency,
    /// Calls that cross a line, until their answer.
    pub crossing: Latency,
    /// Calls that cross a line, until a subscriber has the alert.
    pub alert: Latency,
    /// Other events per second, as measured.
    pub per_second: f64,
    /// Alerts that the subscriber received, once each and in order.
    pub received: u64,
}

/// An event that takes this client over its line.
pub fn crossing_event(client_id: String) -> UsageEvent {
    UsageEvent { output_tokens: CROSSING_TOKENS, ..Events::of(client_id) }
}

/// Records an event. Returns the start of the call and its duration.
pub async fn track(channel: Connection, event: UsageEvent) -> anyhow::Result<(Instant, Duration)> {
    let mut client = channel.usage();
    let begin = Instant::now();
    let response = client.track_usage(TrackUsageRequest { event: Some(event) }).await;
    let took = begin.elapsed();
    load::check(response.map_err(|status| status_error(&status))?.into_inner().result.as_ref())?;
    Ok((begin, took))
}

/// Starts calls at an even rate, without waiting for earlier ones. Returns the start and the duration of each.
async fn paced<E: Iterator<Item = UsageEvent>>(
    channels: Vec<Connection>,
    events: E,
    per_second: u32,
) -> anyhow::Result<Vec<(String, Instant, Duration)>> {
    let (begin, step) = (tokio::time::Instant::now(), Duration::from_secs(1) / per_second);
    let room = Arc::new(Semaphore::new(CALLS_MAX));
    let mut calls = JoinSet::new();
    for ((number, event), channel) in (0..).zip(events).zip(channels.into_iter().cycle()) {
        tokio::time::sleep_until(begin + step * number).await;
        let permit = room.clone().acquire_owned().await?;
        calls.spawn(async move {
            let client_id = event.client_id.clone();
            let (begin, took) = track(channel, event).await?;
            drop(permit);
            anyhow::Ok((client_id, begin, took))
        });
    }
    calls.join_all().await.into_iter().collect()
}

fn micros(time: Duration) -> u32 {
    u32::try_from(time.as_micros()).unwrap_or(u32::MAX)
}

/// Measures all three latencies in one run.
pub async fn measure(bench: &mut Bench<'_>) -> anyhow::Result<Crossings> {
    let args = bench.args;
    let clients = |number| format!("crossing-{number:06}");
    // All rows exist before, so that crossings differ from other calls only in the alert.
    bench.acknowledged += load::prepare_clients(&bench.channels[0], (0..args.crossings).map(clients).collect()).await?;
    let mut subscriber = Subscriber::begin(Connection::open(&bench.address).await?).await?;
    let expected = args.crossings;
    let following = tokio::spawn(async move {
        let (mut arrivals, mut last) = (HashMap::new(), 0);
        while arrivals.len() < expected as usize {
            let event = subscriber.alert().await?;
            let now = Instant::now();
            anyhow::ensure!(event.sequence > last, "alert {} came after {last}", event.sequence);
            last = event.sequence;
            let client_id = event.alert.context("a change has its alert")?.client_id;
            anyhow::ensure!(arrivals.insert(client_id, now).is_none(), "an alert came twice");
        }
        anyhow::Ok(arrivals)
    });

    let events = bench.events();
    let length = Duration::from_secs(1) * args.crossings / args.crossings_per_second + 2 * WARM_UP;
    let others = (length.as_secs_f64() * f64::from(args.load)) as usize;
    let other_events = std::iter::repeat_with(move || events.next()).take(others);
    let began = Instant::now();
    let others = tokio::spawn(paced(bench.channels.clone(), other_events, args.load));
    tokio::time::sleep(WARM_UP).await;
    let crossing_events = (0..args.crossings).map(clients).map(crossing_event).collect::<Vec<_>>();
    let crossed = paced(bench.channels.clone(), crossing_events.into_iter(), args.crossings_per_second).await?;
    bench.crossed += crossed.len() as u64;
    let others = others.await??;
    let seconds = began.elapsed().as_secs_f64();
    bench.acknowledged += (crossed.len() + others.len()) as u64;
    let arrivals = tokio::time::timeout(LAST_ALERT_TIMEOUT, following).await.context("alerts are missing")???;

    let (first, last) = (began + WARM_UP, began + length - WARM_UP);
    let plain = others.iter().filter(|(_, begin, _)| (first..last).contains(begin));
    let alerts = crossed.iter().map(|(client_id, begin, _)| {
        let arrival = arrivals.get(client_id).with_context(|| format!("the alert of {client_id} is missing"))?;
        Ok(micros(*arrival - *begin))
    });
    Ok(Crossings {
        plain: Latency::of(plain.map(|(.., took)| micros(*took)).collect()),
        crossing: Latency::of(crossed.iter().map(|(.., took)| micros(*took)).collect()),
        alert: Latency::of(alerts.collect::<anyhow::Result<_>>()?),
        per_second: others.len() as f64 / seconds,
        received: arrivals.len() as u64,
    })
}

/// Counts the critical threshold alerts in the feed.
pub async fn in_feed(pool: &PgPool) -> anyhow::Result<u64> {
    let filter = FeedFilter {
        kinds: vec![AlertType::Threshold as i16],
        min_severity: AlertSeverity::Critical as i16,
        ..Default::default()
    };
    let (mut after, mut count) = (0, 0);
    loop {
        let page = alert_feed::page(pool, &filter, after, i64::MAX, PAGE_ENTRIES).await?;
        let Some(last) = page.entries.last() else { return Ok(count) };
        after = last.sequence;
        count += page.entries.len() as u64;
    }
}
