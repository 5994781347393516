//! Idle subscribers: their memory in the server, their effect on throughput, and the time until all of them have an alert.

use super::Bench;
use super::crossings::{crossing_event, track};
use super::subscribers::Subscriber;
use crate::connection::Connection;
use crate::load;
use crate::spread::Spread;
use crate::window::{Window, measure as measure_window};
use anyhow::Context;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// Connections that open their streams at the same time.
const OPENING_AT_ONCE: usize = 8;
/// Pause before memory is read.
const SETTLE: Duration = Duration::from_secs(2);

/// What was measured.
pub struct Idle {
    /// Events per second, without and with idle subscribers.
    pub without: Spread,
    pub with: Spread,
    /// `with` divided by `without`, within each round.
    pub ratio: Spread,
    /// Time from the call that crosses a line until the last subscriber has the alert, in milliseconds.
    pub last_alert_ms: Spread,
    /// Rounds in which every subscriber received the alert.
    pub rounds: u64,
    /// Alerts received: one per subscriber and round.
    pub received: u64,
}

/// Opens the streams of all idle subscribers.
async fn open_all(bench: &Bench<'_>) -> anyhow::Result<Vec<Subscriber>> {
    let mut sizes = vec![];
    let mut left = bench.args.subscribers;
    while left > 0 {
        let size = left.min(bench.args.streams_per_connection);
        sizes.push(size);
        left -= size;
    }
    let mut opening = JoinSet::new();
    let mut subscribers = Vec::with_capacity(bench.args.subscribers as usize);
    for size in sizes {
        if opening.len() >= OPENING_AT_ONCE {
            let opened: anyhow::Result<Vec<Subscriber>> = opening.join_next().await.context("one is opening")??;
            subscribers.extend(opened?);
        }
        let address = bench.address.clone();
        opening.spawn(async move {
            let channel = Connection::open(&address).await?;
            let mut opened = Vec::with_capacity(size as usize);
            for _ in 0..size {
                opened.push(Subscriber::begin(channel.clone()).await?);
            }
            Ok(opened)
        });
    }
    while let Some(opened) = opening.join_next().await {
        subscribers.extend(opened??);
    }
    Ok(subscribers)
}

/// Measures events per second.
async fn throughput(bench: &mut Bench<'_>) -> anyhow::Result<f64> {
    let events = bench.events();
    let channels = bench.channels.iter().cycle().take(bench.args.concurrency as usize).cloned();
    let worker = |channel| {
        let events = events.clone();
        move |window: Arc<Window>| load::lone_events(channel, events, window)
    };
    let length = Duration::from_secs(bench.args.seconds);
    let measured = measure_window(length, &bench.watch, channels.map(worker)).await?;
    bench.acknowledged += measured.acknowledged;
    Ok(measured.per_second)
}

/// Raises an alert and returns the time until every subscriber has it, in milliseconds.
async fn alert_all(bench: &mut Bench<'_>, subscribers: Vec<Subscriber>, client_id: String) -> anyhow::Result<f64> {
    let mut waiting: JoinSet<anyhow::Result<Instant>> = subscribers
        .into_iter()
        .map(|mut subscriber| {
            let client_id = client_id.clone();
            async move {
                let alert = subscriber.alert().await?.alert.context("a change has its alert")?;
                anyhow::ensure!(alert.client_id == client_id, "another alert than the one that was raised");
                Ok(Instant::now())
            }
        })
        .collect();
    let (begin, _) = track(bench.channels[0].clone(), crossing_event(client_id)).await?;
    bench.acknowledged += 1;
    bench.crossed += 1;
    let mut last = begin;
    while let Some(arrival) = waiting.join_next().await {
        last = last.max(arrival??);
    }
    Ok((last - begin).as_secs_f64() * 1e3)
}

/// Resident memory that each idle subscriber adds to a fresh server. Later, they would use memory that other calls freed.
pub async fn memory(bench: &Bench<'_>) -> anyhow::Result<Option<f64>> {
    tokio::time::sleep(SETTLE).await;
    let before = bench.watch.server_memory();
    let subscribers = open_all(bench).await?;
    tokio::time::sleep(SETTLE).await;
    let added = bench.watch.server_memory().zip(before).map(|(after, before)| after as f64 - before as f64);
    Ok(added.map(|added| added / subscribers.len() as f64))
}

/// Measures throughput with and without idle subscribers, alternately.
pub async fn measure(bench: &mut Bench<'_>) -> anyhow::Result<Idle> {
    let (mut without, mut with, mut last_alert_ms) = (vec![], vec![], vec![]);
    let mut received: u64 = 0;
    for round in 0..bench.args.rounds {
        // Every other round runs backwards, so that a drift over time favours neither.
        let without_first = round % 2 == 0;
        if without_first {
            without.push(throughput(bench).await?);
            tokio::time::sleep(SETTLE).await;
        }
        let subscribers = open_all(bench).await?;
        let count = subscribers.len();
        tokio::time::sleep(SETTLE).await;
        with.push(throughput(bench).await?);
        last_alert_ms.push(alert_all(bench, subscribers, format!("crowd-{round:03}")).await?);
        received += count as u64;
        if !without_first {
            tokio::time::sleep(SETTLE).await;
            without.push(throughput(bench).await?);
        }
    }
    let ratios: Vec<f64> = with.iter().zip(&without).map(|(with, without)| with / without).collect();
    let spread = |values: Vec<f64>| Spread::of(values).context("there is at least one round");
    Ok(Idle {
        without: spread(without)?,
        with: spread(with)?,
        ratio: spread(ratios)?,
        last_alert_ms: spread(last_alert_ms)?,
        rounds: bench.args.rounds.into(),
        received,
    })
}
