//! Settings of who may call.

use clap::{Args, ValueEnum};

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
