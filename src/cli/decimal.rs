//! Exact decimal numbers as text. No quantity is ever converted to binary floating point.

/// Maximum number of digits before the point: quantities are below 10^15.
const WHOLE_DIGITS_MAX: usize = 15;
/// Maximum number of digits after the point.
const DECIMALS_MAX: usize = 12;
/// Maximum number of tokens of one event.
const TOKENS_MAX: i64 = 1_000_000_000_000;
/// Maximum exponent. No valid number needs a larger one.
const EXPONENT_MAX: i32 = 1_000;

/// Thousands separators besides the point and the comma.
const THOUSANDS_SEPARATORS: [char; 5] = [' ', '\u{a0}', '\u{202f}', '\'', '’'];

/// The format of the numbers in a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct NumberRules {
    /// The decimal mark, if it is known. Numbers can then have thousands separators. `None` means a point and no thousands
    /// separators.
    pub mark: Option<DecimalMark>,
    /// Without a known mark, files of this kind often have a decimal comma, so 1.234 may be 1234.
    pub may_have_comma: bool,
}

/// The decimal mark of a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DecimalMark {
    /// 1,234.5
    Point,
    /// 1.234,5
    Comma,
}

/// Converts a number of a file to the form with a decimal point and without thousands separators.
pub fn normalized(text: &str, rules: NumberRules) -> Result<String, String> {
    let text = text.trim();
    let Some(mark) = rules.mark else {
        if text.contains(',') {
            return Err(format!(
                "has a comma, got {text:?}: add --decimal-comma if the comma is the decimal mark, or --decimal-point if it \
                 separates thousands"
            ));
        }
        if text.contains(THOUSANDS_SEPARATORS)
            && text.starts_with(|c: char| c.is_ascii_digit())
            && text.ends_with(|c: char| c.is_ascii_digit())
            && text.chars().all(|c| c.is_ascii_digit() || c == '.' || THOUSANDS_SEPARATORS.contains(&c))
        {
            return Err(format!(
                "has groups of digits, got {text:?}: add --decimal-point or --decimal-comma to set the decimal mark"
            ));
        }
        if rules.may_have_comma && is_ambiguous(text) {
            let thousands = text.replace('.', "");
            return Err(format!(
                "can be {thousands} or a number with three decimals, got {text:?}: add --decimal-comma for {thousands}, or \
                 --decimal-point for three decimals"
            ));
        }
        return Ok(text.to_owned());
    };
    let (decimal, group) = match mark {
        DecimalMark::Point => ('.', ','),
        DecimalMark::Comma => (',', '.'),
    };
    let (whole, rest) = match text.find([decimal, 'e', 'E']) {
        Some(at) => text.split_at(at),
        None => (text, ""),
    };
    let is_group = |c: char| c == group || THOUSANDS_SEPARATORS.contains(&c);
    let groups: Vec<&str> = whole.split(is_group).collect();
    if groups.len() > 1 {
        let first = groups[0].trim_start_matches(['+', '-']);
        let is_grouped = (1..=3).contains(&first.len()) && groups[1..].iter().all(|group| group.len() == 3);
        if !is_grouped
            || whole.chars().filter(|c| is_group(*c)).any(|c| Some(c) != whole.chars().find(|c| is_group(*c)))
        {
            return Err(format!("must be a decimal number such as 5{decimal}25, got {text:?}"));
        }
    }
    Ok(groups.concat() + &rest.replacen(decimal, ".", 1))
}

/// Whether the point of a number, such as 1.234, can separate thousands or decimals: one to three digits without a leading
/// zero, a point, and three digits.
fn is_ambiguous(text: &str) -> bool {
    let unsigned = text.trim_start_matches(['+', '-']);
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    unsigned.split_once('.').is_some_and(|(whole, rest)| {
        (1..=3).contains(&whole.len()) && !whole.starts_with('0') && rest.len() == 3 && digits(whole) && digits(rest)
    })
}

/// Parses a quantity and returns its canonical form, without a sign, an exponent, or leading and trailing zeros: `1.50e1` is
/// `15`. Further decimals than 12, as in printed binary fractions, are rounded half to even.
pub fn quantity(text: &str) -> Result<String, String> {
    rounded_quantity(text).map(|(quantity, _)| quantity)
}

/// Like [`quantity`], and returns whether the quantity was rounded.
pub fn rounded_quantity(text: &str) -> Result<(String, bool), String> {
    let plain = plain(text)?;
    if plain.starts_with('-') {
        return Err(format!("must be zero or more, got {:?}", text.trim()));
    }
    let (rounded, was_rounded) = rounded(plain);
    if rounded.split('.').next().is_some_and(|whole| whole.len() > WHOLE_DIGITS_MAX) {
        return Err(format!("must be below 10^15, got {:?}", text.trim()));
    }
    Ok((rounded, was_rounded))
}

/// Rounds a canonical, non-negative number to 12 decimals.
fn rounded(plain: String) -> (String, bool) {
    let Some((whole, decimals)) = plain.split_once('.') else { return (plain, false) };
    let Some((kept, rest)) = decimals.split_at_checked(DECIMALS_MAX).filter(|(_, rest)| !rest.is_empty()) else {
        return (plain, false);
    };
    let mut digits: Vec<u8> = [b"0", whole.as_bytes(), kept.as_bytes()].concat();
    let is_odd = digits.last().is_some_and(|digit| digit % 2 == 1);
    // Without trailing zeros, a rest that begins with 5 and is longer is more than half.
    let up = match rest.as_bytes()[0] {
        b'5' => rest.len() > 1 || is_odd,
        first => first > b'5',
    };
    if up {
        let last = digits.iter().rposition(|digit| *digit != b'9').unwrap_or(0);
        digits[last] += 1;
        digits[last + 1..].fill(b'0');
    }
    (canonical(&digits, whole.len() as i64 + 1, false), true)
}

/// Parses a number of tokens. `374.0` is 374; `374.5` is an error.
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

/// Parses a decimal number and returns its canonical form, with `-` if it is negative.
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
        return Err(format!("must have an exponent from -{EXPONENT_MAX} to {EXPONENT_MAX}, got {text:?}"));
    }
    let point = whole.len() as i64 + i64::from(exponent);
    Ok(canonical(&digits, point, negative))
}

/// Returns the canonical form of `digits` with the decimal point at the position `point`, which may be outside the digits.
fn canonical(digits: &[u8], point: i64, negative: bool) -> String {
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
    fn numbers_get_their_canonical_form_and_stay_exact() {
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
    fn a_text_that_is_not_a_number_is_an_error() {
        for text in ["", ".", "-", "e5", "1,000", "NaN", "inf", "1e", "1e5.0", "--1", "0x10", "1_000", "１", "1e9999"]
        {
            assert!(plain(text).is_err(), "{text}");
        }
    }

    #[test]
    fn quantities_have_the_bounds_of_the_api() {
        assert_eq!(quantity("999999999999999.999999999999").unwrap(), "999999999999999.999999999999");
        assert!(quantity("1e15").unwrap_err().contains("below 10^15"));
        assert!(quantity("999999999999999.9999999999995").unwrap_err().contains("below 10^15"));
        assert_eq!(quantity("1.0000000000000").unwrap(), "1");
        assert!(quantity("-1").unwrap_err().contains("zero or more"));
    }

    #[test]
    fn further_decimals_are_rounded_half_to_even() {
        for (text, expected) in [
            ("0.08333333333333333", "0.083333333333"),
            ("0.30000000000000004", "0.3"),
            ("0.0000000000005", "0"),
            ("0.0000000000015", "0.000000000002"),
            ("0.0000000000025", "0.000000000002"),
            ("0.00000000000250001", "0.000000000003"),
            ("9.9999999999999", "10"),
            ("1e-13", "0"),
        ] {
            assert_eq!(rounded_quantity(text), Ok((expected.to_owned(), true)), "{text}");
        }
        assert_eq!(rounded_quantity("1.123456789012"), Ok(("1.123456789012".to_owned(), false)));
    }

    #[test]
    fn numbers_of_other_countries_are_read_if_the_decimal_mark_is_known() {
        let read =
            |text: &str, mark| plain(&normalized(text, NumberRules { mark: Some(mark), may_have_comma: false })?);
        for (text, expected) in [
            ("2,5", "2.5"),
            ("1.234", "1234"),
            ("1.234,5", "1234.5"),
            ("12.345.678,25", "12345678.25"),
            ("1 234,5", "1234.5"),
            ("1\u{202f}234,5", "1234.5"),
            ("1'234,5", "1234.5"),
            ("1,2E+03", "1200"),
            ("0,125", "0.125"),
        ] {
            assert_eq!(read(text, DecimalMark::Comma).as_deref(), Ok(expected), "{text}");
        }
        for (text, expected) in [("1,234", "1234"), ("1,234,567.25", "1234567.25"), ("1.234", "1.234"), ("2.5", "2.5")]
        {
            assert_eq!(read(text, DecimalMark::Point).as_deref(), Ok(expected), "{text}");
        }
        for text in ["1.23", "1.2345", "1.234.56", "2.5", "1,2,3", "1.234 567", ".234", "1..234", "1,234.5"] {
            assert!(read(text, DecimalMark::Comma).is_err(), "{text}");
        }
        for text in ["2,5", "1,23", "1,234,56", "1.2.3"] {
            assert!(read(text, DecimalMark::Point).is_err(), "{text}");
        }
    }

    #[test]
    fn the_error_of_an_ambiguous_number_names_the_flags() {
        let read = |text: &str, may_have_comma| normalized(text, NumberRules { mark: None, may_have_comma });
        assert!(read("2,5", false).unwrap_err().contains("--decimal-comma"));
        assert!(read("1,234", true).unwrap_err().contains("--decimal-point"));
        for text in ["1 000", "1'234.5", "1\u{a0}000"] {
            assert!(read(text, false).unwrap_err().contains("groups of digits"), "{text}");
        }
        assert_eq!(read("1 unit", false).as_deref(), Ok("1 unit"));
        let error = read("1.234", true).unwrap_err();
        assert!(error.contains("can be 1234 or") && error.contains("--decimal-comma"), "{error}");
        for text in ["1.234", "0.125", "2.5", "1234.567", "1.2345"] {
            assert_eq!(read(text, false).as_deref(), Ok(text));
        }
        for text in ["0.125", "2.5", "1234.567", "1.2345", "12"] {
            assert_eq!(read(text, true).as_deref(), Ok(text));
        }
    }

    #[test]
    fn numbers_of_tokens_are_whole() {
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
        fn the_canonical_form_equals_the_number(mantissa in "[0-9]{1,20}(\\.[0-9]{0,20})?", exponent in -30i32..30) {
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
