use super::*;
use proptest::prelude::*;

#[test]
fn a_package_is_compared_with_as_many_single_ones() {
    let max = Rate::parse("0.01").unwrap();
    let above = |rate: &TieredRate| rate.tier_above(max).is_some();
    assert!(!above(&rate(TierMode::Package, &[("0", "2.5", "0")], "1000000")));
    assert!(above(&rate(TierMode::Package, &[("0", "2.5", "0")], "249")));
    assert!(!above(&rate(TierMode::Package, &[("0", "2.5", "0")], "250")));
    assert!(above(&rate(TierMode::Graduated, &[("0", "0", "0"), ("5", "2.5", "9")], "1")));
}

fn decimal(text: &str) -> Decimal {
    Decimal::parse(text).unwrap()
}

fn rate(mode: TierMode, tiers: &[(&str, &str, &str)], package_size: &str) -> TieredRate {
    let tier = |(above, rate, flat_fee): &(&str, &str, &str)| Tier {
        above: decimal(above),
        rate: Rate::parse(rate).unwrap(),
        flat_fee: Rate::parse(flat_fee).unwrap(),
    };
    let tiers = tiers.iter().map(tier).collect();
    TieredRate { component: "unit".into(), mode, tiers, package_size: decimal(package_size) }
}

#[test]
fn the_cost_of_a_quantity_is_that_of_its_tiers() {
    let tiers = [("0", "0.10", "0"), ("100", "0.05", "0"), ("1000", "0.01", "2")];
    let graduated = rate(TierMode::Graduated, &tiers, "1");
    let volume = rate(TierMode::Volume, &tiers, "1");
    for (quantity, by_parts, as_a_whole) in [
        ("0", "0", "0"),
        ("0.5", "0.05", "0.05"),
        ("100", "10", "10"),
        ("101", "10.05", "5.05"),
        ("1000", "55", "50"),
        ("1000.5", "57.005", "12.005"),
        ("2000", "67", "22"),
    ] {
        assert_eq!(graduated.cost(decimal(quantity)).to_string(), by_parts, "{quantity}");
        assert_eq!(volume.cost(decimal(quantity)).to_string(), as_a_whole, "{quantity}");
    }
    let packages = rate(TierMode::Package, &[("0", "5", "0")], "1000");
    for (quantity, cost) in [("0", "0"), ("0.000000000001", "5"), ("1000", "5"), ("1000.1", "10"), ("5000", "25")] {
        assert_eq!(packages.cost(decimal(quantity)).to_string(), cost, "{quantity}");
    }
}

#[test]
fn the_parts_of_an_event_are_those_of_its_tiers() {
    let tiers = [("0", "0.10", "1"), ("100", "0.05", "2")];
    let lines = |mode, before, after| {
        let lines = rate(mode, &tiers, "30").lines(decimal(before), decimal(after));
        let line = |line: TierLine| {
            let amount = divide_half_even(line.amount, I256::from(10i128.pow(PRODUCT_DECIMALS - DECIMALS)));
            let amount = Decimal::from_scaled(amount.as_i128()).to_string();
            (line.above.to_string(), line.quantity.to_string(), amount)
        };
        lines.into_iter().map(line).collect::<Vec<_>>()
    };
    let text = |parts: &[(&str, &str, &str)]| {
        parts
            .iter()
            .map(|(above, quantity, amount)| (above.to_string(), quantity.to_string(), amount.to_string()))
            .collect::<Vec<_>>()
    };
    assert_eq!(lines(TierMode::Graduated, "0", "40"), text(&[("0", "40", "5")]));
    assert_eq!(lines(TierMode::Graduated, "90", "110"), text(&[("0", "10", "1"), ("100", "10", "2.5")]));
    assert_eq!(lines(TierMode::Graduated, "110", "120"), text(&[("100", "10", "0.5")]));
    assert_eq!(lines(TierMode::Volume, "90", "110"), text(&[("0", "-90", "-10"), ("100", "110", "7.5")]));
    assert_eq!(lines(TierMode::Package, "10", "30"), text(&[]));
    assert_eq!(lines(TierMode::Package, "10", "61"), text(&[("0", "2", "0.2")]));
}

#[test]
fn a_quantity_above_the_maximum_is_not_charged() {
    let rate = rate(TierMode::Graduated, &[("0", "999999999", "0")], "1");
    let mut used = MonthUse::default();
    let most = TIER_QUANTITY_MAX;
    assert!(add(&mut used, 1, &[(&rate, most)]).is_some());
    assert_eq!(
        Decimal::parse(&minus(most, decimal("0.000000000001")).to_string()),
        Ok(minus(most, decimal("0.000000000001")))
    );
    let before = used.clone();
    assert_eq!(add(&mut used, 1, &[(&rate, decimal("0.000000000001"))]), None);
    assert_eq!(used, before);
}

fn any_rate() -> impl Strategy<Value = TieredRate> {
    let tier = (1u32..500, 0u32..1_000_000, 0u32..3);
    (1i16..=3, prop::collection::vec(tier, 1..5), 1u32..200).prop_map(|(mode, tiers, size)| {
        let mut above = 0;
        let mode = TierMode::try_from(mode).unwrap();
        let count = if mode == TierMode::Package { 1 } else { tiers.len() };
        let tiers = tiers.into_iter().take(count).map(|(width, rate, fee)| {
            let tier = Tier {
                above: decimal(&above.to_string()),
                rate: Rate::parse(&format!("0.0000000{rate:07}")).unwrap(),
                flat_fee: Rate::parse(&fee.to_string()).unwrap(),
            };
            above += width;
            tier
        });
        TieredRate { component: "unit".into(), mode, tiers: tiers.collect(), package_size: decimal(&size.to_string()) }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]
    /// Adds and removes events in any order: charges and what remains of removed ones are F of what counts.
    #[test]
    fn the_cost_of_a_month_does_not_depend_on_the_order_of_its_events(
        rate in any_rate(), steps in prop::collection::vec((any::<bool>(), 0u64..400_000_000, 0usize..20), 1..40),
    ) {
        let mut used = MonthUse::default();
        let mut events: Vec<EventTiers> = vec![];
        let (mut cost, mut quantity) = (Decimal::ZERO, Decimal::ZERO);
        for (adds, micros, at) in steps {
            if adds || events.is_empty() {
                let units = Decimal::from_scaled(i128::from(micros) * 1_000_000);
                let tiers = add(&mut used, 7, &[(&rate, units)]).unwrap();
                cost = plus(cost, tiers.charge);
                quantity = plus(quantity, units);
                let lines = rate.lines(tiers.uses[0].before, quantity);
                let exact: I256 = lines.iter().map(|line| line.amount).sum();
                let rounded = divide_half_even(exact, I256::from(10i128.pow(26))).as_i128();
                prop_assert!((rounded - tiers.charge.scaled()).abs() <= 1, "{} {}", rounded, tiers.charge);
                events.push(tiers);
            } else {
                let removed = events.remove(at % events.len());
                let rest = remove(&mut used, 7, std::slice::from_ref(&rate), &removed);
                cost = plus(minus(cost, removed.charge), rest);
                quantity = minus(quantity, removed.uses[0].quantity);
            }
            prop_assert_eq!(cost, rate.cost(quantity));
        }
    }

    /// Compares with a sum over single units.
    #[test]
    fn graduated_tiers_charge_each_unit_at_its_rate(rate in any_rate(), units in 0u32..1_500) {
        let rate = TieredRate { mode: TierMode::Graduated, ..rate };
        let mut exact = I256::ZERO;
        for unit in 1..=units {
            let quantity = decimal(&unit.to_string());
            let tier = rate.tiers.iter().rfind(|tier| tier.above < quantity).unwrap();
            exact += I256::from(tier.rate.scaled()) * I256::from(10i128.pow(14));
            if plus(tier.above, Decimal::ONE) == quantity {
                exact += I256::from(tier.flat_fee.scaled()) * I256::from(10i128.pow(14));
            }
        }
        let expected = divide_half_even(exact, I256::from(10i128.pow(26))).as_i128();
        prop_assert_eq!(rate.cost(decimal(&units.to_string())).scaled(), expected);
    }
}
