//! Who calls, and whether they may.

mod jwt;
pub mod keys;
pub mod matrix;
mod ring;
mod strangers;
pub mod token;

pub use ring::KeyRing;

use crate::clock::Clock;
use crate::config::{Access, AuthMode, AuthSettings, DatabaseSettings, hints};
use crate::error::{Error, shown};
use crate::net::Peer;
use crate::proto::{ActorKind, ErrorReason};
use chrono::{DateTime, Utc};
use jwt::Jwt;
use matrix::Need;
use meterd_domain::access::{Grants, Scope};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use strangers::{Stranger, Strangers};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::Code;
use tonic::codegen::http::HeaderMap;
use tonic::codegen::http::header::AUTHORIZATION;

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
    pub fn check_scope(&self, scope: Scope) -> Result<(), Error> {
        if self.grants.has(scope) {
            return Ok(());
        }
        let message = format!("this call needs the scope {}, which the key does not have", scope.name());
        Err(Error::new(Code::PermissionDenied, ErrorReason::ScopeMissing, message).with("scope", scope.name()))
    }

    /// The error of a caller whose scope does not cover this client.
    pub fn check_client(&self, scope: Scope, client_id: &str) -> Result<(), Error> {
        if self.grants.covers(scope, client_id) {
            return Ok(());
        }
        let message = format!("the key is not for client {}", shown(client_id));
        Err(Error::new(Code::PermissionDenied, ErrorReason::ClientNotCovered, message))
    }

    /// The error of a caller whose scope covers some clients only.
    pub fn check_all_clients(&self, scope: Scope) -> Result<(), Error> {
        if self.grants.covers_all(scope) {
            return Ok(());
        }
        let message =
            "the key is for some clients only, and the call is for all of them: name one of them if it takes one";
        Err(Error::new(Code::PermissionDenied, ErrorReason::ClientNotCovered, message))
    }
}

fn unauthenticated(reason: ErrorReason, message: impl Into<String>) -> Error {
    Error::new(Code::Unauthenticated, reason, message)
}

fn rate_limited(delay: Duration) -> Error {
    let message = "the key has had its calls of this second; send again later, or ask an admin for more";
    Error::exhausted(ErrorReason::RateLimited, message, delay.max(Duration::from_millis(1)))
}

const HEALTH: &str = "/grpc.health.v1.Health/";
const REFLECTION: [&str; 2] = ["/grpc.reflection.v1.ServerReflection/", "/grpc.reflection.v1alpha.ServerReflection/"];

/// A call that may go on.
pub struct Passed {
    pub caller: Arc<Caller>,
    /// Whether its answer is a stream, which ends with the caller's key.
    pub streaming: bool,
}

/// Refuses settings of an identity provider that cannot be used.
pub fn check(settings: &AuthSettings) -> anyhow::Result<()> {
    let jwt = settings.jwt()?.map(|jwt| Jwt::new(&jwt, settings.requests_per_second()));
    jwt.transpose().map(drop)
}

/// Knows callers by what they present.
pub struct Auth {
    mode: AuthMode,
    settings: AuthSettings,
    pub keys: Arc<KeyRing>,
    jwt: Option<Jwt>,
    anybody: Arc<Caller>,
    strangers: Strangers,
    clock: Clock,
}

impl Auth {
    /// By these settings.
    pub fn new(settings: &AuthSettings, keys: Arc<KeyRing>, clock: Clock) -> anyhow::Result<Arc<Self>> {
        let jwt = settings.jwt()?.map(|jwt| Jwt::new(&jwt, settings.requests_per_second())).transpose()?;
        let anybody = Arc::new(Caller::anybody());
        let strangers = Strangers::default();
        Ok(Arc::new(Self { mode: settings.auth, settings: settings.clone(), keys, jwt, anybody, strangers, clock }))
    }

    /// Keeps keys up to date until `stopping` turns true.
    pub fn follow(&self, stopping: &watch::Receiver<bool>) -> Vec<JoinHandle<()>> {
        let issuers = self.jwt.iter().map(|jwt| jwt.follow(stopping.clone()));
        std::iter::once(self.keys.follow(stopping.clone())).chain(issuers).collect()
    }

    /// Refuses to ask for keys where nobody has one to make others with.
    pub fn check_somebody_may_call(&self, database: &DatabaseSettings) -> anyhow::Result<()> {
        let now = self.clock.now();
        if self.mode == AuthMode::Off || self.jwt.is_some() || self.keys.has_admin(now) {
            return Ok(());
        }
        let way_out = format!("make one with `{}`", hints::first_key("NAME", database));
        anyhow::ensure!(
            self.keys.has_live(now),
            "--auth keys, and there is no live API key, so nobody could call: {way_out}, or name an identity provider with \
             --jwt-issuer"
        );
        tracing::warn!("no live API key has the scope admin for all clients: {way_out}");
        Ok(())
    }

    /// The caller that presents these headers on a connection, and has a call left.
    pub async fn authenticate(&self, headers: &HeaderMap, peer: Option<&Peer>) -> Result<Arc<Caller>, Error> {
        if self.mode == AuthMode::Off {
            return Ok(self.anybody.clone());
        }
        let mut presented = headers.get_all(AUTHORIZATION).iter();
        let Some(value) = presented.next() else {
            let message = "send the header `authorization: Bearer mtr_…` with an API key; an admin makes keys with \
                           `meterd keys create`";
            return Err(unauthenticated(ErrorReason::CredentialsMissing, message));
        };
        let token = value.to_str().ok().and_then(bearer).filter(|_| presented.next().is_none());
        let Some(token) = token else {
            let message = "the header `authorization` must be there once, with `Bearer` and an API key";
            return Err(unauthenticated(ErrorReason::CredentialsInvalid, message));
        };
        let now = self.clock.now();
        let stranger = Stranger { strangers: &self.strangers, peer };
        match (token::parse(token), &self.jwt) {
            (Some((key_id, hash)), _) => self.keys.admit(key_id, &hash, stranger, now).await,
            (None, Some(jwt)) if !token.starts_with(token::PREFIX) => jwt.admit(token, stranger, now).await,
            (None, _) => {
                let message = "what the header `authorization` presents is no API key of this deployment";
                Err(unauthenticated(ErrorReason::CredentialsInvalid, message))
            }
        }
    }

    /// Lets a call pass whose method has a row, and whose caller has the scope for it. What it may do it to is for the
    /// handler to ask, which has the message. Nothing, where there is no such method.
    pub async fn admit(&self, path: &str, headers: &HeaderMap, peer: Option<&Peer>) -> Result<Option<Passed>, Error> {
        let of_grpc = match path {
            path if path.starts_with(HEALTH) => Some(self.settings.health),
            path if REFLECTION.iter().any(|service| path.starts_with(service)) => Some(self.settings.reflection),
            _ => None,
        };
        match of_grpc {
            Some(Access::Off) => return Ok(None),
            Some(Access::Public) => return Ok(Some(Passed { caller: self.anybody.clone(), streaming: false })),
            Some(Access::Keys) => {
                return Ok(Some(Passed { caller: self.authenticate(headers, peer).await?, streaming: true }));
            }
            None => {}
        }
        let caller = self.authenticate(headers, peer).await?;
        let Some(row) = matrix::row(path) else { return Ok(None) };
        if let Need::Scope(scope) = row.need {
            caller.check_scope(scope)?;
        }
        Ok(Some(Passed { caller, streaming: row.streaming }))
    }

    /// Returns once the caller's key is no longer good, with the reason.
    pub fn ended(self: &Arc<Self>, caller: &Arc<Caller>) -> impl Future<Output = Error> + Send + use<> {
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

/// Longest sleep towards an end: the clock may be set meanwhile.
const SLEEP_MAX: Duration = Duration::from_secs(60);

/// How long to sleep until the clock is looked at again. Nothing, once the end has come.
fn left(end: Option<DateTime<Utc>>, now: DateTime<Utc>) -> Option<Duration> {
    let Some(end) = end else { return Some(SLEEP_MAX) };
    let left = (end - now).to_std().ok().filter(|left| !left.is_zero())?;
    Some(left.clamp(Duration::from_millis(1), SLEEP_MAX))
}

/// The credentials of a bearer; the scheme in whatever case (RFC 9110, section 11.1).
fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}
