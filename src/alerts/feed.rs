//! The live feed: one reader a replica follows the table of changes, and any number of subscriptions follow the reader.
//!
//! The reader keeps the newest changes in memory, in a window that all subscriptions look into. A subscription is a cursor:
//! it has no queue and no task. What lies in the window it takes from there; behind it, it reads pages of the table until it
//! has caught up. So who reads slowly, or not at all for a day, costs no memory and misses nothing.

use crate::proto::AlertEvent;
use meterd_store::StoreError;
use meterd_store::alert_feed::{self, Bounds, CHANNEL, FeedEntry, FeedFilter, Page};
use meterd_store::connect;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgListener, PgPoolOptions};
use sqlx::{Acquire, PgPool};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::io::ErrorKind;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

/// Changes in memory.
pub const WINDOW_ENTRIES: usize = 4_096;
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
const PAGE_ENTRIES: i64 = 64;
/// Numbers that a page looks at: where a filter lets little through, one statement does not read the whole feed.
const PAGE_SPAN: i64 = 2_000;
/// Pages that are read at once. Who waits for a turn waits in line.
const PAGES_AT_ONCE: u32 = 4;
/// How long a page is tried while the database is away or refuses it, and the pause between two tries.
const PAGE_PATIENCE: Duration = Duration::from_secs(30);
const PAGE_RETRY_EVERY: Duration = Duration::from_millis(250);

/// A change, as all subscriptions share it.
pub struct Entry {
    pub change: FeedEntry,
    /// As callers see it: made by the first who sends it.
    pub shown: OnceLock<AlertEvent>,
}

impl From<FeedEntry> for Entry {
    fn from(change: FeedEntry) -> Self {
        Self { change, shown: OnceLock::new() }
    }
}

/// What the reader knows: all changes after `after` up to `last`.
struct Window {
    after: i64,
    last: i64,
    entries: VecDeque<Arc<Entry>>,
    /// The last change that retention has removed.
    pruned: i64,
    /// Goes up when the feed has gone backwards: numbers from before then mean nothing any more.
    history: u32,
    stopped: bool,
}

impl Window {
    /// Adds the changes up to `last`.
    fn add(&mut self, last: i64, pruned: i64, entries: Vec<FeedEntry>) {
        self.entries.extend(entries.into_iter().map(Entry::from).map(Arc::new));
        self.last = last;
        self.pruned = pruned;
        while self.entries.len() > WINDOW_ENTRIES
            || self.entries.front().is_some_and(|entry| entry.change.sequence <= self.pruned)
        {
            self.after = self.entries.pop_front().map_or(self.after, |entry| entry.change.sequence);
        }
        // Also where what is pruned was never in memory.
        self.after = self.after.max(self.pruned);
    }

    /// The first change after a cursor that a filter lets through.
    fn next(&self, cursor: i64, filter: &FeedFilter) -> Option<&Arc<Entry>> {
        let begin = self.entries.partition_point(|entry| entry.change.sequence <= cursor);
        self.entries.range(begin..).find(|entry| filter.passes(&entry.change))
    }
}

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
pub struct Feed {
    /// The window is what is watched: who sees it change finds the change in it.
    window: watch::Sender<Window>,
    /// Beside the pool of the calls, which may be busy.
    pool: PgPool,
    turns: Arc<Semaphore>,
    places: Arc<Semaphore>,
    /// Woken by every change: a notification may have come with it.
    notifications_wanted: Arc<Notify>,
}

impl Feed {
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
    pub async fn subscribe(self: &Arc<Self>, filter: FeedFilter, start: Start) -> Result<Subscription, Ended> {
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
        Ok(Subscription {
            feed: self.clone(),
            filter: Arc::new(filter),
            cursor,
            window,
            history,
            page: vec![].into_iter(),
            page_end: cursor,
            reading: None,
            failing_since: None,
            _place: place,
        })
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

/// The window as the table has it now.
async fn load(conn: &mut PgConnection, history: u32) -> meterd_store::Result<Window> {
    let Bounds { last, pruned } = alert_feed::bounds(&mut *conn).await?;
    let after = (last - WINDOW_ENTRIES as i64).max(pruned);
    let page = alert_feed::page(conn, &FeedFilter::default(), after, last, WINDOW_ENTRIES as i64).await?;
    let mut window = Window { after, last, entries: VecDeque::new(), pruned, history, stopped: false };
    window.add(last, page.bounds.pruned, page.entries);
    metrics::gauge!("meterd_alert_feed_sequence").set(last as f64);
    Ok(window)
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

/// A cursor into the feed.
pub struct Subscription {
    feed: Arc<Feed>,
    filter: Arc<FeedFilter>,
    /// Every change up to it that passes the filter has been given.
    cursor: i64,
    window: watch::Receiver<Window>,
    history: u32,
    /// Rest of the page that is being given, and where the cursor is after it.
    page: std::vec::IntoIter<FeedEntry>,
    page_end: i64,
    /// The page that is being read, and where it ends.
    reading: Option<(i64, JoinHandle<meterd_store::Result<Page>>)>,
    failing_since: Option<Instant>,
    _place: Place,
}

/// What a subscription does next.
enum Step {
    Give(Arc<Entry>),
    Read { to: i64 },
    Wait,
}

impl Subscription {
    /// Where it continues.
    pub fn cursor(&self) -> i64 {
        self.cursor
    }

    /// The next change that passes the filter. Nothing is lost where the future is dropped.
    pub async fn next(&mut self) -> Result<Arc<Entry>, Ended> {
        loop {
            match self.step()? {
                Step::Give(entry) => return Ok(entry),
                Step::Wait => self.window.changed().await.map_err(|_| Ended::Stopping)?,
                // On the heap while it lasts, as most subscriptions wait nearly always.
                Step::Read { to } => Box::pin(self.read(to)).await?,
            }
        }
    }

    fn step(&mut self) -> Result<Step, Ended> {
        let window = self.window.borrow_and_update();
        if window.stopped {
            return Err(Ended::Stopping);
        }
        if window.history != self.history {
            return Err(Ended::Ahead { oldest: window.pruned });
        }
        if let Some(entry) = self.page.next() {
            self.cursor = if self.page.len() == 0 { self.page_end } else { entry.sequence };
            metrics::counter!("meterd_alert_changes_sent_total", "from" => "table").increment(1);
            return Ok(Step::Give(Arc::new(entry.into())));
        }
        if self.cursor < window.after {
            return Ok(Step::Read { to: window.last.min(self.cursor + PAGE_SPAN) });
        }
        if let Some(entry) = window.next(self.cursor, &self.filter) {
            self.cursor = entry.change.sequence;
            metrics::counter!("meterd_alert_changes_sent_total", "from" => "memory").increment(1);
            return Ok(Step::Give(entry.clone()));
        }
        // Another replica may be ahead of this one.
        self.cursor = self.cursor.max(window.last);
        Ok(Step::Wait)
    }

    /// Reads a page of the table, in a task of its own: a caller that hangs up cancels no statement half-way, and a heartbeat,
    /// which drops this future, costs no place in the line. The next call finds the task where it was.
    async fn read(&mut self, to: i64) -> Result<(), Ended> {
        let after = self.cursor;
        let (to, read) = self.reading.get_or_insert_with(|| {
            let (feed, filter) = (self.feed.clone(), Arc::downgrade(&self.filter));
            let read = async move {
                let _turn = feed.turn().await;
                // Who has gone meanwhile wants no page.
                let filter = filter.upgrade().ok_or(sqlx::Error::PoolClosed)?;
                feed.page(&filter, after, to).await
            };
            (to, tokio::spawn(read))
        });
        let (to, page) = (*to, read.await);
        self.reading = None;
        let page = match page.unwrap_or(Err(sqlx::Error::WorkerCrashed.into())) {
            Ok(page) => page,
            Err(error) => {
                let since = *self.failing_since.get_or_insert_with(Instant::now);
                if since.elapsed() > PAGE_PATIENCE {
                    return Err(Ended::Database(error));
                }
                sleep(PAGE_RETRY_EVERY).await;
                return Ok(());
            }
        };
        self.failing_since = None;
        let Bounds { last, pruned } = page.bounds;
        if after < pruned {
            return Err(Ended::Expired { oldest: pruned });
        }
        if last < to {
            return Err(Ended::Ahead { oldest: pruned });
        }
        // A page with fewer changes than it may have is all that passes, up to where it looked.
        let full = page.entries.len() as i64 == PAGE_ENTRIES;
        self.page_end = page.entries.last().filter(|_| full).map_or(to, |last| last.sequence);
        if page.entries.is_empty() {
            self.cursor = self.page_end;
        }
        self.page = page.entries.into_iter();
        Ok(())
    }
}
