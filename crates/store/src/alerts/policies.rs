//! Alert policies: the default policy and the overrides of clients.

use crate::database::deployment;
use chrono::{DateTime, Utc};
use meterd_domain::policy::{Overrides, Policy};
use sqlx::PgConnection;
use sqlx::types::Json;
use std::collections::HashMap;

/// Client id of the default policy.
pub const DEFAULT: &str = "";

/// The policies of some clients, and the default policy for all others.
#[derive(Clone, Debug, Default)]
pub struct Policies {
    default: Policy,
    clients: HashMap<String, Policy>,
}

impl Policies {
    /// Builds policies from rows of the table: client id and JSON. The row of the default policy is optional.
    pub fn of_rows(rows: impl IntoIterator<Item = (String, String)>) -> crate::Result<Self> {
        let parse = |text: &str| serde_json::from_str::<Overrides>(text).map_err(crate::StoreError::inconsistent);
        let mut overrides = HashMap::new();
        for (client_id, text) in rows {
            overrides.insert(client_id, parse(&text)?);
        }
        let default = Policy::default().with_overrides(&overrides.remove(DEFAULT).unwrap_or_default());
        let clients =
            overrides.into_iter().map(|(client_id, over)| (client_id, default.with_overrides(&over))).collect();
        Ok(Self { default, clients })
    }

    /// Adds the policies of more clients. They must have been read at the same version.
    pub fn join(&mut self, more: Self) {
        self.default = more.default;
        self.clients.extend(more.clients);
    }

    /// Returns the policy that applies to a client.
    pub fn of(&self, client_id: &str) -> &Policy {
        self.clients.get(client_id).unwrap_or(&self.default)
    }
}

/// Loads the policies of these clients. Under the versions lock they do not change until the commit.
pub async fn load(conn: &mut PgConnection, client_ids: &[String]) -> crate::Result<Policies> {
    let rows = sqlx::query!(
        r#"SELECT client_id, policy::text AS "policy!" FROM alert_policies
           WHERE client_id = '' OR client_id IN (SELECT unnest($1::text[]))"#,
        client_ids
    )
    .fetch_all(conn)
    .await?;
    Policies::of_rows(rows.into_iter().map(|row| (row.client_id, row.policy)))
}

/// Returns the overrides of a client or of the default policy, and the time of their last change. `None` if there are
/// none.
pub async fn find(conn: &mut PgConnection, client_id: &str) -> crate::Result<Option<(Overrides, DateTime<Utc>)>> {
    let row = sqlx::query!(
        r#"SELECT policy AS "policy: Json<Overrides>", update_time FROM alert_policies WHERE client_id = $1"#,
        client_id
    )
    .fetch_optional(conn)
    .await?;
    Ok(row.map(|row| (row.policy.0, row.update_time)))
}

/// Sets a policy and returns the time of the change. The transaction must hold the exclusive versions lock, so that the
/// policy applies to every later commit.
pub async fn put(conn: &mut PgConnection, client_id: &str, policy: &Overrides) -> crate::Result<DateTime<Utc>> {
    deployment::count_client_settings_change(conn).await?;
    sqlx::query_scalar!(
        "INSERT INTO alert_policies (client_id, policy) VALUES ($1, $2)
         ON CONFLICT (client_id) DO UPDATE SET policy = excluded.policy, update_time = now()
         RETURNING update_time",
        client_id,
        Json(policy) as _
    )
    .fetch_one(conn)
    .await
    .map_err(Into::into)
}
