//! The price list that meterd ships. `catalog/prices.csv` has the prices of services with units. `.ci/model_prices` writes
//! `catalog/models.csv`, the prices of AI models, and `catalog/list.csv`, the date of the list.

use crate::clock::Clock;
use chrono::NaiveDate;
use meterd_domain::catalog::{PriceScope, Service};
use meterd_domain::decimal::Rate;
use meterd_domain::measures::check_name;
use meterd_domain::period::parse_day;
use meterd_domain::price::Rates;
use meterd_store::database::deployment;
use sqlx::PgConnection;
use std::sync::{Arc, LazyLock};

/// The currency of the built-in prices. Deployments in another currency have none.
pub const CURRENCY: &str = "USD";
const SERVICES: &str = include_str!("../../catalog/services.csv");
const PRICES: [&str; 2] = [include_str!("../../catalog/prices.csv"), include_str!("../../catalog/models.csv")];
const LIST: &str = include_str!("../../catalog/list.csv");
/// Age from which the list in the database is reported as old.
const OLD_DAYS: i64 = 180;

/// The services and prices of the list.
#[derive(Debug)]
pub struct BuiltInList {
    /// The day of the prices of AI models.
    pub date: NaiveDate,
    pub services: Vec<Service>,
    pub prices: Vec<BuiltInPrice>,
}

/// A price of the list. It is for events of any time.
#[derive(Clone, Debug)]
pub struct BuiltInPrice {
    pub service: String,
    pub operation: String,
    pub model: String,
    pub service_tier: String,
    pub above_input_tokens: Option<i64>,
    pub rates: Rates,
}

impl BuiltInPrice {
    /// Returns what the price is for.
    pub fn scope(&self) -> PriceScope<'_> {
        PriceScope {
            client_id: "",
            plan_id: "",
            service: &self.service,
            operation: &self.operation,
            model: &self.model,
            service_tier: &self.service_tier,
            above_input_tokens: self.above_input_tokens,
        }
    }
}

/// Returns the list.
pub fn list() -> &'static BuiltInList {
    static READ: LazyLock<BuiltInList> = LazyLock::new(|| read().expect("the built-in list is valid"));
    &READ
}

/// Logs that the list in the database is old, or of a release that did not store its date.
pub async fn log_age(conn: &mut PgConnection, clock: &Clock) -> meterd_store::Result<()> {
    let update = "`meterd prices import --built-in --dry-run` shows what the list of this release changes";
    match deployment::built_in_list_date(conn).await? {
        None => tracing::info!("the built-in prices in the database are those of an earlier release; {update}"),
        Some(date) => {
            let age_days = (clock.now().date_naive() - date).num_days();
            if age_days > OLD_DAYS {
                let newer = "`meterd prices import FILE` imports a newer file of model prices";
                tracing::warn!(%date, age_days, "the built-in prices in the database are old; {update}, and {newer}");
            }
        }
    }
    Ok(())
}

fn read() -> anyhow::Result<BuiltInList> {
    let date = records(LIST).next().and_then(|row| parse_day(&row.ok()?[0]));
    let date = date.ok_or_else(|| anyhow::anyhow!("the list has no date"))?;
    let services = records(SERVICES).map(|row| service(&row?)).collect::<anyhow::Result<_>>()?;
    let prices = PRICES.into_iter().flat_map(records).map(|row| price(&row?)).collect::<anyhow::Result<_>>()?;
    Ok(BuiltInList { date, services, prices })
}

fn records(text: &'static str) -> csv::StringRecordsIntoIter<&'static [u8]> {
    csv::Reader::from_reader(text.as_bytes()).into_records()
}

fn service(row: &csv::StringRecord) -> anyhow::Result<Service> {
    Ok(Service {
        service: row[0].into(),
        display_name: row[1].into(),
        category: row[2].parse()?,
        unit: row[3].into(),
        recurring: &row[4] == "true",
        uncounted_operations: row[5].split_whitespace().map(String::from).collect(),
    })
}

fn price(row: &csv::StringRecord) -> anyhow::Result<BuiltInPrice> {
    let above_input_tokens = Some(&row[4]).filter(|bound| !bound.is_empty()).map(str::parse).transpose()?;
    Ok(BuiltInPrice {
        service: row[0].into(),
        operation: row[1].into(),
        model: row[2].into(),
        service_tier: row[3].into(),
        above_input_tokens,
        rates: rates(&row[5])?,
    })
}

/// Reads rates such as "input_token=0.00000015 output_token=0.0000006".
fn rates(text: &str) -> anyhow::Result<Rates> {
    let mut rates = Rates::default();
    for (name, rate) in text.split(' ').map(|part| part.split_once('=').unwrap_or((part, ""))) {
        let rate = Rate::parse(rate).map_err(|error| anyhow::anyhow!("{name} in {text:?}: {error}"))?;
        match rates.component_mut(name) {
            Some(component) => *component = Some(rate),
            None => {
                check_name(name).map_err(|error| anyhow::anyhow!("{name} in {text:?} {error}"))?;
                rates.measures.push((Arc::from(name), rate));
            }
        }
    }
    rates.measures.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
    Ok(rates)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_price_is_of_a_service_of_the_list_and_for_something_else() {
        let list = read().unwrap();
        let mut scopes = HashSet::new();
        for price in &list.prices {
            assert!(list.services.iter().any(|service| *service.service == *price.service), "{price:?}");
            assert!(scopes.insert(price.scope()), "{price:?}");
        }
        assert!(list.prices.len() > 500, "{} prices", list.prices.len());
    }

    #[test]
    fn wrong_rates_are_errors() {
        for wrong in ["", "input_token", "input_token=cheap", "Wrong-Name=1", "unit=-1"] {
            assert!(rates(wrong).is_err(), "{wrong}");
        }
        let read = rates("cache_write_5m_input_tokens=0.00000375 audio_input_tokens=0.1 unit=0.30").unwrap();
        let names: Vec<&str> = read.measures.iter().map(|(name, _)| &**name).collect();
        assert_eq!(names, ["audio_input_tokens", "cache_write_5m_input_tokens"]);
        assert_eq!(read.unit, Some(Rate::parse("0.3").unwrap()));
    }
}
