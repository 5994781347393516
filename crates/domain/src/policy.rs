//! Alert policies: the fields, the built-in values, and what a client overrides.

use crate::decimal::Total;
use ethnum::I256;
use serde::{Deserialize, Serialize};

/// Calls a macro with the fields of a policy, in the order of the contract: name, kind and built-in value. This is the only list.
///
/// The kinds are `switch`, `amount`, `factor` (an amount above 0), `day` (of a month, from 1), `count` (from 1) and `hours` (from 1).
#[macro_export]
macro_rules! policy_fields {
    ($callback:ident) => {
        $callback! {
            threshold_enabled: switch = true;
            monthly_warning: amount = tenths(500);
            monthly_critical: amount = tenths(1_000);
            spike_enabled: switch = true;
            spike_warning_percent: amount = tenths(500);
            spike_critical_percent: amount = tenths(1_000);
            /// A previous month that cost less is not compared with.
            spike_baseline_min: amount = tenths(10);
            projection_enabled: switch = true;
            /// Multiplied by the critical threshold.
            projection_factor: factor = tenths(15);
            projection_first_day: day = 3;
            anomaly_enabled: switch = true;
            anomaly_factor: factor = tenths(30);
            anomaly_cost_min: amount = tenths(10);
            anomaly_units_min: amount = tenths(100);
            unpriced_enabled: switch = true;
            /// Fewer events of a service without a charge in a month raise no alert.
            unpriced_events_min: count = 1;
            silence_enabled: switch = false;
            silence_hours: hours = 24;
        }
    };
}

/// The type of a kind of field.
macro_rules! value {
    (switch) => {
        bool
    };
    (day) => {
        u32
    };
    (count) => {
        u32
    };
    (hours) => {
        u32
    };
    ($kind:ident) => {
        Total
    };
}

macro_rules! define {
    ($($(#[$doc:meta])* $name:ident: $kind:ident = $built_in:expr;)*) => {
        /// A policy with every value.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct Policy {
            $($(#[$doc])* pub $name: value!($kind),)*
        }

        /// The values that a policy sets, as stored in the database. The others are those of the policy below it. Unknown fields
        /// are ignored, so that an older version can still record with a policy that a newer one has written.
        #[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(default)]
        pub struct Overrides {
            $(#[serde(skip_serializing_if = "Option::is_none")] pub $name: Option<value!($kind)>,)*
        }

        impl Overrides {
            /// The name of every value in the contract.
            pub const NAMES: &[&str] = &[$(stringify!($name)),*];

            /// Takes one value from other overrides. Returns whether there is a value of this name.
            pub fn take(&mut self, name: &str, from: &Self) -> bool {
                match name {
                    $(stringify!($name) => self.$name = from.$name,)*
                    _ => return false,
                }
                true
            }
        }

        impl Default for Policy {
            /// The built-in policy.
            fn default() -> Self {
                Self { $($name: $built_in,)* }
            }
        }

        impl Policy {
            /// Returns this policy with the values that `over` sets.
            pub fn with_overrides(&self, over: &Overrides) -> Self {
                Self { $($name: over.$name.unwrap_or(self.$name),)* }
            }
        }
    };
}
policy_fields!(define);

impl Overrides {
    /// Returns the names of the values that are set.
    pub fn names(&self) -> Vec<String> {
        match serde_json::to_value(self) {
            Ok(serde_json::Value::Object(values)) => values.into_iter().map(|(name, _)| name).collect(),
            _ => vec![],
        }
    }
}

/// A field of a policy with its value.
pub type Line = (&'static str, Total);

/// Two fields of which the lower line is above the upper one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contradiction {
    pub lower: Line,
    pub upper: Line,
}

/// A whole number of tenths.
const fn tenths(number: u32) -> Total {
    Total::from_scaled(I256::from_words(0, number as i128 * 100_000_000_000))
}

impl Policy {
    /// Returns the fields that contradict each other.
    pub fn contradictions(&self) -> Vec<Contradiction> {
        let pairs = [
            (("monthly_warning", self.monthly_warning), ("monthly_critical", self.monthly_critical)),
            (
                ("spike_warning_percent", self.spike_warning_percent),
                ("spike_critical_percent", self.spike_critical_percent),
            ),
        ];
        let pairs = pairs.into_iter().map(|(lower, upper)| Contradiction { lower, upper });
        pairs.filter(|Contradiction { lower, upper }| lower.1 > upper.1).collect()
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
        assert!(policy.unpriced_enabled && !policy.silence_enabled);
        assert_eq!((policy.unpriced_events_min, policy.silence_hours), (1, 24));
    }

    #[test]
    fn overrides_replace_single_values_and_can_be_stored() {
        let over = Overrides { monthly_warning: Some(tenths(1)), spike_enabled: Some(false), ..Overrides::default() };
        let text = serde_json::to_string(&over).unwrap();
        assert_eq!(text, r#"{"monthly_warning":"0.1","spike_enabled":false}"#);
        assert_eq!(serde_json::from_str::<Overrides>(&text).unwrap(), over);
        assert_eq!(over.names(), ["monthly_warning", "spike_enabled"]);
        assert_eq!(serde_json::from_str::<Overrides>(r#"{"from_a_newer_version":1}"#).unwrap(), Overrides::default());
        let policy = Policy::default().with_overrides(&over);
        assert_eq!(policy.monthly_warning, tenths(1));
        assert_eq!(Policy { monthly_warning: tenths(500), spike_enabled: true, ..policy }, Policy::default());
    }

    #[test]
    fn one_value_is_taken_and_the_others_stay() {
        let mut over =
            Overrides { monthly_warning: Some(tenths(1)), spike_enabled: Some(false), ..Overrides::default() };
        assert!(over.take("spike_enabled", &Overrides::default()));
        assert_eq!(over, Overrides { monthly_warning: Some(tenths(1)), ..Overrides::default() });
        assert!(!over.take("channels", &Overrides::default()));
        assert_eq!((Overrides::NAMES.len(), Overrides::NAMES[3]), (18, "spike_enabled"));
    }

    #[test]
    fn a_warning_above_its_critical_line_contradicts() {
        let over = Overrides { monthly_warning: Some(tenths(1_001)), ..Overrides::default() };
        let contradiction =
            Contradiction { lower: ("monthly_warning", tenths(1_001)), upper: ("monthly_critical", tenths(1_000)) };
        assert_eq!(Policy::default().with_overrides(&over).contradictions(), [contradiction]);
        let equal = Overrides { monthly_warning: Some(tenths(1_000)), ..Overrides::default() };
        assert!(Policy::default().with_overrides(&equal).contradictions().is_empty());
    }
}
