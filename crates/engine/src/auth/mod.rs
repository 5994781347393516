//! Identifies callers and checks what they may do.

mod jwt;
mod key_cache;
pub mod keys;
mod lookups;
pub mod token;

pub use jsonwebtoken::Algorithm;
pub use jwt::JwtConfig;
pub use key_cache::KeyCache;

use crate::clock::Clock;
use crate::counters::Counters;
use crate::refusal::{Reason, Refusal, shown};
use chrono::{DateTime, Utc};
use jwt::Jwt;
use lookups::{Lookup, Lookups};
use meterd_domain::access::{ActorKind, Grants, Scope};
use std::future::Future;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// The caller of a request, with its permissions.
#[derive(Clone, Debug)]
pub struct Caller {
    pub kind: ActorKind,
    /// The id of an API key, or the subject of a token. Empty without credentials.
    pub id: String,
    /// The name of an API key. Empty for other callers.
    pub name: String,
    pub grants: Grants,
    /// The time until which a token of the identity provider is accepted. `None` for API keys: the key cache knows when they end.
    pub valid_until: Option<DateTime<Utc>>,
}

impl Caller {
    /// Returns the caller without credentials, who may do everything. For servers that do not require credentials.
    pub fn anybody() -> Self {
        let (id, name) = (String::new(), String::new());
        Self { kind: ActorKind::Anybody, id, name, grants: Grants::all(), valid_until: None }
    }

    /// Returns a text that identifies the caller in the database: kind and id. Empty for callers without credentials.
    pub fn principal(&self) -> String {
        if self.id.is_empty() { String::new() } else { format!("{}:{}", self.kind as i32, self.id) }
    }

    /// Rejects a caller that does not have this scope.
    pub fn check_scope(&self, scope: Scope) -> Result<(), Refusal> {
        if self.grants.has(scope) {
            return Ok(());
        }
        let message = format!("this call needs the scope {}, which the key does not have", scope.name());
        Err(Refusal::new(Reason::ScopeMissing, message).with("scope", scope.name()))
    }

    /// Rejects a caller whose scope does not cover this client.
    pub fn check_client(&self, scope: Scope, client_id: &str) -> Result<(), Refusal> {
        if self.grants.covers(scope, client_id) {
            return Ok(());
        }
        let message = format!("the key is not for client {}", shown(client_id));
        Err(Refusal::new(Reason::ClientNotCovered, message))
    }

    /// Rejects a caller who may not know the prices for this client, because no scope covers it.
    pub fn check_prices(&self, client_id: &str) -> Result<(), Refusal> {
        let covers = |clients: &[String]| clients.iter().any(|of| of == client_id);
        match self.grants.clients_of_prices() {
            Some(clients) if !covers(&clients) => self.check_client(Scope::Read, client_id),
            _ => Ok(()),
        }
    }

    /// Rejects a caller whose scope does not cover all clients.
    pub fn check_all_clients(&self, scope: Scope) -> Result<(), Refusal> {
        if self.grants.covers_all(scope) {
            return Ok(());
        }
        let message =
            "the key is for some clients only, and the call is for all of them: name one of them if it takes one";
        Err(Refusal::new(Reason::ClientNotCovered, message))
    }
}

fn rate_limited(delay: Duration) -> Refusal {
    let message = "the key has had its calls of this second; send again later, or ask an admin for more";
    Refusal::exhausted(Reason::RateLimited, message, delay.max(Duration::from_millis(1)))
}

/// How callers are identified.
#[derive(Clone, Debug)]
pub struct AuthConfig {
    /// Whether calls need credentials. If not, every caller may do everything.
    pub required: bool,
    /// Calls per second with a key that has no limit of its own.
    pub requests_per_second: NonZeroU32,
    /// An identity provider whose tokens are accepted as well as API keys.
    pub jwt: Option<JwtConfig>,
}

impl AuthConfig {
    /// Checks that the settings of the identity provider can be used.
    pub fn check(&self) -> anyhow::Result<()> {
        self.issuer().map(drop)
    }

    fn issuer(&self) -> anyhow::Result<Option<Jwt>> {
        self.jwt.as_ref().map(|jwt| Jwt::new(jwt, self.requests_per_second)).transpose()
    }
}

/// Identifies callers by their credentials.
pub struct Auth {
    required: bool,
    pub keys: Arc<KeyCache>,
    jwt: Option<Jwt>,
    anybody: Arc<Caller>,
    lookups: Lookups,
    clock: Clock,
}

impl Auth {
    /// Creates it with the cached keys of the deployment.
    ///
    /// # Errors
    /// If the settings of the identity provider cannot be used.
    pub fn new(config: &AuthConfig, keys: Arc<KeyCache>, clock: Clock) -> anyhow::Result<Arc<Self>> {
        let (required, jwt) = (config.required, config.issuer()?);
        let (anybody, lookups) = (Arc::new(Caller::anybody()), Lookups::default());
        Ok(Arc::new(Self { required, keys, jwt, anybody, lookups, clock }))
    }

    /// Starts the tasks that keep API keys and the keys of the identity provider up to date until `stopping` is true.
    pub fn follow(&self, stopping: &watch::Receiver<bool>) -> Vec<JoinHandle<()>> {
        let issuers = self.jwt.iter().map(|jwt| jwt.follow(stopping.clone()));
        std::iter::once(self.keys.follow(stopping.clone())).chain(issuers).collect()
    }

    /// Returns the caller without credentials.
    pub fn anybody(&self) -> Arc<Caller> {
        self.anybody.clone()
    }

    /// Returns who can call the server now.
    pub fn access(&self) -> Access {
        let now = self.clock.now();
        if !self.required || self.jwt.is_some() || self.keys.has_admin(now) {
            Access::Full
        } else if self.keys.has_live(now) {
            Access::WithoutAdmin
        } else {
            Access::Nobody
        }
    }

    /// Returns the caller of this token, and counts a call of it. `token` is only called if credentials are required. `connection`
    /// has the counts of the connection that the call came on.
    pub async fn authenticate<'a>(
        &self,
        token: impl FnOnce() -> Result<&'a str, Refusal>,
        connection: Option<&Arc<Counters>>,
    ) -> Result<Arc<Caller>, Refusal> {
        if !self.required {
            return Ok(self.anybody());
        }
        let token = token()?;
        let now = self.clock.now();
        let lookup = Lookup { lookups: &self.lookups, connection };
        match (token::parse(token), &self.jwt) {
            (Some((key_id, hash)), _) => self.keys.admit(key_id, &hash, lookup, now).await,
            (None, Some(jwt)) if !token.starts_with(token::PREFIX) => jwt.admit(token, lookup, now).await,
            (None, _) => {
                let message = "what the header `authorization` presents is no API key of this deployment";
                Err(Refusal::new(Reason::CredentialsInvalid, message))
            }
        }
    }

    /// Waits until the credentials of the caller are no longer valid, and returns the reason.
    pub fn ended(self: &Arc<Self>, caller: &Arc<Caller>) -> impl Future<Output = Refusal> + Send + use<> {
        let (auth, caller) = (self.clone(), caller.clone());
        async move {
            match caller.kind {
                ActorKind::ApiKey => auth.keys.ended(&caller.id, &auth.clock).await,
                ActorKind::Jwt => {
                    while let Some(sleep) = time_left(caller.valid_until, auth.clock.now()) {
                        tokio::time::sleep(sleep).await;
                    }
                    jwt::expired()
                }
                _ => std::future::pending().await,
            }
        }
    }
}

/// Who can call a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The server can be called, and keys can be created.
    Full,
    /// There are live keys, but none of them can create others.
    WithoutAdmin,
    /// Credentials are required, and there is no live key.
    Nobody,
}

/// Maximum time of one sleep until an expire time. After it, the clock is read again, because it may have been set.
const SLEEP_MAX: Duration = Duration::from_secs(60);

/// Returns the time until an expire time, at most [`SLEEP_MAX`]. Returns `None` if the expire time has passed. Without an expire
/// time, returns [`SLEEP_MAX`].
fn time_left(expire_time: Option<DateTime<Utc>>, now: DateTime<Utc>) -> Option<Duration> {
    let Some(expire_time) = expire_time else { return Some(SLEEP_MAX) };
    let left = (expire_time - now).to_std().ok().filter(|left| !left.is_zero())?;
    Some(left.clamp(Duration::from_millis(1), SLEEP_MAX))
}
