//! An API key in the cache.

use crate::auth::Caller;
use crate::auth::token::SecretHash;
use crate::refusal::{Reason, Refusal};
use chrono::{DateTime, Utc};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use meterd_domain::access::ActorKind;
use meterd_store::StoreError;
use meterd_store::admin::api_keys::ApiKey;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

/// An API key in the cache. It may be revoked or expired.
pub(super) struct CachedKey {
    pub caller: Arc<Caller>,
    pub hash: SecretHash,
    pub expire_time: Option<DateTime<Utc>>,
    revoked: bool,
    /// 0: the default of the replica.
    requests_per_second: i32,
    pub limiter: Arc<DefaultDirectRateLimiter>,
    /// The time of the last accepted call, in microseconds since 1970. 0: never used.
    pub last_use: AtomicI64,
    /// The value of `last_use` that is stored in the database.
    pub stored_last_use: AtomicI64,
}

impl CachedKey {
    /// Creates the entry of a row. Keeps the rate limiter and the times of use of the `previous` entry of the same key.
    ///
    /// # Errors
    /// If the stored hash is not a SHA-256 hash.
    pub fn from_row(
        row: ApiKey,
        previous: Option<&Self>,
        default_requests_per_second: NonZeroU32,
    ) -> meterd_store::Result<Self> {
        let hash = row.secret_hash.as_slice().try_into().map_err(|_| {
            StoreError::inconsistent(format!("the hash of API key {} is not a SHA-256 hash", row.key_id))
        })?;
        let own_limit = u32::try_from(row.requests_per_second).ok().and_then(NonZeroU32::new);
        let quota = Quota::per_second(own_limit.unwrap_or(default_requests_per_second));
        let copied = |field: fn(&Self) -> &AtomicI64| {
            AtomicI64::new(previous.map_or(0, |previous| field(previous).load(Ordering::Relaxed)))
        };
        Ok(Self {
            caller: Arc::new(Caller {
                kind: ActorKind::ApiKey,
                id: row.key_id,
                name: row.name,
                grants: row.grants,
                valid_until: None,
            }),
            hash: SecretHash(hash),
            expire_time: row.expire_time,
            revoked: row.revoke_time.is_some(),
            requests_per_second: row.requests_per_second,
            limiter: previous
                .filter(|previous| previous.requests_per_second == row.requests_per_second)
                .map_or_else(|| Arc::new(RateLimiter::direct(quota)), |previous| previous.limiter.clone()),
            last_use: copied(|key| &key.last_use),
            stored_last_use: copied(|key| &key.stored_last_use),
        })
    }

    /// Checks that the key is neither revoked nor expired.
    pub fn check(&self, now: DateTime<Utc>) -> Result<(), Refusal> {
        if self.revoked {
            return Err(Refusal::new(Reason::ApiKeyRevoked, "the API key was revoked"));
        }
        if self.expire_time.is_some_and(|expires| expires <= now) {
            return Err(Refusal::new(Reason::CredentialsExpired, "the API key has expired"));
        }
        Ok(())
    }
}
