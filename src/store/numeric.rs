//! Decimals of the domain to and from NUMERIC. BigDecimal, and not rust_decimal: a sum may need more than 96 bits.

use crate::domain::decimal::{DECIMALS, Decimal, RATE_DECIMALS, Rate, Total};
use bigdecimal::BigDecimal;
use bigdecimal::num_bigint::BigInt;
use ethnum::I256;

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
    }
}
