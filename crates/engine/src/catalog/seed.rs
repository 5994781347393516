//! The catalogue of a new database.

use meterd_domain::catalog::{PriceScope, Service};
use meterd_domain::decimal::Rate;
use meterd_domain::price::Rates;
use meterd_store::catalog::{self as store, ModelAlias, NewPrice};
use sqlx::PgConnection;
use std::collections::BTreeMap;

/// The currency of the built-in prices. Deployments in another currency begin without prices.
const BUILT_IN_CURRENCY: &str = "USD";
const BUILT_IN_SERVICES: &str = include_str!("../../catalog/services.csv");
const BUILT_IN_PRICES: &str = include_str!("../../catalog/prices.csv");
const BUILT_IN_ALIASES: &str = include_str!("../../catalog/model_aliases.csv");

/// Fills an empty catalogue with the services that meterd ships, and, in US dollars, their prices.
pub async fn seed(conn: &mut PgConnection, currency: &str) -> anyhow::Result<()> {
    for row in csv::Reader::from_reader(BUILT_IN_SERVICES.as_bytes()).records() {
        let row = row?;
        let service = Service {
            service: row[0].into(),
            display_name: row[1].into(),
            category: row[2].parse()?,
            unit: row[3].into(),
            recurring: &row[4] == "true",
            uncounted_operations: row[5].split_whitespace().map(String::from).collect(),
        };
        store::insert_service(conn, &service).await?;
    }
    for row in csv::Reader::from_reader(BUILT_IN_ALIASES.as_bytes()).records() {
        let row = row?;
        let alias = ModelAlias { service: row[0].into(), alias: row[1].into(), model: row[2].into() };
        store::insert_alias(conn, &alias).await?;
    }
    if currency == BUILT_IN_CURRENCY {
        for (scope, rates) in built_in_prices()? {
            let [service, operation, model] = &scope;
            let price = NewPrice {
                scope: PriceScope { service, operation, model, ..PriceScope::default() },
                effective_time: None,
                end_time: None,
                rates: &rates,
                built_in: true,
                source: "",
                note: "",
            };
            store::insert_price(conn, &price).await?;
        }
    }
    store::bump_version(conn).await?;
    Ok(())
}

/// Reads the built-in prices by service, operation and model. Each line of the file has one component.
fn built_in_prices() -> anyhow::Result<BTreeMap<[String; 3], Rates>> {
    let mut prices = BTreeMap::<_, Rates>::new();
    for row in csv::Reader::from_reader(BUILT_IN_PRICES.as_bytes()).records() {
        let row = row?;
        let rates = prices.entry([row[0].into(), row[1].into(), row[2].into()]).or_default();
        *rates.component_mut(&row[3]).ok_or_else(|| anyhow::anyhow!("no component {}", &row[3]))? =
            Some(Rate::parse(&row[4])?);
    }
    Ok(prices)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_built_in_price_and_alias_is_of_a_built_in_service() {
        let services: Vec<String> = csv::Reader::from_reader(BUILT_IN_SERVICES.as_bytes())
            .records()
            .map(|row| row.unwrap()[0].into())
            .collect();
        for scope in built_in_prices().unwrap().keys() {
            assert!(services.contains(&scope[0]), "{scope:?}");
        }
        for alias in csv::Reader::from_reader(BUILT_IN_ALIASES.as_bytes()).records() {
            assert!(services.contains(&alias.unwrap()[0].to_string()));
        }
    }
}
