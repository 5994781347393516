//! Events that are sent again with the same key, as after a lost answer.

/// Most acknowledged events that a worker keeps, to send them again.
const REMEMBERED_MAX: usize = 1_000;

/// Chooses the events to send again among the acknowledged ones.
#[derive(Debug)]
pub struct Repeats<E> {
    percent: u32,
    acknowledged: Vec<E>,
}

impl<E: Clone> Repeats<E> {
    /// Sends this percentage of the events again.
    pub fn new(percent: u32) -> Self {
        Self { percent, acknowledged: vec![] }
    }

    /// Returns an event to send, and whether it was sent before.
    pub fn choose(&self, new: impl FnOnce() -> E) -> (E, bool) {
        if self.percent > 0 && !self.acknowledged.is_empty() && rand::random_range(0..100) < self.percent {
            (self.acknowledged[rand::random_range(0..self.acknowledged.len())].clone(), true)
        } else {
            (new(), false)
        }
    }

    /// A copy for [`Self::remember`], if events are sent again.
    pub fn copy(&self, event: &E) -> Option<E> {
        (self.percent > 0).then(|| event.clone())
    }

    /// Keeps an acknowledged event. If there are too many, it replaces a random one.
    pub fn remember(&mut self, event: Option<E>) {
        let Some(event) = event else { return };
        if self.acknowledged.len() < REMEMBERED_MAX {
            self.acknowledged.push(event);
        } else {
            self.acknowledged[rand::random_range(0..REMEMBERED_MAX)] = event;
        }
    }
}
