//! Dates events: each gets its day in the client's time zone, and a refusal if it cannot be recorded as a new event.

use super::Submission;
use crate::ledger::ClientSettings;
use crate::refusal::Refusal;
use chrono::NaiveDate;
use chrono_tz::Tz;
use foldhash::fast::RandomState;
use meterd_domain::event::EVENT_LEAD_MAX;
use meterd_domain::period::{Month, day_of};
use meterd_store::StoreError;
use meterd_store::locks::Versions;
use std::collections::HashMap;
use std::sync::Arc;

/// The clients of a batch.
pub struct Clients<'a> {
    /// Sorted, without duplicates.
    pub ids: Vec<&'a Arc<str>>,
    /// For each event, the index of its client in `ids`.
    pub of: Vec<usize>,
}

impl<'a> Clients<'a> {
    /// Returns the clients of these events.
    pub fn of(batch: &[&'a Submission]) -> Self {
        let mut numbers: HashMap<&str, usize, RandomState> = HashMap::default();
        let mut ids = vec![];
        let mut of = Vec::with_capacity(batch.len());
        for submission in batch {
            let client_id = &submission.event.client_id;
            of.push(*numbers.entry(client_id).or_insert_with(|| {
                ids.push(client_id);
                ids.len() - 1
            }));
        }
        let mut sorted: Vec<usize> = (0..ids.len()).collect();
        sorted.sort_unstable_by_key(|&number| ids[number]);
        let mut positions = vec![0; ids.len()];
        sorted.iter().enumerate().for_each(|(position, &number)| positions[number] = position);
        of.iter_mut().for_each(|number| *number = positions[*number]);
        Self { ids: sorted.iter().map(|&number| ids[number]).collect(), of }
    }
}

/// An event with its day.
pub struct Dated<'a> {
    pub submission: &'a Submission,
    /// In the time zone of the client.
    pub day: NaiveDate,
    /// Why the event cannot be recorded as a new one. It may still be a repeat.
    pub refusal: Option<Refusal>,
}

impl Dated<'_> {
    /// Returns whether the month is closed, or the key of an event of this time may have been deleted.
    pub fn is_of_closed_time(&self) -> bool {
        self.refusal.is_some() && self.submission.refuse_if_new.is_none()
    }
}

/// Dates the events of a batch.
///
/// # Errors
/// If a client no longer exists.
pub fn date<'a>(
    settings: &ClientSettings,
    versions: &Versions,
    clients: &Clients<'_>,
    batch: &[&'a Submission],
) -> meterd_store::Result<Vec<Dated<'a>>> {
    let removed = || StoreError::Stale("a client was removed while its event was recorded");
    let zones: Vec<Option<Tz>> = clients.ids.iter().map(|client_id| settings.zone(client_id)).collect();
    let dated = batch.iter().zip(&clients.of).map(|(&submission, &client)| {
        let Submission { event, backfill, refuse_if_new, .. } = submission;
        // An event that can only be a repeat is not written, so its client need not exist.
        let zone = zones[client].or(refuse_if_new.is_some().then_some(Tz::UTC)).ok_or_else(removed)?;
        let day = day_of(event.event_time, zone);
        let closed = versions.closed_through.filter(|closed| Month::of(day) <= *closed);
        let pruned =
            versions.keys_pruned_through.filter(|pruned| !backfill && event.event_time < *pruned + EVENT_LEAD_MAX);
        let refusal = refuse_if_new.clone().or_else(|| closed.map(Refusal::month_closed));
        Ok(Dated { submission, day, refusal: refusal.or_else(|| pruned.map(Refusal::key_pruned)) })
    });
    dated.collect()
}
