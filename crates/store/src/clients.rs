//! Clients and their time zones.

use crate::database::deployment;
use crate::numeric;
use chrono::{DateTime, NaiveDate, Utc};
use chrono_tz::Tz;
use meterd_domain::decimal::Decimal;
use meterd_domain::period::{self, Month};
use meterd_domain::plan::{ClientPlans, PlanTerms, PlanTimeline};
use sqlx::{PgConnection, PgPool};
use std::collections::{HashMap, HashSet};

/// A metered tenant.
#[derive(Clone, Debug)]
pub struct Client {
    pub client_id: String,
    pub display_name: String,
    /// IANA time zone name.
    pub time_zone: String,
    pub create_time: DateTime<Utc>,
    pub update_time: DateTime<Utc>,
}

/// Parses a stored time zone name. An unknown name is an inconsistency, because names are checked before they are
/// stored.
pub fn zone(name: &str) -> crate::Result<Tz> {
    name.parse().map_err(|_| crate::StoreError::Inconsistent(format!("\"{name}\" is no time zone")))
}

impl Client {
    /// Returns the day of `time` in the client's time zone.
    pub fn day_of(&self, time: DateTime<Utc>) -> crate::Result<NaiveDate> {
        Ok(period::day_of(time, zone(&self.time_zone)?))
    }
}

/// Returns one client. `None` if it does not exist.
pub async fn find(pool: &PgPool, client_id: &str) -> crate::Result<Option<Client>> {
    sqlx::query_as!(
        Client,
        "SELECT client_id, display_name, time_zone, create_time, update_time FROM clients WHERE client_id = $1",
        client_id
    )
    .fetch_optional(pool)
    .await
    .map_err(Into::into)
}

/// Returns the client's time zone. `None` if the client does not exist.
pub async fn time_zone(conn: &mut PgConnection, client_id: &str) -> crate::Result<Option<Tz>> {
    let name = sqlx::query_scalar!("SELECT time_zone FROM clients WHERE client_id = $1", client_id);
    name.fetch_optional(conn).await?.as_deref().map(zone).transpose()
}

/// Returns up to `limit` clients with ids after `after`, ordered by id.
pub async fn list(pool: &PgPool, after: &str, limit: i64) -> crate::Result<Vec<Client>> {
    sqlx::query_as!(
        Client,
        "SELECT client_id, display_name, time_zone, create_time, update_time FROM clients
         WHERE client_id > $1 ORDER BY client_id LIMIT $2",
        after,
        limit
    )
    .fetch_all(pool)
    .await
    .map_err(Into::into)
}

/// Creates a client and returns it. `None` if it already exists.
pub async fn insert(
    conn: &mut PgConnection,
    client_id: &str,
    display_name: &str,
    zone: Tz,
) -> crate::Result<Option<Client>> {
    sqlx::query_as!(
        Client,
        "INSERT INTO clients (client_id, display_name, time_zone) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING
         RETURNING client_id, display_name, time_zone, create_time, update_time",
        client_id,
        display_name,
        zone.name()
    )
    .fetch_optional(conn)
    .await
    .map_err(Into::into)
}

/// Creates the clients that do not exist yet. `client_ids` must be sorted.
pub async fn insert_missing(conn: &mut PgConnection, client_ids: &[String], zone: Tz) -> crate::Result<()> {
    sqlx::query!(
        "INSERT INTO clients (client_id, time_zone) SELECT unnest($1::text[]), $2 ON CONFLICT DO NOTHING",
        client_ids,
        zone.name()
    )
    .execute(conn)
    .await
    .map(drop)
    .map_err(Into::into)
}

/// Returns the ids in `client_ids` that exist.
pub async fn existing(conn: &mut PgConnection, client_ids: &[String]) -> crate::Result<Vec<String>> {
    sqlx::query_scalar!(
        "SELECT client_id FROM clients JOIN unnest($1::text[]) AS wanted (client_id) USING (client_id)",
        client_ids
    )
    .fetch_all(conn)
    .await
    .map_err(Into::into)
}

/// Updates the fields that are `Some` and returns the client. `None` if it does not exist. A change of the time zone
/// needs the exclusive versions lock.
pub async fn update(
    conn: &mut PgConnection,
    client_id: &str,
    display_name: Option<&str>,
    zone: Option<Tz>,
) -> crate::Result<Option<Client>> {
    if zone.is_some() {
        deployment::count_client_settings_change(conn).await?;
    }
    sqlx::query_as!(
        Client,
        "UPDATE clients SET display_name = COALESCE($2, display_name), time_zone = COALESCE($3, time_zone),
             update_time = now()
         WHERE client_id = $1
         RETURNING client_id, display_name, time_zone, create_time, update_time",
        client_id,
        display_name,
        zone.map(|zone| zone.name())
    )
    .fetch_optional(conn)
    .await
    .map_err(Into::into)
}

/// Returns the display names of the clients that have one, by client id.
pub async fn names(conn: &mut PgConnection, client_ids: &[String]) -> crate::Result<HashMap<String, String>> {
    let rows = sqlx::query!(
        "SELECT client_id, display_name FROM clients JOIN unnest($1::text[]) AS wanted (client_id) USING (client_id)
         WHERE display_name <> ''",
        client_ids
    )
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(|row| (row.client_id, row.display_name)).collect())
}

/// Returns the time zones of these clients, without those that do not exist.
pub async fn time_zones(conn: &mut PgConnection, client_ids: &[String]) -> crate::Result<HashMap<String, Tz>> {
    let rows = sqlx::query!("SELECT client_id, time_zone FROM clients WHERE client_id = ANY($1)", client_ids);
    let rows = rows.fetch_all(conn).await?;
    rows.into_iter().map(|row| Ok((row.client_id, zone(&row.time_zone)?))).collect()
}

/// What transactions need to know of clients.
#[derive(Debug, Default)]
pub struct Settings {
    /// By client. Only clients that exist have one.
    pub zones: HashMap<String, Tz>,
    pub plans: ClientPlans,
    /// The clients that have or had a grant of credits.
    pub with_grants: HashSet<String>,
}

impl Settings {
    /// Returns whether a client has or had a grant of credits, or a plan that includes some.
    pub fn has_credits(&self, client_id: &str) -> bool {
        self.with_grants.contains(client_id) || self.plans.of(client_id).is_some_and(PlanTimeline::has_credits)
    }
}

/// Returns the settings of clients.
pub async fn settings(conn: &mut PgConnection, client_ids: &[String]) -> crate::Result<Settings> {
    // A client has a row for each change of its plan, and at least one.
    let rows = sqlx::query!(
        r#"SELECT client_id, time_zone, p.effective_time AS "effective_time?", p.plan_id AS "plan_id?",
               p.included_credits AS "included_credits?", p.rollover_months AS "rollover_months?",
               g.client_id IS NOT NULL AS "has_grants!"
           FROM clients JOIN unnest($1::text[]) AS wanted (client_id) USING (client_id)
           LEFT JOIN client_plans p USING (client_id)
           LEFT JOIN (SELECT DISTINCT client_id FROM credit_grants WHERE client_id = ANY($1)) g USING (client_id)"#,
        client_ids
    )
    .fetch_all(conn)
    .await?;
    let mut settings = Settings::default();
    for row in rows {
        if let (Some(effective_time), Some(plan_id)) = (row.effective_time, row.plan_id) {
            let terms = PlanTerms {
                plan_id: plan_id.into(),
                included_credits: row.included_credits.as_ref().map_or(Ok(Decimal::ZERO), numeric::decimal)?,
                rollover_months: row.rollover_months.unwrap_or_default().try_into().unwrap_or_default(),
            };
            settings.plans.add(&row.client_id, effective_time, terms);
        }
        if row.has_grants {
            settings.with_grants.insert(row.client_id.clone());
        }
        settings.zones.insert(row.client_id, zone(&row.time_zone)?);
    }
    Ok(settings)
}

/// Returns up to `limit` ids, after `after`, of clients with usage in `month` or later, in order.
pub async fn active_since(pool: &PgPool, month: Month, after: &str, limit: i64) -> crate::Result<Vec<String>> {
    sqlx::query_scalar!(
        "SELECT DISTINCT client_id FROM usage_months WHERE month >= $1 AND client_id > $2 AND request_count > 0
         ORDER BY client_id LIMIT $3",
        month.first_day(),
        after,
        limit
    )
    .fetch_all(pool)
    .await
    .map_err(Into::into)
}
