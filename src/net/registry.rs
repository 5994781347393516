//! The open connections of a port. If the port is full, the registry selects the connection that is closed for a new one.

use super::call_tracking::CallTracker;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// A new connection has this time to make its first call.
const NEW_FOR: Duration = Duration::from_secs(1);
/// The result of a search is used for this time, so that not every new connection at a full port searches all connections. The
/// rank of a candidate is checked again before its connection is evicted.
const CANDIDATES_VALID_FOR: Duration = Duration::from_millis(100);
/// Maximum number of candidates that a search keeps.
const CANDIDATES_MAX: usize = 1_024;

/// State of an open connection that its registry and its task share.
#[derive(Debug)]
pub(super) struct ConnectionState {
    pub calls: Arc<CallTracker>,
    /// True after the first authenticated call.
    pub is_authenticated: Arc<AtomicBool>,
    /// Notifies the task of the connection that it has to close for another connection.
    pub evicted: Notify,
    is_closing: AtomicBool,
    opened_at: Instant,
}

/// Order in which connections are evicted. Within a rank, the connection that has had the rank for the longest time is first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum EvictionRank {
    NeverCalled,
    IdleWithoutCredentials,
    BusyWithoutCredentials,
    /// Has not had the time for a call yet.
    New,
    Idle,
}

impl ConnectionState {
    fn new(opened_at: Instant) -> Self {
        let (calls, is_authenticated, evicted) = Default::default();
        Self { calls, is_authenticated, evicted, is_closing: AtomicBool::new(false), opened_at }
    }

    /// Returns the rank and since when the connection has it, or `None` if the connection cannot be evicted.
    fn rank(&self) -> Option<(EvictionRank, Instant)> {
        if self.is_closing.load(Ordering::Relaxed) {
            return None;
        }
        let is_authenticated = self.is_authenticated.load(Ordering::Relaxed);
        match (self.calls.started.load(Ordering::Relaxed), self.calls.idle_since(), is_authenticated) {
            (0, ..) if self.opened_at.elapsed() < NEW_FOR => Some((EvictionRank::New, self.opened_at)),
            (0, ..) => Some((EvictionRank::NeverCalled, self.opened_at)),
            (_, Some(since), false) => Some((EvictionRank::IdleWithoutCredentials, since)),
            (_, None, false) => Some((EvictionRank::BusyWithoutCredentials, self.opened_at)),
            (_, Some(since), true) => Some((EvictionRank::Idle, since)),
            (_, None, true) => None,
        }
    }
}

/// The result of a search for connections to evict.
#[derive(Debug)]
struct Candidates {
    found_at: Instant,
    /// The next connection to evict is the last one.
    ranked: Vec<(EvictionRank, Instant, u64)>,
    /// The search found more than `CANDIDATES_MAX`.
    is_truncated: bool,
    /// Connections that were opened after the search, the oldest first.
    newer: VecDeque<u64>,
}

/// The open connections of a port. Each has a number.
#[derive(Debug, Default)]
pub(super) struct Registry {
    open: HashMap<u64, Arc<ConnectionState>>,
    next_number: u64,
    closing: usize,
    candidates: Option<Candidates>,
}

impl Registry {
    /// Adds a new connection.
    pub fn add(&mut self) -> (u64, Arc<ConnectionState>) {
        self.add_opened_at(Instant::now())
    }

    fn add_opened_at(&mut self, opened_at: Instant) -> (u64, Arc<ConnectionState>) {
        let (number, state) = (self.next_number, Arc::new(ConnectionState::new(opened_at)));
        self.next_number += 1;
        self.open.insert(number, state.clone());
        if let Some(candidates) = &mut self.candidates {
            candidates.newer.push_back(number);
            // The list must not grow while no connection is evicted.
            if candidates.newer.len() > CANDIDATES_MAX {
                self.candidates = None;
            }
        }
        (number, state)
    }

    /// Removes a connection that has ended.
    pub fn remove(&mut self, number: u64) {
        let removed = self.open.remove(&number);
        if removed.is_some_and(|state| state.is_closing.load(Ordering::Relaxed)) {
            self.closing -= 1;
        }
    }

    /// Returns the number of open connections.
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// Returns the number of connections that are not closing.
    pub fn staying(&self) -> usize {
        self.open.len() - self.closing
    }

    /// Returns the number of connections that were evicted and have not ended yet.
    pub fn closing(&self) -> usize {
        self.closing
    }

    /// Evicts the connection with the lowest rank. Returns false if every connection is busy with authenticated calls.
    pub fn evict_one(&mut self) -> bool {
        let Some(state) = self.select() else { return false };
        state.is_closing.store(true, Ordering::Relaxed);
        state.evicted.notify_one();
        self.closing += 1;
        true
    }

    /// Returns the connection with the lowest rank, as far as the last search and the connections opened since then show.
    fn select(&mut self) -> Option<Arc<ConnectionState>> {
        let known = self.candidates.take().filter(|known| known.found_at.elapsed() < CANDIDATES_VALID_FOR);
        let (mut candidates, mut is_fresh) = known.map_or_else(|| (self.search(), true), |known| (known, false));
        let selected = loop {
            if let Some(state) = self.next_of(&mut candidates) {
                break Some(state);
            }
            if is_fresh || (!candidates.is_truncated && self.open.len() > CANDIDATES_MAX) {
                break None;
            }
            (candidates, is_fresh) = (self.search(), true);
        };
        self.candidates = Some(candidates);
        selected
    }

    /// Ranks all connections.
    fn search(&self) -> Candidates {
        let ranked = self.open.iter().filter_map(|(number, state)| {
            let (rank, since) = state.rank()?;
            Some((rank, since, *number))
        });
        let mut ranked: Vec<_> = ranked.collect();
        let is_truncated = ranked.len() > CANDIDATES_MAX;
        if is_truncated {
            ranked.select_nth_unstable(CANDIDATES_MAX);
            ranked.truncate(CANDIDATES_MAX);
        }
        ranked.sort_unstable_by(|left, right| right.cmp(left));
        Candidates { found_at: Instant::now(), ranked, is_truncated, newer: VecDeque::new() }
    }

    /// Takes the next candidate whose rank has not changed. Connections opened after the search come before idle connections of
    /// authenticated callers.
    fn next_of(&self, candidates: &mut Candidates) -> Option<Arc<ConnectionState>> {
        loop {
            let newer = match candidates.ranked.last() {
                Some((rank, ..)) if *rank < EvictionRank::Idle => None,
                _ => candidates.newer.pop_front(),
            };
            if let Some(number) = newer {
                let is_below_idle =
                    |state: &&Arc<ConnectionState>| state.rank().is_some_and(|(rank, _)| rank < EvictionRank::Idle);
                if let Some(state) = self.open.get(&number).filter(is_below_idle) {
                    return Some(state.clone());
                }
                continue;
            }
            let (rank, since, number) = candidates.ranked.pop()?;
            // A new connection may have become one that never called, which is evicted even earlier.
            let is_unchanged = |(now, now_since)| now_since == since && (now == rank || rank == EvictionRank::New);
            if let Some(state) = self.open.get(&number).filter(|state| state.rank().is_some_and(is_unchanged)) {
                return Some(state.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn connections_without_calls_are_evicted_first_and_busy_authenticated_ones_never() {
        let mut registry = Registry::default();
        let [idle, busy, public, new] = [0; 4].map(|_| registry.add().1);
        let silent = registry.add_opened_at(Instant::now() - NEW_FOR).1;
        let _calls = [&busy, &public].map(|state| state.calls.start());
        drop(idle.calls.start());
        for state in [&idle, &busy] {
            state.is_authenticated.store(true, Ordering::Relaxed);
        }
        for state in [&silent, &public, &new, &idle] {
            assert!(!state.is_closing.load(Ordering::Relaxed) && registry.evict_one());
            assert!(state.is_closing.load(Ordering::Relaxed));
        }
        assert!(!registry.evict_one() && !busy.is_closing.load(Ordering::Relaxed));
        assert_eq!(registry.closing(), 4);
        assert_eq!((registry.staying(), registry.closing()), (1, 4));
        registry.remove(0);
        assert_eq!((registry.staying(), registry.closing()), (1, 3));
    }

    #[tokio::test]
    async fn new_connections_replace_each_other_and_not_idle_authenticated_ones() {
        let mut registry = Registry::default();
        let idle: Vec<_> = (0..3)
            .map(|_| {
                let state = registry.add().1;
                drop(state.calls.start());
                state.is_authenticated.store(true, Ordering::Relaxed);
                state
            })
            .collect();
        let is_closing = |state: &Arc<ConnectionState>| state.is_closing.load(Ordering::Relaxed);
        assert!(registry.evict_one());
        assert_eq!(idle.iter().map(is_closing).collect::<Vec<_>>(), [true, false, false]);
        for _ in 0..10 {
            let new = registry.add().1;
            assert!(registry.evict_one());
            assert!(is_closing(&new), "the new connection is evicted, and the idle ones stay");
        }
        // A connection whose rank has risen since the search stays.
        let _call = idle[1].calls.start();
        assert!(registry.evict_one());
        assert_eq!(idle.iter().map(is_closing).collect::<Vec<_>>(), [true, false, true]);
        assert!(!registry.evict_one());
    }

    #[tokio::test]
    async fn many_new_connections_at_a_full_port_need_few_searches() {
        let mut registry = Registry::default();
        let old = Instant::now() - NEW_FOR;
        let silent: Vec<_> = (0..20_000).map(|_| registry.add_opened_at(old)).collect();
        let started = std::time::Instant::now();
        for number in 0..20_000_u64 {
            assert!(registry.evict_one());
            registry.remove(number);
            registry.add();
        }
        let took = started.elapsed();
        println!("20,000 of 20,000 connections were replaced in {took:?}");
        assert!(took < Duration::from_secs(5), "{took:?}");
        drop(silent);
    }
}
