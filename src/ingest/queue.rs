//! What waits for a writer: bounded, and fair among clients.

use super::{Reply, Submission, queue_full};
use crate::error::Error;
use foldhash::fast::RandomState;
use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::BuildHasher;
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
/// than one, as only their last statements wait for each other. Fewer are left to their own writer.
const SURPLUS_EVENTS_MIN: usize = 500;
/// So many are worth a transaction beside the first writer's. It takes along what is fewer: two transactions of a few events
/// are slower than one, and what half of the callers have waits no longer for the other half's.
const BESIDE_EVENTS_MIN: usize = 50;

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
    writers: Arc<Writers>,
    /// Wakes who waits for room.
    drained: Notify,
    /// It has clients whose rows somebody holds: others than its writer would only wait for them too. Changed under the lock.
    is_held: AtomicBool,
    /// Its writer is at work.
    at_work: AtomicBool,
    /// Its writer is the first.
    is_first: bool,
}

/// What the writers of one process know of each other.
#[derive(Debug, Default)]
struct Writers {
    /// Wakes the first one.
    first: Notify,
    /// Wakes all: somewhere is a surplus, or the first one is slow.
    all: Notify,
    /// The first one takes nothing along for now: it has been at one batch for long, or has enough of its own, or is gone.
    first_is_slow: AtomicBool,
    /// The first one has clients whose rows somebody holds.
    first_is_held: AtomicBool,
}

impl Writers {
    /// Whether few events are left to the first writer.
    fn await_first(&self) -> bool {
        !self.first_is_slow.load(Ordering::Relaxed) && !self.first_is_held.load(Ordering::Relaxed)
    }
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
    fn new(capacity: usize, writers: &Arc<Writers>, is_first: bool) -> Self {
        let (filled, drained) = (Notify::new(), Notify::new());
        let (state, writers) = (Mutex::default(), writers.clone());
        let (is_held, at_work) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { capacity, state, filled, writers, drained, is_held, at_work, is_first }
    }

    fn wake_writers(&self, events: usize) {
        self.writers.first.notify_one();
        if events >= BESIDE_EVENTS_MIN || !self.awaits_first() {
            self.filled.notify_one();
        }
        if events >= SURPLUS_EVENTS_MIN {
            self.writers.all.notify_waiters();
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
        self.writers.first.notify_one();
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

    /// Whether few events are left to the first writer.
    fn awaits_first(&self) -> bool {
        !self.is_held() && self.writers.await_first()
    }

    /// With the state locked.
    fn set_held(&self, _: &State, is_held: bool) {
        self.is_held.store(is_held, Ordering::Relaxed);
        if self.is_first && self.writers.first_is_held.swap(is_held, Ordering::Relaxed) != is_held {
            self.writers.all.notify_waiters();
        }
    }

    /// What its writer knows of clients whose rows somebody holds: with those that others gave back, and without those of
    /// whom nobody waits for an answer any more.
    pub(super) fn know_held(&self, held_clients: &mut HashSet<Arc<str>>) {
        let mut state = self.state();
        held_clients.extend(state.given_back.drain(..));
        held_clients.retain(|client_id| state.clients.contains_key(client_id));
        self.set_held(&state, !held_clients.is_empty());
    }

    /// Puts events of one client that were taken before the others of it again; its turn comes after all others'.
    /// They had their room, and get it back also where it is taken by now. By another than its own writer only as long as
    /// that is sure to come: else they are what it gives.
    fn give_back(&self, items: Vec<Item>, by_another: bool) -> Result<(), Vec<Item>> {
        let Some(client_id) = items.first().map(|item| item.submission.event.client_id.clone()) else { return Ok(()) };
        let mut guard = self.state();
        let state = &mut *guard;
        if by_another && state.closed {
            return Err(items);
        }
        if by_another {
            state.given_back.push(client_id.clone());
            self.set_held(state, true);
        }
        state.len += items.len();
        let waiting = state.clients.entry(client_id.clone()).or_default();
        if waiting.is_empty() {
            state.turns.push_back(client_id);
        }
        items.into_iter().rev().for_each(|item| waiting.push_front(item));
        let len = state.len;
        drop(guard);
        self.wake_writers(len);
        Ok(())
    }

    /// Takes up to `max`, a turn a client, if there are so many.
    fn take(&self, max: usize, at_least: usize) -> Option<Vec<Item>> {
        let mut state = self.state();
        if state.len < at_least || max == 0 {
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

    fn is_held(&self) -> bool {
        self.is_held.load(Ordering::Relaxed)
    }

    fn take_for_another(&self, max: usize, at_least: usize) -> Option<Vec<Item>> {
        if self.is_held() { None } else { self.take(max, at_least) }
    }
}

/// The queues of all writers, each with the number of its own. Number 0 is the first writer.
#[derive(Debug)]
pub(super) struct Queues {
    pub each: Vec<Queue>,
    writers: Arc<Writers>,
    /// Of client ids.
    hasher: RandomState,
}

impl Queues {
    /// So many, each with room for so much.
    pub(super) fn new(count: usize, capacity: usize) -> Self {
        let writers = Arc::default();
        let each = (0..count).map(|number| Queue::new(capacity, &writers, number == 0)).collect();
        Self { each, writers, hasher: RandomState::default() }
    }

    /// The number of a client's queue.
    pub(super) fn number_of(&self, client_id: &str) -> usize {
        self.hasher.hash_one(client_id) as usize % self.each.len()
    }

    /// Gives events of one client, whose rows somebody holds, back to its queue, for that one's writer to try; or, where it
    /// may have come to its end, to the queue of this number. True, if it is this one.
    pub(super) fn give_back(&self, own: usize, items: Vec<Item>) -> bool {
        let home = items.first().map_or(own, |item| self.number_of(&item.submission.event.client_id));
        let kept = if home == own { Err(items) } else { self.each[home].give_back(items, true) };
        kept.is_err_and(|items| self.each[own].give_back(items, false).is_ok())
    }

    /// Waits until something is there, and takes up to `max` of it. Nothing: the writer's own queue is closed and empty.
    ///
    /// The first writer takes of its own queue, and along with it of those whose writers are not at work. Another one takes
    /// what is worth a transaction of its own. Who finds nothing takes of a surplus, and what is few in its own queue with it.
    pub(super) async fn take(&self, own: usize, max: usize) -> Option<(Vec<Item>, AtWork<'_>)> {
        let Writers { first, all, .. } = &*self.writers;
        let filled = if own == 0 { first } else { &self.each[own].filled };
        loop {
            // Registered before the look, so that what comes in between wakes it.
            let all = all.notified();
            // Asked first: nothing comes in after it.
            let closed = self.each[own].is_closed();
            let taken = self.take_now(own, max, closed);
            if !taken.is_empty() {
                return Some((taken, AtWork::begin(self, own)));
            }
            if closed {
                return None;
            }
            tokio::select! {
                () = filled.notified() => {}
                () = all => {}
            }
        }
    }

    fn take_now(&self, own: usize, max: usize, closed: bool) -> Vec<Item> {
        let few_wait = own > 0 && !closed && self.each[own].awaits_first();
        let mut taken = self.each[own].take(max, if few_wait { BESIDE_EVENTS_MIN } else { 1 }).unwrap_or_default();
        if taken.is_empty() && self.each.iter().any(|queue| queue.len() >= SURPLUS_EVENTS_MIN && !queue.is_held()) {
            // Who goes to work leaves nothing of its own behind.
            taken = self.each[own].take(max, 1).unwrap_or_default();
            let surplus = |queue: &Queue| queue.take_for_another(max - taken.len(), SURPLUS_EVENTS_MIN);
            taken.extend(self.each.iter().find_map(surplus).into_iter().flatten());
        }
        if own == 0 && !self.each[0].is_held() {
            for queue in self.each[1..].iter().filter(|queue| !queue.at_work.load(Ordering::Relaxed)) {
                taken.extend(queue.take_for_another(max - taken.len(), 1).into_iter().flatten());
            }
            if taken.len() == max {
                self.first_is_slow();
            }
        }
        taken
    }

    /// Nobody waits for the first writer until it comes again.
    fn first_is_slow(&self) {
        self.writers.first_is_slow.store(true, Ordering::Relaxed);
        self.writers.all.notify_waiters();
    }
}

/// A writer at work, until it is dropped.
pub(super) struct AtWork<'a> {
    queues: &'a Queues,
    own: usize,
}

impl<'a> AtWork<'a> {
    fn begin(queues: &'a Queues, own: usize) -> Self {
        queues.each[own].at_work.store(true, Ordering::Relaxed);
        Self { queues, own }
    }

    /// It takes long: the others are not to wait for it.
    pub(super) fn is_slow(&self) {
        if self.own == 0 {
            self.queues.first_is_slow();
        }
    }
}

impl Drop for AtWork<'_> {
    fn drop(&mut self) {
        let Queues { each, writers, .. } = self.queues;
        each[self.own].at_work.store(false, Ordering::Relaxed);
        match self.own {
            // One that has panicked does not come back.
            0 if std::thread::panicking() => self.queues.first_is_slow(),
            0 => writers.first_is_slow.store(false, Ordering::Relaxed),
            // It may be waiting for what is few in this queue.
            _ => writers.first.notify_one(),
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
    use std::time::Duration;
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
        Queue::new(capacity, &Arc::default(), true)
    }

    fn hold(queue: &Queue) {
        queue.set_held(&queue.state(), true);
    }

    fn items(count: usize) -> Vec<Item> {
        (0..count).map(|_| item("hot")).collect()
    }

    #[tokio::test]
    async fn a_writer_without_work_takes_of_a_neighbours_surplus_only() {
        let queues = Arc::new(Queues::new(2, 10_000));
        let idle = tokio::spawn({
            let queues = queues.clone();
            async move { queues.take(1, 100).await.unwrap().0.len() }
        });
        queues.each[0].push_when_room(items(SURPLUS_EVENTS_MIN - 1)).await.unwrap();
        tokio::task::yield_now().await;
        assert!(!idle.is_finished());
        queues.each[0].push(item("hot")).unwrap();
        assert_eq!(idle.await.unwrap(), 100);
        assert_eq!(queues.each[0].len(), SURPLUS_EVENTS_MIN - 100);
        queues.each[0].push_when_room(items(SURPLUS_EVENTS_MIN)).await.unwrap();
        hold(&queues.each[0]);
        assert!(queues.take_now(1, 100, false).is_empty());
    }

    /// Takes what there is at once.
    async fn now(queues: &Queues, own: usize) -> Option<(usize, AtWork<'_>)> {
        let taken = tokio::time::timeout(Duration::ZERO, queues.take(own, 1_000)).await.ok()??;
        Some((taken.0.len(), taken.1))
    }

    #[tokio::test]
    async fn the_first_writer_takes_along_what_is_few_in_other_queues() {
        let queues = Queues::new(2, 10_000);
        queues.each[0].push(item("a")).unwrap();
        queues.each[1].push_when_room(items(BESIDE_EVENTS_MIN - 1)).await.unwrap();
        assert!(now(&queues, 1).await.is_none(), "fewer than are worth a transaction");
        assert_eq!(now(&queues, 0).await.unwrap().0, BESIDE_EVENTS_MIN);

        queues.each[1].push_when_room(items(BESIDE_EVENTS_MIN)).await.unwrap();
        let (taken, second) = now(&queues, 1).await.unwrap();
        assert_eq!(taken, BESIDE_EVENTS_MIN);
        queues.each[0].push(item("a")).unwrap();
        queues.each[1].push(item("b")).unwrap();
        assert_eq!(now(&queues, 0).await.unwrap().0, 1, "the other's clients, while it is at work, are its own");
        assert!(now(&queues, 0).await.is_none());
        drop(second);
        assert_eq!(now(&queues, 0).await.unwrap().0, 1, "and then not any more");
    }

    #[tokio::test]
    async fn few_events_are_left_behind_by_nobody() {
        let queues = Queues::new(3, 10_000);
        queues.each[1].push_when_room(items(BESIDE_EVENTS_MIN)).await.unwrap();
        let _second = now(&queues, 1).await.unwrap();
        queues.each[2].push(item("c")).unwrap();
        let (taken, first) = now(&queues, 0).await.unwrap();
        assert_eq!(taken, 1, "who is at work with its own queue stands in no other's way");
        drop(first);

        queues.each[2].push(item("c")).unwrap();
        queues.each[0].push_when_room(items(SURPLUS_EVENTS_MIN)).await.unwrap();
        assert_eq!(queues.take_now(2, 10_000, false).len(), SURPLUS_EVENTS_MIN + 1, "before another's surplus");

        queues.each[0].push_when_room(items(100)).await.unwrap();
        queues.each[2].push(item("c")).unwrap();
        let at_work = AtWork::begin(&queues, 0);
        assert_eq!(queues.take_now(0, 100, false).len(), 100);
        assert_eq!(now(&queues, 2).await.unwrap().0, 1, "the first has no room for it");
        drop(at_work);
        assert!(queues.writers.await_first());
    }

    #[tokio::test]
    async fn a_held_client_goes_back_to_its_own_queue_and_is_tried_there() {
        let queues = Arc::new(Queues::new(2, 10_000));
        let of = |number| (0..).map(|id| format!("c{id}")).find(|id| queues.number_of(id) == number).unwrap();
        let second = tokio::spawn({
            let queues = queues.clone();
            async move { queues.take(1, 100).await.unwrap().0.len() }
        });
        tokio::task::yield_now().await;
        assert!(!queues.give_back(0, vec![item(&of(1))]));
        assert!(now(&queues, 0).await.is_none(), "not by the first writer again");
        assert_eq!(second.await.unwrap(), 1);
        let mut held = HashSet::new();
        assert!(!queues.give_back(0, vec![item(&of(1))]));
        queues.each[1].know_held(&mut held);
        assert!(held.contains(&*of(1)), "given back while the own writer was at something else");
        assert!(now(&queues, 0).await.is_none(), "and not forgotten");
        assert_eq!(now(&queues, 1).await.unwrap().0, 1, "also where it is all that there is");
        assert!(queues.give_back(1, vec![item(&of(1))]));
        assert_eq!(now(&queues, 1).await.unwrap().0, 1);
        queues.each[1].know_held(&mut held);
        assert!(held.is_empty() && !queues.each[1].is_held(), "once nobody waits");

        queues.each[1].close();
        assert!(queues.give_back(0, vec![item(&of(1))]), "a closed one's writer may have gone");
        assert_eq!(now(&queues, 0).await.unwrap().0, 1);
    }

    #[tokio::test]
    async fn nobody_waits_for_a_first_writer_that_is_slow_or_holds_clients_back() {
        let queues = Queues::new(2, 10_000);
        queues.each[0].push(item("a")).unwrap();
        let (_, first) = now(&queues, 0).await.unwrap();
        queues.each[1].push(item("b")).unwrap();
        assert!(now(&queues, 1).await.is_none());
        first.is_slow();
        assert_eq!(now(&queues, 1).await.unwrap().0, 1);
        drop(first);
        assert!(queues.writers.await_first());
        let queues = Arc::new(queues);
        let second = tokio::spawn({
            let queues = queues.clone();
            async move { queues.take(1, 100).await.unwrap().0.len() }
        });
        tokio::task::yield_now().await;
        hold(&queues.each[0]);
        tokio::task::yield_now().await;
        queues.each[1].push(item("b")).unwrap();
        assert!(now(&queues, 0).await.is_none());
        assert_eq!(second.await.unwrap(), 1);
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
        let queues = Queues::new(2, 10);
        queues.each[1].push(item("a")).unwrap();
        queues.each.iter().for_each(Queue::close);
        assert_eq!(now(&queues, 1).await.unwrap().0, 1, "also where few are left");
        assert!(queues.take(0, 10).await.is_none() && queues.take(1, 10).await.is_none());
    }
}
