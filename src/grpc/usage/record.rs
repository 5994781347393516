//! TrackUsage and BatchTrackUsage.

use crate::grpc::Context;
use crate::grpc::usage::events::{Checked, Echo, EventChecks, Refused, Texts};
use crate::grpc::usage::validate;
use crate::grpc::wire::fields::Path;
use crate::proto::{
    BatchTrackUsageRequest, BatchTrackUsageResponse, EventOutcome, TrackUsageRequest, TrackUsageResponse, UsageResult,
};
use meterd_engine::auth::Caller;
use meterd_engine::ingest::{Conflict, Outcome};
use meterd_engine::refusal::{Reason, Refusal};
use std::sync::Arc;
use tokio::sync::mpsc;

/// Under which the metadata of an error names the fields of a conflict, separated by commas.
pub const DIFFERING_FIELDS: &str = "differing_fields";
/// Most events of a batch.
pub const BATCH_EVENTS_MAX: usize = 10_000;

/// The error of a batch of so many events.
pub fn batch_of(count: usize) -> Refusal {
    Refusal::field("events", format!("must be 1 to {BATCH_EVENTS_MAX} events, has {count}"))
}

/// The error of an event whose key belongs to another payload.
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

/// Records one event. Runs on the caller's future: it only waits, the database work is the writer's.
pub async fn track(
    context: &Context,
    caller: &Caller,
    request: TrackUsageRequest,
) -> Result<TrackUsageResponse, Refusal> {
    let service = request.event.as_ref().map(|event| event.service.as_str());
    let checks = EventChecks::new(context, caller, service.into_iter(), false).await?;
    let checked = checks.check(&mut Texts::default(), Path::Named("event"), request.event);
    let Checked { submission, echo } = checked.map_err(|refused| refused.error)?;
    match context.engine.ingest.record(submission).await? {
        Outcome::Conflict(differing) => Err(conflict(&echo.key, &differing)),
        Outcome::Rejected(error) | Outcome::Unavailable(error) => Err(error),
        recorded => Ok(TrackUsageResponse { result: Some(context.result(recorded, echo)) }),
    }
}

/// Records a batch. Runs on the caller's future, as [`track`] does.
pub async fn batch(
    context: &Context,
    caller: &Caller,
    request: BatchTrackUsageRequest,
) -> Result<BatchTrackUsageResponse, Refusal> {
    let count = request.events.len();
    if !(1..=BATCH_EVENTS_MAX).contains(&count) {
        return Err(batch_of(count));
    }
    if request.validate_only {
        return validate::batch(context, caller, request).await;
    }
    let services = request.events.iter().map(|event| event.service.as_str());
    let checks = EventChecks::new(context, caller, services, request.backfill).await?;
    let mut texts = Texts::default();
    let mut echoes = Vec::with_capacity(count);
    let mut outcomes: Vec<Option<Outcome>> = vec![None; count];
    let mut submissions = Vec::with_capacity(count);
    for (number, event) in request.events.into_iter().enumerate() {
        match checks.check(&mut texts, Path::Element("events", number), Some(event)) {
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
        let queued = context.engine.ingest.record_numbered(submissions, &sender).await;
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
    let results: Vec<UsageResult> = outcomes
        .into_iter()
        .zip(echoes)
        .map(|(outcome, echo)| context.result(outcome.unwrap_or_else(|| unsettled.clone()), echo))
        .collect();
    Ok(counted(results))
}

/// Results with how many there are of each outcome.
pub fn counted(results: Vec<UsageResult>) -> BatchTrackUsageResponse {
    let count_of = |wanted: EventOutcome| results.iter().filter(|result| result.outcome() == wanted).count() as i32;
    let (accepted_count, duplicate_count) = (count_of(EventOutcome::Accepted), count_of(EventOutcome::Duplicate));
    let failed_count = results.len() as i32 - accepted_count - duplicate_count;
    BatchTrackUsageResponse { results, accepted_count, duplicate_count, failed_count, clients: vec![] }
}
