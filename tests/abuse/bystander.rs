//! A well-behaved caller during an abuse, and measurements of the server.

use crate::process::{Process, track};
use std::fmt::{self, Display};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tonic::Status;

/// Pause between two calls of the well-behaved caller.
const PAUSE: Duration = Duration::from_millis(5);
/// A scenario is repeated for at least this time, so that there are enough calls for a percentile.
const DURATION_MIN: Duration = Duration::from_secs(3);
/// Maximum growth of the server's memory. The settings of these tests allow 64 MiB for requests. Message buffers double
/// when they grow, and the allocator keeps some freed memory.
pub const GROWTH_MIB_MAX: f64 = 160.0;
/// Maximum 99th percentile of the well-behaved caller's latency, however busy the abuse makes the machine.
const P99_MS_MAX: f64 = 5_000.0;
/// All connections of a scenario are closed within this time. The longest part is the keepalive of a peer that is gone.
const SETTLED_WITHIN: Duration = Duration::from_secs(60);

/// Calls of the well-behaved caller.
#[derive(Default)]
pub struct Calls {
    duration: Vec<Duration>,
    failed: usize,
}

impl Calls {
    fn percentile(&self, percent: usize) -> f64 {
        let mut duration = self.duration.clone();
        duration.sort_unstable();
        duration
            .get((duration.len() * percent / 100).min(duration.len().saturating_sub(1)))
            .map_or(0.0, |duration| duration.as_secs_f64() * 1e3)
    }
}

impl Display for Calls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.duration.len() + self.failed;
        let (p50, p99) = (self.percentile(50), self.percentile(99));
        write!(f, "{count} calls, {} failed, p50 {p50:.1} ms, p99 {p99:.1} ms", self.failed)
    }
}

/// Repeats a call until `done` is set.
async fn call<F>(name: String, done: Arc<AtomicBool>, call: impl Fn(usize) -> F) -> Calls
where
    F: Future<Output = Result<(), Status>>,
{
    let mut calls = Calls::default();
    while !done.load(Ordering::Relaxed) {
        let started = Instant::now();
        match call(calls.duration.len() + calls.failed).await {
            Ok(()) => calls.duration.push(started.elapsed()),
            Err(status) => {
                if calls.failed < 3 {
                    println!("{name}: a well-behaved call failed: {status:?}");
                }
                calls.failed += 1;
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
    calls
}

/// Runs a scenario against a server. Checks that its memory stays within the limit, that it serves other callers, and
/// that no connection or file is left.
pub async fn assert_survives<F: Future<Output = String>>(
    process: &Arc<Process>,
    name: &str,
    abuse: impl Fn(String) -> F,
) {
    let (files_before, before) = (process.files(), process.resident_mib());
    let done = Arc::new(AtomicBool::new(false));
    let usage = process.usage();
    let event_with_key = name.to_string();
    let caller = tokio::spawn(call(name.to_string(), done.clone(), move |number| {
        let (mut usage, key) = (usage.clone(), format!("{event_with_key}-{number}"));
        async move { track(&mut usage, &key).await }
    }));
    let probed = process.clone();
    let probe = tokio::spawn(call(format!("{name}, health"), done.clone(), move |_| {
        let probed = probed.clone();
        async move { probed.check_health().await }
    }));
    let memory_watch = tokio::spawn({
        let (process, done) = (process.clone(), done.clone());
        async move {
            let mut peak = 0.0_f64;
            while !done.load(Ordering::Relaxed) {
                peak = peak.max(process.resident_mib());
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            peak
        }
    });
    let started = Instant::now();
    let (mut rounds, mut seen) = (0, String::new());
    while started.elapsed() < DURATION_MIN {
        seen = abuse(process.address()).await;
        rounds += 1;
    }
    let duration = started.elapsed();
    done.store(true, Ordering::Relaxed);
    let (calls, health, peak) = (caller.await.unwrap(), probe.await.unwrap(), memory_watch.await.unwrap());
    let deadline = Instant::now() + SETTLED_WITHIN;
    while process.connections().await > 0 {
        assert!(Instant::now() < deadline, "{name}: connections are still open");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let (files, after) = (process.files(), process.resident_mib());
    println!(
        "{name} × {rounds} in {:.1} s: {seen}; well-behaved caller: {calls}; health over new connections {health}; memory {before:.0} MiB, \
         peak {peak:.0}, after {after:.0}; files {files_before}, after {files}",
        duration.as_secs_f64(),
    );
    for (calls, whose) in [(&calls, "well-behaved calls"), (&health, "health probes")] {
        // A health probe over a new connection competes with other callers without a key. A caller with a key does not.
        let failed_max = if whose == "health probes" { calls.duration.len() / 50 } else { 0 };
        assert!(
            calls.failed <= failed_max,
            "{name}: {} {whose} failed, {} did not",
            calls.failed,
            calls.duration.len()
        );
        assert!(!calls.duration.is_empty());
        assert!(calls.percentile(99) <= P99_MS_MAX, "{name}: {whose} were too slow");
    }
    assert!(peak - before <= GROWTH_MIB_MAX, "{name}: memory grew from {before:.0} to {peak:.0} MiB");
    assert!(files <= files_before + POOL_FILES_MAX, "{name}: {files} files are open instead of {files_before}");
    process.track(&format!("after {name}")).await.unwrap();
}

/// Number of connections that the server's own pools may open and close at any time.
const POOL_FILES_MAX: usize = 16;
