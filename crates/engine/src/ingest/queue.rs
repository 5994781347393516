//! What waits for one writer: bounded, and fair among clients.

use super::{Reply, Submission, queue_full};
use crate::refusal::Refusal;
use foldhash::fast::RandomState;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;
use tokio::sync::Notify;

/// An event that waits, and who waits for it.
#[derive(Debug)]
pub(super) struct Item {
    /// In a place of its own: it passes through several hands.
    pub submission: Box<Submission>,
    pub reply: Reply,
    pub queued_at: Instant,
}

/// Most events that one client puts into a batch before the next client has its turn.
const TURN_EVENTS_MAX: usize = 64;

/// A queue a client, served in turns.
///
/// A client may hold as much as is still free: a lone hot client gets half of the room, two get a third each, and a
/// newcomer always finds some. (The dynamic threshold of shared-buffer switches; Choudhury and Hahne, 1998.)
#[derive(Debug)]
pub(super) struct Queue {
    capacity: usize,
    state: Mutex<State>,
    /// Wakes its writer.
    pub filled: Notify,
    /// Wakes who waits for room.
    drained: Notify,
    /// It has clients whose rows somebody holds: others than its writer would only wait for them too. Changed under the lock.
    is_held: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    clients: HashMap<Arc<str>, VecDeque<Item>, RandomState>,
    /// Clients with something waiting, in the order of their turns.
    turns: VecDeque<Arc<str>>,
    /// Clients that other writers gave back and its own has not heard of.
    given_back: Vec<Arc<str>>,
    len: usize,
    closed: bool,
}

impl Queue {
    pub(super) fn new(capacity: usize) -> Self {
        let (filled, drained) = (Notify::new(), Notify::new());
        Self { capacity, state: Mutex::default(), filled, drained, is_held: AtomicBool::new(false) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("queue is not poisoned")
    }

    pub(super) fn len(&self) -> usize {
        self.state().len
    }

    /// Takes nothing more.
    pub(super) fn close(&self) {
        self.state().closed = true;
        self.drained.notify_waiters();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.state().closed
    }

    pub(super) fn is_held(&self) -> bool {
        self.is_held.load(Ordering::Relaxed)
    }

    /// Queues an event and gives how many wait now; or says why not: no room for its client, or closed.
    pub(super) fn push(&self, item: Item) -> Result<usize, Refusal> {
        let mut state = self.state();
        match state.push(item, self.capacity) {
            None => Ok(state.len),
            Some(_) if state.closed => Err(Refusal::shutting_down()),
            Some(_) => Err(queue_full()),
        }
    }

    /// Queues events in order, each as soon as its client has room. `pushed` is told how many wait, each time that some came in.
    pub(super) async fn push_when_room(&self, items: Vec<Item>, pushed: impl Fn(usize)) -> Result<(), Refusal> {
        let mut items = items.into_iter();
        let mut next = items.next();
        while next.is_some() {
            // Registered before the look, so that room made in between wakes it.
            let drained = self.drained.notified();
            let len = {
                let mut state = self.state();
                while let Some(item) = next {
                    next = state.push(item, self.capacity);
                    if next.is_some() {
                        break;
                    }
                    next = items.next();
                }
                if next.is_some() && state.closed {
                    return Err(Refusal::shutting_down());
                }
                state.len
            };
            pushed(len);
            if next.is_some() {
                drained.await;
            }
        }
        Ok(())
    }

    /// What its writer knows of clients whose rows somebody holds: with those that others gave back, and without those of
    /// whom nobody waits for an answer any more.
    pub(super) fn know_held(&self, held_clients: &mut HashSet<Arc<str>>) {
        let mut state = self.state();
        held_clients.extend(state.given_back.drain(..));
        held_clients.retain(|client_id| state.clients.contains_key(client_id));
        self.is_held.store(!held_clients.is_empty(), Ordering::Relaxed);
    }

    /// Puts events of one client that were taken before the others of it again; its turn comes after all others'. They had
    /// their room, and get it back also where it is taken by now. Gives how many events wait now.
    ///
    /// By another than its own writer only as long as that is sure to come: else they are what it gives.
    pub(super) fn give_back(&self, items: Vec<Item>, by_another: bool) -> Result<usize, Vec<Item>> {
        let mut guard = self.state();
        let state = &mut *guard;
        if by_another && state.closed {
            return Err(items);
        }
        let Some(client_id) = items.first().map(|item| item.submission.event.client_id.clone()) else {
            return Ok(state.len);
        };
        if by_another {
            state.given_back.push(client_id.clone());
            self.is_held.store(true, Ordering::Relaxed);
        }
        state.len += items.len();
        let waiting = state.clients.entry(client_id.clone()).or_default();
        if waiting.is_empty() {
            state.turns.push_back(client_id);
        }
        items.into_iter().rev().for_each(|item| waiting.push_front(item));
        Ok(state.len)
    }

    /// Takes up to `max`, a turn a client, if there are so many; else nothing.
    pub(super) fn take(&self, max: usize, at_least: usize) -> Vec<Item> {
        let mut state = self.state();
        if max == 0 || state.len == 0 || state.len < at_least {
            return vec![];
        }
        let taken = state.take(max);
        drop(state);
        self.drained.notify_waiters();
        taken
    }

    /// Takes all events that were queued at this time or before.
    pub(super) fn take_queued_by(&self, time: Instant) -> Vec<Item> {
        let taken = self.state().take_queued_by(time);
        if !taken.is_empty() {
            self.drained.notify_waiters();
        }
        taken
    }
}

impl State {
    /// Takes an event in, or gives it back: no room for its client, or closed.
    fn push(&mut self, item: Item, capacity: usize) -> Option<Item> {
        let free = if self.closed { 0 } else { capacity.saturating_sub(self.len) };
        let client_id = &item.submission.event.client_id;
        match self.clients.get_mut(client_id) {
            Some(waiting) if waiting.len() >= free => return Some(item),
            Some(waiting) => waiting.push_back(item),
            None if free == 0 => return Some(item),
            None => {
                self.turns.push_back(client_id.clone());
                self.clients.insert(client_id.clone(), VecDeque::from([item]));
            }
        }
        self.len += 1;
        None
    }

    fn take_queued_by(&mut self, time: Instant) -> Vec<Item> {
        let mut taken = vec![];
        self.clients.retain(|_, waiting| {
            // The first ones have waited for the longest.
            let younger = waiting.iter().position(|item| item.queued_at > time).unwrap_or(waiting.len());
            taken.extend(waiting.drain(..younger));
            !waiting.is_empty()
        });
        let clients = &self.clients;
        self.turns.retain(|client_id| clients.contains_key(client_id));
        self.len -= taken.len();
        taken
    }

    fn take(&mut self, max: usize) -> Vec<Item> {
        let mut taken = Vec::with_capacity(max.min(self.len));
        while taken.len() < max
            && let Some(client_id) = self.turns.pop_front()
        {
            let waiting = self.clients.get_mut(&client_id).expect("whose turn it is has something waiting");
            let turn = TURN_EVENTS_MAX.min(max - taken.len()).min(waiting.len());
            taken.extend(waiting.drain(..turn));
            if waiting.is_empty() {
                self.clients.remove(&client_id);
            } else {
                self.turns.push_back(client_id);
            }
        }
        self.len -= taken.len();
        taken
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::refusal::Reason;
    use meterd_domain::event::{EventId, Measures, UsageEvent};
    use tokio::sync::oneshot;

    pub(in super::super) fn item(client_id: &str) -> Item {
        let time = chrono::DateTime::UNIX_EPOCH;
        let event = UsageEvent {
            client_id: client_id.into(),
            service: "s".into(),
            operation: "".into(),
            model: "".into(),
            measures: Measures::default(),
            event_time: time,
            idempotency_key: "k".into(),
            subject: String::new(),
            external_id: String::new(),
            metadata: None,
        };
        let submission = Box::new(Submission {
            event,
            id: EventId::new(time),
            payload_hash: [0; 17],
            backfill: false,
            refuse_if_new: None,
        });
        Item { submission, reply: Reply::One(oneshot::channel().0), queued_at: Instant::now() }
    }

    #[tokio::test]
    async fn a_hot_client_cannot_fill_its_neighbours_queue() {
        let queue = Queue::new(1_000);
        let mut hot = 0;
        while queue.push(item("hot")).is_ok() {
            hot += 1;
        }
        assert_eq!(hot, 500);
        assert_eq!(queue.push(item("hot")).unwrap_err().reason, Reason::QueueFull);
        assert!(queue.push(item("neighbour")).is_ok());
        let first = queue.take(100, 1);
        let of_neighbour = first.iter().filter(|item| &*item.submission.event.client_id == "neighbour").count();
        assert_eq!((first.len(), of_neighbour), (100, 1), "the neighbour has its turn in the first batch");
    }

    #[tokio::test]
    async fn who_waits_for_room_gets_in_when_the_writer_takes() {
        let queue = Arc::new(Queue::new(2));
        queue.push(item("a")).unwrap();
        let waiting = tokio::spawn({
            let queue = queue.clone();
            async move { queue.push_when_room(vec![item("a")], |_| {}).await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        assert_eq!(queue.take(10, 1).len(), 1);
        waiting.await.unwrap().unwrap();
        assert_eq!(queue.len(), 1);
    }

    #[tokio::test]
    async fn what_has_waited_since_a_time_is_taken_and_the_rest_keeps_its_turn() {
        let queue = Queue::new(100);
        let time = Instant::now();
        let at =
            |client_id, seconds| Item { queued_at: time + std::time::Duration::from_secs(seconds), ..item(client_id) };
        for (client_id, seconds) in [("a", 0), ("b", 0), ("a", 1), ("c", 2)] {
            queue.push(at(client_id, seconds)).unwrap();
        }
        assert_eq!(queue.take_queued_by(time).len(), 2);
        assert_eq!(queue.take_queued_by(time).len(), 0);
        queue.push(at("b", 3)).unwrap();
        let rest = queue.take(10, 1);
        let clients: Vec<_> = rest.iter().map(|item| &*item.submission.event.client_id).collect();
        assert_eq!((clients, queue.len()), (vec!["a", "c", "b"], 0));
    }

    #[tokio::test]
    async fn a_closed_queue_gives_what_it_has_and_takes_nothing() {
        let queue = Queue::new(10);
        queue.push(item("a")).unwrap();
        queue.close();
        assert_eq!(queue.push(item("a")).unwrap_err().reason, Reason::ShuttingDown);
        assert_eq!(queue.take(10, 1).len(), 1);
    }
}
