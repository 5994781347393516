use super::*;
use crate::alert::Severity;
use crate::event::EventId;
use crate::measures::Measures;

fn limit(amount: &str) -> Limit {
    Limit {
        client_id: "c".into(),
        limit_id: "l".into(),
        display_name: String::new(),
        filter: LimitFilter::default(),
        measure: LimitMeasure::Units,
        period: LimitPeriod::Month,
        amount: Decimal::parse(amount).unwrap(),
        is_hard: false,
        alert_percents: DEFAULT_ALERT_PERCENTS.to_vec(),
        revision: 1,
        create_time: DateTime::UNIX_EPOCH,
        update_time: DateTime::UNIX_EPOCH,
    }
}

fn total(text: &str) -> Total {
    text.parse().unwrap()
}

fn day(text: &str) -> NaiveDate {
    text.parse().unwrap()
}

fn event() -> UsageEvent {
    UsageEvent {
        client_id: "c".into(),
        service: "sms".into(),
        operation: "send".into(),
        model: "m1".into(),
        service_tier: String::new(),
        measures: Measures {
            units: Decimal::parse("2.5").unwrap(),
            input_tokens: 7,
            output_tokens: 4,
            cached_input_tokens: 3,
            ..Measures::default()
        },
        event_time: DateTime::UNIX_EPOCH,
        idempotency_key: "k".into(),
        subject: "user-1".into(),
        external_id: String::new(),
        metadata: None,
        labels: Labels::from([("project".into(), "apollo".into()), ("team".into(), "red".into())]),
    }
}

#[test]
fn a_percent_is_reached_exactly_at_its_part_of_the_amount() {
    let of = limit("0.000000000001");
    assert_eq!(of.reached(total("0.000000000001")), BTreeSet::from([80, 90, 100]));
    let of = limit("3");
    assert_eq!(of.reached(total("2.399999999999")), BTreeSet::new());
    assert_eq!(of.reached(total("2.4")), BTreeSet::from([80]));
    assert_eq!(of.reached(total("2.999999999999")), BTreeSet::from([80, 90]));
    assert_eq!(of.reached(total("3")), BTreeSet::from([80, 90, 100]));
}

#[test]
fn a_limit_of_zero_is_reached_by_any_usage_and_is_red_without_usage() {
    let of = limit("0");
    assert_eq!(of.reached(Total::ZERO), BTreeSet::new());
    assert_eq!(of.reached(total("0.1")), BTreeSet::from([80, 90, 100]));
    assert_eq!(of.state(Total::ZERO), LimitState::Red);
}

#[test]
fn the_state_is_green_below_80_percent_and_red_from_100_percent() {
    let of = limit("50");
    for (taken, state) in [
        ("0", LimitState::Green),
        ("39.999999999999", LimitState::Green),
        ("40", LimitState::Yellow),
        ("49.999999999999", LimitState::Yellow),
        ("50", LimitState::Red),
        ("51", LimitState::Red),
    ] {
        assert_eq!(of.state(total(taken)), state, "{taken}");
    }
    assert_eq!(of.remaining(total("49.5")), total("0.5"));
    assert_eq!(of.remaining(total("51")), Total::ZERO);
}

#[test]
fn the_limit_of_which_the_smallest_share_remains_comes_first() {
    let (small, large, none) = (limit("10"), limit("1000"), limit("0"));
    let compare = Limit::compare_remaining_shares;
    // 10 % of 10 remain, and 20 % of 1,000.
    assert_eq!(compare((&small, total("9")), (&large, total("800"))), Ordering::Less);
    assert_eq!(compare((&small, total("9")), (&large, total("900"))), Ordering::Equal);
    assert_eq!(compare((&small, total("12")), (&large, total("1300"))), Ordering::Greater);
    assert_eq!(compare((&none, Total::ZERO), (&large, total("9999"))), Ordering::Less);
}

#[test]
fn a_filter_matches_events_with_one_of_each_list_and_all_labels() {
    let event = event();
    let filter = |change: fn(&mut LimitFilter)| {
        let mut filter = LimitFilter::default();
        change(&mut filter);
        filter
    };
    for (filter, matches) in [
        (filter(|_| {}), true),
        (filter(|f| f.services = vec!["voice".into(), "sms".into()]), true),
        (filter(|f| f.services = vec!["voice".into()]), false),
        (filter(|f| f.operations = vec!["receive".into()]), false),
        (filter(|f| f.models = vec!["m1".into()]), true),
        (filter(|f| f.models = vec!["m2".into()]), false),
        (filter(|f| f.subjects = vec!["user-1".into()]), true),
        (filter(|f| f.subjects = vec!["user-2".into()]), false),
        (filter(|f| f.labels = Labels::from([("project".into(), "apollo".into())])), true),
        (filter(|f| f.labels = Labels::from([("project".into(), "gemini".into())])), false),
        (filter(|f| f.labels = Labels::from([("project".into(), "apollo".into()), ("x".into(), "y".into())])), false),
    ] {
        assert_eq!(filter.matches(&event), matches, "{filter:?}");
    }
}

#[test]
fn a_filter_may_match_whatever_a_question_leaves_open() {
    let filter = LimitFilter {
        services: vec!["sms".into()],
        subjects: vec!["user-1".into()],
        labels: Labels::from([("project".into(), "apollo".into())]),
        ..LimitFilter::default()
    };
    let asked = |service: &str, subject: &str, labels: &[(&str, &str)]| Dimensions {
        service: service.into(),
        subject: subject.into(),
        labels: labels.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
        ..Dimensions::default()
    };
    assert!(filter.may_match(&Dimensions::default()));
    assert!(filter.may_match(&asked("sms", "user-1", &[("project", "apollo"), ("team", "red")])));
    assert!(filter.may_match(&asked("sms", "", &[("team", "red")])));
    assert!(!filter.may_match(&asked("voice", "", &[])));
    assert!(!filter.may_match(&asked("", "user-2", &[])));
    assert!(!filter.may_match(&asked("", "", &[("project", "gemini")])));
}

#[test]
fn each_measure_counts_its_own_quantity() {
    let event = event();
    let charge = Charge::Priced { charge: Decimal::parse("0.75").unwrap(), price_id: 1 };
    let priced =
        PricedEvent { event: &event, id: EventId::new(event.event_time), day: day("2026-11-28"), charge, tiers: None };
    let quantity = |measure| Limit { measure, ..limit("1") }.quantity(&priced);
    assert_eq!(quantity(LimitMeasure::Units), Some(total("2.5")));
    // Cached tokens are part of the input tokens.
    assert_eq!(quantity(LimitMeasure::Tokens), Some(total("11")));
    assert_eq!(quantity(LimitMeasure::Requests), Some(total("1")));
    assert_eq!(quantity(LimitMeasure::Cost), Some(total("0.75")));
    let filter = LimitFilter { services: vec!["voice".into()], ..LimitFilter::default() };
    assert_eq!(Limit { filter, ..limit("1") }.quantity(&priced), None);
}

#[test]
fn periods_begin_on_the_day_or_on_the_first_of_the_month() {
    let of = day("2028-02-29");
    assert_eq!((LimitPeriod::Day.start(of), LimitPeriod::Day.end(of)), (of, day("2028-03-01")));
    assert_eq!((LimitPeriod::Month.start(of), LimitPeriod::Month.end(of)), (day("2028-02-01"), day("2028-03-01")));
}

#[test]
fn a_message_names_the_limit_the_percent_and_the_amount() {
    let of = Limit { display_name: "SMS".into(), is_hard: true, ..limit("200") };
    let message = of.finding(80, day("2026-11-01"), total("161.5")).message("Acme", "USD");
    assert_eq!(message, "Acme has used 161.5 units in November 2026: 80 % of the hard limit SMS of 200 units.");
    let of = Limit { measure: LimitMeasure::Requests, ..limit("1") };
    let message = of.finding(100, day("2026-11-01"), total("1")).message("Acme", "USD");
    assert_eq!(message, "Acme has used 1 event in November 2026: 100 % of the soft limit l of 1 event.");
    let of = Limit { measure: LimitMeasure::Cost, period: LimitPeriod::Day, ..limit("5") };
    let finding = of.finding(100, day("2026-11-03"), total("5.25"));
    let message = finding.message("Acme", "USD");
    assert_eq!(message, "Acme has used 5.25 USD on 3 November 2026: 100 % of the soft limit l of 5.00 USD.");
    assert_eq!(finding.severity, Severity::Critical);
    assert!(finding.is_of_day());
}
