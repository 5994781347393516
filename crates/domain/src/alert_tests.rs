use super::*;
use crate::event::UnpricedReason;
use crate::period::parse_day;
use proptest::prelude::*;

fn total(text: &str) -> Total {
    text.parse().unwrap()
}

fn facts(cost: &str, previous: &str, today: &str) -> MonthFacts {
    let today = parse_day(today).unwrap();
    MonthFacts {
        month: Month::of(today),
        cost: total(cost),
        recurring_cost: Total::ZERO,
        previous_cost: total(previous),
        today,
    }
}

/// Returns type, severity and threshold of each alert to raise in a month that has no alerts yet.
fn raised(facts: &MonthFacts) -> Vec<(AlertType, Severity, String)> {
    let findings = facts.to_raise(&Policy::default(), AlertSet::default(), AlertSet::default());
    findings.into_iter().map(|finding| (finding.kind, finding.severity, finding.threshold.to_string())).collect()
}

use AlertType::{Anomaly, Projection, Silence, Spike, Threshold, Unpriced};
use Severity::{Critical, Warning};

#[test]
fn only_the_highest_reached_threshold_is_raised() {
    assert_eq!(raised(&facts("49.999999999999", "0", "2026-11-30")), []);
    assert_eq!(raised(&facts("50", "0", "2026-11-30")), [(Threshold, Warning, "50".into())]);
    assert_eq!(raised(&facts("99.999999999999", "0", "2026-11-30")), [(Threshold, Warning, "50".into())]);
    assert_eq!(raised(&facts("100", "0", "2026-11-30")), [(Threshold, Critical, "100".into())]);
}

#[test]
fn a_spike_compares_with_the_whole_previous_month_above_the_baseline() {
    assert_eq!(raised(&facts("14.999999999999", "10", "2026-11-30")), []);
    assert_eq!(raised(&facts("15", "10", "2026-11-30")), [(Spike, Warning, "15".into())]);
    assert_eq!(raised(&facts("20", "10", "2026-11-30")), [(Spike, Critical, "20".into())]);
    assert_eq!(raised(&facts("0.02", "0.01", "2026-11-30")), []);
    assert_eq!(raised(&facts("40", "0.999999999999", "2026-11-30")), []);
    assert_eq!(raised(&facts("1.5", "1", "2026-11-30")), [(Spike, Warning, "1.5".into())]);
    let finding = facts("20", "8", "2026-11-30").reached(&Policy::default(), Spike, Critical).unwrap();
    assert_eq!((finding.percent, finding.previous), (Some(total("150")), Some(total("8"))));
}

#[test]
fn only_the_current_month_is_projected_from_its_first_projection_day() {
    assert_eq!(raised(&facts("40", "0", "2026-11-02")), []);
    assert_eq!(raised(&facts("15", "0", "2026-11-03")), [(Projection, Warning, "150".into())]);
    assert_eq!(raised(&facts("14.999999999999", "0", "2026-11-03")), []);
    // 5 + 10 × 30 ÷ 3.
    let with_recurring = MonthFacts { recurring_cost: total("5"), ..facts("15", "0", "2026-11-03") };
    assert_eq!(raised(&with_recurring), []);
    let last_month = MonthFacts { month: Month::parse("2026-10").unwrap(), ..facts("45", "0", "2026-11-03") };
    assert_eq!(raised(&last_month), []);
}

#[test]
fn the_lowest_cost_to_raise_is_that_of_the_next_rule() {
    let none = AlertSet::default();
    let lowest = |previous, today, set| {
        let facts = facts("0", previous, today);
        facts.lowest_cost_to_raise(&Policy::default(), set, set).map(|cost| cost.to_string())
    };
    // Before the third day there is no projection, and after a month below the baseline there is no spike.
    assert_eq!(lowest("0", "2026-11-02", none).as_deref(), Some("50"));
    assert_eq!(lowest("10", "2026-11-02", none).as_deref(), Some("15"));
    assert_eq!(lowest("0", "2026-11-03", none).as_deref(), Some("15"));
    assert_eq!(lowest("0", "2026-11-02", AlertSet::of(Threshold, Warning)).as_deref(), Some("100"));
    assert_eq!(lowest("0", "2026-11-02", AlertSet::of(Threshold, Critical)), None);
    let of_any = |today| facts("0", "0", today).lowest_cost_to_raise_for_any_row(&Policy::default());
    assert_eq!(of_any("2026-11-02"), Some(total("1.5")));
    let zero = Policy { monthly_warning: Total::ZERO, ..Policy::default() };
    let smallest = facts("0", "0", "2026-11-02").lowest_cost_to_raise(&zero, none, none);
    assert_eq!(smallest.unwrap().to_string(), "0.000000000001");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// Below the lowest cost, no alert is raised. At the lowest cost, one is raised if there is no recurring cost.
    #[test]
    fn an_alert_is_raised_from_the_lowest_cost_to_raise(
        cost in 0i64..20_000, previous in 0i64..20_000, later in 0i64..20_000, recurring in 0i64..200, day in 1u32..=30,
        raised in 0i32..64, open in 0i32..64, spread in -3i32..=3, critical in 1i128..10_000_000
    ) {
        let cents = |count: i64| Total::from_scaled(I256::from(i128::from(count) * 10i128.pow(10)));
        let policy = Policy { monthly_critical: Total::from_scaled(I256::from(critical * 37)), ..Policy::default() };
        let month = facts("0", "0", &format!("2026-11-{day:02}"));
        let month = MonthFacts { previous_cost: cents(previous), ..month };
        let (raised, open) = (AlertSet(raised | open), AlertSet(open));
        let lowest = month.lowest_cost_to_raise(&policy, raised, open);
        let near = |bound: Option<Total>| bound.map(|bound| Total::from_scaled(bound.scaled() + I256::from(spread)));
        let grown = MonthFacts { previous_cost: cents(previous.max(later)), ..month };
        let bound = month.alert_bound(&policy, raised, open);
        let of_any = month.lowest_cost_to_raise_for_any_row(&policy);
        for cost in [Some(cents(cost)), near(lowest), near(bound), near(of_any)].into_iter().flatten() {
            let at = |facts: MonthFacts, recurring_cost| MonthFacts { cost, recurring_cost, ..facts };
            let is_raised = !at(month, Total::ZERO).to_raise(&policy, raised, open).is_empty();
            if lowest.is_none_or(|lowest| cost < lowest) {
                prop_assert!(!is_raised, "{cost} is below {lowest:?}");
                prop_assert_eq!(at(month, cents(recurring).min(cost)).to_raise(&policy, raised, open), vec![]);
            }
            if lowest == Some(cost) && !(open.has(Threshold, Critical) || open.has(Spike, Critical)) {
                prop_assert!(is_raised, "{cost} is the lowest cost");
            }
            if bound.is_none_or(|bound| cost < bound) {
                let month = if day == 1 { grown } else { month };
                prop_assert_eq!(at(month, Total::ZERO).to_raise(&policy, raised, open), vec![]);
            }
            if of_any.is_none_or(|lowest| cost < lowest) {
                prop_assert_eq!(at(grown, Total::ZERO).to_raise(&policy, raised, open), vec![]);
            }
        }
    }
}

#[test]
fn a_month_without_cost_raises_no_alert() {
    let zero = Policy { monthly_warning: Total::ZERO, monthly_critical: Total::ZERO, ..Policy::default() };
    let none = AlertSet::default();
    assert_eq!(facts("0", "0", "2026-11-20").to_raise(&zero, none, none), []);
    assert!(!facts("0.000000000001", "0", "2026-11-20").to_raise(&zero, none, none).is_empty());
}

#[test]
fn a_disabled_rule_raises_nothing_and_resolves_its_open_alerts() {
    let facts = facts("200", "10", "2026-11-10");
    let off = Policy { threshold_enabled: false, spike_enabled: false, projection_enabled: false, ..Policy::default() };
    let none = AlertSet::default();
    assert_eq!(facts.to_raise(&Policy::default(), none, none).len(), 3);
    assert_eq!(facts.to_raise(&off, none, none), []);
    for finding in facts.to_raise(&Policy::default(), none, none) {
        assert!(facts.resolves(&off, &finding), "{finding:?}");
        assert!(!facts.resolves(&Policy::default(), &finding), "{finding:?}");
    }
}

#[test]
fn an_alert_is_resolved_by_a_new_threshold_or_a_correction_but_not_by_time() {
    let now = facts("120", "0", "2026-11-10");
    let alert = now.reached(&Policy::default(), Threshold, Critical).unwrap();
    let higher = Policy { monthly_critical: total("121"), ..Policy::default() };
    assert!(now.resolves(&higher, &alert));
    assert!(facts("99", "0", "2026-11-10").resolves(&Policy::default(), &alert));
    assert!(!facts("101", "0", "2026-11-10").resolves(&Policy::default(), &alert));
    let projected = facts("60", "0", "2026-11-10").reached(&Policy::default(), Projection, Warning).unwrap();
    assert!(!facts("60", "0", "2026-11-30").resolves(&Policy::default(), &projected));
    let next_month = MonthFacts { today: parse_day("2026-12-05").unwrap(), ..facts("60", "0", "2026-11-10") };
    assert!(!next_month.resolves(&Policy::default(), &projected));
    // Late usage in the previous month changes the threshold of a spike.
    let spike = facts("15", "10", "2026-11-10").reached(&Policy::default(), Spike, Warning).unwrap();
    assert!(facts("15", "11", "2026-11-10").resolves(&Policy::default(), &spike));
}

#[test]
fn an_open_alert_is_not_raised_again_and_no_warning_follows_a_critical_alert() {
    let policy = Policy { spike_enabled: false, projection_enabled: false, ..Policy::default() };
    let (warning, critical) = (AlertSet::of(Threshold, Warning), AlertSet::of(Threshold, Critical));
    let severity = |cost, raised, open| {
        facts(cost, "0", "2026-11-10").to_raise(&policy, raised, open).first().map(|finding| finding.severity)
    };
    let none = AlertSet::default();
    assert_eq!(severity("60", none, none), Some(Warning));
    assert_eq!(severity("60", warning, warning), None);
    assert_eq!(severity("110", warning, warning), Some(Critical));
    assert_eq!(severity("110", critical, critical), None);
    // The critical alert was resolved. No warning follows it, but it can be raised again.
    assert_eq!(severity("60", critical, none), None);
    assert_eq!(severity("110", critical, none), Some(Critical));
    assert_eq!(severity("60", warning, none), Some(Warning));
}

fn day(value: &str, sum_before: &str, days_with_usage: u32, service: &str) -> Option<Finding> {
    let day = parse_day("2026-11-21").unwrap();
    let (value, sum_before) = (total(value), total(sum_before));
    let facts = DayFacts { service: service.into(), day, value, days_before: 29, sum_before, days_with_usage };
    let off = Policy { anomaly_enabled: false, ..Policy::default() };
    assert_eq!(facts.anomaly(&off), None);
    facts.anomaly(&Policy::default())
}

#[test]
fn steady_usage_is_never_an_anomaly() {
    let day = parse_day("2026-11-21").unwrap();
    let steady = |days: u32| DayFacts {
        service: String::new(),
        day,
        value: total("10"),
        days_before: days,
        sum_before: total(&(10 * days).to_string()),
        days_with_usage: days,
    };
    for days in 1..=29 {
        assert_eq!(steady(days).anomaly(&Policy::default()), None, "{days}");
    }
    assert!(DayFacts { value: total("30.1"), ..steady(7) }.anomaly(&Policy::default()).is_some());
}

#[test]
fn an_anomaly_is_above_three_times_the_mean_of_29_days() {
    assert_eq!(day("6", "58", 29, ""), None);
    let finding = day("6.000000000001", "58", 29, "").unwrap();
    assert_eq!((finding.kind, finding.severity, finding.threshold), (Anomaly, Warning, total("6")));
    assert_eq!(finding.previous, Some(total("2")));
    assert_eq!(day("100", "58", 6, ""), None);
    assert!(day("100", "58", 7, "").is_some());
    assert_eq!(day("0.99", "0.1", 29, ""), None);
    assert!(day("1", "0.1", 29, "").is_some());
    assert_eq!(day("9.9", "0.1", 29, "sms"), None);
    assert!(day("10", "0.1", 29, "sms").is_some());
}

#[test]
fn messages_are_sentences_with_rounded_numbers() {
    let month = facts("103.2000825", "40", "2026-11-10");
    let text = |kind, severity| month.reached(&Policy::default(), kind, severity).unwrap().message("acme", "USD");
    assert_eq!(
        text(Threshold, Critical),
        "acme has used 103.20 USD in November 2026: the critical threshold of 100.00 USD is reached."
    );
    assert_eq!(
        text(Spike, Critical),
        "acme has used 103.20 USD in November 2026, 158 % more than in all of October 2026 (40.00 USD)."
    );
    assert_eq!(
        text(Projection, Warning),
        "acme is heading for 309.60 USD in November 2026, with 103.20 USD used so far: the line is 150.00 USD."
    );
    assert_eq!(
        day("30", "58", 29, "").unwrap().message("acme", "USD"),
        "acme used 30.00 USD on 21 November 2026; the days before had 2.00 USD on average."
    );
    assert_eq!(
        day("30.5", "58", 29, "sms").unwrap().message("acme", "USD"),
        "acme used 30.5 units of sms on 21 November 2026; the days before had 2.00 on average."
    );
    let january = facts("40", "20", "2027-01-10");
    let spike = january.reached(&Policy::default(), Spike, Warning).unwrap().message("acme", "USD");
    assert!(spike.contains("January 2027") && spike.contains("December 2026"), "{spike}");
}

fn unpriced(event_count: i64) -> UnpricedFacts {
    UnpricedFacts { service: "openai".into(), month: Month::parse("2026-11").unwrap(), event_count }
}

#[test]
fn unpriced_events_are_an_alert_of_their_service_and_month_from_the_minimum_on() {
    let finding = unpriced(12).unpriced(&Policy::default()).unwrap();
    assert_eq!((finding.kind, finding.severity, &*finding.service), (Unpriced, Warning, "openai"));
    assert_eq!(
        (finding.period.to_string().as_str(), finding.current, finding.threshold),
        ("2026-11-01", total("12"), total("1"))
    );
    assert_eq!(
        (finding.unit(), finding.unit().word("USD"), finding.unit().currency("USD")),
        (Unit::Events, "events", "")
    );
    assert_eq!(unpriced(0).unpriced(&Policy::default()), None);
    let ten = Policy { unpriced_events_min: 10, ..Policy::default() };
    assert_eq!((unpriced(9).unpriced(&ten), unpriced(10).unpriced(&ten).unwrap().threshold), (None, total("10")));
    assert_eq!(unpriced(12).unpriced(&Policy { unpriced_enabled: false, ..ten }), None);
}

#[test]
fn the_message_about_unpriced_events_names_reasons_and_few_models() {
    let finding = unpriced(12).unpriced(&Policy::default()).unwrap();
    let text = |events: &[(&str, UnpricedReason)]| {
        let mut sample = UnpricedSample::default();
        events.iter().for_each(|(model, reason)| sample.add(&(*model).into(), *reason, 1));
        finding.message_with("acme", "USD", &Details::Unpriced(sample))
    };
    let begin = "acme has 12 events of openai without a charge in November 2026";
    use UnpricedReason::{NoPrice, TokensMissing};
    assert_eq!(text(&[("", TokensMissing)]), format!("{begin}: reason TOKENS_MISSING."));
    assert_eq!(
        text(&[("b", NoPrice), ("a", NoPrice), ("", NoPrice)]),
        format!("{begin}: reason NO_PRICE; models a, b.")
    );
    let many: Vec<_> = ["a", "b", "c", "d", "e", "f", "g", "g"].map(|model| (model, NoPrice)).into();
    assert_eq!(text(&many), format!("{begin}: reason NO_PRICE; models g, a, b, c, d and 2 more."));
    let two = text(&[("a", NoPrice), ("a", TokensMissing)]);
    assert_eq!(two, format!("{begin}: reasons NO_PRICE, TOKENS_MISSING; model a."));
    let long = text(&[(&"x".repeat(200), NoPrice)]);
    assert!(long.ends_with("x….") && long.len() < 200, "{long}");
    assert_eq!(finding.message("acme", "USD"), format!("{begin}."));
    let one = unpriced(1).unpriced(&Policy::default()).unwrap().message("acme", "USD");
    assert_eq!(one, "acme has 1 event of openai without a charge in November 2026.");
}

fn time(text: &str) -> DateTime<Utc> {
    text.parse().unwrap()
}

fn silent(last: &str, now: &str) -> SilenceFacts {
    let last = time(last);
    SilenceFacts { recorded_day: last.date_naive(), last_event_time: Some(last), now: time(now), zone: chrono_tz::UTC }
}

fn watching(silence_hours: u32) -> Policy {
    Policy { silence_enabled: true, silence_hours, ..Policy::default() }
}

#[test]
fn a_client_is_silent_when_the_hours_of_the_policy_are_over() {
    let last = "2026-11-10T08:30:00Z";
    assert_eq!(silent(last, "2027-11-10T08:30:00Z").silence(&Policy::default()), None);
    assert_eq!(silent(last, "2026-11-11T08:29:59.999999Z").silence(&watching(24)), None);
    let facts = silent(last, "2026-11-11T10:29:00Z");
    let finding = facts.silence(&watching(24)).unwrap();
    assert_eq!((finding.kind, finding.severity, &*finding.service), (Silence, Warning, ""));
    assert_eq!((finding.current, finding.threshold, finding.unit()), (total("25"), total("24"), Unit::Hours));
    let text = |facts: SilenceFacts| finding.message_with("acme", "USD", &Details::Silence(facts));
    assert_eq!(
        text(facts),
        "acme has sent no events for 25 hours: the last one was on 10 November 2026, 08:30 UTC. The threshold is 24 hours."
    );
    let berlin = SilenceFacts { zone: chrono_tz::Europe::Berlin, ..facts };
    assert!(text(berlin).contains("10 November 2026, 09:30 CET"));
    // The day is that of the client.
    let far =
        SilenceFacts { zone: chrono_tz::Pacific::Kiritimati, ..silent("2026-11-10T12:00:00Z", "2026-11-20T00:00:00Z") };
    assert_eq!(far.silence(&watching(24)).unwrap().period, parse_day("2026-11-11").unwrap());
    // If the time of the event is not known, the silence is counted from the end of its day.
    let removed = SilenceFacts { last_event_time: None, ..silent(last, "2026-11-13T00:00:00Z") };
    assert_eq!((removed.hours(), removed.silence(&watching(24)).unwrap().period), (24, removed.recorded_day));
    assert!(text(removed).contains("the last one was on 10 November 2026. The threshold"));
}

#[test]
fn a_silence_ends_with_an_event_a_changed_policy_or_a_later_silence() {
    let alert = silent("2026-11-10T08:30:00Z", "2026-11-12T00:00:00Z").silence(&watching(24)).unwrap();
    let at = |last, now| silent(last, now).ends(&watching(24), &alert);
    assert!(!at("2026-11-10T08:30:00Z", "2027-11-12T00:00:00Z"), "time alone ends no silence");
    assert!(!at("2026-11-10T23:00:00Z", "2026-11-12T00:00:00Z"), "a late event of the same day");
    assert!(at("2026-11-12T00:00:00Z", "2026-11-12T01:00:00Z"));
    assert!(at("2026-11-11T00:00:00Z", "2026-11-14T00:00:00Z"), "a later silence");
    let same = silent("2026-11-10T08:30:00Z", "2026-11-12T00:00:00Z");
    assert!(same.ends(&Policy::default(), &alert) && same.ends(&watching(100), &alert));
}

#[test]
fn an_alert_is_the_same_after_it_was_stored() {
    let finding = facts("120", "10", "2026-11-10").reached(&Policy::default(), Spike, Critical).unwrap();
    let alert = Alert {
        alert_id: "a".into(),
        client_id: "acme".into(),
        message: finding.message("acme", "USD"),
        finding,
        raise_time: DateTime::UNIX_EPOCH,
        raise_count: 1,
        acknowledge_time: None,
        acknowledged_by: String::new(),
        resolve_time: None,
    };
    let text = serde_json::to_string(&alert).unwrap();
    assert!(text.contains(r#""type":2,"severity":2"#) && text.contains(r#""current":"120""#), "{text}");
    assert_eq!(serde_json::from_str::<Alert>(&text).unwrap(), alert);
}

proptest! {
    /// For usage in any number of steps: each severity is raised at most once, the highest reached one at the end, and
    /// no warning after a critical alert. An alert is raised exactly when the total is at or above its threshold.
    #[test]
    fn any_steps_raise_each_severity_once_and_in_order(
        steps in prop::collection::vec(0i128..40_000_000_000_000, 1..40), previous in 0i128..60_000_000_000_000,
        day in 1u32..=30,
    ) {
        let today = parse_day(&format!("2026-11-{day:02}")).unwrap();
        let policy = Policy::default();
        let (mut cost, mut set) = (Total::ZERO, AlertSet::default());
        let mut all: Vec<(AlertType, Severity)> = vec![];
        for step in steps {
            cost += Total::from_scaled(I256::from(step));
            let facts = MonthFacts {
                month: Month::of(today), cost, recurring_cost: Total::ZERO,
                previous_cost: Total::from_scaled(I256::from(previous)), today,
            };
            for finding in facts.to_raise(&policy, set, set) {
                prop_assert!(finding.projected.unwrap_or(cost) >= finding.threshold);
                prop_assert!(!all.contains(&(finding.kind, finding.severity)));
                prop_assert!(finding.severity == Critical || !all.contains(&(finding.kind, Critical)));
                all.push((finding.kind, finding.severity));
                set.0 |= AlertSet::of(finding.kind, finding.severity).0;
            }
            prop_assert_eq!(set.has(Threshold, Critical), cost >= policy.monthly_critical);
            prop_assert!(cost < policy.monthly_warning || set.has(Threshold, Warning) || set.has(Threshold, Critical));
            prop_assert_eq!(facts.to_raise(&policy, set, set), vec![]);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// Whatever happens, an alert about unpriced events is open exactly while there are as many as the minimum.
    #[test]
    fn unpriced_events_are_found_from_the_minimum_on(event_count in 0i64..50, minimum in 0u32..50, is_enabled: bool) {
        let policy = Policy { unpriced_enabled: is_enabled, unpriced_events_min: minimum, ..Policy::default() };
        let finding = unpriced(event_count).unpriced(&policy);
        prop_assert_eq!(finding.is_some(), is_enabled && event_count >= i64::from(minimum.max(1)));
        prop_assert!(finding.is_none_or(|finding| finding.current >= finding.threshold && finding.threshold > Total::ZERO));
    }

    /// For events at any times, checked every hour: an alert is open after a check exactly while the client is silent, each silence
    /// of a day is raised once, and a client that a check leaves out has nothing to raise or to resolve.
    #[test]
    fn a_silence_is_open_exactly_while_the_client_is_silent(
        gaps in prop::collection::vec(1i64..4_000, 1..8), silence_hours in 1u32..60, zone in 0usize..3, is_removed: bool
    ) {
        let zone = [chrono_tz::UTC, chrono_tz::Pacific::Kiritimati, chrono_tz::Pacific::Pago_Pago][zone];
        let policy = watching(silence_hours);
        let mut events = vec![time("2026-11-01T00:00:00Z")];
        for gap in gaps {
            events.push(events[events.len() - 1] + chrono::TimeDelta::minutes(gap));
        }
        let last = events[events.len() - 1];
        let (mut open, mut raised): (Option<Finding>, Vec<NaiveDate>) = (None, vec![]);
        let mut now = events[0];
        while now < last + chrono::TimeDelta::hours(200) {
            let sent = events.iter().copied().rfind(|sent| *sent <= now).unwrap();
            let recorded_day = crate::period::day_of(sent, zone);
            let last_event_time = (!is_removed).then_some(sent);
            let facts = SilenceFacts { recorded_day, last_event_time, now, zone };
            let ends = open.as_ref().is_some_and(|alert| facts.ends(&policy, alert));
            let begins = (open.is_none() || ends) && facts.silence(&policy).is_some();
            prop_assert!(!(ends || begins) || facts.may_change(&policy, open.as_ref().map(|alert| alert.period)));
            if ends {
                open = None;
            }
            if begins {
                open = facts.silence(&policy);
                raised.push(facts.day());
            }
            let is_silent = facts.hours() >= i64::from(silence_hours);
            prop_assert_eq!(open.is_some(), is_silent);
            prop_assert!(is_removed || is_silent == (now - sent >= chrono::TimeDelta::hours(silence_hours.into())));
            now += chrono::TimeDelta::hours(1);
        }
        prop_assert!(raised.is_sorted());
        prop_assert!(raised.len() <= events.len(), "at most one alert for each silence");
    }

    /// Alerts that are not about the cost of a month are in no set, and no cost raises them.
    #[test]
    fn a_bound_of_the_cost_does_not_depend_on_the_other_rules(
        cost in 0i64..20_000, minimum in 1u32..50, unpriced_enabled: bool, silence_enabled: bool
    ) {
        let policy = Policy { unpriced_enabled, unpriced_events_min: minimum, silence_enabled, ..Policy::default() };
        let month = facts(&cost.to_string(), "10", "2026-11-20");
        let none = AlertSet::default();
        prop_assert_eq!(month.to_raise(&policy, none, none), month.to_raise(&Policy::default(), none, none));
        let lowest = |policy| month.lowest_cost_to_raise(policy, none, none);
        prop_assert_eq!(lowest(&policy), lowest(&Policy::default()));
        for kind in [Anomaly, Unpriced, Silence] {
            prop_assert_eq!(AlertSet::of(kind, Warning), none);
        }
    }
}
