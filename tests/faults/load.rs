//! Callers that use all three kinds of calls. They resend events with unknown outcome with the same keys.

use crate::calls::{Answer, Client, client};
use crate::journal::{Acknowledged, Journal};
use crate::run::Run;
use rand::RngExt;
use rand::rngs::StdRng;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

const CALLERS: usize = 16;
const BATCH_EVENTS_MAX: u64 = 40;
/// Pause before a call is repeated.
const PAUSE: Duration = Duration::from_millis(20);
/// Maximum time until all events that a caller has begun are settled after the faults have ended.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(90);
/// One in this many calls is followed by a different event with the same key.
const CONFLICTS_ONE_IN: u32 = 10;

/// The running callers.
pub struct Load {
    callers: JoinSet<Tally>,
    shared: Arc<Shared>,
}

struct Shared {
    addresses: Vec<String>,
    journal: Arc<Journal>,
    next: AtomicU64,
    settled: AtomicU64,
    rejected: AtomicUsize,
    done: AtomicBool,
}

/// The results that callers got.
#[derive(Debug, Default)]
pub struct Tally {
    pub repeats: usize,
    pub hung: usize,
    /// Results that are not allowed.
    pub wrong: Vec<String>,
    /// Why events had to be sent again.
    pub refusals: BTreeMap<String, usize>,
}

impl Tally {
    /// Adds an answer except for its acknowledgements.
    pub fn take(&mut self, answer: Answer) {
        self.hung += usize::from(answer.hung);
        self.wrong.extend(answer.wrong);
        for refusal in answer.refusals {
            *self.refusals.entry(refusal).or_default() += 1;
        }
    }

    /// Adds the results of another caller.
    pub fn add(&mut self, other: Self) {
        self.repeats += other.repeats;
        self.hung += other.hung;
        self.wrong.extend(other.wrong);
        for (refusal, count) in other.refusals {
            *self.refusals.entry(refusal).or_default() += count;
        }
    }
}

impl Load {
    pub fn start(run: &Run, addresses: Vec<String>, journal: &Arc<Journal>) -> Self {
        let shared = Arc::new(Shared {
            addresses,
            journal: journal.clone(),
            next: AtomicU64::new(0),
            settled: AtomicU64::new(0),
            rejected: AtomicUsize::new(0),
            done: AtomicBool::new(false),
        });
        let callers =
            (0..CALLERS).map(|number| Caller::new(shared.clone(), run.rng("caller", number)).work()).collect();
        Self { callers, shared }
    }

    /// Returns how many events are settled so far.
    pub fn settled(&self) -> u64 {
        self.shared.settled.load(Ordering::Relaxed)
    }

    /// Returns how many events or calls were rejected so far, for any reason.
    pub fn rejected(&self) -> usize {
        self.shared.rejected.load(Ordering::Relaxed)
    }

    /// Waits until `events` more events are settled, and returns how long it took.
    pub async fn wait_for_progress(&self, events: u64, within: Duration) -> Duration {
        let (goal, begin) = (self.settled() + events, Instant::now());
        while self.settled() < goal {
            assert!(begin.elapsed() < within, "the load made no progress within {within:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        begin.elapsed()
    }

    /// Starts no new events, waits until all events are settled, and closes all connections.
    pub async fn finish(self) -> Tally {
        self.shared.done.store(true, Ordering::Relaxed);
        let mut tally = Tally::default();
        self.callers.join_all().await.into_iter().for_each(|caller_tally| tally.add(caller_tally));
        tally
    }
}

struct Caller {
    shared: Arc<Shared>,
    clients: Vec<Client>,
    rng: StdRng,
    tally: Tally,
}

impl Caller {
    fn new(shared: Arc<Shared>, rng: StdRng) -> Self {
        let clients = shared.addresses.iter().map(|address| client(address)).collect();
        Self { shared, clients, rng, tally: Tally::default() }
    }

    async fn work(mut self) -> Tally {
        while !self.shared.done.load(Ordering::Relaxed) {
            let kind = self.rng.random_range(0..3);
            let count = if kind == 0 { 1 } else { self.rng.random_range(1..=BATCH_EVENTS_MAX) };
            let first = self.shared.next.fetch_add(count, Ordering::Relaxed);
            self.settle(kind, (first..first + count).collect()).await;
            if self.rng.random_ratio(1, CONFLICTS_ONE_IN) {
                let at = self.rng.random_range(0..self.clients.len());
                let mut answer = Answer::default();
                answer.send_conflicting(&mut self.clients[at], first).await;
                self.tally.take(answer);
            }
        }
        self.tally
    }

    /// Sends events until each is acknowledged, each time to any replica.
    async fn settle(&mut self, kind: u32, mut numbers: Vec<u64>) {
        let deadline = Instant::now() + SETTLE_TIMEOUT;
        while !numbers.is_empty() {
            let mut answer = Answer::default();
            let at = self.rng.random_range(0..self.clients.len());
            let client = &mut self.clients[at];
            match kind {
                0 => answer.send_unary(client, numbers[0]).await,
                1 => answer.send_batch(client, &numbers).await,
                _ => answer.send_stream(client, &numbers).await,
            }
            self.shared.journal.write(&answer.acknowledged);
            self.shared.settled.fetch_add(answer.acknowledged.len() as u64, Ordering::Relaxed);
            let settled: HashSet<u64> = answer.acknowledged.iter().map(|Acknowledged { number, .. }| *number).collect();
            numbers.retain(|number| !settled.contains(number));
            self.shared.rejected.fetch_add(answer.refusals.len() + answer.wrong.len(), Ordering::Relaxed);
            self.tally.take(answer);
            if !numbers.is_empty() {
                self.tally.repeats += 1;
                if Instant::now() > deadline || !self.tally.wrong.is_empty() {
                    return self.tally.hung += 1;
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}
