//! What holds for the whole deployment.

use chrono::{DateTime, Utc};
use meterd_domain::period::Month;
use sqlx::{PgConnection, PgPool};

/// The deployment as it was made at the first start.
pub struct Deployment {
    /// ISO 4217 code.
    pub currency: String,
    /// Signs page tokens.
    pub token_secret: Vec<u8>,
}

/// The deployment, if there is one.
pub async fn find(conn: &mut PgConnection) -> crate::Result<Option<Deployment>> {
    sqlx::query_as!(Deployment, "SELECT currency, token_secret FROM deployment")
        .fetch_optional(conn)
        .await
        .map_err(Into::into)
}

/// Makes the deployment.
pub async fn insert(conn: &mut PgConnection, deployment: &Deployment) -> crate::Result<()> {
    let Deployment { currency, token_secret } = deployment;
    sqlx::query!("INSERT INTO deployment (currency, token_secret) VALUES ($1, $2)", currency, token_secret)
        .execute(conn)
        .await
        .map(drop)
        .map_err(Into::into)
}

/// The last month that is closed, for all clients: its sums stay as they are. Nothing: none is.
pub async fn closed_through(conn: &mut PgConnection) -> crate::Result<Option<Month>> {
    let day = sqlx::query_scalar!("SELECT NULLIF(closed_through, '-infinity') AS closed_through FROM deployment");
    Ok(day.fetch_optional(conn).await?.flatten().map(Month::of))
}

/// Moves the time before which keys of live events may be gone up to this one. Needs the versions lock, and has to be
/// committed before the first of them is deleted.
pub async fn prune_keys_through(conn: &mut PgConnection, time: DateTime<Utc>) -> crate::Result<()> {
    sqlx::query!("UPDATE deployment SET keys_pruned_through = GREATEST(keys_pruned_through, $1)", time)
        .execute(conn)
        .await
        .map(drop)
        .map_err(Into::into)
}

/// Closes the months up to this one. Needs the versions lock; a closed month is never opened again.
pub async fn close_through(conn: &mut PgConnection, month: Month) -> crate::Result<()> {
    sqlx::query!("UPDATE deployment SET closed_through = GREATEST(closed_through, $1)", month.first_day())
        .execute(conn)
        .await
        .map(drop)
        .map_err(Into::into)
}

/// Whether the database has the tables of meterd.
pub async fn has_schema(pool: &PgPool) -> crate::Result<bool> {
    sqlx::query_scalar!(r#"SELECT to_regclass('usage_months') IS NOT NULL AS "there!""#)
        .fetch_one(pool)
        .await
        .map_err(Into::into)
}
