//! The queue of one writer: bounded, and fair among clients.

use super::Item;
use foldhash::fast::RandomState;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

/// Maximum number of events of one client in its turn.
const TURN_EVENTS_MAX: usize = 64;

/// One queue per client, served round robin.
///
/// A client can have as many events as the queue has free room. So a single busy client gets half of the room, two get a third each,
/// and there is always room for a new client. (The dynamic threshold of shared-buffer switches; Choudhury and Hahne, 1998.)
#[derive(Debug)]
pub struct FairQueue {
    capacity: usize,
    len: usize,
    clients: HashMap<Arc<str>, VecDeque<Item>, RandomState>,
    /// Clients with events, in the order of their turns.
    turns: VecDeque<Arc<str>>,
    /// Clients whose months another transaction has locked. Their events are tried by the writer of this queue only, because
    /// another writer would only wait for the same lock.
    blocked: HashSet<Arc<str>>,
}

impl FairQueue {
    /// Creates a queue with room for `capacity` events.
    pub fn new(capacity: usize) -> Self {
        let (clients, turns, blocked) = (HashMap::default(), VecDeque::new(), HashSet::new());
        Self { capacity, len: 0, clients, turns, blocked }
    }

    /// Returns the number of events.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Adds an event, or returns it if its client has no room.
    pub fn push(&mut self, item: Item) -> Result<(), Item> {
        let free = self.capacity.saturating_sub(self.len);
        let client_id = &item.submission.event.client_id;
        match self.clients.get_mut(client_id) {
            Some(waiting) if waiting.len() >= free => return Err(item),
            Some(waiting) => waiting.push_back(item),
            None if free == 0 => return Err(item),
            None => {
                self.turns.push_back(client_id.clone());
                self.clients.insert(client_id.clone(), VecDeque::from([item]));
            }
        }
        self.len += 1;
        Ok(())
    }

    /// Puts events of one client, which were taken before, in front of its other events, even if their room is taken. The client
    /// is blocked, and its turn comes after the turns of all others.
    pub fn give_back(&mut self, items: Vec<Item>) {
        let Some(client_id) = items.first().map(|item| item.submission.event.client_id.clone()) else { return };
        self.len += items.len();
        let waiting = self.clients.entry(client_id.clone()).or_default();
        if waiting.is_empty() {
            self.turns.push_back(client_id.clone());
        }
        items.into_iter().rev().for_each(|item| waiting.push_front(item));
        self.blocked.insert(client_id);
    }

    /// Takes up to `max` events.
    pub fn take(&mut self, max: usize) -> Vec<Item> {
        let mut taken = Vec::with_capacity(max.min(self.len));
        while taken.len() < max
            && let Some(client_id) = self.turns.pop_front()
        {
            let waiting = self.clients.get_mut(&client_id).expect("a client with a turn has events");
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

    /// Takes all events that were queued at this time or before.
    pub fn take_queued_by(&mut self, time: Instant) -> Vec<Item> {
        let mut taken = vec![];
        self.clients.retain(|_, waiting| {
            // The oldest events come first.
            let old_count = waiting.iter().position(|item| item.queued_at > time).unwrap_or(waiting.len());
            taken.extend(waiting.drain(..old_count));
            !waiting.is_empty()
        });
        let clients = &self.clients;
        self.turns.retain(|client_id| clients.contains_key(client_id));
        self.len -= taken.len();
        taken
    }

    /// Returns the clients whose months another transaction has locked.
    pub fn blocked(&self) -> &HashSet<Arc<str>> {
        &self.blocked
    }

    /// Marks clients as not blocked, because events of them were written.
    pub fn unblock<'a>(&mut self, client_ids: impl Iterator<Item = &'a Arc<str>>) {
        client_ids.for_each(|client_id| {
            self.blocked.remove(client_id);
        });
    }

    /// Forgets blocked clients that have no events.
    pub fn forget_idle_blocked(&mut self) {
        let clients = &self.clients;
        self.blocked.retain(|client_id| clients.contains_key(client_id));
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::item;
    use super::*;
    use std::time::Duration;

    fn client_ids(items: &[Item]) -> Vec<&str> {
        items.iter().map(|item| &*item.submission.event.client_id).collect()
    }

    #[test]
    fn a_busy_client_leaves_room_for_others_and_has_no_more_turns_than_they() {
        let mut queue = FairQueue::new(1_000);
        let busy = (0..).take_while(|_| queue.push(item("busy")).is_ok()).count();
        assert_eq!(busy, 500);
        assert!(queue.push(item("other")).is_ok());
        let first = queue.take(100);
        let of_other = client_ids(&first).into_iter().filter(|id| *id == "other").count();
        assert_eq!((first.len(), of_other), (100, 1), "the other client has its turn in the first batch");
    }

    #[test]
    fn old_events_are_taken_and_the_others_keep_their_turns() {
        let mut queue = FairQueue::new(100);
        let time = Instant::now();
        let at = |client_id, seconds| Item { queued_at: time + Duration::from_secs(seconds), ..item(client_id) };
        for (client_id, seconds) in [("a", 0), ("b", 0), ("a", 1), ("c", 2)] {
            queue.push(at(client_id, seconds)).unwrap();
        }
        assert_eq!(queue.take_queued_by(time).len(), 2);
        assert_eq!(queue.take_queued_by(time).len(), 0);
        queue.push(at("b", 3)).unwrap();
        assert_eq!((client_ids(&queue.take(10)), queue.len()), (vec!["a", "c", "b"], 0));
    }

    #[test]
    fn events_that_are_given_back_come_first_of_their_client_and_after_other_clients() {
        let mut queue = FairQueue::new(4);
        let time = Instant::now();
        queue.push(Item { queued_at: time, ..item("a") }).unwrap();
        let taken = queue.take(1);
        for client_id in ["b", "c", "d", "a"] {
            queue.push(item(client_id)).unwrap();
        }
        queue.give_back(taken);
        assert_eq!(queue.len(), 5, "even if the queue is full");
        assert!(queue.blocked().contains("a"));
        let all = queue.take(10);
        assert_eq!(client_ids(&all), ["b", "c", "d", "a", "a"]);
        assert_eq!(all[3].queued_at, time);
        queue.forget_idle_blocked();
        assert!(queue.blocked().is_empty());
    }
}
