//! The catalogue of a new database.

use super::built_in;
use meterd_store::catalog as store;
use meterd_store::database::deployment;
use sqlx::PgConnection;

/// Fills an empty catalogue with the services that meterd ships, and, in US dollars, their prices.
pub async fn seed(conn: &mut PgConnection, currency: &str) -> anyhow::Result<()> {
    let list = built_in::list();
    for service in &list.services {
        store::insert_service(conn, service).await?;
    }
    if currency == built_in::CURRENCY {
        let prices: Vec<_> = list.prices.iter().map(|price| (price.scope(), &price.rates)).collect();
        store::insert_built_in_prices(conn, &prices).await?;
        deployment::set_built_in_list_date(conn, list.date).await?;
    }
    store::bump_version(conn).await?;
    Ok(())
}
