//! Formats prices. Rates are exact and never rounded.

use super::State;
use crate::cli::chart::table;
use crate::cli::sheet::{self, Cell};
use crate::cli::time::time_text;
use crate::proto::{Price, Rates, Tier, TierMode, TieredRate};
use bigdecimal::BigDecimal;
use meterd_domain::measures::whole_of;
use serde_json::json;
use std::str::FromStr;

/// Numbers of zeros of a thousand and of a million.
pub const THOUSAND_DIGITS: i64 = 3;
pub const MILLION_DIGITS: i64 = 6;

/// Converts a rate per token to a rate per million tokens.
pub fn per_million(rate: &str) -> anyhow::Result<String> {
    per_one(rate, -MILLION_DIGITS)
}

/// Converts a rate for 10^`digits` to the rate for one, without rounding.
pub fn per_one(rate: &str, digits: i64) -> anyhow::Result<String> {
    let (integer, scale) = BigDecimal::from_str(rate)?.into_bigint_and_exponent();
    Ok(BigDecimal::new(integer, scale + digits).normalized().to_plain_string())
}

/// Returns the rates in the order of [`RATE_HEADERS`]. Rates for tokens are per million.
fn cells(rates: &Rates) -> anyhow::Result<[String; RATE_HEADERS.len()]> {
    let plain = |rate: &Option<String>| rate.clone().unwrap_or_default();
    let million = |rate: &Option<String>| rate.as_deref().map(per_million).transpose().map(Option::unwrap_or_default);
    Ok([
        plain(&rates.unit),
        plain(&rates.fixed),
        plain(&rates.percent_of_amount),
        million(&rates.input_token)?,
        million(&rates.cached_input_token)?,
        million(&rates.output_token)?,
        plain(&rates.reported_cost),
        measure_rates(rates)?,
    ])
}

const RATE_HEADERS: [&str; 8] =
    ["unit", "fixed", "% of amount", "input /1M", "cached /1M", "output /1M", "× reported cost", "other measures"];

/// Returns the rates of other measures. Rates for tokens are per million.
fn measure_rates(rates: &Rates) -> anyhow::Result<String> {
    let texts = rates.measures.iter().map(|(name, rate)| {
        Ok(match whole_of(name) {
            Some(_) => format!("{name} {}/1M", per_million(rate)?),
            None => format!("{name} {rate}"),
        })
    });
    let tiers = rates.tiers.iter().map(|rate| Ok(tiers_text(rate)));
    Ok(texts.chain(tiers).collect::<anyhow::Result<Vec<_>>>()?.join(", "))
}

/// Returns a rate with tiers in the form of the flags of `prices set`.
fn tiers_text(rate: &TieredRate) -> String {
    if rate.mode() == TierMode::Package {
        let of_package = rate.tiers.first().map_or("", |tier| &tier.rate);
        return format!("{} package {}:{of_package}", rate.component, rate.package_size);
    }
    let fee = |tier: &Tier| if tier.flat_fee.is_empty() { String::new() } else { format!("+{}", tier.flat_fee) };
    let tiers = rate.tiers.iter().map(|tier| format!("{}:{}{}", tier.above, tier.rate, fee(tier)));
    let mode = if rate.mode() == TierMode::Volume { "volume" } else { "graduated" };
    format!("{} {mode} {}", rate.component, tiers.collect::<Vec<_>>().join(","))
}

fn tiers_json(rates: &Rates) -> serde_json::Value {
    let tier = |tier: &Tier| json!({ "above": tier.above, "rate": tier.rate, "flat_fee": tier.flat_fee });
    let rate = |rate: &TieredRate| {
        json!({
            "component": rate.component,
            "mode": rate.mode().as_str_name().trim_start_matches("TIER_MODE_").to_lowercase(),
            "package_size": rate.package_size,
            "tiers": rate.tiers.iter().map(tier).collect::<Vec<_>>(),
        })
    };
    rates.tiers.iter().map(rate).collect()
}

/// Prints prices as JSON, CSV or a table.
pub fn print(prices: &[(Price, State)], with_state: bool, json: bool, csv: bool) -> anyhow::Result<()> {
    if json {
        prices.iter().for_each(|(price, state)| println!("{}", to_json(price, *state)));
    } else if csv {
        println!("{}", sheet::lines(&to_csv(prices)?));
    } else {
        to_table(prices, with_state)?.iter().for_each(|line| println!("{line}"));
    }
    Ok(())
}

/// Returns a table that contains only the rate columns with values.
pub fn to_table(prices: &[(Price, State)], with_state: bool) -> anyhow::Result<Vec<String>> {
    let rates: Vec<[String; RATE_HEADERS.len()]> = prices
        .iter()
        .map(|(price, _)| cells(&price.rates.clone().unwrap_or_default()))
        .collect::<anyhow::Result<_>>()?;
    let used: Vec<usize> =
        (0..RATE_HEADERS.len()).filter(|column| rates.iter().any(|row| !row[*column].is_empty())).collect();
    let with_client = prices.iter().any(|(price, _)| !price.client_id.is_empty());
    let mut header: Vec<&str> = with_client.then_some("client").into_iter().collect();
    let with_plan = prices.iter().any(|(price, _)| !price.plan_id.is_empty());
    header.extend(with_plan.then_some("plan"));
    header.extend(["service", "operation", "model"]);
    let with_tier = prices.iter().any(|(price, _)| !price.service_tier.is_empty());
    header.extend(with_tier.then_some("service tier"));
    let with_bound = prices.iter().any(|(price, _)| price.above_input_tokens.is_some());
    header.extend(with_bound.then_some("above input tokens"));
    let texts = header.len();
    header.extend(used.iter().map(|column| RATE_HEADERS[*column]));
    header.push("from");
    let with_end = prices.iter().any(|(price, _)| price.end_time.is_some());
    header.extend(with_end.then_some("until"));
    header.extend(with_state.then_some("state"));
    header.extend(["built in", "price id"]);
    let mut rows = vec![header.into_iter().map(str::to_owned).collect::<Vec<_>>()];
    for ((price, state), rates) in prices.iter().zip(&rates) {
        let mut row: Vec<String> = with_client.then(|| price.client_id.clone()).into_iter().collect();
        row.extend(with_plan.then(|| price.plan_id.clone()));
        row.extend([price.service.clone(), price.operation.clone(), price.model.clone()]);
        row.extend(with_tier.then(|| price.service_tier.clone()));
        let bound = price.above_input_tokens.map_or_else(String::new, |bound| bound.to_string());
        row.extend(with_bound.then_some(bound));
        row.extend(used.iter().map(|column| rates[*column].clone()));
        row.push(match &price.effective_time {
            None => "the beginning".to_owned(),
            time => time_text(time.as_ref()),
        });
        row.extend(with_end.then(|| time_text(price.end_time.as_ref())));
        row.extend(with_state.then(|| state.text().to_owned()));
        row.push(if price.built_in { "yes" } else { "no" }.to_owned());
        row.push(price.price_id.clone());
        rows.push(row);
    }
    let right: Vec<bool> = (0..texts + used.len()).map(|column| column >= texts - usize::from(with_bound)).collect();
    Ok(table(&rows, &right))
}

fn to_csv(prices: &[(Price, State)]) -> anyhow::Result<String> {
    let header = [
        "price_id",
        "service",
        "operation",
        "model",
        "effective_time",
        "state",
        "unit",
        "fixed",
        "percent_of_amount",
        "input_token",
        "cached_input_token",
        "output_token",
        "built_in",
        "end_time",
        "withdraw_time",
        "source",
        "note",
        "service_tier",
        "above_input_tokens",
        "measures",
        "reported_cost",
        "client_id",
        "tiers",
        "plan_id",
    ];
    let rows = prices.iter().map(|(price, state)| {
        let rates = price.rates.clone().unwrap_or_default();
        let rate = |rate: Option<String>| Cell::plain(rate.unwrap_or_default());
        let tiers = if rates.tiers.is_empty() { String::new() } else { tiers_json(&rates).to_string() };
        vec![
            Cell::plain(&price.price_id),
            Cell::text(&price.service),
            Cell::text(&price.operation),
            Cell::text(&price.model),
            Cell::plain(time_text(price.effective_time.as_ref())),
            Cell::plain(state.text()),
            rate(rates.unit),
            rate(rates.fixed),
            rate(rates.percent_of_amount),
            rate(rates.input_token),
            rate(rates.cached_input_token),
            rate(rates.output_token),
            Cell::plain(price.built_in),
            Cell::plain(time_text(price.end_time.as_ref())),
            Cell::plain(time_text(price.withdraw_time.as_ref())),
            Cell::text(&price.source),
            Cell::text(&price.note),
            Cell::text(&price.service_tier),
            Cell::plain(price.above_input_tokens.map_or_else(String::new, |bound| bound.to_string())),
            Cell::plain(if rates.measures.is_empty() { String::new() } else { json!(rates.measures).to_string() }),
            rate(rates.reported_cost),
            Cell::text(&price.client_id),
            Cell::plain(tiers),
            Cell::text(&price.plan_id),
        ]
    });
    sheet::csv(&sheet::header(&header), &rows.collect::<Vec<_>>())
}

/// Converts a price to JSON, with rates as on the server.
pub fn to_json(price: &Price, state: State) -> serde_json::Value {
    let rates = price.rates.clone().unwrap_or_default();
    json!({
        "price_id": price.price_id,
        "client_id": price.client_id,
        "plan_id": price.plan_id,
        "service": price.service,
        "operation": price.operation,
        "model": price.model,
        "service_tier": price.service_tier,
        "above_input_tokens": price.above_input_tokens,
        "effective_time": price.effective_time.as_ref().map(|time| time_text(Some(time))),
        "end_time": price.end_time.as_ref().map(|time| time_text(Some(time))),
        "withdraw_time": price.withdraw_time.as_ref().map(|time| time_text(Some(time))),
        "state": state.text(),
        "rates": {
            "unit": rates.unit,
            "fixed": rates.fixed,
            "percent_of_amount": rates.percent_of_amount,
            "input_token": rates.input_token,
            "cached_input_token": rates.cached_input_token,
            "output_token": rates.output_token,
            "reported_cost": rates.reported_cost,
            "measures": rates.measures,
            "tiers": tiers_json(&rates),
        },
        "built_in": price.built_in,
        "source": price.source,
        "note": price.note,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_shifted_exactly() {
        for (one, million) in [("0.00000015", "0.15"), ("0.0000006", "0.6"), ("2.5", "2500000"), ("0", "0")] {
            assert_eq!(per_million(one).unwrap(), million);
            assert_eq!(per_one(million, MILLION_DIGITS).unwrap(), one);
        }
        assert_eq!(per_one("0.000000000000000001", MILLION_DIGITS).unwrap(), "0.000000000000000000000001");
        assert!(per_one("cheap", 0).is_err());
    }

    #[test]
    fn a_table_of_prices_contains_only_columns_with_values() {
        let rates = Rates {
            input_token: Some("0.00000015".into()),
            output_token: Some("0.0000006".into()),
            ..Default::default()
        };
        let price = Price {
            price_id: "16".into(),
            service: "openai".into(),
            model: "gpt-4o-mini".into(),
            rates: Some(rates),
            built_in: true,
            ..Default::default()
        };
        let lines = to_table(&[(price, State::InForce)], false).unwrap();
        assert_eq!(
            lines,
            [
                "service  operation  model        input /1M  output /1M  from           built in  price id",
                "openai              gpt-4o-mini       0.15         0.6  the beginning  yes       16",
            ]
        );
    }
}
