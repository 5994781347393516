//! Sums as rows have them.

/// The sums of any row that has the seven columns; every query has a row type of its own.
macro_rules! sums_of {
    ($row:expr) => {
        meterd_domain::rollup::Sums {
            request_count: $row.request_count,
            units: $row.units.into(),
            input_tokens: $row.input_tokens,
            output_tokens: $row.output_tokens,
            cached_input_tokens: $row.cached_input_tokens,
            cost: $row.cost.into(),
            unpriced_event_count: $row.unpriced_event_count,
        }
    };
}
pub(super) use sums_of;
