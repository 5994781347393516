//! Many events at once: ExportUsage compared with COPY, `meterd import` with BatchTrackUsage, and `meterd verify`.

use super::Bench;
use crate::cpu::Watch;
use crate::events::Events;
use crate::load;
use crate::meterd_binary::MeterdBinary;
use crate::plan::Mix;
use crate::product::proto::ExportUsageRequest;
use crate::product::status_error;
use crate::window::{Window, measure};
use anyhow::Context;
use chrono::{DateTime, TimeDelta, Utc};
use meterd_store::bench::floor_reads;
use prost_types::Timestamp;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;

/// Events of a call and concurrent calls, of both sides: the defaults of `meterd import`.
const BATCH_EVENTS: usize = 1_000;
const CALLS: usize = 4;
/// Interval between two reads of the memory of a command.
const MEMORY_EVERY: Duration = Duration::from_millis(20);

/// The result of an export and its floor.
pub struct Export {
    pub events: i64,
    pub grpc_seconds: f64,
    pub copy_seconds: f64,
}

/// The result of a verification.
pub struct Verification {
    pub events: u64,
    pub differences: u64,
    pub seconds: f64,
    pub peak_bytes: Option<u64>,
}

/// Exports the newest events and copies them out, in either order.
pub async fn export(bench: &mut Bench<'_>, grpc_first: bool) -> anyhow::Result<Export> {
    let (start, end) = bench.newest();
    let (mut events, mut grpc_seconds, mut copy_seconds) = (0, 0.0, 0.0);
    for grpc in [grpc_first, !grpc_first] {
        let begin = Instant::now();
        if grpc {
            events = export_once(bench, start, end).await?;
            grpc_seconds = begin.elapsed().as_secs_f64();
        } else {
            floor_reads::copy_out(&mut bench.conn, start, end).await?;
            copy_seconds = begin.elapsed().as_secs_f64();
        }
    }
    Ok(Export { events, grpc_seconds, copy_seconds })
}

async fn export_once(bench: &Bench<'_>, start: DateTime<Utc>, end: DateTime<Utc>) -> anyhow::Result<i64> {
    let timestamp = |time: DateTime<Utc>| Timestamp {
        seconds: time.timestamp(),
        nanos: i32::try_from(time.timestamp_subsec_nanos()).unwrap_or_default(),
    };
    let request =
        ExportUsageRequest { start_time: Some(timestamp(start)), end_time: Some(timestamp(end)), ..Default::default() };
    let call = bench.channels[0].usage().export_usage(request).await;
    let mut pieces = call.map_err(|status| status_error(&status))?.into_inner();
    let mut events = 0;
    while let Some(piece) = pieces.message().await.map_err(|status| status_error(&status))? {
        events = piece.event_count;
    }
    anyhow::ensure!(events > 0, "an export is empty");
    Ok(events)
}

/// Measures BatchTrackUsage in events per second.
pub async fn batches(bench: &mut Bench<'_>) -> anyhow::Result<f64> {
    let events = bench.events();
    let worker = |channel| {
        let events = events.clone();
        move |window: Arc<Window>| load::batches(channel, events, BATCH_EVENTS, window)
    };
    let channels = bench.channels.iter().cycle().take(CALLS).cloned();
    let measured = measure(Duration::from_secs(bench.args.seconds), &bench.watch, channels.map(worker)).await?;
    bench.acknowledged += measured.acknowledged;
    Ok(measured.per_second)
}

/// Measures `meterd import` of its standard input in events per second, from its start to its end.
pub async fn import(bench: &mut Bench<'_>) -> anyhow::Result<f64> {
    let file = file(&bench.events(), bench.args.bulk);
    let mut command = bench.meterd.command();
    command.args(["import", "-", "--format=csv", "--time=now", "--quiet", "--server", &bench.address]);
    command.arg(format!("--batch={BATCH_EVENTS}")).arg(format!("--concurrency={CALLS}"));
    command.stdin(Stdio::piped()).stdout(Stdio::null()).process_group(0).kill_on_drop(true);
    let begin = Instant::now();
    let mut child = command.spawn().context("the import cannot be started")?;
    let mut input = child.stdin.take().context("the import has no input")?;
    let writing = async move {
        input.write_all(file.as_bytes()).await?;
        input.shutdown().await
    };
    let (written, status) = tokio::join!(writing, child.wait());
    written.context("the import does not read")?;
    let status = status?;
    anyhow::ensure!(status.success(), "the import ended with {status}");
    bench.acknowledged += u64::from(bench.args.bulk);
    Ok(f64::from(bench.args.bulk) / begin.elapsed().as_secs_f64())
}

/// A CSV file with the same events as the batches.
fn file(events: &Events, count: u32) -> String {
    let mut file = String::from("client_id,service,operation,model,input_tokens,output_tokens,idempotency_key\n");
    for _ in 0..count {
        let event = events.next();
        let texts = [&event.client_id, &event.service, &event.operation, &event.model].map(String::as_str).join(",");
        let tokens = format!("{},{}", event.input_tokens, event.output_tokens);
        file.push_str(&format!("{texts},{tokens},{}\n", event.idempotency_key));
    }
    file
}

/// Runs `meterd verify` over the whole database.
pub async fn verify(meterd: &MeterdBinary, url: &str) -> anyhow::Result<Verification> {
    let mut command = meterd.command();
    command.arg("verify").env("DATABASE_URL", url).stdin(Stdio::null()).stdout(Stdio::piped());
    let begin = Instant::now();
    let child = command.process_group(0).kill_on_drop(true).spawn().context("the verification cannot be started")?;
    let watch = Watch::new(child.id().context("the verification has ended")?, 0, "");
    let ended = child.wait_with_output();
    tokio::pin!(ended);
    let mut peak_bytes = None;
    let output = loop {
        tokio::select! {
            output = &mut ended => break output?,
            () = tokio::time::sleep(MEMORY_EVERY) => peak_bytes = watch.server_peak_memory().max(peak_bytes),
        }
    };
    let seconds = begin.elapsed().as_secs_f64();
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().last().unwrap_or_default();
    let numbers: Vec<u64> = line.split(|of: char| !of.is_ascii_digit()).filter_map(|word| word.parse().ok()).collect();
    let [_, events, differences] = numbers[..] else { anyhow::bail!("the verification ended with {}", output.status) };
    Ok(Verification { events, differences, seconds, peak_bytes })
}

impl Bench<'_> {
    /// Start and end of the newest events, as many as one export has.
    fn newest(&self) -> (DateTime<Utc>, DateTime<Utc>) {
        let span_us = i64::from(self.args.days) * 86_400_000_000;
        let part = (u64::from(self.args.bulk) as f64 / self.args.preload as f64).min(1.0);
        (self.preloaded_by - TimeDelta::microseconds((span_us as f64 * part) as i64), self.preloaded_by)
    }

    pub(super) fn events(&self) -> Events {
        Events::new(self.prefix, Mix::Many, self.args.clients, 0)
    }
}
