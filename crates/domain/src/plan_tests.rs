use super::*;
use chrono::TimeZone;
use proptest::prelude::*;

fn terms(plan_id: &str, credits: &str, rollover_months: u32) -> PlanTerms {
    PlanTerms { plan_id: plan_id.into(), included_credits: Decimal::parse(credits).unwrap(), rollover_months }
}

fn timeline(changes: &[(&str, &str)]) -> PlanTimeline {
    let mut timeline = PlanTimeline::default();
    changes.iter().for_each(|(time, plan)| timeline.add(time.parse().unwrap(), terms(plan, "0", 0)));
    timeline
}

fn month(text: &str) -> Month {
    Month::parse(text).unwrap()
}

/// Returns plan, first day, last day and number of days.
fn days(changes: &[(&str, &str)], of: &str, zone: Tz) -> Vec<(String, u32, u32, u32)> {
    let day = |day: NaiveDate| chrono::Datelike::day(&day);
    let of_month = timeline(changes).days(month(of), zone);
    of_month
        .iter()
        .map(|plan| (plan.terms.plan_id.to_string(), day(plan.first_day), day(plan.last_day), plan.count()))
        .collect()
}

fn part(plan: &str, first: u32, last: u32) -> (String, u32, u32, u32) {
    (plan.into(), first, last, last - first + 1)
}

#[test]
fn a_plan_applies_from_its_time_until_the_next_change() {
    let timeline =
        timeline(&[("2026-11-16T12:00:00Z", "pro"), ("2026-11-01T00:00:00Z", "starter"), ("2026-12-01T00:00:00Z", "")]);
    for (time, plan) in [
        ("2026-10-31T23:59:59.999999Z", ""),
        ("2026-11-01T00:00:00Z", "starter"),
        ("2026-11-16T11:59:59.999999Z", "starter"),
        ("2026-11-16T12:00:00Z", "pro"),
        ("2026-12-01T00:00:00Z", ""),
    ] {
        assert_eq!(timeline.at(time.parse().unwrap()), plan, "{time}");
    }
    assert_eq!(ClientPlans::default().at("nobody", Utc.timestamp_opt(0, 0).unwrap()), "");
}

#[test]
fn a_day_belongs_to_the_plan_at_its_end() {
    let changes = [("2026-10-07T10:00:00Z", "starter"), ("2026-11-16T12:00:00Z", "pro"), ("2026-11-20T23:59:59Z", "")];
    assert_eq!(days(&changes, "2026-09", Tz::UTC), []);
    assert_eq!(days(&changes, "2026-10", Tz::UTC), [part("starter", 7, 31)]);
    assert_eq!(days(&changes, "2026-11", Tz::UTC), [part("starter", 1, 15), part("pro", 16, 19)]);
    assert_eq!(days(&changes, "2026-12", Tz::UTC), []);
    let twice = [("2026-11-10T08:00:00Z", "starter"), ("2026-11-10T09:00:00Z", "pro"), ("2026-11-12T00:00:00Z", "pro")];
    assert_eq!(days(&twice, "2026-11", Tz::UTC), [part("pro", 10, 30)]);
}

#[test]
fn days_are_those_of_the_zone_of_the_client() {
    let changes = [("2026-10-31T10:30:00Z", "starter")];
    assert_eq!(days(&changes, "2026-10", Tz::Pacific__Kiritimati), [], "there, November has begun");
    assert_eq!(days(&changes, "2026-11", Tz::Pacific__Kiritimati), [part("starter", 1, 30)]);
    assert_eq!(days(&changes, "2026-10", Tz::Pacific__Pago_Pago), [part("starter", 30, 31)]);
    // In Berlin, 25 October has 25 hours, and 29 March has 23.
    assert_eq!(days(&[("2026-10-25T22:59:59Z", "pro")], "2026-10", Tz::Europe__Berlin), [part("pro", 25, 31)]);
    assert_eq!(days(&[("2026-10-25T23:00:00Z", "pro")], "2026-10", Tz::Europe__Berlin), [part("pro", 26, 31)]);
    assert_eq!(days(&[("2026-03-29T21:59:59Z", "pro")], "2026-03", Tz::Europe__Berlin), [part("pro", 29, 31)]);
    assert_eq!(days(&[("2026-03-29T22:00:00Z", "pro")], "2026-03", Tz::Europe__Berlin), [part("pro", 30, 31)]);
}

#[test]
fn a_fee_is_prorated_by_days_and_rounded_once() {
    let fee = |monthly: &str, first: &str, last: &str, digits: u32| {
        let days =
            PlanDays { terms: terms("p", "0", 0), first_day: first.parse().unwrap(), last_day: last.parse().unwrap() };
        days.fee(Decimal::parse(monthly).unwrap(), digits).to_string()
    };
    assert_eq!(fee("29", "2026-11-01", "2026-11-30", 2), "29");
    assert_eq!(fee("29", "2026-11-01", "2026-11-15", 2), "14.5");
    // 29 × 11 / 30 = 10.6333…
    assert_eq!(fee("29", "2026-11-20", "2026-11-30", 2), "10.63");
    // 29 × 1 / 28 = 1.0357…
    assert_eq!(fee("29", "2027-02-10", "2027-02-10", 2), "1.04");
    // 0.3 × 1 / 30 = 0.01, and 0.15 × 1 / 30 = 0.005.
    assert_eq!(fee("0.15", "2026-11-01", "2026-11-01", 2), "0.01");
    assert_eq!(fee("4900", "2026-12-01", "2026-12-16", 0), "2529");
    assert_eq!(fee("29", "2026-11-20", "2026-11-30", 3), "10.633");
    assert_eq!(fee("999999999999999", "2026-11-01", "2026-11-30", 2), "999999999999999");
}

#[test]
fn the_credits_of_a_month_are_those_of_the_plan_with_most_until_the_day() {
    let mut timeline = PlanTimeline::default();
    assert!(!timeline.has_credits());
    for (time, plan, credits) in [
        ("2026-11-05T00:00:00Z", "trial", "50"),
        ("2026-11-10T00:00:00Z", "starter", "10"),
        ("2026-11-20T00:00:00Z", "enterprise", "200"),
        ("2026-12-01T00:00:00Z", "", "0"),
    ] {
        timeline.add(time.parse().unwrap(), terms(plan, credits, 0));
    }
    assert!(timeline.has_credits());
    for (day, plan) in [
        ("2026-11-04", None),
        ("2026-11-05", Some("trial")),
        ("2026-11-19", Some("trial")),
        ("2026-11-20", Some("enterprise")),
        ("2026-11-30", Some("enterprise")),
        ("2026-12-01", None),
    ] {
        let included = timeline.included_credits(day.parse().unwrap(), Tz::UTC);
        assert_eq!(included.as_ref().map(|(_, terms)| &*terms.plan_id), plan, "{day}");
        assert!(included.is_none_or(|(first, _)| first == "2026-11-05".parse().unwrap()));
    }
}

proptest! {
    #[test]
    fn each_day_has_at_most_one_plan_and_that_of_its_last_instant(
        changes in prop::collection::vec((0i64..90 * 86_400, 0..4usize), 0..8),
        zone in prop::sample::select(vec![Tz::UTC, Tz::Pacific__Kiritimati, Tz::Pacific__Niue, Tz::America__Havana]),
    ) {
        let start = Utc.with_ymd_and_hms(2026, 2, 1, 0, 0, 0).unwrap().timestamp();
        let mut timeline = PlanTimeline::default();
        for (seconds, plan) in &changes {
            let plan = ["", "a", "b", "c"][*plan];
            timeline.add(DateTime::from_timestamp(start + seconds, 0).unwrap(), terms(plan, "0", 0));
        }
        for of in ["2026-02", "2026-03", "2026-04"].map(month) {
            let parts = timeline.days(of, zone);
            for day in of.first_day().iter_days().take(of.days() as usize) {
                let having: Vec<_> = parts.iter().filter(|part| (part.first_day..=part.last_day).contains(&day)).collect();
                // The last second whose day it is.
                let noon = day.and_hms_opt(12, 0, 0).unwrap().and_utc().timestamp();
                let last = (noon - 2 * 86_400..noon + 2 * 86_400)
                    .step_by(900)
                    .filter(|second| day_of(DateTime::from_timestamp(*second, 0).unwrap(), zone) == day)
                    .last()
                    .unwrap() + 899;
                let expected = timeline.at(DateTime::from_timestamp(last, 999_999_999).unwrap());
                let found: Vec<&str> = having.iter().map(|part| &*part.terms.plan_id).collect();
                prop_assert_eq!(found, if expected.is_empty() { vec![] } else { vec![expected] }, "{}", day);
            }
            let fee = Decimal::parse("29").unwrap();
            let total: i128 = parts.iter().map(|part| part.fee(fee, 2).scaled()).sum();
            // Each part is rounded by at most half a cent.
            prop_assert!(total <= fee.scaled() + parts.len() as i128 * 5_000_000_000);
        }
    }
}
