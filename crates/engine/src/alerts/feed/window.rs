//! The newest changes in memory, which all subscriptions look into.

use meterd_store::alert_feed::{self, Bounds, FeedEntry, FeedFilter};
use sqlx::PgConnection;
use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};

/// Changes in memory.
pub const WINDOW_ENTRIES: usize = 4_096;

/// A change, as all subscriptions share it. `S` is the form in which subscribers see it.
pub struct Entry<S> {
    pub change: FeedEntry,
    /// Made by the first subscription that sends it.
    pub shown: OnceLock<S>,
}

impl<S> From<FeedEntry> for Entry<S> {
    fn from(change: FeedEntry) -> Self {
        Self { change, shown: OnceLock::new() }
    }
}

/// What the reader knows: all changes after `after` up to `last`.
pub(super) struct Window<S> {
    pub after: i64,
    pub last: i64,
    pub entries: VecDeque<Arc<Entry<S>>>,
    /// The last change that retention has removed.
    pub pruned: i64,
    /// Goes up when the feed has gone backwards: numbers from before then mean nothing any more.
    pub history: u32,
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
        // Also where what is pruned was never in memory.
        self.after = self.after.max(self.pruned);
    }

    /// The first change after a cursor that a filter lets through.
    pub fn next(&self, cursor: i64, filter: &FeedFilter) -> Option<&Arc<Entry<S>>> {
        let begin = self.entries.partition_point(|entry| entry.change.sequence <= cursor);
        self.entries.range(begin..).find(|entry| filter.passes(&entry.change))
    }
}

/// The window as the table has it now.
pub(super) async fn load<S>(conn: &mut PgConnection, history: u32) -> meterd_store::Result<Window<S>> {
    let Bounds { last, pruned } = alert_feed::bounds(&mut *conn).await?;
    let after = (last - WINDOW_ENTRIES as i64).max(pruned);
    let page = alert_feed::page(conn, &FeedFilter::default(), after, last, WINDOW_ENTRIES as i64).await?;
    let mut window = Window { after, last, entries: VecDeque::new(), pruned, history, stopped: false };
    window.add(last, page.bounds.pruned, page.entries);
    metrics::gauge!("meterd_alert_feed_sequence").set(last as f64);
    Ok(window)
}
