//! BatchTrackUsage with `validate_only`: what would become of a batch. Reads on the pool, beside the write path.

use crate::grpc::Context;
use crate::grpc::usage::events::{Checked, Echo, EventChecks, Refused, Texts};
use crate::grpc::usage::record::counted;
use crate::grpc::wire::fields::Path;
use crate::proto::{BatchTrackUsageRequest, BatchTrackUsageResponse, CheckedClient};
use meterd_domain::access::Scope;
use meterd_domain::event::{EventId, ID_BYTES_MAX};
use meterd_engine::auth::Caller;
use meterd_engine::ingest::{Outcome, Preview, Submission, preview};
use meterd_engine::refusal::Refusal;
use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

/// Checks a batch of a permitted size.
pub async fn batch(
    context: &Context,
    caller: &Caller,
    request: BatchTrackUsageRequest,
) -> Result<BatchTrackUsageResponse, Refusal> {
    let clients = clients(caller, request.events.iter().map(|event| event.client_id.as_str()));
    let services = request.events.iter().map(|event| event.service.as_str());
    let checks = EventChecks::new(context, caller, services, request.backfill).await?.uncounted();
    let mut texts = Texts::default();
    let checked: Vec<Result<Checked, Refused>> = request
        .events
        .into_iter()
        .enumerate()
        .map(|(number, event)| checks.check(&mut texts, Path::Element("events", number), Some(event)))
        .collect();
    let submissions: Vec<&Submission> = checked.iter().flatten().map(|checked| &checked.submission).collect();
    let Preview { outcomes, clients } =
        preview(&context.engine.pool, &context.engine.catalog, &context.engine.config.ingest, &clients, &submissions)
            .await?;
    let ids: HashSet<EventId> = submissions.iter().map(|submission| submission.id).collect();
    let mut outcomes = outcomes.into_iter();
    let results = checked.iter().map(|checked| match checked {
        Ok(Checked { echo, .. }) => {
            let outcome = outcomes.next().expect("an outcome for each submission");
            let is_recorded = event_of(&outcome).is_none_or(|id| !ids.contains(&id));
            let mut result = context.result(outcome, echo.clone());
            if !is_recorded {
                result.event_id.clear();
            }
            result
        }
        Err(Refused { key, error }) => {
            context.result(Outcome::Rejected(error.clone()), Echo { key: key.clone(), ..Echo::default() })
        }
    });
    let results = results.collect();
    let clients = clients.into_iter().map(|client| CheckedClient {
        client_id: client.client_id.to_string(),
        time_zone: client.zone.name().to_owned(),
        exists: client.exists,
    });
    Ok(BatchTrackUsageResponse { clients: clients.collect(), ..counted(results) })
}

/// The event that an outcome is about: the event itself, or the one that has its key.
fn event_of(outcome: &Outcome) -> Option<EventId> {
    match outcome {
        Outcome::Accepted(recorded) | Outcome::Duplicate(recorded) => Some(recorded.id),
        Outcome::Conflict(conflict) => Some(conflict.holder),
        Outcome::Rejected(_) | Outcome::Unavailable(_) => None,
    }
}

/// Clients that may be told about, sorted: possible ids that the caller may record for.
fn clients<'a>(caller: &Caller, client_ids: impl Iterator<Item = &'a str>) -> Vec<Arc<str>> {
    let client_ids: BTreeSet<&str> = client_ids.collect();
    let is_possible = |id: &str| (1..=ID_BYTES_MAX).contains(&id.len()) && !id.chars().any(char::is_control);
    let may_know = |id: &str| caller.check_client(Scope::Ingest, id).is_ok();
    client_ids.into_iter().filter(|id| is_possible(id) && may_know(id)).map(Arc::from).collect()
}
