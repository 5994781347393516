//! When to try again: exponential backoff with jitter, bounded in time.

use std::time::Duration;

use tokio::time::Instant;

const FIRST_STEP: Duration = Duration::from_millis(100);
const LAST_STEP: Duration = Duration::from_secs(10);

/// Pauses between the tries of one call.
#[derive(Debug)]
pub struct Backoff {
    budget: Duration,
    step: Duration,
    give_up_at: Option<Instant>,
}

impl Backoff {
    /// `budget`: how long to go on after the first failure.
    pub fn new(budget: Duration) -> Backoff {
        Backoff { budget, step: FIRST_STEP, give_up_at: None }
    }

    /// How long to wait before the next try, at least as long as the server asks (`hint`). None: give up.
    pub fn next_wait(&mut self, now: Instant, hint: Option<Duration>) -> Option<Duration> {
        let give_up_at = *self.give_up_at.get_or_insert(now + self.budget);
        let step_ms = u64::try_from(self.step.as_millis()).unwrap_or(u64::MAX);
        let jittered = Duration::from_millis(rand::random_range(step_ms / 2..=step_ms));
        let wait = jittered + hint.unwrap_or_default();
        self.step = (self.step * 2).min(LAST_STEP);
        (now + wait <= give_up_at).then_some(wait)
    }

    /// There was a failure, and no progress since.
    pub fn is_waiting(&self) -> bool {
        self.give_up_at.is_some()
    }

    /// Something went through: the next failure is a first one again.
    pub fn progress(&mut self) {
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
    fn the_server_is_given_the_time_it_asks_for() {
        let mut backoff = Backoff::new(Duration::from_secs(5));
        let hint = Duration::from_secs(2);
        assert!(backoff.next_wait(Instant::now(), Some(hint)).unwrap() >= hint);
        let too_long = Some(Duration::from_secs(60));
        assert_eq!(backoff.next_wait(Instant::now(), too_long), None);
    }

    #[test]
    fn progress_renews_the_budget() {
        let start = Instant::now();
        let mut backoff = Backoff::new(Duration::from_secs(1));
        assert!(backoff.next_wait(start, None).is_some());
        let late = start + Duration::from_secs(2);
        assert!(backoff.next_wait(late, None).is_none());
        backoff.progress();
        assert!(backoff.next_wait(late, None).is_some());
    }
}
