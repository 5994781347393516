//! The forecast of a client's current month, and the amounts that its cost reaches.

use chrono::{DateTime, TimeDelta, Utc};
use chrono_tz::Tz;
use meterd_domain::catalog::Catalog;
use meterd_domain::decimal::Total;
use meterd_domain::forecast::{FORECAST_DAYS, Forecast, History, Reached};
use meterd_domain::period::{DayPart, day_of};
use meterd_domain::policy::Policy;
use meterd_store::usage::HistoryDays;

/// The forecast of a client's current month.
#[derive(Debug)]
pub struct MonthForecast {
    pub forecast: Forecast,
    /// In ascending order of their amounts.
    pub lines: Vec<ForecastLine>,
}

/// An amount that the cost of the month can reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForecastLine {
    pub kind: ForecastLineKind,
    pub name: &'static str,
    pub amount: Total,
    /// `None` if the expected cost does not reach the amount in this month.
    pub reached: Option<Reached>,
}

/// What the amount of a line is about. The numbers are those of the proto enum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum ForecastLineKind {
    /// A threshold of the alert policy.
    AlertThreshold = 1,
}

impl MonthForecast {
    /// Returns the forecast of the month of `now` in the client's time zone.
    pub fn of(history: &History, policy: &Policy, now: DateTime<Utc>, zone: Tz) -> Self {
        let forecast = Forecast::of(history, day_of(now, zone), DayPart::at(now, zone));
        let lines = lines(policy, &forecast);
        Self { forecast, lines }
    }
}

/// Returns the amounts with which the cost of the month is compared, in ascending order.
fn lines(policy: &Policy, forecast: &Forecast) -> Vec<ForecastLine> {
    if !policy.threshold_enabled {
        return vec![];
    }
    let line = |name, amount| {
        let kind = ForecastLineKind::AlertThreshold;
        ForecastLine { kind, name, amount, reached: forecast.reach(amount) }
    };
    let mut lines =
        vec![line("monthly_warning", policy.monthly_warning), line("monthly_critical", policy.monthly_critical)];
    lines.sort_by_key(|line| line.amount);
    lines
}

/// Returns the names of the services that are charged once a month.
pub fn recurring_services(catalog: &Catalog) -> Vec<String> {
    catalog.services().filter(|service| service.recurring).map(|service| service.service.to_string()).collect()
}

/// Returns the days that a forecast needs in any time zone: [`FORECAST_DAYS`] before today, today, and the day after it, because
/// usage can be a few minutes ahead of the clock.
pub fn history_days(now: DateTime<Utc>, recurring_services: &[String]) -> HistoryDays<'_> {
    let day = |days| day_of(now + TimeDelta::days(days), Tz::UTC);
    HistoryDays { first: day(-1 - i64::from(FORECAST_DAYS)), last: day(2), recurring_services }
}
