//! Creates, reads, rotates and revokes API keys. The server and `meterd keys --direct` use the same functions.

mod spec;

pub use spec::{GrantInput, KeySpec, NewKey};

use super::token;
use crate::engine::Engine;
use crate::fields::{Fields, UnixTime};
use crate::idempotency::{CreateCall, Created, Idempotency};
use crate::paging::{Page, PageRequest};
use crate::refusal::{Reason, Refusal};
use chrono::{DateTime, TimeDelta, Utc};
use meterd_domain::event::ID_BYTES_MAX;
use meterd_store::admin::api_keys::{self as store, ApiKey, NewApiKey};
use sqlx::PgConnection;

/// Maximum number of keys that are neither revoked nor expired.
pub const LIVE_KEYS_MAX: i64 = 10_000;
const OVERLAP_DEFAULT: TimeDelta = TimeDelta::hours(24);
const OVERLAP_MAX: TimeDelta = TimeDelta::days(90);

/// A new key with its token. The token is not stored and cannot be shown again.
pub struct CreatedKey {
    pub key: ApiKey,
    pub token: String,
}

/// A rotation of a key, unchecked.
#[derive(Debug)]
pub struct Rotation {
    pub key_id: String,
    /// How long the old key stays valid. `None`: the default.
    pub overlap: Option<TimeDelta>,
    /// When the new key expires. `None`: it has the same lifetime as the old key.
    pub expire_time: Option<UnixTime>,
}

/// A rotated key.
pub struct Rotated {
    pub key: ApiKey,
    pub old: ApiKey,
}

/// Which keys to list.
#[derive(Debug)]
pub struct KeyQuery {
    /// Only keys that are neither revoked nor expired.
    pub live_only: bool,
    pub page: PageRequest<KeyCursor>,
}

/// Create time and id of the last key of a page.
pub type KeyCursor = (DateTime<Utc>, String);

fn check_id(key_id: &str) -> Result<(), Refusal> {
    let mut fields = Fields::default();
    fields.required("key_id", key_id, ID_BYTES_MAX);
    fields.finish()
}

fn not_found(key_id: &str) -> Refusal {
    Refusal::new(Reason::ApiKeyNotFound, format!("no API key {:?}", token::without_secrets(key_id)))
}

/// Makes the replica read its keys again. If it fails, the replica reads them half a second later.
async fn refresh(engine: &Engine) {
    drop(engine.keys.refresh().await);
}

/// Creates a key.
pub async fn create(
    engine: &Engine,
    key: NewKey,
    idempotency: Idempotency<ApiKey>,
) -> Result<Created<CreatedKey>, Refusal> {
    let now = engine.clock.now();
    let spec = key.check_with(now, |fields| idempotency.check(fields))?;
    let mut creation = match idempotency.begin(engine).await? {
        CreateCall::New(creation) => creation,
        CreateCall::Repeat(answer) => return Ok(Created::Repeat(answer)),
    };
    let created = create_in(creation.conn(), &spec, now).await?;
    creation.commit(&created.key).await?;
    refresh(engine).await;
    Ok(Created::New(created))
}

/// Creates a key in the caller's transaction.
pub async fn create_in(conn: &mut PgConnection, spec: &KeySpec, now: DateTime<Utc>) -> Result<CreatedKey, Refusal> {
    let version = store::next_version(conn).await?;
    insert(conn, version, spec, None, now).await
}

async fn insert(
    conn: &mut PgConnection,
    version: i64,
    spec: &KeySpec,
    rotated_from: Option<&str>,
    now: DateTime<Utc>,
) -> Result<CreatedKey, Refusal> {
    if store::live_count(conn, now).await? >= LIVE_KEYS_MAX {
        let message = format!("there are {LIVE_KEYS_MAX} live API keys: revoke some");
        return Err(Refusal::new(Reason::TooManyApiKeys, message));
    }
    let new = token::new();
    let key = NewApiKey {
        key_id: &new.key_id,
        secret_hash: &new.hash.0,
        name: &spec.name,
        grants: &spec.grants,
        requests_per_second: spec.requests_per_second,
        expire_time: spec.expire_time,
        rotated_from,
    };
    Ok(CreatedKey { key: store::insert(conn, version, &key).await?, token: new.token })
}

/// Returns a key.
pub async fn get(engine: &Engine, key_id: &str) -> Result<ApiKey, Refusal> {
    check_id(key_id)?;
    existing(&mut *engine.pool.acquire().await?, key_id).await
}

async fn existing(conn: &mut PgConnection, key_id: &str) -> Result<ApiKey, Refusal> {
    store::find(conn, key_id).await?.ok_or_else(|| not_found(key_id))
}

/// Lists keys, the oldest first.
pub async fn list(engine: &Engine, query: KeyQuery) -> Result<Page<ApiKey, KeyCursor>, Refusal> {
    let mut fields = Fields::default();
    let size = query.page.check_size(&mut fields);
    fields.finish()?;
    let after = query.page.after?;
    let after = after.as_ref().map(|(time, key_id)| (*time, key_id.as_str()));
    let live_at = query.live_only.then(|| engine.clock.now());
    let rows = store::list(&engine.pool, live_at, after, size + 1).await?;
    Ok(Page::of(rows, size, |last| (last.create_time, last.key_id.clone())))
}

/// Revokes a key. Every replica rejects it within half a second.
pub async fn revoke(engine: &Engine, key_id: &str) -> Result<ApiKey, Refusal> {
    check_id(key_id)?;
    let mut tx = engine.pool.begin().await?;
    let version = store::next_version(&mut tx).await?;
    let key = store::revoke(&mut tx, version, key_id).await?.ok_or_else(|| not_found(key_id))?;
    tx.commit().await?;
    refresh(engine).await;
    Ok(key)
}

/// Creates a key that replaces an old one, which stays valid for the overlap. Also returns the token of the new key.
pub async fn rotate(
    engine: &Engine,
    rotation: Rotation,
    idempotency: Idempotency<Rotated>,
) -> Result<Created<(Rotated, String)>, Refusal> {
    let now = engine.clock.now();
    let mut fields = Fields::default();
    fields.required("key_id", &rotation.key_id, ID_BYTES_MAX);
    let overlap = rotation.overlap.unwrap_or(OVERLAP_DEFAULT);
    if !(TimeDelta::zero()..=OVERLAP_MAX).contains(&overlap) {
        fields.wrong("overlap", format!("must be from 0 to {} days", OVERLAP_MAX.num_days()));
    }
    let expire_time = spec::check_expire_time(&mut fields, "expire_time", rotation.expire_time, now);
    idempotency.check(&mut fields);
    fields.finish()?;
    let mut creation = match idempotency.begin(engine).await? {
        CreateCall::New(creation) => creation,
        CreateCall::Repeat(answer) => return Ok(Created::Repeat(answer)),
    };
    let (created, old) = replace(creation.conn(), &rotation.key_id, overlap, expire_time, now).await?;
    let rotated = Rotated { key: created.key, old };
    creation.commit(&rotated).await?;
    refresh(engine).await;
    Ok(Created::New((rotated, created.token)))
}

/// Creates the new key of a rotation, and lets the old key expire after the overlap.
async fn replace(
    conn: &mut PgConnection,
    key_id: &str,
    overlap: TimeDelta,
    expire_time: Option<DateTime<Utc>>,
    now: DateTime<Utc>,
) -> Result<(CreatedKey, ApiKey), Refusal> {
    // This locks all keys, so that the old key cannot be revoked meanwhile.
    let version = store::next_version(conn).await?;
    let old = existing(conn, key_id).await?;
    if old.revoke_time.is_some() || old.expire_time.is_some_and(|expires| expires <= now) {
        let message = format!("API key {key_id:?} is revoked or has expired: make a new one");
        return Err(Refusal::new(Reason::ApiKeyNotLive, message));
    }
    let expire_time = expire_time.or_else(|| same_lifetime(&old, now));
    let spec =
        KeySpec { name: old.name, grants: old.grants, requests_per_second: old.requests_per_second, expire_time };
    let created = insert(conn, version, &spec, Some(key_id), now).await?;
    // Each key has its own version, because readers page by it.
    let version = store::next_version(conn).await?;
    let old = store::expire_by(conn, version, key_id, now + overlap).await?.ok_or_else(|| not_found(key_id))?;
    Ok((created, old))
}

/// Returns when a key that is created now expires, if it has the lifetime of this key.
fn same_lifetime(key: &ApiKey, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
    let end = key.expire_time?;
    // The create time is from the clock of the database, which may be ahead.
    Some(end.max(now + (end - key.create_time)))
}
