//! `meterd verify`: checks for each client and month that rollups and totals equal the events, and that idempotency keys and
//! events match, and that counters of limits equal the usage.

use super::hints;
use super::period::parse_month;
use super::signals;
use crate::config::DatabaseSettings;
use crate::database::{Database, command_pool};
use crate::print;
use anyhow::{anyhow, ensure};
use futures_util::{StreamExt, TryStreamExt, stream};
use indicatif::{ProgressBar, ProgressStyle};
use meterd_domain::period::Month;
use meterd_domain::rollup::Sums;
use meterd_domain::tiers::MonthUse;
use meterd_store::catalog;
use meterd_store::credits;
use meterd_store::database::connect::{allow_long_statements, plan_for_values};
use meterd_store::database::deployment;
use meterd_store::limits::counters::Counter;
use meterd_store::limits::verify::differences as limit_differences;
use meterd_store::usage::partitions;
use meterd_store::usage::tiers::{self, TierMonth};
use meterd_store::usage::verify::{
    self, Compared, Difference, MeasureDifference, RollupRow, Scope, measure_differences,
};
use meterd_store::usage::verify_adjustments::{ChainDifference, chain_differences};
use meterd_store::usage::verify_keys::{KeyDifference, KeyFault, key_differences};
use meterd_store::{clients, usage};
use sqlx::{PgConnection, PgPool};
use std::collections::BTreeSet;
use std::process::ExitCode;

/// Arguments of `verify`.
#[derive(clap::Args, Clone, Debug)]
pub struct VerifyArgs {
    #[command(flatten)]
    pub database: DatabaseSettings,
    /// Only this client
    #[arg(long, value_name = "ID")]
    pub client: Option<String>,
    /// Only this month, such as 2026-11
    #[arg(long, value_name = "YYYY-MM", value_parser = parse_month)]
    pub month: Option<Month>,
    /// Exit with 0 if there is nothing to verify, as in a new database
    #[arg(long)]
    pub allow_empty: bool,
}

/// Number of clients in one batch: enough to read events in their physical order, few enough to need little memory in
/// PostgreSQL.
const BATCH_CLIENTS: i64 = 1_000;
/// Number of concurrent batches, one for each connection of the command.
const BATCHES_MAX: usize = 2;

/// Result of a verification.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    pub client_months: usize,
    /// Closed client-months. Their events may be gone, so they are not compared.
    pub closed_client_months: usize,
    pub events: i64,
    pub differences: usize,
}

/// Maximum number of clients that are searched for similar ids.
const CLIENTS_COMPARED_MAX: i64 = 10_000;
/// Maximum number of months in a hint.
const MONTHS_SHOWN_MAX: i64 = 6;

impl Verified {
    /// Whether there was nothing to compare.
    fn is_empty(&self) -> bool {
        self.client_months == 0 && self.closed_client_months == 0 && self.differences == 0
    }
}

/// Verifies the selected client-months and prints every difference. The exit code is 1 if there is a difference. If there is
/// nothing to verify, returns an error, unless `--allow-empty` is set.
pub async fn run(args: VerifyArgs) -> anyhow::Result<ExitCode> {
    let stop = signals::stop_signal()?;
    let database = Database::open_existing(&args.database).await?;
    let pool = command_pool(&database.options);
    let verified = signals::unless_stopped(stop, verify_selected(&pool, &args)).await;
    let verified = database.explain(verified);
    pool.close().await;
    database.close().await?;
    let verified = verified?;
    let Verified { client_months, closed_client_months, events, differences } = verified;
    if verified.is_empty() {
        println!("nothing to verify: there are no events");
        return Ok(ExitCode::SUCCESS);
    }
    if closed_client_months > 0 {
        println!("{closed_client_months} client-months are closed and not compared");
    }
    println!("{client_months} client-months, {events} events: {differences} differences");
    Ok(if differences == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn verify_selected(pool: &PgPool, args: &VerifyArgs) -> anyhow::Result<Verified> {
    ensure!(
        deployment::has_schema(pool).await?,
        "the database contains no tables of meterd: check --database-url (DATABASE_URL) and --data-dir (METERD_DATA_DIR)"
    );
    let verified = verify_all(pool, args.client.as_deref(), args.month).await?;
    if verified.is_empty() && !args.allow_empty {
        return Err(nothing_to_verify(pool, args.client.as_deref(), args.month).await?);
    }
    Ok(verified)
}

/// Explains why there is nothing to verify, with a hint.
async fn nothing_to_verify(pool: &PgPool, client: Option<&str>, month: Option<Month>) -> anyhow::Result<anyhow::Error> {
    if let Some(client) = client
        && clients::find(pool, client).await?.is_none()
    {
        let known = clients::list(pool, "", CLIENTS_COMPARED_MAX).await?;
        let ids: Vec<String> = known.into_iter().map(|client| client.client_id).collect();
        return Ok(anyhow!("--client: client {client:?} does not exist; {}", hints::suggestion(client, &ids)));
    }
    let months = usage::latest_months(pool, client, MONTHS_SHOWN_MAX).await?;
    let whose = client.map_or("no client".to_owned(), |client| format!("client {client:?}"));
    let has = if client.is_some() { "has no usage" } else { "has usage" };
    let when = month.map_or(String::new(), |month| format!(" in {month}"));
    Ok(anyhow!(
        "nothing to verify: {whose} {has}{when}; {}. Add --allow-empty to exit with 0 in this case",
        hints::elsewhere(&hints::month_texts(&months))
    ))
}

/// Verifies the clients in batches, each in its own snapshot, and prints the differences.
pub async fn verify_all(pool: &PgPool, client: Option<&str>, month: Option<Month>) -> anyhow::Result<Verified> {
    let selected = Scope { client_id: client.map(String::from), first: month, last: month, ..Scope::default() };
    let mut tx = pool.begin().await?;
    allow_long_statements(&mut tx).await?;
    let bounds = if client.is_some() { vec![] } else { verify::bounds(&mut tx, BATCH_CLIENTS).await? };
    tx.commit().await?;
    let (after, up_to) = (bounds.iter().map(Some), bounds.iter().map(Some));
    let batches = std::iter::once(None).chain(after).zip(up_to.chain([None]));
    let batches =
        batches.map(|(after, up_to)| Scope { after: after.cloned(), upto: up_to.cloned(), ..selected.clone() });
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} batches of clients {eta}")?;
    // Shown only on a terminal.
    let progress = ProgressBar::new(bounds.len() as u64 + 1).with_style(style);
    let mut verified = Verified::default();
    let mut compared = stream::iter(batches).map(async |batch| verify_batch(pool, batch).await).buffered(BATCHES_MAX);
    while let Some(Batch { compared, measures, chains, tiers, credits, keys, limits }) = compared.try_next().await? {
        progress.inc(1);
        verified.client_months += usize::try_from(compared.client_months)?;
        verified.events += compared.events;
        verified.differences += compared.differences.len() + measures.len() + chains.len() + keys.len() + tiers.len();
        verified.differences += credits.len() + limits.len();
        progress.suspend(|| {
            compared.differences.iter().for_each(print_difference);
            measures.iter().for_each(print_measure);
            chains.iter().for_each(print_chain);
            tiers.iter().chain(&credits).for_each(|line| println!("{line}"));
            keys.iter().for_each(print_key);
            limits.iter().for_each(print_limit);
        });
        if print::has_failed() {
            break;
        }
    }
    progress.finish_and_clear();
    let mut tx = pool.begin().await?;
    allow_long_statements(&mut tx).await?;
    if let Some(closed) = deployment::closed_through(&mut tx).await? {
        verified.closed_client_months = usize::try_from(verify::count_until(&mut tx, &selected, closed).await?)?;
    }
    Ok(verified)
}

/// What was found in a batch of clients.
struct Batch {
    compared: Compared,
    measures: Vec<MeasureDifference>,
    chains: Vec<ChainDifference>,
    /// Months whose tiers differ, as lines.
    tiers: Vec<String>,
    /// Faults of grants of credits and of what they have paid, as lines.
    credits: Vec<String>,
    keys: Vec<KeyDifference>,
    /// Counters of limits that differ.
    limits: Vec<Counter>,
}

/// Compares the open months of a batch.
async fn verify_batch(pool: &PgPool, batch: Scope) -> anyhow::Result<Batch> {
    let mut tx = pool.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
    allow_long_statements(&mut tx).await?;
    plan_for_values(&mut tx).await?;
    // Before the snapshot starts, so that the partitions of its open months stay attached.
    partitions::keep(&mut tx).await?;
    let open = deployment::closed_through(&mut tx).await?.map(Month::next);
    let batch = Scope { first: batch.first.max(open), ..batch };
    let compared = verify::compare(&mut tx, &batch).await?;
    let measures = measure_differences(&mut tx, &batch).await?;
    let chains = chain_differences(&mut tx, &batch).await?;
    let tiers = tier_differences(&mut tx, &batch).await?;
    let credits = credits::differences(&mut tx, &batch).await?;
    let keys = key_differences(&mut tx, &batch).await?;
    let limits = limit_differences(&mut tx, &batch).await?;
    tx.commit().await?;
    Ok(Batch { compared, measures, chains, tiers, credits, keys, limits })
}

/// Compares what the events of each month have used of tiers with the stored quantities, and the cost of the events with that of the
/// quantities.
async fn tier_differences(conn: &mut PgConnection, scope: &Scope) -> anyhow::Result<Vec<String>> {
    let catalog = catalog::load(conn, false).await?;
    if !catalog.has_tiers() {
        return Ok(vec![]);
    }
    let mut lines = vec![];
    for TierMonth { client_id, month, used, stored, cost } in tiers::months(conn, scope).await? {
        let keys: BTreeSet<_> = used.0.keys().chain(stored.0.keys()).collect();
        for (price_id, component) in keys {
            let of = |month: &MonthUse| month.0.get(&(*price_id, component.clone())).copied().unwrap_or_default();
            let (actual, expected) = (of(&stored), of(&used));
            if actual != expected {
                lines.push(format!(
                    "{client_id:?} {month}, tiers of price {price_id}: {component} is {actual}, but the sum of the events is {expected}"
                ));
            }
        }
        let expected = used.cost(|price_id| catalog.tiers_of(price_id));
        if cost != expected {
            lines.push(format!(
                "{client_id:?} {month}, tiers: the events cost {cost}, but their quantities cost {expected}"
            ));
        }
    }
    Ok(lines)
}

fn print_difference(difference: &Difference) {
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

fn print_measure(difference: &MeasureDifference) {
    let MeasureDifference { client_id, day, service, operation, model, measure, expected, actual } = difference;
    println!(
        "{client_id:?} {}, {day} {service} operation={operation:?} model={model:?}: {measure} is {actual}, but the sum of \
         the events is {expected}",
        Month::of(*day)
    );
}

fn print_chain(difference: &ChainDifference) {
    let ChainDifference { client_id, day, event, fault } = difference;
    println!("{client_id:?} {}, event {event}: {fault}", Month::of(*day));
}

fn print_key(difference: &KeyDifference) {
    let KeyDifference { client_id, month, idempotency_key, event, fault } = difference;
    let fault = match fault {
        KeyFault::KeyMissing => {
            format!("event {event} has no row in idempotency_keys: a repeat would be counted again")
        }
        KeyFault::KeyOfAnother => format!("event {event} has the key of another event: one of the two counts twice"),
        KeyFault::EventMissing => {
            format!("names event {event}, which does not exist: a repeat would not be recorded")
        }
    };
    println!("{client_id:?} {month}, key {idempotency_key:?}: {fault}");
}

fn print_limit(counter: &Counter) {
    let Counter { client_id, limit_id, period_start, stored, computed, .. } = counter;
    println!(
        "{client_id:?} {}, limit {limit_id:?} in the period from {period_start}: used is {}, but the usage is {}",
        Month::of(*period_start),
        stored.unwrap_or_default(),
        computed.unwrap_or_default()
    );
}

/// Lists the sums that differ, with the value of the row and the value of the events.
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
    let differing =
        columns(expected).into_iter().zip(columns(actual)).filter(|(expected, actual)| expected != actual).map(
            |((name, expected), (_, actual))| format!("{name} is {actual}, but the sum of the events is {expected}"),
        );
    let differing = differing.collect::<Vec<_>>().join("; ");
    match (expected.request_count, differing.is_empty()) {
        (0, true) => "a row of zeros without events".into(),
        (0, false) => format!("a row without events: {differing}"),
        _ => differing,
    }
}
