//! A writer: takes what has gathered while the last commit ran, commits it, answers each caller. Its database work runs
//! here, in its own task and on its own connection, and never on a caller's future.

use super::queue::{Batch, Item, WriteQueue};
use super::split::{FAILED_TRIES_MAX, split};
use super::{IngestConfig, Outcome, batch, reply, unpriced};
use crate::alerts::raise::AlertSettings;
use crate::catalog::CatalogCache;
use crate::ledger::{ClientSettings, KNOWN_CLIENTS_MAX};
use crate::refusal::Refusal;
use foldhash::fast::RandomState;
use meterd_domain::period::Month;
use meterd_store::StoreError;
use meterd_store::{clients, partitions};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Connection};
use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Between two tries of a batch, doubled each time up to the last.
const RETRY_PAUSE_MIN: Duration = Duration::from_millis(5);
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(1);
/// How long the database may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long one try of a batch may take before its connection is taken for dead: what is left of the time of its oldest
/// event, but neither less than a slow database needs nor more than the longest statement. With the least, callers of a
/// database that hangs get their answer at most five seconds after `retry_for`.
const TRY_TIMEOUT_MIN: Duration = Duration::from_secs(4);
const TRY_TIMEOUT_MAX: Duration = Duration::from_secs(45);
/// How often the queue is looked through for events whose time is up, while the database is away.
const GIVE_UP_EVERY: Duration = Duration::from_millis(200);
/// So long others leave few events to the first writer.
const SLOW_AFTER: Duration = Duration::from_millis(20);
/// How long a batch waits for a row that somebody else holds. Short: all clients of the writer wait with it.
const LOCK_TIMEOUT_MS: &str = "1000";

struct Writer {
    settings: IngestConfig,
    database: PgConnectOptions,
    catalog: Arc<CatalogCache>,
    alert_settings: AlertSettings,
    /// Dropped, and with it rolled back, after any error.
    conn: Option<PgConnection>,
    /// That exist.
    known_clients: HashSet<Arc<str>, RandomState>,
    client_settings: ClientSettings,
    known_partitions: HashSet<Month, RandomState>,
    /// The error of the last try, if the database did not do its part. Then events that have waited for too long already are
    /// given up without a try of their own: one after another, those of a full queue would wait for many times as long.
    away: Option<Refusal>,
}

/// One batch a client, each in order.
fn by_client(items: Vec<Item>) -> Vec<Vec<Item>> {
    let mut of_clients: BTreeMap<Arc<str>, Vec<Item>> = BTreeMap::new();
    for item in items {
        of_clients.entry(item.submission.event.client_id.clone()).or_default().push(item);
    }
    of_clients.into_values().collect()
}

/// Answers the events of a writer's own queue whose time is up that their outcome is not known.
fn give_up_queued(queue: &WriteQueue, own: usize, retry_for: Duration, unknown: &Refusal) {
    let expired = queue.take_expired(own, retry_for);
    reply(expired.into_iter().map(|item| (item.reply, Outcome::Unavailable(unknown.clone()))));
}

/// Answers the events of a part that cannot be written.
fn give_up_unwritable(items: Vec<Item>, error: StoreError) {
    let client_id = &items[0].submission.event.client_id;
    tracing::error!(%error, %client_id, events = items.len(), "events cannot be written");
    // An earlier try may have recorded it.
    let is_unknown = error.is_broken_database();
    let outcome = match items.len() {
        _ if is_unknown => Outcome::Unavailable(error.into()),
        1 => Outcome::Rejected(error.into()),
        // Some of them may be fine, beside others.
        _ => Outcome::Unavailable(Refusal::database_unavailable(error)),
    };
    reply(items.into_iter().map(|item| (item.reply, outcome.clone())));
}

/// Runs until the queue of this number, which is the writer's own, is closed and empty.
pub(super) async fn run(
    queue: Arc<WriteQueue>,
    number: usize,
    settings: IngestConfig,
    database: PgConnectOptions,
    catalog: Arc<CatalogCache>,
    alert_settings: AlertSettings,
) {
    let mut writer = Writer {
        settings,
        // Its few statements are the same for every batch, and planning the large one takes longer than a small batch.
        database: database.options([("lock_timeout", LOCK_TIMEOUT_MS), ("plan_cache_mode", "force_generic_plan")]),
        catalog,
        alert_settings,
        conn: None,
        known_clients: HashSet::default(),
        client_settings: ClientSettings::default(),
        known_partitions: HashSet::default(),
        away: None,
    };
    while let Some(Batch { items, blocked, work }) = queue.take(number, writer.settings.batch_events_max).await {
        let mut settled = pin!(writer.settle(&queue, number, items, blocked));
        if tokio::time::timeout(SLOW_AFTER, settled.as_mut()).await.is_err() {
            work.is_slow();
            settled.await;
        }
    }
    if let Some(conn) = writer.conn {
        drop(conn.close().await);
    }
}

impl Writer {
    /// Answers every item: with its outcome, or, when the database stays away too long, that it is not known.
    ///
    /// If another transaction has locked the month of a client for long, the client is blocked: its events go back into the queue
    /// and are tried alone, after the events of the other clients.
    async fn settle(&mut self, queue: &WriteQueue, own: usize, items: Vec<Item>, mut blocked: HashSet<Arc<str>>) {
        let (held, others): (Vec<_>, Vec<_>) = match blocked.is_empty() {
            true => (vec![], items),
            false => items.into_iter().partition(|item| blocked.contains(&item.submission.event.client_id)),
        };
        // The last one is the next.
        let mut batches: VecDeque<Vec<Item>> = by_client(held).into();
        batches.push_back(others);
        let (mut pause, mut failed_tries) = (RETRY_PAUSE_MIN, 0);
        while let Some(mut items) = batches.pop_back() {
            // Nobody waits for these: not recording them is one of the two right answers.
            items.retain(|item| !item.reply.is_closed());
            if let Some(away) = self.away.clone() {
                items = self.give_up(items, &away);
            }
            if items.is_empty() {
                continue;
            }
            let started = Instant::now();
            match self.try_in_time(queue, own, &items).await {
                Ok(outcomes) => {
                    self.away = None;
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
                    tracing::warn!(%error, events = items.len(), "batch failed and is tried again with the same keys");
                    let held = error.is_lock_timeout();
                    let unknown = Refusal::database_unavailable(error);
                    let kept = self.give_up(items, &unknown);
                    if held {
                        let mut of_clients = by_client(kept);
                        if of_clients.len() == 1 {
                            let items = of_clients.remove(0);
                            let client_id = items[0].submission.event.client_id.clone();
                            if queue.give_back(own, items) {
                                blocked.insert(client_id);
                            }
                        }
                        batches.extend(of_clients);
                    } else {
                        give_up_queued(queue, own, self.settings.retry_for, &unknown);
                        self.away = Some(unknown);
                        let left = self.time_left(&kept);
                        batches.push_back(kept);
                        tokio::time::sleep(pause.min(left)).await;
                        pause = (pause * 2).min(RETRY_PAUSE_MAX);
                    }
                }
                Err(error) => {
                    // Something in this batch cannot be written. Divide it until that stands alone.
                    self.forget();
                    failed_tries += 1;
                    if items.len() == 1 || failed_tries >= FAILED_TRIES_MAX {
                        give_up_unwritable(items, error);
                    } else {
                        // Large parts before small ones, so that few tries are spent on what is damaged as a whole.
                        split(items).into_iter().for_each(|part| batches.push_front(part));
                    }
                }
            }
        }
    }

    /// Answers the events whose time is up that their outcome is not known, and returns the others.
    fn give_up(&self, items: Vec<Item>, unknown: &Refusal) -> Vec<Item> {
        let expired = |item: &Item| item.queued_at.elapsed() >= self.settings.retry_for;
        let (given_up, kept): (Vec<_>, Vec<_>) = items.into_iter().partition(expired);
        reply(given_up.into_iter().map(|item| (item.reply, Outcome::Unavailable(unknown.clone()))));
        kept
    }

    /// How long the oldest of these may still be tried.
    fn time_left(&self, items: &[Item]) -> Duration {
        let waited = items.iter().map(|item| item.queued_at.elapsed()).max().unwrap_or_default();
        self.settings.retry_for.saturating_sub(waited)
    }

    /// Records a batch, or gives up: see [`TRY_TIMEOUT_MIN`]. While the database is away, what waits in the queue is given up
    /// at its time, too.
    async fn try_in_time(
        &mut self,
        queue: &WriteQueue,
        own: usize,
        items: &[Item],
    ) -> meterd_store::Result<Vec<Outcome>> {
        let (away, retry_for) = (self.away.clone(), self.settings.retry_for);
        let try_for = self.time_left(items).clamp(TRY_TIMEOUT_MIN, TRY_TIMEOUT_MAX);
        let mut trying = pin!(tokio::time::timeout(try_for, self.try_record(items)));
        loop {
            let tried = match &away {
                None => trying.as_mut().await,
                Some(unknown) => match tokio::time::timeout(GIVE_UP_EVERY, trying.as_mut()).await {
                    Ok(tried) => tried,
                    Err(_) => {
                        give_up_queued(queue, own, retry_for, unknown);
                        continue;
                    }
                },
            };
            return tried.unwrap_or(Err(StoreError::Timeout));
        }
    }

    /// What it remembers of the database may be what went wrong.
    fn forget(&mut self) {
        self.conn = None;
        self.known_partitions.clear();
        self.known_clients.clear();
        self.client_settings = ClientSettings::default();
    }

    async fn try_record(&mut self, items: &[Item]) -> meterd_store::Result<Vec<Outcome>> {
        let mut conn = match self.conn.take() {
            Some(conn) => conn,
            None => {
                let connected = tokio::time::timeout(CONNECT_TIMEOUT, self.database.connect()).await;
                // Whatever stands in the way of a connection (a changed password, a restore) says nothing of the events.
                let refused = |error| sqlx::Error::Io(std::io::Error::other(error));
                connected.map_err(|_| StoreError::Timeout)?.map_err(refused)?
            }
        };
        let unknown_clients = self.prepare(&mut conn, items).await?;
        let known: Vec<_> = items
            .iter()
            .map(|item| &*item.submission)
            .filter(|submission| !unknown_clients.contains(&submission.event.client_id))
            .collect();
        let mut recorded = match known.is_empty() {
            true => vec![],
            false => {
                let Self { catalog, client_settings, alert_settings, .. } = self;
                batch::record(&mut conn, catalog, client_settings, alert_settings, &known).await?
            }
        }
        .into_iter();
        self.conn = Some(conn);
        let outcome = |item: &Item| {
            let client_id = &item.submission.event.client_id;
            if unknown_clients.contains(client_id) {
                Outcome::Rejected(Refusal::client_not_found(client_id))
            } else {
                recorded.next().expect("an outcome for each event of a known client")
            }
        };
        Ok(items.iter().map(outcome).collect())
    }

    /// Makes the clients and partitions that a batch needs, each in a transaction of its own. Gives the clients that do
    /// not exist and may not be made.
    async fn prepare(&mut self, conn: &mut PgConnection, items: &[Item]) -> meterd_store::Result<HashSet<Arc<str>>> {
        let mut missing = BTreeSet::new();
        for item in items {
            let event = &item.submission.event;
            // What is refused unless its key is known does not bring a client into being.
            let may_create = !self.settings.create_clients || item.submission.refuse_if_new.is_none();
            if may_create && !self.known_clients.contains(&event.client_id) {
                missing.insert(event.client_id.clone());
            }
            let month = Month::of(event.event_time.date_naive());
            if item.submission.refuse_if_new.is_none() && !self.known_partitions.contains(&month) {
                partitions::ensure(conn, month).await?;
                self.known_partitions.insert(month);
            }
        }
        if missing.is_empty() {
            return Ok(HashSet::new());
        }
        if self.known_clients.len() > KNOWN_CLIENTS_MAX {
            self.known_clients.clear();
        }
        let ids: Vec<String> = missing.iter().map(|id| id.to_string()).collect();
        if self.settings.create_clients {
            clients::insert_missing(conn, &ids, self.settings.default_zone).await?;
            self.known_clients.extend(missing);
            return Ok(HashSet::new());
        }
        let existing: HashSet<String> = clients::existing(conn, &ids).await?.into_iter().collect();
        let (known, unknown): (Vec<_>, Vec<_>) = missing.into_iter().partition(|id| existing.contains(&**id));
        self.known_clients.extend(known);
        Ok(unknown.into_iter().collect())
    }
}
