//! What a batch of events adds to days and months.

use crate::domain::decimal::Total;
use crate::domain::event::{Charge, Measures, PricedEvent};
use crate::domain::period::Month;
use chrono::NaiveDate;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Sums over events. A difference may be negative.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    pub request_count: i64,
    pub units: Total,
    pub input_tokens: i64,
    pub output_tokens: i64,
    pub cached_input_tokens: i64,
    pub cost: Total,
    pub unpriced_event_count: i64,
}

/// Client and month.
pub type MonthKey = (Arc<str>, Month);
/// Client, month and service.
pub type MonthServiceKey = (Arc<str>, Month, Arc<str>);
/// Client, day, service, operation and model.
pub type DayKey = (Arc<str>, NaiveDate, Arc<str>, Arc<str>, Arc<str>);

/// What is to be added to each row, every table's rows in the order in which they are locked.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Deltas {
    pub months: BTreeMap<MonthKey, Sums>,
    pub month_services: BTreeMap<MonthServiceKey, Sums>,
    pub days: BTreeMap<DayKey, Sums>,
}

impl Sums {
    /// The sums of one event.
    pub fn of(measures: &Measures, charge: Charge) -> Self {
        let (cost, unpriced_event_count) = match charge {
            Charge::Priced { charge, .. } => (charge.into(), 0),
            Charge::Unpriced(_) => (Total::ZERO, 1),
        };
        Self {
            request_count: 1,
            units: measures.units.into(),
            input_tokens: measures.input_tokens,
            output_tokens: measures.output_tokens,
            cached_input_tokens: measures.cached_input_tokens,
            cost,
            unpriced_event_count,
        }
    }

    /// What pricing one waiting event changes.
    pub fn of_pricing(cost: Total) -> Self {
        Self { cost, unpriced_event_count: -1, ..Self::default() }
    }
}

impl std::ops::AddAssign for Sums {
    fn add_assign(&mut self, other: Self) {
        self.request_count += other.request_count;
        self.units += other.units;
        self.input_tokens += other.input_tokens;
        self.output_tokens += other.output_tokens;
        self.cached_input_tokens += other.cached_input_tokens;
        self.cost += other.cost;
        self.unpriced_event_count += other.unpriced_event_count;
    }
}

impl std::iter::Sum for Sums {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |mut sum, next| {
            sum += next;
            sum
        })
    }
}

impl Deltas {
    /// Adds to the day, and to the month and its service that the day belongs to.
    pub fn add(&mut self, key: DayKey, sums: Sums) {
        let month = Month::of(key.1);
        *self.months.entry((key.0.clone(), month)).or_default() += sums;
        *self.month_services.entry((key.0.clone(), month, key.2.clone())).or_default() += sums;
        *self.days.entry(key).or_default() += sums;
    }

    /// What these events add.
    pub fn of_events(events: &[PricedEvent<'_>]) -> Self {
        let mut deltas = Self::default();
        for PricedEvent { event, day, charge, .. } in events {
            let (client, service) = (event.client_id.clone(), event.service.clone());
            let key = (client, *day, service, event.operation.clone(), event.model.clone());
            deltas.add(key, Sums::of(&event.measures, *charge));
        }
        deltas
    }
}

impl std::ops::Sub for Sums {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self {
            request_count: self.request_count - other.request_count,
            units: self.units - other.units,
            input_tokens: self.input_tokens - other.input_tokens,
            output_tokens: self.output_tokens - other.output_tokens,
            cached_input_tokens: self.cached_input_tokens - other.cached_input_tokens,
            cost: self.cost - other.cost,
            unpriced_event_count: self.unpriced_event_count - other.unpriced_event_count,
        }
    }
}
