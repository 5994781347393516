//! The commands of meterd, one file or folder for each. Each command has a struct of arguments and a function `run`.

pub mod alerts;
pub mod audit;
pub mod clients;
pub mod export;
pub mod import;
pub mod jobs;
pub mod keys;
pub mod migrate;
pub mod notifications;
pub mod prices;
pub mod rebuild;
pub mod serve;
pub mod summary;
pub mod track;
pub mod unpriced;
pub mod usage;
pub mod verify;

pub mod address;
pub mod chart;
pub mod connect;
pub mod decimal;
pub mod dial;
pub mod entry;
pub mod errors;
pub mod help;
pub mod hints;
pub mod json;
pub mod period;
pub mod retry;
pub mod sheet;
pub mod signals;
pub mod time;
pub mod trust;

use std::future::Future;
use std::pin::Pin;
use std::process::ExitCode;

/// The commands and their arguments.
#[derive(clap::Subcommand)]
pub enum Command {
    /// Run the server (the default)
    Serve(Box<serve::ServeArgs>),
    /// Update the database schema
    Migrate(Box<migrate::MigrateArgs>),
    /// Record one event
    Track(Box<track::TrackArgs>),
    /// Show the usage of a client
    Usage(usage::UsageArgs),
    /// Show the costs of all clients in a month
    Summary(summary::SummaryArgs),
    /// List usage without a price and show how to set one
    Unpriced(unpriced::UnpricedArgs),
    /// List, show, create and change clients
    Clients(clients::ClientsArgs),
    /// List prices and create new ones
    Prices(prices::PricesArgs),
    /// Follow, list, acknowledge and check alerts
    Alerts(alerts::AlertsArgs),
    /// Record the rows of CSV or NDJSON files as events
    Import(Box<import::ImportArgs>),
    /// Write recorded events to a CSV or NDJSON file
    Export(export::ExportArgs),
    /// Prove that rollups and totals equal the events
    Verify(verify::VerifyArgs),
    /// Recompute rollups and totals from the events
    Rebuild(rebuild::RebuildArgs),
    /// Show scheduled jobs and their last runs, or run a job now
    Jobs(jobs::JobsArgs),
    /// Create, list, rotate and revoke API keys
    Keys(keys::KeysArgs),
    /// Show the audit log of admin calls
    Audit(audit::AuditArgs),
    /// List alert notifications and retry failed ones
    Notifications(notifications::NotificationsArgs),
}

/// Runs a command. The future is boxed so that it is compiled only once, in this crate and not again in the binary.
pub fn run(command: Command) -> Pin<Box<dyn Future<Output = anyhow::Result<ExitCode>>>> {
    Box::pin(async {
        match command {
            Command::Serve(args) => serve::run(*args).await,
            Command::Migrate(args) => migrate::run(*args).await,
            Command::Track(args) => track::run(*args).await,
            Command::Usage(args) => usage::run(args).await,
            Command::Summary(args) => summary::run(args).await,
            Command::Unpriced(args) => unpriced::run(args).await,
            Command::Clients(args) => clients::run(args).await,
            Command::Prices(args) => prices::run(args).await,
            Command::Alerts(args) => alerts::run(args).await,
            Command::Import(args) => import::run(*args).await,
            Command::Export(args) => export::run(args).await,
            Command::Verify(args) => verify::run(args).await,
            Command::Rebuild(args) => rebuild::run(args).await,
            Command::Jobs(args) => jobs::run(args).await,
            Command::Keys(args) => keys::run(args).await,
            Command::Audit(args) => audit::run(args).await,
            Command::Notifications(args) => notifications::run(args).await,
        }
    })
}
