//! The live feed: one reader a replica follows the table of changes, and any number of subscriptions follow the reader.
//!
//! The reader keeps the newest changes in memory, in a window that all subscriptions look into. A subscription is a cursor:
//! it has no queue and no task. What lies in the window it takes from there; behind it, it reads pages of the table until it
//! has caught up. So who reads slowly, or not at all for a day, costs no memory and misses nothing.

mod subscription;
mod window;

pub use subscription::Subscription;
pub use window::{Entry, WINDOW_ENTRIES};
use window::{Window, load};

use meterd_store::StoreError;
use meterd_store::alert_feed::{self, Bounds, CHANNEL, FeedFilter, Page};
use meterd_store::connect;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgListener, PgPoolOptions};
use sqlx::{Acquire, PgPool};
use std::convert::Infallible;
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

/// Changes that the reader reads at once.
const READ_ENTRIES: i64 = 1_000;
/// How often the reader looks without having been woken.
const POLL_EVERY: Duration = Duration::from_secs(1);
/// A database that does not answer for so long is away.
const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// Pauses of the reader while the database is away double from the first to the last.
const BACKOFF_FIRST: Duration = Duration::from_millis(50);
const BACKOFF_LAST: Duration = Duration::from_secs(2);
/// Changes of a page of the table: few, as a subscriber that stalls keeps the rest of its page.
pub(super) const PAGE_ENTRIES: i64 = 64;
/// Pages that are read at once. Who waits for a turn waits in line.
const PAGES_AT_ONCE: u32 = 4;

/// Where a subscription begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// After the newest change.
    Now,
    /// At the oldest change that is kept.
    Oldest,
    /// After this one.
    After(i64),
}

/// Why a subscription ended, or did not begin.
#[derive(Debug)]
pub enum Ended {
    /// The server stops.
    Stopping,
    /// There are as many as there may be.
    TooMany,
    /// Changes after its cursor are no longer kept; `oldest` is a cursor before the oldest one that is.
    Expired { oldest: i64 },
    /// Its cursor is ahead of the feed: the database is an older copy.
    Ahead { oldest: i64 },
    /// The database was away, or failed otherwise, for too long.
    Database(StoreError),
}

/// The feed of one replica.
pub struct Feed<S> {
    /// The window is what is watched: who sees it change finds the change in it.
    window: watch::Sender<Window<S>>,
    /// Beside the pool of the calls, which may be busy.
    pool: PgPool,
    turns: Arc<Semaphore>,
    places: Arc<Semaphore>,
    /// Woken by every change: a notification may have come with it.
    notifications_wanted: Arc<Notify>,
}

impl<S: Send + Sync + 'static> Feed<S> {
    /// Reads the newest changes and starts the reader, which ends when `stopping` turns true.
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
            pool: connect::pool(options.clone(), PAGES_AT_ONCE),
            turns: Arc::new(Semaphore::new(PAGES_AT_ONCE as usize)),
            places: Arc::new(Semaphore::new(subscriptions_max as usize)),
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

    /// Closes its connections.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// Follows the table for good, whatever becomes of the database.
    async fn read(&self, options: &PgConnectOptions, mut listener: PgListener) -> Infallible {
        let mut pause = BACKOFF_FIRST;
        loop {
            let begun = Instant::now();
            let Err(error) = self.follow(&mut listener).await;
            if begun.elapsed() > BACKOFF_LAST {
                pause = BACKOFF_FIRST;
            }
            tracing::warn!(%error, "the feed of alerts cannot be read and is tried again");
            listener = loop {
                sleep(pause).await;
                pause = (pause * 2).min(BACKOFF_LAST);
                if let Ok(Ok(listener)) = timeout(READ_TIMEOUT, listen(options)).await {
                    break listener;
                }
            };
        }
    }

    /// Reads what is new, and waits until there may be more. Ends with the connection.
    async fn follow(&self, listener: &mut PgListener) -> meterd_store::Result<Infallible> {
        loop {
            let caught_up = self.catch_up(listener.acquire().await?);
            timeout(READ_TIMEOUT, caught_up).await.map_err(|_| StoreError::Timeout)??;
            match timeout(POLL_EVERY, listener.try_recv()).await {
                Ok(Ok(Some(_))) | Err(_) => {}
                Ok(Ok(None)) => return Err(sqlx::Error::Io(ErrorKind::ConnectionAborted.into()).into()),
                Ok(Err(error)) => return Err(error.into()),
            }
            // Many wake it once.
            while listener.next_buffered().is_some() {}
        }
    }

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
                tracing::warn!(last, now = bounds.last, "the feed of alerts has gone backwards: subscriptions end");
                let window = load(&mut *conn, history + 1).await?;
                self.window.send_replace(window);
                return Ok(());
            }
            if bounds.last - last > WINDOW_ENTRIES as i64 {
                // It was away for long: subscriptions catch up from the table.
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
    pub async fn subscribe(self: &Arc<Self>, filter: FeedFilter, start: Start) -> Result<Subscription<S>, Ended> {
        let permit = self.places.clone().try_acquire_owned().map_err(|_| Ended::TooMany)?;
        let place = Place::new(permit);
        let window = self.window.subscribe();
        let (last, pruned, history) = {
            let window = window.borrow();
            (window.last, window.pruned, window.history)
        };
        let cursor = match start {
            Start::Now => last,
            Start::After(cursor) if (pruned..=last).contains(&cursor) => cursor,
            // Only the database knows what another replica's reader has seen already, and what has just been pruned.
            Start::Oldest | Start::After(_) => {
                let _turn = self.turn().await;
                let Bounds { last, pruned } = alert_feed::bounds(&self.pool).await.map_err(Ended::Database)?;
                match start {
                    Start::After(cursor) if cursor < pruned => return Err(Ended::Expired { oldest: pruned }),
                    Start::After(cursor) if cursor > last => return Err(Ended::Ahead { oldest: pruned }),
                    Start::After(cursor) => cursor,
                    _ => pruned,
                }
            }
        };
        Ok(Subscription::new(self.clone(), filter, cursor, window, history, place))
    }

    /// A page of the table. A connection that hangs is not used again.
    async fn page(&self, filter: &FeedFilter, after: i64, to: i64) -> meterd_store::Result<Page> {
        let mut conn = self.pool.acquire().await?;
        let page = timeout(READ_TIMEOUT, alert_feed::page(&mut *conn, filter, after, to, PAGE_ENTRIES)).await;
        page.unwrap_or_else(|_| {
            conn.close_on_drop();
            Err(StoreError::Timeout)
        })
    }

    async fn turn(&self) -> OwnedSemaphorePermit {
        self.turns.clone().acquire_owned().await.expect("the semaphore stays open")
    }
}

/// A connection that is told of new changes, and reads them. Its pool is its own: one that hangs is left behind with it.
async fn listen(options: &PgConnectOptions) -> meterd_store::Result<PgListener> {
    let pool = PgPoolOptions::new().max_connections(1).max_lifetime(None).idle_timeout(None);
    let mut listener = PgListener::connect_with(&pool.connect_lazy_with(options.clone())).await?;
    listener.eager_reconnect(false);
    listener.listen(CHANNEL).await?;
    Ok(listener)
}

/// One of the places for subscriptions.
struct Place(#[expect(dead_code, reason = "held")] OwnedSemaphorePermit);

impl Place {
    fn new(permit: OwnedSemaphorePermit) -> Self {
        metrics::gauge!("meterd_alert_subscriptions").increment(1);
        Self(permit)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        metrics::gauge!("meterd_alert_subscriptions").decrement(1);
    }
}
