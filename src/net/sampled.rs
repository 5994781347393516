//! Log lines about what strangers can cause as often as they like: one line each while, with the number of occurrences.

use std::sync::Mutex;
use std::time::Duration;
use tokio::time::Instant;

/// The least time between two lines.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Counts occurrences between lines.
#[derive(Debug, Default)]
pub(super) struct Sampled(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    last_line: Option<Instant>,
    since: u64,
}

impl Sampled {
    /// Counts an occurrence. Returns how many there were since the last line, if another line is due.
    pub fn count(&self) -> Option<u64> {
        self.count_at(Instant::now())
    }

    fn count_at(&self, now: Instant) -> Option<u64> {
        let mut state = self.0.lock().expect("not poisoned");
        state.since += 1;
        if state.last_line.is_some_and(|last| now < last + LINE_EVERY) {
            return None;
        }
        state.last_line = Some(now);
        Some(std::mem::take(&mut state.since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_has_a_line_and_the_next_line_counts_those_between() {
        let (sampled, now) = (Sampled::default(), Instant::now());
        assert_eq!(sampled.count_at(now), Some(1));
        assert_eq!((0..4_700).filter_map(|_| sampled.count_at(now)).count(), 0);
        assert_eq!(sampled.count_at(now + LINE_EVERY), Some(4_701));
    }
}
