//! What the windows of all connections may come to.

use super::http::CONNECTION_WINDOW_BYTES;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes that connections with a large window may have sent and handlers not have read. All other connections have 65,535
/// bytes each: HTTP/2 does not let a server go below.
const LARGE_WINDOWS_BYTES_MAX: usize = 512 * 1024 * 1024;

/// Counts connections with a large window.
#[derive(Debug, Default)]
pub(super) struct Windows {
    large: AtomicUsize,
}

/// A place among the connections with a large window, until it is dropped.
#[derive(Debug)]
pub(super) struct Grown(Arc<Windows>);

impl Windows {
    /// A place, if there is one.
    pub fn grow(self: &Arc<Self>) -> Option<Grown> {
        let places = LARGE_WINDOWS_BYTES_MAX / CONNECTION_WINDOW_BYTES as usize;
        let more = |large: usize| (large < places).then_some(large + 1);
        self.large.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Grown(self.clone()))
    }
}

impl Drop for Grown {
    fn drop(&mut self) {
        self.0.large.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_beyond_the_places_stay_small_until_one_comes_back() {
        let windows = Arc::<Windows>::default();
        let mut grown: Vec<_> = std::iter::from_fn(|| windows.grow()).collect();
        assert_eq!(grown.len() * CONNECTION_WINDOW_BYTES as usize, LARGE_WINDOWS_BYTES_MAX);
        assert!(windows.grow().is_none());
        grown.pop();
        assert!(windows.grow().is_some());
    }
}
