//! A subscription: a cursor into the feed.

use super::window::{Entry, Window};
use super::{Ended, Feed, PAGE_ENTRIES, SubscriptionPermit};
use meterd_store::alerts::feed::{Bounds, FeedEntry, FeedFilter, Page};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;

/// Maximum number of sequence numbers that a page covers, so that a statement with a selective filter does not read the whole feed.
const PAGE_SPAN: i64 = 2_000;
/// How long a failed page is retried, and the pause between two attempts.
const PAGE_RETRY_FOR: Duration = Duration::from_secs(30);
const PAGE_RETRY_EVERY: Duration = Duration::from_millis(250);

/// A cursor into the feed.
pub struct Subscription<S> {
    feed: Arc<Feed<S>>,
    filter: Arc<FeedFilter>,
    /// All changes up to this one that pass the filter were returned.
    cursor: i64,
    window: watch::Receiver<Window<S>>,
    history: u32,
    /// The changes of the current page that were not returned yet, and the cursor after the page.
    page: std::vec::IntoIter<FeedEntry>,
    page_end: i64,
    /// The page that is being read: its last sequence number, and the task that reads it.
    reading: Option<(i64, JoinHandle<meterd_store::Result<Page>>)>,
    failing_since: Option<Instant>,
    _permit: SubscriptionPermit,
}

/// The next step of a subscription.
enum Step<S> {
    Return(Arc<Entry<S>>),
    /// Read a page up to this sequence number.
    Read {
        to: i64,
    },
    /// Wait until the window changes.
    Wait,
}

impl<S: Send + Sync + 'static> Subscription<S> {
    pub(super) fn new(
        feed: Arc<Feed<S>>,
        filter: FeedFilter,
        cursor: i64,
        window: watch::Receiver<Window<S>>,
        history: u32,
        permit: SubscriptionPermit,
    ) -> Self {
        let (page, page_end, filter) = (vec![].into_iter(), cursor, Arc::new(filter));
        let (reading, failing_since) = (None, None);
        Self { feed, filter, cursor, window, history, page, page_end, reading, failing_since, _permit: permit }
    }

    /// Returns the cursor: a new subscription that starts after it continues here.
    pub fn cursor(&self) -> i64 {
        self.cursor
    }

    /// Returns the next change that passes the filter. No change is lost if the future is dropped.
    pub async fn next(&mut self) -> Result<Arc<Entry<S>>, Ended> {
        loop {
            match self.step()? {
                Step::Return(entry) => return Ok(entry),
                Step::Wait => self.window.changed().await.map_err(|_| Ended::Stopping)?,
                // Boxed, so that subscriptions that wait, as most do, need less memory.
                Step::Read { to } => Box::pin(self.read(to)).await?,
            }
        }
    }

    fn step(&mut self) -> Result<Step<S>, Ended> {
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
            return Ok(Step::Return(Arc::new(entry.into())));
        }
        if self.cursor < window.after {
            return Ok(Step::Read { to: window.last.min(self.cursor + PAGE_SPAN) });
        }
        if let Some(entry) = window.next(self.cursor, &self.filter) {
            self.cursor = entry.change.sequence;
            metrics::counter!("meterd_alert_changes_sent_total", "from" => "memory").increment(1);
            return Ok(Step::Return(entry.clone()));
        }
        // The cursor may be after the window, because it may come from another replica.
        self.cursor = self.cursor.max(window.last);
        Ok(Step::Wait)
    }

    /// Reads a page of the table, in a task of its own. So a caller that hangs up does not cancel a statement. A heartbeat, which
    /// drops this future, does not lose the position among waiting subscriptions: the next call waits for the same task.
    async fn read(&mut self, to: i64) -> Result<(), Ended> {
        let after = self.cursor;
        let (to, read) = self.reading.get_or_insert_with(|| {
            let (feed, filter) = (self.feed.clone(), Arc::downgrade(&self.filter));
            let read = async move {
                let _permit = feed.page_read_permit().await;
                // The subscription may have ended meanwhile.
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
                if since.elapsed() > PAGE_RETRY_FOR {
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
        // A page that is not full contains all changes up to `to` that pass the filter.
        let is_full = page.entries.len() as i64 == PAGE_ENTRIES;
        self.page_end = page.entries.last().filter(|_| is_full).map_or(to, |last| last.sequence);
        if page.entries.is_empty() {
            self.cursor = self.page_end;
        }
        self.page = page.entries.into_iter();
        Ok(())
    }
}
