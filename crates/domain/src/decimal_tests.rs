use super::*;

#[test]
fn different_texts_of_one_number_are_equal() {
    for text in ["1", "1.0", "01", "1.000000000000000", "0001.00"] {
        assert_eq!(Decimal::parse(text), Ok(Decimal::ONE), "{text}");
    }
    assert_eq!(Decimal::parse("-0"), Ok(Decimal::ZERO));
}

#[test]
fn invalid_decimals_are_rejected_with_the_reason() {
    for text in ["", ".", "1.", ".5", "NaN", "inf", "1e400", "1e3", "+1", " 1", "1,5", "١", "--1", "1.2.3", "0x1"] {
        assert_eq!(Decimal::parse(text), Err(DecimalError::NotADecimal), "{text}");
    }
    assert_eq!(Decimal::parse("-1"), Err(DecimalError::Negative));
    assert_eq!(Decimal::parse("0.0000000000001"), Err(DecimalError::TooManyDecimals(12)));
    assert_eq!(Decimal::parse("1000000000000000"), Err(DecimalError::TooLarge(15)));
    assert_eq!(Decimal::parse(&"9".repeat(200)), Err(DecimalError::TooLong));
    assert!(Decimal::parse("999999999999999.999999999999").is_ok());
    assert!(Rate::parse("0.000000000000000000000001").is_ok());
    assert_eq!(Rate::parse("1000000000"), Err(DecimalError::TooLarge(9)));
}

#[test]
fn further_decimals_are_rounded_half_to_even() {
    for (text, rounded) in [
        ("0.08333333333333333", "0.083333333333"),
        ("0.30000000000000004", "0.3"),
        ("0.1000000000000000055511151231257827021181583404541015625", "0.1"),
        ("1.0000000000005", "1"),
        ("1.0000000000015", "1.000000000002"),
        ("1.00000000000050001", "1.000000000001"),
        ("1.00000000000049999", "1"),
        ("0.9999999999999", "1"),
        ("0.0000000000001", "0"),
    ] {
        let (value, changed) = Decimal::parse_rounded(text).unwrap();
        assert_eq!((value.to_string().as_str(), changed), (rounded, true), "{text}");
    }
    assert_eq!(Decimal::parse_rounded("1.500000000000000"), Ok((Decimal::parse("1.5").unwrap(), false)));
    assert_eq!(Decimal::parse_rounded("999999999999999.9999999999995"), Err(DecimalError::TooLarge(15)));
    assert_eq!(Decimal::parse_rounded("-0.0000000000001"), Err(DecimalError::Negative));
    assert_eq!(Decimal::parse_rounded(&format!("0.{}", "3".repeat(99))), Err(DecimalError::TooLong));
}

#[test]
fn values_are_shown_with_cents_unless_the_cents_are_zero() {
    let shown = |text: &str| text.parse::<Total>().unwrap().to_short_string();
    assert_eq!(
        ["0", "5", "103.2", "1.005", "1.015", "0.004", "0.0000825", "-12.5"].map(shown),
        ["0.00", "5.00", "103.20", "1.00", "1.02", "0.004", "0.0000825", "-12.50"]
    );
    assert_eq!(Total::from(Decimal::parse("2.5").unwrap()).multiply("1.5".parse().unwrap()).to_string(), "3.75");
}

#[test]
fn halves_are_rounded_to_the_even_neighbour() {
    for (dividend, rounded) in [(5, 0), (15, 2), (25, 2), (26, 3), (-5, 0), (-15, -2), (-25, -2), (-26, -3)] {
        assert_eq!(divide_half_even(I256::from(dividend), I256::from(10)), I256::from(rounded), "{dividend}");
    }
}

proptest::proptest! {
    /// Compares with a library: a parsed value is equal to the library's and within the limits.
    #[test]
    fn any_parsed_text_has_the_value_that_a_library_reads(text in "\\PC*|[-+]?[0-9]{0,18}[.,]?[0-9]{0,28}([eE][0-9])?") {
        let exact = || text.parse::<bigdecimal::BigDecimal>().unwrap();
        if let Ok(value) = Decimal::parse(&text) {
            proptest::prop_assert_eq!(value.to_string().parse::<bigdecimal::BigDecimal>().unwrap(), exact());
            proptest::prop_assert!((0..10i128.pow(DECIMALS + INTEGER_DIGITS)).contains(&value.scaled()));
        }
        if let Ok(rate) = Rate::parse(&text) {
            proptest::prop_assert_eq!(rate.to_string().parse::<bigdecimal::BigDecimal>().unwrap(), exact());
            proptest::prop_assert!((0..10i128.pow(RATE_DECIMALS + RATE_INTEGER_DIGITS)).contains(&rate.scaled()));
        }
    }

    #[test]
    fn small_and_large_numbers_are_divided_alike(dividend in -100i128..100, divisor in 1i128..20) {
        // The large numbers need more than half of 128 bits, so they are divided in 256 bits. Halves are frequent.
        let large = I256::from(10i128.pow(38));
        let (dividend, divisor) = (I256::from(dividend), I256::from(divisor));
        let wide = divide_half_even(dividend * large, divisor * large);
        proptest::prop_assert_eq!(divide_half_even(dividend, divisor), wide);
    }

    #[test]
    fn a_formatted_decimal_is_parsed_to_the_same_value(units in 0i128..10i128.pow(27)) {
        let value = Decimal::from_scaled(units);
        proptest::prop_assert_eq!(Decimal::parse(&value.to_string()), Ok(value));
    }

    #[test]
    fn small_and_large_numbers_are_formatted_alike(units: i64, zeros in 0u32..18) {
        let units = I256::from(units / 10i64.pow(zeros) * 10i64.pow(zeros));
        let mut wide = String::new();
        let sign = if units.is_negative() { "-" } else { "" };
        text::write_plain_wide(&mut wide, sign, units, DECIMALS as usize).unwrap();
        proptest::prop_assert_eq!(Total::from_scaled(units).to_string(), wide);
    }
}
