//! `meterd verify`: proves that rollups and totals equal the events, client and month by client and month.

use crate::config::DatabaseSettings;
use crate::database::{Database, command_pool};
use crate::domain::period::Month;
use crate::domain::rollup::Sums;
use crate::store::connect::allow_long_statements;
use crate::store::verify::{self, Difference, RollupRow};
use crate::store::{deployment, partitions};
use indicatif::{ProgressBar, ProgressStyle};
use sqlx::PgPool;
use std::process::ExitCode;

/// Arguments of `verify`.
#[derive(clap::Args, Clone, Debug)]
pub struct VerifyArgs {
    #[command(flatten)]
    pub database: DatabaseSettings,
    /// Only this client
    #[arg(long)]
    pub client: Option<String>,
    /// Only this month, such as 2026-11
    #[arg(long, value_parser = parse_month)]
    pub month: Option<Month>,
}

fn parse_month(text: &str) -> Result<Month, String> {
    Month::parse(text).ok_or_else(|| "must be a month such as 2026-11".into())
}

/// What a verification found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    pub client_months: usize,
    /// Client-months that are past their retention: nothing is left to compare them with.
    pub closed_client_months: usize,
    pub events: i64,
    pub differences: usize,
}

/// Verifies, prints every difference, and exits with 1 if there is one.
pub async fn run(args: VerifyArgs) -> anyhow::Result<ExitCode> {
    let database = Database::open_beside(&args.database).await?;
    let pool = command_pool(&database.options);
    let verified = verify_all(&pool, args.client.as_deref(), args.month).await;
    pool.close().await;
    database.close().await?;
    let Verified { client_months, closed_client_months, events, differences } = verified?;
    if closed_client_months > 0 {
        println!("{closed_client_months} client-months are closed and not compared");
    }
    println!("{client_months} client-months, {events} events: {differences} differences");
    Ok(if differences == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Verifies each client-month in one snapshot of its own, and prints what differs.
pub async fn verify_all(pool: &PgPool, client: Option<&str>, month: Option<Month>) -> anyhow::Result<Verified> {
    let months = verify::client_months(pool, client, month, month).await?;
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} client-months {eta}")?;
    // Draws on a terminal only.
    let progress = ProgressBar::new(months.len() as u64).with_style(style);
    let mut verified = Verified::default();
    for (client_id, month) in months {
        let mut tx = pool.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
        allow_long_statements(&mut tx).await?;
        // Before the snapshot: what is open in it has its events.
        partitions::keep(&mut tx).await?;
        progress.inc(1);
        if deployment::closed_through(&mut tx).await?.is_some_and(|closed| month <= closed) {
            verified.closed_client_months += 1;
            continue;
        }
        verified.client_months += 1;
        verified.events += verify::event_count(&mut tx, &client_id, month).await?;
        for difference in verify::differences(&mut tx, &client_id, month).await? {
            verified.differences += 1;
            progress.suspend(|| print(&client_id, month, &difference));
        }
        tx.commit().await?;
    }
    progress.finish_and_clear();
    Ok(verified)
}

fn print(client_id: &str, month: Month, difference: &Difference) {
    let row = match &difference.row {
        RollupRow::Month => "month total".to_string(),
        RollupRow::MonthService { service } => format!("month of {service}"),
        RollupRow::Day { day, service, operation, model } => {
            format!("{day} {service} operation={operation:?} model={model:?}")
        }
    };
    println!("{client_id:?} {month}, {row}: {}", explain(&difference.expected, &difference.actual));
}

/// The sums that differ, as the events have them and as the row does.
fn explain(expected: &Sums, actual: &Sums) -> String {
    let columns = |sums: &Sums| {
        [
            ("requests", sums.request_count.to_string()),
            ("units", sums.units.to_string()),
            ("input_tokens", sums.input_tokens.to_string()),
            ("output_tokens", sums.output_tokens.to_string()),
            ("cached_input_tokens", sums.cached_input_tokens.to_string()),
            ("cost", sums.cost.to_string()),
            ("unpriced", sums.unpriced_event_count.to_string()),
        ]
    };
    let differing = columns(expected)
        .into_iter()
        .zip(columns(actual))
        .filter(|(expected, actual)| expected != actual)
        .map(|((name, expected), (_, actual))| format!("{name} is {actual}, the events say {expected}"));
    differing.collect::<Vec<_>>().join("; ")
}
