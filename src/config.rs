//! Typed settings. Each has a flag, an environment variable `METERD_…` and a key of the settings file (`--config`). The flag
//! takes precedence over the variable, the variable over the file, the file over the default.

mod auth;
mod effective;
mod environment;
mod file;
pub mod hints;
mod jobs;
mod net;
mod notifications;
mod number_errors;
mod sources;
mod specs;
mod toml_errors;

pub use auth::{Access, AuthMode, AuthSettings, JwtAlgorithm};
pub use effective::effective;
pub use environment::{misspelt_database_urls, opens_database, unknown_variables};
pub use file::SettingsFile;
pub use jobs::JobSettings;
pub use net::NetSettings;
pub use notifications::NotificationSettings;
pub use number_errors::plain_parse_error;
pub use sources::{InvalidVariables, check_database, chooses_database, innermost, is_set_by_flag, setting_sources};

use crate::net::NetConfig;
use chrono_tz::Tz;
use clap::{Args, ValueEnum};
use meterd_domain::decimal::Rate;
use meterd_domain::event::ACCEPT_FUTURE_SECONDS_MAX;
use meterd_embedded_postgres::{EmbeddedSettings, default_data_dir};
use meterd_engine::alerts::notify::Secret;
use meterd_engine::ingest::IngestConfig;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Settings of the server and of commands that open its database.
#[derive(Args, Clone, Debug)]
pub struct Settings {
    #[command(flatten)]
    pub database: DatabaseSettings,
    #[command(flatten)]
    pub notifications: NotificationSettings,
    #[command(flatten)]
    pub auth: AuthSettings,
    #[command(flatten)]
    pub net: NetSettings,

    /// Address of the gRPC port
    #[arg(long, env = "METERD_LISTEN", default_value = "127.0.0.1:50051", value_parser = parse_address)]
    pub listen: SocketAddr,
    /// Address of the second port: /healthz, /readyz, /metrics
    #[arg(long, env = "METERD_HTTP_LISTEN", default_value = "127.0.0.1:50052", value_parser = parse_address)]
    pub http_listen: SocketAddr,
    /// Allow addresses other than loopback without API keys: everyone who can reach the server can read and change everything
    #[arg(long, env = "METERD_INSECURE_LISTEN", num_args = 0..=1, default_missing_value = "true", default_value = "false", action = clap::ArgAction::Set)]
    pub insecure_listen: bool,
    /// Origin from which browsers may call with gRPC-Web, such as https://app.example.com; repeat the flag for more [default: none]
    #[arg(long = "web-origin", env = "METERD_WEB_ORIGINS", value_delimiter = ',', value_parser = parse_origin)]
    pub web_origins: Vec<String>,

    /// Currency of the deployment, an ISO 4217 code; fixed at the first start
    #[arg(long, env = "METERD_CURRENCY", default_value = "USD", value_parser = parse_currency)]
    pub currency: String,
    /// Time zone of clients for which no time zone was set
    #[arg(long, env = "METERD_DEFAULT_TIME_ZONE", default_value = "UTC", value_parser = parse_zone)]
    pub default_time_zone: Tz,
    /// What happens to the first event of an unknown client
    #[arg(long, env = "METERD_UNKNOWN_CLIENT", default_value = "create")]
    pub unknown_client: UnknownClient,
    /// What happens to an event whose service is not in the catalogue
    #[arg(long, env = "METERD_UNKNOWN_SERVICE", default_value = "reject")]
    pub unknown_service: UnknownService,
    /// Which names of models find a price; must be the same on all replicas
    #[arg(long, env = "METERD_MODEL_NAMES", default_value = "rules")]
    pub model_names: ModelNames,
    /// Maximum age of an event in days, except in a backfill
    #[arg(long, env = "METERD_ACCEPT_PAST_DAYS", default_value_t = 35, value_parser = clap::value_parser!(u32).range(1..=3650))]
    pub accept_past_days: u32,
    /// Maximum number of seconds that the time of an event may be ahead of the server's clock
    #[arg(long, env = "METERD_ACCEPT_FUTURE_SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u32).range(0..=i64::from(ACCEPT_FUTURE_SECONDS_MAX)))]
    pub accept_future_seconds: u32,

    /// Up to how many days after its time a caller with the scope ingest may void or correct an event; a caller with the scope
    /// admin always may
    #[arg(long, env = "METERD_CORRECTION_DAYS", default_value_t = 35, value_parser = clap::value_parser!(u32).range(0..=3650))]
    pub correction_days: u32,

    /// Rate per token above which a new price needs a confirmation, because its rates may be meant per million tokens
    #[arg(long, env = "METERD_HIGH_TOKEN_RATE", default_value = "0.01", value_parser = parse_rate)]
    pub high_token_rate: Rate,

    #[command(flatten)]
    pub jobs: JobSettings,

    /// Number of writers, each with a database connection; the first writer works alone until too many events wait for it
    #[arg(long, env = "METERD_WRITERS", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub writers: u16,
    /// Maximum number of events in one transaction
    #[arg(long, env = "METERD_BATCH_EVENTS_MAX", default_value_t = 4_000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub batch_events_max: u32,
    /// Maximum number of events that wait for one writer
    #[arg(long, env = "METERD_QUEUE_EVENTS_MAX", default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(2..=10_000_000))]
    pub queue_events_max: u32,
    /// Maximum memory of the filters of idempotency keys, in bytes; a filter takes two bytes a key. In a closed
    /// generation of keys whose filter is not in memory, meterd looks up each new key, which is slower
    #[arg(long, env = "METERD_KEY_FILTER_BYTES_MAX", default_value_t = 268_435_456)]
    pub key_filter_bytes_max: u64,
    /// How long the server retries an event while the database is away or hangs, in seconds; at most 5 seconds later the
    /// caller gets DATABASE_UNAVAILABLE
    #[arg(long, env = "METERD_RETRY_SECONDS", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub retry_seconds: u32,
    /// Maximum duration of a call without a deadline, in seconds
    #[arg(long, env = "METERD_REQUEST_TIMEOUT_SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub request_timeout_seconds: u32,
    /// How long a stopping server waits for calls in progress, in seconds
    #[arg(long, env = "METERD_STOP_TIMEOUT_SECONDS", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=600))]
    pub stop_timeout_seconds: u32,
    /// Maximum number of concurrent exports
    #[arg(long, env = "METERD_EXPORTS_MAX", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub exports_max: u32,
    /// Maximum number of concurrent subscriptions to alerts
    #[arg(long, env = "METERD_SUBSCRIPTIONS_MAX", default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub subscriptions_max: u32,
    /// Number of days that meterd keeps changes of alerts, for subscribers that reconnect, and finished notifications
    #[arg(long, env = "METERD_ALERT_FEED_DAYS", default_value_t = 90, value_parser = clap::value_parser!(u32).range(1..=3650))]
    pub alert_feed_days: u32,
    /// Idle time in milliseconds after which a subscription gets a heartbeat; the API promises 15 seconds
    #[arg(long, env = "METERD_ALERT_HEARTBEAT_MS", hide = true, default_value_t = 15_000, value_parser = clap::value_parser!(u32).range(1..=15_000))]
    pub alert_heartbeat_ms: u32,
}

/// Settings of the database.
#[derive(Args, Clone, Debug)]
pub struct DatabaseSettings {
    /// URL of the database, PostgreSQL 15 or newer [default: meterd runs an embedded PostgreSQL]
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, hide_default_value = true)]
    pub database_url: Option<Secret>,
    /// Directory with the data of the embedded PostgreSQL
    #[arg(long, env = "METERD_DATA_DIR", default_value_os_t = default_data_dir())]
    pub data_dir: PathBuf,
    /// Directory that contains initdb and postgres [default: search the PATH and the usual directories]
    #[arg(long, env = "METERD_POSTGRES_BIN_DIR")]
    pub postgres_bin_dir: Option<PathBuf>,
    /// Whether meterd may download PostgreSQL if it finds none
    #[arg(long, env = "METERD_POSTGRES_DOWNLOAD", num_args = 0..=1, default_missing_value = "true", default_value = "true", action = clap::ArgAction::Set)]
    pub postgres_download: bool,
    /// URL to download PostgreSQL from [default: GitHub, then Maven Central]
    #[arg(long, env = "METERD_POSTGRES_DOWNLOAD_URL")]
    pub postgres_download_url: Option<String>,
    /// Maximum number of database connections, in addition to those of the writers
    #[arg(long, env = "METERD_CONNECTIONS_MAX", default_value_t = 10, value_parser = clap::value_parser!(u32).range(2..=1000))]
    pub connections_max: u32,
    /// Accept a database that acknowledges commits before they are durable: events can then be lost
    #[arg(long, env = "METERD_ALLOW_NON_DURABLE_DATABASE", num_args = 0..=1, default_missing_value = "true", default_value = "false", action = clap::ArgAction::Set)]
    pub allow_non_durable_database: bool,
}

/// What happens to the first event of an unknown client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum UnknownClient {
    /// Create the client
    Create,
    /// Reject the event with CLIENT_NOT_FOUND
    Reject,
}

/// Which names of models find a price.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ModelNames {
    /// Exact names and aliases, and names that the rules recognize, such as openai/GPT-4o-2024-11-20
    Rules,
    /// Only exact names and aliases
    Exact,
}

/// What happens to an event whose service is not in the catalogue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum UnknownService {
    /// Reject the event with UNKNOWN_SERVICE
    Reject,
    /// Record the event as unpriced
    Keep,
}

fn parse_rate(text: &str) -> Result<Rate, String> {
    Rate::parse(text).map_err(|error| error.to_string())
}

fn parse_currency(text: &str) -> Result<String, String> {
    let code = text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_uppercase());
    if code { Ok(text.into()) } else { Err("must be an ISO 4217 code of three upper-case letters, such as USD".into()) }
}

fn parse_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "must be an IP address and a port, such as 127.0.0.1:50051".into())
}

/// Parses an origin in the form that browsers send, because the server compares it byte by byte. Accepts an empty text,
/// because container tools pass an unset variable as an empty one.
fn parse_origin(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Ok(String::new());
    }
    let origin = text.parse::<reqwest::Url>().ok().filter(|url| matches!(url.scheme(), "https" | "http"));
    match origin.map(|url| url.origin().ascii_serialization()) {
        Some(origin) if origin == text => Ok(origin),
        Some(origin) => Err(format!("must be an origin without a path or a slash at the end; write {origin}")),
        None => Err("must be an origin such as https://app.example.com".into()),
    }
}

fn parse_zone(text: &str) -> Result<Tz, String> {
    text.parse().map_err(|_| "must be an IANA time zone such as Europe/Berlin".into())
}

impl Settings {
    /// Returns the settings of the write path.
    pub fn ingest(&self) -> IngestConfig {
        IngestConfig {
            writers: self.writers.into(),
            batch_events_max: self.batch_events_max as usize,
            queue_events_max: self.queue_events_max as usize,
            retry_for: Duration::from_secs(self.retry_seconds.into()),
            create_clients: self.unknown_client == UnknownClient::Create,
            default_zone: self.default_time_zone,
            key_filter_bytes_max: usize::try_from(self.key_filter_bytes_max).unwrap_or(usize::MAX),
        }
    }

    /// Returns how connections are accepted and served.
    ///
    /// # Errors
    /// Returns an error if one setting of TLS lacks another.
    pub fn net(&self) -> anyhow::Result<NetConfig> {
        let seconds = |seconds: u32| Duration::from_secs(seconds.into());
        Ok(NetConfig {
            connections_max: self.net.inbound_connections_max as usize,
            connection_age: seconds(self.net.connection_age_seconds),
            connection_age_grace: seconds(self.net.connection_age_grace_seconds),
            stop_timeout: seconds(self.stop_timeout_seconds),
            unread_timeout: seconds(self.net.unread_timeout_seconds),
            tls: self.net.tls_files()?,
        })
    }

    /// Checks that no event can be recorded twice, and that no event can belong to a closed month.
    pub fn check_retention(&self) -> anyhow::Result<()> {
        self.jobs.check(self.accept_past_days, self.accept_future_seconds)
    }

    /// Checks that the two ports differ.
    pub fn check_ports(&self) -> anyhow::Result<()> {
        let (grpc, http) = (self.listen, self.http_listen);
        let same_host = grpc.ip() == http.ip() || grpc.ip().is_unspecified() || http.ip().is_unspecified();
        anyhow::ensure!(
            grpc.port() != http.port() || grpc.port() == 0 || !same_host,
            "--listen {grpc} and --http-listen {http} use the same port: change one of them"
        );
        Ok(())
    }

    /// Checks that a server without API keys listens on loopback addresses only, unless `--insecure-listen` is set.
    pub fn check_exposure(&self) -> anyhow::Result<()> {
        for (name, address) in [("--listen", self.listen), ("--http-listen", self.http_listen)] {
            let risk = match (name, self.net.tls_client_ca.is_some()) {
                ("--listen", true) => {
                    "everyone with a certificate signed by --tls-client-ca could read and change everything"
                }
                ("--listen", false) => "everyone who can reach it could read and change everything",
                _ => "everyone who can reach it could read the metrics",
            };
            anyhow::ensure!(
                address.ip().is_loopback() || self.auth.auth == AuthMode::Keys || self.insecure_listen,
                "{name} {address} is not a loopback address: {risk}. \
                 Create an API key with `{}` and add --auth keys; \
                 or add --insecure-listen if the network is private.",
                hints::first_key("NAME", &self.database)
            );
        }
        Ok(())
    }
}

impl DatabaseSettings {
    /// Returns the settings of the embedded server.
    pub fn embedded(&self) -> EmbeddedSettings {
        EmbeddedSettings {
            data_dir: self.data_dir.clone(),
            bin_dir: self.postgres_bin_dir.clone(),
            download_url: self.postgres_download_url.clone(),
            download: self.postgres_download,
            durable: true,
        }
    }
}
