//! An event as a caller sends it.

use crate::fields::{Fields, UnixTime};
use crate::refusal::shown;
use meterd_domain::decimal::Decimal;
use meterd_domain::event::{Labels, TOKENS_MAX};
use meterd_domain::measures::{Measures, OTHER_MEASURES_MAX, OtherMeasures, Whole, check_name, whole_of};
use meterd_domain::metadata::{Metadata, MetadataError};
use std::collections::BTreeMap;
use std::sync::Arc;

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
    pub service_tier: String,
    /// Other measures: names and decimals.
    pub measures: BTreeMap<String, String>,
    /// A decimal.
    pub reported_cost: String,
    pub labels: Labels,
}

/// The fields that were rounded, with their recorded values.
pub type Rounded = BTreeMap<String, String>;

/// The measures of an event as a caller sends them.
#[derive(Debug)]
pub struct RawMeasures<'a> {
    pub units: &'a str,
    pub input_tokens: i64,
    pub output_tokens: i64,
    pub cached_input_tokens: i64,
    pub amount: &'a str,
    pub reported_cost: &'a str,
    pub others: &'a BTreeMap<String, String>,
}

/// Checks measures, and returns them together with the fields that were rounded.
pub fn measures(fields: &mut Fields, raw: RawMeasures<'_>) -> (Measures, Rounded) {
    let RawMeasures { units, input_tokens, output_tokens, cached_input_tokens, amount, reported_cost, others } = raw;
    fields.count("input_tokens", input_tokens, TOKENS_MAX);
    fields.count("output_tokens", output_tokens, TOKENS_MAX);
    fields.count("cached_input_tokens", cached_input_tokens, TOKENS_MAX);
    // Negative input tokens are already reported.
    let has_too_many_cached = cached_input_tokens > input_tokens.max(0);
    if has_too_many_cached {
        fields.wrong("cached_input_tokens", "must not be more than input_tokens, of which it is a part");
    }
    let mut rounded = Rounded::new();
    let others = other_measures(fields, &mut rounded, others);
    let mut quantity = |field: &str, text: &str| quantity(fields, &mut rounded, field, text);
    let measures = Measures {
        units: if units.is_empty() { Decimal::ONE } else { quantity("units", units) },
        input_tokens,
        output_tokens,
        cached_input_tokens,
        amount: (!amount.is_empty()).then(|| quantity("amount", amount)),
        reported_cost: (!reported_cost.is_empty()).then(|| quantity("reported_cost", reported_cost)),
        others,
    };
    if !measures.others.is_empty() && !has_too_many_cached {
        check_parts(fields, &measures);
    }
    (measures, rounded)
}

/// Parses a quantity, and notes if it was rounded.
fn quantity(fields: &mut Fields, rounded: &mut Rounded, field: &str, text: &str) -> Decimal {
    let (value, changed) = fields.quantity(field, text);
    if changed {
        rounded.insert(field.into(), value.to_string());
    }
    value
}

/// Checks other measures, and leaves out zeros.
fn other_measures(fields: &mut Fields, rounded: &mut Rounded, raw: &BTreeMap<String, String>) -> OtherMeasures {
    if raw.len() > OTHER_MEASURES_MAX {
        fields.wrong("measures", format!("must be at most {OTHER_MEASURES_MAX}, has {}", raw.len()));
        return vec![];
    }
    let mut others = vec![];
    for (name, text) in raw {
        if let Err(predicate) = check_name(name) {
            fields.wrong("measures", format!("{} {predicate}", shown(name)));
            continue;
        }
        let field = format!("measures[\"{name}\"]");
        let value = quantity(fields, rounded, &field, text);
        let is_count = value.scaled() % Decimal::ONE.scaled() == 0
            && value.scaled() <= i128::from(TOKENS_MAX) * Decimal::ONE.scaled();
        if whole_of(name).is_some() && !is_count {
            fields.wrong(field, format!("must be a whole number of tokens from 0 to {TOKENS_MAX}, got {value}"));
        } else if value != Decimal::ZERO {
            others.push((Arc::from(name.as_str()), value));
        }
    }
    others
}

/// Rejects parts that are together more than their whole.
fn check_parts(fields: &mut Fields, measures: &Measures) {
    for (whole, name) in [(Whole::InputTokens, "input_tokens"), (Whole::OutputTokens, "output_tokens")] {
        let (all, parts) = measures.whole_and_parts(whole);
        // Negative tokens are already reported.
        if parts > all && all >= Decimal::ZERO {
            let description = format!(
                "has parts of {name} that are together {parts}, which is more than {name}, {all}: {name} must include them"
            );
            fields.wrong("measures", description);
        }
    }
}
