//! Channels that cannot be claimed, as where a notification of theirs cannot be read, wait beside the others, which go on.

use super::backoff::longest_pause;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// How long a channel is left aside the first time.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// How long at most.
const PAUSE_MAX: Duration = Duration::from_secs(300);

/// The channels that are left aside, each until it is tried again.
#[derive(Default)]
pub struct Aside(HashMap<i64, Waiting>);

struct Waiting {
    failures: u32,
    until: Instant,
}

impl Aside {
    /// Those that are not to be tried now. What was not tried long after its pause has nothing to send, and is forgotten.
    pub fn channels(&mut self, now: Instant) -> Vec<i64> {
        self.0.retain(|_, waiting| now < waiting.until + PAUSE_MAX);
        self.0.iter().filter(|(_, waiting)| now < waiting.until).map(|(channel_id, _)| *channel_id).collect()
    }

    /// Leaves one aside, for longer at each failure; whether it is the first one.
    pub fn put(&mut self, channel_id: i64, now: Instant) -> bool {
        let waiting = self.0.entry(channel_id).or_insert(Waiting { failures: 0, until: now });
        waiting.failures += 1;
        waiting.until = now + longest_pause(FIRST_PAUSE, waiting.failures).min(PAUSE_MAX);
        waiting.failures == 1
    }

    /// It could be claimed.
    pub fn take_back(&mut self, channel_id: i64) {
        self.0.remove(&channel_id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_is_left_aside_for_longer_each_time_until_it_can_be_claimed() {
        let (mut aside, begun) = (Aside::default(), Instant::now());
        let at = |seconds: u64| begun + Duration::from_secs(seconds);
        assert!(aside.put(7, at(0)) && !aside.put(7, at(1)) && aside.put(8, at(1)));
        let mut both = aside.channels(at(1));
        both.sort_unstable();
        assert_eq!(both, [7, 8]);
        assert_eq!((aside.channels(at(4)), aside.channels(at(5))), (vec![7], vec![]));
        for _ in 0..100 {
            aside.put(7, at(5));
        }
        assert_eq!((aside.channels(at(304)), aside.channels(at(305))), (vec![7], vec![]));
        assert!(!aside.put(7, at(305)));
        aside.take_back(7);
        assert!(aside.put(7, at(305)));
        // Removed meanwhile, say.
        aside.channels(at(606));
        assert!(aside.put(7, at(606)));
    }
}
