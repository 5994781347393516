//! An event as a caller sends it.

use crate::fields::{Fields, UnixTime};
use meterd_domain::decimal::Decimal;
use meterd_domain::event::{Measures, TOKENS_MAX};
use meterd_domain::metadata::{Metadata, MetadataError};
use std::collections::HashMap;

/// An event that is not checked yet. Each protocol fills it from its own messages. Empty texts are absent fields.
#[derive(Debug, Default)]
pub struct RawEvent {
    pub client_id: String,
    pub service: String,
    pub operation: String,
    pub model: String,
    /// A decimal. If absent, the event has one unit.
    pub units: String,
    pub input_tokens: i64,
    pub output_tokens: i64,
    pub cached_input_tokens: i64,
    /// A decimal.
    pub amount: String,
    /// If absent, the server's time.
    pub event_time: Option<UnixTime>,
    /// If absent, the server creates one.
    pub idempotency_key: String,
    pub subject: String,
    pub external_id: String,
    /// Metadata is checked while it is converted, so that it is read only once. An error becomes a violation of the event.
    pub metadata: Option<Result<Metadata, MetadataError>>,
}

/// The fields that were rounded, with their recorded values.
pub type Rounded = HashMap<String, String>;

/// The measures of an event as a caller sends them.
#[derive(Debug)]
pub struct RawMeasures<'a> {
    pub units: &'a str,
    pub input_tokens: i64,
    pub output_tokens: i64,
    pub cached_input_tokens: i64,
    pub amount: &'a str,
}

/// Checks measures, and returns them together with the fields that were rounded.
pub fn measures(fields: &mut Fields, raw: RawMeasures<'_>) -> (Measures, Rounded) {
    let RawMeasures { units, input_tokens, output_tokens, cached_input_tokens, amount } = raw;
    fields.count("input_tokens", input_tokens, TOKENS_MAX);
    fields.count("output_tokens", output_tokens, TOKENS_MAX);
    fields.count("cached_input_tokens", cached_input_tokens, TOKENS_MAX);
    // Negative input tokens are already reported.
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
