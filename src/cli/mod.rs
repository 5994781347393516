//! The commands of meterd, one file or folder for each. Each command has a struct of arguments and a function `run`.

pub mod adjustments;
pub mod alerts;
pub mod audit;
pub mod clients;
pub mod correct;
pub mod credits;
pub mod explain;
pub mod export;
pub mod import;
pub mod jobs;
pub mod keys;
pub mod limits;
pub mod migrate;
pub mod notifications;
pub mod plans;
pub mod prices;
pub mod query;
pub mod rebuild;
pub mod serve;
pub mod summary;
pub mod track;
pub mod unpriced;
pub mod usage;
pub mod verify;
pub mod void;

pub mod address;
pub mod chart;
pub mod connect;
pub mod decimal;
pub mod dial;
pub mod entry;
pub mod errors;
pub mod forecast;
pub mod help;
pub mod hints;
pub mod json;
pub mod money;
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
    ///
    /// Short form: `meterd track acme twilio_sms 3` records 3 units of the service twilio_sms for the client acme.
    Track(Box<track::TrackArgs>),
    /// Show the usage of a client
    ///
    /// Without --month and --start, the command shows the current month. With --start but without --end, it shows the days up
    /// to today.
    Usage(usage::UsageArgs),
    /// Show the costs of all clients in a month
    ///
    /// Shows the cost by service, the change from the month before, and the projected cost of the current month. Usage of the
    /// last seconds may be missing; the line `complete as of` has the time. A month without usage is an error, unless
    /// --allow-empty is set.
    Summary(summary::SummaryArgs),
    /// List usage without a price and show how to set one
    ///
    /// Usage without a price is recorded, and its requests, units and tokens are counted, but it is not included in any cost.
    /// meterd prices it as soon as a price applies to it. The default range is the last 366 days.
    Unpriced(unpriced::UnpricedArgs),
    /// Show usage grouped by days, hours, clients, models or labels
    ///
    /// If events have a cost that the provider reported, it is shown next to the charge, with the number of events that have one, and
    /// with the difference if all have one. Queries for hours, subjects and labels read the events, a million in one to two seconds: name the
    /// clients and few days. The default range is the current month.
    Query(query::QueryArgs),
    /// Void events, so that they count in no sum
    ///
    /// The events stay in lists and exports, with the time at which they were voided.
    Void(void::VoidArgs),
    /// Correct fields of a recorded event, which is then charged again
    ///
    /// Fields that are not set stay as the command has read them, so it also needs the scope read. The client, the time and the key
    /// of an event cannot be corrected: void the event and record another one.
    Correct(Box<correct::CorrectArgs>),
    /// Show where the charge of an event, or the cost of days, comes from
    ///
    /// For an event: its price, each rate, and its adjustments. With --month or --start: the sums of the quantities of each price,
    /// times its rates.
    Explain(explain::ExplainArgs),
    /// List the changes of a client's recorded events: voids, corrections and other prices
    Adjustments(adjustments::AdjustmentsArgs),
    /// List, show, create and change clients
    Clients(clients::ClientsArgs),
    /// List and create plans, set the plan of a client, and show its fees
    Plans(plans::PlansArgs),
    /// Grant credits to clients, and show what they have paid and what is left
    ///
    /// Credits pay for usage when it is recorded, if the grant is valid on the day of the usage.
    Credits(credits::CreditsArgs),
    /// List, set and delete limits of clients, and show how much of them is left
    Limits(limits::LimitsArgs),
    /// List prices and create new ones
    Prices(prices::PricesArgs),
    /// Follow, list, acknowledge and check alerts
    Alerts(alerts::AlertsArgs),
    /// Record the rows of CSV or NDJSON files as events
    Import(Box<import::ImportArgs>),
    /// Write recorded events to a CSV or NDJSON file
    ///
    /// The export is a consistent snapshot. Without --month, --start and --end, it contains all events. `meterd import` can read
    /// the file. If there are no events, the command fails, unless --allow-empty is set.
    Export(export::ExportArgs),
    /// Prove that rollups and totals equal the events
    Verify(verify::VerifyArgs),
    /// Recompute rollups and totals from the events
    ///
    /// Needs --month, or --start and --end. Recomputes all months that contain a day of the range, and changes only rows that
    /// differ from the events.
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
            Command::Query(args) => query::run(args).await,
            Command::Void(args) => void::run(args).await,
            Command::Correct(args) => correct::run(*args).await,
            Command::Explain(args) => explain::run(args).await,
            Command::Adjustments(args) => adjustments::run(args).await,
            Command::Clients(args) => clients::run(args).await,
            Command::Plans(args) => plans::run(args).await,
            Command::Credits(args) => credits::run(args).await,
            Command::Limits(args) => limits::run(args).await,
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
