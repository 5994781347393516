//! Alert policies: the default policy, the values that a client overrides, and the resulting policy.

use crate::decimal::Total;
use ethnum::I256;
use serde::{Deserialize, Serialize};

/// A complete policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    pub threshold_enabled: bool,
    pub monthly_warning: Total,
    pub monthly_critical: Total,
    pub spike_enabled: bool,
    pub spike_warning_percent: Total,
    pub spike_critical_percent: Total,
    /// A spike is not checked if the month before has cost less than this.
    pub spike_baseline_min: Total,
    pub projection_enabled: bool,
    /// Factor of the critical threshold.
    pub projection_factor: Total,
    /// Day of the month, from 1.
    pub projection_first_day: u32,
    pub anomaly_enabled: bool,
    pub anomaly_factor: Total,
    pub anomaly_cost_min: Total,
    pub anomaly_units_min: Total,
}

/// The values that a policy overrides, in the form stored in the database. Other values come from the policy below.
/// Unknown fields of a newer version are ignored, so that usage is recorded while replicas are replaced one by one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Overrides {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threshold_enabled: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub monthly_warning: Option<Total>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub monthly_critical: Option<Total>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spike_enabled: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spike_warning_percent: Option<Total>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spike_critical_percent: Option<Total>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spike_baseline_min: Option<Total>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub projection_enabled: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub projection_factor: Option<Total>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub projection_first_day: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub anomaly_enabled: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub anomaly_factor: Option<Total>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub anomaly_cost_min: Option<Total>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub anomaly_units_min: Option<Total>,
}

impl Overrides {
    /// The API names of all values that can be overridden.
    pub const NAMES: [&str; 14] = [
        "threshold_enabled",
        "monthly_warning",
        "monthly_critical",
        "spike_enabled",
        "spike_warning_percent",
        "spike_critical_percent",
        "spike_baseline_min",
        "projection_enabled",
        "projection_factor",
        "projection_first_day",
        "anomaly_enabled",
        "anomaly_factor",
        "anomaly_cost_min",
        "anomaly_units_min",
    ];

    /// Returns the names of the values that are set.
    pub fn names(&self) -> Vec<String> {
        match serde_json::to_value(self) {
            Ok(serde_json::Value::Object(values)) => values.into_iter().map(|(name, _)| name).collect(),
            _ => vec![],
        }
    }
}

/// Returns a number of tenths.
const fn tenths(number: u32) -> Total {
    Total::from_scaled(I256::from_words(0, number as i128 * 100_000_000_000))
}

impl Default for Policy {
    /// The built-in policy (FEATURES A1 to A4).
    fn default() -> Self {
        Self {
            threshold_enabled: true,
            monthly_warning: tenths(500),
            monthly_critical: tenths(1_000),
            spike_enabled: true,
            spike_warning_percent: tenths(500),
            spike_critical_percent: tenths(1_000),
            spike_baseline_min: tenths(10),
            projection_enabled: true,
            projection_factor: tenths(15),
            projection_first_day: 3,
            anomaly_enabled: true,
            anomaly_factor: tenths(30),
            anomaly_cost_min: tenths(10),
            anomaly_units_min: tenths(100),
        }
    }
}

impl Policy {
    /// Returns this policy with the values that `over` sets.
    pub fn with(&self, over: &Overrides) -> Self {
        Self {
            threshold_enabled: over.threshold_enabled.unwrap_or(self.threshold_enabled),
            monthly_warning: over.monthly_warning.unwrap_or(self.monthly_warning),
            monthly_critical: over.monthly_critical.unwrap_or(self.monthly_critical),
            spike_enabled: over.spike_enabled.unwrap_or(self.spike_enabled),
            spike_warning_percent: over.spike_warning_percent.unwrap_or(self.spike_warning_percent),
            spike_critical_percent: over.spike_critical_percent.unwrap_or(self.spike_critical_percent),
            spike_baseline_min: over.spike_baseline_min.unwrap_or(self.spike_baseline_min),
            projection_enabled: over.projection_enabled.unwrap_or(self.projection_enabled),
            projection_factor: over.projection_factor.unwrap_or(self.projection_factor),
            projection_first_day: over.projection_first_day.unwrap_or(self.projection_first_day),
            anomaly_enabled: over.anomaly_enabled.unwrap_or(self.anomaly_enabled),
            anomaly_factor: over.anomaly_factor.unwrap_or(self.anomaly_factor),
            anomaly_cost_min: over.anomaly_cost_min.unwrap_or(self.anomaly_cost_min),
            anomaly_units_min: over.anomaly_units_min.unwrap_or(self.anomaly_units_min),
        }
    }

    /// Returns pairs of fields of which the first must not be above the second, but is.
    pub fn contradictions(&self) -> Vec<(&'static str, &'static str)> {
        let pairs = [
            (self.monthly_warning > self.monthly_critical, ("monthly_warning", "monthly_critical")),
            (
                self.spike_warning_percent > self.spike_critical_percent,
                ("spike_warning_percent", "spike_critical_percent"),
            ),
        ];
        pairs.into_iter().filter(|(contradicts, _)| *contradicts).map(|(_, names)| names).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_policy_has_the_documented_values() {
        let policy = Policy::default();
        let shown = [
            policy.monthly_warning,
            policy.monthly_critical,
            policy.spike_warning_percent,
            policy.spike_critical_percent,
            policy.spike_baseline_min,
            policy.projection_factor,
            policy.anomaly_factor,
            policy.anomaly_cost_min,
            policy.anomaly_units_min,
        ];
        assert_eq!(shown.map(|value| value.to_string()), ["50", "100", "50", "100", "1", "1.5", "3", "1", "10"]);
        assert!(policy.contradictions().is_empty());
    }

    #[test]
    fn overrides_replace_single_values_and_can_be_stored() {
        let over = Overrides { monthly_warning: Some(tenths(1)), spike_enabled: Some(false), ..Overrides::default() };
        let text = serde_json::to_string(&over).unwrap();
        assert_eq!(text, r#"{"monthly_warning":"0.1","spike_enabled":false}"#);
        assert_eq!(serde_json::from_str::<Overrides>(&text).unwrap(), over);
        assert_eq!(over.names(), ["monthly_warning", "spike_enabled"]);
        assert_eq!(serde_json::from_str::<Overrides>(r#"{"from_a_newer_version":1}"#).unwrap(), Overrides::default());
        let policy = Policy::default().with(&over);
        assert_eq!(policy.monthly_warning, tenths(1));
        assert_eq!(Policy { monthly_warning: tenths(500), spike_enabled: true, ..policy }, Policy::default());
    }

    #[test]
    fn a_warning_threshold_above_the_critical_one_is_a_contradiction() {
        let over = Overrides { monthly_warning: Some(tenths(1_001)), ..Overrides::default() };
        assert_eq!(Policy::default().with(&over).contradictions(), [("monthly_warning", "monthly_critical")]);
        let equal = Overrides { monthly_warning: Some(tenths(1_000)), ..Overrides::default() };
        assert!(Policy::default().with(&equal).contradictions().is_empty());
    }
}
