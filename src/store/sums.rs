//! Sums as rows have them, and as columns for statements that write many rows at once.

use crate::domain::decimal::Total;
use crate::domain::rollup::Sums;

/// The sums of any row that has the seven columns; every query has a row type of its own.
macro_rules! sums_of {
    ($row:expr) => {
        $crate::domain::rollup::Sums {
            request_count: $row.request_count,
            units: $row.units,
            input_tokens: $row.input_tokens,
            output_tokens: $row.output_tokens,
            cached_input_tokens: $row.cached_input_tokens,
            cost: $row.cost,
            unpriced_event_count: $row.unpriced_event_count,
        }
    };
}
pub(super) use sums_of;

/// One column a sum.
#[derive(Default)]
pub struct SumsColumns {
    pub request_counts: Vec<i64>,
    pub units: Vec<Total>,
    pub input_tokens: Vec<i64>,
    pub output_tokens: Vec<i64>,
    pub cached_input_tokens: Vec<i64>,
    pub costs: Vec<Total>,
    pub unpriced_event_counts: Vec<i64>,
}

impl<'a> FromIterator<&'a Sums> for SumsColumns {
    fn from_iter<I: IntoIterator<Item = &'a Sums>>(all: I) -> Self {
        let mut columns = Self::default();
        for sums in all {
            columns.request_counts.push(sums.request_count);
            columns.units.push(sums.units);
            columns.input_tokens.push(sums.input_tokens);
            columns.output_tokens.push(sums.output_tokens);
            columns.cached_input_tokens.push(sums.cached_input_tokens);
            columns.costs.push(sums.cost);
            columns.unpriced_event_counts.push(sums.unpriced_event_count);
        }
        columns
    }
}
