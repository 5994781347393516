//! The alert rules: which thresholds a client's month or day has reached, which alerts are raised, and which are
//! resolved.

mod anomaly;
mod bound;
mod limit;
mod message;
mod silence;
mod unpriced;

pub use crate::numbered::UnknownNumber;
pub use anomaly::{ANOMALY_DAYS_BEFORE, ANOMALY_DAYS_MIN, DayFacts};
pub use message::{Details, MODELS_SHOWN};
pub use silence::SilenceFacts;
pub use unpriced::{UnpricedFacts, UnpricedSample};

use crate::decimal::{Decimal, Total, divide_half_even};
use crate::limit::{LimitFinding, LimitMeasure, LimitPeriod};
use crate::numbered::numbered;
use crate::period::{Month, elapsed_and_remaining};
use crate::policy::Policy;
use crate::projection::{change_percent, month_end};
use chrono::{DateTime, NaiveDate, Utc};
use ethnum::I256;
use serde::{Deserialize, Serialize};
/// The rule that raised an alert. The database stores the numbers of the proto enum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "i16", try_from = "i16")]
#[repr(i16)]
pub enum AlertType {
    Threshold = 1,
    Spike = 2,
    Projection = 3,
    Anomaly = 4,
    Unpriced = 5,
    Silence = 6,
    Limit = 7,
}

/// Severity of an alert. The database stores the numbers of the proto enum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "i16", try_from = "i16")]
#[repr(i16)]
pub enum Severity {
    Warning = 1,
    Critical = 2,
}

/// A change of an alert. The database stores the numbers of the proto enum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i16)]
pub enum Change {
    Raised = 1,
    Acknowledged = 2,
    Resolved = 3,
}

numbered!(AlertType, "alert type", [Threshold, Spike, Projection, Anomaly, Unpriced, Silence, Limit]);

impl AlertType {
    /// Whether the period of an alert of this type is or may be a day. The period of the others is a month.
    pub fn may_be_of_day(self) -> bool {
        match self {
            Self::Threshold | Self::Spike | Self::Projection | Self::Unpriced => false,
            Self::Anomaly | Self::Silence | Self::Limit => true,
        }
    }

    /// Whether alerts of this type are about the cost of a month. The row of the month stores their bits, and a bound below which
    /// none of them is raised.
    pub fn is_of_month_cost(self) -> bool {
        match self {
            Self::Threshold | Self::Spike | Self::Projection => true,
            Self::Anomaly | Self::Unpriced | Self::Silence | Self::Limit => false,
        }
    }
}
numbered!(Severity, "severity", [Warning, Critical]);
numbered!(Change, "change of an alert", [Raised, Acknowledged, Resolved]);

/// An alert as it is stored, and as it appears in the feed and in notifications.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alert {
    pub alert_id: String,
    pub client_id: String,
    #[serde(flatten)]
    pub finding: Finding,
    /// One sentence for people.
    pub message: String,
    pub raise_time: DateTime<Utc>,
    /// Starts at 1 and is increased when a resolved alert is raised again.
    pub raise_count: i32,
    pub acknowledge_time: Option<DateTime<Utc>>,
    pub acknowledged_by: String,
    pub resolve_time: Option<DateTime<Utc>>,
}

/// A threshold that has been reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    #[serde(rename = "type")]
    pub kind: AlertType,
    pub severity: Severity,
    /// The service whose units or unpriced events are counted. Empty: all services.
    pub service: String,
    /// First day of the month. For an anomaly, or a limit by day, its day. For a silence, the day of the last event.
    pub period: NaiveDate,
    pub current: Total,
    pub previous: Option<Total>,
    pub threshold: Total,
    /// Rounded to two decimals.
    pub percent: Option<Total>,
    pub projected: Option<Total>,
    /// The limit, if the finding is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<Box<LimitFinding>>,
}

/// What the values of a finding measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// An amount of money.
    Money,
    /// Units of the service.
    Units,
    /// A number of events.
    Events,
    /// A number of hours.
    Hours,
    /// A number of tokens.
    Tokens,
}

impl Finding {
    /// Returns whether the period is a day. If not, it is a month.
    pub fn is_of_day(&self) -> bool {
        match &self.limit {
            Some(limit) => limit.period == LimitPeriod::Day,
            None => self.kind.may_be_of_day(),
        }
    }

    /// Returns what the values measure.
    pub fn unit(&self) -> Unit {
        match self.kind {
            AlertType::Unpriced => Unit::Events,
            AlertType::Silence => Unit::Hours,
            AlertType::Limit => match self.limit.as_ref().map(|limit| limit.measure) {
                Some(LimitMeasure::Cost) => Unit::Money,
                Some(LimitMeasure::Tokens) => Unit::Tokens,
                Some(LimitMeasure::Requests) => Unit::Events,
                Some(LimitMeasure::Units) | None => Unit::Units,
            },
            _ if self.service.is_empty() => Unit::Money,
            _ => Unit::Units,
        }
    }
}

impl Unit {
    /// Returns the word that follows a value. `currency` is that of the deployment.
    pub fn word(self, currency: &str) -> &str {
        match self {
            Self::Money => currency,
            Self::Units => "units",
            Self::Events => "events",
            Self::Hours => "hours",
            Self::Tokens => "tokens",
        }
    }

    /// Returns the currency of the values. Empty if they are not amounts of money.
    pub fn currency(self, currency: &str) -> &str {
        match self {
            Self::Money => currency,
            Self::Units | Self::Events | Self::Hours | Self::Tokens => "",
        }
    }
}

/// The alerts about the cost of a month, as stored in the database: one bit for each type and severity. The bits of a type are
/// adjacent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AlertSet(pub i32);

/// Number of bits of one type. A third severity needs more bits and a migration of the stored sets.
const SEVERITY_BITS: i32 = 2;
const _: () =
    assert!(Severity::ALL.len() <= SEVERITY_BITS as usize && AlertType::ALL.len() * SEVERITY_BITS as usize <= 31);

impl AlertSet {
    /// Returns the set with one alert. Alerts that are not about the cost of a month are in no set.
    pub fn of(kind: AlertType, severity: Severity) -> Self {
        match kind.is_of_month_cost() {
            true => Self(1 << (SEVERITY_BITS * (kind as i32 - 1) + severity as i32 - 1)),
            false => Self(0),
        }
    }

    /// Returns whether the set contains the alert.
    pub fn has(self, kind: AlertType, severity: Severity) -> bool {
        self.0 & Self::of(kind, severity).0 != 0
    }
}

/// The values of a client's month that the rules use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MonthFacts {
    pub month: Month,
    pub cost: Total,
    /// The part of the cost that recurs once a month and is not scaled in a projection.
    pub recurring_cost: Total,
    /// Cost of the whole previous month.
    pub previous_cost: Total,
    /// The day in the client's time zone.
    pub today: NaiveDate,
}

impl MonthFacts {
    /// Returns the finding of a type and severity if the rule applies, whether or not its threshold is reached.
    fn evaluate(&self, policy: &Policy, kind: AlertType, severity: Severity) -> Option<Finding> {
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
            limit: None,
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
                // Only the current month can be projected.
                let applies = Month::of(self.today) == self.month && elapsed >= policy.projection_first_day;
                applies.then(|| Finding {
                    threshold: policy.monthly_critical.multiply(policy.projection_factor),
                    projected: Some(month_end(self.cost, self.recurring_cost, elapsed, self.month.days())),
                    ..finding
                })
            }
            _ => None,
        }
    }

    /// Returns the finding of a type and severity if its threshold is reached. A month without cost reaches no
    /// threshold.
    pub fn reached(&self, policy: &Policy, kind: AlertType, severity: Severity) -> Option<Finding> {
        let finding = self.evaluate(policy, kind, severity)?;
        let measured = finding.projected.unwrap_or(finding.current);
        (measured >= finding.threshold && self.cost > Total::ZERO).then_some(finding)
    }

    /// Returns the alerts to raise: for each type the highest severity reached, unless it is open. A warning is not
    /// raised if the month has ever had a critical alert of this type.
    pub fn to_raise(&self, policy: &Policy, raised: AlertSet, open: AlertSet) -> Vec<Finding> {
        let highest = |kind| {
            [Severity::Critical, Severity::Warning].into_iter().find_map(|level| self.reached(policy, kind, level))
        };
        [AlertType::Threshold, AlertType::Spike, AlertType::Projection]
            .into_iter()
            .filter_map(highest)
            .filter(|finding| !is_excluded(finding.kind, finding.severity, raised, open))
            .collect()
    }

    /// Returns whether an open alert of this month is resolved: its threshold is not reached, because the threshold
    /// changed or the usage was corrected. A projection rises and falls with time, so time alone does not resolve an
    /// alert.
    pub fn resolves(&self, policy: &Policy, alert: &Finding) -> bool {
        if self.reached(policy, alert.kind, alert.severity).is_some() {
            return false;
        }
        if self.cost < alert.current {
            return true;
        }
        match self.evaluate(policy, alert.kind, alert.severity) {
            Some(now) => now.threshold != alert.threshold,
            // The rule is disabled; or the month of a projection is over, or too young since the policy changed.
            None => alert.kind != AlertType::Projection || !policy.projection_enabled,
        }
    }
}

/// Returns whether an alert is not raised although its threshold is reached: it is open, or it is a warning after a critical alert.
fn is_excluded(kind: AlertType, severity: Severity, raised: AlertSet, open: AlertSet) -> bool {
    open.has(kind, severity) || severity == Severity::Warning && raised.has(kind, Severity::Critical)
}

/// Returns 100 % in units of [`Total`].
fn hundred() -> I256 {
    I256::from(Decimal::ONE.scaled() * 100)
}
#[cfg(test)]
#[path = "alert_tests.rs"]
mod tests;
