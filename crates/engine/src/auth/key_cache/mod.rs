//! The API keys of the deployment in memory, at most half a second older than the database.

mod key;

use super::lookups::Lookup;
use super::token::SecretHash;
use super::{Caller, rate_limited, time_left};
use crate::clock::Clock;
use crate::refusal::{Reason, Refusal};
use chrono::{DateTime, Utc};
use governor::clock::{Clock as _, DefaultClock};
use key::CachedKey;
use meterd_domain::access::Scope;
use meterd_store::StoreError;
use meterd_store::admin::api_keys::{self, ApiKey};
use meterd_store::database::connect;
use sqlx::PgPool;
use sqlx::postgres::PgConnectOptions;
use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::atomic::Ordering;
use std::sync::{Arc, RwLock};
use std::time::Duration;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

/// How often changed keys are read. A revoked key is rejected after at most this time and the time of the read.
const REFRESH_EVERY: Duration = Duration::from_millis(500);
/// How often all keys are read again. After a failover, the database may be an older copy, and have other changes with versions
/// that were already read.
const RELOAD_EVERY: Duration = Duration::from_secs(10);
/// The cache has its own connections, so that reading a revocation does not wait for calls.
const CONNECTIONS_MAX: u32 = 2;
/// How often the times of last use are stored.
const STORE_LAST_USE_EVERY: Duration = Duration::from_secs(30);
/// An unknown key makes the cache read changes at once, so that a new key is valid on every replica. This is the minimum time
/// between two such reads, however many unknown keys are presented.
const REFRESH_FOR_UNKNOWN_EVERY: Duration = Duration::from_millis(100);
/// Maximum number of keys that one statement reads.
const PAGE_KEYS: i64 = 1_000;
/// Timeout of a statement. If the database does not answer, the cache keeps the keys that it has.
const DATABASE_TIMEOUT: Duration = Duration::from_secs(5);

/// The start times of reads.
#[derive(Default)]
struct ReadTimes {
    /// The last read, even if it failed.
    attempted: Option<Instant>,
    /// The last read that succeeded.
    succeeded: Option<Instant>,
    /// The last successful read of all keys.
    reloaded: Option<Instant>,
}

/// The API keys of the deployment in memory.
pub struct KeyCache {
    pool: PgPool,
    keys: RwLock<HashMap<String, Arc<CachedKey>>>,
    /// The version of the newest change that was read.
    version: watch::Sender<i64>,
    read_times: Mutex<ReadTimes>,
    default_requests_per_second: NonZeroU32,
}

impl KeyCache {
    /// Reads all keys. Keys without a rate limit of their own have the limit `default_requests_per_second`.
    pub async fn load(
        options: &PgConnectOptions,
        default_requests_per_second: NonZeroU32,
    ) -> meterd_store::Result<Arc<Self>> {
        let pool = connect::pool(options.clone().application_name("meterd keys"), CONNECTIONS_MAX);
        let (version, _) = watch::channel(0);
        let (keys, read_times) = (RwLock::default(), Mutex::default());
        let cache = Arc::new(Self { pool, keys, version, read_times, default_requests_per_second });
        cache.refresh().await?;
        Ok(cache)
    }

    /// Starts a task that keeps the cache up to date until `stopping` is true.
    pub fn follow(self: &Arc<Self>, mut stopping: watch::Receiver<bool>) -> JoinHandle<()> {
        let cache = self.clone();
        tokio::spawn(async move {
            let (mut stored_at, mut is_failing) = (Instant::now(), false);
            loop {
                tokio::select! {
                    _ = stopping.wait_for(|stopping| *stopping) => break,
                    () = tokio::time::sleep(REFRESH_EVERY) => {}
                }
                match cache.refresh().await {
                    Ok(()) => is_failing = false,
                    // Logged once, not twice a second. Until the next successful read, keys that are revoked meanwhile are accepted.
                    Err(error) if !std::mem::replace(&mut is_failing, true) => {
                        tracing::warn!(%error, "the API keys could not be read; the keys read before stay valid");
                    }
                    Err(_) => {}
                }
                if stored_at.elapsed() >= STORE_LAST_USE_EVERY {
                    cache.store_last_use().await;
                    stored_at = Instant::now();
                }
            }
            cache.store_last_use().await;
        })
    }

    /// Reads the keys that have changed.
    pub async fn refresh(&self) -> meterd_store::Result<()> {
        let mut times = self.read_times.lock().await;
        self.read(&mut times).await
    }

    async fn read(&self, times: &mut ReadTimes) -> meterd_store::Result<()> {
        let started = Instant::now();
        times.attempted = Some(started);
        let all = times.reloaded.is_none_or(|reloaded| reloaded.elapsed() >= RELOAD_EVERY);
        let mut version = if all { 0 } else { *self.version.borrow() };
        let mut read = HashMap::new();
        loop {
            let changed = self.changed_since(version).await?;
            let Some(last) = changed.last() else { break };
            version = last.version;
            for row in changed {
                let key_id = row.key_id.clone();
                let previous = self.get(&key_id);
                let key = CachedKey::from_row(row, previous.as_deref(), self.default_requests_per_second)?;
                read.insert(key_id, Arc::new(key));
            }
        }
        if all {
            *self.keys.write().expect("not poisoned") = read;
            times.reloaded = Some(started);
        } else if !read.is_empty() {
            self.keys.write().expect("not poisoned").extend(read);
        }
        self.version.send_if_modified(|current| std::mem::replace(current, version) != version || all);
        times.succeeded = Some(started);
        Ok(())
    }

    /// Returns a page of the keys that have changed since this version. Closes the connection if the statement times out.
    async fn changed_since(&self, version: i64) -> meterd_store::Result<Vec<ApiKey>> {
        let mut conn = self.pool.acquire().await?;
        let read = timeout(DATABASE_TIMEOUT, api_keys::changed_since(&mut conn, version, PAGE_KEYS)).await;
        read.unwrap_or_else(|_| {
            conn.close_on_drop();
            Err(StoreError::Timeout)
        })
    }

    fn get(&self, key_id: &str) -> Option<Arc<CachedKey>> {
        self.keys.read().expect("not poisoned").get(key_id).cloned()
    }

    /// Returns whether there is a key that is neither revoked nor expired.
    pub fn has_live(&self, now: DateTime<Utc>) -> bool {
        self.keys.read().expect("not poisoned").values().any(|key| key.check(now).is_ok())
    }

    /// Returns whether there is a live key that can create keys, which needs the scope admin for all clients.
    pub fn has_admin(&self, now: DateTime<Utc>) -> bool {
        let keys = self.keys.read().expect("not poisoned");
        keys.values().any(|key| key.check(now).is_ok() && key.caller.grants.covers_all(Scope::Admin))
    }

    /// Returns the caller of a key, and counts a call of it.
    ///
    /// # Errors
    /// If the key does not exist, if the secret is wrong, if the key is revoked or expired, or if it has reached its rate limit.
    pub(super) async fn admit(
        &self,
        key_id: &str,
        hash: &SecretHash,
        lookup: Lookup<'_>,
        now: DateTime<Utc>,
    ) -> Result<Arc<Caller>, Refusal> {
        let key = match self.get(key_id) {
            Some(key) => Some(key),
            None => {
                let _permits = lookup.wait()?;
                self.refresh_for_unknown().await?;
                self.get(key_id)
            }
        };
        // The answer does not show whether the key exists.
        let key = key.filter(|key| key.hash.matches(hash)).ok_or_else(|| {
            let message = "what the header `authorization` presents is no API key of this deployment";
            Refusal::new(Reason::CredentialsInvalid, message)
        })?;
        key.check(now)?;
        let counted = key.limiter.check();
        counted.map_err(|later| rate_limited(later.wait_time_from(DefaultClock::default().now())))?;
        key.last_use.store(now.timestamp_micros(), Ordering::Relaxed);
        Ok(key.caller.clone())
    }

    /// Reads the changes, because an unknown key may have been created a moment ago. Callers that wait share one read.
    async fn refresh_for_unknown(&self) -> Result<(), Refusal> {
        let asked = Instant::now();
        let mut times = self.read_times.lock().await;
        if times.succeeded.is_some_and(|succeeded| succeeded >= asked) {
            return Ok(());
        }
        match times.attempted {
            // A read for another caller has failed since. Its error is the answer for all callers that waited for it.
            Some(attempted) if attempted >= asked => {
                return Err(Refusal::database_unavailable(StoreError::Timeout));
            }
            Some(attempted) => tokio::time::sleep_until(attempted + REFRESH_FOR_UNKNOWN_EVERY).await,
            None => {}
        }
        Ok(self.read(&mut times).await?)
    }

    /// Waits until the key is revoked, expired or removed, and returns the reason.
    pub async fn ended(&self, key_id: &str, clock: &Clock) -> Refusal {
        let mut version = self.version.subscribe();
        loop {
            version.borrow_and_update();
            let key = self.get(key_id);
            let Some(key) = key else { return Refusal::new(Reason::CredentialsInvalid, "the API key is gone") };
            let now = clock.now();
            if let Err(error) = key.check(now) {
                return error;
            }
            let sleep = time_left(key.expire_time, now).unwrap_or_default();
            tokio::select! {
                changed = version.changed() => if changed.is_err() { std::future::pending::<()>().await },
                () = tokio::time::sleep(sleep), if key.expire_time.is_some() => {}
            }
        }
    }

    /// Closes the connections of the cache.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// Stores the times of last use that are not stored yet. If it fails, the next call stores them.
    async fn store_last_use(&self) {
        let used: Vec<_> = {
            let keys = self.keys.read().expect("not poisoned");
            let used = keys.values().map(|key| (key.clone(), key.last_use.load(Ordering::Relaxed)));
            used.filter(|(key, last_use)| *last_use > key.stored_last_use.load(Ordering::Relaxed)).collect()
        };
        if used.is_empty() {
            return;
        }
        let key_ids: Vec<String> = used.iter().map(|(key, _)| key.caller.id.clone()).collect();
        let times: Vec<_> = used.iter().filter_map(|(_, micros)| DateTime::from_timestamp_micros(*micros)).collect();
        let stored = async {
            let mut conn = self.pool.acquire().await?;
            let stored = timeout(DATABASE_TIMEOUT, api_keys::touch(&mut conn, &key_ids, &times)).await;
            stored.unwrap_or_else(|_| {
                conn.close_on_drop();
                Err(StoreError::Timeout)
            })
        };
        match stored.await {
            Ok(()) => used.iter().for_each(|(key, last_use)| key.stored_last_use.store(*last_use, Ordering::Relaxed)),
            Err(error) => tracing::debug!(%error, "the times of last use of API keys could not be stored"),
        }
    }
}
