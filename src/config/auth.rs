//! Settings of authentication and access.

use super::notifications::non_empty;
use anyhow::Context;
use clap::{Args, ValueEnum};
use meterd_engine::auth::{Algorithm, AuthConfig, JwtConfig};
use std::num::NonZeroU32;

/// Settings of authentication and access.
#[derive(Args, Clone, Debug)]
pub struct AuthSettings {
    /// Whether calls need an API key
    #[arg(long, env = "METERD_AUTH", default_value = "off")]
    pub auth: AuthMode,
    /// Who may use gRPC reflection
    #[arg(long, env = "METERD_REFLECTION", default_value = "keys")]
    pub reflection: Access,
    /// Who may use the gRPC health service
    #[arg(long, env = "METERD_HEALTH", default_value = "public")]
    pub health: Access,
    /// Maximum number of calls per second for each API key without its own limit
    #[arg(long, env = "METERD_KEY_REQUESTS_PER_SECOND", default_value_t = 50_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub key_requests_per_second: u32,
    /// URL of an identity provider (OpenID Connect) whose tokens are accepted in addition to API keys, such as
    /// https://id.example.com; needs --auth keys
    #[arg(long, env = "METERD_JWT_ISSUER")]
    pub jwt_issuer: Option<String>,
    /// Audience that the tokens must have; required with --jwt-issuer
    #[arg(long, env = "METERD_JWT_AUDIENCE")]
    pub jwt_audience: Option<String>,
    /// URL of the provider's public keys [default: from its /.well-known/openid-configuration]
    #[arg(long, env = "METERD_JWT_JWKS_URL")]
    pub jwt_jwks_url: Option<String>,
    /// Accepted signature algorithms of the tokens
    #[arg(
        long,
        env = "METERD_JWT_ALGORITHMS",
        value_delimiter = ',',
        ignore_case = true,
        default_value = "RS256,ES256"
    )]
    pub jwt_algorithms: Vec<JwtAlgorithm>,
    /// Claim that contains the scopes meterd:ingest, meterd:read and meterd:admin: a string with spaces between them, or a list
    #[arg(long, env = "METERD_JWT_SCOPE_CLAIM", default_value = "scope")]
    pub jwt_scope_claim: String,
    /// Claim that contains the clients: an id, a list of at most 100 ids, or "*" for all; without
    /// the claim, the token covers no client
    #[arg(long, env = "METERD_JWT_CLIENTS_CLAIM", default_value = "meterd_clients")]
    pub jwt_clients_claim: String,
}

impl AuthSettings {
    /// Returns the configuration of authentication.
    ///
    /// # Errors
    /// Returns an error if the settings of the identity provider are incomplete.
    pub fn config(&self) -> anyhow::Result<AuthConfig> {
        Ok(AuthConfig {
            required: self.auth == AuthMode::Keys,
            requests_per_second: NonZeroU32::new(self.key_requests_per_second).unwrap_or(NonZeroU32::MIN),
            jwt: self.jwt()?,
        })
    }

    /// Returns the identity provider, if it is set.
    fn jwt(&self) -> anyhow::Result<Option<JwtConfig>> {
        let (issuer, audience) = (non_empty(&self.jwt_issuer), non_empty(&self.jwt_audience));
        let jwks_url = non_empty(&self.jwt_jwks_url);
        let Some(issuer) = issuer else {
            anyhow::ensure!(
                audience.is_none() && jwks_url.is_none(),
                "--jwt-audience and --jwt-jwks-url need --jwt-issuer: add it, or remove them"
            );
            return Ok(None);
        };
        anyhow::ensure!(
            self.auth == AuthMode::Keys,
            "--jwt-issuer needs --auth keys, because without it the server does not check tokens: add --auth keys, or remove \
             --jwt-issuer"
        );
        let audience = audience.context(
            "--jwt-issuer needs --jwt-audience, because the provider also issues tokens for other services: add --jwt-audience",
        )?;
        Ok(Some(JwtConfig {
            issuer: issuer.into(),
            audience: audience.into(),
            jwks_url: jwks_url.map(String::from),
            algorithms: self.jwt_algorithms.iter().map(|algorithm| algorithm.algorithm()).collect(),
            scope_claim: self.jwt_scope_claim.clone(),
            clients_claim: self.jwt_clients_claim.clone(),
        }))
    }
}

/// Asymmetric signature algorithms. Symmetric ones are not supported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum JwtAlgorithm {
    #[value(name = "RS256")]
    Rs256,
    #[value(name = "RS384")]
    Rs384,
    #[value(name = "RS512")]
    Rs512,
    #[value(name = "PS256")]
    Ps256,
    #[value(name = "PS384")]
    Ps384,
    #[value(name = "PS512")]
    Ps512,
    #[value(name = "ES256")]
    Es256,
    #[value(name = "ES384")]
    Es384,
    #[value(name = "EdDSA")]
    EdDsa,
}

impl JwtAlgorithm {
    /// Returns the algorithm as a type of the library.
    pub fn algorithm(self) -> Algorithm {
        match self {
            Self::Rs256 => Algorithm::RS256,
            Self::Rs384 => Algorithm::RS384,
            Self::Rs512 => Algorithm::RS512,
            Self::Ps256 => Algorithm::PS256,
            Self::Ps384 => Algorithm::PS384,
            Self::Ps512 => Algorithm::PS512,
            Self::Es256 => Algorithm::ES256,
            Self::Es384 => Algorithm::ES384,
            Self::EdDsa => Algorithm::EdDSA,
        }
    }
}

/// Whether calls need an API key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AuthMode {
    /// No call needs a key. The server then listens only on loopback addresses, unless --insecure-listen is set
    Off,
    /// Every call needs a key
    Keys,
}

/// Who may use gRPC reflection or the gRPC health service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Access {
    /// No one
    Off,
    /// Callers with an API key of any scope, or everyone with --auth off
    Keys,
    /// Everyone
    Public,
}
