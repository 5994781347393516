//! `meterd serve`: runs the server and, without a database URL, the embedded PostgreSQL.

use super::signals;
use crate::app;
use crate::config::hints::{self, ConnectionHints};
use crate::config::{Access, AuthMode, Settings};
use crate::database::Database;
use crate::{net, preflight};
use meterd_engine::clock::Clock;
use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;

/// Arguments of `serve`.
#[derive(clap::Args, Clone, Debug)]
pub struct ServeArgs {
    /// Check the settings and exit, with 1 if one is wrong; does not start the server
    #[arg(long)]
    pub check: bool,
    /// Print the settings in effect as a settings file, with the origin of each and without secrets, and exit
    #[arg(long)]
    pub print_config: bool,
    #[command(flatten)]
    pub settings: Settings,
}

/// Runs the server until SIGINT, SIGTERM or SIGHUP.
pub async fn run(args: ServeArgs) -> anyhow::Result<ExitCode> {
    if args.check {
        preflight::check_while_running(&args.settings)?.iter().for_each(|note| eprintln!("note: {note}"));
        println!("the settings are valid");
        return Ok(ExitCode::SUCCESS);
    }
    // Registered first, so that a signal during the start also stops the server in order.
    let shutdown = signals::stop_signal()?;
    preflight::check(&args.settings)?;
    net::raise_open_files_limit(args.settings.net.inbound_connections_max);
    let database = Database::open(&args.settings.database).await?;
    let served = serve(args.settings, &database, shutdown).await;
    let closed = database.close().await;
    served?;
    closed?;
    tracing::info!("stopped");
    Ok(ExitCode::SUCCESS)
}

async fn serve(settings: Settings, database: &Database, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
    let deployment = database.explain(app::prepare(&database.options, &settings).await)?;
    if database.embedded().is_some() {
        // No other server uses the embedded database.
        database.explain(app::end_previous_release(&database.options).await)?;
    }
    let built = app::build(settings, &database.options, deployment, Clock::system()).await;
    let app = database.explain(built)?;
    print_banner(&app, database);
    app.run(shutdown, database.embedded()).await
}

/// Describes who can call the server.
fn access(settings: &Settings, grpc: SocketAddr) -> &'static str {
    let needs_certificate = settings.net.tls_client_ca.is_some();
    match (settings.auth.auth, needs_certificate) {
        (AuthMode::Keys, true) => {
            "every call needs an API key, every connection a certificate signed by --tls-client-ca"
        }
        (AuthMode::Keys, false) => "every call needs an API key",
        (AuthMode::Off, true) => "everyone with a certificate signed by --tls-client-ca can call",
        (AuthMode::Off, false) if grpc.ip().is_loopback() => "everyone on this machine can call",
        (AuthMode::Off, false) => "everyone who can reach it can call",
    }
}

fn warn_of_unencrypted_keys(settings: &Settings) {
    let addresses = [settings.listen, settings.http_listen];
    let is_remote = addresses.iter().any(|address| !address.ip().is_loopback());
    if is_remote && settings.auth.auth == AuthMode::Keys && settings.net.tls_cert.is_none() {
        tracing::warn!(
            "API keys are sent without encryption: add --tls-cert and --tls-key, unless a proxy in front of meterd provides \
             TLS"
        );
    }
}

/// Prints the addresses of the server and example commands.
fn print_banner(app: &app::App, database: &Database) {
    let (grpc, http) = (app.grpc_address(), app.http_address());
    let settings = &app.context().settings;
    warn_of_unencrypted_keys(settings);
    let connection = ConnectionHints::of(settings, grpc, http);
    let (meterd, flags) = (hints::program(), &connection.flags);
    let mut lines = vec![
        format!("meterd {} is ready", env!("CARGO_PKG_VERSION")),
        format!("  gRPC     {grpc}   ({})", access(settings, grpc)),
        format!("  health   {0}/readyz   metrics {0}/metrics", connection.http),
        format!("  data     {}", database.describe()),
        String::new(),
    ];
    if settings.auth.auth == AuthMode::Keys {
        lines.push("Create an API key, or set METERD_API_KEY to an existing one:".into());
        lines.push(format!("  export METERD_API_KEY=$({} --quiet)", hints::first_key("ops", &settings.database)));
    }
    if settings.net.tls_client_ca.is_some() {
        lines.push(
            "Set CLIENT_CERT and CLIENT_KEY to the files of a certificate that the server accepts, and of its key."
                .into(),
        );
    }
    lines.push("Record an event, then show the month:".into());
    lines.push(format!(
        "  {meterd} track{flags} acme openai --operation chat_completion --model gpt-4o-mini --input-tokens 374 --output-tokens 44"
    ));
    lines.push(format!("  {meterd} usage{flags} acme"));
    if settings.auth.reflection != Access::Off {
        lines.push("Or call it over gRPC from any language, for example with grpcurl:".into());
        lines.push(format!(
            "  grpcurl{} -d '{{\"event\":{{\"client_id\":\"acme\",\"service\":\"twilio_sms\",\"units\":\"3\"}}}}' \\\n    {} metering.v1.UsageService/TrackUsage",
            connection.grpcurl, connection.address
        ));
    }
    lines.push(String::new());
    let text = lines.join("\n");
    // In a separate thread, because standard output can block. Errors are ignored.
    let write = move || drop(writeln!(std::io::stdout(), "{text}"));
    drop(std::thread::Builder::new().name("banner".into()).spawn(write));
}
