use super::*;
use crate::measures::OTHER_MEASURES_MAX;
use crate::tiers::{Tier, TierMode};
use num_bigint::BigInt;
use proptest::prelude::*;

fn rate(text: &str) -> Option<Rate> {
    Some(Rate::parse(text).unwrap())
}

fn measures(units: &str) -> Measures {
    Measures { units: Decimal::parse(units).unwrap(), ..Measures::default() }
}

#[test]
fn cached_tokens_cost_as_much_as_input_tokens_unless_they_have_a_rate() {
    let mut rates = Rates { input_token: rate("0.00000015"), output_token: rate("0.0000006"), ..Rates::default() };
    let call = Measures { input_tokens: 374, output_tokens: 44, cached_input_tokens: 100, ..measures("1") };
    assert_eq!(rates.flat_charge(&call).unwrap().to_string(), "0.0000825");
    rates.cached_input_token = rate("0.000000075");
    assert_eq!(rates.flat_charge(&call).unwrap().to_string(), "0.000075");
}

#[test]
fn prices_overlap_if_one_begins_before_the_end_of_the_other() {
    let time = |day: &str| Some(format!("2026-{day}T00:00:00Z").parse().unwrap());
    let price = |from: Option<&str>, end: Option<&str>| Price {
        price_id: 1,
        effective_time: from.and_then(time),
        end_time: end.and_then(time),
        rates: Rates::default(),
    };
    let cases = [
        (price(None, None), price(Some("06-01"), None), false),
        (price(None, Some("06-01")), price(Some("06-01"), None), false),
        (price(None, Some("06-02")), price(Some("06-01"), None), true),
        (price(Some("01-01"), Some("12-01")), price(Some("06-01"), Some("07-01")), true),
        (price(Some("01-01"), None), price(Some("06-01"), Some("07-01")), false),
        (price(Some("01-01"), Some("02-01")), price(Some("01-01"), None), true),
    ];
    for (first, second, expected) in cases {
        assert_eq!((first.overlaps(&second), second.overlaps(&first)), (expected, expected), "{first:?} {second:?}");
    }
}

#[test]
fn a_payment_is_charged_a_percentage_and_a_fixed_part() {
    let rates = Rates { percent_of_amount: rate("2.9"), fixed: rate("0.30"), ..Rates::default() };
    let payment = Measures { amount: Some(Decimal::parse("100").unwrap()), ..measures("1") };
    assert_eq!(rates.flat_charge(&payment).unwrap().to_string(), "3.2");
    let two = Measures { units: Decimal::parse("2").unwrap(), ..payment.clone() };
    assert_eq!(rates.flat_charge(&two).unwrap().to_string(), "3.5");
    assert_eq!(rates.flat_charge(&measures("1")), Err(UnpricedReason::AmountMissing));
}

#[test]
fn a_reported_cost_is_the_charge_if_the_price_says_so() {
    let rates = Rates { reported_cost: rate("1.2"), ..Rates::default() };
    let reported = |cost: &str| Measures { reported_cost: Some(Decimal::parse(cost).unwrap()), ..measures("1") };
    assert_eq!(rates.flat_charge(&reported("0.05")).unwrap().to_string(), "0.06");
    assert_eq!(rates.flat_charge(&reported("0")).unwrap(), Decimal::ZERO, "the provider says that it was free");
    assert_eq!(rates.flat_charge(&measures("1")), Err(UnpricedReason::ReportedCostMissing));
    let call = Measures { input_tokens: 5, others: vec![("pages".into(), Decimal::ONE)], ..reported("0.05") };
    assert_eq!(rates.flat_charge(&call).unwrap().to_string(), "0.06", "it includes what has no rate");
    let computed = Rates { unit: rate("2"), ..Rates::default() };
    assert_eq!(computed.flat_charge(&reported("0.05")).unwrap().to_string(), "2", "it is only compared");
}

#[test]
fn an_event_with_tokens_without_a_rate_is_unpriced() {
    let rates = Rates { unit: rate("1"), output_token: rate("1"), ..Rates::default() };
    let input = Measures { input_tokens: 1, ..measures("1") };
    assert_eq!(rates.flat_charge(&input), Err(UnpricedReason::TokensNotCovered));
    let output = Measures { output_tokens: 1, ..measures("1") };
    assert_eq!(rates.flat_charge(&output).unwrap().to_string(), "2");
}

#[test]
fn an_event_without_tokens_is_unpriced_if_only_tokens_have_a_rate() {
    let rates = Rates { input_token: rate("0.0000025"), output_token: rate("0.00001"), ..Rates::default() };
    assert_eq!(rates.flat_charge(&measures("1")), Err(UnpricedReason::TokensMissing));
    assert_eq!(rates.flat_charge(&measures("3")), Err(UnpricedReason::TokensMissing));
    let free_unit = Rates { unit: rate("0"), fixed: rate("0.00"), ..rates.clone() };
    assert_eq!(free_unit.flat_charge(&measures("1")), Err(UnpricedReason::TokensMissing));
    let cached = Rates { cached_input_token: rate("1"), ..Rates::default() };
    assert_eq!(cached.flat_charge(&measures("1")), Err(UnpricedReason::TokensMissing));
    let output = Measures { output_tokens: 1, ..measures("1") };
    assert_eq!(rates.flat_charge(&output).unwrap().to_string(), "0.00001");
}

#[test]
fn a_tiered_rate_takes_the_place_of_the_rate_of_its_component() {
    let tiered = |component: &str| TieredRate {
        component: component.into(),
        mode: TierMode::Graduated,
        tiers: vec![Tier { above: Decimal::ZERO, rate: rate("1").unwrap(), flat_fee: rate("0").unwrap() }],
        package_size: Decimal::ONE,
    };
    let call = Measures {
        input_tokens: 100,
        cached_input_tokens: 10,
        output_tokens: 7,
        others: vec![("audio_input_tokens".into(), Decimal::parse("20").unwrap()), ("pages".into(), Decimal::ONE)],
        ..measures("3")
    };
    let quantities = |rates: &Rates| -> Vec<(String, String)> {
        let found = rates.tier_quantities(&call);
        found.into_iter().map(|(rate, quantity)| (rate.component.to_string(), quantity.to_string())).collect()
    };
    let pair = |component: &str, quantity: &str| (component.to_owned(), quantity.to_owned());
    let mut rates = Rates {
        output_token: rate("2"),
        tiers: vec![tiered("input_token"), tiered("pages"), tiered("unit")],
        ..Rates::default()
    };
    assert_eq!(quantities(&rates), [pair("input_token", "100"), pair("pages", "1"), pair("unit", "3")]);
    assert_eq!(rates.flat_charge(&call).unwrap().to_string(), "14");
    rates.cached_input_token = rate("0.5");
    rates.measures = vec![("audio_input_tokens".into(), rate("0.1").unwrap())];
    assert_eq!(quantities(&rates)[0], pair("input_token", "70"));
    assert_eq!(rates.flat_charge(&call).unwrap().to_string(), "21");
    rates.tiers = vec![tiered("audio_input_tokens"), tiered("cached_input_token")];
    rates.cached_input_token = None;
    rates.measures = vec![];
    assert_eq!(quantities(&rates), [pair("audio_input_tokens", "20"), pair("cached_input_token", "10")]);
    assert_eq!(rates.flat_charge(&call), Err(UnpricedReason::TokensNotCovered), "the rest has no rate");
    let only_tokens = Rates { tiers: vec![tiered("input_token")], ..Rates::default() };
    assert_eq!(only_tokens.flat_charge(&measures("1")), Err(UnpricedReason::TokensMissing));
    let mut fees = only_tokens.clone();
    fees.tiers[0].tiers[0] = Tier { rate: rate("0").unwrap(), flat_fee: rate("5").unwrap(), above: Decimal::ZERO };
    assert_eq!(fees.flat_charge(&measures("1")), Err(UnpricedReason::TokensMissing), "a fee is a charge");
    fees.tiers[0].component = "unit".into();
    fees.input_token = rate("1");
    assert_eq!(fees.flat_charge(&measures("1")).unwrap(), Decimal::ZERO, "the unit is charged by its fee");
    let units = Rates { tiers: vec![tiered("unit")], ..Rates::default() };
    assert_eq!(units.flat_charge(&measures("1")).unwrap(), Decimal::ZERO);
}

#[test]
fn free_or_zero_usage_is_charged_zero() {
    let rates = Rates { input_token: rate("0.0000025"), output_token: rate("0.00001"), ..Rates::default() };
    assert_eq!(rates.flat_charge(&measures("0")).unwrap(), Decimal::ZERO, "no units: nothing was used");
    let free = Rates { input_token: rate("0"), output_token: rate("0"), ..Rates::default() };
    assert_eq!(free.flat_charge(&measures("1")).unwrap(), Decimal::ZERO);
    let unit = Rates { unit: rate("0"), ..Rates::default() };
    assert_eq!(unit.flat_charge(&measures("1")).unwrap(), Decimal::ZERO);
    let each = Rates { fixed: rate("0.01"), ..rates };
    assert_eq!(each.flat_charge(&measures("1")).unwrap().to_string(), "0.01");
}

#[test]
fn the_sum_is_rounded_once_not_its_parts() {
    // Each part is 0.4 of the last decimal. Rounded one by one, all parts would be zero.
    let rates = Rates { unit: rate("0.0000000000004"), fixed: rate("0.0000000000004"), ..Rates::default() };
    assert_eq!(rates.flat_charge(&measures("1")).unwrap().to_string(), "0.000000000001");
}

#[test]
fn the_largest_charge_fits() {
    let most = rate("999999999.999999999999999999999999");
    let measures = (0..OTHER_MEASURES_MAX).map(|number| Arc::from(format!("measure_{number}")));
    let rates = Rates {
        unit: most,
        input_token: most,
        output_token: most,
        cached_input_token: most,
        percent_of_amount: most,
        fixed: most,
        reported_cost: most,
        measures: measures.clone().map(|name| (name, most.unwrap())).collect(),
        tiers: vec![],
    };
    let largest = Decimal::parse("999999999999999.999999999999").unwrap();
    let all = Measures {
        units: largest,
        amount: Some(largest),
        reported_cost: Some(largest),
        input_tokens: 1_000_000_000_000,
        output_tokens: 1_000_000_000_000,
        cached_input_tokens: 500_000_000_000,
        others: measures.map(|name| (name, largest)).collect(),
    };
    assert!(rates.flat_charge(&all).unwrap() > largest);
}

fn any_rate() -> impl Strategy<Value = Option<Rate>> {
    prop::option::of(
        (0u64..1_000_000_000, "[0-9]{1,24}")
            .prop_map(|(integer, fraction)| Rate::parse(&format!("{integer}.{fraction}")).unwrap()),
    )
}

fn any_quantity() -> impl Strategy<Value = Decimal> {
    (0u64..1_000_000_000_000_000, "[0-9]{1,12}")
        .prop_map(|(integer, fraction)| Decimal::parse(&format!("{integer}.{fraction}")).unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]
    /// Compares with big integers: the sum of all products over 10^38, rounded half to even to units of 10^-12.
    #[test]
    fn charges_are_exact_for_any_decimals_in_range(
        unit in any_rate(), input in any_rate(), output in any_rate(), cached in any_rate(), percent in any_rate(),
        fixed in any_rate(), units in any_quantity(), amount in any_quantity(),
        input_tokens in 0i64..1_000_000_000_000, output_tokens in 0i64..1_000_000_000_000, cached_share in 0i64..=60,
        audio in any_rate(), audio_share in 0i64..=40, reasoning in any_rate(), reasoning_share in 0i64..=100,
        page in any_rate(), pages in any_quantity(), markup in any_rate(), reported in prop::option::of(any_quantity()),
    ) {
        let cached_input_tokens = input_tokens / 100 * cached_share;
        let audio_tokens = input_tokens / 100 * audio_share;
        let reasoning_tokens = output_tokens / 100 * reasoning_share;
        let others = [("audio_input_tokens", audio), ("pages", page), ("reasoning_output_tokens", reasoning)];
        let rates = Rates {
            unit, input_token: input, output_token: output, cached_input_token: cached,
            percent_of_amount: percent, fixed, reported_cost: markup,
            measures: others.into_iter().filter_map(|(name, rate)| Some((name.into(), rate?))).collect(),
            tiers: vec![],
        };
        let tokens = |count: i64| Decimal::from_scaled(i128::from(count) * Decimal::ONE.scaled());
        let others = [
            ("audio_input_tokens", tokens(audio_tokens)), ("pages", pages),
            ("reasoning_output_tokens", tokens(reasoning_tokens)),
        ];
        let others = others.into_iter().filter(|(_, quantity)| *quantity != Decimal::ZERO);
        let measures = Measures {
            units, input_tokens, output_tokens, cached_input_tokens, amount: Some(amount), reported_cost: reported,
            others: others.map(|(name, quantity)| (name.into(), quantity)).collect(),
        };
        let big = |rate: Option<Rate>| BigInt::from(rate.map_or(0, Rate::scaled));
        let token = BigInt::from(10).pow(14);
        let exact: BigInt = big(unit) * units.scaled() * 100
            + big(input) * (input_tokens - cached_input_tokens - audio_tokens) * &token
            + big(cached.or(input)) * cached_input_tokens * &token
            + big(audio.or(input)) * audio_tokens * &token
            + big(output) * (output_tokens - reasoning_tokens) * &token
            + big(reasoning.or(output)) * reasoning_tokens * &token
            + big(page) * pages.scaled() * 100
            + big(percent) * amount.scaled()
            + big(markup) * reported.unwrap_or_default().scaled() * 100
            + big(fixed) * units.scaled() * 100;
        let one = BigInt::from(10).pow(26);
        let (floor, rest) = (&exact / &one, &exact % &one);
        let twice: BigInt = rest * 2;
        let odd: bool = &floor % 2 != BigInt::from(0);
        let expected = if twice > one || (twice == one && odd) { floor + 1 } else { floor };
        let uncovered = markup.is_none() && ((input.is_none() && input_tokens > cached_input_tokens + audio_tokens)
            || (output.is_none() && output_tokens > reasoning_tokens)
            || (cached.or(input).is_none() && cached_input_tokens > 0)
            || (audio.or(input).is_none() && audio_tokens > 0)
            || (reasoning.or(output).is_none() && reasoning_tokens > 0));
        let uncovered_page = markup.is_none() && page.is_none() && pages != Decimal::ZERO;
        let missing = rates.charges_only_tokens() && measures.reports_no_tokens();
        match rates.flat_charge(&measures) {
            Ok(charge) => {
                let unreported = markup.is_some() && reported.is_none();
                prop_assert!(!(uncovered || uncovered_page || missing || unreported));
                prop_assert_eq!(BigInt::from(charge.scaled()), expected);
            }
            Err(UnpricedReason::TokensMissing) => prop_assert!(missing && !uncovered),
            Err(UnpricedReason::MeasureNotCovered) => prop_assert!(uncovered_page),
            Err(UnpricedReason::ReportedCostMissing) => prop_assert!(markup.is_some() && reported.is_none()),
            Err(reason) => {
                prop_assert_eq!(reason, UnpricedReason::TokensNotCovered);
                prop_assert!(uncovered);
            }
        }
    }
}
