//! What waits for a writer: bounded, and fair among clients.

use super::{Reply, Submission, queue_full};
use crate::error::Error;
use foldhash::fast::RandomState;
use std::collections::{HashMap, VecDeque};
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
/// Of a queue with so many events, writers take that have none of their own: two transactions of a busy client are faster
/// than one, as only their last statements wait for each other. Fewer are left to their own writer: two transactions of a
/// few events are slower than one.
const SURPLUS_EVENTS_MIN: usize = 500;

/// A queue a client, served in turns.
///
/// A client may hold as much as is still free: a lone hot client gets half of the room, two get a third each, and a
/// newcomer always finds some. (The dynamic threshold of shared-buffer switches; Choudhury and Hahne, 1998.)
#[derive(Debug)]
pub(super) struct Queue {
    capacity: usize,
    state: Mutex<State>,
    /// Wakes the writer.
    filled: Notify,
    /// Wakes the writers of other queues; shared by all.
    surplus: Arc<Notify>,
    /// Wakes who waits for room.
    drained: Notify,
    /// Its writer holds back clients whose rows somebody holds: others would only wait for them too.
    is_held: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    clients: HashMap<Arc<str>, VecDeque<Item>, RandomState>,
    /// Clients with something waiting, in the order of their turns.
    turns: VecDeque<Arc<str>>,
    len: usize,
    closed: bool,
}

impl Queue {
    pub(super) fn new(capacity: usize, surplus: &Arc<Notify>) -> Self {
        let (filled, drained) = (Notify::new(), Notify::new());
        Self {
            capacity,
            state: Mutex::default(),
            filled,
            surplus: surplus.clone(),
            drained,
            is_held: AtomicBool::new(false),
        }
    }

    fn wake_writers(&self, events: usize) {
        self.filled.notify_one();
        if events >= SURPLUS_EVENTS_MIN {
            self.surplus.notify_waiters();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("queue is not poisoned")
    }

    pub(super) fn len(&self) -> usize {
        self.state().len
    }

    /// Takes nothing more, and lets the writer come to the end.
    pub(super) fn close(&self) {
        self.state().closed = true;
        self.filled.notify_one();
        self.drained.notify_waiters();
    }

    /// Queues an event, or says why not: no room for its client, or closed.
    pub(super) fn push(&self, item: Item) -> Result<(), Error> {
        let mut state = self.state();
        match state.push(item, self.capacity) {
            None => {}
            Some(_) if state.closed => return Err(Error::shutting_down()),
            Some(_) => return Err(queue_full()),
        }
        let len = state.len;
        drop(state);
        self.wake_writers(len);
        Ok(())
    }

    /// Queues events in order, each as soon as its client has room.
    pub(super) async fn push_when_room(&self, items: Vec<Item>) -> Result<(), Error> {
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
                    return Err(Error::shutting_down());
                }
                state.len
            };
            self.wake_writers(len);
            if next.is_some() {
                drained.await;
            }
        }
        Ok(())
    }

    /// Puts events of one client that were taken before the others of it again; its turn comes after all others'.
    /// They had their room, and get it back also where it is taken by now.
    pub(super) fn give_back(&self, items: Vec<Item>) {
        let Some(client_id) = items.first().map(|item| item.submission.event.client_id.clone()) else { return };
        let mut guard = self.state();
        let state = &mut *guard;
        state.len += items.len();
        let waiting = state.clients.entry(client_id.clone()).or_default();
        if waiting.is_empty() {
            state.turns.push_back(client_id);
        }
        items.into_iter().rev().for_each(|item| waiting.push_front(item));
        drop(guard);
        self.filled.notify_one();
    }

    /// Takes up to `max`, a turn a client, if there are so many.
    fn take(&self, max: usize, at_least: usize) -> Option<Vec<Item>> {
        let mut state = self.state();
        if state.len < at_least {
            return None;
        }
        let taken = state.take(max);
        drop(state);
        self.drained.notify_waiters();
        Some(taken)
    }

    fn is_closed(&self) -> bool {
        self.state().closed
    }

    /// Whether its writer holds clients back.
    pub(super) fn set_held(&self, is_held: bool) {
        self.is_held.store(is_held, Ordering::Relaxed);
    }

    fn take_surplus(&self, max: usize) -> Option<Vec<Item>> {
        if self.is_held.load(Ordering::Relaxed) { None } else { self.take(max, SURPLUS_EVENTS_MIN) }
    }
}

/// Waits until something is there, and takes up to `max` of it: of the writer's own queue, or of another's surplus. Nothing:
/// its own is closed and empty.
pub(super) async fn take(queues: &[Arc<Queue>], own: usize, max: usize) -> Option<Vec<Item>> {
    let Queue { filled, surplus, .. } = &*queues[own];
    loop {
        // Registered before the look, so that what comes in between wakes it.
        let more = surplus.notified();
        // Asked first: nothing comes in after it.
        let closed = queues[own].is_closed();
        let taken = queues[own].take(max, 1);
        let taken = taken.or_else(|| queues.iter().find_map(|queue| queue.take_surplus(max)));
        if taken.is_some() || closed {
            return taken;
        }
        tokio::select! {
            () = filled.notified() => {}
            () = more => {}
        }
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
mod tests {
    use super::*;
    use crate::domain::event::{EventId, Measures, UsageEvent};
    use tokio::sync::oneshot;

    fn item(client_id: &str) -> Item {
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

    fn queue_of(capacity: usize) -> Queue {
        Queue::new(capacity, &Arc::default())
    }

    #[tokio::test]
    async fn a_writer_without_work_takes_of_a_neighbours_surplus_only() {
        let surplus = Arc::default();
        let queues = [0, 1].map(|_| Arc::new(Queue::new(10_000, &surplus)));
        let idle = tokio::spawn({
            let queues = queues.clone();
            async move { take(&queues, 1, 100).await.unwrap().len() }
        });
        let some = (1..SURPLUS_EVENTS_MIN).map(|_| item("hot")).collect();
        queues[0].push_when_room(some).await.unwrap();
        tokio::task::yield_now().await;
        assert!(!idle.is_finished());
        queues[0].push(item("hot")).unwrap();
        assert_eq!(idle.await.unwrap(), 100);
        assert_eq!(queues[0].len(), SURPLUS_EVENTS_MIN - 100);
        queues[0].push_when_room((0..SURPLUS_EVENTS_MIN).map(|_| item("hot")).collect()).await.unwrap();
        queues[0].set_held(true);
        assert!(queues[0].take_surplus(100).is_none());
    }

    #[tokio::test]
    async fn a_hot_client_cannot_fill_its_neighbours_queue() {
        let queue = queue_of(1_000);
        let mut hot = 0;
        while queue.push(item("hot")).is_ok() {
            hot += 1;
        }
        assert_eq!(hot, 500);
        assert_eq!(queue.push(item("hot")).unwrap_err().code, tonic::Code::ResourceExhausted);
        assert!(queue.push(item("neighbour")).is_ok());
        let first = queue.take(100, 1).unwrap();
        let of_neighbour = first.iter().filter(|item| &*item.submission.event.client_id == "neighbour").count();
        assert_eq!((first.len(), of_neighbour), (100, 1), "the neighbour has its turn in the first batch");
    }

    #[tokio::test]
    async fn who_waits_for_room_gets_in_when_the_writer_takes() {
        let queue = Arc::new(queue_of(2));
        queue.push(item("a")).unwrap();
        let waiting = tokio::spawn({
            let queue = queue.clone();
            async move { queue.push_when_room(vec![item("a")]).await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        assert_eq!(queue.take(10, 1).unwrap().len(), 1);
        waiting.await.unwrap().unwrap();
        assert_eq!(queue.len(), 1);
    }

    #[tokio::test]
    async fn a_closed_queue_gives_what_it_has_and_takes_nothing() {
        let queue = queue_of(10);
        queue.push(item("a")).unwrap();
        queue.close();
        assert_eq!(queue.push(item("a")).unwrap_err().code, tonic::Code::Unavailable);
        assert_eq!(queue.take(10, 1).unwrap().len(), 1);
        assert!(take(&[queue.into()], 0, 10).await.is_none());
    }
}
