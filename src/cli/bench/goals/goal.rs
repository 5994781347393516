//! A goal, what was measured beside it, and whether it is reached.

use crate::cli::bench::report::Spread;
use crate::cli::chart::table;
use serde_json::{Value, json};

/// What a goal asks of the measured figure.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

/// One row of the table of goals. Where the bound hangs on a floor, `measured` is the ratio to it, each round's figure by
/// the floor of the same round.
#[derive(Clone, Debug)]
pub struct Goal {
    /// What is measured, such as `TrackUsage, 64 callers, one hot client`.
    pub what: String,
    /// The measured figures themselves, such as `18,200/s, (b) 4,010/s`.
    pub figures: String,
    pub measured: Spread,
    /// Of `measured` and of the bound, such as `× (b)`, `µs` or `MiB`.
    pub unit: &'static str,
    pub bound: Bound,
}

/// What one section of `bench goals` comes to.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub goals: Vec<Goal>,
    /// What else a reader has to know, such as the machine.
    pub notes: Vec<String>,
    /// Whether what was recorded and read is what it has to be; where not, the figures mean nothing.
    pub is_exact: bool,
}

impl Goal {
    /// How much of the goal the median is: 1 and more is reached.
    pub fn share(&self) -> f64 {
        match self.bound {
            Bound::AtLeast(bound) => self.measured.median / bound,
            // Nothing at all is within every bound.
            Bound::AtMost(bound) => bound / self.measured.median.max(f64::MIN_POSITIVE),
        }
    }

    /// Whether the median keeps the bound.
    pub fn is_reached(&self) -> bool {
        match self.bound {
            Bound::AtLeast(bound) => self.measured.median >= bound,
            Bound::AtMost(bound) => self.measured.median <= bound,
        }
    }

    fn verdict(&self) -> String {
        // Rounded down: 0.999 of a goal is not the goal.
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

    /// For machines.
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

/// The table of goals, for people.
pub fn lines(goals: &[Goal]) -> Vec<String> {
    let heads = ["what", "goal", "measured", "min–max", "", "figures"].map(str::to_owned).to_vec();
    let rows: Vec<_> = std::iter::once(heads).chain(goals.iter().map(Goal::cells)).collect();
    table(&rows, &[false, false, true, true, false, false])
}

/// With three significant digits, and no fraction from a hundred on.
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
