//! Records events: one, or a batch.

use crate::auth::Caller;
use crate::engine::Engine;
use crate::fields::Path;
use crate::ingest::{Checked, Conflict, Echo, EventChecks, Outcome, RawEvent, Refused, SharedTexts};
use crate::refusal::{Reason, Refusal};
use std::sync::Arc;
use tokio::sync::mpsc;

/// The metadata of a conflict that names the differing fields, separated by commas.
pub const DIFFERING_FIELDS: &str = "differing_fields";
/// Maximum number of events of a batch.
pub const BATCH_EVENTS_MAX: usize = 10_000;

/// Checks the number of events of a batch.
pub fn check_batch_size(count: usize) -> Result<(), Refusal> {
    match (1..=BATCH_EVENTS_MAX).contains(&count) {
        true => Ok(()),
        false => Err(Refusal::field("events", format!("must be 1 to {BATCH_EVENTS_MAX} events, has {count}"))),
    }
}

/// Returns the refusal of an event whose key belongs to another payload.
pub fn conflict(key: &str, conflict: &Conflict) -> Refusal {
    let difference = match conflict.fields.as_slice() {
        [] => "another payload, of an event that is no longer kept".to_string(),
        fields => format!("a payload that differs in {}", fields.join(", ")),
    };
    let message = format!(
        "idempotency key {key:?} was used for {difference}; nothing was recorded. Resend the first payload, or send this \
         one with a key of its own"
    );
    Refusal::new(Reason::IdempotencyConflict, message)
        .with("event_id", conflict.holder.to_string())
        .with(DIFFERING_FIELDS, conflict.fields.join(","))
}

/// Records one event. The outcome is accepted or duplicate. Dropping the future cancels no database work, because the writer
/// does it in its own task.
pub async fn record(engine: &Engine, caller: &Caller, event: RawEvent) -> Result<(Outcome, Echo), Refusal> {
    let checks = EventChecks::new(engine, caller, std::iter::once(event.service.as_str()), false).await?;
    let checked = checks.check(&mut SharedTexts::default(), Path::Named("event"), event);
    let Checked { submission, echo } = checked.map_err(|refused| refused.error)?;
    match engine.ingest.record(submission).await? {
        Outcome::Conflict(differing) => Err(conflict(&echo.key, &differing)),
        Outcome::Rejected(error) | Outcome::Unavailable(error) => Err(error),
        recorded => Ok((recorded, echo)),
    }
}

/// Records a batch of a permitted size, and returns the outcome of each event, in order. Dropping the future cancels no database
/// work, as in [`record`].
pub async fn record_batch(
    checks: &EventChecks<'_>,
    events: impl ExactSizeIterator<Item = RawEvent>,
) -> impl Iterator<Item = (Outcome, Echo)> {
    let count = events.len();
    let mut texts = SharedTexts::default();
    let mut echoes = Vec::with_capacity(count);
    let mut outcomes: Vec<Option<Outcome>> = vec![None; count];
    let mut submissions = Vec::with_capacity(count);
    for (number, event) in events.enumerate() {
        match checks.check(&mut texts, Path::Element("events", number), event) {
            Ok(Checked { submission, echo }) => {
                echoes.push(echo);
                submissions.push((number, Box::new(submission)));
            }
            Err(Refused { key, error }) => {
                echoes.push(Echo { key, ..Echo::default() });
                outcomes[number] = Some(Outcome::Rejected(error));
            }
        }
    }
    let (sender, mut receiver) = mpsc::unbounded_channel();
    let sender = Arc::new(sender);
    let queueing = async {
        let queued = checks.engine.ingest.record_numbered(submissions, &sender).await;
        drop(sender);
        queued
    };
    let settling = async {
        while let Some(settled) = receiver.recv().await {
            settled.into_iter().for_each(|(number, outcome)| outcomes[number] = Some(outcome));
        }
    };
    let (queued, ()) = tokio::join!(queueing, settling);
    let unsettled = Outcome::Unavailable(queued.err().unwrap_or_else(Refusal::shutting_down));
    let outcomes = outcomes.into_iter().map(move |outcome| outcome.unwrap_or_else(|| unsettled.clone()));
    outcomes.zip(echoes)
}
