//! Converts usage events of requests.

use crate::grpc::wire::convert::unix_time;
use crate::grpc::wire::json;
use crate::proto::UsageEvent;
use meterd_engine::ingest::RawEvent;

/// Converts an event to the type of the engine. Moves texts and does not copy them.
pub fn raw_event(event: UsageEvent) -> RawEvent {
    RawEvent {
        client_id: event.client_id,
        service: event.service,
        operation: event.operation,
        model: event.model,
        units: event.units,
        input_tokens: event.input_tokens,
        output_tokens: event.output_tokens,
        cached_input_tokens: event.cached_input_tokens,
        amount: event.amount,
        event_time: event.event_time.as_ref().map(unix_time),
        idempotency_key: event.idempotency_key,
        subject: event.subject,
        external_id: event.external_id,
        metadata: event.metadata.and_then(json::from_struct),
        service_tier: event.service_tier,
        measures: event.measures,
        reported_cost: event.reported_cost,
        labels: event.labels,
    }
}
