//! The anomaly rule, which compares a day with the days before it.

use super::{AlertType, Finding, Severity};
use crate::decimal::{Decimal, Total};
use crate::policy::Policy;
use crate::projection::change_percent;
use chrono::NaiveDate;
use ethnum::I256;

/// Number of days that an anomaly is compared with.
pub const ANOMALY_DAYS_BEFORE: u32 = 29;
/// Minimum number of these days with usage.
pub const ANOMALY_DAYS_MIN: u32 = 7;

/// One day of a value that is checked for anomalies: the total cost, or the units of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DayFacts {
    /// Empty: the cost.
    pub service: String,
    pub day: NaiveDate,
    pub value: Total,
    /// Number of previous days, at most [`ANOMALY_DAYS_BEFORE`]. Days before the first usage are not counted; otherwise
    /// all new usage would be an anomaly.
    pub days_before: u32,
    pub sum_before: Total,
    /// Number of previous days with usage.
    pub days_with_usage: u32,
}

impl DayFacts {
    /// Returns the anomaly if the day is one.
    pub fn anomaly(&self, policy: &Policy) -> Option<Finding> {
        let minimum = if self.service.is_empty() { policy.anomaly_cost_min } else { policy.anomaly_units_min };
        if !policy.anomaly_enabled
            || self.days_with_usage < ANOMALY_DAYS_MIN
            || self.value < minimum
            || self.value == Total::ZERO
        {
            return None;
        }
        // Exact: value × days > sum × factor.
        let days = I256::from(self.days_before) * I256::from(Decimal::ONE.scaled());
        if self.value.scaled() * days <= self.sum_before.scaled() * policy.anomaly_factor.scaled() {
            return None;
        }
        let mean = self.sum_before.scale_by(1, self.days_before);
        Some(Finding {
            kind: AlertType::Anomaly,
            severity: Severity::Warning,
            service: self.service.clone(),
            period: self.day,
            current: self.value,
            previous: Some(mean),
            threshold: mean.multiply(policy.anomaly_factor),
            percent: change_percent(self.value, mean),
            projected: None,
            limit: None,
        })
    }
}
