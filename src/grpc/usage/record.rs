//! TrackUsage and BatchTrackUsage.

use crate::grpc::Context;
use crate::grpc::usage::events::raw_event;
use crate::proto::{
    BatchTrackUsageRequest, BatchTrackUsageResponse, CheckedClient, EventOutcome, TrackUsageRequest,
    TrackUsageResponse, UsageResult,
};
use meterd_engine::auth::Caller;
use meterd_engine::ingest::{EventChecks, PreviewedClient};
use meterd_engine::refusal::Refusal;
use meterd_engine::usage::{self, PreviewedEvent};

/// Records one event.
pub async fn track(
    context: &Context,
    caller: &Caller,
    request: TrackUsageRequest,
) -> Result<TrackUsageResponse, Refusal> {
    let event = raw_event(request.event.unwrap_or_default());
    let (outcome, echo) = usage::record(&context.engine, caller, event).await?;
    Ok(TrackUsageResponse { result: Some(context.result(outcome, echo)) })
}

/// Records or only checks a batch.
pub async fn batch(
    context: &Context,
    caller: &Caller,
    request: BatchTrackUsageRequest,
) -> Result<BatchTrackUsageResponse, Refusal> {
    usage::check_batch_size(request.events.len())?;
    if request.validate_only {
        return preview(context, caller, request).await;
    }
    let services = request.events.iter().map(|event| event.service.as_str());
    let checks = EventChecks::new(&context.engine, caller, services, request.backfill).await?;
    let results = usage::record_batch(&checks, request.events.into_iter().map(raw_event)).await;
    Ok(counted(results.map(|(outcome, echo)| context.result(outcome, echo)).collect()))
}

/// Checks a batch without recording it.
async fn preview(
    context: &Context,
    caller: &Caller,
    request: BatchTrackUsageRequest,
) -> Result<BatchTrackUsageResponse, Refusal> {
    let events = request.events.into_iter().map(raw_event).collect();
    let preview = usage::preview_batch(&context.engine, caller, events, request.backfill).await?;
    let results = preview.events.into_iter().map(|PreviewedEvent { outcome, echo, is_recorded }| {
        let mut result = context.result(outcome, echo);
        if !is_recorded {
            result.event_id.clear();
        }
        result
    });
    let response = counted(results.collect());
    Ok(BatchTrackUsageResponse { clients: preview.clients.into_iter().map(CheckedClient::from).collect(), ..response })
}

impl From<PreviewedClient> for CheckedClient {
    fn from(client: PreviewedClient) -> Self {
        Self {
            client_id: client.client_id.to_string(),
            time_zone: client.zone.name().to_owned(),
            exists: client.exists,
        }
    }
}

/// Returns results together with the number of each outcome.
fn counted(results: Vec<UsageResult>) -> BatchTrackUsageResponse {
    let count_of = |wanted: EventOutcome| results.iter().filter(|result| result.outcome() == wanted).count() as i32;
    let (accepted_count, duplicate_count) = (count_of(EventOutcome::Accepted), count_of(EventOutcome::Duplicate));
    let failed_count = results.len() as i32 - accepted_count - duplicate_count;
    BatchTrackUsageResponse { results, accepted_count, duplicate_count, failed_count, clients: vec![] }
}
