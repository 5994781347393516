//! A writer: takes events from the queue, records them, and answers each caller. It owns its connection, and retries a batch until
//! the time of its events is up.

mod attempt;

use super::batch::Recorder;
use super::queue::{Batch, Item, WriteQueue};
use super::split::{FAILED_ATTEMPTS_MAX, split};
use super::{IngestConfig, Outcome, SharedState, reply, unpriced};
use crate::refusal::Refusal;
use foldhash::fast::RandomState;
use meterd_domain::period::Month;
use meterd_store::StoreError;
use meterd_store::database::connect;
use sqlx::Connection;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The pause between two attempts doubles from the minimum to the maximum.
const RETRY_PAUSE_MIN: Duration = Duration::from_millis(5);
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(1);
/// Bounds of the timeout of one attempt. After the timeout, the connection is considered dead. The timeout is the time that is left
/// to the oldest event, but at least the time that a slow database needs, and at most the time of the longest statement. Because of
/// the minimum, callers get an answer at most five seconds after `retry_for` if the database does not respond.
const ATTEMPT_TIMEOUT_MIN: Duration = Duration::from_secs(4);
const ATTEMPT_TIMEOUT_MAX: Duration = Duration::from_secs(45);
/// How often queued events whose time is up are answered while the database is not available.
const GIVE_UP_EVERY: Duration = Duration::from_millis(200);
/// After this time, other writers no longer leave their few events to the first writer.
const SLOW_AFTER: Duration = Duration::from_millis(20);

struct Writer {
    settings: IngestConfig,
    database: PgConnectOptions,
    shared: SharedState,
    /// Dropped after an error, which rolls back its transaction.
    conn: Option<PgConnection>,
    /// Clients that exist.
    known_clients: HashSet<Arc<str>, RandomState>,
    recorder: Recorder,
    known_partitions: HashSet<Month, RandomState>,
    /// The error of the last attempt, if the database was the cause. While it is set, events whose time is up are answered without an
    /// attempt of their own. Otherwise the events of a full queue would wait for several attempts, one after another.
    database_fault: Option<Refusal>,
}

/// Groups events into one batch per client, each in order.
fn by_client(items: Vec<Item>) -> Vec<Vec<Item>> {
    let mut of_clients: BTreeMap<Arc<str>, Vec<Item>> = BTreeMap::new();
    for item in items {
        of_clients.entry(item.submission.event.client_id.clone()).or_default().push(item);
    }
    of_clients.into_values().collect()
}

/// Splits a batch that has waited too long for a locked month into one batch per client, and returns these.
///
/// If the batch has only one client, that client is blocked: gives its events back to the queue, and returns no batch.
fn split_after_lock_timeout(
    queue: &WriteQueue,
    own: usize,
    items: Vec<Item>,
    blocked: &mut HashSet<Arc<str>>,
) -> Vec<Vec<Item>> {
    let mut batches = by_client(items);
    if batches.len() == 1 {
        let items = batches.remove(0);
        let client_id = items[0].submission.event.client_id.clone();
        if queue.give_back(own, items) {
            blocked.insert(client_id);
        }
    }
    batches
}

/// Answers the queued events of this writer whose time is up. Their outcome is unknown.
fn give_up_queued(queue: &WriteQueue, own: usize, retry_for: Duration, unknown: &Refusal) {
    let expired = queue.take_expired(own, retry_for);
    reply(expired.into_iter().map(|item| (item.reply, Outcome::Unavailable(unknown.clone()))));
}

/// Answers the events of a part of a batch that cannot be written.
fn give_up_unwritable(items: Vec<Item>, error: StoreError) {
    let client_id = &items[0].submission.event.client_id;
    tracing::error!(%error, %client_id, events = items.len(), "events cannot be written");
    // An earlier attempt may have recorded them.
    let is_unknown = error.is_broken_database();
    let outcome = match items.len() {
        _ if is_unknown => Outcome::Unavailable(error.into()),
        1 => Outcome::Rejected(error.into()),
        // Some of the events may be valid.
        _ => Outcome::Unavailable(Refusal::database_unavailable(error)),
    };
    reply(items.into_iter().map(|item| (item.reply, outcome.clone())));
}

/// Runs the writer of this number until its queue is closed and empty.
pub(super) async fn run(
    queue: Arc<WriteQueue>,
    number: usize,
    settings: IngestConfig,
    database: PgConnectOptions,
    shared: SharedState,
) {
    let recorder = Recorder::new(connect::copies_at_once(&database));
    let mut writer = Writer {
        settings,
        database,
        shared,
        conn: None,
        known_clients: HashSet::default(),
        recorder,
        known_partitions: HashSet::default(),
        database_fault: None,
    };
    while let Some(Batch { items, blocked, work }) = queue.take(number, writer.settings.batch_events_max).await {
        let mut settled = pin!(writer.settle(&queue, number, items, blocked));
        if tokio::time::timeout(SLOW_AFTER, settled.as_mut()).await.is_err() {
            work.set_slow();
            settled.await;
        }
    }
    if let Some(conn) = writer.conn {
        drop(conn.close().await);
    }
}

impl Writer {
    /// Answers every item with its outcome. If the database is not available for too long, the outcome is unknown.
    ///
    /// If another transaction has locked the month of a client for a long time, the client is blocked: its events go back into the
    /// queue, and are tried separately after the events of the other clients.
    async fn settle(&mut self, queue: &WriteQueue, own: usize, items: Vec<Item>, mut blocked: HashSet<Arc<str>>) {
        let (of_blocked, others): (Vec<_>, Vec<_>) = match blocked.is_empty() {
            true => (vec![], items),
            false => items.into_iter().partition(|item| blocked.contains(&item.submission.event.client_id)),
        };
        // The last batch comes first.
        let mut batches: VecDeque<Vec<Item>> = by_client(of_blocked).into();
        batches.push_back(others);
        let (mut pause, mut failed_attempts) = (RETRY_PAUSE_MIN, 0);
        while let Some(mut items) = batches.pop_back() {
            // Events whose caller no longer waits need not be recorded: their caller does not know the outcome.
            items.retain(|item| !item.reply.is_closed());
            if let Some(fault) = self.database_fault.clone() {
                items = self.give_up(items, &fault);
            }
            if items.is_empty() {
                continue;
            }
            let started = Instant::now();
            match self.attempt_in_time(queue, own, &items).await {
                Ok(outcomes) => {
                    self.database_fault = None;
                    metrics::histogram!("meterd_commit_seconds").record(started.elapsed());
                    metrics::histogram!("meterd_batch_events").record(items.len() as u32);
                    unpriced::count(&items, &outcomes);
                    if !blocked.is_empty() {
                        queue.unblock(own, items.iter().map(|item| &item.submission.event.client_id));
                    }
                    reply(items.into_iter().map(|item| item.reply).zip(outcomes));
                    pause = RETRY_PAUSE_MIN;
                }
                Err(error) if error.is_transient() => {
                    self.forget();
                    metrics::counter!("meterd_batch_retries_total").increment(1);
                    tracing::warn!(%error, events = items.len(), "a batch failed and will be retried with the same keys");
                    let is_blocked = error.is_lock_timeout();
                    let unknown = Refusal::database_unavailable(error);
                    let kept = self.give_up(items, &unknown);
                    if is_blocked {
                        batches.extend(split_after_lock_timeout(queue, own, kept, &mut blocked));
                    } else {
                        give_up_queued(queue, own, self.settings.retry_for, &unknown);
                        self.database_fault = Some(unknown);
                        let left = self.time_left(&kept);
                        batches.push_back(kept);
                        tokio::time::sleep(pause.min(left)).await;
                        pause = (pause * 2).min(RETRY_PAUSE_MAX);
                    }
                }
                Err(error) => {
                    // An event of this batch cannot be written. The batch is split until that event is alone.
                    self.forget();
                    failed_attempts += 1;
                    if items.len() == 1 || failed_attempts >= FAILED_ATTEMPTS_MAX {
                        give_up_unwritable(items, error);
                    } else {
                        // Large parts are tried before small ones, so that few attempts are used for a part in which every event fails.
                        split(items).into_iter().for_each(|part| batches.push_front(part));
                    }
                }
            }
        }
    }

    /// Answers the events whose time is up, and returns the others.
    fn give_up(&self, items: Vec<Item>, unknown: &Refusal) -> Vec<Item> {
        let expired = |item: &Item| item.queued_at.elapsed() >= self.settings.retry_for;
        let (given_up, kept): (Vec<_>, Vec<_>) = items.into_iter().partition(expired);
        reply(given_up.into_iter().map(|item| (item.reply, Outcome::Unavailable(unknown.clone()))));
        kept
    }

    /// Returns the time that is left to the oldest of these events.
    fn time_left(&self, items: &[Item]) -> Duration {
        let waited = items.iter().map(|item| item.queued_at.elapsed()).max().unwrap_or_default();
        self.settings.retry_for.saturating_sub(waited)
    }

    /// Makes one attempt with a timeout. If the last attempt failed because of the database, answers queued events whose time is up
    /// meanwhile.
    async fn attempt_in_time(
        &mut self,
        queue: &WriteQueue,
        own: usize,
        items: &[Item],
    ) -> meterd_store::Result<Vec<Outcome>> {
        let (fault, retry_for) = (self.database_fault.clone(), self.settings.retry_for);
        let attempt_for = self.time_left(items).clamp(ATTEMPT_TIMEOUT_MIN, ATTEMPT_TIMEOUT_MAX);
        let mut attempt = pin!(tokio::time::timeout(attempt_for, self.attempt(items)));
        loop {
            let attempted = match &fault {
                None => attempt.as_mut().await,
                Some(unknown) => match tokio::time::timeout(GIVE_UP_EVERY, attempt.as_mut()).await {
                    Ok(attempted) => attempted,
                    Err(_) => {
                        give_up_queued(queue, own, retry_for, unknown);
                        continue;
                    }
                },
            };
            return attempted.unwrap_or(Err(StoreError::Timeout));
        }
    }
}
