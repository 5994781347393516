//! When a writer tries to record a batch with one call of the SQL function `record_usage`.

use meterd_store::usage::record::Tried;

/// Maximum number of batches that are not tried after a taken key.
const PAUSE_MAX: u32 = 64;

/// Decides which batches of a writer are tried in one call. After a batch with a taken key, the next ones are not: they probably have
/// taken keys, too, and a batch that cannot be recorded in one call costs both the call and a transaction of several
/// statements.
pub struct OneCall {
    /// The number of batches that will not be tried.
    pause: u32,
    /// The pause after the next taken key.
    next_pause: u32,
}

impl Default for OneCall {
    fn default() -> Self {
        Self { pause: 0, next_pause: 1 }
    }
}

impl OneCall {
    /// Returns whether the next batch is tried.
    pub fn try_next(&mut self) -> bool {
        let tries = self.pause == 0;
        self.pause = self.pause.saturating_sub(1);
        tries
    }

    /// Takes note of the result of a call.
    pub fn learn(&mut self, tried: Tried) {
        let result = match tried {
            Tried::Recorded => {
                self.next_pause = 1;
                "recorded"
            }
            Tried::KeyTaken => {
                self.pause = self.next_pause;
                self.next_pause = (self.next_pause * 2).min(PAUSE_MAX);
                "key_taken"
            }
            Tried::Stale => "stale",
            Tried::BoundReached => "bound_reached",
        };
        metrics::counter!("meterd_one_call_batches_total", "result" => result).increment(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns how many of the next batches are not tried.
    fn skipped(calls: &mut OneCall) -> usize {
        (0..).take_while(|_| !calls.try_next()).count()
    }

    #[test]
    fn taken_keys_pause_the_calls_longer_each_time_until_a_batch_is_recorded() {
        let mut calls = OneCall::default();
        assert_eq!(skipped(&mut calls), 0);
        let pauses = (0..8).map(|_| {
            calls.learn(Tried::KeyTaken);
            skipped(&mut calls)
        });
        assert_eq!(pauses.collect::<Vec<_>>(), [1, 2, 4, 8, 16, 32, 64, 64]);
        calls.learn(Tried::Stale);
        calls.learn(Tried::BoundReached);
        assert_eq!(skipped(&mut calls), 0);
        calls.learn(Tried::Recorded);
        calls.learn(Tried::KeyTaken);
        assert_eq!(skipped(&mut calls), 1);
    }
}
