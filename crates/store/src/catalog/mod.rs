//! Services, prices and model aliases.

mod prices;
pub mod pricing;
mod tiers;

pub use prices::{
    NewPrice, PriceCursor, PriceFilter, StoredPrice, end_price, insert_built_in_prices, insert_price, price, prices,
    prices_of_models, prices_of_scope, withdraw_price,
};

use meterd_domain::catalog::{Catalog, Service};
use meterd_domain::model_names::{NameRule, NameRules};
use sqlx::PgConnection;

/// Another name of a model.
#[derive(Clone, Debug)]
pub struct ModelAlias {
    pub service: String,
    pub alias: String,
    pub model: String,
}

/// Returns the current version of the catalog.
pub async fn version(conn: &mut PgConnection) -> crate::Result<i64> {
    sqlx::query_scalar!("SELECT version FROM catalog_version").fetch_one(conn).await.map_err(Into::into)
}

/// Increments the version. The transaction must hold the exclusive versions lock, so that transactions that price
/// events after its commit see the change.
pub async fn bump_version(conn: &mut PgConnection) -> crate::Result<()> {
    sqlx::query!("UPDATE catalog_version SET version = version + 1").execute(conn).await.map(drop).map_err(Into::into)
}

/// Loads the whole catalog, with or without the rules for names of models. The transaction must hold the versions lock or be
/// REPEATABLE READ, so that all parts are of one version.
pub async fn load(conn: &mut PgConnection, with_name_rules: bool) -> crate::Result<Catalog> {
    let version = version(conn).await?;
    let name_rules = if with_name_rules { name_rules(conn).await? } else { NameRules::default() };
    let mut catalog = Catalog::new(version, name_rules);
    for service in services(conn).await? {
        catalog.add_service(service);
    }
    for stored in prices(conn, &PriceFilter::default(), i64::MAX).await? {
        catalog.add_model(stored.price_id, &stored.model);
        catalog.add_tiers(stored.price_id, &stored.rates.tiers);
        if stored.withdraw_time.is_none() {
            catalog.add_price(&stored.scope(), stored.price());
        }
    }
    for alias in aliases(conn).await? {
        catalog.add_alias(&alias.service, &alias.alias, &alias.model);
    }
    Ok(catalog)
}

async fn name_rules(conn: &mut PgConnection) -> crate::Result<NameRules> {
    let rows = sqlx::query!("SELECT part, pattern, models FROM model_name_rules").fetch_all(conn).await?;
    // A later release may have further parts.
    let rules = rows
        .into_iter()
        .filter_map(|row| Some(NameRule { part: row.part.try_into().ok()?, pattern: row.pattern, models: row.models }));
    Ok(NameRules::new(rules))
}

/// Returns all services, ordered by name.
pub async fn services(conn: &mut PgConnection) -> crate::Result<Vec<Service>> {
    let rows = sqlx::query!(
        "SELECT service, display_name, category, unit, recurring, uncounted_operations FROM services ORDER BY service"
    )
    .fetch_all(conn)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| Service {
            service: row.service.into(),
            display_name: row.display_name,
            category: row.category,
            unit: row.unit,
            recurring: row.recurring,
            uncounted_operations: row.uncounted_operations,
        })
        .collect())
}

/// Creates a service. Returns `false` if it already exists.
pub async fn insert_service(conn: &mut PgConnection, service: &Service) -> crate::Result<bool> {
    let done = sqlx::query!(
        "INSERT INTO services (service, display_name, category, unit, recurring, uncounted_operations)
         VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING",
        &*service.service,
        service.display_name,
        service.category,
        service.unit,
        service.recurring,
        &service.uncounted_operations
    )
    .execute(conn)
    .await?;
    Ok(done.rows_affected() > 0)
}

/// Returns all aliases, ordered by service and alias.
pub async fn aliases(conn: &mut PgConnection) -> crate::Result<Vec<ModelAlias>> {
    sqlx::query_as!(ModelAlias, "SELECT service, alias, model FROM model_aliases ORDER BY service, alias")
        .fetch_all(conn)
        .await
        .map_err(Into::into)
}

/// Creates an alias. Returns `false` if it already exists.
pub async fn insert_alias(conn: &mut PgConnection, alias: &ModelAlias) -> crate::Result<bool> {
    let done = sqlx::query!(
        "INSERT INTO model_aliases (service, alias, model) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
        alias.service,
        alias.alias,
        alias.model
    )
    .execute(conn)
    .await?;
    Ok(done.rows_affected() > 0)
}
