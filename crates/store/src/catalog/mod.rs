//! Services, prices and model aliases.

pub mod pricing;

use crate::numeric;
use bigdecimal::BigDecimal;
use chrono::{DateTime, Utc};
use meterd_domain::catalog::{Catalog, Service};
use meterd_domain::price::{Price, Rates};
use sqlx::PgConnection;

/// A stored price.
#[derive(Clone, Debug)]
pub struct StoredPrice {
    pub price_id: i64,
    pub service: String,
    /// Empty if the price applies to every operation.
    pub operation: String,
    /// Empty if the price applies to every model.
    pub model: String,
    /// `None` if the price applies from the beginning of time.
    pub effective_time: Option<DateTime<Utc>>,
    pub rates: Rates,
    pub built_in: bool,
    pub create_time: DateTime<Utc>,
}

struct PriceRow {
    price_id: i64,
    service: String,
    operation: String,
    model: String,
    effective_time: Option<DateTime<Utc>>,
    unit: Option<BigDecimal>,
    input_token: Option<BigDecimal>,
    output_token: Option<BigDecimal>,
    cached_input_token: Option<BigDecimal>,
    percent_of_amount: Option<BigDecimal>,
    fixed: Option<BigDecimal>,
    built_in: bool,
    create_time: DateTime<Utc>,
}

/// A price to create.
pub struct NewPrice<'a> {
    pub service: &'a str,
    pub operation: &'a str,
    pub model: &'a str,
    pub effective_time: Option<DateTime<Utc>>,
    pub rates: Rates,
    pub built_in: bool,
}

/// Another name of a model.
#[derive(Clone, Debug)]
pub struct ModelAlias {
    pub service: String,
    pub alias: String,
    pub model: String,
}

impl TryFrom<PriceRow> for StoredPrice {
    type Error = crate::StoreError;

    fn try_from(row: PriceRow) -> crate::Result<Self> {
        let rate = |value: Option<BigDecimal>| value.as_ref().map(numeric::rate).transpose();
        Ok(Self {
            price_id: row.price_id,
            service: row.service,
            operation: row.operation,
            model: row.model,
            effective_time: row.effective_time,
            rates: Rates {
                unit: rate(row.unit)?,
                input_token: rate(row.input_token)?,
                output_token: rate(row.output_token)?,
                cached_input_token: rate(row.cached_input_token)?,
                percent_of_amount: rate(row.percent_of_amount)?,
                fixed: rate(row.fixed)?,
            },
            built_in: row.built_in,
            create_time: row.create_time,
        })
    }
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

/// Loads the whole catalog. The transaction must hold the versions lock or be REPEATABLE READ, so that all parts are of
/// one version.
pub async fn load(conn: &mut PgConnection) -> crate::Result<Catalog> {
    let version = version(conn).await?;
    let mut catalog = Catalog::new(version);
    for service in services(conn).await? {
        catalog.add_service(service);
    }
    for stored in prices(conn, None, ("", "", "", None), i64::MAX).await? {
        let StoredPrice { price_id, effective_time, rates, .. } = stored;
        let price = Price { price_id, effective_time, rates };
        catalog.add_price(&stored.service, &stored.operation, &stored.model, price);
    }
    for alias in aliases(conn).await? {
        catalog.add_alias(&alias.service, &alias.alias, &alias.model);
    }
    Ok(catalog)
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

/// A position in the list of prices: service, operation, model and effective time of the last price read.
pub type PriceCursor<'a> = (&'a str, &'a str, &'a str, Option<DateTime<Utc>>);

/// Returns up to `limit` prices after a cursor, ordered by service, operation, model and effective time.
pub async fn prices(
    conn: &mut PgConnection,
    service: Option<&str>,
    after: PriceCursor<'_>,
    limit: i64,
) -> crate::Result<Vec<StoredPrice>> {
    let rows = sqlx::query_as!(
        PriceRow,
        r#"SELECT price_id, service, operation, model,
                  NULLIF(effective_time, '-infinity') AS effective_time, unit, input_token, output_token,
                  cached_input_token, percent_of_amount, fixed, built_in, create_time
           FROM prices
           WHERE ($1::text IS NULL OR service = $1)
             AND (service, operation, model, effective_time) > ($2, $3, $4, COALESCE($5, '-infinity'::timestamptz))
           ORDER BY service, operation, model, prices.effective_time LIMIT $6"#,
        service,
        after.0,
        after.1,
        after.2,
        after.3,
        limit
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(StoredPrice::try_from).collect()
}

/// Creates a price and returns it. `None` if a price with the same scope and effective time exists.
pub async fn insert_price(conn: &mut PgConnection, new: &NewPrice<'_>) -> crate::Result<Option<StoredPrice>> {
    let Rates { unit, input_token, output_token, cached_input_token, percent_of_amount, fixed } = new.rates;
    let row = sqlx::query_as!(
        PriceRow,
        r#"INSERT INTO prices (service, operation, model, effective_time, unit, input_token, output_token,
               cached_input_token, percent_of_amount, fixed, built_in)
           VALUES ($1, $2, $3, COALESCE($4, '-infinity'::timestamptz), $5, $6, $7, $8, $9, $10, $11)
           ON CONFLICT DO NOTHING
           RETURNING price_id, service, operation, model,
               NULLIF(effective_time, '-infinity') AS effective_time, unit, input_token, output_token,
               cached_input_token, percent_of_amount, fixed, built_in, create_time"#,
        new.service,
        new.operation,
        new.model,
        new.effective_time,
        unit.map(numeric::of_rate),
        input_token.map(numeric::of_rate),
        output_token.map(numeric::of_rate),
        cached_input_token.map(numeric::of_rate),
        percent_of_amount.map(numeric::of_rate),
        fixed.map(numeric::of_rate),
        new.built_in
    )
    .fetch_optional(conn)
    .await?;
    row.map(StoredPrice::try_from).transpose()
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
