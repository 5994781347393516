//! The live feed of changes of alerts. Each replica has one reader of the table of changes, and subscriptions follow the reader.
//!
//! The reader keeps the newest changes in memory, in a window that all subscriptions share. A subscription is only a cursor. It has
//! no queue and no task. If its cursor is within the window, it takes the next change from there. If the cursor is older, it reads
//! pages of the table until it has caught up. So a subscriber that reads slowly, or not at all for a day, needs no memory and misses
//! no change.

mod subscription;
mod window;

pub use subscription::Subscription;
pub use window::{Entry, WINDOW_ENTRIES};
use window::{Window, load};

use meterd_store::StoreError;
use meterd_store::alerts::feed::{self as alert_feed, Bounds, CHANNEL, FeedFilter, Page};
use meterd_store::database::connect;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgListener, PgPoolOptions};
use sqlx::{Acquire, PgPool};
use std::convert::Infallible;
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

/// Maximum number of changes that one statement of the reader returns.
const READ_ENTRIES: i64 = 1_000;
/// How often the reader reads the table without a notification.
const POLL_EVERY: Duration = Duration::from_secs(1);
/// Timeout of a statement.
const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// The pause of the reader between two attempts to connect doubles from the first to the last.
const BACKOFF_FIRST: Duration = Duration::from_millis(50);
const BACKOFF_LAST: Duration = Duration::from_secs(2);
/// Maximum number of changes of a page. It is small, because a subscriber that stops reading keeps the rest of its page in memory.
pub(super) const PAGE_ENTRIES: i64 = 64;
/// Maximum number of pages that are read at the same time. Other subscriptions wait in order of arrival.
const PAGE_READS_MAX: u32 = 4;

/// Where a subscription begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// After the newest change.
    Now,
    /// At the oldest change that is kept.
    Oldest,
    /// After the change with this sequence number.
    After(i64),
}

/// Why a subscription ended, or did not begin.
#[derive(Debug)]
pub enum Ended {
    /// The server is stopping.
    Stopping,
    /// The maximum number of subscriptions is reached.
    TooMany,
    /// Changes after its cursor were pruned. `oldest` is the cursor before the oldest change that is kept.
    Expired { oldest: i64 },
    /// Its cursor is after the newest change: the database is an older copy.
    Ahead { oldest: i64 },
    /// Reading from the database failed for too long.
    Database(StoreError),
}

/// The feed of one replica.
pub struct Feed<S> {
    /// The newest changes. Subscriptions are woken when it changes.
    window: watch::Sender<Window<S>>,
    /// A pool of its own, because the pool of the calls may be busy.
    pool: PgPool,
    /// A permit for each page that may be read at the same time.
    page_reads: Arc<Semaphore>,
    /// A permit for each subscription.
    subscriptions: Arc<Semaphore>,
    /// Wakes the notifier after each change, because the change may have queued a notification.
    notifications_wanted: Arc<Notify>,
}

impl<S: Send + Sync + 'static> Feed<S> {
    /// Reads the newest changes, and starts the task of the reader, which ends when `stopping` is true.
    pub async fn start(
        options: &PgConnectOptions,
        subscriptions_max: u32,
        notifications_wanted: Arc<Notify>,
        mut stopping: watch::Receiver<bool>,
    ) -> meterd_store::Result<(Arc<Self>, JoinHandle<()>)> {
        let mut listener = listen(options).await?;
        let window = load(listener.acquire().await?, 0).await?;
        let feed = Arc::new(Self {
            window: watch::Sender::new(window),
            pool: connect::pool(options.clone(), PAGE_READS_MAX),
            page_reads: Arc::new(Semaphore::new(PAGE_READS_MAX as usize)),
            subscriptions: Arc::new(Semaphore::new(subscriptions_max as usize)),
            notifications_wanted,
        });
        let (reader, options) = (feed.clone(), options.clone());
        let task = tokio::spawn(async move {
            tokio::select! {
                never = reader.read(&options, listener) => match never {},
                _ = stopping.wait_for(|stopping| *stopping) => {}
            }
            reader.window.send_modify(|window| window.stopped = true);
        });
        Ok((feed, task))
    }

    /// Closes the connections of the feed.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// Follows the table forever. Connects again after an error.
    async fn read(&self, options: &PgConnectOptions, mut listener: PgListener) -> Infallible {
        let mut pause = BACKOFF_FIRST;
        loop {
            let started = Instant::now();
            let Err(error) = self.follow(&mut listener).await;
            if started.elapsed() > BACKOFF_LAST {
                pause = BACKOFF_FIRST;
            }
            tracing::warn!(%error, "the feed of alerts could not be read; the reader connects again");
            listener = loop {
                sleep(pause).await;
                pause = (pause * 2).min(BACKOFF_LAST);
                if let Ok(Ok(listener)) = timeout(READ_TIMEOUT, listen(options)).await {
                    break listener;
                }
            };
        }
    }

    /// Reads new changes, and waits for a notification of more. Returns when the connection fails.
    async fn follow(&self, listener: &mut PgListener) -> meterd_store::Result<Infallible> {
        loop {
            let caught_up = self.catch_up(listener.acquire().await?);
            timeout(READ_TIMEOUT, caught_up).await.map_err(|_| StoreError::Timeout)??;
            match timeout(POLL_EVERY, listener.try_recv()).await {
                Ok(Ok(Some(_))) | Err(_) => {}
                Ok(Ok(None)) => return Err(sqlx::Error::Io(ErrorKind::ConnectionAborted.into()).into()),
                Ok(Err(error)) => return Err(error.into()),
            }
            // Many notifications wake the reader only once.
            while listener.next_buffered().is_some() {}
        }
    }

    /// Reads all new changes into the window.
    async fn catch_up(&self, conn: &mut PgConnection) -> meterd_store::Result<()> {
        loop {
            let (last, history) = {
                let window = self.window.borrow();
                (window.last, window.history)
            };
            let filter = FeedFilter::default();
            let page = alert_feed::page(&mut *conn, &filter, last, i64::MAX, READ_ENTRIES).await?;
            let bounds = page.bounds;
            if bounds.last < last {
                tracing::warn!(
                    last,
                    now = bounds.last,
                    "the feed of alerts has lost changes, because the database is an older copy; all subscriptions end"
                );
                let window = load(&mut *conn, history + 1).await?;
                self.window.send_replace(window);
                return Ok(());
            }
            if bounds.last - last > WINDOW_ENTRIES as i64 {
                // The reader has missed more changes than the window can contain. Subscriptions read them from the table.
                let window = load(&mut *conn, history).await?;
                self.window.send_replace(window);
                continue;
            }
            let more = page.entries.len() as i64 == READ_ENTRIES;
            if !page.entries.is_empty() {
                self.notifications_wanted.notify_one();
            }
            let read_to = page.entries.last().filter(|_| more).map_or(bounds.last, |last| last.sequence);
            self.window.send_if_modified(|window| {
                window.add(read_to, bounds.pruned, page.entries);
                window.last > last
            });
            metrics::gauge!("meterd_alert_feed_sequence").set(bounds.last as f64);
            if !more {
                return Ok(());
            }
        }
    }

    /// Begins a subscription.
    ///
    /// # Errors
    /// If there are too many subscriptions, if the cursor is too old or too new, or if the database fails.
    pub async fn subscribe(self: &Arc<Self>, filter: FeedFilter, start: Start) -> Result<Subscription<S>, Ended> {
        let permit = self.subscriptions.clone().try_acquire_owned().map_err(|_| Ended::TooMany)?;
        let permit = SubscriptionPermit::new(permit);
        let window = self.window.subscribe();
        let (last, pruned, history) = {
            let window = window.borrow();
            (window.last, window.pruned, window.history)
        };
        let cursor = match start {
            Start::Now => last,
            Start::After(cursor) if (pruned..=last).contains(&cursor) => cursor,
            // This window may be older than that of another replica, and changes may just have been pruned. So the database is asked.
            Start::Oldest | Start::After(_) => {
                let _permit = self.page_read_permit().await;
                let Bounds { last, pruned } = alert_feed::bounds(&self.pool).await.map_err(Ended::Database)?;
                match start {
                    Start::After(cursor) if cursor < pruned => return Err(Ended::Expired { oldest: pruned }),
                    Start::After(cursor) if cursor > last => return Err(Ended::Ahead { oldest: pruned }),
                    Start::After(cursor) => cursor,
                    _ => pruned,
                }
            }
        };
        Ok(Subscription::new(self.clone(), filter, cursor, window, history, permit))
    }

    /// Reads a page of the table: changes after `after`, up to `to`. Closes the connection if the statement times out.
    async fn page(&self, filter: &FeedFilter, after: i64, to: i64) -> meterd_store::Result<Page> {
        let mut conn = self.pool.acquire().await?;
        let page = timeout(READ_TIMEOUT, alert_feed::page(&mut *conn, filter, after, to, PAGE_ENTRIES)).await;
        page.unwrap_or_else(|_| {
            conn.close_on_drop();
            Err(StoreError::Timeout)
        })
    }

    async fn page_read_permit(&self) -> OwnedSemaphorePermit {
        self.page_reads.clone().acquire_owned().await.expect("the semaphore stays open")
    }
}

/// Opens a connection that listens for new changes. It has a pool of its own, so that a dead connection is dropped with its pool.
async fn listen(options: &PgConnectOptions) -> meterd_store::Result<PgListener> {
    let pool = PgPoolOptions::new().max_connections(1).max_lifetime(None).idle_timeout(None);
    let mut listener = PgListener::connect_with(&pool.connect_lazy_with(options.clone())).await?;
    listener.eager_reconnect(false);
    listener.listen(CHANNEL).await?;
    Ok(listener)
}

/// The permit of a subscription, counted in the metrics.
struct SubscriptionPermit(#[expect(dead_code, reason = "released on drop")] OwnedSemaphorePermit);

impl SubscriptionPermit {
    fn new(permit: OwnedSemaphorePermit) -> Self {
        metrics::gauge!("meterd_alert_subscriptions").increment(1);
        Self(permit)
    }
}

impl Drop for SubscriptionPermit {
    fn drop(&mut self) {
        metrics::gauge!("meterd_alert_subscriptions").decrement(1);
    }
}
