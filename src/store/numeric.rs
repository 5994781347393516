//! Decimals of the domain to and from NUMERIC: digits to the base 10,000, the weight of the first, a sign, and how many
//! decimals are shown (PostgreSQL's `numeric_send`). What is rarely read or written goes by way of BigDecimal, and not of
//! rust_decimal: a sum may need more than 96 bits.

use crate::domain::decimal::{DECIMALS, Decimal, RATE_DECIMALS, Rate, Total};
use bigdecimal::BigDecimal;
use bigdecimal::num_bigint::BigInt;
use ethnum::{I256, U256};
use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArgumentBuffer, PgHasArrayType, PgTypeInfo, PgValueFormat, PgValueRef};
use sqlx::{Decode, Encode, Postgres, Type};

const BASE: u16 = 10_000;
/// Digits to this base that hold the decimals.
const FRACTION_DIGITS: i32 = DECIMALS as i32 / 4;
/// Digits to this base of any 256-bit number.
const DIGITS_MAX: usize = 20;
const NEGATIVE: u16 = 0x4000;
/// Bytes before the digits.
const HEADER_BYTES: usize = 8;

/// Writes a number of 12 decimals.
pub(super) fn put(out: &mut Vec<u8>, scaled: I256) {
    // The least first.
    let mut digits = [0u16; DIGITS_MAX];
    let (mut rest, mut count) = (scaled.unsigned_abs(), 0);
    while rest > U256::from(u64::MAX) {
        digits[count] = (rest % U256::from(BASE)).as_u16();
        rest /= U256::from(BASE);
        count += 1;
    }
    // Where nearly all numbers begin.
    let mut rest = rest.as_u64();
    while rest > 0 {
        digits[count] = (rest % u64::from(BASE)) as u16;
        rest /= u64::from(BASE);
        count += 1;
    }
    let zeros = digits[..count].iter().take_while(|digit| **digit == 0).count();
    let weight = if count == 0 { 0 } else { count as i32 - 1 - FRACTION_DIGITS };
    let sign = if scaled.is_negative() { NEGATIVE } else { 0 };
    for header in [(count - zeros) as u16, weight as i16 as u16, sign, DECIMALS as u16] {
        out.extend_from_slice(&header.to_be_bytes());
    }
    for digit in digits[zeros..count].iter().rev() {
        out.extend_from_slice(&digit.to_be_bytes());
    }
}

/// Reads a number of at most 12 decimals; nothing, where it is none within range.
fn get(bytes: &[u8]) -> Option<I256> {
    let (header, digits) = bytes.split_at_checked(HEADER_BYTES)?;
    let field = |at: usize| u16::from_be_bytes([header[2 * at], header[2 * at + 1]]);
    let (weight, sign) = (i32::from(field(1) as i16), field(2));
    let mut scaled = I256::ZERO;
    let mut position = weight + FRACTION_DIGITS;
    for digit in digits.chunks_exact(2).map(|digit| u16::from_be_bytes([digit[0], digit[1]])) {
        // Below the last decimal.
        if position < 0 && digit != 0 {
            return None;
        }
        if position >= 0 {
            scaled = scaled.checked_mul(I256::from(BASE))?.checked_add(I256::from(digit))?;
        }
        position -= 1;
    }
    for _ in 0..=position {
        scaled = if scaled == I256::ZERO { scaled } else { scaled.checked_mul(I256::from(BASE))? };
    }
    match sign {
        0 => Some(scaled),
        NEGATIVE => Some(-scaled),
        // No number, or infinite.
        _ => None,
    }
}

macro_rules! is_numeric {
    ($($name:ty),+) => {
        $(impl Type<Postgres> for $name {
            fn type_info() -> PgTypeInfo {
                <BigDecimal as Type<Postgres>>::type_info()
            }
        }

        impl PgHasArrayType for $name {
            fn array_type_info() -> PgTypeInfo {
                <BigDecimal as PgHasArrayType>::array_type_info()
            }
        }

        impl Encode<'_, Postgres> for $name {
            fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
                put(buffer, I256::from(self.scaled()));
                Ok(IsNull::No)
            }
        })+
    };
}

is_numeric!(Decimal, Total);

impl Decode<'_, Postgres> for Total {
    fn decode(value: PgValueRef<'_>) -> Result<Self, BoxDynError> {
        match value.format() {
            PgValueFormat::Text => Ok(value.as_str()?.parse()?),
            PgValueFormat::Binary => {
                let scaled = get(value.as_bytes()?);
                Ok(scaled.map(Self::from_scaled).ok_or("a number that no write of ours can have made")?)
            }
        }
    }
}

impl From<Decimal> for BigDecimal {
    fn from(value: Decimal) -> Self {
        BigDecimal::new(BigInt::from(value.scaled()), i64::from(DECIMALS))
    }
}

impl From<Rate> for BigDecimal {
    fn from(value: Rate) -> Self {
        BigDecimal::new(BigInt::from(value.scaled()), i64::from(RATE_DECIMALS))
    }
}

impl From<Total> for BigDecimal {
    fn from(value: Total) -> Self {
        let (high, low) = value.scaled().into_words();
        let units = (BigInt::from(high) << 128) + BigInt::from(low as u128);
        BigDecimal::new(units, i64::from(DECIMALS))
    }
}

/// The database held a number that no write of ours can have made.
fn impossible(value: &BigDecimal) -> sqlx::Error {
    sqlx::Error::Decode(format!("{value} is no number of at most {DECIMALS} decimals within range").into())
}

/// Units of 10^-`decimals`, where the value has no more decimals than that.
fn units(value: &BigDecimal, decimals: u32) -> Result<BigInt, sqlx::Error> {
    let scaled = value.with_scale(i64::from(decimals));
    if &scaled != value {
        return Err(impossible(value));
    }
    Ok(scaled.into_bigint_and_exponent().0)
}

/// A sum as it stands in the database.
pub fn total(value: &BigDecimal) -> Result<Total, sqlx::Error> {
    let units = units(value, DECIMALS)?;
    match i128::try_from(&units) {
        Ok(units) => Ok(Total::from_scaled(I256::from(units))),
        Err(_) => {
            let units = I256::from_str_radix(&units.to_string(), 10).map_err(|_| impossible(value))?;
            Ok(Total::from_scaled(units))
        }
    }
}

/// A quantity, an amount or a charge as it stands in the database.
pub fn decimal(value: &BigDecimal) -> Result<Decimal, sqlx::Error> {
    i128::try_from(&units(value, DECIMALS)?).map(Decimal::from_scaled).map_err(|_| impossible(value))
}

/// A rate as it stands in the database.
pub fn rate(value: &BigDecimal) -> Result<Rate, sqlx::Error> {
    Rate::parse(&value.to_plain_string()).map_err(|_| impossible(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn totals_of_any_size_come_back_as_they_went(high in -1_000_000_000i128..1_000_000_000, low: u128) {
            let sum = Total::from_scaled(I256::from_words(high, low as i128));
            proptest::prop_assert_eq!(total(&BigDecimal::from(sum)).unwrap(), sum);
        }

        /// By the driver's own encoding of the same number, which the database reads.
        #[test]
        fn numbers_are_written_as_the_driver_writes_them_and_come_back(high in -1_000i128..1_000, low: u128, shift in 0u32..128) {
            let high = if shift > 64 { 0 } else { high };
            let sum = Total::from_scaled(I256::from_words(high, (low >> shift) as i128));
            let mut written = vec![];
            put(&mut written, sum.scaled());
            proptest::prop_assert_eq!(get(&written), Some(sum.scaled()));
            let mut by_driver = PgArgumentBuffer::default();
            drop(BigDecimal::from(sum).encode_by_ref(&mut by_driver).unwrap());
            proptest::prop_assert_eq!(get(&by_driver), Some(sum.scaled()));
        }
    }
}
