//! The open connections of a port, and which of them is closed for a new one when there are as many as may be.

use super::turns::Turns;
use std::collections::{HashMap, VecDeque};
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

/// How long connections that were found to be worth little are taken for that, so that new connections at a full port do not
/// each look through all. Each is looked at again before it is closed.
const FOUND_FOR: Duration = Duration::from_millis(100);
/// Most connections that one search remembers.
const FOUND_MAX: usize = 1_024;

/// What a search has found.
#[derive(Debug)]
struct Found {
    at: Instant,
    /// The next to be closed is the last.
    worst: Vec<(Rank, Instant, u64)>,
    /// There were more than are remembered.
    more: bool,
    /// Connections since then, the oldest first.
    newer: VecDeque<u64>,
}

/// The open connections of a port, by number.
#[derive(Debug, Default)]
pub(super) struct Lives {
    open: HashMap<u64, Arc<Life>>,
    next: u64,
    leaving: usize,
    found: Option<Found>,
}

impl Lives {
    pub fn begin(&mut self) -> (u64, Arc<Life>) {
        self.begin_at(Instant::now())
    }

    fn begin_at(&mut self, began: Instant) -> (u64, Arc<Life>) {
        let (number, life) = (self.next, Arc::new(Life::new(began)));
        self.next += 1;
        self.open.insert(number, life.clone());
        if let Some(found) = &mut self.found {
            found.newer.push_back(number);
            // Nobody has needed it for long.
            if found.newer.len() > FOUND_MAX {
                self.found = None;
            }
        }
        (number, life)
    }

    pub fn end(&mut self, number: u64) {
        let ended = self.open.remove(&number);
        if ended.is_some_and(|life| life.leaving.load(Ordering::Relaxed)) {
            self.leaving -= 1;
        }
    }

    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// Connections that are not about to close.
    pub fn staying(&self) -> usize {
        self.open.len() - self.leaving
    }

    pub fn leaving(&self) -> usize {
        self.leaving
    }

    /// Closes the connection that is worth least. False, if all are at work for callers with credentials.
    pub fn make_room(&mut self) -> bool {
        let Some(life) = self.worst() else { return false };
        life.leaving.store(true, Ordering::Relaxed);
        life.leave.notify_one();
        self.leaving += 1;
        true
    }

    /// The connection that is worth least, as far as the last search and those since then tell.
    fn worst(&mut self) -> Option<Arc<Life>> {
        let found = self.found.take().filter(|found| found.at.elapsed() < FOUND_FOR);
        let (mut found, mut fresh) = found.map_or_else(|| (self.search(), true), |found| (found, false));
        let worst = loop {
            if let Some(life) = self.next_of(&mut found) {
                break Some(life);
            }
            if fresh || (!found.more && self.open.len() > FOUND_MAX) {
                break None;
            }
            (found, fresh) = (self.search(), true);
        };
        self.found = Some(found);
        worst
    }

    /// Looks through all connections.
    fn search(&self) -> Found {
        let ranked = self.open.iter().filter_map(|(number, life)| life.rank().map(|(rank, at)| (rank, at, *number)));
        let mut worst: Vec<_> = ranked.collect();
        let more = worst.len() > FOUND_MAX;
        if more {
            worst.select_nth_unstable(FOUND_MAX);
            worst.truncate(FOUND_MAX);
        }
        worst.sort_unstable_by(|left, right| right.cmp(left));
        Found { at: Instant::now(), worst, more, newer: VecDeque::new() }
    }

    /// Takes the next that is still as it was found. Those since then come before idle ones of callers with credentials.
    fn next_of(&self, found: &mut Found) -> Option<Arc<Life>> {
        loop {
            let number = match found.worst.last() {
                Some((rank, ..)) if *rank < Rank::Idle => None,
                _ => found.newer.pop_front(),
            };
            if let Some(number) = number {
                if let Some(life) =
                    self.open.get(&number).filter(|life| life.rank().is_some_and(|(rank, _)| rank < Rank::Idle))
                {
                    return Some(life.clone());
                }
                continue;
            }
            let (rank, at, number) = found.worst.pop()?;
            // A new one may have had its time meanwhile; it is worth no more for that.
            let is_same = |(now, since)| since == at && (now == rank || rank == Rank::New);
            if let Some(life) = self.open.get(&number).filter(|life| life.rank().is_some_and(is_same)) {
                return Some(life.clone());
            }
        }
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
        assert_eq!(lives.leaving(), 4);
        assert_eq!((lives.staying(), lives.leaving()), (1, 4));
        lives.end(0);
        assert_eq!((lives.staying(), lives.leaving()), (1, 3));
    }

    #[tokio::test]
    async fn new_connections_fight_among_themselves_while_idle_ones_of_callers_with_credentials_are_found() {
        let mut lives = Lives::default();
        let idle: Vec<_> = (0..3)
            .map(|_| {
                let life = lives.begin().1;
                drop(life.turns.begin());
                life.vouched.store(true, Ordering::Relaxed);
                life
            })
            .collect();
        let left = |life: &Arc<Life>| life.leaving.load(Ordering::Relaxed);
        assert!(lives.make_room());
        assert_eq!(idle.iter().map(left).collect::<Vec<_>>(), [true, false, false]);
        for _ in 0..10 {
            let new = lives.begin().1;
            assert!(lives.make_room());
            assert!(left(&new), "the new one goes, and the idle ones stay");
        }
        // One that has come to be worth more since it was found stays.
        let _call = idle[1].turns.begin();
        assert!(lives.make_room());
        assert_eq!(idle.iter().map(left).collect::<Vec<_>>(), [true, false, true]);
        assert!(!lives.make_room());
    }

    #[tokio::test]
    async fn a_crowd_at_a_full_port_costs_few_searches() {
        let mut lives = Lives::default();
        let old = Instant::now() - NEW_FOR;
        let silent: Vec<_> = (0..20_000).map(|_| lives.begin_at(old)).collect();
        let begun = std::time::Instant::now();
        for number in 0..20_000_u64 {
            assert!(lives.make_room());
            lives.end(number);
            lives.begin();
        }
        let took = begun.elapsed();
        println!("20,000 connections displaced others among as many in {took:?}");
        assert!(took < Duration::from_secs(5), "{took:?}");
        drop(silent);
    }
}
