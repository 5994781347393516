//! A well-behaved caller beside the others, and what the server takes meanwhile.

use crate::process::{Process, track};
use meterd::proto::usage_service_client::UsageServiceClient;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Between two calls of the well-behaved caller.
const PAUSE: Duration = Duration::from_millis(5);
/// A scenario is done over and over for at least so long, so that there are calls enough for a percentile.
const DURATION_MIN: Duration = Duration::from_secs(3);
/// What the server may take in addition, whatever it is done to. Its settings here give requests 64 MiB; buffers of messages
/// double as they grow, and the allocator keeps some of what it had.
pub const GROWTH_MIB_MAX: f64 = 160.0;
/// Nearly all calls of the well-behaved caller take no longer, however busy the machine is with the abuse.
const P99_MS_MAX: f64 = 5_000.0;
/// All that a scenario opened is closed again within this: the longest is the keepalive of a peer that has gone.
const SETTLED_WITHIN: Duration = Duration::from_secs(60);

/// Calls of the well-behaved caller.
#[derive(Default)]
pub struct Calls {
    took: Vec<Duration>,
    failed: usize,
}

impl Calls {
    fn percentile(&self, percent: usize) -> f64 {
        let mut took = self.took.clone();
        took.sort_unstable();
        took.get((took.len() * percent / 100).min(took.len().saturating_sub(1)))
            .map_or(0.0, |took| took.as_secs_f64() * 1e3)
    }
}

async fn call(process: &Process, name: &str, done: &AtomicBool) -> Calls {
    let mut usage = UsageServiceClient::new(process.channel());
    let mut calls = Calls::default();
    while !done.load(Ordering::Relaxed) {
        let begun = Instant::now();
        let key = format!("{name}-{}-{}", calls.took.len(), calls.failed);
        match track(&mut usage, &key).await {
            Ok(()) => calls.took.push(begun.elapsed()),
            Err(status) => {
                println!("{name}: a well-behaved call failed: {status:?}");
                calls.failed += 1;
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
    calls
}

/// Does this to a server, and asserts that it takes no more than it may, goes on serving, and has nothing left of it.
pub async fn endures<F: Future<Output = String>>(process: &Arc<Process>, name: &str, abuse: impl Fn(String) -> F) {
    let (files_before, before) = (process.files(), process.resident_mib());
    let done = Arc::new(AtomicBool::new(false));
    let caller = tokio::spawn({
        let (process, name, done) = (process.clone(), name.to_string(), done.clone());
        async move { call(&process, &name, &done).await }
    });
    let watching = tokio::spawn({
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
    let begun = Instant::now();
    let (mut rounds, mut seen) = (0, String::new());
    while begun.elapsed() < DURATION_MIN {
        seen = abuse(process.address()).await;
        rounds += 1;
    }
    let took = begun.elapsed();
    done.store(true, Ordering::Relaxed);
    let (calls, peak) = (caller.await.unwrap(), watching.await.unwrap());
    let deadline = Instant::now() + SETTLED_WITHIN;
    while process.connections().await > 0 {
        assert!(Instant::now() < deadline, "{name}: connections are still open");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let (files, after) = (process.files(), process.resident_mib());
    println!(
        "{name} × {rounds} in {:.1} s: {seen}; beside it {} calls, {} failed, p50 {:.1} ms, p99 {:.1} ms; memory {before:.0} MiB, peak \
         {peak:.0}, after {after:.0}; files {files_before}, after {files}",
        took.as_secs_f64(),
        calls.took.len() + calls.failed,
        calls.failed,
        calls.percentile(50),
        calls.percentile(99),
    );
    assert_eq!(calls.failed, 0, "{name}: well-behaved calls failed");
    assert!(!calls.took.is_empty());
    assert!(calls.percentile(99) <= P99_MS_MAX, "{name}: well-behaved calls had to wait");
    assert!(peak - before <= GROWTH_MIB_MAX, "{name}: memory grew from {before:.0} to {peak:.0} MiB");
    assert!(files <= files_before + POOL_FILES_MAX, "{name}: {files} files are open, {files_before} were");
    process.track(&format!("after {name}")).await.unwrap();
}

/// Connections that the server's own pools may open and close as they like.
const POOL_FILES_MAX: usize = 16;
