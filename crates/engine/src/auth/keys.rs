//! Making, rotating and ending keys: what KeyService does, and `meterd keys --direct` without a server.

use super::token;
use crate::refusal::{Reason, Refusal};
use chrono::{DateTime, TimeDelta, Utc};
use meterd_domain::access::Grants;
use meterd_store::api_keys::{self, ApiKey, NewApiKey};
use sqlx::PgConnection;

/// Most keys that are neither revoked nor expired.
pub const LIVE_KEYS_MAX: i64 = 10_000;

/// What a new key is to be.
pub struct KeySpec {
    pub name: String,
    pub grants: Grants,
    /// 0: what the replica's setting says.
    pub requests_per_second: i32,
    pub expire_time: Option<DateTime<Utc>>,
}

/// A key with its token, which is nowhere else.
pub struct Made {
    pub key: ApiKey,
    pub token: String,
}

fn not_found(key_id: &str) -> Refusal {
    Refusal::new(Reason::ApiKeyNotFound, format!("no API key {:?}", token::without_secrets(key_id)))
}

/// One key, or the error that there is none.
pub async fn existing(conn: &mut PgConnection, key_id: &str) -> Result<ApiKey, Refusal> {
    api_keys::find(conn, key_id).await?.ok_or_else(|| not_found(key_id))
}

/// Makes a key, in the caller's transaction.
pub async fn create(conn: &mut PgConnection, spec: &KeySpec, now: DateTime<Utc>) -> Result<Made, Refusal> {
    let version = api_keys::next_version(conn).await?;
    insert(conn, version, spec, None, now).await
}

async fn insert(
    conn: &mut PgConnection,
    version: i64,
    spec: &KeySpec,
    rotated_from: Option<&str>,
    now: DateTime<Utc>,
) -> Result<Made, Refusal> {
    if api_keys::live_count(conn, now).await? >= LIVE_KEYS_MAX {
        let message = format!("there are {LIVE_KEYS_MAX} live API keys: revoke some");
        return Err(Refusal::new(Reason::TooManyApiKeys, message));
    }
    let made = token::new();
    let key = NewApiKey {
        key_id: &made.key_id,
        secret_hash: &made.hash.0,
        name: &spec.name,
        grants: &spec.grants,
        requests_per_second: spec.requests_per_second,
        expire_time: spec.expire_time,
        rotated_from,
    };
    Ok(Made { key: api_keys::insert(conn, version, &key).await?, token: made.token })
}

/// Makes a new key in the place of an old one, which ends after `overlap`. Gives both. Without an expire time of its own
/// the new key is good for as long as the old one was made for.
pub async fn rotate(
    conn: &mut PgConnection,
    key_id: &str,
    overlap: TimeDelta,
    expire_time: Option<DateTime<Utc>>,
    now: DateTime<Utc>,
) -> Result<(Made, ApiKey), Refusal> {
    // First, so that nobody revokes the old key meanwhile.
    let version = api_keys::next_version(conn).await?;
    let old = existing(conn, key_id).await?;
    if old.revoke_time.is_some() || old.expire_time.is_some_and(|expires| expires <= now) {
        let message = format!("API key {key_id:?} is revoked or has expired: make a new one");
        return Err(Refusal::new(Reason::ApiKeyNotLive, message));
    }
    let expire_time = expire_time.or_else(|| same_life(&old, now));
    let spec =
        KeySpec { name: old.name, grants: old.grants, requests_per_second: old.requests_per_second, expire_time };
    let made = insert(conn, version, &spec, Some(key_id), now).await?;
    // A version for each, as readers page by it.
    let version = api_keys::next_version(conn).await?;
    let old = api_keys::expire_by(conn, version, key_id, now + overlap).await?.ok_or_else(|| not_found(key_id))?;
    Ok((made, old))
}

/// When a key that begins now ends, if it is good for as long as this one; never, if this one does not end.
fn same_life(key: &ApiKey, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
    let end = key.expire_time?;
    // The database's clock set the beginning, and may be ahead.
    Some(end.max(now + (end - key.create_time)))
}

/// Ends a key.
pub async fn revoke(conn: &mut PgConnection, key_id: &str) -> Result<ApiKey, Refusal> {
    let version = api_keys::next_version(conn).await?;
    api_keys::revoke(conn, version, key_id).await?.ok_or_else(|| not_found(key_id))
}
