//! A writer: takes what has gathered while the last commit ran, commits it, answers each caller. Its database work runs
//! here, in its own task and on its own connection, and never on a caller's future.

use super::queue::{Item, Queue};
use super::{IngestSettings, Outcome, batch};
use crate::catalog::CatalogCache;
use crate::domain::period::Month;
use crate::error::Error;
use crate::store::{self, clients, partitions};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Connection};
use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Between two tries of a batch, doubled each time up to the last.
const RETRY_PAUSE_MIN: Duration = Duration::from_millis(5);
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(1);
/// How long the database may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Clients that a writer remembers to exist; then it forgets all and asks again.
const KNOWN_CLIENTS_MAX: usize = 1_000_000;

struct Writer {
    settings: IngestSettings,
    database: PgConnectOptions,
    catalog: Arc<CatalogCache>,
    /// Dropped, and with it rolled back, after any error.
    conn: Option<PgConnection>,
    known_clients: HashSet<Arc<str>>,
    known_partitions: HashSet<Month>,
}

/// Runs until the queue is closed and empty.
pub(super) async fn run(
    queue: Arc<Queue>,
    settings: IngestSettings,
    database: PgConnectOptions,
    catalog: Arc<CatalogCache>,
) {
    let mut writer = Writer {
        settings,
        database,
        catalog,
        conn: None,
        known_clients: HashSet::new(),
        known_partitions: HashSet::new(),
    };
    while let Some(items) = queue.take(writer.settings.batch_events_max).await {
        writer.settle(items).await;
    }
    if let Some(conn) = writer.conn {
        drop(conn.close().await);
    }
}

impl Writer {
    /// Answers every item: with its outcome, or, when the database stays away too long, that it is not known.
    async fn settle(&mut self, items: Vec<Item>) {
        let mut batches = vec![items];
        let mut pause = RETRY_PAUSE_MIN;
        while let Some(mut items) = batches.pop() {
            // Nobody waits for these: not recording them is one of the two right answers.
            items.retain(|item| !item.reply.is_closed());
            if items.is_empty() {
                continue;
            }
            let started = Instant::now();
            match self.try_record(&items).await {
                Ok(outcomes) => {
                    metrics::histogram!("meterd_commit_seconds").record(started.elapsed());
                    metrics::histogram!("meterd_batch_events").record(items.len() as u32);
                    for (item, outcome) in items.into_iter().zip(outcomes) {
                        item.reply.send(outcome);
                    }
                    pause = RETRY_PAUSE_MIN;
                }
                Err(error) if store::is_transient(&error) => {
                    self.conn = None;
                    metrics::counter!("meterd_batch_retries_total").increment(1);
                    tracing::warn!(%error, events = items.len(), "batch failed and is tried again with the same keys");
                    let expired = |item: &Item| item.queued_at.elapsed() >= self.settings.retry_for;
                    let (given_up, kept): (Vec<_>, Vec<_>) = items.into_iter().partition(expired);
                    let unknown = Error::database_unavailable(error);
                    for item in given_up {
                        item.reply.send(Outcome::Unavailable(unknown.clone()));
                    }
                    batches.push(kept);
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(RETRY_PAUSE_MAX);
                }
                Err(error) => {
                    // Something in this batch cannot be written. Halve it until that stands alone.
                    self.conn = None;
                    self.known_partitions.clear();
                    self.known_clients.clear();
                    if items.len() > 1 {
                        let second_half = items.split_off(items.len() / 2);
                        batches.extend([second_half, items]);
                    } else if let Some(item) = items.pop() {
                        tracing::error!(%error, client_id = %item.submission.event.client_id, "event cannot be written");
                        item.reply.send(Outcome::Rejected(Error::internal(error)));
                    }
                }
            }
        }
    }

    async fn try_record(&mut self, items: &[Item]) -> sqlx::Result<Vec<Outcome>> {
        let mut conn = match self.conn.take() {
            Some(conn) => conn,
            None => {
                let connected = tokio::time::timeout(CONNECT_TIMEOUT, self.database.connect()).await;
                connected.unwrap_or(Err(sqlx::Error::PoolTimedOut))?
            }
        };
        let unknown_clients = self.prepare(&mut conn, items).await?;
        let known: Vec<_> = items
            .iter()
            .map(|item| &item.submission)
            .filter(|submission| !unknown_clients.contains(&submission.event.client_id))
            .collect();
        let mut recorded =
            if known.is_empty() { vec![] } else { batch::record(&mut conn, &self.catalog, &known).await? }.into_iter();
        self.conn = Some(conn);
        let outcome = |item: &Item| {
            let client_id = &item.submission.event.client_id;
            if unknown_clients.contains(client_id) {
                Outcome::Rejected(Error::client_not_found(client_id))
            } else {
                recorded.next().expect("an outcome for each event of a known client")
            }
        };
        Ok(items.iter().map(outcome).collect())
    }

    /// Makes the clients and partitions that a batch needs, each in a transaction of its own. Gives the clients that do
    /// not exist and may not be made.
    async fn prepare(&mut self, conn: &mut PgConnection, items: &[Item]) -> sqlx::Result<HashSet<Arc<str>>> {
        let mut missing = BTreeSet::new();
        for item in items {
            let event = &item.submission.event;
            if !self.known_clients.contains(&event.client_id) {
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
