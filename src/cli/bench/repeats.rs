//! Events that are sent again with their key, as callers do that have not heard of the first time.

/// Acknowledged events that a worker remembers, to send them again.
const REMEMBERED_MAX: usize = 1_000;

/// Chooses which events are sent again: each of them has been acknowledged before.
#[derive(Debug)]
pub struct Repeats<E> {
    percent: u32,
    acknowledged: Vec<E>,
}

impl<E: Clone> Repeats<E> {
    /// So many percent of the events are sent again.
    pub fn new(percent: u32) -> Self {
        Self { percent, acknowledged: vec![] }
    }

    /// An event to send, and whether it has been sent before.
    pub fn choose(&self, new: impl FnOnce() -> E) -> (E, bool) {
        if self.percent > 0 && !self.acknowledged.is_empty() && rand::random_range(0..100) < self.percent {
            (self.acknowledged[rand::random_range(0..self.acknowledged.len())].clone(), true)
        } else {
            (new(), false)
        }
    }

    /// A copy for [`Self::remember`], where one is needed.
    pub fn copy(&self, event: &E) -> Option<E> {
        (self.percent > 0).then(|| event.clone())
    }

    /// Remembers an event that was acknowledged, in place of any other where there are many.
    pub fn remember(&mut self, event: Option<E>) {
        let Some(event) = event else { return };
        if self.acknowledged.len() < REMEMBERED_MAX {
            self.acknowledged.push(event);
        } else {
            self.acknowledged[rand::random_range(0..REMEMBERED_MAX)] = event;
        }
    }
}
