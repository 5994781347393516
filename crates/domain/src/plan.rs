//! The plans of clients.

use crate::decimal::{DECIMALS, Decimal, divide_half_up};
use crate::period::{Month, day_of};
use chrono::{DateTime, Days, NaiveDate, Utc};
use chrono_tz::Tz;
use ethnum::I256;
use foldhash::fast::RandomState;
use std::collections::HashMap;
use std::sync::Arc;

/// A plan as a client has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanTerms {
    /// Empty: no plan.
    pub plan_id: Arc<str>,
    /// Credits for each month.
    pub included_credits: Decimal,
    /// Number of further months in which the credits of a month can be used.
    pub rollover_months: u32,
}

/// The plans of one client over time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PlanTimeline(Vec<(DateTime<Utc>, PlanTerms)>);

/// The plans of clients.
#[derive(Clone, Debug, Default)]
pub struct ClientPlans(HashMap<Arc<str>, PlanTimeline, RandomState>);

/// Days of a month, one after another, on which a client has the same plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanDays {
    pub terms: PlanTerms,
    pub first_day: NaiveDate,
    pub last_day: NaiveDate,
}

impl PlanTimeline {
    /// Adds a change: from this time on, the client has this plan. Changes can be added in any order.
    pub fn add(&mut self, effective_time: DateTime<Utc>, terms: PlanTerms) {
        let at = self.0.partition_point(|(time, _)| *time <= effective_time);
        self.0.insert(at, (effective_time, terms));
    }

    /// Returns whether one of the plans includes credits.
    pub fn has_credits(&self) -> bool {
        self.0.iter().any(|(_, terms)| terms.included_credits > Decimal::ZERO)
    }

    /// Returns the plan that the client has at a time. Empty: none.
    pub fn at(&self, time: DateTime<Utc>) -> &str {
        let later = self.0.partition_point(|(from, _)| *from <= time);
        self.0[..later].last().map_or("", |(_, terms)| &terms.plan_id)
    }

    /// Splits the days of a month by the plan of the client. A day belongs to the plan that the client has at its end. Days without
    /// a plan are left out.
    pub fn days(&self, month: Month, zone: Tz) -> Vec<PlanDays> {
        let mut plans: Vec<PlanDays> = vec![];
        for day in month.first_day().iter_days().take_while(|day| Month::of(*day) == month) {
            // The changes of the day and of all days before it.
            let until = self.0.partition_point(|(time, _)| day_of(*time, zone) <= day);
            let Some((_, terms)) = self.0[..until].last() else { continue };
            if terms.plan_id.is_empty() {
                continue;
            }
            match plans.last_mut() {
                Some(last) if last.terms == *terms && last.last_day + Days::new(1) == day => last.last_day = day,
                _ => plans.push(PlanDays { terms: terms.clone(), first_day: day, last_day: day }),
            }
        }
        plans
    }

    /// Returns the first day of the month of `day` on which the client has a plan with credits, and the plan whose credits it has for the
    /// month: of its plans in this month until `day`, the one with most credits, and then the longest rollover. `None`: it has none.
    pub fn included_credits(&self, day: NaiveDate, zone: Tz) -> Option<(NaiveDate, PlanTerms)> {
        let mut days = self.days(Month::of(day), zone);
        days.retain(|plan| plan.first_day <= day && plan.terms.included_credits > Decimal::ZERO);
        let first_day = days.first()?.first_day;
        let most =
            days.into_iter().map(|plan| plan.terms).max_by_key(|terms| (terms.included_credits, terms.rollover_months));
        Some((first_day, most?))
    }
}

impl ClientPlans {
    /// Adds a change of the plan of a client.
    pub fn add(&mut self, client_id: &str, effective_time: DateTime<Utc>, terms: PlanTerms) {
        self.0.entry(client_id.into()).or_default().add(effective_time, terms);
    }

    /// Returns the plans of a client. `None`: it has never had one.
    pub fn of(&self, client_id: &str) -> Option<&PlanTimeline> {
        self.0.get(client_id)
    }

    /// Adds the plans of other clients.
    pub fn join(&mut self, others: Self) {
        self.0.extend(others.0);
    }

    /// Returns the plan that a client has at a time. Empty: none, or a client that was not added.
    pub fn at(&self, client_id: &str, time: DateTime<Utc>) -> &str {
        self.0.get(client_id).map_or("", |timeline| timeline.at(time))
    }
}

impl PlanDays {
    /// Returns the number of days.
    pub fn count(&self) -> u32 {
        (self.last_day - self.first_day).num_days() as u32 + 1
    }

    /// Returns the part of a monthly fee for these days: fee × days / days of the month, rounded half up to `minor_digits` decimals,
    /// such as 2 for a currency with cents.
    pub fn fee(&self, monthly_fee: Decimal, minor_digits: u32) -> Decimal {
        let minor_unit = 10i128.pow(DECIMALS.saturating_sub(minor_digits));
        let days = Month::of(self.first_day).days();
        let dividend = I256::from(monthly_fee.scaled()) * I256::from(self.count());
        let units = divide_half_up(dividend, I256::from(days) * I256::from(minor_unit));
        Decimal::from_scaled(units.as_i128() * minor_unit)
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
