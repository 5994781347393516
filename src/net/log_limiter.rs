//! Limits log lines about events that any caller can cause as often as it wants: at most one line per interval, with the number
//! of occurrences.

use std::sync::Mutex;
use std::time::Duration;
use tokio::time::Instant;

/// Minimum time between two lines.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// Counts the occurrences of an event between two log lines.
#[derive(Debug, Default)]
pub(super) struct LogLimiter(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    last_line: Option<Instant>,
    /// Occurrences since the last line.
    occurrences: u64,
}

impl LogLimiter {
    /// Counts an occurrence. Returns the number of occurrences since the last line if another line is due.
    pub fn count(&self) -> Option<u64> {
        self.count_at(Instant::now())
    }

    fn count_at(&self, now: Instant) -> Option<u64> {
        let mut state = self.0.lock().expect("not poisoned");
        state.occurrences += 1;
        if state.last_line.is_some_and(|last| now < last + LINE_INTERVAL) {
            return None;
        }
        state.last_line = Some(now);
        Some(std::mem::take(&mut state.occurrences))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_occurrence_is_logged_and_the_next_line_has_the_number_of_the_others() {
        let (limiter, now) = (LogLimiter::default(), Instant::now());
        assert_eq!(limiter.count_at(now), Some(1));
        assert_eq!((0..4_700).filter_map(|_| limiter.count_at(now)).count(), 0);
        assert_eq!(limiter.count_at(now + LINE_INTERVAL), Some(4_701));
    }
}
