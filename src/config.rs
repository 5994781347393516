//! Typed settings. Each is a flag, an environment variable `METERD_…` and a key of the file that `--config` names; the
//! flag wins over the variable, the variable over the file, the file over the default.

mod auth;
mod declared;
mod effective;
mod environment;
mod file;
mod given;
pub mod hints;
mod jobs;
mod net;
mod notifications;
mod toml_fault;

pub use auth::{Access, AuthMode, AuthSettings, JwtAlgorithm};
pub use effective::effective;
pub use environment::{meant_urls, opens_a_database, wrong_variables};
pub use file::SettingsFile;
pub use given::{WrongVariables, check_database, chooses_a_database, innermost, is_by_flag, places};
pub use jobs::JobSettings;
pub use net::NetSettings;
pub use notifications::NotificationSettings;

use crate::net::NetConfig;
use chrono_tz::Tz;
use clap::{Args, ValueEnum};
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
    /// Listen on other than loopback addresses although anybody who reaches them may read and write everything
    #[arg(long, env = "METERD_INSECURE_LISTEN", num_args = 0..=1, default_missing_value = "true", default_value = "false", action = clap::ArgAction::Set)]
    pub insecure_listen: bool,
    /// Origin that browsers may call from with gRPC-Web, such as https://app.example.com; repeat for more
    #[arg(long = "web-origin", env = "METERD_WEB_ORIGINS", value_delimiter = ',', value_parser = parse_origin)]
    pub web_origins: Vec<String>,

    /// Currency of the deployment, an ISO 4217 code; fixed at the first start
    #[arg(long, env = "METERD_CURRENCY", default_value = "USD", value_parser = parse_currency)]
    pub currency: String,
    /// Time zone of clients that have not been given one
    #[arg(long, env = "METERD_DEFAULT_TIME_ZONE", default_value = "UTC", value_parser = parse_zone)]
    pub default_time_zone: Tz,
    /// What happens to the first event of a client that has not been created
    #[arg(long, env = "METERD_UNKNOWN_CLIENT", default_value = "create")]
    pub unknown_client: UnknownClient,
    /// What happens to an event of a service that is not in the catalogue
    #[arg(long, env = "METERD_UNKNOWN_SERVICE", default_value = "reject")]
    pub unknown_service: UnknownService,
    /// Events may be at most so many days old, unless they come as a backfill
    #[arg(long, env = "METERD_ACCEPT_PAST_DAYS", default_value_t = 35, value_parser = clap::value_parser!(u32).range(1..=3650))]
    pub accept_past_days: u32,
    /// Events may be at most so many seconds ahead of the server's clock
    #[arg(long, env = "METERD_ACCEPT_FUTURE_SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u32).range(0..=i64::from(ACCEPT_FUTURE_SECONDS_MAX)))]
    pub accept_future_seconds: u32,

    #[command(flatten)]
    pub jobs: JobSettings,

    /// Writers, each with a database connection; one does the work of few events, and the others help where more waits
    #[arg(long, env = "METERD_WRITERS", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub writers: u16,
    /// Most events in one transaction
    #[arg(long, env = "METERD_BATCH_EVENTS_MAX", default_value_t = 4_000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub batch_events_max: u32,
    /// Most events that wait for one writer
    #[arg(long, env = "METERD_QUEUE_EVENTS_MAX", default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(2..=10_000_000))]
    pub queue_events_max: u32,
    /// How long an event is tried while the database is away or hangs. Its caller is told to send it again at most 5 seconds
    /// later
    #[arg(long, env = "METERD_RETRY_SECONDS", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub retry_seconds: u32,
    /// Longest time for a call that gives no deadline of its own
    #[arg(long, env = "METERD_REQUEST_TIMEOUT_SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub request_timeout_seconds: u32,
    /// Longest time to settle what is under way when the server is told to stop
    #[arg(long, env = "METERD_STOP_TIMEOUT_SECONDS", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=600))]
    pub stop_timeout_seconds: u32,
    /// Exports that may run at once
    #[arg(long, env = "METERD_EXPORTS_MAX", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub exports_max: u32,
    /// Subscriptions to alerts at once
    #[arg(long, env = "METERD_SUBSCRIPTIONS_MAX", default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub subscriptions_max: u32,
    /// How many days changes of alerts are kept for subscribers that come back, and notifications after they were sent or given up
    #[arg(long, env = "METERD_ALERT_FEED_DAYS", default_value_t = 90, value_parser = clap::value_parser!(u32).range(1..=3650))]
    pub alert_feed_days: u32,
    /// A subscription where nothing happened for so long gets a heartbeat; 15 s is what the contract says
    #[arg(long, env = "METERD_ALERT_HEARTBEAT_MS", hide = true, default_value_t = 15_000, value_parser = clap::value_parser!(u32).range(1..=15_000))]
    pub alert_heartbeat_ms: u32,
}

/// Where the data is.
#[derive(Args, Clone, Debug)]
pub struct DatabaseSettings {
    /// PostgreSQL 15 or newer to use. Without it meterd runs one of its own
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, hide_default_value = true)]
    pub database_url: Option<Secret>,
    /// Where meterd's own PostgreSQL keeps its data
    #[arg(long, env = "METERD_DATA_DIR", default_value_os_t = default_data_dir())]
    pub data_dir: PathBuf,
    /// Where initdb and postgres are. Without it they are searched for
    #[arg(long, env = "METERD_POSTGRES_BIN_DIR")]
    pub postgres_bin_dir: Option<PathBuf>,
    /// Whether PostgreSQL may be downloaded when none is found
    #[arg(long, env = "METERD_POSTGRES_DOWNLOAD", num_args = 0..=1, default_missing_value = "true", default_value = "true", action = clap::ArgAction::Set)]
    pub postgres_download: bool,
    /// Where to download PostgreSQL from
    #[arg(long, env = "METERD_POSTGRES_DOWNLOAD_URL")]
    pub postgres_download_url: Option<String>,
    /// Connections for everything but the writers
    #[arg(long, env = "METERD_CONNECTIONS_MAX", default_value_t = 10, value_parser = clap::value_parser!(u32).range(2..=1000))]
    pub connections_max: u32,
    /// Accept a database that acknowledges before it is durable
    #[arg(long, env = "METERD_ALLOW_NON_DURABLE_DATABASE", num_args = 0..=1, default_missing_value = "true", default_value = "false", action = clap::ArgAction::Set)]
    pub allow_non_durable_database: bool,
}

/// What happens to the first event of a client that has not been created.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum UnknownClient {
    /// The client is created
    Create,
    /// The event is refused with CLIENT_NOT_FOUND
    Reject,
}

/// What happens to an event of a service that is not in the catalogue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum UnknownService {
    /// It is refused with UNKNOWN_SERVICE
    Reject,
    /// It is kept, unpriced
    Keep,
}

fn parse_currency(text: &str) -> Result<String, String> {
    let code = text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_uppercase());
    if code { Ok(text.into()) } else { Err("must be an ISO 4217 code of three upper-case letters, such as USD".into()) }
}

fn parse_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "must be an IP address and a port, such as 127.0.0.1:50051".into())
}

/// An origin as browsers send it, which is compared letter by letter. Empty, as container tools pass what is not set, is none.
fn parse_origin(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Ok(String::new());
    }
    let origin = text.parse::<reqwest::Url>().ok().filter(|url| matches!(url.scheme(), "https" | "http"));
    match origin.map(|url| url.origin().ascii_serialization()) {
        Some(origin) if origin == text => Ok(origin),
        Some(origin) => Err(format!("must be an origin without path and slash; write {origin}")),
        None => Err("must be an origin such as https://app.example.com".into()),
    }
}

fn parse_zone(text: &str) -> Result<Tz, String> {
    text.parse().map_err(|_| "must be an IANA time zone such as Europe/Berlin".into())
}

impl Settings {
    /// Settings of the write path.
    pub fn ingest(&self) -> IngestConfig {
        IngestConfig {
            writers: self.writers.into(),
            batch_events_max: self.batch_events_max as usize,
            queue_events_max: self.queue_events_max as usize,
            retry_for: Duration::from_secs(self.retry_seconds.into()),
            create_clients: self.unknown_client == UnknownClient::Create,
            default_zone: self.default_time_zone,
        }
    }

    /// Returns how connections are taken and served.
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

    /// Refuses settings by which an event could be taken twice, or taken for a month that is closed.
    pub fn check_retention(&self) -> anyhow::Result<()> {
        self.jobs.check(self.accept_past_days, self.accept_future_seconds)
    }

    /// Refuses two ports that would be in each other's way.
    pub fn check_ports(&self) -> anyhow::Result<()> {
        let (grpc, http) = (self.listen, self.http_listen);
        let same_host = grpc.ip() == http.ip() || grpc.ip().is_unspecified() || http.ip().is_unspecified();
        anyhow::ensure!(
            grpc.port() != http.port() || grpc.port() == 0 || !same_host,
            "--listen {grpc} and --http-listen {http} are the same port: give each its own"
        );
        Ok(())
    }

    /// Refuses to listen where strangers could call: without API keys, only this machine may.
    pub fn check_exposure(&self) -> anyhow::Result<()> {
        for (name, address) in [("--listen", self.listen), ("--http-listen", self.http_listen)] {
            let who = match (name, self.net.tls_client_ca.is_some()) {
                ("--listen", true) => "whoever has a certificate of --tls-client-ca could read and write everything",
                ("--listen", false) => "whoever reaches it could read and write everything",
                _ => "whoever reaches it could read the metrics",
            };
            anyhow::ensure!(
                address.ip().is_loopback() || self.auth.auth == AuthMode::Keys || self.insecure_listen,
                "{name} {address} is not a loopback address, and {who}. \
                 Make an API key with `{}` and add --auth keys; \
                 or add --insecure-listen if the network itself is closed.",
                hints::first_key("NAME", &self.database)
            );
        }
        Ok(())
    }
}

impl DatabaseSettings {
    /// Settings of the embedded server.
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
