//! The lowest cost of a month with which an alert can be raised.

use super::{AlertSet, AlertType, MonthFacts, Severity, is_excluded};
use crate::decimal::Total;
use crate::period::elapsed_and_remaining;
use crate::policy::Policy;
use crate::projection::month_end;
use chrono::Datelike;
use ethnum::I256;

impl MonthFacts {
    /// Returns a cost below which [`Self::to_raise`] returns no alert, whatever the recurring cost is: a recurring cost
    /// can only lower a projection. `None` if it returns no alert for any cost. Does not use the costs of the month in
    /// `self`.
    pub fn lowest_cost_to_raise(&self, policy: &Policy, raised: AlertSet, open: AlertSet) -> Option<Total> {
        let alerts = AlertType::ALL.iter().flat_map(|&kind| Severity::ALL.iter().map(move |&level| (kind, level)));
        let lowest = alerts
            .filter(|&(kind, severity)| !is_excluded(kind, severity, raised, open))
            .filter_map(|(kind, severity)| self.evaluate(policy, kind, severity))
            .map(|finding| match finding.kind {
                AlertType::Projection => {
                    let (elapsed, _) = elapsed_and_remaining(self.today);
                    lowest_cost_with_month_end(finding.threshold, elapsed, self.month.days())
                }
                _ => finding.threshold,
            });
        lowest.min().map(|lowest| lowest.max(Total::from_scaled(I256::ONE)))
    }

    /// Returns the lowest [`Self::lowest_cost_to_raise`] of all costs of the previous month and all sets of alerts.
    pub fn lowest_cost_to_raise_for_any_row(&self, policy: &Policy) -> Option<Total> {
        let worst_case = Self { previous_cost: spike_baseline(policy), ..*self };
        worst_case.lowest_cost_to_raise(policy, AlertSet::default(), AlertSet::default())
    }

    /// Returns the alert bound of the client's current month: [`Self::lowest_cost_to_raise`] on this day.
    ///
    /// On the first day of the month, a replica with a slow clock may still add to the previous month without resetting
    /// the bound. So the bound then holds for any higher cost of the previous month, also for one that reaches the
    /// spike baseline.
    pub fn alert_bound(&self, policy: &Policy, raised: AlertSet, open: AlertSet) -> Option<Total> {
        let previous_cost = match self.today.day() {
            1 => self.previous_cost.max(spike_baseline(policy)),
            _ => self.previous_cost,
        };
        Self { previous_cost, ..*self }.lowest_cost_to_raise(policy, raised, open)
    }
}

/// Returns the lowest cost of a previous month for which the spike rule applies.
fn spike_baseline(policy: &Policy) -> Total {
    policy.spike_baseline_min.max(Total::from_scaled(I256::ONE))
}

/// Returns the lowest cost whose projection, without recurring cost, reaches `threshold`.
fn lowest_cost_with_month_end(threshold: Total, elapsed: u32, days: u32) -> Total {
    // One or two units below the result, because this quotient is truncated and the projection is rounded.
    let floor = threshold.scaled() * I256::from(elapsed.max(1)) / I256::from(days) - 1;
    let reaches = |cost: &I256| month_end(Total::from_scaled(*cost), Total::ZERO, elapsed, days) >= threshold;
    let reached = (0..3).map(|more| floor + more).find(reaches);
    Total::from_scaled(reached.unwrap_or(floor))
}
