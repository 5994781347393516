//! Alert policies: the default one, and what clients override.

use chrono::{DateTime, Utc};
use meterd_domain::policy::{Overrides, Policy};
use sqlx::PgConnection;
use sqlx::types::Json;
use std::collections::HashMap;

/// The client id of the default policy.
pub const DEFAULT: &str = "";

/// Policies of some clients, and of all others.
#[derive(Clone, Debug, Default)]
pub struct Policies {
    default: Policy,
    clients: HashMap<String, Policy>,
}

impl Policies {
    /// Reads rows of the table. They include the row of the default policy, if there is one.
    pub fn of_rows(rows: impl IntoIterator<Item = (String, String)>) -> crate::Result<Self> {
        let parse = |text: &str| serde_json::from_str::<Overrides>(text).map_err(crate::StoreError::inconsistent);
        let mut overrides = HashMap::new();
        for (client_id, text) in rows {
            overrides.insert(client_id, parse(&text)?);
        }
        let default = Policy::default().with(&overrides.remove(DEFAULT).unwrap_or_default());
        let clients = overrides.into_iter().map(|(client_id, over)| (client_id, default.with(&over))).collect();
        Ok(Self { default, clients })
    }

    /// Adds policies of more clients, read at the same version.
    pub fn join(&mut self, more: Self) {
        self.default = more.default;
        self.clients.extend(more.clients);
    }

    /// Returns the policy that applies to a client.
    pub fn of(&self, client_id: &str) -> &Policy {
        self.clients.get(client_id).unwrap_or(&self.default)
    }
}

/// Reads the policies that apply to these clients. Under the versions lock they apply until the commit.
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

/// Returns the values that a client or the default policy sets, and the time of their last change.
pub async fn find(conn: &mut PgConnection, client_id: &str) -> crate::Result<Option<(Overrides, DateTime<Utc>)>> {
    let row = sqlx::query!(
        r#"SELECT policy AS "policy: Json<Overrides>", update_time FROM alert_policies WHERE client_id = $1"#,
        client_id
    )
    .fetch_optional(conn)
    .await?;
    Ok(row.map(|row| (row.policy.0, row.update_time)))
}

/// Stores a policy. It needs the exclusive versions lock, so that the policy applies to every later commit.
pub async fn put(conn: &mut PgConnection, client_id: &str, policy: &Overrides) -> crate::Result<DateTime<Utc>> {
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
