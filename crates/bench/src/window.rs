//! One measurement: workers run, and calls that end inside the window count.

use super::cpu::{CpuTime, Watch};
use super::pace::Pace;
use anyhow::Context;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// Time before the window opens, to warm up connections, prepared statements and caches.
const WARM_UP: Duration = Duration::from_millis(500);
/// Longest time until the last calls have ended.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(60);

/// States of a window. 0 is warming up.
const OPEN: u8 = 1;
const OVER: u8 = 2;

/// The state of the measurement, shared with the workers.
#[derive(Debug, Default)]
pub struct Window {
    state: AtomicU8,
    pace: Option<Pace>,
}

impl Window {
    fn new(per_second: Option<u32>) -> Self {
        Self { state: AtomicU8::default(), pace: per_second.map(Pace::new) }
    }

    /// Whether workers must not start another call.
    pub fn is_over(&self) -> bool {
        self.state.load(Ordering::Relaxed) == OVER
    }

    /// Returns the time from which a call with this many events is measured: now in closed loop; in open loop the time when
    /// its events were due, after waiting for it. `None` once the window is over.
    pub async fn begin(&self, events: u32) -> Option<Instant> {
        let begin = match &self.pace {
            None => Some(Instant::now()),
            Some(pace) => pace.take(events).await,
        };
        begin.filter(|_| !self.is_over())
    }

    fn is_open(&self) -> bool {
        self.state.load(Ordering::Relaxed) == OPEN
    }

    fn set(&self, state: u8) {
        self.state.store(state, Ordering::Relaxed);
    }

    fn close(&self) {
        self.set(OVER);
        self.pace.iter().for_each(Pace::end);
    }
}

/// Closes the window when it is dropped, so that the thread of the pace always ends.
struct Closing(Arc<Window>);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// The sums of the workers.
#[derive(Debug, Default)]
pub struct Tally {
    /// Events acknowledged as new, inside and outside the window.
    pub acknowledged: u64,
    /// Events acknowledged as duplicates.
    pub duplicates: u64,
    /// Events, or calls without events, that ended inside the window.
    counted: u64,
    /// One sample per call inside the window, or per event of a stream. The length of the window bounds them.
    latencies_us: Vec<u32>,
}

impl Tally {
    /// Counts a call from `begin` until now, with its events and the duplicates among them.
    pub fn add(&mut self, window: &Window, begin: Instant, events: u64, duplicates: u64) {
        self.acknowledged += events - duplicates;
        self.duplicates += duplicates;
        self.count(window, begin, events);
    }

    /// Counts a call without events.
    pub fn add_empty_call(&mut self, window: &Window, begin: Instant) {
        self.count(window, begin, 1);
    }

    fn count(&mut self, window: &Window, begin: Instant, units: u64) {
        if window.is_open() {
            self.counted += units;
            self.latencies_us.push(u32::try_from(begin.elapsed().as_micros()).unwrap_or(u32::MAX));
        }
    }

    fn join(&mut self, other: Self) {
        self.acknowledged += other.acknowledged;
        self.duplicates += other.duplicates;
        self.counted += other.counted;
        self.latencies_us.extend(other.latencies_us);
    }
}

/// Figures of one measurement.
#[derive(Clone, Debug)]
pub struct Measurement {
    pub acknowledged: u64,
    pub duplicates: u64,
    pub per_second: f64,
    pub p50_us: u32,
    pub p99_us: u32,
    /// CPU time per event of server, database and load generator.
    pub cpu_us: Option<[Option<f64>; 3]>,
}

/// Runs workers until the window is over and their calls have ended. Fails if a worker fails or ends early.
pub async fn measure<W>(
    length: Duration,
    watch: &Watch,
    workers: impl IntoIterator<Item = impl FnOnce(Arc<Window>) -> W>,
) -> anyhow::Result<Measurement>
where
    W: Future<Output = anyhow::Result<Tally>> + Send + 'static,
{
    measure_paced(length, None, watch, workers).await
}

/// Like [`measure`], but in open loop if there is a rate of events per second.
pub async fn measure_paced<W>(
    length: Duration,
    per_second: Option<u32>,
    watch: &Watch,
    workers: impl IntoIterator<Item = impl FnOnce(Arc<Window>) -> W>,
) -> anyhow::Result<Measurement>
where
    W: Future<Output = anyhow::Result<Tally>> + Send + 'static,
{
    let window = Arc::new(Window::new(per_second));
    let closing = Closing(window.clone());
    if per_second.is_some() {
        let window = window.clone();
        std::thread::spawn(move || window.pace.iter().for_each(Pace::run));
    }
    let mut running: JoinSet<_> = workers.into_iter().map(|worker| worker(window.clone())).collect();
    wait(&mut running, WARM_UP).await?;
    let (opened, cpu_before) = (Instant::now(), watch.read());
    window.set(OPEN);
    wait(&mut running, length).await?;
    drop(closing);
    let (seconds, cpu_after) = (opened.elapsed().as_secs_f64(), watch.read());
    let mut tally = Tally::default();
    let drain = async {
        while let Some(ended) = running.join_next().await {
            tally.join(ended??);
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(DRAIN_TIMEOUT, drain).await.context("the calls did not end in time")??;
    let Tally { acknowledged, duplicates, counted, mut latencies_us } = tally;
    anyhow::ensure!(counted > 0, "nothing ended within {seconds:.1} s: measure longer, with --seconds");
    latencies_us.sort_unstable();
    let cpu = cpu_after.zip(cpu_before).map(|(after, before)| after.since(before));
    Ok(Measurement {
        acknowledged,
        duplicates,
        per_second: counted as f64 / seconds,
        p50_us: percentile(&latencies_us, 50),
        p99_us: percentile(&latencies_us, 99),
        cpu_us: cpu.map(|CpuTime { server, database, load }| {
            [Some(server), database, Some(load)].map(|used| Some(used? as f64 / counted as f64))
        }),
    })
}

/// Waits, and fails if a worker ends before.
async fn wait(running: &mut JoinSet<anyhow::Result<Tally>>, time: Duration) -> anyhow::Result<()> {
    tokio::select! {
        () = tokio::time::sleep(time) => Ok(()),
        Some(ended) = running.join_next() => {
            ended??;
            anyhow::bail!("a worker ended before its time")
        }
    }
}

/// The smallest sample that is at least as large as this percentage of the sorted samples.
pub fn percentile(sorted: &[u32], percent: usize) -> u32 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples() {
        let hundred: Vec<u32> = (1..=100).collect();
        assert_eq!((percentile(&hundred, 50), percentile(&hundred, 99)), (50, 99));
        assert_eq!((percentile(&[7], 50), percentile(&[7], 99)), (7, 7));
        assert_eq!(percentile(&[1, 2, 3], 99), 3);
        assert_eq!(percentile(&[], 50), 0);
    }
}
