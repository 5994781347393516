use super::*;
use ethnum::I256;
use proptest::prelude::*;

fn day(text: &str) -> NaiveDate {
    text.parse().unwrap()
}

fn total(units: i64) -> Total {
    Total::from_scaled(I256::from(units))
}

fn grant(grant_id: &str, priority: i32, days: (&str, &str), created: i64, remaining: i64) -> Grant {
    Grant {
        grant_id: grant_id.into(),
        priority,
        first_day: day(days.0),
        last_day: (!days.1.is_empty()).then(|| day(days.1)),
        create_time: DateTime::from_timestamp(created, 0).unwrap(),
        remaining: total(remaining),
        is_void: false,
    }
}

fn november() -> Month {
    Month::parse("2026-11").unwrap()
}

fn change(cost: i64, days: &[(&str, i64)], uses: &[(&str, i64)]) -> BTreeMap<Month, ChangedMonth> {
    let days: BTreeMap<NaiveDate, Total> = days.iter().map(|(of, more)| (day(of), total(*more))).collect();
    let uses = uses.iter().map(|(grant, used)| ((*grant).to_owned(), total(*used))).collect();
    let more = days.values().copied().sum();
    [(november(), ChangedMonth { cost: total(cost), more, days, uses: Some(uses) })].into()
}

fn drawn(draws: &Draws) -> Vec<(&str, Total)> {
    draws.iter().map(|((grant, _), amount)| (grant.as_str(), *amount)).collect()
}

const ALWAYS: (&str, &str) = ("2026-01-01", "");

#[test]
fn grants_pay_by_priority_then_the_one_that_expires_first_then_the_oldest() {
    let mut grants = vec![
        grant("e", 1, ALWAYS, 5, 10),
        grant("d", 1, ALWAYS, 4, 10),
        grant("c", 1, ("2026-11-01", "2026-12-31"), 3, 10),
        grant("b", 1, ("2026-11-01", "2026-11-30"), 9, 10),
        grant("a", 0, ALWAYS, 9, 10),
    ];
    let draws = settle(&mut grants, &change(35, &[("2026-11-21", 35)], &[]));
    assert_eq!(drawn(&draws), [("a", total(10)), ("b", total(10)), ("c", total(10)), ("d", total(5))]);
    let order: Vec<&str> = grants.iter().map(|grant| grant.grant_id.as_str()).collect();
    assert_eq!(order, ["a", "b", "c", "d", "e"]);
    // Returned in the reverse order, and only what exceeds the new cost.
    let uses = [("a", 10), ("b", 10), ("c", 10), ("d", 5)];
    let draws = settle(&mut grants, &change(18, &[("2026-11-21", -17)], &uses));
    assert_eq!(drawn(&draws), [("b", total(-2)), ("c", total(-10)), ("d", total(-5))]);
    let remaining: Vec<Total> = grants.iter().map(|grant| grant.remaining).collect();
    assert_eq!(remaining, [0, 2, 10, 10, 10].map(total));
}

#[test]
fn a_grant_pays_only_for_usage_of_its_days() {
    let days = [("2026-11-09", 1), ("2026-11-10", 2), ("2026-11-20", 4), ("2026-11-21", 8)];
    let mut grants = vec![grant("a", 0, ("2026-11-10", "2026-11-20"), 0, 100)];
    assert_eq!(drawn(&settle(&mut grants, &change(15, &days, &[]))), [("a", total(6))]);
}

#[test]
fn a_lower_cost_reduces_the_payable_amount_before_credits_return() {
    let mut grants = vec![grant("a", 0, ALWAYS, 0, 0)];
    assert_eq!(drawn(&settle(&mut grants, &change(12, &[("2026-11-21", -3)], &[("a", 10)]))), []);
    assert_eq!(drawn(&settle(&mut grants, &change(9, &[("2026-11-21", -3)], &[("a", 10)]))), [("a", total(-1))]);
}

#[test]
fn usage_that_moves_to_another_day_of_the_month_is_not_paid_twice() {
    let mut grants = vec![grant("a", 0, ("2026-11-10", ""), 0, 100)];
    let moved = [("2026-11-09", -5), ("2026-11-11", 5)];
    assert_eq!(drawn(&settle(&mut grants, &change(20, &moved, &[("a", 15)]))), []);
    let corrected = [("2026-11-09", 4), ("2026-11-11", 4), ("2026-11-12", -5)];
    assert_eq!(drawn(&settle(&mut grants, &change(23, &corrected, &[("a", 15)]))), [("a", total(3))]);
}

#[test]
fn a_correction_of_the_sums_alone_never_pays_above_the_cost_or_returns_what_is_owed() {
    let of = |cost: i64, more: i64, days: &[(&str, i64)], used: i64| {
        let mut changed = change(cost, days, &[("a", used)]);
        changed.values_mut().for_each(|month| month.more = total(more));
        let mut grants = vec![grant("a", 0, ALWAYS, 0, 100)];
        drawn(&settle(&mut grants, &changed)).iter().map(|(_, drawn)| *drawn).next()
    };
    assert_eq!(of(10, 0, &[("2026-11-21", -3)], 10), None, "only the sum of a day was too high");
    assert_eq!(of(10, 0, &[("2026-11-21", 3)], 10), None, "only the sum of a day was too low");
    assert_eq!(of(10, -5, &[], 15), Some(total(-5)), "the sum of the month was too high, and paid");
    assert_eq!(of(10, 4, &[("2026-11-21", 4)], 8), Some(total(2)), "at most what is payable");
}

/// What happens to a client: usage on a day of one of three months, a correction, a new grant, or a void of a grant.
#[derive(Clone, Debug)]
enum Step {
    Change { month: u32, days: Vec<(u32, i64)> },
    Grant { priority: i32, first: u32, days: Option<u32>, amount: i64 },
    Void { grant: usize },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let change = (1u32..4, prop::collection::vec((1u32..29, -40i64..60), 1..4));
    let step = prop_oneof![
        4 => change.prop_map(|(month, days)| Step::Change { month, days }),
        1 => (0..3i32, 0u32..80, prop::option::of(0u32..60), 1i64..200)
            .prop_map(|(priority, first, days, amount)| Step::Grant { priority, first, days, amount }),
        1 => (0usize..8).prop_map(|grant| Step::Void { grant }),
    ];
    prop::collection::vec(step, 1..60)
}

proptest! {
    #[test]
    fn no_grant_pays_more_than_its_amount_and_no_month_is_paid_above_its_cost(steps in steps()) {
        let start = day("2026-01-01");
        let (mut grants, mut amounts) = (Vec::<Grant>::new(), BTreeMap::<String, i64>::new());
        let mut uses = BTreeMap::<Month, BTreeMap<String, Total>>::new();
        let mut costs = BTreeMap::<NaiveDate, Total>::new();
        for (number, step) in steps.into_iter().enumerate() {
            match step {
                Step::Grant { priority, first, days, amount } => {
                    let first_day = start + chrono::Days::new(first.into());
                    grants.push(Grant {
                        grant_id: format!("g{number:02}"),
                        priority,
                        first_day,
                        last_day: days.map(|days| first_day + chrono::Days::new(days.into())),
                        create_time: DateTime::from_timestamp(number as i64, 0).unwrap(),
                        remaining: total(amount),
                        is_void: false,
                    });
                    amounts.insert(format!("g{number:02}"), amount);
                }
                Step::Void { grant } => {
                    if let Some(grant) = grants.get_mut(grant) {
                        grant.is_void = true;
                    }
                }
                Step::Change { month, days } => {
                    let mut changed = ChangedMonth::default();
                    for (of, more) in days {
                        let day = NaiveDate::from_ymd_opt(2026, month, of).unwrap();
                        let cost = costs.entry(day).or_default();
                        // The cost of a day is not negative.
                        let more = total(more).max(Total::ZERO - *cost);
                        *cost += more;
                        *changed.days.entry(day).or_default() += more;
                    }
                    let month_is_odd = month % 2 == 1;
                    let month = Month::of(NaiveDate::from_ymd_opt(2026, month, 1).unwrap());
                    changed.cost = costs.iter().filter(|(day, _)| Month::of(**day) == month).map(|(_, cost)| *cost).sum();
                    changed.more = changed.days.values().copied().sum();
                    // New usage is settled without what was paid before.
                    let known = changed.days.values().any(|more| *more < Total::ZERO) || month_is_odd;
                    changed.uses = known.then(|| uses.get(&month).cloned().unwrap_or_default());
                    for ((grant, month), drawn) in settle(&mut grants, &[(month, changed)].into()) {
                        *uses.entry(month).or_default().entry(grant).or_default() += drawn;
                    }
                }
            }
            for (month, of) in &uses {
                let cost: Total = costs.iter().filter(|(day, _)| Month::of(**day) == *month).map(|(_, cost)| *cost).sum();
                let used: Total = of.values().copied().sum();
                prop_assert!(used <= cost, "{} is paid {} of {}", month, used, cost);
                prop_assert!(of.values().all(|used| *used >= Total::ZERO));
            }
            for grant in &grants {
                let used: Total = uses.values().filter_map(|of| of.get(&grant.grant_id)).copied().sum();
                let left = total(amounts[&grant.grant_id]) - used;
                prop_assert!(left >= Total::ZERO && left == grant.remaining, "{}", grant.grant_id);
            }
        }
    }
}
