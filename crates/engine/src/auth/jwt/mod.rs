//! Checks tokens of an identity provider (OpenID Connect), and returns the same kind of caller as for API keys.

mod claims;
mod issuer;
mod signature;

use super::lookups::Lookup;
use super::{Caller, rate_limited};
use crate::refusal::{Reason, Refusal};
use chrono::{DateTime, TimeDelta, Utc};
use claims::Claims;
use governor::clock::{Clock as _, DefaultClock};
use governor::state::keyed::HashMapStateStore;
use governor::{Quota, RateLimiter};
use issuer::IssuerKeys;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, Validation, decode, decode_header};
use meterd_domain::access::ActorKind;
use meterd_domain::access::Grants;
use std::num::NonZeroU32;
use std::sync::Arc;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Maximum size of a token.
const TOKEN_BYTES_MAX: usize = 8 * 1024;
/// Maximum difference between the clocks of the provider and of this machine.
const LEEWAY: TimeDelta = TimeDelta::seconds(60);
/// Maximum number of subjects whose calls are counted at the same time.
const SUBJECTS_MAX: usize = 100_000;

type Limiter = RateLimiter<String, HashMapStateStore<String>, DefaultClock>;

/// An identity provider, and how its tokens are checked.
#[derive(Clone, Debug)]
pub struct JwtConfig {
    pub issuer: String,
    pub audience: String,
    /// The URL of its keys. `None`: the URL is in its OpenID configuration.
    pub jwks_url: Option<String>,
    pub algorithms: Vec<Algorithm>,
    pub scope_claim: String,
    pub clients_claim: String,
}

/// Checks the tokens of one provider.
pub struct Jwt {
    keys: Arc<IssuerKeys>,
    /// The accepted algorithms, with the checks of a token.
    validations: Vec<(Algorithm, Validation)>,
    scope_claim: String,
    clients_claim: String,
    limiter: Limiter,
}

fn invalid(problem: &str) -> Refusal {
    let message = format!("what the header `authorization` presents is no token for this deployment: {problem}");
    Refusal::new(Reason::CredentialsInvalid, message)
}

/// Returns the refusal of a token, without any part of the token.
fn wrong(error: &jsonwebtoken::errors::Error) -> Refusal {
    invalid(match error.kind() {
        ErrorKind::InvalidSignature => "its signature is not the provider's",
        ErrorKind::InvalidIssuer => "its issuer is another one",
        ErrorKind::InvalidAudience => "its audience is another one",
        ErrorKind::MissingRequiredClaim(_) => "it needs the claims exp, iss, aud and sub",
        _ => "it is not well formed",
    })
}

impl Jwt {
    /// Creates the checks.
    ///
    /// # Errors
    /// If a URL of the settings is not secure.
    pub fn new(config: &JwtConfig, requests_per_second: NonZeroU32) -> anyhow::Result<Self> {
        signature::install();
        let validation = |algorithm| {
            let mut validation = Validation::new(algorithm);
            validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
            validation.set_issuer(&[&config.issuer]);
            validation.set_audience(&[&config.audience]);
            // Times are checked here, by the clock that is passed in.
            validation.validate_exp = false;
            (algorithm, validation)
        };
        Ok(Self {
            keys: IssuerKeys::new(&config.issuer, config.jwks_url.as_deref())?,
            validations: config.algorithms.iter().copied().map(validation).collect(),
            scope_claim: config.scope_claim.clone(),
            clients_claim: config.clients_claim.clone(),
            limiter: RateLimiter::hashmap(Quota::per_second(requests_per_second)),
        })
    }

    /// Starts a task that keeps the keys of the provider up to date until `stopping` is true.
    pub fn follow(&self, stopping: watch::Receiver<bool>) -> JoinHandle<()> {
        self.keys.follow(stopping)
    }

    /// Returns the caller of a token, and counts a call of its subject.
    ///
    /// # Errors
    /// If the token is invalid or expired, if it has no scope of meterd, or if its subject has reached the rate limit.
    pub(super) async fn admit(
        &self,
        token: &str,
        lookup: Lookup<'_>,
        now: DateTime<Utc>,
    ) -> Result<Arc<Caller>, Refusal> {
        let claims = self.verify(token, lookup).await?;
        if claims.time("nbf").map_err(invalid)?.is_some_and(|valid_from| valid_from > now + LEEWAY) {
            return Err(invalid("it is not good yet"));
        }
        let expires = claims.time("exp").map_err(invalid)?.ok_or_else(|| invalid("it has no expire time"))?;
        let valid_until = expires + LEEWAY;
        if valid_until <= now {
            return Err(expired());
        }
        let id = claims.subject().map_err(invalid)?;
        let grants = claims.grants(&self.scope_claim, &self.clients_claim).map_err(invalid)?;
        self.count(&id)?;
        if grants == Grants::default() {
            // Such a token may not even do what every API key may do: the provider has users who do not use meterd.
            let message = "the token has none of the scopes meterd:ingest, meterd:read and meterd:admin";
            return Err(Refusal::new(Reason::ScopeMissing, message));
        }
        Ok(Arc::new(Caller { kind: ActorKind::Jwt, id, name: String::new(), grants, valid_until: Some(valid_until) }))
    }

    /// Checks that the provider has signed the token for this deployment, and returns its claims.
    async fn verify(&self, token: &str, lookup: Lookup<'_>) -> Result<Claims, Refusal> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(invalid("it is too long"));
        }
        let header = decode_header(token).map_err(|error| wrong(&error))?;
        let accepted = self.validations.iter().find(|(algorithm, _)| *algorithm == header.alg);
        let (algorithm, validation) =
            accepted.ok_or_else(|| invalid("its algorithm is not one of those that are taken"))?;
        if header.crit.is_some() {
            return Err(invalid("it has extensions that must be understood"));
        }
        let key = self.keys.find(header.kid.as_deref(), *algorithm, lookup).await?;
        let key = key.ok_or_else(|| invalid("the provider has no such key"))?;
        decode::<Claims>(token, &key, validation).map(|token| token.claims).map_err(|error| wrong(&error))
    }

    fn count(&self, subject: &str) -> Result<(), Refusal> {
        if self.limiter.len() >= SUBJECTS_MAX {
            self.limiter.retain_recent();
            if self.limiter.len() >= SUBJECTS_MAX {
                return Err(rate_limited(std::time::Duration::from_secs(1)));
            }
        }
        let checked = self.limiter.check_key(&subject.to_string());
        checked.map_err(|later| rate_limited(later.wait_time_from(DefaultClock::default().now())))
    }
}

/// Returns the refusal of an expired token.
pub fn expired() -> Refusal {
    Refusal::new(Reason::CredentialsExpired, "the token has expired")
}
