//! `meterd migrate`: updates the database schema, distributes the tables if requested, and exits.

use super::signals;
use crate::app;
use crate::config::Settings;
use crate::database::Database;
use anyhow::Context as _;
use meterd_store::database::{connect, distribution};
use sqlx::postgres::PgConnectOptions;
use std::process::ExitCode;

/// Arguments of `migrate`.
#[derive(clap::Args, Clone, Debug)]
pub struct MigrateArgs {
    #[command(flatten)]
    pub settings: Settings,
    /// Distribute the tables of clients over the workers of a Citus cluster
    ///
    /// The database must be on the coordinator, the extension citus must exist on all nodes, and the coordinator must
    /// know its workers. Stop all servers of this database first. meterd cannot undo the distribution.
    #[arg(long)]
    pub distribute: bool,
    /// Allow at once what replicas of the previous release would get wrong
    ///
    /// For an hour after an update of the schema, a server creates no prices that replicas of the previous release would ignore, such as
    /// those for one plan, no grants of credits and no alerts of new types. Stop these replicas before you use this flag. An embedded
    /// database has none, so `migrate` and `serve` end the hour themselves.
    #[arg(long)]
    pub previous_release_stopped: bool,
}

/// Migrates the database and prints its location.
pub async fn run(args: MigrateArgs) -> anyhow::Result<ExitCode> {
    let stop = signals::stop_signal()?;
    let database = Database::open_initialized(&args.settings.database).await?;
    let migrate = async {
        app::prepare(&database.options, &args.settings).await?;
        if args.previous_release_stopped || database.embedded().is_some() {
            app::end_previous_release(&database.options).await?;
        }
        if args.distribute { distribute(&database.options).await.map(Some) } else { Ok(None) }
    };
    let migrated = signals::unless_stopped(stop, migrate).await;
    let migrated = database.explain(migrated);
    let description = database.describe();
    database.close().await?;
    let distributed = migrated?;
    println!("The schema is up to date: {description}");
    if let Some(distributed) = distributed {
        println!("{distributed}");
    }
    Ok(ExitCode::SUCCESS)
}

/// Distributes the tables, and returns what was done.
async fn distribute(options: &PgConnectOptions) -> anyhow::Result<String> {
    let mut conn = connect::open(options).await?;
    let version = distribution::citus_version(&mut conn).await?.context(
        "--distribute: the database has no Citus. Run CREATE EXTENSION citus on the coordinator and on each worker, and \
         SELECT citus_add_node('<host>', 5432) on the coordinator for each worker",
    )?;
    let workers = distribution::worker_count(&mut conn).await?;
    anyhow::ensure!(
        workers > 0,
        "--distribute: the cluster has no worker. Run SELECT citus_add_node('<host>', 5432) on the coordinator for each worker"
    );
    let sessions = distribution::server_sessions(&mut conn).await?;
    anyhow::ensure!(
        sessions == 0,
        "--distribute: servers have {sessions} sessions in this database. Stop all servers and run this command again"
    );
    let distributed = distribution::distribute(&mut conn).await?;
    Ok(match distributed.is_empty() {
        true => format!("All tables are already distributed over {workers} workers (Citus {version})."),
        false => format!("Distributed over {workers} workers (Citus {version}): {}", distributed.join(", ")),
    })
}
