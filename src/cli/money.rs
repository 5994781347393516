//! Amounts of money in the output of commands.

use super::chart::shown_amount;
use crate::proto::Money;
use bigdecimal::{BigDecimal, Zero};
use serde_json::json;
use std::str::FromStr;

/// Parses an amount exactly. `None` is zero.
pub fn amount_of(money: Option<&Money>) -> anyhow::Result<BigDecimal> {
    Ok(match money {
        Some(money) => BigDecimal::from_str(&money.amount)?,
        None => BigDecimal::zero(),
    })
}

/// Formats an amount for people.
pub fn money_text(money: Option<&Money>) -> anyhow::Result<String> {
    let currency = money.map_or("", |money| money.currency.as_str());
    Ok(format!("{} {currency}", shown_amount(&amount_of(money)?)).trim_end().to_owned())
}

/// Converts an amount to JSON.
pub fn money_json(money: &Money) -> serde_json::Value {
    json!({ "currency": money.currency, "amount": money.amount })
}
