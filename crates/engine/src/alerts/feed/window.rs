//! The newest changes in memory, which all subscriptions share.

use meterd_store::alerts::feed::{self as alert_feed, Bounds, FeedEntry, FeedFilter};
use sqlx::PgConnection;
use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};

/// Maximum number of changes in memory.
pub const WINDOW_ENTRIES: usize = 4_096;

/// A change that all subscriptions share. `S` is its encoded form for subscribers.
pub struct Entry<S> {
    pub change: FeedEntry,
    /// Encoded by the first subscription that sends it.
    pub shown: OnceLock<S>,
}

impl<S> From<FeedEntry> for Entry<S> {
    fn from(change: FeedEntry) -> Self {
        Self { change, shown: OnceLock::new() }
    }
}

/// All changes after the sequence number `after`, up to `last`.
pub(super) struct Window<S> {
    pub after: i64,
    pub last: i64,
    pub entries: VecDeque<Arc<Entry<S>>>,
    /// The sequence number of the last change that was pruned.
    pub pruned: i64,
    /// Increases when the feed has lost changes, because the database is an older copy. Then cursors from before are invalid.
    pub history: u32,
    /// Whether the server is stopping.
    pub stopped: bool,
}

impl<S> Window<S> {
    /// Adds the changes up to `last`.
    pub fn add(&mut self, last: i64, pruned: i64, entries: Vec<FeedEntry>) {
        self.entries.extend(entries.into_iter().map(Entry::from).map(Arc::new));
        self.last = last;
        self.pruned = pruned;
        while self.entries.len() > WINDOW_ENTRIES
            || self.entries.front().is_some_and(|entry| entry.change.sequence <= self.pruned)
        {
            self.after = self.entries.pop_front().map_or(self.after, |entry| entry.change.sequence);
        }
        // Changes that were pruned may never have been in memory.
        self.after = self.after.max(self.pruned);
    }

    /// Returns the first change after a cursor that passes the filter.
    pub fn next(&self, cursor: i64, filter: &FeedFilter) -> Option<&Arc<Entry<S>>> {
        let start = self.entries.partition_point(|entry| entry.change.sequence <= cursor);
        self.entries.range(start..).find(|entry| filter.passes(&entry.change))
    }
}

/// Reads the newest changes of the table into a new window.
pub(super) async fn load<S>(conn: &mut PgConnection, history: u32) -> meterd_store::Result<Window<S>> {
    let Bounds { last, pruned } = alert_feed::bounds(&mut *conn).await?;
    let after = (last - WINDOW_ENTRIES as i64).max(pruned);
    let page = alert_feed::page(conn, &FeedFilter::default(), after, last, WINDOW_ENTRIES as i64).await?;
    let mut window = Window { after, last, entries: VecDeque::new(), pruned, history, stopped: false };
    window.add(last, page.bounds.pruned, page.entries);
    metrics::gauge!("meterd_alert_feed_sequence").set(last as f64);
    Ok(window)
}
