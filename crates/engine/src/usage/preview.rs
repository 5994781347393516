//! Checks a batch without recording it. Reads from the pool and does not use the write path.

use crate::auth::Caller;
use crate::engine::Engine;
use crate::fields::Path;
use crate::ingest::{
    Checked, Echo, EventChecks, Outcome, Preview, PreviewedClient, RawEvent, Refused, SharedTexts, Submission, preview,
};
use crate::refusal::Refusal;
use meterd_domain::access::Scope;
use meterd_domain::event::{EventId, ID_BYTES_MAX};
use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

/// The outcomes that a batch would have.
#[derive(Debug)]
pub struct BatchPreview {
    /// One for each event, in order.
    pub events: Vec<PreviewedEvent>,
    /// The clients of the batch that the caller may record for, sorted.
    pub clients: Vec<PreviewedClient>,
}

/// The outcome that an event would have.
#[derive(Debug)]
pub struct PreviewedEvent {
    pub outcome: Outcome,
    pub echo: Echo,
    /// Whether the event in the outcome is recorded. If not, its id is not valid.
    pub is_recorded: bool,
}

/// Checks a batch of a permitted size without recording it.
pub async fn preview_batch(
    engine: &Engine,
    caller: &Caller,
    events: Vec<RawEvent>,
    backfill: bool,
) -> Result<BatchPreview, Refusal> {
    let clients = clients(caller, events.iter().map(|event| event.client_id.as_str()));
    let services = events.iter().map(|event| event.service.as_str());
    let checks = EventChecks::new(engine, caller, services, backfill).await?.uncounted();
    let mut texts = SharedTexts::default();
    let checked: Vec<Result<Checked, Refused>> = events
        .into_iter()
        .enumerate()
        .map(|(number, event)| checks.check(&mut texts, Path::Element("events", number), event))
        .collect();
    let submissions: Vec<&Submission> = checked.iter().flatten().map(|checked| &checked.submission).collect();
    let Preview { outcomes, clients } =
        preview(&engine.pool, &engine.catalog, &engine.key_filters, &engine.config.ingest, &clients, &submissions)
            .await?;
    let ids: HashSet<EventId> = submissions.iter().map(|submission| submission.id).collect();
    let mut outcomes = outcomes.into_iter();
    let events = checked.into_iter().map(|checked| match checked {
        Ok(Checked { echo, .. }) => {
            let outcome = outcomes.next().expect("an outcome for each submission");
            let is_recorded = event_of(&outcome).is_some_and(|id| !ids.contains(&id));
            PreviewedEvent { outcome, echo, is_recorded }
        }
        Err(Refused { key, error }) => {
            let echo = Echo { key, ..Echo::default() };
            PreviewedEvent { outcome: Outcome::Rejected(error), echo, is_recorded: false }
        }
    });
    Ok(BatchPreview { events: events.collect(), clients })
}

/// Returns the id in an outcome: of the event itself, or of the event that has its key.
fn event_of(outcome: &Outcome) -> Option<EventId> {
    match outcome {
        Outcome::Accepted(recorded) | Outcome::Duplicate(recorded) => Some(recorded.id),
        Outcome::Conflict(conflict) => Some(conflict.holder),
        Outcome::Rejected(_) | Outcome::Unavailable(_) => None,
    }
}

/// Returns the clients that the caller may record for, sorted. Ids that are not possible are left out.
fn clients<'a>(caller: &Caller, client_ids: impl Iterator<Item = &'a str>) -> Vec<Arc<str>> {
    let client_ids: BTreeSet<&str> = client_ids.collect();
    let is_possible = |id: &str| (1..=ID_BYTES_MAX).contains(&id.len()) && !id.chars().any(char::is_control);
    let may_know = |id: &str| caller.check_client(Scope::Ingest, id).is_ok();
    client_ids.into_iter().filter(|id| is_possible(id) && may_know(id)).map(Arc::from).collect()
}
