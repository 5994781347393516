//! Reads while events come in at half of the top rate.

use super::Bench;
use super::calls::{Read, Way, Whose};
use super::turns::{Latency, latency};
use crate::cli::bench::load;
use crate::cli::connect::Connection;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Events of a call of the writers.
const BATCH_EVENTS: usize = 1_000;
/// Calls under way at once: more means that the server does not keep up.
const CALLS_MAX: usize = 16;
/// Before the first read.
const WARM_UP: Duration = Duration::from_millis(500);
/// What is read.
pub const READS: [Read; 3] = [Read::CurrentMonth, Read::SummaryOfMonth, Read::DaysOfYear];

/// The reads alone and beside the writers, and how many events a second these wrote.
pub struct Beside {
    pub reads: Vec<(Read, Latency, Latency)>,
    pub per_second: f64,
}

/// Measures both, one after the other.
pub async fn measure(bench: &mut Bench<'_>, top_per_second: f64) -> anyhow::Result<Beside> {
    let alone = round(bench).await?;
    let (stop, stopping) = watch::channel(false);
    let events = bench.events();
    let batch = move || (0..BATCH_EVENTS).map(|_| events.next()).collect();
    let begin = Instant::now();
    let writers = tokio::spawn(write(bench.channels.clone(), batch, top_per_second / 2.0, stopping));
    tokio::time::sleep(WARM_UP).await;
    let beside = round(bench).await;
    stop.send_replace(true);
    let written = writers.await??;
    bench.acknowledged += written;
    let per_second = written as f64 / begin.elapsed().as_secs_f64();
    let reads = READS.into_iter().zip(alone).zip(beside?).map(|((read, alone), beside)| (read, alone, beside));
    Ok(Beside { reads: reads.collect(), per_second })
}

async fn round(bench: &mut Bench<'_>) -> anyhow::Result<Vec<Latency>> {
    let length = Duration::from_secs(bench.args.seconds);
    let mut latencies = vec![];
    for read in READS {
        let reader = bench.readers.last_mut().expect("there is a reader");
        latencies.push(latency(reader, read, Way::Grpc, Whose::OfYear, length).await?);
    }
    Ok(latencies)
}

/// Begins a batch at each of its times, until it is told to stop. Gives how many events were acknowledged.
async fn write(
    channels: Vec<Connection>,
    batch: impl Fn() -> Vec<crate::proto::UsageEvent>,
    per_second: f64,
    stopping: watch::Receiver<bool>,
) -> anyhow::Result<u64> {
    let step = Duration::from_secs_f64(BATCH_EVENTS as f64 / per_second);
    let (mut next, mut written, mut calls) = (Instant::now(), 0, JoinSet::new());
    for channel in channels.iter().cycle() {
        if *stopping.borrow() {
            break;
        }
        tokio::time::sleep_until(next).await;
        next += step;
        if calls.len() >= CALLS_MAX
            && let Some(ended) = calls.join_next().await
        {
            written += ended??;
        }
        let (channel, events) = (channel.clone(), batch());
        calls.spawn(async move {
            load::batch(&channel, events).await?;
            anyhow::Ok(BATCH_EVENTS as u64)
        });
    }
    while let Some(ended) = calls.join_next().await {
        written += ended??;
    }
    Ok(written)
}
