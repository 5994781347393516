//! The public keys of the identity provider. They are fetched regularly, and stay valid for a while if a fetch fails.

use crate::auth::lookups::Lookup;
use crate::refusal::{Reason, Refusal};
use anyhow::Context;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet, KeyAlgorithm, KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use reqwest::{Client, Url, redirect};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::net::IpAddr;
use std::sync::{Arc, RwLock};
use std::time::Duration;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// How often the keys are fetched, and how soon again after a failure.
const FETCH_EVERY: Duration = Duration::from_secs(300);
const FETCH_RETRY_AFTER: Duration = Duration::from_secs(30);
/// A token with an unknown key makes the server fetch the keys at once. This is the minimum time between two such fetches,
/// however many unknown keys are presented.
const FETCH_FOR_UNKNOWN_EVERY: Duration = Duration::from_secs(5);
/// How long keys are valid after they were fetched.
const KEYS_LIFETIME: Duration = Duration::from_secs(24 * 3_600);
/// Timeout of a request to the provider, and the maximum size of its answer.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);
const ANSWER_BYTES_MAX: usize = 256 * 1024;
/// Maximum number of keys of a provider.
const KEYS_MAX: usize = 100;

/// A key of the provider.
struct IssuerKey {
    jwk: Jwk,
    key: DecodingKey,
}

impl IssuerKey {
    /// Returns `None` if the key is not for verifying signatures, or if its type is not supported.
    fn of(jwk: Jwk) -> Option<Self> {
        let signs = matches!(jwk.common.public_key_use, None | Some(PublicKeyUse::Signature));
        let operations = jwk.common.key_operations.as_ref();
        let verifies = operations.is_none_or(|operations| operations.contains(&KeyOperations::Verify));
        let key = (signs && verifies).then(|| DecodingKey::from_jwk(&jwk).ok()).flatten()?;
        Some(Self { jwk, key })
    }

    /// Returns whether the key can verify signatures of this algorithm.
    fn fits(&self, algorithm: Algorithm) -> bool {
        use Algorithm::*;
        let fits_type = match &self.jwk.algorithm {
            AlgorithmParameters::RSA(_) => matches!(algorithm, RS256 | RS384 | RS512 | PS256 | PS384 | PS512),
            AlgorithmParameters::EllipticCurve(key) => {
                matches!((&key.curve, algorithm), (EllipticCurve::P256, ES256) | (EllipticCurve::P384, ES384))
            }
            AlgorithmParameters::OctetKeyPair(key) => {
                matches!((&key.curve, algorithm), (EllipticCurve::Ed25519, EdDSA))
            }
            _ => false,
        };
        fits_type && self.jwk.common.key_algorithm.is_none_or(|own| own == KeyAlgorithm::from(algorithm))
    }

    fn has_id(&self, key_id: &str) -> bool {
        self.jwk.common.key_id.as_deref() == Some(key_id)
    }
}

/// The keys of an issuer.
pub struct IssuerKeys {
    client: Client,
    issuer: String,
    /// The URL of the keys. `None`: the URL is in the OpenID configuration of the provider.
    jwks_url: Option<Url>,
    keys: RwLock<Option<(Instant, Arc<Vec<IssuerKey>>)>>,
    /// When the last fetch began, and whether it succeeded.
    last_fetch: Mutex<Option<(Instant, bool)>>,
}

/// The OpenID configuration of the provider (OpenID Connect Discovery 1.0, section 3).
#[derive(Deserialize)]
struct Discovery {
    issuer: String,
    jwks_uri: String,
}

/// Parses a URL whose answer nobody can change on the way: https, or http to this machine.
pub fn secure_url(text: &str) -> anyhow::Result<Url> {
    let url: Url =
        text.parse().with_context(|| format!("must be a URL such as https://id.example.com, got {text:?}"))?;
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
    let loopback = host == "localhost" || address.is_ok_and(|address| address.is_loopback());
    anyhow::ensure!(
        url.scheme() == "https" || (url.scheme() == "http" && loopback),
        "must be a URL that begins with https://, got {text:?}"
    );
    Ok(url)
}

fn unavailable() -> Refusal {
    let message = "the keys of the identity provider could not be fetched, so the token cannot be checked; send again";
    Refusal::new(Reason::IdentityProviderUnavailable, message).retry_after(FETCH_FOR_UNKNOWN_EVERY)
}

impl IssuerKeys {
    /// Creates the keys of an issuer. Nothing is fetched yet.
    pub fn new(issuer: &str, jwks_url: Option<&str>) -> anyhow::Result<Arc<Self>> {
        secure_url(issuer).context("--jwt-issuer")?;
        let jwks_url = jwks_url.map(secure_url).transpose().context("--jwt-jwks-url")?;
        // Fails if a provider is installed already. It is always the same one.
        drop(rustls::crypto::ring::default_provider().install_default());
        let client = Client::builder()
            .user_agent(concat!("meterd/", env!("CARGO_PKG_VERSION")))
            .redirect(redirect::Policy::none())
            .no_proxy()
            .timeout(FETCH_TIMEOUT)
            .build()?;
        let issuer = issuer.to_string();
        Ok(Arc::new(Self { client, issuer, jwks_url, keys: RwLock::default(), last_fetch: Mutex::default() }))
    }

    /// Starts a task that keeps the keys up to date until `stopping` is true.
    pub fn follow(self: &Arc<Self>, mut stopping: watch::Receiver<bool>) -> JoinHandle<()> {
        let keys = self.clone();
        tokio::spawn(async move {
            loop {
                let fetched = tokio::select! {
                    _ = stopping.wait_for(|stopping| *stopping) => return,
                    fetched = async { keys.fetch(&mut *keys.last_fetch.lock().await).await } => fetched,
                };
                let pause = if fetched { FETCH_EVERY } else { FETCH_RETRY_AFTER };
                tokio::select! {
                    _ = stopping.wait_for(|stopping| *stopping) => return,
                    () = tokio::time::sleep(pause) => {}
                }
            }
        })
    }

    /// Returns the key for a token with this key id and algorithm in its header. Returns `None` if the provider has no such key.
    ///
    /// # Errors
    /// `IDENTITY_PROVIDER_UNAVAILABLE` if the keys cannot be fetched.
    pub async fn find(
        self: &Arc<Self>,
        key_id: Option<&str>,
        algorithm: Algorithm,
        lookup: Lookup<'_>,
    ) -> Result<Option<DecodingKey>, Refusal> {
        if let Some(found) = self.known(key_id, algorithm) {
            return Ok(Some(found));
        }
        // The fetch has its own task, because other callers wait for it too, and this caller may be cancelled.
        let (keys, permits) = (self.clone(), lookup.wait()?);
        let fetched = tokio::spawn(async move {
            let _permits = permits;
            keys.fetch_for_unknown().await
        })
        .await;
        match self.known(key_id, algorithm) {
            Some(found) => Ok(Some(found)),
            None if fetched.map_err(Refusal::internal)? => Ok(None),
            None => Err(unavailable()),
        }
    }

    fn known(&self, key_id: Option<&str>, algorithm: Algorithm) -> Option<DecodingKey> {
        let keys = self.keys.read().expect("not poisoned").clone();
        let (_, keys) = keys.filter(|(fetched, _)| fetched.elapsed() < KEYS_LIFETIME)?;
        let mut fitting = keys.iter().filter(|key| key.fits(algorithm));
        match key_id {
            Some(key_id) => fitting.find(|key| key.has_id(key_id)),
            // Without an id, the key is clear only if one key fits.
            None => fitting.next().filter(|_| fitting.next().is_none()),
        }
        .map(|found| found.key.clone())
    }

    /// Fetches the keys, unless they were fetched a moment ago. Returns whether the last fetch succeeded.
    async fn fetch_for_unknown(&self) -> bool {
        let asked = Instant::now();
        let mut last = self.last_fetch.lock().await;
        match *last {
            Some((started, succeeded)) if started >= asked || started.elapsed() < FETCH_FOR_UNKNOWN_EVERY => succeeded,
            _ => self.fetch(&mut last).await,
        }
    }

    async fn fetch(&self, last: &mut Option<(Instant, bool)>) -> bool {
        let started = Instant::now();
        let fetched = self.fetch_keys().await;
        let succeeded = match fetched {
            Ok(keys) => {
                *self.keys.write().expect("not poisoned") = Some((started, Arc::new(keys)));
                true
            }
            Err(error) => {
                let error = format!("{error:#}");
                tracing::warn!(error, issuer = self.issuer, "the keys of the identity provider could not be fetched");
                false
            }
        };
        *last = Some((started, succeeded));
        succeeded
    }

    async fn fetch_keys(&self) -> anyhow::Result<Vec<IssuerKey>> {
        let url = match &self.jwks_url {
            Some(url) => url.clone(),
            None => {
                let url = format!("{}/.well-known/openid-configuration", self.issuer.trim_end_matches('/'));
                let discovery: Discovery = self.get(url.parse()?).await?;
                anyhow::ensure!(
                    discovery.issuer == self.issuer,
                    "the OpenID configuration names another issuer: {:?}",
                    discovery.issuer
                );
                secure_url(&discovery.jwks_uri).context("jwks_uri")?
            }
        };
        let set: JwkSet = self.get(url).await?;
        anyhow::ensure!(
            set.keys.len() <= KEYS_MAX,
            "the provider has {} keys, the maximum is {KEYS_MAX}",
            set.keys.len()
        );
        Ok(set.keys.into_iter().filter_map(IssuerKey::of).collect())
    }

    async fn get<T: DeserializeOwned>(&self, url: Url) -> anyhow::Result<T> {
        let mut answer = self.client.get(url.clone()).send().await.map_err(reqwest::Error::without_url)?;
        anyhow::ensure!(answer.status().is_success(), "{url} answered {}", answer.status());
        let mut body = vec![];
        while let Some(chunk) = answer.chunk().await.map_err(reqwest::Error::without_url)? {
            anyhow::ensure!(
                body.len() + chunk.len() <= ANSWER_BYTES_MAX,
                "{url} answered with more than {ANSWER_BYTES_MAX} bytes"
            );
            body.extend_from_slice(&chunk);
        }
        serde_json::from_slice(&body).with_context(|| format!("{url} answered with unexpected JSON"))
    }
}
