//! `meterd serve`: the server, and what it stands on.

use crate::app;
use crate::clock::Clock;
use crate::config::{AuthMode, Settings};
use crate::database::Database;
use crate::net::{self, Tls};
use std::io::Write;
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};

/// Arguments of `serve`.
#[derive(clap::Args, Clone, Debug)]
pub struct ServeArgs {
    #[command(flatten)]
    pub settings: Settings,
}

/// Serves until SIGINT or SIGTERM.
pub async fn run(args: ServeArgs) -> anyhow::Result<ExitCode> {
    // Taken first, so that a signal during the start ends it in order too.
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let shutdown = async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    };
    args.settings.check_exposure()?;
    args.settings.check_retention()?;
    // Read here too, so that a wrong file is told before a database is opened for it.
    Tls::load(&args.settings.net)?;
    net::allow_open_files(&args.settings.net);
    let database = Database::open(&args.settings.database).await?;
    let served = serve(args.settings, &database, shutdown).await;
    let closed = database.close().await;
    served?;
    closed?;
    tracing::info!("stopped");
    Ok(ExitCode::SUCCESS)
}

async fn serve(settings: Settings, database: &Database, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
    let deployment = database.explained(app::prepare(&database.options, &settings).await)?;
    let built = app::build(settings, &database.options, deployment, Clock::system()).await;
    let app = database.explained(built)?;
    greet(&app, database);
    app.run(shutdown, database.embedded()).await
}

/// Who may call.
fn access(settings: &Settings) -> &'static str {
    match settings.auth.auth {
        AuthMode::Off => {
            if settings.insecure_listen {
                "anybody who reaches it may call"
            } else {
                "anybody on this machine may call"
            }
        }
        AuthMode::Keys => "every call needs an API key",
    }
}

fn warn_of_keys_in_the_clear(settings: &Settings) {
    let addresses = [settings.listen, settings.http_listen];
    let beyond = addresses.iter().any(|address| !address.ip().is_loopback());
    if beyond && settings.auth.auth == AuthMode::Keys && settings.net.tls_cert.is_none() {
        tracing::warn!(
            "API keys travel in the clear: give --tls-cert and --tls-key, unless a proxy on the way here does TLS"
        );
    }
}

/// Tells people where everything is and what to type.
fn greet(app: &app::App, database: &Database) {
    let (grpc, http) = (app.grpc_address(), app.http_address());
    let settings = &app.context().settings;
    warn_of_keys_in_the_clear(settings);
    // As this was called, since `cargo run` puts no meterd on the PATH.
    let meterd = std::env::args().next().unwrap_or_else(|| "meterd".into());
    let (server, scheme, plain) = match &settings.net.tls_cert {
        Some(_) => (format!(" --server https://{grpc}"), "https", ""),
        None if grpc.to_string() == "127.0.0.1:50051" => (String::new(), "http", "-plaintext "),
        None => (format!(" --server {grpc}"), "http", "-plaintext "),
    };
    // A closed stdout is no reason to stop.
    let _ = writeln!(
        std::io::stdout(),
        "meterd {version} is ready
  gRPC     {grpc}   ({access})
  health   {scheme}://{http}/readyz   metrics {scheme}://{http}/metrics
  data     {data}

Record an event, then read the month:
  {meterd} track{server} acme openai --operation chat_completion --model gpt-4o-mini --input-tokens 374 --output-tokens 44
  {meterd} usage{server} acme
or from any language over gRPC, here with grpcurl:
  grpcurl {plain}-d '{{\"event\":{{\"client_id\":\"acme\",\"service\":\"twilio_sms\",\"units\":\"3\"}}}}' \\
    {grpc} metering.v1.UsageService/TrackUsage
",
        version = env!("CARGO_PKG_VERSION"),
        access = access(settings),
        data = database.describe(),
    );
}
