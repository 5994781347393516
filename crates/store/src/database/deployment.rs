//! The data of the whole deployment, a single row.

use chrono::{DateTime, NaiveDate, Utc};
use meterd_domain::period::Month;
use sqlx::{PgConnection, PgPool};

/// The values that were set at the first start.
pub struct Deployment {
    /// Currency as an ISO 4217 code.
    pub currency: String,
    /// Secret that signs page tokens.
    pub token_secret: Vec<u8>,
}

/// Returns the deployment. `None` before the first start.
pub async fn find(conn: &mut PgConnection) -> crate::Result<Option<Deployment>> {
    sqlx::query_as!(Deployment, "SELECT currency, token_secret FROM deployment")
        .fetch_optional(conn)
        .await
        .map_err(Into::into)
}

/// Creates the deployment.
pub async fn insert(conn: &mut PgConnection, deployment: &Deployment) -> crate::Result<()> {
    let Deployment { currency, token_secret } = deployment;
    sqlx::query!("INSERT INTO deployment (currency, token_secret) VALUES ($1, $2)", currency, token_secret)
        .execute(conn)
        .await
        .map(drop)
        .map_err(Into::into)
}

/// Returns the date of the built-in price list that the database has. `None`: the list of an earlier release, or none.
pub async fn built_in_list_date(conn: &mut PgConnection) -> crate::Result<Option<NaiveDate>> {
    let date = sqlx::query_scalar!("SELECT built_in_list_date FROM deployment");
    Ok(date.fetch_optional(conn).await?.flatten())
}

/// Sets the date of the built-in price list that the database has.
pub async fn set_built_in_list_date(conn: &mut PgConnection, date: NaiveDate) -> crate::Result<()> {
    sqlx::query!("UPDATE deployment SET built_in_list_date = $1", date)
        .execute(conn)
        .await
        .map(drop)
        .map_err(Into::into)
}

/// Returns the time until which replicas of the previous release may run. `None` if it has passed.
pub async fn previous_release_until(conn: &mut PgConnection) -> crate::Result<Option<DateTime<Utc>>> {
    let until =
        sqlx::query_scalar!("SELECT previous_release_until FROM deployment WHERE previous_release_until > now()");
    until.fetch_optional(conn).await.map_err(Into::into)
}

/// Ends the time in which replicas of the previous release may run.
pub async fn end_previous_release(conn: &mut PgConnection) -> crate::Result<()> {
    let ended =
        sqlx::query!("UPDATE deployment SET previous_release_until = now() WHERE previous_release_until > now()");
    ended.execute(conn).await.map(drop).map_err(Into::into)
}

/// Counts a change of a time zone, of a plan or of an alert policy. Writers that remember these read them again. The transaction must hold the
/// exclusive versions lock.
///
/// In a database that is not distributed, triggers count too, for replicas of earlier releases.
pub async fn count_client_settings_change(conn: &mut PgConnection) -> crate::Result<()> {
    sqlx::query!("UPDATE deployment SET client_settings_version = client_settings_version + 1")
        .execute(conn)
        .await
        .map(drop)
        .map_err(Into::into)
}

/// Returns the last closed month. Sums of closed months do not change. `None` if no month is closed.
pub async fn closed_through(conn: &mut PgConnection) -> crate::Result<Option<Month>> {
    let day = sqlx::query_scalar!("SELECT NULLIF(closed_through, '-infinity') AS closed_through FROM deployment");
    Ok(day.fetch_optional(conn).await?.flatten().map(Month::of))
}

/// Raises the time before which keys of live events may have been deleted; never lowers it. The transaction must hold
/// the exclusive versions lock, and must commit before the first of these keys is deleted.
pub async fn prune_keys_through(conn: &mut PgConnection, time: DateTime<Utc>) -> crate::Result<()> {
    sqlx::query!("UPDATE deployment SET keys_pruned_through = GREATEST(keys_pruned_through, $1)", time)
        .execute(conn)
        .await
        .map(drop)
        .map_err(Into::into)
}

/// Closes all months up to and including `month`. The transaction must hold the exclusive versions lock. A closed month
/// never opens again.
pub async fn close_through(conn: &mut PgConnection, month: Month) -> crate::Result<()> {
    sqlx::query!("UPDATE deployment SET closed_through = GREATEST(closed_through, $1)", month.first_day())
        .execute(conn)
        .await
        .map(drop)
        .map_err(Into::into)
}

/// Returns whether the database has the tables of meterd.
pub async fn has_schema(pool: &PgPool) -> crate::Result<bool> {
    sqlx::query_scalar!(r#"SELECT to_regclass('usage_months') IS NOT NULL AS "there!""#)
        .fetch_one(pool)
        .await
        .map_err(Into::into)
}
