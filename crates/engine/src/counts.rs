//! How much of each bound is taken: by one connection, by one caller, or in all.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// Calls whose message has arrived, until their answer is sent.
    Calls,
    /// Streams, from their first message to their end.
    Streams,
    /// Calls of callers without credentials.
    PublicCalls,
    /// Streams of callers without credentials.
    PublicStreams,
    /// Bytes of answers that their callers have not read.
    AnswerBytes,
    /// Exports, which are streams too.
    Exports,
    /// Subscriptions to alerts, which are streams too.
    Subscriptions,
    /// Calls whose credentials are looked for.
    Strangers,
}

const KINDS: usize = 8;

/// Counts of one connection, one caller, or all.
#[derive(Debug, Default)]
pub struct Counts([AtomicUsize; KINDS]);

/// An amount that is counted until it is dropped.
#[derive(Debug)]
pub struct Taken {
    of: Arc<Counts>,
    counted: Counted,
    amount: usize,
}

impl Counts {
    /// How much is taken now.
    pub fn get(&self, counted: Counted) -> usize {
        self.0[counted as usize].load(Ordering::Relaxed)
    }

    /// Takes an amount, if at most `most` is taken then.
    pub fn take(self: &Arc<Self>, counted: Counted, amount: usize, most: usize) -> Option<Taken> {
        let count = &self.0[counted as usize];
        let fits = |taken: usize| taken.checked_add(amount).filter(|taken| *taken <= most);
        count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).ok()?;
        Some(Taken { of: self.clone(), counted, amount })
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.of.0[self.counted as usize].fetch_sub(self.amount, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_comes_back_and_kinds_do_not_mix() {
        let counts = Arc::new(Counts::default());
        let two = counts.take(Counted::Calls, 2, 2).unwrap();
        assert!(counts.take(Counted::Calls, 1, 2).is_none());
        let stream = counts.take(Counted::Streams, 1, 1).unwrap();
        drop(two);
        assert_eq!((counts.get(Counted::Calls), counts.get(Counted::Streams)), (0, 1));
        drop(stream);
        assert!(counts.take(Counted::Streams, 1, 1).is_some());
    }

    #[test]
    fn an_amount_that_overflows_does_not_fit() {
        let counts = Arc::new(Counts::default());
        let _one = counts.take(Counted::AnswerBytes, 1, usize::MAX).unwrap();
        assert!(counts.take(Counted::AnswerBytes, usize::MAX, usize::MAX).is_none());
    }
}
