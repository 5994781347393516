//! A subscription: a cursor into the feed.

use super::window::{Entry, Window};
use super::{Ended, Feed, PAGE_ENTRIES, Place};
use meterd_store::alert_feed::{Bounds, FeedEntry, FeedFilter, Page};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;

/// Numbers that a page looks at: where a filter lets little through, one statement does not read the whole feed.
const PAGE_SPAN: i64 = 2_000;
/// How long a page is tried while the database is away or refuses it, and the pause between two tries.
const PAGE_PATIENCE: Duration = Duration::from_secs(30);
const PAGE_RETRY_EVERY: Duration = Duration::from_millis(250);

/// A cursor into the feed.
pub struct Subscription<S> {
    feed: Arc<Feed<S>>,
    filter: Arc<FeedFilter>,
    /// Every change up to it that passes the filter has been given.
    cursor: i64,
    window: watch::Receiver<Window<S>>,
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
enum Step<S> {
    Give(Arc<Entry<S>>),
    Read { to: i64 },
    Wait,
}

impl<S: Send + Sync + 'static> Subscription<S> {
    pub(super) fn new(
        feed: Arc<Feed<S>>,
        filter: FeedFilter,
        cursor: i64,
        window: watch::Receiver<Window<S>>,
        history: u32,
        place: Place,
    ) -> Self {
        let (page, page_end, filter) = (vec![].into_iter(), cursor, Arc::new(filter));
        let (reading, failing_since) = (None, None);
        Self { feed, filter, cursor, window, history, page, page_end, reading, failing_since, _place: place }
    }

    /// Where it continues.
    pub fn cursor(&self) -> i64 {
        self.cursor
    }

    /// The next change that passes the filter. Nothing is lost where the future is dropped.
    pub async fn next(&mut self) -> Result<Arc<Entry<S>>, Ended> {
        loop {
            match self.step()? {
                Step::Give(entry) => return Ok(entry),
                Step::Wait => self.window.changed().await.map_err(|_| Ended::Stopping)?,
                // On the heap while it lasts, as most subscriptions wait nearly always.
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
