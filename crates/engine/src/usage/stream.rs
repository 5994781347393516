//! Records a stream of events, whose outcomes are returned in the order of the events.

use crate::auth::Caller;
use crate::engine::Engine;
use crate::fields::Path;
use crate::ingest::{Checked, Echo, EventChecks, Numbered, Outcome, Outcomes, RawEvent, Refused, SharedTexts};
use crate::refusal::Refusal;
use std::collections::VecDeque;

/// Records the events of a stream. They are numbered from 1.
pub struct EventStream<'a> {
    engine: &'a Engine,
    caller: &'a Caller,
    texts: SharedTexts,
    last_number: usize,
    outcomes: Outcomes,
}

impl<'a> EventStream<'a> {
    /// Starts a stream. The outcome of each event is sent to `outcomes` with its number.
    pub fn new(engine: &'a Engine, caller: &'a Caller, outcomes: Outcomes) -> Self {
        Self { engine, caller, texts: SharedTexts::default(), last_number: 0, outcomes }
    }

    /// Returns when the receiver of the outcomes is gone.
    pub async fn closed(&self) {
        self.outcomes.closed().await;
    }

    /// Checks and queues the next event. Waits if the queue has no room. Calls `keep` with the number of the event before its
    /// outcome is sent.
    pub async fn record(&mut self, event: RawEvent, keep: impl FnOnce(usize, Echo)) -> Result<(), Refusal> {
        let checks = EventChecks::new(self.engine, self.caller, std::iter::once(event.service.as_str()), false).await?;
        self.last_number += 1;
        let number = self.last_number;
        match checks.check(&mut self.texts, Path::Named("event"), event) {
            Err(Refused { key, error }) => {
                keep(number, Echo { key, ..Echo::default() });
                drop(self.outcomes.send(vec![(number, Outcome::Rejected(error))]));
                Ok(())
            }
            Ok(Checked { submission, echo }) => {
                keep(number, echo);
                self.engine.ingest.record_numbered(vec![(number, Box::new(submission))], &self.outcomes).await
            }
        }
    }
}

/// Collects outcomes as they come, and returns them in the order of their events.
#[derive(Debug, Default)]
pub struct InOrder {
    /// The number of the last event whose outcome was returned.
    settled: usize,
    /// Outcomes of the events after it. `None`: not known yet.
    known: VecDeque<Option<Outcome>>,
}

impl InOrder {
    /// Returns the number of the last event whose outcome was returned, or 0.
    pub fn settled(&self) -> usize {
        self.settled
    }

    /// Adds outcomes.
    pub fn add(&mut self, outcomes: Numbered) {
        for (number, outcome) in outcomes {
            let at = number - self.settled - 1;
            if self.known.len() <= at {
                self.known.resize_with(at + 1, || None);
            }
            self.known[at] = Some(outcome);
        }
    }

    /// Returns the number and the outcome of the next event, if its outcome is known.
    pub fn pop(&mut self) -> Option<(usize, Outcome)> {
        let outcome = self.known.front_mut()?.take()?;
        self.known.pop_front();
        self.settled += 1;
        Some((self.settled, outcome))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_are_returned_in_the_order_of_their_events() {
        let outcome = || Outcome::Rejected(Refusal::shutting_down());
        let mut in_order = InOrder::default();
        let numbers = |in_order: &mut InOrder| -> Vec<usize> {
            std::iter::from_fn(|| in_order.pop()).map(|(number, _)| number).collect()
        };
        in_order.add(vec![(3, outcome()), (2, outcome())]);
        assert!(numbers(&mut in_order).is_empty());
        in_order.add(vec![(1, outcome()), (5, outcome())]);
        assert_eq!(numbers(&mut in_order), [1, 2, 3]);
        in_order.add(vec![(4, outcome())]);
        assert_eq!(numbers(&mut in_order), [4, 5]);
        assert_eq!(in_order.settled(), 5);
    }
}
