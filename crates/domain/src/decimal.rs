//! Exact decimals for quantities, amounts, rates and sums. They never use binary floating point.

use ethnum::I256;
use std::fmt;

mod text;

pub use text::DecimalError;
pub(crate) use text::plain;
use text::{parse, parse_rounded, write_plain};

/// Decimals of quantities, amounts and charges.
pub const DECIMALS: u32 = 12;
/// Decimals of a rate.
pub const RATE_DECIMALS: u32 = 24;
/// Quantities and amounts are below 10 to this power.
pub const INTEGER_DIGITS: u32 = 15;
/// Rates are below 10 to this power.
pub const RATE_INTEGER_DIGITS: u32 = 9;

/// A quantity or an amount: zero or more, with at most 12 decimals. Stored in units of 10^-12.
///
/// Values that callers send are below 10^15. A charge may be larger: up to six products of a quantity and a rate, so
/// below 6 × 10^24. The maximum of the type is 1.7 × 10^26.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Decimal(i128);

/// The cost of one unit: zero or more, below 10^9, with at most 24 decimals. Stored in units of 10^-24.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rate(i128);

/// A sum of quantities or charges in units of 10^-12. It cannot overflow. A difference may be negative.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Total(I256);
const HALF_OF_128_BITS: i128 = i128::MAX / 2;

/// Divides and rounds half to even. The divisor must be positive.
pub(crate) fn divide_half_even(dividend: I256, divisor: I256) -> I256 {
    // Almost every number takes this faster path. Twice the remainder fits, too.
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

/// Divides and rounds half up. The dividend must not be negative, and the divisor must be positive.
pub(crate) fn divide_half_up(dividend: I256, divisor: I256) -> I256 {
    (dividend + divisor / 2) / divisor
}

/// Decimals of a product: those of a quantity and a rate, and two for percent.
pub(crate) const PRODUCT_DECIMALS: u32 = DECIMALS + RATE_DECIMALS + 2;

/// Multiplies a quantity, a rate and a factor of at most 100. The result is below 10^15 × 10^9 × 10^38, which has 62
/// digits, so a sum of 23 fits into the 76 digits of the type. Almost every product fits into 128 bits, which are much
/// faster to multiply.
pub(crate) fn product(quantity: Decimal, rate: Rate, factor: i128) -> I256 {
    let narrow = quantity.scaled().checked_mul(rate.scaled()).and_then(|product| product.checked_mul(factor));
    narrow.map_or_else(|| I256::from(quantity.scaled()) * I256::from(rate.scaled()) * I256::from(factor), I256::from)
}

impl Decimal {
    /// Zero.
    pub const ZERO: Self = Self(0);
    /// One, the default number of units of an event.
    pub const ONE: Self = Self(10i128.pow(DECIMALS));

    /// Parses a quantity or an amount that a caller sent.
    pub fn parse(text: &str) -> Result<Self, DecimalError> {
        parse(text, INTEGER_DIGITS, DECIMALS).map(Self)
    }

    /// Parses a quantity or an amount and rounds it half to even to 12 decimals. Also returns whether it rounded.
    pub fn parse_rounded(text: &str) -> Result<(Self, bool), DecimalError> {
        parse_rounded(text, INTEGER_DIGITS, DECIMALS).map(|(units, rounded)| (Self(units), rounded))
    }

    /// Creates a value from units of 10^-12.
    pub const fn from_scaled(units: i128) -> Self {
        Self(units)
    }

    /// Returns the value in units of 10^-12.
    pub const fn scaled(self) -> i128 {
        self.0
    }
}

impl Rate {
    /// Parses a rate that a caller sent.
    pub fn parse(text: &str) -> Result<Self, DecimalError> {
        parse(text, RATE_INTEGER_DIGITS, RATE_DECIMALS).map(Self)
    }

    /// Returns the value in units of 10^-24.
    pub const fn scaled(self) -> i128 {
        self.0
    }

    /// Returns the rate of one unit if this is the rate of a million, truncated to 24 decimals.
    pub const fn per_million(self) -> Self {
        Self(self.0 / 1_000_000)
    }
}

impl Total {
    /// Zero.
    pub const ZERO: Self = Self(I256::ZERO);

    /// Creates a value from units of 10^-12.
    pub const fn from_scaled(units: I256) -> Self {
        Self(units)
    }

    /// Returns the value in units of 10^-12.
    pub const fn scaled(self) -> I256 {
        self.0
    }

    /// Multiplies by `numerator` and divides by `denominator`, which must be positive. Rounds once, half to even, to 12
    /// decimals.
    pub fn scale_by(self, numerator: u32, denominator: u32) -> Self {
        Self(divide_half_even(self.0 * I256::from(numerator), I256::from(denominator)))
    }

    /// Multiplies by a factor. Rounds once, half to even, to 12 decimals.
    pub fn multiply(self, factor: Self) -> Self {
        Self(divide_half_even(self.0 * factor.0, I256::from(Decimal::ONE.0)))
    }

    /// Formats a value for people with two decimals. If these would all be zero, formats all decimals.
    pub fn to_short_string(self) -> String {
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

    /// Parses the output of [`fmt::Display`], of any size.
    fn from_str(text: &str) -> Result<Self, DecimalError> {
        let (integer, fraction) = text.split_once('.').unwrap_or((text, ""));
        if fraction.len() > DECIMALS as usize {
            return Err(DecimalError::TooManyDecimals(DECIMALS));
        }
        let digits = format!("{integer}{fraction:0<width$}", width = DECIMALS as usize);
        I256::from_str_radix(&digits, 10).map(Self).map_err(|_| DecimalError::NotADecimal)
    }
}

/// Serialized as a text, so that no reader loses digits.
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
#[path = "decimal_tests.rs"]
mod tests;
