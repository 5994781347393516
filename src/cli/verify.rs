//! `meterd verify`: proves that rollups and totals equal the events, client and month by client and month.

use crate::config::DatabaseSettings;
use crate::database::{Database, command_pool};
use crate::domain::period::Month;
use crate::domain::rollup::Sums;
use crate::store::connect::{allow_long_statements, plan_for_values};
use crate::store::verify::{self, Compared, Difference, RollupRow, Scope};
use crate::store::{deployment, partitions};
use futures_util::{StreamExt, TryStreamExt, stream};
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

/// Clients that are compared at once: enough that their events are read in the order in which they lie, few enough that what
/// PostgreSQL keeps of them meanwhile is little.
const LOT_CLIENTS: i64 = 1_000;
/// Lots at the same time: one for each connection of a command.
const LOTS_AT_ONCE: usize = 2;

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
    let verified = database.explained(verify_all(&pool, args.client.as_deref(), args.month).await);
    pool.close().await;
    database.close().await?;
    let Verified { client_months, closed_client_months, events, differences } = verified?;
    if closed_client_months > 0 {
        println!("{closed_client_months} client-months are closed and not compared");
    }
    println!("{client_months} client-months, {events} events: {differences} differences");
    Ok(if differences == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Verifies some clients after the other, each lot in one snapshot of its own, and prints what differs.
pub async fn verify_all(pool: &PgPool, client: Option<&str>, month: Option<Month>) -> anyhow::Result<Verified> {
    let whole = Scope { client_id: client.map(String::from), first: month, last: month, ..Scope::default() };
    let mut tx = pool.begin().await?;
    allow_long_statements(&mut tx).await?;
    let bounds = if client.is_some() { vec![] } else { verify::bounds(&mut tx, LOT_CLIENTS).await? };
    tx.commit().await?;
    let (after, upto) = (bounds.iter().map(Some), bounds.iter().map(Some));
    let lots = std::iter::once(None).chain(after).zip(upto.chain([None]));
    let lots = lots.map(|(after, upto)| Scope { after: after.cloned(), upto: upto.cloned(), ..whole.clone() });
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} lots of clients {eta}")?;
    // Draws on a terminal only.
    let progress = ProgressBar::new(bounds.len() as u64 + 1).with_style(style);
    let mut verified = Verified::default();
    let mut compared = stream::iter(lots).map(async |lot| verify_lot(pool, lot).await).buffered(LOTS_AT_ONCE);
    while let Some(compared) = compared.try_next().await? {
        progress.inc(1);
        verified.client_months += usize::try_from(compared.client_months)?;
        verified.events += compared.events;
        verified.differences += compared.differences.len();
        progress.suspend(|| compared.differences.iter().for_each(print));
    }
    progress.finish_and_clear();
    let mut tx = pool.begin().await?;
    allow_long_statements(&mut tx).await?;
    if let Some(closed) = deployment::closed_through(&mut tx).await? {
        verified.closed_client_months = usize::try_from(verify::count_until(&mut tx, &whole, closed).await?)?;
    }
    Ok(verified)
}

/// Compares what is open.
async fn verify_lot(pool: &PgPool, lot: Scope) -> anyhow::Result<Compared> {
    let mut tx = pool.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
    allow_long_statements(&mut tx).await?;
    plan_for_values(&mut tx).await?;
    // Before the snapshot: what is open in it has its events.
    partitions::keep(&mut tx).await?;
    let open = deployment::closed_through(&mut tx).await?.map(Month::next);
    let compared = verify::compare(&mut tx, &Scope { first: lot.first.max(open), ..lot }).await?;
    tx.commit().await?;
    Ok(compared)
}

fn print(difference: &Difference) {
    let Difference { client_id, month, .. } = difference;
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
