//! Reads one recorded event, or lists events.

use crate::clients;
use crate::engine::Engine;
use crate::fields::{Fields, UnixTime};
use crate::paging::{Page, PageRequest};
use crate::refusal::{Reason, Refusal};
use meterd_domain::event::{EventId, ID_BYTES_MAX, Labels};
use meterd_store::usage::AsOf;
use meterd_store::usage::events::{self, EventFilter, RecordedEvent};

/// Which events of a client to list. Empty filters select everything.
#[derive(Debug, Default)]
pub struct EventListInput {
    pub client_id: String,
    /// The earliest time, included.
    pub start_time: Option<UnixTime>,
    /// The latest time, not included.
    pub end_time: Option<UnixTime>,
    pub services: Vec<String>,
    pub operations: Vec<String>,
    pub models: Vec<String>,
    pub subjects: Vec<String>,
    pub unpriced_only: bool,
    /// Only events that have all of these labels.
    pub labels: Labels,
    /// Only events that were charged by this price.
    pub price_id: String,
    /// Whether the earliest event comes first.
    pub ascending: bool,
}

/// Returns an event of a client.
pub async fn get_event(engine: &Engine, client_id: &str, event_id: &str) -> Result<RecordedEvent, Refusal> {
    let mut fields = Fields::default();
    fields.required("client_id", client_id, ID_BYTES_MAX);
    fields.required("event_id", event_id, ID_BYTES_MAX);
    fields.finish()?;
    let found = match EventId::parse(event_id) {
        Some(id) => events::find(&engine.pool, client_id, id).await?,
        None => None,
    };
    found.ok_or_else(|| Refusal::new(Reason::EventNotFound, format!("client {client_id:?} has no event {event_id:?}")))
}

/// Lists the events of a client by time. The cursor is the id of the last event.
pub async fn list_events(
    engine: &Engine,
    input: EventListInput,
    page: PageRequest<EventId>,
) -> Result<AsOf<Page<RecordedEvent, EventId>>, Refusal> {
    let mut fields = Fields::default();
    fields.required("client_id", &input.client_id, ID_BYTES_MAX);
    let (start_time, end_time) = fields.times(input.start_time, input.end_time);
    fields.filter("services", &input.services);
    fields.filter("operations", &input.operations);
    fields.filter("models", &input.models);
    fields.filter("subjects", &input.subjects);
    fields.labels("labels", &input.labels);
    fields.text("price_id", &input.price_id, ID_BYTES_MAX);
    // An id that is no number is that of no price.
    let price_id = (!input.price_id.is_empty()).then(|| input.price_id.parse().unwrap_or(0));
    let size = page.check_size(&mut fields);
    fields.finish()?;
    let after = page.after?;
    clients::existing(engine, &input.client_id).await?;
    let filter = EventFilter {
        client_id: &input.client_id,
        start_time,
        end_time,
        services: &input.services,
        operations: &input.operations,
        models: &input.models,
        subjects: &input.subjects,
        unpriced_only: input.unpriced_only,
        labels: &input.labels,
        price_id,
    };
    let AsOf { complete_as_of, rows } = events::list(&engine.pool, &filter, input.ascending, after, size + 1).await?;
    Ok(AsOf { complete_as_of, rows: Page::of(rows, size, |last| last.id) })
}
