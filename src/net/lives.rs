//! The open connections of a port, and which of them is closed for a new one when there are as many as may be.

use super::turns::Turns;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// One open connection.
#[derive(Debug)]
pub(super) struct Life {
    pub turns: Arc<Turns>,
    /// A call came from somebody who may call.
    pub vouched: Arc<AtomicBool>,
    /// Wakes the connection to close.
    pub leave: Notify,
    leaving: AtomicBool,
    began: Instant,
}

/// How easily a connection is closed for another: the first of these first, and of each the one that has been so for longest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    NeverCalled,
    IdleWithoutCredentials,
    BusyWithoutCredentials,
    /// It has not had the time for a call yet.
    New,
    Idle,
}

/// Time for the first call of a connection.
const NEW_FOR: Duration = Duration::from_secs(1);

impl Life {
    fn new(began: Instant) -> Self {
        let (turns, vouched, leave) = Default::default();
        Self { turns, vouched, leave, leaving: AtomicBool::new(false), began }
    }

    /// None, if the connection is not closed for others.
    fn rank(&self) -> Option<(Rank, Instant)> {
        if self.leaving.load(Ordering::Relaxed) {
            return None;
        }
        let vouched = self.vouched.load(Ordering::Relaxed);
        match (self.turns.begun.load(Ordering::Relaxed), self.turns.idle_since(), vouched) {
            (0, ..) if self.began.elapsed() < NEW_FOR => Some((Rank::New, self.began)),
            (0, ..) => Some((Rank::NeverCalled, self.began)),
            (_, Some(since), false) => Some((Rank::IdleWithoutCredentials, since)),
            (_, None, false) => Some((Rank::BusyWithoutCredentials, self.began)),
            (_, Some(since), true) => Some((Rank::Idle, since)),
            (_, None, true) => None,
        }
    }
}

/// The open connections of a port, by number.
#[derive(Debug, Default)]
pub(super) struct Lives {
    open: HashMap<u64, Arc<Life>>,
    next: u64,
}

impl Lives {
    pub fn begin(&mut self) -> (u64, Arc<Life>) {
        self.begin_at(Instant::now())
    }

    fn begin_at(&mut self, began: Instant) -> (u64, Arc<Life>) {
        let (number, life) = (self.next, Arc::new(Life::new(began)));
        self.next += 1;
        self.open.insert(number, life.clone());
        (number, life)
    }

    pub fn end(&mut self, number: u64) {
        self.open.remove(&number);
    }

    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// Connections that are not about to close.
    pub fn staying(&self) -> usize {
        self.open.len() - self.leaving()
    }

    pub fn leaving(&self) -> usize {
        self.open.values().filter(|life| life.leaving.load(Ordering::Relaxed)).count()
    }

    /// Closes the connection that is worth least. False, if all are at work for callers with credentials.
    pub fn make_room(&self) -> bool {
        let ranked = self.open.values().filter_map(|life| Some((life.rank()?, life)));
        let Some((_, life)) = ranked.min_by_key(|(rank, _)| *rank) else { return false };
        life.leaving.store(true, Ordering::Relaxed);
        life.leave.notify_one();
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn those_that_never_called_go_first_and_those_at_work_for_callers_with_credentials_stay() {
        let mut lives = Lives::default();
        let [idle, busy, public, new] = [0; 4].map(|_| lives.begin().1);
        let silent = lives.begin_at(Instant::now() - NEW_FOR).1;
        let _calls = [&busy, &public].map(|life| life.turns.begin());
        drop(idle.turns.begin());
        for life in [&idle, &busy] {
            life.vouched.store(true, Ordering::Relaxed);
        }
        for life in [&silent, &public, &new, &idle] {
            assert!(!life.leaving.load(Ordering::Relaxed) && lives.make_room());
            assert!(life.leaving.load(Ordering::Relaxed));
        }
        assert!(!lives.make_room() && !busy.leaving.load(Ordering::Relaxed));
        assert_eq!((lives.staying(), lives.leaving()), (1, 4));
        lives.end(0);
        assert_eq!((lives.staying(), lives.leaving()), (1, 3));
    }
}
