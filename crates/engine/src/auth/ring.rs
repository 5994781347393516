//! The keys of the deployment in memory, as new as half a second ago.

use super::lookups::Lookup;
use super::token::SecretHash;
use super::{Caller, left, rate_limited};
use crate::clock::Clock;
use crate::refusal::{Reason, Refusal};
use chrono::{DateTime, Utc};
use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use meterd_domain::access::ActorKind;
use meterd_domain::access::Scope;
use meterd_store::StoreError;
use meterd_store::api_keys::{self, ApiKey};
use meterd_store::connect;
use sqlx::PgPool;
use sqlx::postgres::PgConnectOptions;
use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Duration;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

/// How often changes are looked for: a revoked key is refused this much later at most, and a moment.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How often all keys are read again: a database that is an older copy, after a failover say, may have other changes under
/// numbers that were seen already.
const RELOAD_EVERY: Duration = Duration::from_secs(10);
/// Of the ring's own, so that a revoked key is not waited for behind calls.
const CONNECTIONS_MAX: u32 = 2;
/// How often it is noted when keys were last used.
const NOTE_USE_EVERY: Duration = Duration::from_secs(30);
/// Who presents a key that is not known makes the ring look at once, so that a new key is good on every replica; but so
/// often at most, whoever presents whatever.
const LOOK_FOR_UNKNOWN_EVERY: Duration = Duration::from_millis(100);
/// Keys read at once.
const READ_KEYS: i64 = 1_000;
/// A database that does not answer for so long is away: then the keys are those that are known.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// A key that was given out once.
struct Key {
    caller: Arc<Caller>,
    hash: SecretHash,
    expire_time: Option<DateTime<Utc>>,
    revoked: bool,
    requests_per_second: i32,
    limiter: Arc<DefaultDirectRateLimiter>,
    /// When it was last good, in microseconds since 1970, and the same as far as it is noted; 0: never.
    used: AtomicI64,
    noted: AtomicI64,
}

impl Key {
    fn check(&self, now: DateTime<Utc>) -> Result<(), Refusal> {
        if self.revoked {
            return Err(Refusal::new(Reason::ApiKeyRevoked, "the API key was revoked"));
        }
        if self.expire_time.is_some_and(|expires| expires <= now) {
            return Err(Refusal::new(Reason::CredentialsExpired, "the API key has expired"));
        }
        Ok(())
    }
}

/// What has been read, and when.
#[derive(Default)]
struct Looked {
    /// When a look began, whatever became of it.
    tried: Option<Instant>,
    /// When the last one began that told everything.
    done: Option<Instant>,
    /// When the last one began that read all keys.
    reloaded: Option<Instant>,
}

/// The keys.
pub struct KeyRing {
    pool: PgPool,
    keys: RwLock<HashMap<String, Arc<Key>>>,
    /// Of the newest change that is known.
    version: watch::Sender<i64>,
    looked: Mutex<Looked>,
    requests_per_second: NonZeroU32,
}

impl KeyRing {
    /// All keys; those without a limit of their own have this one.
    pub async fn load(options: &PgConnectOptions, requests_per_second: NonZeroU32) -> meterd_store::Result<Arc<Self>> {
        let pool = connect::pool(options.clone().application_name("meterd keys"), CONNECTIONS_MAX);
        let (version, _) = watch::channel(0);
        let ring =
            Arc::new(Self { pool, keys: RwLock::default(), version, looked: Mutex::default(), requests_per_second });
        ring.look().await?;
        Ok(ring)
    }

    /// Keeps the ring up to date until `stopping` turns true.
    pub fn follow(self: &Arc<Self>, mut stopping: watch::Receiver<bool>) -> JoinHandle<()> {
        let ring = self.clone();
        tokio::spawn(async move {
            let (mut noted, mut told) = (Instant::now(), false);
            loop {
                tokio::select! {
                    _ = stopping.wait_for(|stopping| *stopping) => break,
                    () = tokio::time::sleep(LOOK_EVERY) => {}
                }
                match ring.look().await {
                    Ok(()) => told = false,
                    // Once, not twice a second. Who is revoked meanwhile is let in here.
                    Err(error) if !std::mem::replace(&mut told, true) => {
                        tracing::warn!(%error, "the API keys could not be read; those that are known hold");
                    }
                    Err(_) => {}
                }
                if noted.elapsed() >= NOTE_USE_EVERY {
                    ring.note_use().await;
                    noted = Instant::now();
                }
            }
            ring.note_use().await;
        })
    }

    /// Reads what has changed.
    pub async fn look(&self) -> meterd_store::Result<()> {
        let mut looked = self.looked.lock().await;
        self.read(&mut looked).await
    }

    async fn read(&self, looked: &mut Looked) -> meterd_store::Result<()> {
        let began = Instant::now();
        looked.tried = Some(began);
        let all = looked.reloaded.is_none_or(|reloaded| reloaded.elapsed() >= RELOAD_EVERY);
        let mut version = if all { 0 } else { *self.version.borrow() };
        let mut read = HashMap::new();
        loop {
            let changed = self.changed_since(version).await?;
            let Some(last) = changed.last() else { break };
            version = last.version;
            for row in changed {
                let before = self.get(&row.key_id);
                read.insert(row.key_id.clone(), self.key(row, before)?);
            }
        }
        if all {
            *self.keys.write().expect("not poisoned") = read;
            looked.reloaded = Some(began);
        } else if !read.is_empty() {
            self.keys.write().expect("not poisoned").extend(read);
        }
        self.version.send_if_modified(|seen| std::mem::replace(seen, version) != version || all);
        looked.done = Some(began);
        Ok(())
    }

    /// A page of changes. A connection that hangs is not used again.
    async fn changed_since(&self, version: i64) -> meterd_store::Result<Vec<ApiKey>> {
        let mut conn = self.pool.acquire().await?;
        let read = timeout(READ_TIMEOUT, api_keys::changed_since(&mut conn, version, READ_KEYS)).await;
        read.unwrap_or_else(|_| {
            conn.close_on_drop();
            Err(StoreError::Timeout)
        })
    }

    /// A key as it is now; it goes on with the calls that it has had.
    fn key(&self, row: ApiKey, before: Option<Arc<Key>>) -> meterd_store::Result<Arc<Key>> {
        let before = before.as_deref();
        let hash = row
            .secret_hash
            .as_slice()
            .try_into()
            .map_err(|_| StoreError::inconsistent(format!("the hash of API key {} is no SHA-256", row.key_id)))?;
        let own = u32::try_from(row.requests_per_second).ok().and_then(NonZeroU32::new);
        let quota = Quota::per_second(own.unwrap_or(self.requests_per_second));
        let used = |of: fn(&Key) -> &AtomicI64| AtomicI64::new(before.map_or(0, |key| of(key).load(Ordering::Relaxed)));
        Ok(Arc::new(Key {
            caller: Arc::new(Caller {
                kind: ActorKind::ApiKey,
                id: row.key_id,
                name: row.name,
                grants: row.grants,
                good_until: None,
            }),
            hash: SecretHash(hash),
            expire_time: row.expire_time,
            revoked: row.revoke_time.is_some(),
            requests_per_second: row.requests_per_second,
            limiter: before
                .filter(|key| key.requests_per_second == row.requests_per_second)
                .map_or_else(|| Arc::new(RateLimiter::direct(quota)), |key| key.limiter.clone()),
            used: used(|key| &key.used),
            noted: used(|key| &key.noted),
        }))
    }

    fn get(&self, key_id: &str) -> Option<Arc<Key>> {
        self.keys.read().expect("not poisoned").get(key_id).cloned()
    }

    /// Whether somebody may call.
    pub fn has_live(&self, now: DateTime<Utc>) -> bool {
        self.keys.read().expect("not poisoned").values().any(|key| key.check(now).is_ok())
    }

    /// Whether somebody may make keys: a live key is admin for all clients.
    pub fn has_admin(&self, now: DateTime<Utc>) -> bool {
        let keys = self.keys.read().expect("not poisoned");
        keys.values().any(|key| key.check(now).is_ok() && key.caller.grants.covers_all(Scope::Admin))
    }

    /// The holder of the key, if the secret is its own, it is good, and it has a call left.
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
                let _place = lookup.wait()?;
                self.look_for_unknown().await?;
                self.get(key_id)
            }
        };
        // The same answer for an id that is none and for a secret that is not its own.
        let key = key.filter(|key| key.hash.matches(hash)).ok_or_else(|| {
            let message = "what the header `authorization` presents is no API key of this deployment";
            Refusal::new(Reason::CredentialsInvalid, message)
        })?;
        key.check(now)?;
        let counted = key.limiter.check();
        counted.map_err(|later| rate_limited(later.wait_time_from(DefaultClock::default().now())))?;
        key.used.store(now.timestamp_micros(), Ordering::Relaxed);
        Ok(key.caller.clone())
    }

    /// Looks for a key that was made a moment ago. Those who wait for that look together.
    async fn look_for_unknown(&self) -> Result<(), Refusal> {
        let asked = Instant::now();
        let mut looked = self.looked.lock().await;
        if looked.done.is_some_and(|done| done >= asked) {
            return Ok(());
        }
        match looked.tried {
            // Somebody has tried since, and the database was away: it is asked once for all who wait.
            Some(tried) if tried >= asked => return Err(Refusal::database_unavailable(StoreError::Timeout)),
            Some(tried) => tokio::time::sleep_until(tried + LOOK_FOR_UNKNOWN_EVERY).await,
            None => {}
        }
        Ok(self.read(&mut looked).await?)
    }

    /// Returns once the key is no longer good, with the reason.
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
            let sleep = left(key.expire_time, now).unwrap_or_default();
            tokio::select! {
                changed = version.changed() => if changed.is_err() { std::future::pending::<()>().await },
                () = tokio::time::sleep(sleep), if key.expire_time.is_some() => {}
            }
        }
    }

    /// Closes its connections.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// Notes when keys were last used. What is not noted because the database is away is noted the next time.
    async fn note_use(&self) {
        let used: Vec<_> = {
            let keys = self.keys.read().expect("not poisoned");
            let used = keys.values().map(|key| (key.clone(), key.used.load(Ordering::Relaxed)));
            used.filter(|(key, used)| *used > key.noted.load(Ordering::Relaxed)).collect()
        };
        if used.is_empty() {
            return;
        }
        let key_ids: Vec<String> = used.iter().map(|(key, _)| key.caller.id.clone()).collect();
        let times: Vec<_> = used.iter().filter_map(|(_, used)| DateTime::from_timestamp_micros(*used)).collect();
        let touched = async {
            let mut conn = self.pool.acquire().await?;
            let touched = timeout(READ_TIMEOUT, api_keys::touch(&mut conn, &key_ids, &times)).await;
            touched.unwrap_or_else(|_| {
                conn.close_on_drop();
                Err(StoreError::Timeout)
            })
        };
        match touched.await {
            Ok(()) => used.iter().for_each(|(key, used)| key.noted.store(*used, Ordering::Relaxed)),
            Err(error) => tracing::debug!(%error, "when keys were last used could not be noted"),
        }
    }
}
