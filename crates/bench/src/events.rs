//! The events of the load: usage of many clients, or of one hot client.

use super::plan::Mix;
use crate::product::proto;
use chrono::{DateTime, Utc};
use meterd_domain::decimal::Decimal;
use meterd_domain::event::UsageEvent;
use meterd_domain::measures::Measures;
use prost_types::value::Kind as ValueKind;
use prost_types::{Struct, Value};
use std::sync::Arc;

/// Number of kinds of usage. The built-in catalogue has a price for each.
pub const KINDS_MAX: u32 = KINDS.len() as u32;
/// Length of the shortest metadata, `{"note":""}`.
pub const PAYLOAD_BYTES_MIN: u32 = (PAYLOAD_FRONT.len() + PAYLOAD_BACK.len()) as u32;

const PAYLOAD_FIELD: &str = "note";
const PAYLOAD_FRONT: &str = r#"{"note":""#;
const PAYLOAD_BACK: &str = r#""}"#;

/// One kind of usage.
struct Kind {
    service: &'static str,
    operation: &'static str,
    model: &'static str,
    input_tokens: i64,
    output_tokens: i64,
}

const fn tokens(model: &'static str, operation: &'static str, input_tokens: i64, output_tokens: i64) -> Kind {
    Kind { service: "openai", operation, model, input_tokens, output_tokens }
}

const fn unit(service: &'static str, operation: &'static str) -> Kind {
    Kind { service, operation, model: "", input_tokens: 0, output_tokens: 0 }
}

static KINDS: [Kind; 16] = [
    tokens("gpt-4o-mini", "chat_completion", 374, 44),
    unit("sms", "message"),
    unit("email", "message"),
    unit("voice", "minute"),
    unit("twilio_sms", "outbound"),
    tokens("gpt-4o", "chat_completion", 1_204, 310),
    unit("whatsapp", "message"),
    unit("api_call", ""),
    unit("google_places", "place_details"),
    unit("cloudflare_r2", "class_a_ops"),
    tokens("text-embedding-3-small", "embedding", 512, 0),
    unit("twilio_voice", "outbound"),
    unit("record_created", ""),
    unit("automation_run", ""),
    unit("ai_tokens_used", ""),
    tokens("gpt-4-turbo", "chat_completion", 890, 207),
];

/// Makes events with random keys. Cheap to clone.
#[derive(Clone)]
pub struct Events {
    clients: Arc<[Arc<str>]>,
    hot_client: Arc<str>,
    hot_percent: u32,
    /// Number of kinds that are used, from the first on.
    kinds: u32,
    /// Service, operation and model of each kind, allocated once.
    names: Arc<[[Arc<str>; 3]]>,
    /// Metadata as JSON, and the value of its field.
    payload: Option<(Arc<str>, Arc<str>)>,
}

impl Events {
    /// Events of `clients` clients, of which `hot_percent` are of one hot client. The prefix separates the clients of the
    /// floor from those of the load.
    pub fn new(prefix: &str, mix: Mix, clients: u32, hot_percent: u32) -> Self {
        Self {
            clients: (0..clients).map(|number| format!("{prefix}-{number:06}").into()).collect(),
            hot_client: format!("{prefix}-hot").into(),
            hot_percent: if mix == Mix::Hot { hot_percent } else { 0 },
            kinds: 1,
            names: KINDS.iter().map(|kind| [kind.service, kind.operation, kind.model].map(Arc::from)).collect(),
            payload: None,
        }
    }

    /// Spreads the events over this many kinds and adds metadata of this many bytes, unless that is 0.
    pub fn with_contents(mut self, kinds: u32, payload_bytes: u32) -> Self {
        self.kinds = kinds.clamp(1, KINDS_MAX);
        self.payload = payload_bytes.checked_sub(PAYLOAD_BYTES_MIN).map(|bytes| {
            // Random, so that it cannot be compressed.
            let digits = std::iter::repeat_with(new_key).take(bytes as usize / 32 + 1).collect::<String>();
            let text = &digits[..bytes as usize];
            (format!("{PAYLOAD_FRONT}{text}{PAYLOAD_BACK}").into(), text.into())
        });
        self
    }

    /// The same events with another share of the hot client.
    pub fn mixed(&self, mix: Mix, hot_percent: u32) -> Self {
        Self { hot_percent: if mix == Mix::Hot { hot_percent } else { 0 }, ..self.clone() }
    }

    /// The ids of all clients, sorted.
    pub fn client_ids(&self) -> Vec<String> {
        self.clients.iter().chain([&self.hot_client]).map(|client_id| client_id.to_string()).collect()
    }

    /// Bytes of metadata of an event.
    pub fn payload_bytes(&self) -> usize {
        self.payload.as_ref().map_or(0, |(json, _)| json.len())
    }

    fn any_client(&self) -> &Arc<str> {
        if self.hot_percent > 0 && rand::random_range(0..100) < self.hot_percent {
            &self.hot_client
        } else {
            &self.clients[rand::random_range(0..self.clients.len())]
        }
    }

    fn any_kind(&self) -> usize {
        if self.kinds == 1 { 0 } else { rand::random_range(0..self.kinds as usize) }
    }

    /// The next event, as the message of a caller.
    pub fn next(&self) -> proto::UsageEvent {
        self.sent(self.any_client(), self.any_kind())
    }

    /// One event of each client and kind, as the message of a caller. After them, all rows exist.
    pub fn all(&self) -> impl Iterator<Item = proto::UsageEvent> + '_ {
        self.every().map(|(client_id, kind)| self.sent(client_id, kind))
    }

    /// The next event, as the server decodes it.
    pub fn next_checked(&self, now: DateTime<Utc>) -> UsageEvent {
        self.checked(self.any_client(), self.any_kind(), now)
    }

    /// One event of each client and kind, as the server decodes it.
    pub fn all_checked(&self, now: DateTime<Utc>) -> impl Iterator<Item = UsageEvent> + '_ {
        self.every().map(move |(client_id, kind)| self.checked(client_id, kind, now))
    }

    fn every(&self) -> impl Iterator<Item = (&Arc<str>, usize)> {
        let clients = self.clients.iter().chain([&self.hot_client]);
        clients.flat_map(|client_id| (0..self.kinds as usize).map(move |kind| (client_id, kind)))
    }

    /// An event of this client and of the first kind, as the message of a caller.
    pub fn of(client_id: String) -> proto::UsageEvent {
        sent(client_id, &KINDS[0], None)
    }

    fn sent(&self, client_id: &str, kind: usize) -> proto::UsageEvent {
        let metadata = self.payload.as_ref().map(|(_, text)| Struct {
            fields: [(PAYLOAD_FIELD.into(), Value { kind: Some(ValueKind::StringValue(text.to_string())) })].into(),
        });
        sent(client_id.into(), &KINDS[kind], metadata)
    }

    fn checked(&self, client_id: &Arc<str>, kind: usize, now: DateTime<Utc>) -> UsageEvent {
        let Kind { input_tokens, output_tokens, .. } = KINDS[kind];
        let [service, operation, model] = self.names[kind].clone();
        UsageEvent {
            client_id: client_id.clone(),
            service,
            operation,
            model,
            service_tier: String::new(),
            measures: Measures { units: Decimal::ONE, input_tokens, output_tokens, ..Measures::default() },
            event_time: now,
            idempotency_key: new_key().into(),
            subject: String::new(),
            external_id: String::new(),
            metadata: self.payload.as_ref().map(|(json, _)| json.to_string()),
            labels: Default::default(),
        }
    }
}

fn sent(client_id: String, kind: &Kind, metadata: Option<Struct>) -> proto::UsageEvent {
    proto::UsageEvent {
        client_id,
        service: kind.service.into(),
        operation: kind.operation.into(),
        model: kind.model.into(),
        input_tokens: kind.input_tokens,
        output_tokens: kind.output_tokens,
        idempotency_key: new_key(),
        metadata,
        ..Default::default()
    }
}

/// A random key, as long as a UUID.
fn new_key() -> String {
    format!("{:032x}", rand::random::<u128>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_price_in_the_built_in_catalogue() {
        let units = include_str!("../../../crates/engine/catalog/prices.csv");
        let prices = [units, include_str!("../../../crates/engine/catalog/models.csv")].concat();
        for Kind { service, operation, model, .. } in &KINDS {
            let scope = match model.is_empty() {
                true => format!("\n{service},{operation},,,,"),
                false => format!("\n{service},,{model},,,"),
            };
            assert!(prices.contains(&scope), "{service} {operation} {model}");
        }
    }

    #[test]
    fn metadata_is_as_long_as_it_is_asked_for() {
        let events = |bytes| Events::new("x", Mix::Many, 1, 0).with_contents(1, bytes);
        let now = DateTime::UNIX_EPOCH;
        assert_eq!(events(0).next_checked(now).metadata, None);
        for bytes in [PAYLOAD_BYTES_MIN, 200, 8_192] {
            let metadata = events(bytes).next_checked(now).metadata.unwrap();
            assert_eq!(metadata.len(), bytes as usize);
            let value: serde_json::Value = serde_json::from_str(&metadata).unwrap();
            let sent = events(bytes).next().metadata.unwrap();
            assert_eq!(sent.fields[PAYLOAD_FIELD].kind.is_some(), value[PAYLOAD_FIELD].is_string());
        }
    }
}
