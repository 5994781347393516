//! Reads while the server records events at half of the top rate.

use super::Bench;
use super::calls::{Clients, Read, Via};
use super::cases::{Latency, latency};
use crate::connection::Connection;
use crate::load;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Events of a call that records.
const BATCH_EVENTS: usize = 1_000;
/// Most concurrent calls: with more, the server does not keep up.
const CALLS_MAX: usize = 16;
/// Time before the first read.
const WARM_UP: Duration = Duration::from_millis(500);
/// The measured reads.
pub const READS: [Read; 3] = [Read::CurrentMonth, Read::SummaryOfMonth, Read::DaysOfYear];

/// The latency of each read alone and under load, and the load in events per second.
pub struct UnderLoad {
    pub reads: Vec<(Read, Latency, Latency)>,
    pub per_second: f64,
}

/// Measures the reads alone, then under load.
pub async fn measure(bench: &mut Bench<'_>, top_per_second: f64) -> anyhow::Result<UnderLoad> {
    let alone = round(bench).await?;
    let (stop, stopping) = watch::channel(false);
    let events = bench.events();
    let batch = move || (0..BATCH_EVENTS).map(|_| events.next()).collect();
    let begin = Instant::now();
    let writers = tokio::spawn(write(bench.channels.clone(), batch, top_per_second / 2.0, stopping));
    tokio::time::sleep(WARM_UP).await;
    let loaded = round(bench).await;
    stop.send_replace(true);
    let written = writers.await??;
    bench.acknowledged += written;
    let per_second = written as f64 / begin.elapsed().as_secs_f64();
    let reads = READS.into_iter().zip(alone).zip(loaded?).map(|((read, alone), loaded)| (read, alone, loaded));
    Ok(UnderLoad { reads: reads.collect(), per_second })
}

async fn round(bench: &mut Bench<'_>) -> anyhow::Result<Vec<Latency>> {
    let length = Duration::from_secs(bench.args.seconds);
    let mut latencies = vec![];
    for read in READS {
        latencies.push(latency(&mut bench.readers.large, read, Via::Grpc, Clients::WithYear, length).await?);
    }
    Ok(latencies)
}

/// Starts batches at an even rate until `stopping` is true. Returns the number of acknowledged events.
async fn write(
    channels: Vec<Connection>,
    batch: impl Fn() -> Vec<crate::product::proto::UsageEvent>,
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
