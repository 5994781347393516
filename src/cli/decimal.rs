//! Decimal numbers as text, exact: the contract's quantities never pass through binary floating point.

/// Digits before the point: quantities are below 10^15.
const WHOLE_DIGITS_MAX: usize = 15;
/// Digits after the point. The server rounds to 12, and says so.
const DECIMALS_MAX: usize = 80;
/// Tokens of one event.
const TOKENS_MAX: i64 = 1_000_000_000_000;
/// Far beyond anything that can still be in range, and small enough to write out.
const EXPONENT_MAX: i32 = 1_000;

/// A quantity in plain canonical form: no sign, exponent, leading or trailing zeros. `1.50e1` → `15`.
pub fn quantity(text: &str) -> Result<String, String> {
    let plain = plain(text)?;
    if plain.starts_with('-') {
        return Err(format!("must be zero or more, got {:?}", text.trim()));
    }
    let (whole, decimals) = plain.split_once('.').unwrap_or((&plain, ""));
    if whole.len() > WHOLE_DIGITS_MAX {
        return Err(format!("must be below 10^15, got {:?}", text.trim()));
    }
    if decimals.len() > DECIMALS_MAX {
        return Err(format!("must have at most {DECIMALS_MAX} decimals, got {:?}", text.trim()));
    }
    Ok(plain)
}

/// A count of tokens. `374.0` is 374, `374.5` is refused.
pub fn tokens(text: &str) -> Result<i64, String> {
    let plain = plain(text)?;
    if plain.contains('.') {
        return Err(format!("must be a whole number, got {:?}", text.trim()));
    }
    match plain.parse() {
        Ok(count @ 0..=TOKENS_MAX) => Ok(count),
        _ => Err(format!("must be 0 to 10^12, got {:?}", text.trim())),
    }
}

/// Any decimal number in plain canonical form, with `-` where it is below zero.
pub fn plain(text: &str) -> Result<String, String> {
    let text = text.trim();
    let wrong = || format!("must be a decimal number such as 5.25, got {text:?}");
    let (negative, unsigned) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().map_err(|_| wrong())?),
        None => (unsigned, 0),
    };
    let (whole, decimals) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits: Vec<u8> = whole.bytes().chain(decimals.bytes()).collect();
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err(wrong());
    }
    if !(-EXPONENT_MAX..=EXPONENT_MAX).contains(&exponent) {
        return Err(format!("has an exponent out of range: {text:?}"));
    }
    let point = whole.len() as i64 + i64::from(exponent);
    Ok(place(&digits, point, negative))
}

/// Writes `digits` with the point after `point` of them, which may lie outside.
fn place(digits: &[u8], point: i64, negative: bool) -> String {
    let digit = |at: i64| match usize::try_from(at).ok().and_then(|at| digits.get(at)) {
        Some(digit) => char::from(*digit),
        None => '0',
    };
    let whole: String = (0..point).map(digit).collect();
    let decimals: String = (point..digits.len() as i64).map(digit).collect();
    let whole = whole.trim_start_matches('0');
    let decimals = decimals.trim_end_matches('0');
    let mut plain = String::new();
    if negative && !(whole.is_empty() && decimals.is_empty()) {
        plain.push('-');
    }
    plain.push_str(if whole.is_empty() { "0" } else { whole });
    if !decimals.is_empty() {
        plain.push('.');
        plain.push_str(decimals);
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_become_plain_and_stay_exact() {
        for (text, expected) in [
            ("0.1", "0.1"),
            ("1e-7", "0.0000001"),
            ("1E+3", "1000"),
            ("12.50", "12.5"),
            ("007", "7"),
            (".5", "0.5"),
            ("5.", "5"),
            ("-0.0", "0"),
            ("+3", "3"),
            ("-2.50", "-2.5"),
            ("12345678901234567890", "12345678901234567890"),
            ("0.00015e3", "0.15"),
            ("0e5", "0"),
            (" 1 ", "1"),
        ] {
            assert_eq!(plain(text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_number_is_refused() {
        for text in ["", ".", "-", "e5", "1,000", "NaN", "inf", "1e", "1e5.0", "--1", "0x10", "1_000", "１", "1e9999"]
        {
            assert!(plain(text).is_err(), "{text}");
        }
    }

    #[test]
    fn quantities_keep_the_contracts_bounds() {
        assert_eq!(quantity("999999999999999.999999999999").unwrap(), "999999999999999.999999999999");
        assert!(quantity("1e15").unwrap_err().contains("below 10^15"));
        assert_eq!(quantity("8.333333333333333e-2").unwrap(), "0.08333333333333333");
        assert!(quantity("1e-81").unwrap_err().contains("80 decimals"));
        assert_eq!(quantity("1.0000000000000").unwrap(), "1");
        assert!(quantity("-1").unwrap_err().contains("zero or more"));
    }

    #[test]
    fn tokens_are_whole() {
        assert_eq!(tokens("374.0"), Ok(374));
        assert_eq!(tokens("3.74e2"), Ok(374));
        assert!(tokens("374.5").unwrap_err().contains("whole number"));
        assert!(tokens("-1").is_err());
        assert_eq!(tokens("1e12"), Ok(TOKENS_MAX));
        assert!(tokens("1000000000001").is_err());
        assert!(tokens("99999999999999999999").is_err());
    }

    proptest! {
        #[test]
        fn plain_is_equal_to_what_it_came_from(mantissa in "[0-9]{1,20}(\\.[0-9]{0,20})?", exponent in -30i32..30) {
            use std::str::FromStr;
            let text = format!("{mantissa}e{exponent}");
            let plain = plain(&text).unwrap();
            let mantissa = mantissa.trim_end_matches('.');
            let exact = bigdecimal::BigDecimal::from_str(&format!("{mantissa}e{exponent}")).unwrap();
            prop_assert_eq!(bigdecimal::BigDecimal::from_str(&plain).unwrap(), exact);
            prop_assert_eq!(super::plain(&plain).unwrap(), plain);
        }
    }
}
