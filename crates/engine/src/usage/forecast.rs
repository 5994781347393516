//! The forecast of a client's current month.

use crate::engine::Engine;
use crate::fields::Fields;
use crate::refusal::Refusal;
use chrono::{DateTime, TimeDelta, Utc};
use chrono_tz::Tz;
use meterd_domain::catalog::Catalog;
use meterd_domain::decimal::Total;
use meterd_domain::event::ID_BYTES_MAX;
use meterd_domain::forecast::{FORECAST_DAYS, Forecast, Reached};
use meterd_domain::period::{DayPart, Month, day_of, elapsed_and_remaining};
use meterd_domain::policy::Policy;
use meterd_domain::projection::month_end;
use meterd_store::clients::zone;
use meterd_store::usage::{AsOf, HistoryDays, OfClient, forecast};

/// The forecast of a client's current month.
#[derive(Debug)]
pub struct MonthForecast {
    pub month: Month,
    /// IANA name.
    pub time_zone: String,
    pub forecast: Forecast,
    /// The expected cost at the end of the month, if usage continues at the same rate.
    pub projected_cost: Total,
    /// In ascending order of their amounts.
    pub lines: Vec<Line>,
    pub complete_as_of: DateTime<Utc>,
}

/// An amount that the cost of the month can reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    pub kind: LineKind,
    pub name: &'static str,
    pub amount: Total,
    /// `None` if the expected cost does not reach the amount in this month.
    pub reached: Option<Reached>,
}

/// What an amount is. The numbers are those of the proto enum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum LineKind {
    /// A threshold of the alert policy.
    AlertThreshold = 1,
}

/// Returns the forecast of a client's current month.
pub async fn month_forecast(engine: &Engine, client_id: &str) -> Result<MonthForecast, Refusal> {
    let mut fields = Fields::default();
    fields.required("client_id", client_id, ID_BYTES_MAX);
    fields.finish()?;
    let now = engine.clock.now();
    let recurring = recurring_services(&engine.catalog.current());
    let days = history_days(now, &recurring);
    let read = engine.reads.read(|mut conn| async move {
        let read = forecast::read(&mut conn, client_id, days).await;
        (conn, read)
    });
    let AsOf { complete_as_of, rows: OfClient { time_zone, usage: facts } } =
        read.await?.ok_or_else(|| Refusal::client_not_found(client_id))?;
    let zone = zone(&time_zone)?;
    let today = day_of(now, zone);
    let month = Month::of(today);
    let forecast = Forecast::of(&facts.history, today, DayPart::at(now, zone));
    let recurring_cost = facts.history.days.range(month.first_day()..=month.last_day()).map(|(_, of)| of.recurring).sum();
    let (days_elapsed, _) = elapsed_and_remaining(today);
    let projected_cost = month_end(forecast.cost, recurring_cost, days_elapsed, month.days());
    let lines = lines(&facts.policy, &forecast);
    Ok(MonthForecast { month, time_zone, forecast, projected_cost, lines, complete_as_of })
}

/// Returns the amounts of a policy that are compared with the cost of the month, in ascending order.
fn lines(policy: &Policy, forecast: &Forecast) -> Vec<Line> {
    let thresholds =
        [("monthly_warning", policy.monthly_warning), ("monthly_critical", policy.monthly_critical)];
    let line = |(name, amount)| Line { kind: LineKind::AlertThreshold, name, amount, reached: forecast.reach(amount) };
    let enabled = thresholds.into_iter().filter(|_| policy.threshold_enabled);
    enabled.map(line).collect()
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
