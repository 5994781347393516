//! Connections of commands to the server. Uses `address`, `dial` and `trust`; `errors` formats errors.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{anyhow, ensure};
use clap::Args;
use hyper_util::rt::TokioIo;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::interceptor::{InterceptedService, Interceptor};
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Status};
use tower::service_fn;

use super::address::Address;
use super::dial::Dialer;
pub use super::errors::{event_error_json, event_error_text, is_retryable, retry_delay, status_error, status_text};
use crate::proto::alert_service_client::AlertServiceClient;
use crate::proto::billing_service_client::BillingServiceClient;
use crate::proto::catalog_service_client::CatalogServiceClient;
use crate::proto::client_service_client::ClientServiceClient;
use crate::proto::key_service_client::KeyServiceClient;
use crate::proto::usage_service_client::UsageServiceClient;

/// Maximum size of a message in both directions, as in the API.
pub const MESSAGE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// A dead peer is detected within the sum of these two.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection that sends the API key with every call.
pub type Connection = InterceptedService<Channel, Credentials>;

/// An API key as the value of its header. `Debug` does not show it.
#[derive(Clone)]
pub struct ApiKeyArg(MetadataValue<Ascii>);

impl std::fmt::Debug for ApiKeyArg {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ApiKeyArg(…)")
    }
}

fn parse_api_key(text: &str) -> Result<ApiKeyArg, String> {
    if text.trim().is_empty() {
        return Err(
            "METERD_API_KEY is empty; the command that sets it may have failed. Set it to a token such as mtr_…, or unset it"
                .into(),
        );
    }
    let value = format!("Bearer {}", text.trim()).parse::<MetadataValue<Ascii>>();
    let mut value = value.map_err(|_| "must be plain text, such as mtr_…".to_owned())?;
    value.set_sensitive(true);
    Ok(ApiKeyArg(value))
}

/// Adds the API key to a call.
#[derive(Clone, Debug)]
pub struct Credentials(Option<ApiKeyArg>);

impl Interceptor for Credentials {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(ApiKeyArg(value)) = &self.0 {
            request.metadata_mut().insert("authorization", value.clone());
        }
        Ok(request)
    }
}

/// Arguments of all commands that call a server.
#[derive(Args, Clone, Debug)]
pub struct ConnectArgs {
    /// Address of the server; the default port is 50051
    #[arg(long, env = "METERD_SERVER", default_value = "http://127.0.0.1:50051", value_name = "URL")]
    pub server: String,
    /// API key, if the server needs one
    #[arg(long, env = "METERD_API_KEY", hide_env_values = true, value_name = "TOKEN", value_parser = parse_api_key)]
    pub api_key: Option<ApiKeyArg>,
    #[command(flatten)]
    pub tls: TlsArgs,
    /// Maximum duration of one call in seconds [default: depends on the command]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub timeout: Option<u64>,
}

/// Certificates for https:// servers.
#[derive(Args, Clone, Debug, Default)]
pub struct TlsArgs {
    /// File with the server's certificate or the certificate that signed it, PEM [default: the system's certificates]
    #[arg(long, env = "METERD_TLS_CA", value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,
    /// File with the client certificate chain, PEM, if the server requires one
    #[arg(long, env = "METERD_TLS_CLIENT_CERT", value_name = "FILE")]
    pub tls_client_cert: Option<PathBuf>,
    /// File with the private key of the client certificate, PEM
    #[arg(long, env = "METERD_TLS_CLIENT_KEY", value_name = "FILE")]
    pub tls_client_key: Option<PathBuf>,
}

impl TlsArgs {
    /// Rejects TLS flags for an http:// server, because the user expects an encrypted connection.
    pub fn check_unused(&self, url: &str) -> anyhow::Result<()> {
        let flags = [
            ("--tls-ca", &self.tls_ca),
            ("--tls-client-cert", &self.tls_client_cert),
            ("--tls-client-key", &self.tls_client_key),
        ];
        let used = flags.iter().find(|(_, path)| path.is_some());
        ensure!(
            used.is_none(),
            "{} needs TLS, but {url} does not use it: use https://",
            used.map_or("", |(flag, _)| flag)
        );
        Ok(())
    }
}

impl ConnectArgs {
    /// Arguments for a server without TLS and without an API key.
    pub fn to(server: &str) -> Self {
        Self { server: server.into(), api_key: None, tls: TlsArgs::default(), timeout: None }
    }

    /// Connects immediately, so that a missing server or a wrong protocol is reported at once.
    pub async fn channel(&self) -> anyhow::Result<Connection> {
        let address = Address::parse(&self.server)?;
        // The dialer does TLS, so tonic gets an http URL. Calls have the real origin.
        let endpoint = Endpoint::from_shared(address.with_tls(false).to_string())?
            .origin(address.to_string().parse()?)
            .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT);
        let dialer = Arc::new(Dialer::new(address, &self.tls)?);
        let first = Arc::new(Mutex::new(Some(dialer.dial().await?)));
        let connector = service_fn(move |_: Uri| {
            let (dialer, first) = (dialer.clone(), first.lock().ok().and_then(|mut first| first.take()));
            async move {
                match first {
                    Some(first) => anyhow::Ok(TokioIo::new(first)),
                    None => Ok(TokioIo::new(dialer.dial().await?)),
                }
            }
        });
        let channel = endpoint
            .connect_with_connector(connector)
            .await
            .map_err(|error| anyhow!(super::errors::root_cause(&error)))?;
        Ok(Connection::new(channel, Credentials(self.api_key.clone())))
    }

    /// Wraps a message in a request with the timeout of the command.
    pub fn request<T>(&self, message: T, default_seconds: u64) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(Duration::from_secs(self.timeout.unwrap_or(default_seconds)));
        request
    }
}

/// The usage client with the maximum message size of the API.
pub fn usage_client(channel: Connection) -> UsageServiceClient<Connection> {
    UsageServiceClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

/// The alert client with the maximum message size of the API.
pub fn alerts_client(channel: Connection) -> AlertServiceClient<Connection> {
    AlertServiceClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

/// The billing client with the maximum message size of the API.
pub fn billing_client(channel: Connection) -> BillingServiceClient<Connection> {
    BillingServiceClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

/// The catalogue client with the maximum message size of the API.
pub fn catalog_client(channel: Connection) -> CatalogServiceClient<Connection> {
    CatalogServiceClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

/// The client of the client service with the maximum message size of the API.
pub fn clients_client(channel: Connection) -> ClientServiceClient<Connection> {
    ClientServiceClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

/// The key client with the maximum message size of the API.
pub fn keys_client(channel: Connection) -> KeyServiceClient<Connection> {
    KeyServiceClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_error_without_a_server_says_how_to_start_one() {
        let args = ConnectArgs::to("127.0.0.1:1");
        let text = args.channel().await.unwrap_err().to_string();
        assert!(text.contains("no server answers at http://127.0.0.1:1"), "{text}");
        assert!(text.contains("meterd serve"), "{text}");
    }
}
