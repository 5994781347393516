//! Exponential backoff with jitter and a time limit.

use std::time::Duration;

use tokio::time::Instant;

const FIRST_STEP: Duration = Duration::from_millis(100);
const LAST_STEP: Duration = Duration::from_secs(10);

/// Computes the pauses between the attempts of a call.
#[derive(Debug)]
pub struct Backoff {
    budget: Duration,
    step: Duration,
    give_up_at: Option<Instant>,
}

impl Backoff {
    /// `budget` is the maximum time for retries after the first failure.
    pub fn new(budget: Duration) -> Backoff {
        Backoff { budget, step: FIRST_STEP, give_up_at: None }
    }

    /// Returns the pause before the next attempt, at least the delay that the server requests (`hint`). `None` if the time is
    /// over.
    pub fn next_wait(&mut self, now: Instant, hint: Option<Duration>) -> Option<Duration> {
        let give_up_at = *self.give_up_at.get_or_insert(now + self.budget);
        let step_ms = u64::try_from(self.step.as_millis()).unwrap_or(u64::MAX);
        let jittered = Duration::from_millis(rand::random_range(step_ms / 2..=step_ms));
        let wait = jittered + hint.unwrap_or_default();
        self.step = (self.step * 2).min(LAST_STEP);
        (now + wait <= give_up_at).then_some(wait)
    }

    /// Whether a failure was not yet followed by progress.
    pub fn is_waiting(&self) -> bool {
        self.give_up_at.is_some()
    }

    /// Resets the backoff after progress.
    pub fn reset(&mut self) {
        self.step = FIRST_STEP;
        self.give_up_at = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_end_with_the_budget() {
        let start = Instant::now();
        let mut now = start;
        let mut backoff = Backoff::new(Duration::from_secs(30));
        let mut waits = Vec::new();
        while let Some(wait) = backoff.next_wait(now, None) {
            assert!(wait <= LAST_STEP);
            waits.push(wait);
            now += wait;
        }
        assert!(now - start <= Duration::from_secs(30));
        assert!(waits.len() >= 8 && waits[0] < waits[5], "{waits:?}");
    }

    #[test]
    fn the_pause_is_at_least_the_delay_that_the_server_requests() {
        let mut backoff = Backoff::new(Duration::from_secs(5));
        let hint = Duration::from_secs(2);
        assert!(backoff.next_wait(Instant::now(), Some(hint)).unwrap() >= hint);
        let too_long = Some(Duration::from_secs(60));
        assert_eq!(backoff.next_wait(Instant::now(), too_long), None);
    }

    #[test]
    fn a_reset_renews_the_budget() {
        let start = Instant::now();
        let mut backoff = Backoff::new(Duration::from_secs(1));
        assert!(backoff.next_wait(start, None).is_some());
        let late = start + Duration::from_secs(2);
        assert!(backoff.next_wait(late, None).is_none());
        backoff.reset();
        assert!(backoff.next_wait(late, None).is_some());
    }
}
