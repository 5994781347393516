//! Settings of who may call.

use super::notifications::given;
use anyhow::Context;
use clap::{Args, ValueEnum};
use meterd_engine::auth::{Algorithm, AuthConfig, JwtConfig};
use std::num::NonZeroU32;

/// Who may call.
#[derive(Args, Clone, Debug)]
pub struct AuthSettings {
    /// Whether callers are asked for an API key
    #[arg(long, env = "METERD_AUTH", default_value = "off")]
    pub auth: AuthMode,
    /// Who may list the services with gRPC reflection
    #[arg(long, env = "METERD_REFLECTION", default_value = "keys")]
    pub reflection: Access,
    /// Who may ask for health over gRPC
    #[arg(long, env = "METERD_HEALTH", default_value = "public")]
    pub health: Access,
    /// Calls in a second with a key that has no limit of its own
    #[arg(long, env = "METERD_KEY_REQUESTS_PER_SECOND", default_value_t = 50_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub key_requests_per_second: u32,
    /// Identity provider (OpenID Connect) whose tokens are taken beside API keys, such as https://id.example.com
    #[arg(long, env = "METERD_JWT_ISSUER")]
    pub jwt_issuer: Option<String>,
    /// Audience that its tokens must be for; required with --jwt-issuer
    #[arg(long, env = "METERD_JWT_AUDIENCE")]
    pub jwt_audience: Option<String>,
    /// Where the provider's keys are. Default: where its /.well-known/openid-configuration says
    #[arg(long, env = "METERD_JWT_JWKS_URL")]
    pub jwt_jwks_url: Option<String>,
    /// Algorithms that its tokens may be signed with
    #[arg(
        long,
        env = "METERD_JWT_ALGORITHMS",
        value_delimiter = ',',
        ignore_case = true,
        default_value = "RS256,ES256"
    )]
    pub jwt_algorithms: Vec<JwtAlgorithm>,
    /// Claim with the scopes meterd:ingest, meterd:read and meterd:admin: a text with spaces between them, or a list
    #[arg(long, env = "METERD_JWT_SCOPE_CLAIM", default_value = "scope")]
    pub jwt_scope_claim: String,
    /// Claim with the clients that they are for: an id or a list of at most 100, "*" for all. Without it, none
    #[arg(long, env = "METERD_JWT_CLIENTS_CLAIM", default_value = "meterd_clients")]
    pub jwt_clients_claim: String,
}

impl AuthSettings {
    /// The configuration of authentication.
    ///
    /// # Errors
    /// If an identity provider is only partly set.
    pub fn config(&self) -> anyhow::Result<AuthConfig> {
        Ok(AuthConfig {
            required: self.auth == AuthMode::Keys,
            requests_per_second: NonZeroU32::new(self.key_requests_per_second).unwrap_or(NonZeroU32::MIN),
            jwt: self.jwt()?,
        })
    }

    /// The identity provider, if there is one. Refuses halves of one, which would let in nobody, or anybody.
    fn jwt(&self) -> anyhow::Result<Option<JwtConfig>> {
        let (issuer, audience) = (given(&self.jwt_issuer), given(&self.jwt_audience));
        let jwks_url = given(&self.jwt_jwks_url);
        let Some(issuer) = issuer else {
            anyhow::ensure!(
                audience.is_none() && jwks_url.is_none(),
                "--jwt-audience and --jwt-jwks-url need --jwt-issuer"
            );
            return Ok(None);
        };
        anyhow::ensure!(
            self.auth == AuthMode::Keys,
            "--jwt-issuer needs --auth keys: without it nobody is asked for a token"
        );
        let audience = audience.context("--jwt-issuer needs --jwt-audience: the provider has tokens for others too")?;
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

/// Algorithms of signatures that need no secret to be verified: there are no others here.
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
    /// As the library knows it.
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

/// Whether callers are asked for an API key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AuthMode {
    /// No: whoever reaches the server may do everything, so it listens on loopback only
    Off,
    /// Each call needs one
    Keys,
}

/// Who may use a service of gRPC's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Access {
    /// Nobody
    Off,
    /// Whoever has a key, of whatever scope; everybody, where no keys are asked for
    Keys,
    /// Everybody
    Public,
}
