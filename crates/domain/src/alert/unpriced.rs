//! The rule about events that have no charge.

use super::{AlertType, Finding, Severity};
use crate::decimal::{Decimal, Total};
use crate::event::UnpricedReason;
use crate::period::Month;
use crate::policy::Policy;
use ethnum::I256;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The events of a service in a client's month that have no charge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnpricedFacts {
    pub service: String,
    pub month: Month,
    pub event_count: i64,
}

impl UnpricedFacts {
    /// Returns the finding if there are at least as many events as the policy says.
    pub fn unpriced(&self, policy: &Policy) -> Option<Finding> {
        let minimum = i64::from(policy.unpriced_events_min.max(1));
        (policy.unpriced_enabled && self.event_count >= minimum).then(|| Finding {
            kind: AlertType::Unpriced,
            severity: Severity::Warning,
            service: self.service.clone(),
            period: self.month.first_day(),
            current: whole(self.event_count),
            previous: None,
            threshold: whole(minimum),
            percent: None,
            projected: None,
            limit: None,
        })
    }
}

/// Returns a whole number as a total.
pub(super) fn whole(number: i64) -> Total {
    Total::from_scaled(I256::from(number) * I256::from(Decimal::ONE.scaled()))
}

/// Models and reasons of unpriced events.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnpricedSample {
    /// For each model, its number of events. The empty model is that of events without one.
    models: BTreeMap<Arc<str>, u64>,
    reasons: BTreeSet<i16>,
}

impl UnpricedSample {
    /// Adds events.
    pub fn add(&mut self, model: &Arc<str>, reason: UnpricedReason, event_count: u64) {
        *self.models.entry(model.clone()).or_default() += event_count;
        self.reasons.insert(reason as i16);
    }

    /// Returns the number of events.
    pub fn event_count(&self) -> u64 {
        self.models.values().sum()
    }

    /// Returns the names of the models, those with the most events first.
    pub fn models(&self) -> Vec<&str> {
        let mut models: Vec<_> = self.models.iter().filter(|(model, _)| !model.is_empty()).collect();
        models.sort_by(|left, right| right.1.cmp(left.1).then_with(|| left.0.cmp(right.0)));
        models.into_iter().map(|(model, _)| &**model).collect()
    }

    /// Returns the names of the reasons.
    pub fn reasons(&self) -> Vec<&'static str> {
        self.reasons.iter().map(|reason| UnpricedReason::from_number(*reason).name()).collect()
    }
}
