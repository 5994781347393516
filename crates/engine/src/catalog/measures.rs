//! Checks the measures of an event.

use crate::fields::Fields;
use meterd_domain::decimal::Decimal;
use meterd_domain::event::{Measures, TOKENS_MAX};

/// The measures of an event as a caller sends them.
#[derive(Debug)]
pub struct RawMeasures<'a> {
    pub units: &'a str,
    pub input_tokens: i64,
    pub output_tokens: i64,
    pub cached_input_tokens: i64,
    pub amount: &'a str,
}

/// Checks measures and returns them.
pub(super) fn measures(fields: &mut Fields, raw: RawMeasures<'_>) -> Measures {
    let RawMeasures { units, input_tokens, output_tokens, cached_input_tokens, amount } = raw;
    fields.count("input_tokens", input_tokens, TOKENS_MAX);
    fields.count("output_tokens", output_tokens, TOKENS_MAX);
    fields.count("cached_input_tokens", cached_input_tokens, TOKENS_MAX);
    // Negative input tokens are already reported.
    if cached_input_tokens > input_tokens.max(0) {
        fields.wrong("cached_input_tokens", "must not be more than input_tokens, of which it is a part");
    }
    Measures {
        units: if units.is_empty() { Decimal::ONE } else { fields.quantity("units", units).0 },
        input_tokens,
        output_tokens,
        cached_input_tokens,
        amount: (!amount.is_empty()).then(|| fields.quantity("amount", amount).0),
    }
}
