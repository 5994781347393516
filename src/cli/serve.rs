//! `meterd serve`: the server, and what it stands on.

use super::signals;
use crate::app;
use crate::clock::Clock;
use crate::config::hints::{self, ConnectionHints};
use crate::config::{Access, AuthMode, Settings};
use crate::database::Database;
use crate::{net, preflight};
use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;

/// Arguments of `serve`.
#[derive(clap::Args, Clone, Debug)]
pub struct ServeArgs {
    /// Check the settings and exit, with 1 if one is wrong; start and change nothing
    #[arg(long)]
    pub check: bool,
    /// Print the settings in effect, with where each comes from, as a settings file without secrets, and exit
    #[arg(long)]
    pub print_config: bool,
    #[command(flatten)]
    pub settings: Settings,
}

/// Serves until SIGINT, SIGTERM or SIGHUP.
pub async fn run(args: ServeArgs) -> anyhow::Result<ExitCode> {
    if args.check {
        preflight::check_while_running(&args.settings)?.iter().for_each(|note| eprintln!("note: {note}"));
        println!("the settings are valid");
        return Ok(ExitCode::SUCCESS);
    }
    // Taken first, so that a signal during the start ends it in order too.
    let shutdown = signals::asked_to_stop()?;
    preflight::check(&args.settings)?;
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
    let deployment = database.explain(app::prepare(&database.options, &settings).await)?;
    let built = app::build(settings, &database.options, deployment, Clock::system()).await;
    let app = database.explain(built)?;
    greet(&app, database);
    app.run(shutdown, database.embedded()).await
}

/// Who may call.
fn access(settings: &Settings, grpc: SocketAddr) -> &'static str {
    let asks_for_certificates = settings.net.tls_client_ca.is_some();
    match (settings.auth.auth, asks_for_certificates) {
        (AuthMode::Keys, true) => "every call needs an API key, every connection a certificate of --tls-client-ca",
        (AuthMode::Keys, false) => "every call needs an API key",
        (AuthMode::Off, true) => "whoever has a certificate of --tls-client-ca may call",
        (AuthMode::Off, false) if grpc.ip().is_loopback() => "anybody on this machine may call",
        (AuthMode::Off, false) => "anybody who reaches it may call",
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
    let reach = ConnectionHints::of(settings, grpc, http);
    let (meterd, flags) = (hints::program(), &reach.flags);
    let mut lines = vec![
        format!("meterd {} is ready", env!("CARGO_PKG_VERSION")),
        format!("  gRPC     {grpc}   ({})", access(settings, grpc)),
        format!("  health   {0}/readyz   metrics {0}/metrics", reach.http),
        format!("  data     {}", database.describe()),
        String::new(),
    ];
    if settings.auth.auth == AuthMode::Keys {
        lines.push("With a key, such as a new one:".into());
        lines.push(format!("  export METERD_API_KEY=$({} --quiet)", hints::first_key("ops", &settings.database)));
    }
    if settings.net.tls_client_ca.is_some() {
        lines.push("With a certificate that the server takes, in the files $CLIENT_CERT and $CLIENT_KEY:".into());
    }
    lines.push("Record an event, then read the month:".into());
    lines.push(format!(
        "  {meterd} track{flags} acme openai --operation chat_completion --model gpt-4o-mini --input-tokens 374 --output-tokens 44"
    ));
    lines.push(format!("  {meterd} usage{flags} acme"));
    if settings.auth.reflection != Access::Off {
        lines.push("or from any language over gRPC, here with grpcurl:".into());
        lines.push(format!(
            "  grpcurl{} -d '{{\"event\":{{\"client_id\":\"acme\",\"service\":\"twilio_sms\",\"units\":\"3\"}}}}' \\\n    {} metering.v1.UsageService/TrackUsage",
            reach.grpcurl, reach.address
        ));
    }
    lines.push(String::new());
    let text = lines.join("\n");
    // By a thread of its own and whatever comes of it: the server goes on without a reader.
    let write = move || drop(writeln!(std::io::stdout(), "{text}"));
    drop(std::thread::Builder::new().name("banner".into()).spawn(write));
}
