//! Exact decimals: quantities and amounts, rates, and sums of them. No binary floating point.

use ethnum::I256;
use std::fmt;

/// Decimals of a quantity, an amount and a charge.
pub const DECIMALS: u32 = 12;
/// Decimals of a rate.
pub const RATE_DECIMALS: u32 = 24;
/// Quantities and amounts are below ten to this power.
pub const INTEGER_DIGITS: u32 = 15;
/// Rates are below ten to this power.
pub const RATE_INTEGER_DIGITS: u32 = 9;

/// A quantity or an amount: zero or more, at most 12 decimals, held in units of 10^-12.
///
/// What comes from outside is below 10^15. A charge may be larger: up to six products of a quantity and a rate, below
/// 6 × 10^24, which still is far from the type's end at 1.7 × 10^26.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Decimal(i128);

/// What one of something costs: zero or more, below 10^9, at most 24 decimals, held in units of 10^-24.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate(i128);

/// A sum of quantities or charges in units of 10^-12, wide enough for any number of them. Differences may be negative.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Total(I256);

/// Why a text is not the decimal that is asked for. The message says what to send instead.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecimalError {
    /// Not digits with at most one point between them.
    #[error("must be a decimal number such as 5.25, in plain digits")]
    NotADecimal,
    /// Below zero.
    #[error("must be zero or more")]
    Negative,
    /// More decimals than are kept.
    #[error("must have at most {0} decimals")]
    TooManyDecimals(u32),
    /// Too large.
    #[error("must be below 10^{0}")]
    TooLarge(u32),
    /// A longer text than is looked at.
    #[error("must be a decimal number of at most {TEXT_BYTES_MAX} characters")]
    TooLong,
}

/// Longest text that is looked at: room for a double in full, such as 0.1 with its 55 decimals.
const TEXT_BYTES_MAX: usize = 100;

/// Reads plain digits with an optional fraction into units of 10^-`decimals`. Zeros at either end do not count.
fn parse(text: &str, integer_digits: u32, decimals: u32) -> Result<i128, DecimalError> {
    match parse_rounded(text, integer_digits, decimals)? {
        (units, false) => Ok(units),
        (_, true) => Err(DecimalError::TooManyDecimals(decimals)),
    }
}

/// The same, but rounds further decimals half to even, and says whether it did.
fn parse_rounded(text: &str, integer_digits: u32, decimals: u32) -> Result<(i128, bool), DecimalError> {
    if text.len() > TEXT_BYTES_MAX {
        return Err(DecimalError::TooLong);
    }
    let unsigned = text.strip_prefix('-').unwrap_or(text);
    let (integer, fraction) = match unsigned.split_once('.') {
        Some((_, "")) => return Err(DecimalError::NotADecimal),
        Some(parts) => parts,
        None => (unsigned, ""),
    };
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if integer.is_empty() || !digits(integer) || !digits(fraction) {
        return Err(DecimalError::NotADecimal);
    }
    let integer = integer.trim_start_matches('0');
    let fraction = fraction.trim_end_matches('0');
    if unsigned.len() < text.len() && !(integer.is_empty() && fraction.is_empty()) {
        return Err(DecimalError::Negative);
    }
    if integer.len() > integer_digits as usize {
        return Err(DecimalError::TooLarge(integer_digits));
    }
    let (kept, rest) = fraction.split_at(fraction.len().min(decimals as usize));
    let mut units: i128 = 0;
    for byte in integer.bytes().chain(kept.bytes()) {
        units = units * 10 + i128::from(byte - b'0');
    }
    units *= 10i128.pow(decimals - kept.len() as u32);
    // The rest has no zeros at its end: "5" is exactly half.
    let up = rest > "5" || (rest == "5" && units % 2 != 0);
    units += i128::from(up);
    if units >= 10i128.pow(integer_digits + decimals) {
        return Err(DecimalError::TooLarge(integer_digits));
    }
    Ok((units, !rest.is_empty()))
}

/// Writes units of 10^-`decimals` in plain digits without trailing zeros.
pub(crate) fn plain(units: I256, decimals: usize) -> String {
    let mut text = String::new();
    write_plain(&mut text, units, decimals).expect("memory can be written to");
    text
}

/// The same into what is there. Almost every number fits 64 bits, whose divisions are many times faster.
fn write_plain(out: &mut impl fmt::Write, units: I256, decimals: usize) -> fmt::Result {
    let sign = if units.is_negative() { "-" } else { "" };
    let small = u64::try_from(units.unsigned_abs()).ok().zip(10u64.checked_pow(decimals as u32));
    let Some((units, one)) = small else { return write_plain_wide(out, sign, units, decimals) };
    write!(out, "{sign}{}", units / one)?;
    let (mut fraction, mut width) = (units % one, decimals);
    if fraction == 0 {
        return Ok(());
    }
    while fraction.is_multiple_of(10) {
        (fraction, width) = (fraction / 10, width - 1);
    }
    write!(out, ".{fraction:0>width$}")
}

fn write_plain_wide(out: &mut impl fmt::Write, sign: &str, units: I256, decimals: usize) -> fmt::Result {
    let digits = units.unsigned_abs().to_string();
    let padded = format!("{digits:0>width$}", width = decimals + 1);
    let (integer, fraction) = padded.split_at(padded.len() - decimals);
    match fraction.trim_end_matches('0') {
        "" => write!(out, "{sign}{integer}"),
        fraction => write!(out, "{sign}{integer}.{fraction}"),
    }
}

const HALF_OF_128_BITS: i128 = i128::MAX / 2;

/// Divides and rounds half to even. The divisor is above zero.
pub(crate) fn divide_half_even(dividend: I256, divisor: I256) -> I256 {
    // Almost every number, and faster: twice a remainder fits, too.
    if let (Ok(dividend), Ok(divisor @ ..=HALF_OF_128_BITS)) = (i128::try_from(dividend), i128::try_from(divisor)) {
        let quotient = dividend.div_euclid(divisor);
        let twice = dividend.rem_euclid(divisor) * 2;
        return I256::from(quotient + i128::from(twice > divisor || (twice == divisor && quotient % 2 != 0)));
    }
    let quotient = dividend.div_euclid(divisor);
    let twice = dividend.rem_euclid(divisor) * 2;
    let up = twice > divisor || (twice == divisor && quotient % 2 != 0);
    quotient + I256::from(up)
}

impl Decimal {
    /// Zero.
    pub const ZERO: Self = Self(0);
    /// One, the default of an event's units.
    pub const ONE: Self = Self(10i128.pow(DECIMALS));

    /// Reads a quantity or an amount as it comes from outside.
    pub fn parse(text: &str) -> Result<Self, DecimalError> {
        parse(text, INTEGER_DIGITS, DECIMALS).map(Self)
    }

    /// Reads a quantity or an amount, rounds it half to even to 12 decimals, and says whether that changed it.
    pub fn parse_rounded(text: &str) -> Result<(Self, bool), DecimalError> {
        parse_rounded(text, INTEGER_DIGITS, DECIMALS).map(|(units, rounded)| (Self(units), rounded))
    }

    /// From units of 10^-12.
    pub const fn from_scaled(units: i128) -> Self {
        Self(units)
    }

    /// In units of 10^-12.
    pub const fn scaled(self) -> i128 {
        self.0
    }
}

impl Rate {
    /// Reads a rate as it comes from outside.
    pub fn parse(text: &str) -> Result<Self, DecimalError> {
        parse(text, RATE_INTEGER_DIGITS, RATE_DECIMALS).map(Self)
    }

    /// In units of 10^-24.
    pub const fn scaled(self) -> i128 {
        self.0
    }
}

impl Total {
    /// Zero.
    pub const ZERO: Self = Self(I256::ZERO);

    /// From units of 10^-12.
    pub const fn from_scaled(units: I256) -> Self {
        Self(units)
    }

    /// In units of 10^-12.
    pub const fn scaled(self) -> I256 {
        self.0
    }

    /// This × `numerator` ÷ `denominator`, rounded once, half to even, to 12 decimals. `denominator` is above zero.
    pub fn scale_by(self, numerator: u32, denominator: u32) -> Self {
        Self(divide_half_even(self.0 * I256::from(numerator), I256::from(denominator)))
    }

    /// This × a factor, rounded once, half to even, to 12 decimals.
    pub fn times(self, factor: Self) -> Self {
        Self(divide_half_even(self.0 * factor.0, I256::from(Decimal::ONE.0)))
    }

    /// For people: two decimals, or, of an amount that they would hide, all.
    pub fn shown(self) -> String {
        let cents = divide_half_even(self.0, I256::from(10i128.pow(DECIMALS - 2)));
        if cents == I256::ZERO && self != Self::ZERO {
            return self.to_string();
        }
        let (units, cents) = (cents / 100, (cents % 100).unsigned_abs());
        format!("{units}.{cents:02}")
    }
}

impl std::ops::AddAssign for Total {
    fn add_assign(&mut self, other: Self) {
        self.0 += other.0;
    }
}

impl std::ops::AddAssign<Decimal> for Total {
    fn add_assign(&mut self, other: Decimal) {
        self.0 += I256::from(other.0);
    }
}

impl std::ops::Add for Total {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }
}

impl std::ops::Sub for Total {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self(self.0 - other.0)
    }
}

impl std::iter::Sum for Total {
    fn sum<I: Iterator<Item = Self>>(totals: I) -> Self {
        totals.fold(Self::ZERO, |sum, next| sum + next)
    }
}

impl std::str::FromStr for Total {
    type Err = DecimalError;

    /// Reads what [`fmt::Display`] writes, of any size.
    fn from_str(text: &str) -> Result<Self, DecimalError> {
        let (integer, fraction) = text.split_once('.').unwrap_or((text, ""));
        if fraction.len() > DECIMALS as usize {
            return Err(DecimalError::TooManyDecimals(DECIMALS));
        }
        let digits = format!("{integer}{fraction:0<width$}", width = DECIMALS as usize);
        I256::from_str_radix(&digits, 10).map(Self).map_err(|_| DecimalError::NotADecimal)
    }
}

/// As a text, so that it stays exact in any reader.
impl serde::Serialize for Total {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Total {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str> as serde::Deserialize>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl From<Decimal> for Total {
    fn from(value: Decimal) -> Self {
        Self(I256::from(value.0))
    }
}

impl fmt::Display for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_plain(f, I256::from(self.0), DECIMALS as usize)
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_plain(f, I256::from(self.0), RATE_DECIMALS as usize)
    }
}

impl fmt::Display for Total {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_plain(f, self.0, DECIMALS as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_spellings_are_equal_values() {
        for text in ["1", "1.0", "01", "1.000000000000000", "0001.00"] {
            assert_eq!(Decimal::parse(text), Ok(Decimal::ONE), "{text}");
        }
        assert_eq!(Decimal::parse("-0"), Ok(Decimal::ZERO));
    }

    #[test]
    fn what_is_no_decimal_in_range_is_refused_with_its_reason() {
        for text in ["", ".", "1.", ".5", "NaN", "inf", "1e400", "1e3", "+1", " 1", "1,5", "١", "--1", "1.2.3", "0x1"]
        {
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
    fn people_are_shown_cents_unless_they_hide_everything() {
        let shown = |text: &str| text.parse::<Total>().unwrap().shown();
        assert_eq!(
            ["0", "5", "103.2", "1.005", "1.015", "0.004", "0.0000825", "-12.5"].map(shown),
            ["0.00", "5.00", "103.20", "1.00", "1.02", "0.004", "0.0000825", "-12.50"]
        );
        assert_eq!(Total::from(Decimal::parse("2.5").unwrap()).times("1.5".parse().unwrap()).to_string(), "3.75");
    }

    #[test]
    fn halves_go_to_the_even_neighbour() {
        for (dividend, rounded) in [(5, 0), (15, 2), (25, 2), (26, 3), (-5, 0), (-15, -2), (-25, -2), (-26, -3)] {
            assert_eq!(divide_half_even(I256::from(dividend), I256::from(10)), I256::from(rounded), "{dividend}");
        }
    }

    proptest::proptest! {
        /// Against a library's reading: what is taken has that value and is within the bounds.
        #[test]
        fn any_text_is_a_number_of_its_value_or_none(text in "\\PC*|[-+]?[0-9]{0,18}[.,]?[0-9]{0,28}([eE][0-9])?") {
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
        fn a_division_of_small_numbers_is_that_of_large_ones(dividend in -100i128..100, divisor in 1i128..20) {
            // Of 128 bits more than half, so that it is done in all 256; halves are frequent.
            let large = I256::from(10i128.pow(38));
            let (dividend, divisor) = (I256::from(dividend), I256::from(divisor));
            let wide = divide_half_even(dividend * large, divisor * large);
            proptest::prop_assert_eq!(divide_half_even(dividend, divisor), wide);
        }

        #[test]
        fn what_is_written_reads_the_same(units in 0i128..10i128.pow(27)) {
            let value = Decimal::from_scaled(units);
            proptest::prop_assert_eq!(Decimal::parse(&value.to_string()), Ok(value));
        }

        #[test]
        fn small_numbers_are_written_as_large_ones_are(units: i64, zeros in 0u32..18) {
            let units = I256::from(units / 10i64.pow(zeros) * 10i64.pow(zeros));
            let mut wide = String::new();
            let sign = if units.is_negative() { "-" } else { "" };
            write_plain_wide(&mut wide, sign, units, DECIMALS as usize).unwrap();
            proptest::prop_assert_eq!(Total::from_scaled(units).to_string(), wide);
        }
    }
}
