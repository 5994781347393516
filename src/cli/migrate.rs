//! `meterd migrate`: updates the database schema and exits.

use super::signals;
use crate::app;
use crate::config::Settings;
use crate::database::Database;
use std::process::ExitCode;

/// Arguments of `migrate`.
#[derive(clap::Args, Clone, Debug)]
pub struct MigrateArgs {
    #[command(flatten)]
    pub settings: Settings,
}

/// Migrates the database and prints its location.
pub async fn run(args: MigrateArgs) -> anyhow::Result<ExitCode> {
    let stop = signals::stop_signal()?;
    let database = Database::open_initialized(&args.settings.database).await?;
    let prepared = signals::unless_stopped(stop, app::prepare(&database.options, &args.settings)).await;
    let prepared = database.explain(prepared);
    let description = database.describe();
    database.close().await?;
    prepared?;
    println!("The schema is up to date: {description}");
    Ok(ExitCode::SUCCESS)
}
