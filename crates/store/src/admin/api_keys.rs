//! API keys.

use chrono::{DateTime, Utc};
use meterd_domain::access::{Clients, Grants};
use sqlx::{PgConnection, PgPool};

/// A stored key.
#[derive(Clone, Debug)]
pub struct ApiKey {
    pub key_id: String,
    pub name: String,
    pub grants: Grants,
    /// 0 means the setting of the replica.
    pub requests_per_second: i32,
    pub create_time: DateTime<Utc>,
    pub expire_time: Option<DateTime<Utc>>,
    pub revoke_time: Option<DateTime<Utc>>,
    pub last_used_time: Option<DateTime<Utc>>,
    pub rotated_from: Option<String>,
    /// SHA-256 hash of the secret.
    pub secret_hash: Vec<u8>,
    pub version: i64,
}

/// A key to create.
pub struct NewApiKey<'a> {
    pub key_id: &'a str,
    pub secret_hash: &'a [u8],
    pub name: &'a str,
    pub grants: &'a Grants,
    pub requests_per_second: i32,
    pub expire_time: Option<DateTime<Utc>>,
    pub rotated_from: Option<&'a str>,
}

struct Row {
    key_id: String,
    secret_hash: Vec<u8>,
    name: String,
    ingest_clients: Option<Vec<String>>,
    read_clients: Option<Vec<String>>,
    admin_clients: Option<Vec<String>>,
    requests_per_second: i32,
    create_time: DateTime<Utc>,
    expire_time: Option<DateTime<Utc>>,
    revoke_time: Option<DateTime<Utc>>,
    last_used_time: Option<DateTime<Utc>>,
    rotated_from: Option<String>,
    version: i64,
}

/// The id that stands for all clients. No client has it.
const ALL: &str = "";

fn clients(ids: Vec<String>) -> Clients {
    if ids == [ALL] { Clients::All } else { Clients::Only(ids.into_iter().collect()) }
}

fn ids(clients: Option<&Clients>) -> Option<Vec<String>> {
    clients.map(|clients| match clients {
        Clients::All => vec![ALL.into()],
        Clients::Only(ids) => ids.iter().cloned().collect(),
    })
}

impl From<Row> for ApiKey {
    fn from(row: Row) -> Self {
        Self {
            key_id: row.key_id,
            name: row.name,
            grants: Grants {
                ingest: row.ingest_clients.map(clients),
                read: row.read_clients.map(clients),
                admin: row.admin_clients.map(clients),
            },
            requests_per_second: row.requests_per_second,
            create_time: row.create_time,
            expire_time: row.expire_time,
            revoke_time: row.revoke_time,
            last_used_time: row.last_used_time,
            rotated_from: row.rotated_from,
            secret_hash: row.secret_hash,
            version: row.version,
        }
    }
}

/// Returns the next version. Its row stays locked until the commit, so versions are in commit order, and only one
/// transaction changes keys at a time.
pub async fn next_version(conn: &mut PgConnection) -> crate::Result<i64> {
    sqlx::query_scalar!("UPDATE key_version SET version = version + 1 RETURNING version")
        .fetch_one(conn)
        .await
        .map_err(Into::into)
}

/// Creates a key.
pub async fn insert(conn: &mut PgConnection, version: i64, key: &NewApiKey<'_>) -> crate::Result<ApiKey> {
    let row = sqlx::query_as!(
        Row,
        "INSERT INTO api_keys (key_id, secret_hash, name, ingest_clients, read_clients, admin_clients, requests_per_second,
                               expire_time, rotated_from, version)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
         RETURNING key_id, secret_hash, name, ingest_clients, read_clients, admin_clients, requests_per_second, create_time,
                   expire_time, revoke_time, last_used_time, rotated_from, version",
        key.key_id,
        key.secret_hash,
        key.name,
        ids(key.grants.ingest.as_ref()) as _,
        ids(key.grants.read.as_ref()) as _,
        ids(key.grants.admin.as_ref()) as _,
        key.requests_per_second,
        key.expire_time,
        key.rotated_from,
        version
    );
    row.fetch_one(conn).await.map(ApiKey::from).map_err(Into::into)
}

/// Returns one key. `None` if it does not exist.
pub async fn find(conn: &mut PgConnection, key_id: &str) -> crate::Result<Option<ApiKey>> {
    let row = sqlx::query_as!(Row, "SELECT * FROM api_keys WHERE key_id = $1", key_id);
    Ok(row.fetch_optional(conn).await?.map(ApiKey::from))
}

/// Returns up to `limit` keys after `after` (create time and key id), oldest first. If `live_at` is set, only keys that
/// are neither revoked nor expired at that time.
pub async fn list(
    pool: &PgPool,
    live_at: Option<DateTime<Utc>>,
    after: Option<(DateTime<Utc>, &str)>,
    limit: i64,
) -> crate::Result<Vec<ApiKey>> {
    let rows = sqlx::query_as!(
        Row,
        "SELECT * FROM api_keys
         WHERE ($1::timestamptz IS NULL OR (revoke_time IS NULL AND (expire_time IS NULL OR expire_time > $1)))
           AND ($2::timestamptz IS NULL OR (create_time, key_id) > ($2, $3))
         ORDER BY create_time, key_id LIMIT $4",
        live_at,
        after.map(|(time, _)| time),
        after.map_or("", |(_, key_id)| key_id),
        limit
    );
    Ok(rows.fetch_all(pool).await?.into_iter().map(ApiKey::from).collect())
}

/// Returns the number of keys that are neither revoked nor expired at `now`.
pub async fn live_count(conn: &mut PgConnection, now: DateTime<Utc>) -> crate::Result<i64> {
    sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!" FROM api_keys
           WHERE revoke_time IS NULL AND (expire_time IS NULL OR expire_time > $1)"#,
        now
    )
    .fetch_one(conn)
    .await
    .map_err(Into::into)
}

/// Revokes a key, unless it is already revoked, and returns it. `None` if it does not exist.
pub async fn revoke(conn: &mut PgConnection, version: i64, key_id: &str) -> crate::Result<Option<ApiKey>> {
    let row = sqlx::query_as!(
        Row,
        "UPDATE api_keys SET version = CASE WHEN revoke_time IS NULL THEN $2 ELSE version END,
                             revoke_time = COALESCE(revoke_time, now())
         WHERE key_id = $1 RETURNING *",
        key_id,
        version
    );
    Ok(row.fetch_optional(conn).await?.map(ApiKey::from))
}

/// Makes a key expire at `time`, unless it expires earlier, and returns it. `None` if it does not exist.
pub async fn expire_by(
    conn: &mut PgConnection,
    version: i64,
    key_id: &str,
    time: DateTime<Utc>,
) -> crate::Result<Option<ApiKey>> {
    let row = sqlx::query_as!(
        Row,
        "UPDATE api_keys SET version = $2, expire_time = LEAST(expire_time, $3) WHERE key_id = $1 RETURNING *",
        key_id,
        version,
        time
    );
    Ok(row.fetch_optional(conn).await?.map(ApiKey::from))
}

/// Returns up to `limit` keys that changed after `version`, in order of the change. Leaves out keys that ended more
/// than 30 days ago.
pub async fn changed_since(conn: &mut PgConnection, version: i64, limit: i64) -> crate::Result<Vec<ApiKey>> {
    let rows = sqlx::query_as!(
        Row,
        "SELECT * FROM api_keys
             WHERE version > $1 AND COALESCE(LEAST(revoke_time, expire_time), 'infinity') > now() - interval '30 days'
             ORDER BY version, key_id LIMIT $2",
        version,
        limit
    );
    Ok(rows.fetch_all(conn).await?.into_iter().map(ApiKey::from).collect())
}

/// Updates the times at which keys were last used. Locks the rows in order of key id.
pub async fn touch(conn: &mut PgConnection, key_ids: &[String], times: &[DateTime<Utc>]) -> crate::Result<()> {
    sqlx::query!(
        "WITH used AS (SELECT key_id, used.time
                       FROM unnest($1::text[], $2::timestamptz[]) AS used (key_id, time) JOIN api_keys USING (key_id)
                       ORDER BY key_id FOR UPDATE OF api_keys)
         UPDATE api_keys SET last_used_time = GREATEST(last_used_time, used.time) FROM used WHERE api_keys.key_id = used.key_id",
        key_ids,
        times
    )
    .execute(conn)
    .await
    .map(drop).map_err(Into::into)
}
