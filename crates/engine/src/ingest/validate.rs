//! Checks events, and converts them for the write path.

use super::raw_event::{RawEvent, RawMeasures, Rounded, measures};
use super::{Submission, count_rejected};
use crate::auth::Caller;
use crate::catalog::unknown_service;
use crate::engine::Engine;
use crate::fields::{Fields, Path};
use crate::refusal::{Reason, Refusal};
use chrono::{DateTime, TimeDelta, Utc};
use meterd_domain::access::Scope;
use meterd_domain::catalog::Catalog;
use meterd_domain::event::{
    EXTERNAL_ID_BYTES_MAX, EventId, ID_BYTES_MAX, METADATA_BYTES_MAX, UsageEvent, payload_hash,
};
use meterd_domain::identifier;
use meterd_domain::metadata::{Metadata, MetadataError};
use meterd_store::StoreError;
use std::sync::Arc;

/// An event that is rejected.
pub struct Refused {
    /// The key that the caller sent, or empty if it is too long for a key.
    pub key: Arc<str>,
    pub error: Refusal,
}

/// An event that passed the checks.
pub struct Checked {
    pub submission: Submission,
    pub echo: Echo,
}

/// The parts of an event that the response repeats.
#[derive(Clone, Debug, Default)]
pub struct Echo {
    pub key: Arc<str>,
    /// The model, or empty.
    pub model: Arc<str>,
    pub rounded: Rounded,
}

/// Shares texts between events: if an event has the same text as the one before it, the text is not copied.
#[derive(Default)]
pub struct SharedTexts {
    client_id: LastText,
    operation: LastText,
    model: LastText,
}

/// The last text of a field.
#[derive(Default)]
struct LastText(Option<Arc<str>>);

impl LastText {
    fn share(&mut self, text: &str) -> Arc<str> {
        match &self.0 {
            Some(last) if **last == *text => last.clone(),
            _ => self.0.insert(text.into()).clone(),
        }
    }
}

/// Checks events of one caller by the rules of one moment.
pub struct EventChecks<'a> {
    pub(crate) engine: &'a Engine,
    catalog: Arc<Catalog>,
    caller: &'a Caller,
    now: DateTime<Utc>,
    /// Whether events of any age are accepted.
    backfill: bool,
    /// Whether rejected events are counted in the metrics.
    counted: bool,
}

impl<'a> EventChecks<'a> {
    /// Prepares checks of events of these services. Reads the catalogue again if the snapshot lacks one of them.
    pub async fn new(
        engine: &'a Engine,
        caller: &'a Caller,
        mut services: impl Iterator<Item = &str>,
        backfill: bool,
    ) -> Result<Self, Refusal> {
        let mut catalog = engine.catalog.current();
        if services.any(|service| !service.is_empty() && catalog.service(service).is_none()) {
            let retry_for = engine.config.ingest.retry_for;
            // Boxed, because the future of each call would otherwise contain this large one.
            let refresh = Box::pin(engine.catalog.refresh(&engine.pool));
            let refreshed = tokio::time::timeout(retry_for, refresh).await;
            catalog = refreshed.unwrap_or(Err(StoreError::Timeout))?;
        }
        Ok(Self { engine, catalog, caller, now: engine.clock.now(), backfill, counted: true })
    }

    /// Leaves rejected events out of the metrics. For previews, which do not record events.
    pub fn uncounted(self) -> Self {
        Self { counted: false, ..self }
    }

    /// Checks an event. `path` is the path of the event in the request, such as "event" or "events[3]".
    pub fn check(&self, texts: &mut SharedTexts, path: Path, mut event: RawEvent) -> Result<Checked, Refused> {
        self.submission(texts, path, &mut event).map_err(|error| {
            if self.counted {
                count_rejected();
            }
            let key =
                if event.idempotency_key.len() <= ID_BYTES_MAX { event.idempotency_key.into() } else { "".into() };
            Refused { key, error }
        })
    }

    /// Converts an event that passes the checks. Moves its texts out of `event`.
    fn submission(&self, texts: &mut SharedTexts, path: Path, event: &mut RawEvent) -> Result<Checked, Refusal> {
        if !event.client_id.is_empty() {
            self.caller.check_client(Scope::Ingest, &event.client_id)?;
        }
        let mut fields = Fields::of(path);
        fields.required_identifier("client_id", &event.client_id, ID_BYTES_MAX);
        fields.required_identifier("service", &event.service, ID_BYTES_MAX);
        fields.identifier("operation", &event.operation, ID_BYTES_MAX);
        fields.identifier("model", &event.model, ID_BYTES_MAX);
        fields.identifier("idempotency_key", &event.idempotency_key, ID_BYTES_MAX);
        fields.identifier("subject", &event.subject, ID_BYTES_MAX);
        fields.identifier("external_id", &event.external_id, EXTERNAL_ID_BYTES_MAX);
        fields.identifier("service_tier", &event.service_tier, ID_BYTES_MAX);
        fields.labels("labels", &event.labels);
        let service = self.check_service(&mut fields, &event.service);
        let raw = RawMeasures {
            units: &event.units,
            input_tokens: event.input_tokens,
            output_tokens: event.output_tokens,
            cached_input_tokens: event.cached_input_tokens,
            amount: &event.amount,
            reported_cost: &event.reported_cost,
            others: &event.measures,
        };
        let (measures, rounded) = measures(&mut fields, raw);
        let metadata = metadata(&mut fields, event.metadata.take());
        let event_time = event.event_time.and_then(|time| fields.time("event_time", time));
        let has_time = event_time.is_some();
        let event_time = event_time.unwrap_or(self.now);
        let is_valid_without_time = fields.is_fine();
        self.check_future(&mut fields, event_time);
        self.check_age(&mut fields, event_time);
        let has_key = !event.idempotency_key.is_empty();
        let refuse_if_new = match fields.finish() {
            Ok(()) => None,
            // The event may be a repeat. A repeat is accepted at any time, even if the clock of this replica is slow.
            Err(wrong_time) if is_valid_without_time && has_key => Some(wrong_time),
            Err(error) => return Err(error),
        };
        let id = EventId::new(event_time);
        let event = std::mem::take(event);
        let idempotency_key = if has_key { event.idempotency_key.into() } else { format!("server-{id}").into() };
        let event = UsageEvent {
            client_id: texts.client_id.share(&event.client_id),
            service: service.unwrap_or_else(|| event.service.into()),
            operation: texts.operation.share(&event.operation),
            model: texts.model.share(&event.model),
            service_tier: event.service_tier,
            measures,
            event_time,
            idempotency_key,
            subject: event.subject,
            external_id: event.external_id,
            metadata,
            labels: event.labels,
        };
        let payload_hash = payload_hash(&event, has_time);
        let echo = Echo { key: event.idempotency_key.clone(), model: event.model.clone(), rounded };
        let submission = Submission { event, id, payload_hash, backfill: self.backfill, refuse_if_new };
        Ok(Checked { submission, echo })
    }

    /// Returns the shared name of a service of the catalogue. Rejects an unknown service, unless the settings keep them.
    fn check_service(&self, fields: &mut Fields, service: &str) -> Option<Arc<str>> {
        if let Some(known) = self.catalog.service(service) {
            return Some(known.service.clone());
        }
        let keep = self.engine.config.keep_unknown_services;
        // A name that is empty, too long or not an identifier already has an error.
        let possible = (1..=ID_BYTES_MAX).contains(&service.len()) && identifier::check(service).is_ok();
        if possible && !keep {
            let (reason, description) = unknown_service(&self.catalog, service);
            fields.wrong_because(reason, "service", description);
        }
        None
    }

    /// Rejects a time that is too far in the future.
    fn check_future(&self, fields: &mut Fields, event_time: DateTime<Utc>) {
        let seconds = self.engine.config.accept_future_seconds;
        if event_time > self.now + TimeDelta::seconds(seconds.into()) {
            let description = format!("is more than {seconds} seconds ahead of the server's clock");
            fields.wrong_because(Reason::EventInFuture, "event_time", description);
        }
    }

    /// Rejects a time that is too long ago.
    fn check_age(&self, fields: &mut Fields, event_time: DateTime<Utc>) {
        let days = self.engine.config.accept_past_days;
        if !self.backfill && event_time < self.now - TimeDelta::days(days.into()) {
            let description =
                format!("is more than {days} days back; send old events with BatchTrackUsage and backfill = true");
            fields.wrong_because(Reason::EventTooOld, "event_time", description);
        }
    }
}

/// Checks the length of metadata, and returns its JSON.
fn metadata(fields: &mut Fields, metadata: Option<Result<Metadata, MetadataError>>) -> Option<String> {
    match metadata? {
        Err(error) => {
            fields.wrong("metadata", error.to_string());
            None
        }
        Ok(metadata) => {
            let json = metadata.to_string();
            if json.len() > METADATA_BYTES_MAX {
                let bytes = json.len();
                fields.wrong("metadata", format!("must be at most {METADATA_BYTES_MAX} bytes as JSON, has {bytes}"));
            }
            Some(json)
        }
    }
}
