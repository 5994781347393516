//! A usage event from the wire, checked and turned into what the write path takes.

use crate::grpc::Context;
use crate::grpc::wire::fields::{Fields, Path};
use crate::grpc::wire::json;
use crate::proto;
use chrono::{DateTime, TimeDelta, Utc};
use meterd_domain::access::Scope;
use meterd_domain::catalog::Catalog;
use meterd_domain::decimal::Decimal;
use meterd_domain::event::{
    EXTERNAL_ID_BYTES_MAX, EventId, ID_BYTES_MAX, METADATA_BYTES_MAX, Measures, TOKENS_MAX, UsageEvent, payload_hash,
};
use meterd_domain::{identifier, names};
use meterd_engine::auth::Caller;
use meterd_engine::ingest::{Submission, count_rejected};
use meterd_engine::refusal::{Reason, Refusal};
use meterd_store::StoreError;
use prost_types::Struct;
use std::collections::HashMap;
use std::sync::Arc;

/// An event that is not taken.
pub struct Refused {
    /// As it was given; empty, where it is too long to be one.
    pub key: Arc<str>,
    pub error: Refusal,
}

/// An event that is fine.
pub struct Checked {
    pub submission: Submission,
    pub echo: Echo,
}

/// What the answer repeats of an event.
#[derive(Clone, Debug, Default)]
pub struct Echo {
    pub key: Arc<str>,
    pub rounded: Rounded,
}

/// The fields that were rounded, and their recorded values.
pub type Rounded = HashMap<String, String>;

/// Texts that one event after another has: they are kept once.
#[derive(Default)]
pub struct Texts {
    client_id: Repeated,
    operation: Repeated,
    model: Repeated,
}

/// The last text of a field.
#[derive(Default)]
struct Repeated(Option<Arc<str>>);

impl Repeated {
    fn keep(&mut self, text: &str) -> Arc<str> {
        match &self.0 {
            Some(last) if **last == *text => last.clone(),
            _ => self.0.insert(text.into()).clone(),
        }
    }
}

/// Checks events by one moment's rules.
pub struct EventChecks<'a> {
    catalog: Arc<Catalog>,
    context: &'a Context,
    caller: &'a Caller,
    now: DateTime<Utc>,
    /// Accept any age.
    backfill: bool,
    /// Whether rejected events go into the metrics.
    counted: bool,
}

impl<'a> EventChecks<'a> {
    /// Checks by the newest catalogue: read again where one of the services is not in the snapshot at hand.
    pub async fn new(
        context: &'a Context,
        caller: &'a Caller,
        mut services: impl Iterator<Item = &str>,
        backfill: bool,
    ) -> Result<Self, Refusal> {
        let mut catalog = context.engine.catalog.current();
        if services.any(|service| catalog.service(service).is_none()) {
            let patience = context.engine.config.ingest.retry_for;
            let refreshed = tokio::time::timeout(patience, context.engine.catalog.refresh(&context.engine.pool)).await;
            catalog = refreshed.unwrap_or(Err(StoreError::Timeout))?;
        }
        Ok(Self { catalog, context, caller, now: context.engine.clock.now(), backfill, counted: true })
    }

    /// Leaves events that are only checked out of the metrics.
    pub fn uncounted(self) -> Self {
        Self { counted: false, ..self }
    }

    /// Checks an event. `path` is that of the event, such as "event" or "events[3]".
    pub fn check(&self, texts: &mut Texts, path: Path, event: Option<proto::UsageEvent>) -> Result<Checked, Refused> {
        let mut event = event.unwrap_or_default();
        self.submission(texts, path, &mut event).map_err(|error| {
            if self.counted {
                count_rejected();
            }
            let key =
                if event.idempotency_key.len() <= ID_BYTES_MAX { event.idempotency_key.into() } else { "".into() };
            Refused { key, error }
        })
    }

    /// Takes the texts out of an event that is fine.
    fn submission(&self, texts: &mut Texts, path: Path, event: &mut proto::UsageEvent) -> Result<Checked, Refusal> {
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
        let service = self.check_service(&mut fields, "service", &event.service);
        let raw = RawMeasures {
            units: &event.units,
            input_tokens: event.input_tokens,
            output_tokens: event.output_tokens,
            cached_input_tokens: event.cached_input_tokens,
            amount: &event.amount,
        };
        let (measures, rounded) = measures(&mut fields, raw);
        let metadata = metadata(&mut fields, "metadata", event.metadata.as_ref());
        let event_time = event.event_time.as_ref().and_then(|time| fields.time("event_time", time));
        let time_was_given = event_time.is_some();
        let event_time = event_time.unwrap_or(self.now);
        let fine_but_for_time = fields.is_fine();
        self.check_future(&mut fields, "event_time", event_time);
        self.check_age(&mut fields, "event_time", event_time);
        let key_was_given = !event.idempotency_key.is_empty();
        let refuse_if_new = match fields.finish() {
            Ok(()) => None,
            // Its key may be known: a repeat is answered whenever it comes, also where this replica's clock is behind.
            Err(untimely) if fine_but_for_time && key_was_given => Some(untimely),
            Err(error) => return Err(error),
        };
        let id = EventId::new(event_time);
        let event = std::mem::take(event);
        let idempotency_key = if key_was_given { event.idempotency_key.into() } else { format!("server-{id}").into() };
        let event = UsageEvent {
            client_id: texts.client_id.keep(&event.client_id),
            service: service.unwrap_or_else(|| event.service.into()),
            operation: texts.operation.keep(&event.operation),
            model: texts.model.keep(&event.model),
            measures,
            event_time,
            idempotency_key,
            subject: event.subject,
            external_id: event.external_id,
            metadata,
        };
        let payload_hash = payload_hash(&event, time_was_given);
        let echo = Echo { key: event.idempotency_key.clone(), rounded };
        let submission = Submission { event, id, payload_hash, backfill: self.backfill, refuse_if_new };
        Ok(Checked { submission, echo })
    }

    /// The name as the catalogue has it, or nothing: where an unknown one is not kept, that is noted.
    fn check_service(&self, fields: &mut Fields, field: &str, service: &str) -> Option<Arc<str>> {
        if let Some(known) = self.catalog.service(service) {
            return Some(known.service.clone());
        }
        let keep = self.context.engine.config.keep_unknown_services;
        // One that is empty, too long or no identifier has its error already.
        let possible = (1..=ID_BYTES_MAX).contains(&service.len()) && identifier::check(service).is_ok();
        if possible && !keep {
            let (reason, description) = unknown_service(&self.catalog, service);
            fields.wrong_because(reason, field, description);
        }
        None
    }

    /// Notes a time that lies too far ahead.
    fn check_future(&self, fields: &mut Fields, field: &str, event_time: DateTime<Utc>) {
        let seconds = self.context.engine.config.accept_future_seconds;
        if event_time > self.now + TimeDelta::seconds(seconds.into()) {
            let description = format!("is more than {seconds} seconds ahead of the server's clock");
            fields.wrong_because(Reason::EventInFuture, field, description);
        }
    }

    /// Notes a time that lies too far back.
    fn check_age(&self, fields: &mut Fields, field: &str, event_time: DateTime<Utc>) {
        let days = self.context.engine.config.accept_past_days;
        if !self.backfill && event_time < self.now - TimeDelta::days(days.into()) {
            let description =
                format!("is more than {days} days back; send old events with BatchTrackUsage and backfill = true");
            fields.wrong_because(Reason::EventTooOld, field, description);
        }
    }
}

/// Reason and description of a service that is not in the catalogue: with the nearest names, or where to look.
pub fn unknown_service(catalog: &Catalog, service: &str) -> (Reason, String) {
    let nearest = names::nearest(service, catalog.services().map(|service| &*service.service));
    let hint = match nearest.as_slice() {
        [] => "CatalogService.ListServices has them all, and CreateService adds one".to_string(),
        names => format!("did you mean {}?", names.join(", ")),
    };
    (Reason::UnknownService, format!("there is no service {service:?}; {hint}"))
}

/// Measures as they come from the wire.
pub struct RawMeasures<'a> {
    pub units: &'a str,
    pub input_tokens: i64,
    pub output_tokens: i64,
    pub cached_input_tokens: i64,
    pub amount: &'a str,
}

/// Checks measures, and returns them with what was rounded.
pub fn measures(fields: &mut Fields, raw: RawMeasures<'_>) -> (Measures, Rounded) {
    let RawMeasures { units, input_tokens, output_tokens, cached_input_tokens, amount } = raw;
    fields.count("input_tokens", input_tokens, TOKENS_MAX);
    fields.count("output_tokens", output_tokens, TOKENS_MAX);
    fields.count("cached_input_tokens", cached_input_tokens, TOKENS_MAX);
    // Input tokens below zero are told already.
    if cached_input_tokens > input_tokens.max(0) {
        fields.wrong("cached_input_tokens", "must not be more than input_tokens, of which it is a part");
    }
    let mut rounded = Rounded::new();
    let mut quantity = |field: &str, text: &str| {
        let (value, changed) = fields.quantity(field, text);
        if changed {
            rounded.insert(field.into(), value.to_string());
        }
        value
    };
    let measures = Measures {
        units: if units.is_empty() { Decimal::ONE } else { quantity("units", units) },
        input_tokens,
        output_tokens,
        cached_input_tokens,
        amount: (!amount.is_empty()).then(|| quantity("amount", amount)),
    };
    (measures, rounded)
}

fn metadata(fields: &mut Fields, field: &str, metadata: Option<&Struct>) -> Option<String> {
    let metadata = metadata.filter(|metadata| !metadata.fields.is_empty())?;
    match json::from_struct(metadata) {
        Err(error) => {
            fields.wrong(field, error.to_string());
            None
        }
        Ok(json) => {
            let json = json.to_string();
            if json.len() > METADATA_BYTES_MAX {
                let bytes = json.len();
                fields.wrong(field, format!("must be at most {METADATA_BYTES_MAX} bytes as JSON, has {bytes}"));
            }
            Some(json)
        }
    }
}
