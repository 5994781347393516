//! What the load consists of: model calls of many clients, or of a hot one.

use super::plan::Mix;
use crate::domain::event::{Measures, PayloadHash, UsageEvent, payload_hash};
use crate::proto;
use chrono::{DateTime, Utc};

const SERVICE: &str = "openai";
const OPERATION: &str = "chat_completion";
const MODEL: &str = "gpt-4o-mini";
const INPUT_TOKENS: i64 = 374;
const OUTPUT_TOKENS: i64 = 44;

/// Makes events, each with a key that nobody has.
#[derive(Clone, Debug)]
pub struct Events {
    /// Tells the floor's clients from the server's.
    prefix: &'static str,
    clients: u32,
    hot_percent: u32,
}

impl Events {
    /// Events of `clients` clients, all alike, or `hot_percent` of them of one.
    pub fn new(prefix: &'static str, mix: Mix, clients: u32, hot_percent: u32) -> Self {
        Self { prefix, clients, hot_percent: if mix == Mix::Hot { hot_percent } else { 0 } }
    }

    /// Every client, sorted.
    pub fn client_ids(&self) -> Vec<String> {
        let numbered = (0..self.clients).map(|number| self.client_id(number));
        numbered.chain([self.hot_client_id()]).collect()
    }

    fn client_id(&self, number: u32) -> String {
        format!("{}-{number:06}", self.prefix)
    }

    fn hot_client_id(&self) -> String {
        format!("{}-hot", self.prefix)
    }

    fn any_client_id(&self) -> String {
        if rand::random_range(0..100) < self.hot_percent {
            self.hot_client_id()
        } else {
            self.client_id(rand::random_range(0..self.clients))
        }
    }

    /// The next event, as a caller sends it.
    pub fn next(&self) -> proto::UsageEvent {
        Self::of(self.any_client_id())
    }

    /// An event of this client, as a caller sends it.
    pub fn of(client_id: String) -> proto::UsageEvent {
        proto::UsageEvent {
            client_id,
            service: SERVICE.into(),
            operation: OPERATION.into(),
            model: MODEL.into(),
            input_tokens: INPUT_TOKENS,
            output_tokens: OUTPUT_TOKENS,
            idempotency_key: new_key(),
            ..Default::default()
        }
    }

    /// The next event, as the server makes it of the same request.
    pub fn next_checked(&self, now: DateTime<Utc>) -> (UsageEvent, PayloadHash) {
        Self::checked_of(self.any_client_id(), now)
    }

    /// An event of this client, as the server makes it of the same request.
    pub fn checked_of(client_id: String, now: DateTime<Utc>) -> (UsageEvent, PayloadHash) {
        let measures = Measures {
            units: crate::domain::decimal::Decimal::parse("1").expect("is a decimal"),
            input_tokens: INPUT_TOKENS,
            output_tokens: OUTPUT_TOKENS,
            ..Measures::default()
        };
        let event = UsageEvent {
            client_id: client_id.into(),
            service: SERVICE.into(),
            operation: OPERATION.into(),
            model: MODEL.into(),
            measures,
            event_time: now,
            idempotency_key: new_key().into(),
            subject: String::new(),
            external_id: String::new(),
            metadata: None,
        };
        let hash = payload_hash(&event, false);
        (event, hash)
    }
}

/// As random as the UUIDs that callers use.
fn new_key() -> String {
    format!("{:032x}", rand::random::<u128>())
}
