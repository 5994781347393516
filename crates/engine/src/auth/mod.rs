//! Identifies callers and checks what they may do.

mod jwt;
pub mod keys;
mod lookups;
mod ring;
pub mod token;

pub use jsonwebtoken::Algorithm;
pub use jwt::JwtConfig;
pub use ring::KeyRing;

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

/// Who calls.
#[derive(Clone, Debug)]
pub struct Caller {
    pub kind: ActorKind,
    /// A key's id, or the subject of a token.
    pub id: String,
    /// A key's name.
    pub name: String,
    pub grants: Grants,
    /// When a token of the identity provider ends; keys end where they are kept.
    pub good_until: Option<DateTime<Utc>>,
}

impl Caller {
    /// Whoever calls a server that asks for no key.
    pub fn anybody() -> Self {
        let (id, name) = (String::new(), String::new());
        Self { kind: ActorKind::Anybody, id, name, grants: Grants::everything(), good_until: None }
    }

    /// Names the caller among all others, in the database: kind and id. Empty for callers without credentials.
    pub fn principal(&self) -> String {
        if self.id.is_empty() { String::new() } else { format!("{}:{}", self.kind as i32, self.id) }
    }

    /// The error of a caller without this scope.
    pub fn check_scope(&self, scope: Scope) -> Result<(), Refusal> {
        if self.grants.has(scope) {
            return Ok(());
        }
        let message = format!("this call needs the scope {}, which the key does not have", scope.name());
        Err(Refusal::new(Reason::ScopeMissing, message).with("scope", scope.name()))
    }

    /// The error of a caller whose scope does not cover this client.
    pub fn check_client(&self, scope: Scope, client_id: &str) -> Result<(), Refusal> {
        if self.grants.covers(scope, client_id) {
            return Ok(());
        }
        let message = format!("the key is not for client {}", shown(client_id));
        Err(Refusal::new(Reason::ClientNotCovered, message))
    }

    /// The error of a caller whose scope covers some clients only.
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
    pub keys: Arc<KeyRing>,
    jwt: Option<Jwt>,
    anybody: Arc<Caller>,
    lookups: Lookups,
    clock: Clock,
}

impl Auth {
    /// Creates it over the keys of the deployment.
    ///
    /// # Errors
    /// If the settings of the identity provider cannot be used.
    pub fn new(config: &AuthConfig, keys: Arc<KeyRing>, clock: Clock) -> anyhow::Result<Arc<Self>> {
        let (required, jwt) = (config.required, config.issuer()?);
        let (anybody, lookups) = (Arc::new(Caller::anybody()), Lookups::default());
        Ok(Arc::new(Self { required, keys, jwt, anybody, lookups, clock }))
    }

    /// Keeps keys up to date until `stopping` turns true.
    pub fn follow(&self, stopping: &watch::Receiver<bool>) -> Vec<JoinHandle<()>> {
        let issuers = self.jwt.iter().map(|jwt| jwt.follow(stopping.clone()));
        std::iter::once(self.keys.follow(stopping.clone())).chain(issuers).collect()
    }

    /// The caller without credentials.
    pub fn anybody(&self) -> Arc<Caller> {
        self.anybody.clone()
    }

    /// Who can call now.
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

    /// Returns once the caller's key is no longer good, with the reason.
    pub fn ended(self: &Arc<Self>, caller: &Arc<Caller>) -> impl Future<Output = Refusal> + Send + use<> {
        let (auth, caller) = (self.clone(), caller.clone());
        async move {
            match caller.kind {
                ActorKind::ApiKey => auth.keys.ended(&caller.id, &auth.clock).await,
                ActorKind::Jwt => {
                    while let Some(left) = left(caller.good_until, auth.clock.now()) {
                        tokio::time::sleep(left).await;
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
    /// Somebody can call, and somebody can create keys.
    Full,
    /// There are live keys, but none of them can create others.
    WithoutAdmin,
    /// Credentials are required, and there are none.
    Nobody,
}

/// Longest sleep towards an end: the clock may be set meanwhile.
const SLEEP_MAX: Duration = Duration::from_secs(60);

/// How long to sleep until the clock is looked at again. Nothing, once the end has come.
fn left(end: Option<DateTime<Utc>>, now: DateTime<Utc>) -> Option<Duration> {
    let Some(end) = end else { return Some(SLEEP_MAX) };
    let left = (end - now).to_std().ok().filter(|left| !left.is_zero())?;
    Some(left.clamp(Duration::from_millis(1), SLEEP_MAX))
}
