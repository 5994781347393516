//! Forecasts the cost of a client's month from its last days.
//!
//! The model is simple exponential smoothing of the cost of a day, with one factor for each weekday:
//!
//! - A day that cost unusually much counts as less than it cost: see [`usual`]. Otherwise one day would raise the forecast for weeks.
//!   Robust smoothing clips such days, too (Gelper, Fried and Croux, "Robust forecasting with exponential and Holt-Winters smoothing",
//!   Journal of Forecasting 29, 2010).
//! - The expected cost of a weekday is the mean of the days with this weekday and of a quarter of a day that costs as much as the mean
//!   of all days. So a weekday with few days is closer to the mean. Miller and Williams ("Shrinkage estimators of time series seasonal
//!   factors and their effect on forecasting accuracy", International Journal of Forecasting 19, 2003) show that shrinkage makes
//!   forecasts more accurate.
//! - The level is how much the days cost in relation to these expected costs. Each day counts 4/5 as much as the day after it.
//! - The range is that of the sum of the next days in the model ETS(A,N,N): after `j` more days, an unexpected cost of one day has
//!   changed the level by a fifth of it, `j` times (Hyndman, Koehler, Ord and Snyder, "Forecasting with Exponential Smoothing",
//!   2008, section 6.6, lead-time demand).
//!
//! There is no trend: it made forecasts of recorded days worse. `tests/forecast_backtest.rs` measures the error of this model.
//!
//! All numbers are integers in units of 10^-12. Expected costs are rounded half to even. A forecast never changes recorded amounts.

use crate::decimal::{Decimal, Total, divide_half_even};
use crate::period::{DayPart, Month};
use chrono::{Datelike, Days, NaiveDate};
use ethnum::{I256, U256};
use std::collections::BTreeMap;

/// Number of days before today that a forecast uses. They include all days of the month before today.
pub const FORECAST_DAYS: u32 = 30;
/// With fewer days, a forecast has no range.
pub const RANGE_DAYS_MIN: u32 = 7;
/// The share of months that end in the range, if the days vary as in the model.
pub const RANGE_PERCENT: u32 = 80;
/// Of a normal distribution, [`RANGE_PERCENT`] is within this number of standard deviations, in units of 1/10,000.
const RANGE_DEVIATIONS: i32 = 12_816;
/// A day changes the level by one of this number of parts.
const LEVEL_PARTS: u32 = 5;
/// Weight of a day in the cost of its weekday, if the mean of all days has the weight 1.
const WEEKDAY_WEIGHT: u32 = 4;
const MILLION: u32 = 1_000_000;
/// Weight of the last day in the level. The weights of 30 days must not become zero.
const LEVEL_WEIGHT: u32 = 1 << 20;
const WEEKDAYS: usize = 7;
/// A day counts as at most this multiple of a usual day.
const USUAL_MULTIPLE: i32 = 2;

/// The cost of a day.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DayCost {
    /// Cost of the services that are used all the time.
    pub varying: Total,
    /// Cost of the services that are charged once a month. It is not forecast.
    pub recurring: Total,
    /// Whether there is usage of services that do not recur.
    pub has_usage: bool,
}

/// The days of a client that a forecast uses.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// The days with usage. The others cost nothing.
    pub days: BTreeMap<NaiveDate, DayCost>,
    /// Whether there is usage of services that do not recur before these days.
    pub used_before: bool,
}

/// The expected cost of a month.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forecast {
    /// The cost of the month so far.
    pub cost: Total,
    /// The expected cost at the end of the month.
    pub expected: Total,
    /// `None` if fewer than [`RANGE_DAYS_MIN`] days were used.
    pub range: Option<Range>,
    /// Number of complete days that the forecast is computed from, at most [`FORECAST_DAYS`]. Days before the first usage of the
    /// client are not counted. 0 if none of them has usage.
    pub days_used: u32,
    /// Today and the later days of the month, each with the expected cost of the month at its end.
    pub days: Vec<(NaiveDate, Total)>,
    /// The days of the month until today, each with the cost of the month at its end.
    past: Vec<(NaiveDate, Total)>,
}

/// The range in which the month is likely to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// Not below the cost of the month so far.
    pub low: Total,
    pub high: Total,
}

/// The day on which an amount is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reached {
    pub day: NaiveDate,
    /// Whether the cost of the month has reached the amount already.
    pub already: bool,
}

impl Forecast {
    /// Returns the forecast of the current month. `part` is the part of today that is over.
    pub fn of(history: &History, today: NaiveDate, part: DayPart) -> Self {
        let month = Month::of(today);
        // Usage can be a few minutes ahead of the clock. It counts as today's.
        let recorded = |day: NaiveDate| history.days.range(day..=if day == today { month.last_day() } else { day });
        let cost_of = |day| recorded(day).map(|(_, cost)| cost.varying + cost.recurring).sum();
        let until_today = month.first_day().iter_days().take_while(|day| *day <= today);
        let past = cumulative(Total::ZERO, until_today.map(|day| (day, cost_of(day))));
        let cost = past.last().map_or(Total::ZERO, |(_, cost)| *cost);

        let complete = history.complete_days(today);
        let model = Model::fit(&complete);
        // Without a complete day, each later day is expected to cost as much as today so far, as in the linear projection.
        let so_far: Total = recorded(today).map(|(_, cost)| cost.varying).sum();
        let expected_of = |day: NaiveDate| match (&model, day == today) {
            (Some(model), true) => model.expected(day).scale_by(part.remaining(), part.seconds),
            (Some(model), false) => model.expected(day),
            (None, true) => Total::ZERO,
            (None, false) => so_far.max(Total::ZERO),
        };
        let from_today = today.iter_days().take_while(|day| *day <= month.last_day());
        let days = cumulative(cost, from_today.map(|day| (day, expected_of(day))));
        let expected = days.last().map_or(cost, |(_, cost)| *cost);
        let range = model.filter(|model| model.day_count >= RANGE_DAYS_MIN).map(|model| {
            let half = model.deviation(month.days() - today.day(), part);
            Range { low: cost.max(expected - half), high: expected + half }
        });
        Self { cost, expected, range, days_used: complete.len() as u32, days, past }
    }

    /// Returns the first day on which the cost of the month reaches the amount: in the past, or in the forecast. `None` if it does
    /// not reach it in this month. A month without cost reaches no amount.
    pub fn reach(&self, amount: Total) -> Option<Reached> {
        let reaches = |cost: Total| cost >= amount && cost > Total::ZERO;
        let first = |days: &[(NaiveDate, Total)]| days.iter().find(|(_, cost)| reaches(*cost)).map(|(day, _)| *day);
        match reaches(self.cost) {
            true => first(&self.past).map(|day| Reached { day, already: true }),
            false => first(&self.days).map(|day| Reached { day, already: false }),
        }
    }
}

impl History {
    /// Returns the complete days to forecast from, the last one first: none if the client had no usage in the last
    /// [`FORECAST_DAYS`], because then it starts anew.
    fn complete_days(&self, today: NaiveDate) -> Vec<(NaiveDate, Total)> {
        let oldest = today - Days::new(FORECAST_DAYS.into());
        let mut used = self.days.range(..today).filter(|(_, cost)| cost.has_usage).map(|(day, _)| *day);
        let first_used = used.next();
        let last_used = used.next_back().or(first_used).filter(|last| *last >= oldest);
        let since = first_used.filter(|_| !self.used_before).map_or(oldest, |first| first.max(oldest));
        let first = last_used.map_or(today, |_| since);
        let varying = |day| self.days.get(&day).map_or(Total::ZERO, |cost| cost.varying);
        let mut days: Vec<_> =
            first.iter_days().take_while(|day| *day < today).map(|day| (day, varying(day))).collect();
        days.reverse();
        days
    }
}

/// Adds up amounts from `start`.
fn cumulative(start: Total, days: impl Iterator<Item = (NaiveDate, Total)>) -> Vec<(NaiveDate, Total)> {
    let sum = |sum: &mut Total, (day, amount)| {
        *sum += amount;
        Some((day, *sum))
    };
    days.scan(start, sum).collect()
}

/// What the days of a client tell about its next days.
struct Model {
    /// Expected costs, Monday first.
    by_weekday: [Total; WEEKDAYS],
    day_count: u32,
    /// Sum of the squares of the differences between costs and expected costs, also of unusual days. The differences are shifted to
    /// the right by `shift` bits, so that the squares of any costs fit.
    squares: U256,
    shift: u32,
    /// What the sum of squares is divided by, in units of 10^-6: the number of days minus the days that the costs of weekdays follow.
    freedom: u32,
}

fn weekday(day: NaiveDate) -> usize {
    day.weekday().num_days_from_monday() as usize
}

/// Returns the costs of days with unusual costs reduced: a day counts as at most twice the third quartile of the days that cost
/// something, or twice the median of the days with the same weekday, if this is more. So a client that has one expensive day a week
/// keeps it.
fn usual(days: &[(NaiveDate, Total)]) -> Vec<(NaiveDate, Total)> {
    let sorted = |costs: &mut dyn Iterator<Item = &(NaiveDate, Total)>| {
        let mut costs: Vec<Total> = costs.map(|(_, cost)| *cost).collect();
        costs.sort();
        costs
    };
    let with_cost = sorted(&mut days.iter().filter(|(_, cost)| *cost > Total::ZERO));
    let third_quartile = with_cost.get(with_cost.len() * 3 / 4).copied().unwrap_or_default();
    let bounds: [Total; WEEKDAYS] = std::array::from_fn(|of| {
        let same = sorted(&mut days.iter().filter(|(day, _)| weekday(*day) == of));
        // The lower of two medians. A single day is not compared with itself.
        let median = if same.len() < 2 { Total::ZERO } else { same[(same.len() - 1) / 2] };
        Total::from_scaled(third_quartile.max(median).scaled() * I256::from(USUAL_MULTIPLE))
    });
    days.iter().map(|(day, cost)| (*day, (*cost).min(bounds[weekday(*day)]))).collect()
}

impl Model {
    /// Fits the model to days, the last one first. `None` without days.
    fn fit(days: &[(NaiveDate, Total)]) -> Option<Self> {
        let day_count = u32::try_from(days.len()).ok().filter(|count| *count > 0)?;
        let usual = usual(days);
        let (mut sums, mut counts) = ([I256::ZERO; WEEKDAYS], [0u32; WEEKDAYS]);
        for (day, cost) in &usual {
            sums[weekday(*day)] += cost.scaled();
            counts[weekday(*day)] += 1;
        }
        let all = sums.iter().fold(I256::ZERO, |all, sum| all + sum);
        let of_weekday: [I256; WEEKDAYS] = std::array::from_fn(|weekday| {
            let divisor = I256::from(day_count * (counts[weekday] * WEEKDAY_WEIGHT + 1));
            let dividend = sums[weekday] * I256::from(day_count * WEEKDAY_WEIGHT) + all;
            divide_half_even(dividend, divisor).max(I256::ZERO)
        });
        let (mut weight, mut cost_sum, mut expected_sum) = (LEVEL_WEIGHT, I256::ZERO, I256::ZERO);
        for (day, cost) in &usual {
            cost_sum += cost.scaled() * I256::from(weight);
            expected_sum += of_weekday[weekday(*day)] * I256::from(weight);
            weight = weight * (LEVEL_PARTS - 1) / LEVEL_PARTS;
        }
        let one = I256::from(Decimal::ONE.scaled());
        let level = match expected_sum > I256::ZERO {
            true => divide_half_even(cost_sum * one, expected_sum).max(I256::ZERO),
            false => one,
        };
        let by_weekday = of_weekday.map(|cost| Total::from_scaled(divide_half_even(cost * level, one)));
        let difference = |(day, cost): &(NaiveDate, Total)| (*cost - by_weekday[weekday(*day)]).scaled().unsigned_abs();
        let largest = days.iter().map(difference).max().unwrap_or_default();
        let shift = (U256::BITS - largest.leading_zeros()).saturating_sub(90);
        let squares = days.iter().map(difference).fold(U256::ZERO, |sum, of| sum + (of >> shift) * (of >> shift));
        // The expected cost of a weekday follows each of its days by this part.
        let followed = |count: &u32| MILLION * count * WEEKDAY_WEIGHT / (count * WEEKDAY_WEIGHT + 1);
        let freedom = MILLION * day_count - counts.iter().map(followed).sum::<u32>();
        Some(Self { by_weekday, day_count, squares, shift, freedom })
    }

    fn expected(&self, day: NaiveDate) -> Total {
        self.by_weekday[weekday(day)]
    }

    /// Returns half of the width of the range of the rest of today and of the next `days` days.
    fn deviation(&self, days: u32, today: DayPart) -> Total {
        // An unexpected cost with `j` days after it counts (1 + j / LEVEL_PARTS) times. Adds up the squares.
        let square = |after: u32| u64::from(LEVEL_PARTS + after).pow(2);
        let whole: u64 = (0..days).map(square).sum();
        let parts = whole * u64::from(today.seconds) + square(days) * u64::from(today.remaining());
        let divisor = u64::from(self.freedom) * u64::from(LEVEL_PARTS.pow(2)) * u64::from(today.seconds);
        let squares = self.squares * U256::from(parts) * U256::from(MILLION);
        let deviation = square_root(squares / U256::from(divisor)) << self.shift;
        let scaled = deviation.as_i256() * I256::from(RANGE_DEVIATIONS);
        Total::from_scaled(divide_half_even(scaled, I256::from(10_000)))
    }
}

/// Returns the square root, rounded down.
fn square_root(number: U256) -> U256 {
    // Newton's method, from a number that is not below the root.
    let bits = U256::BITS - number.leading_zeros();
    let mut root = U256::ONE << bits.div_ceil(2);
    while root > U256::ZERO {
        let next = (root + number / root) >> 1u32;
        if next >= root {
            break;
        }
        root = next;
    }
    root
}

#[cfg(test)]
#[path = "forecast_tests.rs"]
mod tests;
