//! What waits for each writer, and which writer takes what.

use super::queue::{Item, Queue};
use crate::refusal::Refusal;
use foldhash::fast::RandomState;
use futures_util::future::try_join_all;
use std::collections::HashSet;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Of a queue with so many events, writers take that have none of their own: two transactions of a busy client are faster
/// than one, as only their last statements wait for each other. Fewer are left to their own writer.
const SURPLUS_EVENTS_MIN: usize = 500;
/// So many are worth a transaction beside the first writer's. It takes along what is fewer: two transactions of a few events
/// are slower than one, and what half of the callers have waits no longer for the other half's.
const BESIDE_EVENTS_MIN: usize = 50;

/// The queues of all writers, each with the number of its own. Number 0 is the first writer.
#[derive(Debug)]
pub(super) struct Queues {
    each: Vec<Queue>,
    /// Whose writers are at work.
    at_work: Vec<AtomicBool>,
    /// The first writer leaves the others' few events to them until it comes again: it has been at one batch for long, or has
    /// enough of its own, or is gone.
    first_is_slow: AtomicBool,
    /// Wakes all writers: somewhere is a surplus, or nobody waits for the first one.
    all: Notify,
    /// Of client ids.
    hasher: RandomState,
}

impl Queues {
    /// So many, each with room for so much.
    pub(super) fn new(count: usize, capacity: usize) -> Self {
        Self {
            each: (0..count).map(|_| Queue::new(capacity)).collect(),
            at_work: (0..count).map(|_| AtomicBool::new(false)).collect(),
            first_is_slow: AtomicBool::new(false),
            all: Notify::new(),
            hasher: RandomState::default(),
        }
    }

    /// How many writers there are.
    pub(super) fn count(&self) -> usize {
        self.each.len()
    }

    /// How many events wait.
    pub(super) fn len(&self) -> usize {
        self.each.iter().map(Queue::len).sum()
    }

    /// Takes nothing more, and lets the writers come to their end.
    pub(super) fn close(&self) {
        self.each.iter().for_each(Queue::close);
        self.each.iter().for_each(|queue| queue.filled.notify_one());
    }

    /// The number of the queue of this event's client.
    fn number_of(&self, item: &Item) -> usize {
        self.hasher.hash_one(&item.submission.event.client_id) as usize % self.each.len()
    }

    /// Queues an event, or says why not: no room for its client, or closed.
    pub(super) fn push(&self, item: Item) -> Result<(), Refusal> {
        let number = self.number_of(&item);
        self.each[number].push(item).map(|waiting| self.wake(number, waiting))
    }

    /// Queues events, those of a client in order, each as soon as its client has room.
    pub(super) async fn push_when_room(&self, items: impl ExactSizeIterator<Item = Item>) -> Result<(), Refusal> {
        let each = items.len() / self.each.len() + 1;
        let mut of_queues: Vec<Vec<Item>> = self.each.iter().map(|_| Vec::with_capacity(each)).collect();
        items.for_each(|item| of_queues[self.number_of(&item)].push(item));
        let pushing = of_queues
            .into_iter()
            .enumerate()
            .map(|(number, items)| self.each[number].push_when_room(items, move |waiting| self.wake(number, waiting)));
        try_join_all(pushing).await.map(drop)
    }

    /// Wakes who is to take of this queue, where so many wait.
    fn wake(&self, number: usize, waiting: usize) {
        self.each[0].filled.notify_one();
        if waiting >= BESIDE_EVENTS_MIN || !self.awaits_first(number) {
            self.each[number].filled.notify_one();
        }
        if waiting >= SURPLUS_EVENTS_MIN {
            self.all.notify_waiters();
        }
    }

    /// Whether few events of this queue are left to the first writer.
    fn awaits_first(&self, number: usize) -> bool {
        !self.each[number].is_held() && !self.each[0].is_held() && !self.first_is_slow.load(Ordering::Relaxed)
    }

    /// Nobody waits for the first writer until it comes again.
    fn set_first_is_slow(&self) {
        self.first_is_slow.store(true, Ordering::Relaxed);
        self.all.notify_waiters();
    }

    /// Gives events of one client, whose rows somebody holds, back to its queue, for that one's writer to try; or, where it
    /// may have come to its end, to the queue of this number. True, if it is this one.
    pub(super) fn give_back(&self, own: usize, items: Vec<Item>) -> bool {
        let home = items.first().map_or(own, |item| self.number_of(item));
        let given = if home == own { Err(items) } else { self.each[home].give_back(items, true) };
        let number = if given.is_ok() { home } else { own };
        if let Ok(waiting) = given.or_else(|items| self.each[own].give_back(items, false)) {
            self.wake(number, waiting);
        }
        // Nobody waits for a first writer that is held up.
        self.all.notify_waiters();
        number == own
    }

    /// Takes the events of a writer's own queue that have waited for so long.
    pub(super) fn take_expired(&self, own: usize, waited: Duration) -> Vec<Item> {
        Instant::now().checked_sub(waited).map_or(vec![], |time| self.each[own].take_queued_by(time))
    }

    /// What the writer of this number knows of clients whose rows somebody holds.
    pub(super) fn know_held(&self, own: usize, held_clients: &mut HashSet<Arc<str>>) {
        let was_held = self.each[own].is_held();
        self.each[own].know_held(held_clients);
        if own == 0 && self.each[0].is_held() != was_held {
            self.all.notify_waiters();
        }
    }

    /// Waits until something is there, and takes up to `max` of it. Nothing: the writer's own queue is closed and empty.
    ///
    /// The first writer takes of its own queue, and along with it of those whose writers are not at work. Another one takes
    /// what is worth a transaction of its own. Who finds nothing takes of a surplus, and what is few in its own queue with it.
    pub(super) async fn take(&self, own: usize, max: usize) -> Option<(Vec<Item>, AtWork<'_>)> {
        loop {
            // Registered before the look, so that what comes in between wakes it.
            let all = self.all.notified();
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
                () = self.each[own].filled.notified() => {}
                () = all => {}
            }
        }
    }

    fn take_now(&self, own: usize, max: usize, closed: bool) -> Vec<Item> {
        let few_wait = own > 0 && !closed && self.awaits_first(own);
        let mut taken = self.each[own].take(max, if few_wait { BESIDE_EVENTS_MIN } else { 1 });
        let has_surplus = |queue: &&Queue| !queue.is_held() && queue.len() >= SURPLUS_EVENTS_MIN;
        if taken.is_empty()
            && let Some(surplus) = self.each.iter().find(has_surplus)
        {
            // Who goes to work leaves nothing of its own behind.
            taken = self.each[own].take(max, 1);
            taken.extend(surplus.take(max - taken.len(), 1));
        }
        if own == 0 && !self.each[0].is_held() {
            let idle = |number: &usize| !self.at_work[*number].load(Ordering::Relaxed) && !self.each[*number].is_held();
            for number in (1..self.each.len()).filter(idle) {
                taken.extend(self.each[number].take(max - taken.len(), 1));
            }
            if taken.len() == max {
                self.set_first_is_slow();
            }
        }
        taken
    }
}

/// A writer at work, until it is dropped.
pub(super) struct AtWork<'a> {
    queues: &'a Queues,
    own: usize,
}

impl<'a> AtWork<'a> {
    fn begin(queues: &'a Queues, own: usize) -> Self {
        queues.at_work[own].store(true, Ordering::Relaxed);
        Self { queues, own }
    }

    /// It takes long: the others are not to wait for it.
    pub(super) fn is_slow(&self) {
        if self.own == 0 {
            self.queues.set_first_is_slow();
        }
    }
}

impl Drop for AtWork<'_> {
    fn drop(&mut self) {
        let Queues { each, at_work, first_is_slow, .. } = self.queues;
        at_work[self.own].store(false, Ordering::Relaxed);
        match self.own {
            // One that has panicked does not come back.
            0 if std::thread::panicking() => self.queues.set_first_is_slow(),
            0 => first_is_slow.store(false, Ordering::Relaxed),
            // The first may be waiting for what is few in this queue.
            _ => each[0].filled.notify_one(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::queue::tests::item;
    use super::*;
    use std::time::Duration;

    /// Puts events into a queue, whosever they are.
    fn put(queues: &Queues, number: usize, items: Vec<Item>) {
        items.into_iter().for_each(|item| queues.wake(number, queues.each[number].push(item).unwrap()));
    }

    /// A client of this queue, with one event.
    fn client_of(queues: &Queues, number: usize) -> Vec<Item> {
        vec![(0..).map(|id| item(&format!("c{id}"))).find(|item| queues.number_of(item) == number).unwrap()]
    }

    fn hold_first(queues: &Queues) {
        assert!(!queues.give_back(1, client_of(queues, 0)), "it goes to the first writer's queue");
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
        put(&queues, 0, items(SURPLUS_EVENTS_MIN - 1));
        tokio::task::yield_now().await;
        assert!(!idle.is_finished());
        put(&queues, 0, vec![item("hot")]);
        assert_eq!(idle.await.unwrap(), 100);
        assert_eq!(queues.each[0].len(), SURPLUS_EVENTS_MIN - 100);
        put(&queues, 0, items(SURPLUS_EVENTS_MIN));
        hold_first(&queues);
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
        put(&queues, 0, vec![item("a")]);
        put(&queues, 1, items(BESIDE_EVENTS_MIN - 1));
        assert!(now(&queues, 1).await.is_none(), "fewer than are worth a transaction");
        assert_eq!(now(&queues, 0).await.unwrap().0, BESIDE_EVENTS_MIN);

        put(&queues, 1, items(BESIDE_EVENTS_MIN));
        let (taken, second) = now(&queues, 1).await.unwrap();
        assert_eq!(taken, BESIDE_EVENTS_MIN);
        put(&queues, 0, vec![item("a")]);
        put(&queues, 1, vec![item("b")]);
        assert_eq!(now(&queues, 0).await.unwrap().0, 1, "the other's clients, while it is at work, are its own");
        assert!(now(&queues, 0).await.is_none());
        drop(second);
        assert_eq!(now(&queues, 0).await.unwrap().0, 1, "and then not any more");
    }

    #[tokio::test]
    async fn few_events_are_left_behind_by_nobody() {
        let queues = Queues::new(3, 10_000);
        put(&queues, 1, items(BESIDE_EVENTS_MIN));
        let _second = now(&queues, 1).await.unwrap();
        put(&queues, 2, vec![item("c")]);
        let (taken, first) = now(&queues, 0).await.unwrap();
        assert_eq!(taken, 1, "who is at work with its own queue stands in no other's way");
        drop(first);

        put(&queues, 2, vec![item("c")]);
        put(&queues, 0, items(SURPLUS_EVENTS_MIN));
        assert_eq!(queues.take_now(2, 10_000, false).len(), SURPLUS_EVENTS_MIN + 1, "before another's surplus");

        put(&queues, 0, items(100));
        put(&queues, 2, vec![item("c")]);
        let at_work = AtWork::begin(&queues, 0);
        assert_eq!(queues.take_now(0, 100, false).len(), 100);
        assert_eq!(now(&queues, 2).await.unwrap().0, 1, "the first has no room for it");
        drop(at_work);
        assert!(queues.awaits_first(1));
    }

    #[tokio::test]
    async fn a_held_client_goes_back_to_its_own_queue_and_is_tried_there() {
        let queues = Arc::new(Queues::new(2, 10_000));
        let second = tokio::spawn({
            let queues = queues.clone();
            async move { queues.take(1, 100).await.unwrap().0.len() }
        });
        tokio::task::yield_now().await;
        assert!(!queues.give_back(0, client_of(&queues, 1)));
        assert!(now(&queues, 0).await.is_none(), "not by the first writer again");
        assert_eq!(second.await.unwrap(), 1);
        let mut held = HashSet::new();
        assert!(!queues.give_back(0, client_of(&queues, 1)));
        queues.know_held(1, &mut held);
        assert_eq!(held.len(), 1, "given back while the own writer was at something else");
        assert!(now(&queues, 0).await.is_none(), "and not forgotten");
        assert_eq!(now(&queues, 1).await.unwrap().0, 1, "also where it is all that there is");
        assert!(queues.give_back(1, client_of(&queues, 1)));
        assert_eq!(now(&queues, 1).await.unwrap().0, 1);
        queues.know_held(1, &mut held);
        assert!(held.is_empty() && !queues.each[1].is_held(), "once nobody waits");

        queues.each[1].close();
        assert!(queues.give_back(0, client_of(&queues, 1)), "a closed one's writer may have gone");
        assert_eq!(now(&queues, 0).await.unwrap().0, 1);
    }

    #[tokio::test]
    async fn nobody_waits_for_a_first_writer_that_is_slow_or_holds_clients_back() {
        let queues = Queues::new(2, 10_000);
        put(&queues, 0, vec![item("a")]);
        let (_, first) = now(&queues, 0).await.unwrap();
        put(&queues, 1, vec![item("b")]);
        assert!(now(&queues, 1).await.is_none());
        first.is_slow();
        assert_eq!(now(&queues, 1).await.unwrap().0, 1);
        drop(first);
        assert!(queues.awaits_first(1));
        let queues = Arc::new(queues);
        let second = tokio::spawn({
            let queues = queues.clone();
            async move { queues.take(1, 100).await.unwrap().0.len() }
        });
        tokio::task::yield_now().await;
        hold_first(&queues);
        tokio::task::yield_now().await;
        put(&queues, 1, vec![item("b")]);
        assert_eq!(now(&queues, 0).await.unwrap().0, 1, "only what is its own");
        assert_eq!(second.await.unwrap(), 1);
    }

    #[tokio::test]
    async fn closed_queues_give_what_they_have() {
        let queues = Queues::new(2, 10);
        put(&queues, 1, vec![item("a")]);
        queues.close();
        assert_eq!(now(&queues, 1).await.unwrap().0, 1, "also where few are left");
        assert!(queues.take(0, 10).await.is_none() && queues.take(1, 10).await.is_none());
    }
}
