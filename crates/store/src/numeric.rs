//! Converts decimals of the domain to and from NUMERIC. Uses BigDecimal and not rust_decimal, because a sum may need
//! more than 96 bits.

use bigdecimal::BigDecimal;
use bigdecimal::num_bigint::BigInt;
use ethnum::{I256, U256};
use meterd_domain::decimal::{DECIMALS, Decimal, DecimalError, RATE_DECIMALS, Rate, Total};
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgTypeInfo, PgValueFormat, PgValueRef};
use sqlx::{Decode, Postgres, Type};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Converts a quantity, an amount, a charge or a sum to a parameter of a statement.
pub fn of(value: impl Into<Total>) -> BigDecimal {
    let scaled = value.into().scaled();
    let units = match i128::try_from(scaled) {
        Ok(units) => BigInt::from(units),
        Err(_) => {
            let (high, low) = scaled.into_words();
            (BigInt::from(high) << 128) + BigInt::from(low as u128)
        }
    };
    BigDecimal::new(units, i64::from(DECIMALS))
}

/// Converts a rate to a parameter of a statement.
pub fn of_rate(rate: Rate) -> BigDecimal {
    BigDecimal::new(BigInt::from(rate.scaled()), i64::from(RATE_DECIMALS))
}

/// Converts a JSON object of decimal strings to names with numbers, sorted by name.
pub fn by_name<T>(json: &str, parse: fn(&str) -> Result<T, DecimalError>) -> crate::Result<Vec<(Arc<str>, T)>> {
    let numbers: BTreeMap<Arc<str>, String> = serde_json::from_str(json).map_err(crate::StoreError::inconsistent)?;
    let numbers = numbers.into_iter().map(|(name, text)| Ok((name, parse(&text)?)));
    numbers.collect::<Result<_, DecimalError>>().map_err(crate::StoreError::inconsistent)
}

/// Decimal digits per digit of a binary NUMERIC: its digits have base 10,000 = 10^4.
const DIGIT_DECIMALS: u32 = 4;
const BASE: u16 = 10u16.pow(DIGIT_DECIMALS);
/// Largest number of digits of a scaled number: 19 digits, which are 76 decimal digits, fit in 256 bits.
const DIGITS_MAX: usize = 19;
/// Largest number of digits that fit in 128 bits.
const DIGITS_OF_128_BITS: usize = 9;
/// Signs of a binary NUMERIC (numeric.c). All other values mean NaN or an infinity.
const POSITIVE: u16 = 0x0000;
const NEGATIVE: u16 = 0x4000;

/// Decodes a binary NUMERIC to units of 10^-12. The format is: number of digits, power of 10,000 of the first digit,
/// sign, number of decimals to show, and the digits. `None` if it is malformed, not finite, has more than 12 decimals
/// or does not fit.
fn units_from_binary(bytes: &[u8]) -> Option<I256> {
    let (count, rest) = bytes.split_first_chunk::<2>()?;
    let (weight, rest) = rest.split_first_chunk::<2>()?;
    let (sign, rest) = rest.split_first_chunk::<2>()?;
    let (_scale, digits) = rest.split_first_chunk::<2>()?;
    let (digits, rest) = digits.as_chunks::<2>();
    if digits.len() != usize::from(u16::from_be_bytes(*count)) || !rest.is_empty() {
        return None;
    }
    // Number of digits from the first one to the last of the 12 decimals.
    let kept = i32::from(i16::from_be_bytes(*weight)) + 1 + (DECIMALS / DIGIT_DECIMALS) as i32;
    let kept = if digits.is_empty() { 0 } else { usize::try_from(kept).ok().filter(|kept| *kept <= DIGITS_MAX)? };
    let (whole, below) = digits.split_at(digits.len().min(kept));
    if below.iter().any(|digit| *digit != [0, 0]) {
        return None;
    }
    let padded = || whole.iter().copied().chain(std::iter::repeat([0, 0])).take(kept).map(u16::from_be_bytes);
    let units = if kept <= DIGITS_OF_128_BITS {
        I256::from(padded().fold(0i128, |units, digit| units * 10_000 + i128::from(digit)))
    } else {
        padded().fold(I256::ZERO, |units, digit| units * 10_000 + I256::from(digit))
    };
    match u16::from_be_bytes(*sign) {
        POSITIVE => Some(units),
        NEGATIVE => Some(-units),
        _ => None,
    }
}

/// Encodes a number of units of 10^-12, without zero digits at either end.
pub(super) fn put(out: &mut Vec<u8>, scaled: I256) {
    // Least significant digit first.
    let mut digits = [0u16; DIGITS_MAX + 1];
    let (mut rest, mut count) = (scaled.unsigned_abs(), 0);
    while rest > U256::from(u64::MAX) {
        digits[count] = (rest % U256::from(BASE)).as_u16();
        rest /= U256::from(BASE);
        count += 1;
    }
    // Nearly all numbers fit in 64 bits, where division is faster.
    let mut rest = rest.as_u64();
    while rest > 0 {
        digits[count] = (rest % u64::from(BASE)) as u16;
        rest /= u64::from(BASE);
        count += 1;
    }
    let zeros = digits[..count].iter().take_while(|digit| **digit == 0).count();
    let weight = if count == 0 { 0 } else { count as i32 - 1 - (DECIMALS / DIGIT_DECIMALS) as i32 };
    let sign = if scaled.is_negative() { NEGATIVE } else { POSITIVE };
    for header in [(count - zeros) as u16, weight as i16 as u16, sign, DECIMALS as u16] {
        out.extend_from_slice(&header.to_be_bytes());
    }
    for digit in digits[zeros..count].iter().rev() {
        out.extend_from_slice(&digit.to_be_bytes());
    }
}

/// The type of a query column, as in `cost AS "cost: Numeric"`. The domain's [`Total`] cannot implement [`Decode`],
/// because it is in another crate. Convert it into [`Total`] for domain values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Numeric(Total);

impl From<Numeric> for Total {
    fn from(value: Numeric) -> Self {
        value.0
    }
}

impl Type<Postgres> for Numeric {
    fn type_info() -> PgTypeInfo {
        <BigDecimal as Type<Postgres>>::type_info()
    }
}

/// Decodes the binary format directly, which is many times faster than through [`BigDecimal`].
impl<'r> Decode<'r, Postgres> for Numeric {
    fn decode(value: PgValueRef<'r>) -> Result<Self, BoxDynError> {
        let invalid = || format!("a number is none of at most {DECIMALS} decimals within range");
        let total = match value.format() {
            PgValueFormat::Binary => Total::from_scaled(units_from_binary(value.as_bytes()?).ok_or_else(invalid)?),
            PgValueFormat::Text => total(&value.as_str()?.parse::<BigDecimal>()?)?,
        };
        Ok(Self(total))
    }
}

/// Returns the error for a stored number that meterd cannot have written.
fn invalid(value: &BigDecimal) -> crate::StoreError {
    crate::StoreError::Inconsistent(format!("{value} is no number of at most {DECIMALS} decimals within range"))
}

/// Converts a value to units of 10^-`decimals`. An error if it has more decimals.
fn units(value: &BigDecimal, decimals: u32) -> crate::Result<BigInt> {
    let scaled = value.with_scale(i64::from(decimals));
    if &scaled != value {
        return Err(invalid(value));
    }
    Ok(scaled.into_bigint_and_exponent().0)
}

/// Converts a stored sum. An error if it has more than 12 decimals or is out of range.
pub fn total(value: &BigDecimal) -> crate::Result<Total> {
    let units = units(value, DECIMALS)?;
    match i128::try_from(&units) {
        Ok(units) => Ok(Total::from_scaled(I256::from(units))),
        Err(_) => {
            let units = I256::from_str_radix(&units.to_string(), 10).map_err(|_| invalid(value))?;
            Ok(Total::from_scaled(units))
        }
    }
}

/// Converts a stored quantity, amount or charge. An error if it has more than 12 decimals or is out of range.
pub fn decimal(value: &BigDecimal) -> crate::Result<Decimal> {
    i128::try_from(&units(value, DECIMALS)?).map(Decimal::from_scaled).map_err(|_| invalid(value))
}

/// Converts a stored rate. An error if it is out of range.
pub fn rate(value: &BigDecimal) -> crate::Result<Rate> {
    Rate::parse(&value.to_plain_string()).map_err(|_| invalid(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn a_total_of_any_size_survives_a_round_trip(high in -1_000_000_000i128..1_000_000_000, low: u128) {
            let sum = Total::from_scaled(I256::from_words(high, low as i128));
            proptest::prop_assert_eq!(total(&of(sum)).unwrap(), sum);
        }

        #[test]
        fn an_encoded_total_decodes_to_the_same_value(high in -1_000_000_000i128..1_000_000_000, low: u128, small: i64) {
            for scaled in [I256::from_words(high, low as i128), I256::from(small), I256::from(small) * 1_000_000_000_000] {
                let mut written = vec![];
                put(&mut written, scaled);
                proptest::prop_assert_eq!(units_from_binary(&written), Some(scaled));
            }
        }

        /// PostgreSQL sends numbers without zero digits at either end, or with some after the decimal point.
        #[test]
        fn a_total_encoded_by_the_driver_decodes_to_the_same_value(high in -1_000_000_000i128..1_000_000_000, low: u128, small: i64, zeros in 0i64..9) {
            for scaled in [I256::from_words(high, low as i128), I256::from(small), I256::from(small) * 1_000_000_000_000] {
                let sum = Total::from_scaled(scaled);
                for value in [of(sum), of(sum).normalized()] {
                    let value = value.with_scale(value.fractional_digit_count() + if value.fractional_digit_count() >= 12 { zeros } else { 0 });
                    let mut buffer = sqlx::postgres::PgArgumentBuffer::default();
                    assert!(!sqlx::Encode::<Postgres>::encode(value, &mut buffer).unwrap().is_null());
                    proptest::prop_assert_eq!(units_from_binary(&buffer), Some(sum.scaled()));
                }
            }
        }
    }

    #[test]
    fn values_that_are_not_totals_are_rejected() {
        let wire = |parts: &[u16]| parts.iter().flat_map(|part| part.to_be_bytes()).collect::<Vec<u8>>();
        // One and zero are accepted. Rejected: 10^-16, a number above 10^76, NaN, an infinity, and a missing digit.
        assert_eq!(units_from_binary(&wire(&[1, 0, 0, 0, 1])), Some(I256::from(10i64.pow(12))));
        assert_eq!(units_from_binary(&wire(&[0, 0, 0, 0])), Some(I256::ZERO));
        for parts in [
            &[1, (-4i16) as u16, 0, 16, 1][..],
            &[1, 16, 0, 0, 1],
            &[0, 0, 0xc000, 0],
            &[0, 0, 0xd000, 0],
            &[2, 0, 0, 0, 1],
        ] {
            assert_eq!(units_from_binary(&wire(parts)), None, "{parts:?}");
        }
        assert_eq!(units_from_binary(&[0, 1, 0]), None);
    }
}
