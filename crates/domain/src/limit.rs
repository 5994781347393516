//! Limits: how much of a client's usage is wanted in a day or a month.

use crate::decimal::{Decimal, Total};
use crate::event::{Charge, Labels, PricedEvent, UsageEvent};
use crate::numbered::numbered;
use crate::period::Month;
use chrono::{DateTime, Days, NaiveDate, Utc};
use ethnum::I256;
use serde::{Deserialize, Serialize};
use std::cmp::Ordering;
use std::collections::BTreeSet;

/// The percents of a limit that raise an alert, if it has no others.
pub const DEFAULT_ALERT_PERCENTS: [u16; 3] = [80, 90, 100];
/// Largest percent that can raise an alert.
pub const ALERT_PERCENT_MAX: u16 = 1_000;
/// From this percent on, a limit is nearly reached.
const YELLOW_PERCENT: u16 = 80;
/// At this percent, a limit is reached.
pub const REACHED_PERCENT: u16 = 100;

/// What a limit counts. The database stores the numbers of the proto enum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "i16", try_from = "i16")]
#[repr(i16)]
pub enum LimitMeasure {
    Units = 1,
    /// Input and output tokens. Cached input tokens are part of the input tokens.
    Tokens = 2,
    /// Events.
    Requests = 3,
    Cost = 4,
}

/// The period after which a limit begins again. The database stores the numbers of the proto enum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "i16", try_from = "i16")]
#[repr(i16)]
pub enum LimitPeriod {
    Day = 1,
    Month = 2,
}

numbered!(LimitMeasure, "measure of a limit", [Units, Tokens, Requests, Cost]);
numbered!(LimitPeriod, "period of a limit", [Day, Month]);

/// Which events a limit counts. An empty list matches every event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LimitFilter {
    pub services: Vec<String>,
    pub operations: Vec<String>,
    pub models: Vec<String>,
    pub subjects: Vec<String>,
    /// An event must have all of them.
    pub labels: Labels,
}

/// Events that a caller asks about. A text that is empty, or a label that is missing, is any.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dimensions {
    pub service: String,
    pub operation: String,
    pub model: String,
    pub subject: String,
    pub labels: Labels,
}

/// A limit of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    pub client_id: String,
    pub limit_id: String,
    pub display_name: String,
    pub filter: LimitFilter,
    pub measure: LimitMeasure,
    pub period: LimitPeriod,
    pub amount: Decimal,
    /// Whether usage is refused in advance when the limit is reached.
    pub is_hard: bool,
    /// Sorted.
    pub alert_percents: Vec<u16>,
    /// Increases when the filter changes. A counter of an earlier revision has counted other events.
    pub revision: i32,
    pub create_time: DateTime<Utc>,
    pub update_time: DateTime<Utc>,
}

/// What an alert says about its limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitFinding {
    pub limit_id: String,
    pub display_name: String,
    pub measure: LimitMeasure,
    pub period: LimitPeriod,
    pub is_hard: bool,
    pub amount: Total,
    /// The percent of `amount` that is reached.
    pub percent: u16,
}

/// How much of a limit is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LimitState {
    /// Below 80 %.
    Green,
    /// From 80 %.
    Yellow,
    /// From 100 %.
    Red,
}

fn matches_any(values: &[String], value: &str) -> bool {
    values.is_empty() || values.iter().any(|of| of == value)
}

fn may_match_any(values: &[String], value: &str) -> bool {
    value.is_empty() || matches_any(values, value)
}

impl LimitFilter {
    /// Returns whether the filter matches events that have these names. Subjects and labels are not compared.
    pub fn matches_names(&self, service: &str, operation: &str, model: &str) -> bool {
        matches_any(&self.services, service)
            && matches_any(&self.operations, operation)
            && matches_any(&self.models, model)
    }

    /// Returns whether the filter matches an event.
    pub fn matches(&self, event: &UsageEvent) -> bool {
        self.matches_names(&event.service, &event.operation, &event.model)
            && matches_any(&self.subjects, &event.subject)
            && self.labels.iter().all(|(name, value)| event.labels.get(name) == Some(value))
    }

    /// Returns whether the filter may match an event with these dimensions.
    pub fn may_match(&self, of: &Dimensions) -> bool {
        may_match_any(&self.services, &of.service)
            && may_match_any(&self.operations, &of.operation)
            && may_match_any(&self.models, &of.model)
            && may_match_any(&self.subjects, &of.subject)
            && self.labels.iter().all(|(name, value)| of.labels.get(name).is_none_or(|asked| asked == value))
    }
}

impl LimitPeriod {
    /// Returns the first day of the period that contains a day.
    pub fn start(self, day: NaiveDate) -> NaiveDate {
        match self {
            Self::Day => day,
            Self::Month => Month::of(day).first_day(),
        }
    }

    /// Returns the first day after the period that contains a day.
    pub fn end(self, day: NaiveDate) -> NaiveDate {
        match self {
            Self::Day => day + Days::new(1),
            Self::Month => Month::of(day).next().first_day(),
        }
    }
}

/// Compares a value with a percentage of an amount, without rounding.
fn compare_with(value: Total, percent: u16, amount: Total) -> Ordering {
    (value.scaled() * I256::from(100)).cmp(&(amount.scaled() * I256::from(percent)))
}

impl Limit {
    /// Returns what an event counts for. `None` if the limit does not count it.
    pub fn quantity(&self, event: &PricedEvent<'_>) -> Option<Total> {
        self.filter.matches(event.event).then(|| {
            let measures = &event.event.measures;
            let whole = |number: i64| Total::from_scaled(I256::from(number) * I256::from(Decimal::ONE.scaled()));
            match (self.measure, event.charge) {
                (LimitMeasure::Units, _) => measures.units.into(),
                (LimitMeasure::Tokens, _) => whole(measures.input_tokens) + whole(measures.output_tokens),
                (LimitMeasure::Requests, _) => whole(1),
                (LimitMeasure::Cost, Charge::Priced { charge, .. }) => charge.into(),
                (LimitMeasure::Cost, Charge::Unpriced(_)) => Total::ZERO,
            }
        })
    }

    /// Returns the percents that raise an alert and that `used` has reached. Without usage, none is reached.
    pub fn reached(&self, used: Total) -> BTreeSet<u16> {
        let is_reached = |percent: &u16| used > Total::ZERO && compare_with(used, *percent, self.amount.into()).is_ge();
        self.alert_percents.iter().copied().filter(is_reached).collect()
    }

    /// Returns the state of the limit when `taken` is used or reserved.
    pub fn state(&self, taken: Total) -> LimitState {
        let amount = self.amount.into();
        if compare_with(taken, REACHED_PERCENT, amount).is_ge() {
            LimitState::Red
        } else if compare_with(taken, YELLOW_PERCENT, amount).is_ge() {
            LimitState::Yellow
        } else {
            LimitState::Green
        }
    }

    /// Returns what remains when `taken` is used or reserved: never below zero.
    pub fn remaining(&self, taken: Total) -> Total {
        (Total::from(self.amount) - taken).max(Total::ZERO)
    }

    /// Compares what remains of two limits, as shares of their amounts. Less remains of the smaller one.
    pub fn compare_remaining_shares(
        (left, left_taken): (&Self, Total),
        (right, right_taken): (&Self, Total),
    ) -> Ordering {
        let (of_left, of_right) = (I256::from(left.amount.scaled()), I256::from(right.amount.scaled()));
        match (of_left == I256::ZERO, of_right == I256::ZERO) {
            // Nothing remains of nothing.
            (true, true) => Ordering::Equal,
            (true, false) => Ordering::Less,
            (false, true) => Ordering::Greater,
            // 1 - taken / amount, on both sides multiplied by both amounts.
            (false, false) => (right_taken.scaled() * of_left).cmp(&(left_taken.scaled() * of_right)),
        }
    }
}

impl LimitFinding {
    /// Returns the name of the limit for people.
    pub fn name(&self) -> &str {
        if self.display_name.is_empty() { &self.limit_id } else { &self.display_name }
    }
}

#[cfg(test)]
#[path = "limit_tests.rs"]
mod tests;
