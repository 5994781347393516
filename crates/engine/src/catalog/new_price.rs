//! A price to create, and its checks.

use super::check_service;
use crate::fields::{Fields, UnixTime};
use crate::refusal::{Reason, shown};
use chrono::{DateTime, SecondsFormat, Utc};
use meterd_domain::catalog::{Catalog, PriceScope};
use meterd_domain::decimal::Rate;
use meterd_domain::event::{ID_BYTES_MAX, TOKENS_MAX};
use meterd_domain::measures::check_name;
use meterd_domain::price::Rates;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Maximum number of rates of other measures.
const MEASURE_RATES_MAX: usize = 32;
/// Maximum length of the source of a price, in bytes.
pub(super) const SOURCE_BYTES_MAX: usize = 256;
/// Maximum length of the note of a price, in bytes.
const NOTE_BYTES_MAX: usize = 1_024;

/// A price to create, unchecked.
#[derive(Debug, Default)]
pub struct NewPrice {
    /// Empty: any client.
    pub client_id: String,
    pub service: String,
    /// Empty: any operation.
    pub operation: String,
    /// Empty: any model.
    pub model: String,
    /// Empty: any service tier.
    pub service_tier: String,
    /// `None`: any number of input tokens.
    pub above_input_tokens: Option<i64>,
    /// `None`: from the beginning of time.
    pub effective_time: Option<UnixTime>,
    /// `None`: until a later price replaces it.
    pub end_time: Option<UnixTime>,
    /// Components of [`Rates`] by name, with their decimals.
    pub rates: Vec<(&'static str, String)>,
    /// Rates of other measures by name.
    pub measure_rates: BTreeMap<String, String>,
    pub source: String,
    pub note: String,
}

/// The checked values of a price.
pub(super) struct Checked {
    pub effective_time: Option<DateTime<Utc>>,
    pub end_time: Option<DateTime<Utc>>,
    pub rates: Rates,
}

impl NewPrice {
    /// Returns what the price is for.
    pub(super) fn scope(&self) -> PriceScope<'_> {
        PriceScope {
            client_id: &self.client_id,
            service: &self.service,
            operation: &self.operation,
            model: &self.model,
            service_tier: &self.service_tier,
            above_input_tokens: self.above_input_tokens,
        }
    }

    /// Checks all fields. `path` is the path of the price in the request, such as "price".
    pub(super) fn check(&self, fields: &mut Fields, catalog: &Catalog, path: &str) -> Checked {
        let at = |field: &str| format!("{path}.{field}");
        fields.identifier(&at("client_id"), &self.client_id, ID_BYTES_MAX);
        fields.required(&at("service"), &self.service, ID_BYTES_MAX);
        fields.identifier(&at("operation"), &self.operation, ID_BYTES_MAX);
        fields.identifier(&at("model"), &self.model, ID_BYTES_MAX);
        fields.identifier(&at("service_tier"), &self.service_tier, ID_BYTES_MAX);
        fields.count(&at("above_input_tokens"), self.above_input_tokens.unwrap_or_default(), TOKENS_MAX);
        check_service(fields, catalog, &at("service"), &self.service);
        fields.text(&at("source"), &self.source, SOURCE_BYTES_MAX);
        fields.text(&at("note"), &self.note, NOTE_BYTES_MAX);
        let effective_time = self.effective_time.and_then(|time| fields.time(&at("effective_time"), time));
        let end_time = self.end_time.and_then(|time| fields.time(&at("end_time"), time));
        check_end(fields, &at("end_time"), effective_time, end_time);
        Checked { effective_time, end_time, rates: self.check_rates(fields, &at("rates")) }
    }

    fn check_rates(&self, fields: &mut Fields, path: &str) -> Rates {
        let mut rates = Rates::default();
        for (name, value) in &self.rates {
            let field = format!("{path}.{name}");
            match rates.component_mut(name) {
                Some(component) => *component = fields.rate(&field, value),
                None => fields.wrong(field, "is no component of a price"),
            }
        }
        let measures = &self.measure_rates;
        if measures.len() > MEASURE_RATES_MAX {
            let description = format!("must be at most {MEASURE_RATES_MAX}, has {}", measures.len());
            fields.wrong(format!("{path}.measures"), description);
            return rates;
        }
        for (name, value) in measures {
            match check_name(name) {
                Ok(()) => {
                    let rate = fields.rate(&rate_field(path, name), value);
                    rates.measures.extend(rate.map(|rate| (Arc::from(name.as_str()), rate)));
                }
                Err(predicate) => fields.wrong(format!("{path}.measures"), format!("{} {predicate}", shown(name))),
            }
        }
        if self.rates.is_empty() && measures.is_empty() {
            fields.wrong(path, "needs at least one component");
        }
        rates
    }
}

/// Returns the path of a rate: a component, or a measure that is a part of the tokens.
fn rate_field(path: &str, name: &str) -> String {
    match Rates::default().component_mut(name) {
        Some(_) => format!("{path}.{name}"),
        None => format!("{path}.measures[\"{name}\"]"),
    }
}

/// Adds an error for each rate per token above `max`, because it may be meant per million tokens.
pub(super) fn check_high_rates(fields: &mut Fields, path: &str, rates: &Rates, max: Rate) {
    for (name, rate) in rates.token_rates().filter(|(_, rate)| *rate > max) {
        let description = format!(
            "is {rate} for one token, which is more than {max}: if it is meant for a million tokens, send {}, else set \
             confirm_high_rates",
            rate.per_million()
        );
        fields.wrong_because(Reason::RateNotConfirmed, rate_field(&format!("{path}.rates"), name), description);
    }
}

pub(super) fn instant(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::AutoSi, true)
}

/// Adds an error if a price would end before it begins.
pub(super) fn check_end(fields: &mut Fields, field: &str, from: Option<DateTime<Utc>>, end: Option<DateTime<Utc>>) {
    if let (Some(from), Some(end)) = (from, end)
        && end <= from
    {
        fields.wrong(field, format!("must be later than the effective time, {}", instant(from)));
    }
}
