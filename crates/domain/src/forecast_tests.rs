use super::*;
use crate::period::parse_day;
use crate::projection::month_end;
use proptest::prelude::*;

const DAY_OVER: DayPart = DayPart { over: 86_400, seconds: 86_400 };
const DAY_BEGINS: DayPart = DayPart { over: 0, seconds: 86_400 };
const NOON: DayPart = DayPart { over: 43_200, seconds: 86_400 };

fn day(text: &str) -> NaiveDate {
    parse_day(text).unwrap()
}

fn total(text: &str) -> Total {
    Decimal::parse(text).unwrap().into()
}

fn units(units: i128) -> Total {
    Total::from_scaled(I256::from(units))
}

fn varying(cost: Total) -> DayCost {
    DayCost { varying: cost, recurring: Total::ZERO, has_usage: true }
}

/// Days that end with `last`, with these costs.
fn ending(last: &str, costs: impl IntoIterator<Item = Total>) -> History {
    let costs: Vec<Total> = costs.into_iter().collect();
    let first = day(last) - Days::new(costs.len() as u64 - 1);
    let days = first.iter_days().zip(costs).map(|(day, cost)| (day, varying(cost))).collect();
    History { days, used_before: false }
}

fn costs_of_weekdays(last: &str, count: u64) -> History {
    let cost = |day: NaiveDate| if weekday(day) < 5 { total("10") } else { total("3") };
    let first = day(last) - Days::new(count - 1);
    History {
        days: first.iter_days().take(count as usize).map(|day| (day, varying(cost(day)))).collect(),
        used_before: false,
    }
}

fn forecast(history: &History, today: &str, part: DayPart) -> Forecast {
    Forecast::of(history, day(today), part)
}

#[test]
fn constant_days_give_the_linear_projection_and_no_uncertainty() {
    let history = ending("2026-11-10", vec![total("0.7"); 31]);
    let of = forecast(&history, "2026-11-10", DAY_OVER);
    assert_eq!((of.cost, of.expected, of.days_used), (total("7"), month_end(total("7"), Total::ZERO, 10, 30), 30));
    assert_eq!(of.range, Some(Range { low: total("21"), high: total("21") }));
    assert_eq!(
        (of.days.len(), of.days[0], of.days[20]),
        (21, (day("2026-11-10"), total("7")), (day("2026-11-30"), total("21")))
    );
    // Half of today is over, with half of its cost.
    let mut history = history;
    history.days.insert(day("2026-11-10"), varying(total("0.35")));
    assert_eq!(forecast(&history, "2026-11-10", NOON).expected, total("21"));
}

#[test]
fn weekends_are_expected_to_cost_less() {
    // A Friday. After it, the month has 11 working days and 6 days of weekends.
    let history = costs_of_weekdays("2026-11-13", 31);
    let of = forecast(&history, "2026-11-13", DAY_OVER);
    let added = |text: &str| {
        let at = of.days.iter().position(|(of, _)| *of == day(text)).unwrap();
        of.days[at].1 - of.days[at - 1].1
    };
    let (saturday, monday) = (added("2026-11-14"), added("2026-11-16"));
    // The mean of all days, about 8, takes a small part.
    assert!(total("3") < saturday && saturday < total("3.5"), "{saturday}");
    assert!(total("9.8") < monday && monday < total("10.1"), "{monday}");
    let truth = of.cost + total("122");
    let linear = month_end(of.cost, Total::ZERO, 13, 30);
    let error = |of: Total| (of - truth).max(truth - of);
    assert!(error(of.expected) < error(linear), "{} {linear} {truth}", of.expected);
}

#[test]
fn an_unusual_day_counts_as_two_usual_days_and_widens_the_range() {
    let mut history = ending("2026-11-20", vec![total("1"); 31]);
    let next = |history: &History| {
        let of = forecast(history, "2026-11-21", DAY_BEGINS);
        (of.days[1].1 - of.days[0].1, of.range.unwrap())
    };
    history.days.insert(day("2026-11-20"), varying(total("2")));
    let (two, _) = next(&history);
    history.days.insert(day("2026-11-20"), varying(total("500")));
    let (many, range) = next(&history);
    assert_eq!(two, many);
    assert!(many < total("1.3") && range.high - range.low > total("500"), "{many} {range:?}");
    // An expensive day in each week is usual.
    for week in ["2026-10-23", "2026-10-30", "2026-11-06", "2026-11-13"] {
        history.days.insert(day(week), varying(total("500")));
    }
    let of = forecast(&history, "2026-11-21", DAY_BEGINS);
    let friday = of.days[6].1 - of.days[5].1;
    assert!(friday > total("450"), "{friday}");
}

#[test]
fn the_last_days_count_most() {
    let days = |costs: [&str; 2]| ending("2026-11-20", costs.into_iter().flat_map(|cost| vec![total(cost); 14]));
    let (up, down) = (days(["1", "2"]), days(["2", "1"]));
    let up = forecast(&up, "2026-11-21", NOON);
    let down = forecast(&down, "2026-11-21", NOON);
    let next = |of: &Forecast| of.days[1].1 - of.days[0].1;
    assert!(next(&up) > total("1.9") && next(&down) < total("1.1"), "{} {}", next(&up), next(&down));
}

#[test]
fn recurring_cost_is_not_scaled() {
    let mut history = ending("2026-11-10", vec![total("1"); 31]);
    history.days.get_mut(&day("2026-11-03")).unwrap().recurring = total("100");
    let of = forecast(&history, "2026-11-10", DAY_OVER);
    assert_eq!((of.cost, of.expected), (total("110"), total("130")));
    let fee = DayCost { varying: Total::ZERO, recurring: total("5"), has_usage: false };
    let only = History { days: BTreeMap::from([(day("2026-11-03"), fee)]), used_before: false };
    let of = forecast(&only, "2026-11-10", NOON);
    assert_eq!((of.cost, of.expected, of.days_used, of.range), (total("5"), total("5"), 0, None));
}

#[test]
fn without_a_complete_day_each_day_costs_as_much_as_today_so_far() {
    let nothing = forecast(&History::default(), "2026-11-10", NOON);
    assert_eq!((nothing.cost, nothing.expected, nothing.days_used), (Total::ZERO, Total::ZERO, 0));
    assert_eq!((nothing.range, nothing.reach(total("1")), nothing.reach(Total::ZERO)), (None, None, None));
    let first = forecast(&ending("2026-11-01", [total("2")]), "2026-11-01", NOON);
    assert_eq!((first.expected, first.days_used, first.range), (total("60"), 0, None));
    assert_eq!(first.expected, month_end(total("2"), Total::ZERO, 1, 30));
    let started = forecast(&ending("2026-11-21", [total("2")]), "2026-11-21", NOON);
    assert_eq!(started.expected, total("20"));
}

#[test]
fn days_before_the_first_usage_are_not_counted_unless_there_is_older_usage() {
    let mut history = ending("2026-11-20", vec![total("3"); 4]);
    let started = forecast(&history, "2026-11-21", NOON);
    assert_eq!((started.days_used, started.range), (4, None));
    history.used_before = true;
    let paused = forecast(&history, "2026-11-21", NOON);
    assert_eq!(paused.days_used, 30);
    assert!(paused.expected < started.expected && paused.range.is_some());
    // Usage 31 days ago, when the window has just passed it.
    history.used_before = false;
    history.days.insert(day("2026-10-21"), varying(total("3")));
    assert_eq!(forecast(&history, "2026-11-21", NOON).days_used, 30);
    history.days.insert(day("2026-10-22"), varying(total("3")));
    assert_eq!(forecast(&history, "2026-11-21", NOON).days_used, 30);
    // A client that comes back after 30 days starts anew.
    let mut back = ending("2026-10-21", vec![total("3"); 4]);
    back.used_before = true;
    assert_eq!(forecast(&back, "2026-11-20", NOON).days_used, 30);
    back.days.insert(day("2026-11-21"), varying(total("2")));
    let of = forecast(&back, "2026-11-21", NOON);
    assert_eq!((of.days_used, of.expected, of.range), (0, total("20"), None));
    assert_eq!(forecast(&back, "2026-11-22", NOON).days_used, 30);
    let six = forecast(&ending("2026-11-20", vec![total("3"); 6]), "2026-11-21", NOON);
    let seven = forecast(&ending("2026-11-20", vec![total("3"); 7]), "2026-11-21", NOON);
    assert_eq!((six.days_used, six.range.is_some()), (6, false));
    assert_eq!((seven.days_used, seven.range.is_some()), (7, true));
}

#[test]
fn amounts_are_reached_in_the_past_or_in_the_future_or_never() {
    let history = ending("2026-11-10", vec![total("1"); 31]);
    let of = forecast(&history, "2026-11-10", DAY_OVER);
    let reach = |amount: &str| of.reach(total(amount)).map(|of| (of.day.to_string(), of.already));
    assert_eq!(reach("4"), Some(("2026-11-04".into(), true)));
    assert_eq!(reach("3.5"), Some(("2026-11-04".into(), true)));
    assert_eq!(reach("10"), Some(("2026-11-10".into(), true)));
    assert_eq!(reach("10.000000000001"), Some(("2026-11-11".into(), false)));
    assert_eq!(reach("30"), Some(("2026-11-30".into(), false)));
    assert_eq!(reach("30.000000000001"), None);
    assert_eq!(reach("0"), Some(("2026-11-01".into(), true)));
}

#[test]
fn an_amount_can_be_reached_in_the_rest_of_today() {
    let mut history = ending("2026-11-10", vec![total("1"); 31]);
    history.days.insert(day("2026-11-10"), varying(total("0.5")));
    let of = forecast(&history, "2026-11-10", NOON);
    assert_eq!(of.days[0].1, total("10"));
    assert_eq!(of.reach(total("9.8")), Some(Reached { day: day("2026-11-10"), already: false }));
}

#[test]
fn usage_ahead_of_the_clock_counts_as_todays() {
    let mut history = ending("2026-11-10", vec![total("1"); 31]);
    history.days.insert(day("2026-11-11"), varying(total("0.25")));
    let of = forecast(&history, "2026-11-10", DAY_OVER);
    assert_eq!((of.cost, of.days[0].1), (total("10.25"), total("10.25")));
    assert_eq!(of.reach(total("10.1")), Some(Reached { day: day("2026-11-10"), already: true }));
    // That of the next month does not.
    let mut history = ending("2026-11-30", vec![total("1"); 31]);
    history.days.insert(day("2026-12-01"), varying(total("9")));
    assert_eq!(forecast(&history, "2026-11-30", DAY_OVER).expected, total("30"));
}

#[test]
fn the_range_has_the_documented_width() {
    // Seven days with one weekday each. The expected cost of each weekday follows its day by 4/5.
    let freedom = 7.0 * (1.0 - 0.8);
    let history = ending("2026-11-29", ["1", "7", "1", "7", "1", "7", "4"].map(total));
    let of = forecast(&history, "2026-11-30", DAY_BEGINS);
    let model = Model::fit(&history.complete_days(day("2026-11-30"))).unwrap();
    let squares: f64 = history
        .days
        .iter()
        .map(|(day, cost)| cost.varying - model.expected(*day))
        .map(|difference| {
            let difference: f64 = difference.to_string().parse().unwrap();
            difference * difference
        })
        .sum();
    let half = 1.2816 * (squares / freedom).sqrt();
    let range = of.range.unwrap();
    let high: f64 = (range.high - of.expected).to_string().parse().unwrap();
    assert!((high - half).abs() < 1e-9, "{high} {half}");
    assert_eq!(range.high - of.expected, of.expected - range.low);
    // Two whole days: squares of 1 and 6/5.
    let two: f64 = model.deviation(2, DAY_OVER).to_string().parse().unwrap();
    assert!((two - half * (1.0f64 + 1.44).sqrt()).abs() < 1e-9, "{two} {half}");
}

#[test]
fn square_roots_are_rounded_down() {
    for number in (0u32..2_000).chain([999_999, 1_000_000, u32::MAX]) {
        let root = square_root(U256::from(number));
        assert!(root * root <= U256::from(number) && (root + 1) * (root + 1) > U256::from(number), "{number}");
    }
    assert_eq!(square_root(U256::ONE << 254u32), U256::ONE << 127u32);
}

/// A client's days, today, and the part of today that is over.
fn cases() -> impl Strategy<Value = (History, NaiveDate, DayPart)> {
    let cost = prop_oneof![Just(0i128), 0..1_000_000_000_000_000i128, 0..1_000_000_000_000_000_000_000_000_000i128];
    let days = prop::collection::vec((cost.clone(), prop::option::weighted(0.1, cost), any::<bool>()), 0..40);
    (days, any::<bool>(), 0u64..800, 0u32..=90_000, prop::sample::select(vec![82_800u32, 86_400, 90_000])).prop_map(
        |(costs, used_before, offset, over, seconds)| {
            let today = day("2026-01-01") + Days::new(offset);
            let past = (0..).map(|ago| today - Days::new(ago));
            let days = past.zip(costs).filter(|(_, (.., present))| *present).map(|(day, (cost, recurring, _))| {
                let recurring = units(recurring.unwrap_or_default());
                (day, DayCost { varying: units(cost), recurring, has_usage: true })
            });
            (History { days: days.collect(), used_before }, today, DayPart { over: over.min(seconds), seconds })
        },
    )
}

proptest! {
    #[test]
    fn any_forecast_is_between_the_cost_so_far_and_its_high_end((history, today, part) in cases()) {
        let of = Forecast::of(&history, today, part);
        let month = Month::of(today);
        let recorded: Total = history.days.range(month.first_day()..=today).map(|(_, of)| of.varying + of.recurring).sum();
        prop_assert_eq!(of.cost, recorded);
        prop_assert!(of.expected >= of.cost);
        prop_assert!(of.days_used <= FORECAST_DAYS);
        prop_assert_eq!(of.range.is_some(), of.days_used >= RANGE_DAYS_MIN);
        if let Some(range) = of.range {
            prop_assert!(of.cost <= range.low && range.low <= of.expected && of.expected <= range.high);
        }
        prop_assert!(of.days.is_sorted_by_key(|(_, cost)| *cost));
        prop_assert_eq!(of.days.first().map(|(day, _)| *day), Some(today));
        prop_assert_eq!(of.days.last().copied(), Some((month.last_day(), of.expected)));
        // The month is over.
        let end = Forecast::of(&history, month.last_day(), DAY_OVER);
        prop_assert_eq!(end.expected, end.cost);
        if let Some(range) = end.range {
            prop_assert_eq!((range.low, range.high), (end.cost, end.cost));
        }
    }

    #[test]
    fn any_scaled_costs_give_the_scaled_forecast((history, today, part) in cases(), factor in 2i32..1_000) {
        let mut scaled = history.clone();
        for cost in scaled.days.values_mut() {
            cost.varying = Total::from_scaled(cost.varying.scaled() * I256::from(factor));
            cost.recurring = Total::from_scaled(cost.recurring.scaled() * I256::from(factor));
        }
        let (of, scaled) = (Forecast::of(&history, today, part), Forecast::of(&scaled, today, part));
        // The level is rounded to 10^-12, and every expected cost of a day to one unit.
        let highest = of.range.map_or(of.expected, |range| range.high);
        let tolerance = I256::from(factor) * 2_000 + highest.scaled() * I256::from(factor) / 1_000_000_000;
        let near = |of: Total, scaled: Total| {
            (of.scaled() * I256::from(factor) - scaled.scaled()).abs() <= tolerance
        };
        prop_assert!(near(of.expected, scaled.expected), "{} {}", of.expected, scaled.expected);
        prop_assert_eq!(of.days_used, scaled.days_used);
        if let (Some(of), Some(scaled)) = (of.range, scaled.range) {
            prop_assert!(near(of.low, scaled.low) && near(of.high, scaled.high), "{:?} {:?}", of, scaled);
        }
    }

    #[test]
    fn any_constant_days_give_exactly_the_linear_projection(
        cost in 0..1_000_000_000_000_000_000_000_000_000i128, offset in 0u64..800,
    ) {
        let today = day("2026-01-01") + Days::new(offset);
        let history = ending(&today.to_string(), vec![units(cost); 31]);
        let of = Forecast::of(&history, today, DAY_OVER);
        let month = Month::of(today);
        prop_assert_eq!(of.expected, month_end(of.cost, Total::ZERO, today.day(), month.days()));
        prop_assert_eq!(of.range, Some(Range { low: of.expected, high: of.expected }));
    }

    #[test]
    fn any_amount_is_reached_on_the_first_day_whose_cost_is_not_below_it(
        (history, today, part) in cases(), amount in 1..1_000_000_000_000_000_000_000_000_000_000i128,
    ) {
        let of = Forecast::of(&history, today, part);
        let amount = units(amount);
        match of.reach(amount) {
            None => prop_assert!(of.expected < amount),
            Some(Reached { day, already }) => {
                prop_assert_eq!(already, of.cost >= amount);
                let month = Month::of(today);
                let until = |day: NaiveDate| match day < today {
                    true => history.days.range(month.first_day()..=day).map(|(_, of)| of.varying + of.recurring).sum(),
                    false => of.days.iter().find(|(of, _)| *of == day).unwrap().1,
                };
                prop_assert!(until(day) >= amount);
                prop_assert!(day == month.first_day() || until(day - Days::new(1)) < amount);
            }
        }
    }
}
