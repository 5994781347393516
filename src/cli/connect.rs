//! How commands reach the server, and how its errors read.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{anyhow, ensure};
use clap::Args;
use hyper_util::rt::TokioIo;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::interceptor::{InterceptedService, Interceptor};
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;
use tower::service_fn;

use super::address::{Address, PORT_DEFAULT};
use super::dial::Dialer;
use crate::proto::alert_service_client::AlertServiceClient;
use crate::proto::catalog_service_client::CatalogServiceClient;
use crate::proto::client_service_client::ClientServiceClient;
use crate::proto::key_service_client::KeyServiceClient;
use crate::proto::usage_service_client::UsageServiceClient;
use crate::proto::{EventError, FieldViolation};

/// Largest message in both directions: the contract's bound.
pub const MESSAGE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// A peer that is gone without a word is noticed within these two.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection that presents the API key with every call.
pub type Connection = InterceptedService<Channel, Credentials>;

/// An API key as the header that it is sent in. Does not show itself.
#[derive(Clone)]
pub struct ApiKeyArg(MetadataValue<Ascii>);

impl std::fmt::Debug for ApiKeyArg {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ApiKeyArg(…)")
    }
}

fn parse_api_key(text: &str) -> Result<ApiKeyArg, String> {
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

/// Where the server is. Flattened into every command that talks to it.
#[derive(Args, Clone, Debug)]
pub struct ConnectArgs {
    /// Address of the server; without a port, 50051 is meant
    #[arg(long, env = "METERD_SERVER", default_value = "http://127.0.0.1:50051", value_name = "URL")]
    pub server: String,
    /// API key, where the server asks for one
    #[arg(long, env = "METERD_API_KEY", hide_env_values = true, value_name = "TOKEN", value_parser = parse_api_key)]
    pub api_key: Option<ApiKeyArg>,
    #[command(flatten)]
    pub tls: TlsArgs,
    /// Seconds that one call may take [default: depends on the command]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub timeout: Option<u64>,
}

/// How an https:// server is known, and how it knows its caller.
#[derive(Args, Clone, Debug, Default)]
pub struct TlsArgs {
    /// Certificates, PEM: the server's own, or the one that signed it [default: those of the system]
    #[arg(long, env = "METERD_TLS_CA", value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,
    /// Certificate chain to show to a server that asks for one, PEM
    #[arg(long, env = "METERD_TLS_CLIENT_CERT", value_name = "FILE")]
    pub tls_client_cert: Option<PathBuf>,
    /// Private key of that certificate, PEM
    #[arg(long, env = "METERD_TLS_CLIENT_KEY", value_name = "FILE")]
    pub tls_client_key: Option<PathBuf>,
}

impl TlsArgs {
    /// Files of TLS for a server that speaks in the clear: the caller means otherwise, and should not be in the clear unawares.
    pub fn check_unused(&self, url: &str) -> anyhow::Result<()> {
        let flags = [
            ("--tls-ca", &self.tls_ca),
            ("--tls-client-cert", &self.tls_client_cert),
            ("--tls-client-key", &self.tls_client_key),
        ];
        let given = flags.iter().find(|(_, path)| path.is_some());
        ensure!(given.is_none(), "{} is for TLS, and {url} is not: use https://", given.map_or("", |(flag, _)| flag));
        Ok(())
    }
}

impl ConnectArgs {
    /// A server, and nothing else.
    pub fn to(server: &str) -> Self {
        Self { server: server.into(), api_key: None, tls: TlsArgs::default(), timeout: None }
    }

    /// Connects now, so that a server that is not there, or something else that is, is told at once.
    pub async fn channel(&self) -> anyhow::Result<Connection> {
        let address = Address::parse(&self.server)?;
        // TLS is the dialer's, hence http for tonic; calls carry the true origin.
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
        let channel = endpoint.connect_with_connector(connector).await.map_err(|error| anyhow!(root_cause(&error)))?;
        Ok(Connection::new(channel, Credentials(self.api_key.clone())))
    }

    /// A request with this command's time limit.
    pub fn request<T>(&self, message: T, default_seconds: u64) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(Duration::from_secs(self.timeout.unwrap_or(default_seconds)));
        request
    }
}

/// The usage client with the contract's message bound.
pub fn usage_client(channel: Connection) -> UsageServiceClient<Connection> {
    UsageServiceClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

/// The alert client with the contract's message bound.
pub fn alerts_client(channel: Connection) -> AlertServiceClient<Connection> {
    AlertServiceClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

/// The catalogue client with the contract's message bound.
pub fn catalog_client(channel: Connection) -> CatalogServiceClient<Connection> {
    CatalogServiceClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

/// The client-service client with the contract's message bound.
pub fn clients_client(channel: Connection) -> ClientServiceClient<Connection> {
    ClientServiceClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

/// The key client with the contract's message bound.
pub fn keys_client(channel: Connection) -> KeyServiceClient<Connection> {
    KeyServiceClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

/// A status as lines for people: the reason, what is wrong, and what to do. Nothing is said twice.
pub fn status_text(status: &Status) -> String {
    if is_no_grpc(status) {
        return format!(
            "what answers is no gRPC server ({}): --server must name the port of --listen, {PORT_DEFAULT} by default, and not \
             the one of /healthz and /metrics",
            status.message()
        );
    }
    let info = status.get_details_error_info();
    let name = match &info {
        Some(info) => info.reason.clone(),
        None => format!("{:?}", status.code()),
    };
    let violations = status.get_details_bad_request().map(|bad| bad.field_violations).unwrap_or_default();
    let lines: Vec<_> = violations.into_iter().map(|wrong| violation_text(&wrong.field, &wrong.description)).collect();
    let mut text = match (status.message(), &lines[..]) {
        ("", _) => name,
        // The message repeats the violations.
        (message, [first, rest @ ..]) if message.contains(first.as_str()) => match rest {
            [] => format!("{name}: {first}"),
            _ => format!("{name}: {} fields are wrong", lines.len()),
        },
        (message, _) => format!("{name}: {message}"),
    };
    let is_said = |text: &str, line: &str| text.contains(line);
    for line in &lines {
        if !is_said(&text, line) {
            text.push_str(&format!("\n  {line}"));
        }
    }
    if let Some(hint) = hint(status) {
        text.push_str(&format!("\n  {hint}"));
    }
    let mut metadata: Vec<_> = info.into_iter().flat_map(|info| info.metadata).collect();
    metadata.sort();
    for (key, value) in metadata {
        if !value.is_empty() && !is_said(&text, &value) {
            text.push_str(&format!("\n  ({key} {value})"));
        }
    }
    text
}

fn violation_text(field: &str, description: &str) -> String {
    format!("{field}: {description}")
}

/// What to do, where the server does not say it in the words of a command.
fn hint(status: &Status) -> Option<String> {
    let reason = status.get_details_error_info().map(|info| info.reason).unwrap_or_default();
    match (reason.as_str(), status.code()) {
        ("CREDENTIALS_MISSING", _) => Some(
            "give the key with METERD_API_KEY or --api-key; make the first one beside the server with \
             `meterd keys create NAME --scope admin --all-clients --direct`"
                .to_owned(),
        ),
        ("", Code::Unimplemented) => {
            Some("the server does not know this call: is it an older meterd, or something else?".to_owned())
        }
        _ if is_transport(status) => {
            let cause = std::error::Error::source(status).map(root_cause).unwrap_or_default();
            let cause =
                if cause.is_empty() || status.message().contains(&cause) { cause } else { format!(": {cause}") };
            Some(format!("the connection to the server broke or timed out{cause}"))
        }
        _ => None,
    }
}

/// A status as the error of a command.
pub fn status_error(status: &Status) -> anyhow::Error {
    anyhow::anyhow!(status_text(status))
}

/// An event's error as one line: each wrong field once, named as in a lone event, or else the message.
pub fn event_error_text(error: &EventError) -> String {
    let whole = |violation: &FieldViolation| violation_text(&violation.field, &violation.description);
    let is_repeated = error.field_violations.iter().any(|violation| error.message.contains(&whole(violation)));
    if !is_repeated {
        let violations = error.field_violations.iter().map(whole);
        return std::iter::once(error.message.clone())
            .filter(|text| !text.is_empty())
            .chain(violations)
            .collect::<Vec<_>>()
            .join("; ");
    }
    let of_event = |field: &str| match field.split_once('.') {
        Some((parent, field)) if parent == "event" || parent.starts_with("events[") => field.to_owned(),
        _ => field.to_owned(),
    };
    let violations = error.field_violations.iter();
    violations.map(|wrong| violation_text(&of_event(&wrong.field), &wrong.description)).collect::<Vec<_>>().join("; ")
}

/// Whether the same call may succeed later. Only for calls that are safe to repeat.
pub fn is_retryable(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::ResourceExhausted | Code::DeadlineExceeded)
        || is_transport(status)
}

/// The pause that the server asks for.
pub fn retry_delay(status: &Status) -> Option<Duration> {
    status.get_details_retry_info()?.retry_delay
}

/// Whether something answers over HTTP/2 that does not speak gRPC, such as the second port. The text is tonic's.
fn is_no_grpc(status: &Status) -> bool {
    matches!(status.code(), Code::Unimplemented | Code::Unknown)
        && status.message().contains("mapped from HTTP status code")
}

/// Not the server's word: tonic makes these from a broken connection or a local time limit, and keeps the cause.
fn is_transport(status: &Status) -> bool {
    matches!(status.code(), Code::Unknown | Code::Cancelled | Code::Internal)
        && std::error::Error::source(status).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic_types::{ErrorDetails, FieldViolation as Wrong};

    #[test]
    fn a_status_reads_with_its_reason_and_each_wrong_field() {
        let mut details =
            ErrorDetails::with_error_info("INVALID_FIELD", "metering.v1", [("request_id".to_owned(), "r1".to_owned())]);
        details.set_bad_request(vec![
            Wrong::new("event.units", "must be zero or more"),
            Wrong::new("event.service", "is required"),
        ]);
        let status = Status::with_error_details(Code::InvalidArgument, "2 fields are wrong", details);
        assert_eq!(
            status_text(&status),
            "INVALID_FIELD: 2 fields are wrong\n  event.units: must be zero or more\n  event.service: is required\n  (request_id r1)"
        );
    }

    #[test]
    fn nothing_is_said_twice() {
        let status = |violations: &[(&str, &str)], metadata: &[(&str, &str)]| {
            let of = |(field, text): &(&str, &str)| Wrong::new(*field, *text);
            let pairs = metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
            let mut details = ErrorDetails::with_error_info(
                "INVALID_FIELD",
                "metering.v1",
                pairs.collect::<std::collections::HashMap<_, _>>(),
            );
            details.set_bad_request(violations.iter().map(of).collect::<Vec<_>>());
            let message =
                violations.iter().map(|(field, text)| format!("{field}: {text}")).collect::<Vec<_>>().join("; ");
            Status::with_error_details(Code::InvalidArgument, message, details)
        };
        let one = status(&[("event.units", "must be zero or more")], &[("limit", "zero")]);
        assert_eq!(status_text(&one), "INVALID_FIELD: event.units: must be zero or more");
        let two = status(&[("a", "is required"), ("b", "is wrong")], &[]);
        assert_eq!(status_text(&two), "INVALID_FIELD: 2 fields are wrong\n  a: is required\n  b: is wrong");
    }

    #[test]
    fn an_event_of_a_batch_is_told_of_its_own_fields_once() {
        let violation = FieldViolation { field: "events[1].units".into(), description: "must be zero or more".into() };
        let error = EventError {
            message: "events[1].units: must be zero or more".into(),
            field_violations: vec![violation],
            ..Default::default()
        };
        assert_eq!(event_error_text(&error), "units: must be zero or more");
        let plain = EventError { message: "the server is stopping".into(), ..Default::default() };
        assert_eq!(event_error_text(&plain), "the server is stopping");
    }

    #[test]
    fn a_status_without_details_reads_with_its_code() {
        assert_eq!(status_text(&Status::not_found("no")), "NotFound: no");
        assert_eq!(status_text(&Status::internal("")), "Internal");
    }

    #[test]
    fn busy_and_away_are_retryable_and_wrong_input_is_not() {
        assert!(is_retryable(&Status::unavailable("")));
        assert!(is_retryable(&Status::resource_exhausted("")));
        assert!(is_retryable(&Status::deadline_exceeded("")));
        assert!(is_retryable(&Status::from_error(Box::new(std::io::Error::other("reset")))));
        assert!(!is_retryable(&Status::invalid_argument("")));
        assert!(!is_retryable(&Status::internal("")));
        assert!(!is_retryable(&Status::unknown("")));
    }

    #[test]
    fn the_pause_of_retry_info_is_read() {
        let details = ErrorDetails::with_retry_info(Some(Duration::from_millis(250)));
        let status = Status::with_error_details(Code::ResourceExhausted, "full", details);
        assert_eq!(retry_delay(&status), Some(Duration::from_millis(250)));
        assert_eq!(retry_delay(&Status::unavailable("")), None);
    }

    #[tokio::test]
    async fn an_absent_server_is_told_with_what_to_do() {
        let args = ConnectArgs::to("127.0.0.1:1");
        let text = args.channel().await.unwrap_err().to_string();
        assert!(text.contains("no server answers at http://127.0.0.1:1"), "{text}");
        assert!(text.contains("meterd serve"), "{text}");
    }
}
