//! The alert rules: which lines a client's month or day has reached, which of them are to be raised, and which alerts no
//! longer hold.

use crate::decimal::{Decimal, Total, divide_half_even};
use crate::period::{Month, elapsed_and_remaining};
use crate::policy::Policy;
use crate::projection::{change_percent, month_end};
use chrono::{DateTime, NaiveDate, Utc};
use ethnum::I256;
use serde::{Deserialize, Serialize};

/// Days that an anomaly is compared with.
pub const ANOMALY_DAYS_BEFORE: u32 = 29;
/// Of them, how many must have had usage.
pub const ANOMALY_DAYS_MIN: u32 = 7;

/// What an alert is about. The numbers are those of the proto enum, and stand in the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "i16", try_from = "i16")]
#[repr(i16)]
pub enum AlertType {
    Threshold = 1,
    Spike = 2,
    Projection = 3,
    Anomaly = 4,
}

/// How bad an alert is. The numbers are those of the proto enum, and stand in the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "i16", try_from = "i16")]
#[repr(i16)]
pub enum Severity {
    Warning = 1,
    Critical = 2,
}

/// What has happened to an alert. The numbers are those of the proto enum, and stand in the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i16)]
pub enum Change {
    Raised = 1,
    Acknowledged = 2,
    Resolved = 3,
}

/// A number that stands for nothing.
#[derive(Debug, thiserror::Error)]
#[error("{0} is no {1}")]
pub struct UnknownNumber(pub i16, pub &'static str);

/// Numbers of an enum, both ways.
macro_rules! numbered {
    ($name:ident, $what:literal, [$($variant:ident),+]) => {
        impl $name {
            /// Every value, in the order of the numbers.
            pub const ALL: &[Self] = &[$(Self::$variant),+];
        }

        impl From<$name> for i16 {
            fn from(value: $name) -> Self {
                value as i16
            }
        }

        impl TryFrom<i16> for $name {
            type Error = $crate::alert::UnknownNumber;

            fn try_from(number: i16) -> Result<Self, Self::Error> {
                let found = Self::ALL.iter().copied().find(|value| *value as i16 == number);
                found.ok_or($crate::alert::UnknownNumber(number, $what))
            }
        }
    };
}
pub(super) use numbered;

numbered!(AlertType, "alert type", [Threshold, Spike, Projection, Anomaly]);
numbered!(Severity, "severity", [Warning, Critical]);
numbered!(Change, "change of an alert", [Raised, Acknowledged, Resolved]);

/// An alert as it stands in the database, in the feed and in notifications.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alert {
    pub alert_id: String,
    pub client_id: String,
    #[serde(flatten)]
    pub finding: Finding,
    /// One sentence for people.
    pub message: String,
    pub raise_time: DateTime<Utc>,
    /// From 1; goes up when a resolved alert is raised again.
    pub raise_count: i32,
    pub acknowledge_time: Option<DateTime<Utc>>,
    pub acknowledged_by: String,
    pub resolve_time: Option<DateTime<Utc>>,
}

/// A line that is reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    #[serde(rename = "type")]
    pub kind: AlertType,
    pub severity: Severity,
    /// Whose units; empty: cost.
    pub service: String,
    /// First day of the month; of an anomaly the day.
    pub period: NaiveDate,
    pub current: Total,
    pub previous: Option<Total>,
    pub threshold: Total,
    /// At most two decimals.
    pub percent: Option<Total>,
    pub projected: Option<Total>,
}

/// Alerts of a month: one bit for each type and severity, as stored in the database. The bits of a type are next to each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AlertSet(pub i32);

/// Bits of one type. A third severity needs more of them, and a migration of the sets that are stored.
const SEVERITY_BITS: i32 = 2;
const _: () =
    assert!(Severity::ALL.len() <= SEVERITY_BITS as usize && AlertType::ALL.len() * SEVERITY_BITS as usize <= 31);

impl AlertSet {
    /// One alert of a month. Anomalies are of days, and in no set.
    pub fn of(kind: AlertType, severity: Severity) -> Self {
        match kind {
            AlertType::Anomaly => Self(0),
            _ => Self(1 << (SEVERITY_BITS * (kind as i32 - 1) + severity as i32 - 1)),
        }
    }

    /// Whether it has the alert.
    pub fn has(self, kind: AlertType, severity: Severity) -> bool {
        self.0 & Self::of(kind, severity).0 != 0
    }
}

/// What the rules look at in a client's month.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MonthFacts {
    pub month: Month,
    pub cost: Total,
    /// The part of it that recurs once a month, and is not scaled in a projection.
    pub recurring_cost: Total,
    /// Cost of the whole month before.
    pub previous_cost: Total,
    /// The client's own.
    pub today: NaiveDate,
}

impl MonthFacts {
    /// The line of a type and severity, where the rule applies: what is reached, or not.
    fn line(&self, policy: &Policy, kind: AlertType, severity: Severity) -> Option<Finding> {
        let finding = Finding {
            kind,
            severity,
            service: String::new(),
            period: self.month.first_day(),
            current: self.cost,
            previous: None,
            threshold: Total::ZERO,
            percent: None,
            projected: None,
        };
        match kind {
            AlertType::Threshold if policy.threshold_enabled => {
                let threshold = match severity {
                    Severity::Warning => policy.monthly_warning,
                    Severity::Critical => policy.monthly_critical,
                };
                Some(Finding { threshold, ..finding })
            }
            AlertType::Spike
                if policy.spike_enabled
                    && self.previous_cost >= policy.spike_baseline_min
                    && self.previous_cost > Total::ZERO =>
            {
                let percent = match severity {
                    Severity::Warning => policy.spike_warning_percent,
                    Severity::Critical => policy.spike_critical_percent,
                };
                let whole = hundred();
                let scaled = self.previous_cost.scaled() * (whole + percent.scaled());
                Some(Finding {
                    threshold: Total::from_scaled(divide_half_even(scaled, whole)),
                    previous: Some(self.previous_cost),
                    percent: change_percent(self.cost, self.previous_cost),
                    ..finding
                })
            }
            AlertType::Projection if policy.projection_enabled && severity == Severity::Warning => {
                let (elapsed, _) = elapsed_and_remaining(self.today);
                // Only the month that is under way has an end to project.
                let applies = Month::of(self.today) == self.month && elapsed >= policy.projection_first_day;
                applies.then(|| Finding {
                    threshold: policy.monthly_critical.times(policy.projection_factor),
                    projected: Some(month_end(self.cost, self.recurring_cost, elapsed, self.month.days())),
                    ..finding
                })
            }
            _ => None,
        }
    }

    /// The finding of a type and severity, where its line is reached. A month without cost reaches none.
    pub fn reached(&self, policy: &Policy, kind: AlertType, severity: Severity) -> Option<Finding> {
        let finding = self.line(policy, kind, severity)?;
        let measured = finding.projected.unwrap_or(finding.current);
        (measured >= finding.threshold && self.cost > Total::ZERO).then_some(finding)
    }

    /// What is to be raised: of each type the highest level that is reached, unless it is open, and a warning only where
    /// there has never been a critical one.
    pub fn to_raise(&self, policy: &Policy, raised: AlertSet, open: AlertSet) -> Vec<Finding> {
        let highest = |kind| {
            [Severity::Critical, Severity::Warning].into_iter().find_map(|level| self.reached(policy, kind, level))
        };
        [AlertType::Threshold, AlertType::Spike, AlertType::Projection]
            .into_iter()
            .filter_map(highest)
            .filter(|finding| {
                let Finding { kind, severity, .. } = *finding;
                let outdone = severity == Severity::Warning && raised.has(kind, Severity::Critical);
                !open.has(kind, severity) && !outdone
            })
            .collect()
    }

    /// Whether [`Self::to_raise`] may give something, whatever recurs in the month and whatever the month before has cost: if
    /// not, neither need be known. What recurs only lowers a projection; a dearer month before only lifts the line of a spike.
    pub fn may_raise(&self, policy: &Policy, raised: AlertSet, open: AlertSet) -> bool {
        let previous_cost = policy.spike_baseline_min.max(Total::from_scaled(I256::ONE));
        let most = Self { recurring_cost: Total::ZERO, previous_cost, ..*self };
        !most.to_raise(policy, raised, open).is_empty()
    }

    /// Whether an open alert of this month is over: its line is not reached, because it has moved or the usage was
    /// corrected. Time alone, which takes a projection up and down, resolves nothing.
    pub fn resolves(&self, policy: &Policy, alert: &Finding) -> bool {
        if self.reached(policy, alert.kind, alert.severity).is_some() {
            return false;
        }
        if self.cost < alert.current {
            return true;
        }
        match self.line(policy, alert.kind, alert.severity) {
            Some(line) => line.threshold != alert.threshold,
            // Switched off; or a projection of a month that is over, or not old enough by a changed policy.
            None => alert.kind != AlertType::Projection || !policy.projection_enabled,
        }
    }
}

/// 100 %, as [`Total`] holds it.
fn hundred() -> I256 {
    I256::from(Decimal::ONE.scaled() * 100)
}

/// A day of one thing that is counted: the total cost, or the units of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DayFacts {
    /// Empty: cost.
    pub service: String,
    pub day: NaiveDate,
    pub value: Total,
    /// The [`ANOMALY_DAYS_BEFORE`] days before, as far as there has been usage by then: days before the first usage of all are
    /// no days without usage, or everything new would be an anomaly.
    pub days_before: u32,
    pub sum_before: Total,
    /// How many of them had usage.
    pub days_with_usage: u32,
}

impl DayFacts {
    /// The day as an anomaly, if it is one.
    pub fn anomaly(&self, policy: &Policy) -> Option<Finding> {
        let least = if self.service.is_empty() { policy.anomaly_cost_min } else { policy.anomaly_units_min };
        if !policy.anomaly_enabled
            || self.days_with_usage < ANOMALY_DAYS_MIN
            || self.value < least
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
            threshold: mean.times(policy.anomaly_factor),
            percent: change_percent(self.value, mean),
            projected: None,
        })
    }
}

impl Finding {
    /// One sentence for people.
    pub fn message(&self, client: &str, currency: &str) -> String {
        let month = |day: NaiveDate| day.format("%B %Y").to_string();
        let money = |amount: Total| format!("{} {currency}", amount.shown());
        let (period, current, threshold) = (month(self.period), money(self.current), money(self.threshold));
        let level = match self.severity {
            Severity::Warning => "warning",
            Severity::Critical => "critical",
        };
        match self.kind {
            AlertType::Threshold => {
                format!("{client} has used {current} in {period}: the {level} threshold of {threshold} is reached.")
            }
            AlertType::Spike => {
                let before = month(Month::of(self.period).previous().first_day());
                let previous = money(self.previous.unwrap_or_default());
                let percent = self.percent.unwrap_or_default();
                format!(
                    "{client} has used {current} in {period}, {percent} % more than in all of {before} ({previous})."
                )
            }
            AlertType::Projection => {
                let projected = money(self.projected.unwrap_or_default());
                format!(
                    "{client} is heading for {projected} in {period}, with {current} used so far: the line is {threshold}."
                )
            }
            AlertType::Anomaly => {
                let day = self.period.format("%-d %B %Y");
                let mean = self.previous.unwrap_or_default();
                if self.service.is_empty() {
                    let mean = money(mean);
                    return format!("{client} used {current} on {day}; the days before had {mean} on average.");
                }
                let (current, mean, service) = (self.current, mean.shown(), &self.service);
                format!("{client} used {current} units of {service} on {day}; the days before had {mean} on average.")
            }
        }
    }
}

#[cfg(test)]
#[path = "alert_tests.rs"]
mod tests;
