//! Measures: the quantities of an event that can be charged.

use crate::decimal::Decimal;
use std::sync::Arc;

/// Maximum number of other measures of an event.
pub const OTHER_MEASURES_MAX: usize = 16;
/// Maximum length of the name of a measure.
pub const MEASURE_NAME_BYTES_MAX: usize = 64;

/// The quantities of an event that can be charged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Measures {
    /// Number of units.
    pub units: Decimal,
    /// Input tokens, including all of their parts.
    pub input_tokens: i64,
    /// Output tokens, including all of their parts.
    pub output_tokens: i64,
    /// Cached input tokens: a part of `input_tokens`.
    pub cached_input_tokens: i64,
    /// The amount that a percentage is applied to.
    pub amount: Option<Decimal>,
    /// What the provider charges for the event by its own report, in the currency of the deployment.
    pub reported_cost: Option<Decimal>,
    /// All other measures.
    pub others: OtherMeasures,
}

/// Measures that are not fields of an event, sorted by name, without zeros.
pub type OtherMeasures = Vec<(Arc<str>, Decimal)>;

/// Tokens that measures are parts of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whole {
    InputTokens,
    OutputTokens,
}

/// The measures that are parts of the tokens of an event, in addition to `cached_input_tokens`. Providers charge them at other
/// rates than the rest. No two of them overlap.
pub const PARTS: [(&str, Whole); 12] = [
    ("audio_input_tokens", Whole::InputTokens),
    ("audio_output_tokens", Whole::OutputTokens),
    ("cache_write_1h_input_tokens", Whole::InputTokens),
    ("cache_write_5m_input_tokens", Whole::InputTokens),
    ("cache_write_audio_input_tokens", Whole::InputTokens),
    ("cached_audio_input_tokens", Whole::InputTokens),
    ("cached_image_input_tokens", Whole::InputTokens),
    ("image_input_tokens", Whole::InputTokens),
    ("image_output_tokens", Whole::OutputTokens),
    ("reasoning_output_tokens", Whole::OutputTokens),
    ("video_input_tokens", Whole::InputTokens),
    ("video_output_tokens", Whole::OutputTokens),
];

/// Name of the sum of the reported costs, among the sums of measures.
pub const REPORTED_COST: &str = "reported_cost";
/// Name of the number of events that have a reported cost, among the sums of measures.
pub const REPORTED_EVENT_COUNT: &str = "reported_event_count";

/// Names that would be read as a field of an event, as a component of a price or as another sum.
const RESERVED: [&str; 10] = [
    "amount",
    "charge",
    "cost",
    "fixed",
    "percent_of_amount",
    REPORTED_COST,
    REPORTED_EVENT_COUNT,
    "request_count",
    "unit",
    "units",
];

/// Returns the tokens that a measure is a part of.
pub fn whole_of(measure: &str) -> Option<Whole> {
    PARTS.iter().find(|(part, _)| *part == measure).map(|(_, whole)| *whole)
}

/// Checks the name of a measure. A name that ends with `_tokens` or `_token` must be one of [`PARTS`], so that a misspelt part is
/// not charged in addition to its whole.
///
/// # Errors
/// What is wrong, as the predicate of a sentence.
pub fn check_name(name: &str) -> Result<(), String> {
    let is_letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    if name.is_empty() || name.len() > MEASURE_NAME_BYTES_MAX {
        return Err(format!("must be a name of 1 to {MEASURE_NAME_BYTES_MAX} bytes"));
    }
    if !name.bytes().all(is_letter) || !name.as_bytes()[0].is_ascii_lowercase() {
        return Err("must be a name of lower-case letters, digits and underscores that begins with a letter".into());
    }
    if matches!(name, "input_tokens" | "output_tokens" | "cached_input_tokens") || RESERVED.contains(&name) {
        return Err("must not be a measure, because events or prices have a field for it: set the field".into());
    }
    if whole_of(name).is_none() && (name.ends_with("_tokens") || name.ends_with("_token")) {
        let known: Vec<&str> = PARTS.iter().map(|(part, _)| *part).collect();
        return Err(format!("must be a known kind of tokens; known are {}", known.join(", ")));
    }
    Ok(())
}

impl Measures {
    /// Returns whether the event has units but no tokens. A missing token count and zero are the same on the wire. Zero
    /// units mean that nothing was used.
    pub fn reports_no_tokens(&self) -> bool {
        self.input_tokens == 0 && self.output_tokens == 0 && self.units != Decimal::ZERO
    }

    /// Returns what the event adds to the sums of measures by name: its other measures, its reported cost, and one event that has
    /// it.
    pub fn summed(&self) -> impl Iterator<Item = (Arc<str>, Decimal)> {
        let others = self.others.iter().map(|(name, quantity)| (name.clone(), *quantity));
        let reported = self.reported_cost.into_iter().flat_map(|cost| {
            let count = (Arc::from(REPORTED_EVENT_COUNT), Decimal::ONE);
            let cost = (cost != Decimal::ZERO).then(|| (Arc::from(REPORTED_COST), cost));
            cost.into_iter().chain([count])
        });
        others.chain(reported)
    }

    /// Returns the tokens of a whole, and those of its parts.
    pub fn whole_and_parts(&self, whole: Whole) -> (Decimal, Decimal) {
        let tokens = |count: i64| i128::from(count) * Decimal::ONE.scaled();
        let (all, cached) = match whole {
            Whole::InputTokens => (self.input_tokens, self.cached_input_tokens),
            Whole::OutputTokens => (self.output_tokens, 0),
        };
        let others = self.others.iter().filter(|(name, _)| whole_of(name) == Some(whole));
        let parts = tokens(cached) + others.map(|(_, quantity)| quantity.scaled()).sum::<i128>();
        (Decimal::from_scaled(tokens(all)), Decimal::from_scaled(parts))
    }
}

/// Formats other measures as a JSON object of decimal strings, or `None` if there are none.
pub fn to_json(others: &OtherMeasures) -> Option<String> {
    if others.is_empty() {
        return None;
    }
    // Names and decimals need no escapes.
    let members: Vec<String> = others.iter().map(|(name, quantity)| format!("\"{name}\":\"{quantity}\"")).collect();
    Some(format!("{{{}}}", members.join(",")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_sorted_and_have_valid_names() {
        assert!(PARTS.is_sorted_by_key(|(part, _)| part));
        for (part, _) in PARTS {
            assert_eq!(check_name(part), Ok(()), "{part}");
        }
    }

    #[test]
    fn names_that_mean_something_else_are_rejected() {
        for name in [REPORTED_COST, REPORTED_EVENT_COUNT] {
            assert!(check_name(name).unwrap_err().contains("set the field"), "{name}");
        }
        for name in ["pages", "gpu_seconds", "web_searches_2", "a"] {
            assert_eq!(check_name(name), Ok(()), "{name}");
        }
        let long = "m".repeat(65);
        let wrong =
            ["", "Pages", "2pages", "_pages", "gpu-seconds", "sc\u{f6}res", "units", "input_tokens", "cost", &long];
        for name in wrong {
            assert!(check_name(name).is_err(), "{name}");
        }
        let error = check_name("cache_wirte_5m_input_tokens").unwrap_err();
        assert!(error.contains("cache_write_5m_input_tokens"), "{error}");
    }

    #[test]
    fn the_parts_of_a_whole_are_added_up() {
        let quantity = |text: &str| Decimal::parse(text).unwrap();
        let measures = Measures {
            input_tokens: 100,
            output_tokens: 7,
            cached_input_tokens: 10,
            others: vec![
                ("audio_input_tokens".into(), quantity("5")),
                ("pages".into(), quantity("3")),
                ("reasoning_output_tokens".into(), quantity("7")),
            ],
            ..Measures::default()
        };
        assert_eq!(measures.whole_and_parts(Whole::InputTokens), (quantity("100"), quantity("15")));
        assert_eq!(measures.whole_and_parts(Whole::OutputTokens), (quantity("7"), quantity("7")));
        assert_eq!(
            to_json(&measures.others).unwrap(),
            r#"{"audio_input_tokens":"5","pages":"3","reasoning_output_tokens":"7"}"#
        );
    }
}
