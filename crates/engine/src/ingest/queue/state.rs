//! Decides which writer takes which events, with plain functions of one state.
//!
//! Two transactions of a few events are slower than one. Therefore the first writer also takes the events of other queues as long
//! as they are few, and the other writers work only if enough events wait for a transaction of their own, or if the first writer
//! is slow, full or blocked. A writer without events takes from a queue that has many.

use super::Item;
use super::fair::FairQueue;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

/// From this number of events on, a writer without events of its own takes some from a queue. Two transactions of a busy client are
/// faster than one, because only their last statements wait for each other.
pub const SURPLUS_EVENTS_MIN: usize = 500;
/// From this number of events on, a separate transaction for a queue is faster than leaving its events to the first writer.
pub const PARALLEL_EVENTS_MIN: usize = 50;

/// The first writer.
const FIRST: usize = 0;

/// All queues and writers.
#[derive(Debug)]
pub struct State {
    queues: Vec<FairQueue>,
    /// For each writer, whether it works on a batch.
    working: Vec<bool>,
    /// Whether the first writer is slow with a batch, has enough events of its own, or has panicked. Then the other writers take their
    /// few events themselves.
    first_is_slow: bool,
    is_closed: bool,
}

impl State {
    /// Creates a queue for each writer, each with room for `capacity` events.
    pub fn new(writers: usize, capacity: usize) -> Self {
        Self {
            queues: (0..writers).map(|_| FairQueue::new(capacity)).collect(),
            working: vec![false; writers],
            first_is_slow: false,
            is_closed: false,
        }
    }

    pub fn len(&self) -> usize {
        self.queues.iter().map(FairQueue::len).sum()
    }

    pub fn close(&mut self) {
        self.is_closed = true;
    }

    pub fn is_closed(&self) -> bool {
        self.is_closed
    }

    /// Adds an event to the queue of this writer, or returns it if its client has no room.
    pub fn push(&mut self, writer: usize, item: Item) -> Result<(), Item> {
        self.queues[writer].push(item)
    }

    pub fn give_back(&mut self, writer: usize, items: Vec<Item>) {
        self.queues[writer].give_back(items);
    }

    pub fn take_queued_by(&mut self, writer: usize, time: Instant) -> Vec<Item> {
        self.queues[writer].take_queued_by(time)
    }

    pub fn blocked(&self, writer: usize) -> &HashSet<Arc<str>> {
        self.queues[writer].blocked()
    }

    pub fn unblock<'a>(&mut self, writer: usize, client_ids: impl Iterator<Item = &'a Arc<str>>) {
        self.queues[writer].unblock(client_ids);
    }

    fn is_blocked(&self, writer: usize) -> bool {
        !self.queues[writer].blocked().is_empty()
    }

    /// Returns whether the first writer takes the events of this queue as long as they are few.
    fn first_takes_few(&self, writer: usize) -> bool {
        writer != FIRST && !self.is_closed && !self.first_is_slow && !self.is_blocked(FIRST) && !self.is_blocked(writer)
    }

    /// Takes up to `max` events for a writer. Returns an empty list if there is no work for it.
    pub fn take(&mut self, writer: usize, max: usize) -> Vec<Item> {
        let min = if self.first_takes_few(writer) { PARALLEL_EVENTS_MIN } else { 1 };
        let mut taken = if self.queues[writer].len() >= min { self.queues[writer].take(max) } else { vec![] };
        if taken.is_empty()
            && let Some(surplus) = self.queue_with_surplus()
        {
            // A writer that works leaves nothing in its own queue.
            taken = self.queues[writer].take(max);
            taken.extend(self.queues[surplus].take(max - taken.len()));
        }
        if writer == FIRST && !self.is_blocked(FIRST) {
            for other in 1..self.queues.len() {
                if !self.working[other] && !self.is_blocked(other) {
                    taken.extend(self.queues[other].take(max - taken.len()));
                }
            }
            self.first_is_slow |= taken.len() == max;
        }
        taken
    }

    fn queue_with_surplus(&self) -> Option<usize> {
        let has_surplus =
            |writer: &usize| self.queues[*writer].len() >= SURPLUS_EVENTS_MIN && !self.is_blocked(*writer);
        (0..self.queues.len()).find(has_surplus)
    }

    pub fn begin_work(&mut self, writer: usize) {
        self.working[writer] = true;
    }

    /// Marks a writer as slow. Returns whether it is the first writer, because others wait only for that one.
    pub fn set_slow(&mut self, writer: usize) -> bool {
        self.first_is_slow |= writer == FIRST;
        writer == FIRST
    }

    /// Ends the work of a writer, because it has finished a batch or has panicked. Returns the writers to wake.
    pub fn end_work(&mut self, writer: usize, has_panicked: bool) -> Vec<usize> {
        let was_blocked = self.is_blocked(FIRST);
        self.working[writer] = false;
        self.queues[writer].forget_idle_blocked();
        if writer == FIRST {
            // After a panic it does not come back.
            self.first_is_slow = has_panicked;
        }
        match has_panicked || self.is_blocked(FIRST) != was_blocked {
            true => self.idle(),
            // The first writer may wait for the few events of this queue.
            false if writer != FIRST && !self.working[FIRST] => vec![FIRST],
            false => vec![],
        }
    }

    /// Returns the writers to wake after events were added to the queue of this writer. Writers that work are not woken, because they
    /// check the queues again when they have finished.
    pub fn wake_after_push(&self, writer: usize) -> Vec<usize> {
        let len = self.queues[writer].len();
        if len >= SURPLUS_EVENTS_MIN {
            return self.idle();
        }
        let own = len >= PARALLEL_EVENTS_MIN || !self.first_takes_few(writer);
        let woken = |other: &usize| !self.working[*other] && (*other == FIRST || (own && *other == writer));
        (0..self.queues.len()).filter(woken).collect()
    }

    /// Returns the writers to wake after this writer took events: all that do not work, if this is the first writer and it is slow.
    pub fn wake_after_take(&self, writer: usize) -> Vec<usize> {
        if writer == FIRST && self.first_is_slow { self.idle() } else { vec![] }
    }

    /// Returns the writers that do not work.
    fn idle(&self) -> Vec<usize> {
        (0..self.working.len()).filter(|writer| !self.working[*writer]).collect()
    }
}
