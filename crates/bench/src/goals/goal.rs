//! A goal, the measured figure, and whether the goal is reached.

use crate::product::table;
use crate::spread::Spread;
use serde_json::{Value, json};

/// The bound of the measured figure.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

/// One row of the table of goals. If the bound depends on a floor, `measured` is the ratio to that floor within each round.
#[derive(Clone, Debug)]
pub struct Goal {
    /// What is measured, such as `TrackUsage, 64 callers, one hot client`.
    pub what: String,
    /// The measured figures themselves, such as `18,200/s, (b) 4,010/s`.
    pub figures: String,
    pub measured: Spread,
    /// The unit of `measured` and of the bound, such as `× (b)`, `µs` or `MiB`.
    pub unit: &'static str,
    pub bound: Bound,
}

/// The result of one section.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub goals: Vec<Goal>,
    /// Notes for the reader, such as the machine.
    pub notes: Vec<String>,
    /// Whether everything that was recorded and read is right. If not, the figures mean nothing.
    pub is_exact: bool,
}

impl Goal {
    /// The share of the goal that the median reaches: from 1 on, the goal is reached.
    pub fn share(&self) -> f64 {
        match self.bound {
            Bound::AtLeast(bound) => self.measured.median / bound,
            // Zero is within every bound.
            Bound::AtMost(bound) => bound / self.measured.median.max(f64::MIN_POSITIVE),
        }
    }

    /// Whether the median is within the bound.
    pub fn is_reached(&self) -> bool {
        match self.bound {
            Bound::AtLeast(bound) => self.measured.median >= bound,
            Bound::AtMost(bound) => self.measured.median <= bound,
        }
    }

    fn verdict(&self) -> String {
        // Rounded down, so that 0.999 does not look like a reached goal.
        if self.is_reached() {
            "reached".into()
        } else {
            format!("{:.2} of the goal", (self.share() * 100.0).floor() / 100.0)
        }
    }

    fn cells(&self) -> Vec<String> {
        let Spread { median, min, max } = self.measured;
        let bound = match self.bound {
            Bound::AtLeast(bound) => format!("≥ {} {}", figure(bound), self.unit),
            Bound::AtMost(bound) => format!("≤ {} {}", figure(bound), self.unit),
        };
        let between = format!("{}–{}", figure(min), figure(max));
        vec![self.what.clone(), bound, figure(median), between, self.verdict(), self.figures.clone()]
    }

    /// As JSON.
    pub fn json(&self) -> Value {
        let (at_least, at_most) = match self.bound {
            Bound::AtLeast(bound) => (Some(bound), None),
            Bound::AtMost(bound) => (None, Some(bound)),
        };
        json!({
            "what": self.what,
            "figures": self.figures,
            "unit": self.unit,
            "at_least": at_least,
            "at_most": at_most,
            "measured": self.measured.json(),
            "share": self.share(),
            "reached": self.is_reached(),
        })
    }
}

/// The table of goals, as lines of text.
pub fn lines(goals: &[Goal]) -> Vec<String> {
    let heads = ["what", "goal", "measured", "min–max", "", "figures"].map(str::to_owned).to_vec();
    let rows: Vec<_> = std::iter::once(heads).chain(goals.iter().map(Goal::cells)).collect();
    table(&rows, &[false, false, true, true, false, false])
}

/// Formats a figure with three significant digits, and without a fraction from 100 on.
fn figure(value: f64) -> String {
    match value.abs() {
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn goal(bound: Bound, median: f64) -> Goal {
        let measured = Spread { median, min: median, max: median };
        Goal { what: "calls".into(), figures: String::new(), measured, unit: "× (b)", bound }
    }

    #[test]
    fn a_goal_is_reached_on_its_side_of_the_bound() {
        for (bound, median, reached, share) in [
            (Bound::AtLeast(4.0), 4.0, true, 1.0),
            (Bound::AtLeast(4.0), 2.8, false, 0.7),
            (Bound::AtMost(2.0), 2.0, true, 1.0),
            (Bound::AtMost(2.0), 4.0, false, 0.5),
        ] {
            let goal = goal(bound, median);
            assert_eq!(goal.is_reached(), reached, "{goal:?}");
            assert!((goal.share() - share).abs() < 1e-9, "{goal:?}");
        }
    }

    #[test]
    fn what_is_missed_by_a_hair_does_not_read_as_the_goal() {
        assert_eq!(goal(Bound::AtLeast(4.0), 3.999).verdict(), "0.99 of the goal");
        assert_eq!(goal(Bound::AtMost(2.0), 0.0).verdict(), "reached");
    }
}
