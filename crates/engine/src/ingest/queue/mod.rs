//! The events that wait for a writer.
//!
//! Each writer has a queue of its own, and a client always uses the same queue. All queues are under one lock, so plain functions of one
//! state ([`state`]) decide which writer takes which events. This file does the waiting: each writer has a `Notify`, and callers that
//! wait for room share one.

mod fair;
mod state;

use super::{Reply, Submission, queue_full};
use crate::refusal::Refusal;
use foldhash::fast::RandomState;
use state::State;
use std::collections::{HashSet, VecDeque};
use std::hash::BuildHasher;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Maximum number of events that are added while the lock is held once.
const PUSH_EVENTS_MAX: usize = 256;

/// An event that waits for a writer, and the way to answer its caller.
#[derive(Debug)]
pub(super) struct Item {
    /// Boxed, because it is moved several times.
    pub submission: Box<Submission>,
    pub reply: Reply,
    pub queued_at: Instant,
}

/// The queues of all writers. Writers have numbers; number 0 is the first writer.
#[derive(Debug)]
pub(super) struct WriteQueue {
    state: Mutex<State>,
    /// Wakes each writer.
    writers: Vec<Notify>,
    /// Wakes the callers that wait for room.
    drained: Notify,
    /// Assigns clients to queues.
    hasher: RandomState,
}

/// What a writer has taken. The writer works until this is dropped.
pub(super) struct Batch<'a> {
    pub items: Vec<Item>,
    /// Clients of the writer's queue whose months another transaction has locked.
    pub blocked: HashSet<Arc<str>>,
    pub work: Work<'a>,
}

/// Marks a writer as working until this is dropped.
pub(super) struct Work<'a> {
    queue: &'a WriteQueue,
    writer: usize,
}

impl WriteQueue {
    /// Creates a queue for each writer, each with room for `capacity` events.
    pub fn new(writers: usize, capacity: usize) -> Self {
        Self {
            state: Mutex::new(State::new(writers, capacity)),
            writers: (0..writers).map(|_| Notify::new()).collect(),
            drained: Notify::new(),
            hasher: RandomState::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the number of writers.
    pub fn writer_count(&self) -> usize {
        self.writers.len()
    }

    /// Returns the number of events that wait.
    pub fn len(&self) -> usize {
        self.state().len()
    }

    /// Accepts no more events, and lets each writer end when its queue is empty.
    pub fn close(&self) {
        self.state().close();
        self.writers.iter().for_each(Notify::notify_one);
        self.drained.notify_waiters();
    }

    /// Returns the writer whose queue has the events of this event's client.
    fn writer_of(&self, item: &Item) -> usize {
        self.hasher.hash_one(&item.submission.event.client_id) as usize % self.writers.len()
    }

    fn wake(&self, writers: impl Iterator<Item = usize>) {
        writers.for_each(|writer| self.writers[writer].notify_one());
    }

    /// Adds an event.
    ///
    /// # Errors
    /// `QUEUE_FULL` if its client has no room, `SHUTTING_DOWN` if the queue is closed.
    pub fn push(&self, item: Item) -> Result<(), Refusal> {
        let writer = self.writer_of(&item);
        let mut state = self.state();
        if state.is_closed() {
            return Err(Refusal::shutting_down());
        }
        state.push(writer, item).map_err(|_| queue_full())?;
        let woken = state.wake_after_push(writer);
        drop(state);
        self.wake(woken.into_iter());
        Ok(())
    }

    /// Adds events, those of a client in order, each as soon as its client has room.
    pub async fn push_when_room(&self, items: impl ExactSizeIterator<Item = Item>) -> Result<(), Refusal> {
        let each = items.len() / self.writers.len() + 1;
        let mut pending: Vec<VecDeque<Item>> = self.writers.iter().map(|_| VecDeque::with_capacity(each)).collect();
        items.for_each(|item| pending[self.writer_of(&item)].push_back(item));
        loop {
            // Before the attempt, so that room that is made after it wakes this task.
            let drained = self.drained.notified();
            let mut is_full = true;
            for (writer, items) in pending.iter_mut().enumerate() {
                is_full &= !self.push_some(writer, items)?;
            }
            if pending.iter().all(VecDeque::is_empty) {
                return Ok(());
            }
            if is_full {
                drained.await;
            }
        }
    }

    /// Adds up to [`PUSH_EVENTS_MAX`] events of one queue, until the client of an event has no room. Returns whether more may fit.
    fn push_some(&self, writer: usize, items: &mut VecDeque<Item>) -> Result<bool, Refusal> {
        if items.is_empty() {
            return Ok(false);
        }
        let mut state = self.state();
        if state.is_closed() {
            return Err(Refusal::shutting_down());
        }
        let mut pushed = 0;
        while pushed < PUSH_EVENTS_MAX
            && let Some(item) = items.pop_front()
        {
            if let Err(item) = state.push(writer, item) {
                items.push_front(item);
                break;
            }
            pushed += 1;
        }
        let woken = state.wake_after_push(writer);
        drop(state);
        if pushed > 0 {
            self.wake(woken.into_iter());
        }
        Ok(pushed == PUSH_EVENTS_MAX)
    }

    /// Waits until there is work for a writer, and takes up to `max` events. Returns `None` if the queues are closed and the queue of
    /// this writer is empty.
    pub async fn take(&self, writer: usize, max: usize) -> Option<Batch<'_>> {
        loop {
            // Before the attempt, so that events that come after it wake this task.
            let notified = self.writers[writer].notified();
            {
                let mut state = self.state();
                let items = state.take(writer, max);
                if !items.is_empty() {
                    state.begin_work(writer);
                    let blocked = state.blocked(writer).clone();
                    // The first writer may have left events of other queues to their own writers.
                    let woken = state.wake_after_take(writer);
                    drop(state);
                    self.wake(woken.into_iter());
                    self.drained.notify_waiters();
                    return Some(Batch { items, blocked, work: Work { queue: self, writer } });
                }
                if state.is_closed() {
                    return None;
                }
            }
            notified.await;
        }
    }

    /// Takes the events of the queue of this writer that have waited for at least this time.
    pub fn take_expired(&self, writer: usize, waited: Duration) -> Vec<Item> {
        let Some(time) = Instant::now().checked_sub(waited) else { return vec![] };
        let taken = self.state().take_queued_by(writer, time);
        if !taken.is_empty() {
            self.drained.notify_waiters();
        }
        taken
    }

    /// Gives back events of one client whose months another transaction has locked. The writer of the client's own queue retries
    /// them. If the queues are closed, that writer may have ended, so `writer` retries them. Returns whether `writer` retries them.
    pub fn give_back(&self, writer: usize, items: Vec<Item>) -> bool {
        let home = items.first().map_or(writer, |item| self.writer_of(item));
        let mut state = self.state();
        let target = if state.is_closed() { writer } else { home };
        state.give_back(target, items);
        drop(state);
        self.wake(0..self.writers.len());
        target == writer
    }

    /// Marks clients as not blocked, because this writer has written events of them.
    pub fn unblock<'a>(&self, writer: usize, client_ids: impl Iterator<Item = &'a Arc<str>>) {
        self.state().unblock(writer, client_ids);
    }
}

impl Work<'_> {
    /// Marks the batch as slow, so that other writers do not wait for this one.
    pub fn set_slow(&self) {
        if self.queue.state().set_slow(self.writer) {
            self.queue.wake(0..self.queue.writers.len());
        }
    }
}

impl Drop for Work<'_> {
    fn drop(&mut self) {
        let woken = self.queue.state().end_work(self.writer, std::thread::panicking());
        self.queue.wake(woken.into_iter());
    }
}

#[cfg(test)]
mod tests;
