//! The pause before the next attempt: random, with a maximum that grows exponentially.

use std::time::Duration;

/// Maximum pause between two attempts.
const PAUSE_MAX: Duration = Duration::from_secs(3600);
/// Factor of the maximum pause after each attempt.
const FACTOR: u32 = 4;

/// Returns the maximum pause after this number of attempts, if the maximum after the first attempt is `first`.
pub fn longest_pause(first: Duration, attempts: u32) -> Duration {
    first.saturating_mul(FACTOR.saturating_pow(attempts.saturating_sub(1))).min(PAUSE_MAX)
}

/// Returns a random pause up to the maximum, so that attempts that failed at the same time are not retried at the same time.
pub fn pause(first: Duration, attempts: u32) -> Duration {
    Duration::from_millis(rand::random_range(0..=longest_pause(first, attempts).as_millis() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_maximum_pause_is_four_times_as_long_after_each_attempt_and_at_most_an_hour() {
        let first = Duration::from_secs(5);
        let seconds: Vec<u64> = (1..=8).map(|attempts| longest_pause(first, attempts).as_secs()).collect();
        assert_eq!(seconds, [5, 20, 80, 320, 1_280, 3_600, 3_600, 3_600]);
        assert_eq!(longest_pause(PAUSE_MAX, 1), PAUSE_MAX);
        assert_eq!(longest_pause(first, u32::MAX), PAUSE_MAX);
    }

    #[test]
    fn pauses_are_spread_from_zero_to_the_maximum() {
        for attempts in [1, 3, 100] {
            let longest = longest_pause(Duration::from_secs(5), attempts);
            let pauses: Vec<Duration> = (0..1_000).map(|_| pause(Duration::from_secs(5), attempts)).collect();
            assert!(pauses.iter().all(|pause| *pause <= longest));
            // The probability that a thousand evenly spread pauses miss one of ten intervals is below 10^-44.
            for tenth in 0..10 {
                let (from, to) = (longest * tenth / 10, longest * (tenth + 1) / 10);
                assert!(pauses.iter().any(|pause| (from..=to).contains(pause)), "{from:?} to {to:?}");
            }
        }
    }
}
