//! Measures the error of the forecast of a month, and of the linear projection, on generated days and on days that were recorded.
//!
//! `cargo test -p meterd-domain --test forecast_backtest -- --nocapture` prints the table of docs/benchmarks.md.

use chrono::{Datelike, Days, NaiveDate};
use ethnum::I256;
use meterd_domain::decimal::Total;
use meterd_domain::forecast::{DayCost, FORECAST_DAYS, Forecast, History};
use meterd_domain::period::{DayPart, Month, parse_day};
use meterd_domain::projection::month_end;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::collections::BTreeMap;

/// The days of the month at whose end the month is forecast.
const DAYS: [u32; 5] = [5, 10, 15, 20, 25];
/// Number of generated traces of each kind.
const TRACES: u64 = 20;
const DAY_BEGINS: DayPart = DayPart { over: 0, seconds: 86_400 };
/// The page views of an article: see data/README.md.
const RECORDED: &str = include_str!("data/wikipedia_r_daily_views.csv");
/// The cost of a day by weekday, Monday first, as a part of the cost of a usual day.
const WEEK: [f64; 7] = [1.0, 1.05, 1.1, 1.05, 0.9, 0.35, 0.25];

/// The cost of each day of a client.
type Trace = BTreeMap<NaiveDate, Total>;

/// What a generated client does.
#[derive(Clone, Copy, Default)]
struct Pattern {
    name: &'static str,
    weekdays: bool,
    /// Growth of the cost a day.
    growth: f64,
    /// Probability that a day costs eight times as much.
    spikes: f64,
    /// Whether the client starts in the middle of the month that is measured.
    starts: bool,
}

const PATTERNS: [Pattern; 8] = [
    Pattern { name: "weekdays", weekdays: true, growth: 0.0, spikes: 0.0, starts: false },
    Pattern { name: "weekdays, 10 % growth a month", weekdays: true, growth: 0.0032, spikes: 0.0, starts: false },
    Pattern { name: "weekdays, 35 % growth a month", weekdays: true, growth: 0.01, spikes: 0.0, starts: false },
    Pattern { name: "weekdays, one day a month × 8", weekdays: true, growth: 0.0, spikes: 1.0 / 30.0, starts: false },
    Pattern { name: "weekdays, start in mid-month", weekdays: true, growth: 0.0, spikes: 0.0, starts: true },
    Pattern { name: "all days alike", weekdays: false, growth: 0.0, spikes: 0.0, starts: false },
    Pattern { name: "all days alike, 10 % growth", weekdays: false, growth: 0.0032, spikes: 0.0, starts: false },
    Pattern { name: "all days alike, one day × 8", weekdays: false, growth: 0.0, spikes: 1.0 / 30.0, starts: false },
];

/// A day.
fn day(text: &str) -> NaiveDate {
    parse_day(text).unwrap()
}

/// An amount with six decimals.
fn total(amount: f64) -> Total {
    Total::from_scaled(I256::from((amount * 1e6).round() as i128 * 1_000_000))
}

fn number(amount: Total) -> f64 {
    amount.to_string().parse().unwrap()
}

/// Generates the days of a client in a year, or in two months if it starts in the middle of a month. Each day varies by about 15 %.
fn generate(pattern: Pattern, seed: u64) -> Trace {
    let mut random = StdRng::seed_from_u64(seed);
    let start = match pattern.starts {
        true => Days::new(random.random_range(3..20)),
        false => Days::new(0),
    };
    let days = if pattern.starts { 59 } else { 365 };
    let first = day("2025-01-01");
    let cost = |(count, day): (usize, NaiveDate)| {
        // The sum of twelve uniform numbers has a variance of 1.
        let normal = (0..12).map(|_| random.random::<f64>()).sum::<f64>() - 6.0;
        let weekday = if pattern.weekdays { WEEK[day.weekday().num_days_from_monday() as usize] } else { 1.0 };
        let spike = if random.random::<f64>() < pattern.spikes { 8.0 } else { 1.0 };
        let cost = 100.0 * weekday * spike * (1.0 + pattern.growth).powi(count as i32) * (0.15 * normal).exp();
        (day, total(cost))
    };
    let all: Vec<(NaiveDate, Total)> = first.iter_days().take(days).enumerate().map(cost).collect();
    all.into_iter().filter(|(day, _)| *day >= first + start).collect()
}

/// Returns the recorded days.
fn recorded() -> Trace {
    let row = |line: &str| {
        let (of, views) = line.split_once(',').unwrap();
        (day(of), total(views.parse().unwrap()))
    };
    RECORDED.lines().skip(1).map(row).collect()
}

/// Errors in percent of the cost of the month, by day of the month, and how many months ended in the range.
#[derive(Clone, Default)]
struct Measured {
    forecast: Vec<[f64; DAYS.len()]>,
    linear: Vec<[f64; DAYS.len()]>,
    in_range: u32,
    ranges: u32,
}

impl Measured {
    /// Forecasts the month of a trace on each of the days that has usage before it.
    fn add(&mut self, trace: &Trace, month: Month) {
        let cost_of = |to: NaiveDate| trace.range(month.first_day()..=to).map(|(_, cost)| *cost).sum::<Total>();
        let truth = cost_of(month.last_day());
        let percent = |of: Total| 100.0 * (number(of) - number(truth)).abs() / number(truth);
        let (mut forecast, mut linear) = ([f64::NAN; DAYS.len()], [f64::NAN; DAYS.len()]);
        for (at, number) in DAYS.into_iter().enumerate() {
            let today = month.first_day() + Days::new(u64::from(number) - 1);
            let known = trace
                .range(..=today)
                .map(|(day, cost)| (*day, DayCost { varying: *cost, recurring: Total::ZERO, has_usage: true }));
            let history = History { days: known.collect(), used_before: false };
            if history.days.is_empty() {
                continue;
            }
            // The day is over, and the next one begins. The linear projection has its best moment then, too.
            let of = Forecast::of(&history, today + Days::new(1), DAY_BEGINS);
            let projected = month_end(of.cost, Total::ZERO, number, month.days());
            (forecast[at], linear[at]) = (percent(of.expected), percent(projected));
            if let Some(range) = of.range {
                self.ranges += 1;
                self.in_range += u32::from(range.low <= truth && truth <= range.high);
            }
        }
        self.forecast.push(forecast);
        self.linear.push(linear);
    }

    /// Forecasts each month of which all days, and all days that the forecast needs, are known.
    fn of(traces: &[Trace], starts: bool) -> Self {
        let mut measured = Self::default();
        for trace in traces {
            let months: std::collections::BTreeSet<Month> = trace.keys().map(|day| Month::of(*day)).collect();
            let known = |from: NaiveDate, to: NaiveDate| {
                from.iter_days().take_while(|day| *day <= to).all(|day| trace.contains_key(&day))
            };
            for month in months {
                let before = month.first_day() - Days::new(FORECAST_DAYS.into());
                let is_first = starts && trace.keys().next().is_some_and(|day| Month::of(*day) == month);
                if is_first || known(before, month.last_day()) {
                    measured.add(trace, month);
                }
            }
        }
        assert!(!measured.forecast.is_empty());
        measured
    }

    fn mean(rows: &[[f64; DAYS.len()]]) -> [f64; DAYS.len()] {
        std::array::from_fn(|at| {
            let known = rows.iter().map(|row| row[at]).filter(|error| !error.is_nan());
            let count = known.clone().count();
            known.sum::<f64>() / count as f64
        })
    }

    fn row(&self, name: &str) -> String {
        let cells = |rows| Self::mean(rows).map(|error| format!("{error:.1}")).join(" | ");
        let share = 100.0 * f64::from(self.in_range) / f64::from(self.ranges.max(1));
        let (count, forecast, linear) = (self.forecast.len(), cells(&self.forecast), cells(&self.linear));
        format!("| {name} ({count}) | forecast | {forecast} | {share:.0} % |\n| | linear | {linear} | |")
    }

    /// The mean of the errors of all days: of the forecast and of the linear projection.
    fn overall(&self) -> (f64, f64) {
        let mean = |rows| Self::mean(rows).iter().sum::<f64>() / DAYS.len() as f64;
        (mean(&self.forecast), mean(&self.linear))
    }

    fn in_range_percent(&self) -> f64 {
        100.0 * f64::from(self.in_range) / f64::from(self.ranges)
    }
}

fn generated(pattern: Pattern) -> Measured {
    // A client that starts has one month.
    let count = if pattern.starts { 11 * TRACES } else { TRACES };
    let traces: Vec<Trace> = (0..count).map(|seed| generate(pattern, seed)).collect();
    Measured::of(&traces, pattern.starts)
}

#[test]
fn the_forecast_is_nearer_to_the_end_of_the_month_than_the_linear_projection() {
    let measured: Vec<(Pattern, Measured)> = PATTERNS.into_iter().map(|of| (of, generated(of))).collect();
    let real = Measured::of(&[recorded()], false);
    println!("| days (months) | | day {} | in the range |", DAYS.map(|day| day.to_string()).join(" | "));
    println!("|---|---|{}---|", "---|".repeat(DAYS.len()));
    for (pattern, measured) in &measured {
        println!("{}", measured.row(pattern.name));
    }
    println!("{}", real.row("page views of 2012 to 2015"));

    let weekdays: Vec<(f64, f64)> =
        measured.iter().filter(|(of, _)| of.weekdays).map(|(_, measured)| measured.overall()).collect();
    let sum = |of: fn(&(f64, f64)) -> f64| weekdays.iter().map(of).sum::<f64>();
    let (forecast, linear) = (sum(|errors| errors.0), sum(|errors| errors.1));
    assert!(forecast < 0.8 * linear, "weekdays: {forecast} {linear}");
    let (forecast, linear) = real.overall();
    assert!(forecast < 0.9 * linear, "recorded: {forecast} {linear}");
    // In the first days, the days of the month before help the most.
    for measured in measured.iter().filter(|(of, _)| !of.starts).map(|(_, measured)| measured).chain([&real]) {
        let (forecast, linear) = (Measured::mean(&measured.forecast)[0], Measured::mean(&measured.linear)[0]);
        assert!(forecast < linear, "{forecast} {linear}");
    }
    for (pattern, measured) in measured.iter().filter(|(of, _)| of.growth == 0.0) {
        assert!(measured.in_range_percent() > 70.0, "{}: {}", pattern.name, measured.in_range_percent());
    }
}
