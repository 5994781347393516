//! Sums that floor (d) adds to rollups. Only the benchmarks use it.

use crate::numeric;
use bigdecimal::BigDecimal;
use meterd_domain::decimal::Total;
use meterd_domain::event::{Charge, PricedEvent};
use std::collections::BTreeMap;

/// Sums to add to one row.
#[derive(Default)]
pub(super) struct Sum {
    requests: i64,
    units: Total,
    input_tokens: i64,
    output_tokens: i64,
    cached_input_tokens: i64,
    cost: Total,
    unpriced: i64,
}

impl Sum {
    pub(super) fn of(priced: &PricedEvent<'_>) -> Self {
        let (cost, unpriced) = match priced.charge {
            Charge::Priced { charge, .. } => (charge.into(), 0),
            Charge::Unpriced(_) => (Total::ZERO, 1),
        };
        let measures = &priced.event.measures;
        Self {
            requests: 1,
            units: measures.units.into(),
            input_tokens: measures.input_tokens,
            output_tokens: measures.output_tokens,
            cached_input_tokens: measures.cached_input_tokens,
            cost,
            unpriced,
        }
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.units += other.units;
        self.input_tokens += other.input_tokens;
        self.output_tokens += other.output_tokens;
        self.cached_input_tokens += other.cached_input_tokens;
        self.cost += other.cost;
        self.unpriced += other.unpriced;
    }
}

/// Sums of many rows, one vector per column.
pub(super) struct Sums {
    pub(super) requests: Vec<i64>,
    pub(super) units: Vec<BigDecimal>,
    pub(super) input_tokens: Vec<i64>,
    pub(super) output_tokens: Vec<i64>,
    pub(super) cached_input_tokens: Vec<i64>,
    pub(super) costs: Vec<BigDecimal>,
    pub(super) unpriced: Vec<i64>,
}

impl Sums {
    pub(super) fn of<K>(rows: &BTreeMap<K, Sum>) -> Self {
        let counts = |of: fn(&Sum) -> i64| rows.values().map(of).collect();
        let decimals = |of: fn(&Sum) -> Total| rows.values().map(|sum| numeric::of(of(sum))).collect();
        Self {
            requests: counts(|sum| sum.requests),
            units: decimals(|sum| sum.units),
            input_tokens: counts(|sum| sum.input_tokens),
            output_tokens: counts(|sum| sum.output_tokens),
            cached_input_tokens: counts(|sum| sum.cached_input_tokens),
            costs: decimals(|sum| sum.cost),
            unpriced: counts(|sum| sum.unpriced),
        }
    }
}
