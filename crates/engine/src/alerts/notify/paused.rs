//! Channels that cannot be claimed, for example because a notification cannot be read, are paused. The other channels continue.

use super::backoff::longest_pause;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// The pause after the first failure.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(300);

/// The paused channels.
#[derive(Default)]
pub struct PausedChannels(HashMap<i64, Pause>);

struct Pause {
    failures: u32,
    until: Instant,
}

impl PausedChannels {
    /// Returns the channels that are paused now. Forgets channels that were not claimed long after their pause, because they have
    /// nothing to send.
    pub fn paused(&mut self, now: Instant) -> Vec<i64> {
        self.0.retain(|_, pause| now < pause.until + PAUSE_MAX);
        self.0.iter().filter(|(_, pause)| now < pause.until).map(|(channel_id, _)| *channel_id).collect()
    }

    /// Pauses a channel, for longer after each failure. Returns whether this is its first failure.
    pub fn pause(&mut self, channel_id: i64, now: Instant) -> bool {
        let pause = self.0.entry(channel_id).or_insert(Pause { failures: 0, until: now });
        pause.failures += 1;
        pause.until = now + longest_pause(FIRST_PAUSE, pause.failures).min(PAUSE_MAX);
        pause.failures == 1
    }

    /// Forgets the failures of a channel that could be claimed.
    pub fn resume(&mut self, channel_id: i64) {
        self.0.remove(&channel_id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_is_paused_for_longer_each_time_until_it_can_be_claimed() {
        let (mut channels, begun) = (PausedChannels::default(), Instant::now());
        let at = |seconds: u64| begun + Duration::from_secs(seconds);
        assert!(channels.pause(7, at(0)) && !channels.pause(7, at(1)) && channels.pause(8, at(1)));
        let mut both = channels.paused(at(1));
        both.sort_unstable();
        assert_eq!(both, [7, 8]);
        assert_eq!((channels.paused(at(4)), channels.paused(at(5))), (vec![7], vec![]));
        for _ in 0..100 {
            channels.pause(7, at(5));
        }
        assert_eq!((channels.paused(at(304)), channels.paused(at(305))), (vec![7], vec![]));
        assert!(!channels.pause(7, at(305)));
        channels.resume(7);
        assert!(channels.pause(7, at(305)));
        // Such as a channel that was removed meanwhile.
        channels.paused(at(606));
        assert!(channels.pause(7, at(606)));
    }
}
