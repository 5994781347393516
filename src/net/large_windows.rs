//! Limits how many connections have a large flow-control window, and so the unread bytes of all connections.

use super::http::CONNECTION_WINDOW_BYTES;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Sum of all large windows. Every other connection has a window of 65,535 bytes, the minimum of HTTP/2.
const LARGE_WINDOWS_BYTES_MAX: usize = 512 * 1024 * 1024;

/// Counts the connections with a large window.
#[derive(Debug, Default)]
pub(super) struct LargeWindows {
    count: AtomicUsize,
}

/// Allows one connection to have a large window until it is dropped.
#[derive(Debug)]
pub(super) struct LargeWindowPermit(Arc<LargeWindows>);

impl LargeWindows {
    /// Returns a permit, or `None` if all permits are in use.
    pub fn try_acquire(self: &Arc<Self>) -> Option<LargeWindowPermit> {
        let max = LARGE_WINDOWS_BYTES_MAX / CONNECTION_WINDOW_BYTES as usize;
        let add = |count: usize| (count < max).then_some(count + 1);
        self.count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).ok()?;
        Some(LargeWindowPermit(self.clone()))
    }
}

impl Drop for LargeWindowPermit {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_connection_gets_a_large_window_while_all_permits_are_in_use() {
        let windows = Arc::<LargeWindows>::default();
        let mut permits: Vec<_> = std::iter::from_fn(|| windows.try_acquire()).collect();
        assert_eq!(permits.len() * CONNECTION_WINDOW_BYTES as usize, LARGE_WINDOWS_BYTES_MAX);
        assert!(windows.try_acquire().is_none());
        permits.pop();
        assert!(windows.try_acquire().is_some());
    }
}
