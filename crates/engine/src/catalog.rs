//! The catalogue in memory: one immutable snapshot, replaced whole; and what a new database begins with.

use meterd_domain::catalog::{Catalog, Service};
use meterd_domain::price::Rates;
use meterd_store::catalog::NewPrice;
use sqlx::{PgConnection, PgPool};
use std::sync::{Arc, RwLock};

/// Holds the newest snapshot that this process has seen.
#[derive(Debug, Default)]
pub struct CatalogCache(RwLock<Arc<Catalog>>);

impl CatalogCache {
    /// The snapshot. It may be older than the database: who records with it compares versions in the transaction.
    pub fn current(&self) -> Arc<Catalog> {
        self.0.read().expect("cache is not poisoned").clone()
    }

    /// Keeps a snapshot, unless a newer one is there.
    fn replace(&self, catalog: Catalog) {
        let mut current = self.0.write().expect("cache is not poisoned");
        if catalog.version >= current.version {
            *current = Arc::new(catalog);
        }
    }

    /// Keeps a snapshot that was read under the versions lock: whatever there was before, it is the one in force.
    pub fn adopt(&self, catalog: Catalog) -> Arc<Catalog> {
        let catalog = Arc::new(catalog);
        *self.0.write().expect("cache is not poisoned") = catalog.clone();
        catalog
    }

    /// Reads the catalogue again if it has changed, and gives the newest snapshot.
    pub async fn refresh(&self, pool: &PgPool) -> meterd_store::Result<Arc<Catalog>> {
        if meterd_store::catalog::version(&mut *pool.acquire().await?).await? != self.current().version {
            let mut tx = pool.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
            let catalog = meterd_store::catalog::load(&mut tx).await?;
            tx.commit().await?;
            self.replace(catalog);
        }
        Ok(self.current())
    }
}

/// Currency that the built-in prices are in; deployments in another one begin without prices.
const BUILT_IN_CURRENCY: &str = "USD";
const BUILT_IN_SERVICES: &str = include_str!("../catalog/services.csv");
const BUILT_IN_PRICES: &str = include_str!("../catalog/prices.csv");
const BUILT_IN_ALIASES: &str = include_str!("../catalog/model_aliases.csv");

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
        meterd_store::catalog::insert_service(conn, &service).await?;
    }
    for row in csv::Reader::from_reader(BUILT_IN_ALIASES.as_bytes()).records() {
        let row = row?;
        let alias =
            meterd_store::catalog::ModelAlias { service: row[0].into(), alias: row[1].into(), model: row[2].into() };
        meterd_store::catalog::insert_alias(conn, &alias).await?;
    }
    if currency == BUILT_IN_CURRENCY {
        for (scope, rates) in built_in_prices()? {
            let [service, operation, model] = &scope;
            let price = NewPrice { service, operation, model, effective_time: None, rates, built_in: true };
            meterd_store::catalog::insert_price(conn, &price).await?;
        }
    }
    meterd_store::catalog::bump_version(conn).await?;
    Ok(())
}

/// Prices by service, operation and model, from one line a component.
fn built_in_prices() -> anyhow::Result<std::collections::BTreeMap<[String; 3], Rates>> {
    let mut prices = std::collections::BTreeMap::<_, Rates>::new();
    for row in csv::Reader::from_reader(BUILT_IN_PRICES.as_bytes()).records() {
        let row = row?;
        let rates = prices.entry([row[0].into(), row[1].into(), row[2].into()]).or_default();
        *rates.component_mut(&row[3]).ok_or_else(|| anyhow::anyhow!("no component {}", &row[3]))? =
            Some(meterd_domain::decimal::Rate::parse(&row[4])?);
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
