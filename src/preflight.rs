//! Checks of settings before the server starts.

use crate::config::{DatabaseSettings, Settings, hints};
use crate::net::Tls;
use anyhow::ensure;
use meterd_engine::alerts::notify;
use meterd_engine::auth::{Access, Auth};
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};

/// Checks that a server can start with these settings. The error lists all faults.
pub fn check(settings: &Settings) -> anyhow::Result<()> {
    let mut faults = faults(settings);
    faults.extend(port_faults(settings).iter().map(PortFault::to_string));
    fail_if_any(&faults)
}

/// Checks the settings for `serve --check`, which can run while the server runs. The server may then use the ports, so a
/// port that is in use is only a note. Returns the notes.
pub fn check_while_running(settings: &Settings) -> anyhow::Result<Vec<String>> {
    let mut faults = faults(settings);
    let in_use = port_faults(settings);
    let (in_use, others): (Vec<_>, Vec<_>) = in_use.into_iter().partition(|fault| fault.is_in_use);
    faults.extend(others.iter().map(PortFault::to_string));
    let database = &settings.database;
    let may_be_running = database.database_url.is_some() || meterd_embedded_postgres::is_locked(&database.data_dir);
    let in_use = in_use.iter().map(PortFault::to_string);
    if !may_be_running {
        faults.extend(in_use);
        fail_if_any(&faults)?;
        return Ok(vec![]);
    }
    fail_if_any(&faults)?;
    Ok(in_use.map(|fault| format!("{fault}. Ignore this note if meterd itself uses the port")).collect())
}

fn fail_if_any(faults: &[String]) -> anyhow::Result<()> {
    match faults {
        [] => Ok(()),
        [fault] => anyhow::bail!("{fault}"),
        faults => anyhow::bail!("{} settings are wrong:\n{}", faults.len(), faults.join("\n")),
    }
}

fn faults(settings: &Settings) -> Vec<String> {
    let checks = [
        settings.check_exposure(),
        settings.check_ports(),
        settings.check_retention(),
        settings.auth.config().and_then(|config| config.check()),
        settings.net().and_then(|net| Tls::load(&net)).map(drop),
        settings.notifications.config().and_then(|config| notify::check(&config)),
        check_database(settings),
    ];
    let faults = checks.into_iter().filter_map(Result::err).map(|error| meterd_store::database::cause::text(&error));
    faults.map(|fault| hints::name_source(&fault)).collect()
}

fn check_database(settings: &Settings) -> anyhow::Result<()> {
    let database = &settings.database;
    match &database.database_url {
        Some(url) => {
            let parsed = meterd_store::database::url::parse(url.reveal());
            parsed.map(drop).map_err(|wrong| anyhow::anyhow!("DATABASE_URL (--database-url): {wrong}"))
        }
        None => {
            if let Some(url) = &database.postgres_download_url {
                let is_web = ["https://", "http://"].iter().any(|scheme| url.starts_with(scheme));
                ensure!(is_web, "--postgres-download-url {url}: must be a URL that begins with https:// or http://");
            }
            let data_dir = &database.data_dir;
            ensure!(
                !data_dir.starts_with("~"),
                "--data-dir {}: meterd does not expand \"~\": write the full path of the directory",
                data_dir.display()
            );
            Ok(meterd_embedded_postgres::check_settings(&database.embedded())?)
        }
    }
}

/// Checks that a server that requires credentials has at least one caller.
pub fn check_callers(auth: &Auth, database: &DatabaseSettings) -> anyhow::Result<()> {
    let fix = || format!("create one with `{}`", hints::first_key("NAME", database));
    match auth.access() {
        Access::Full => {}
        Access::WithoutAdmin => tracing::warn!("no valid API key has the scope admin for all clients: {}", fix()),
        Access::Nobody => anyhow::bail!(
            "--auth keys: there is no valid API key, so every call would be rejected: {}, or set an identity provider with \
             --jwt-issuer",
            fix()
        ),
    }
    Ok(())
}

/// An error of listening on a port.
struct PortFault {
    name: &'static str,
    address: SocketAddr,
    is_in_use: bool,
    error: std::io::Error,
}

impl std::fmt::Display for PortFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { name, address, error, .. } = self;
        let hint = if self.is_in_use { " (is another server running?)" } else { "" };
        write!(f, "{} {address}: cannot listen on this address{hint}: {error}", hints::name_source(name))
    }
}

/// Listens on both ports for a moment and returns the errors.
fn port_faults(settings: &Settings) -> Vec<PortFault> {
    if settings.check_ports().is_err() {
        return vec![];
    }
    let ports = [("--listen", settings.listen), ("--http-listen", settings.http_listen)];
    let listen = |(name, address): (&'static str, SocketAddr)| {
        let is_in_use = |error: &std::io::Error| error.kind() == ErrorKind::AddrInUse;
        TcpListener::bind(address).map_err(|error| PortFault { name, address, is_in_use: is_in_use(&error), error })
    };
    // Both at the same time, so that a conflict between the two is found.
    let listeners = ports.map(listen);
    listeners.into_iter().filter_map(Result::err).collect()
}
