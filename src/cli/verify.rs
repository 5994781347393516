//! `meterd verify`: proves that rollups and totals equal the events, client and month by client and month, and that keys and
//! events name each other.

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
use meterd_store::connect::{allow_long_statements, plan_for_values};
use meterd_store::verify::{self, Compared, Difference, RollupRow, Scope};
use meterd_store::verify_keys::{KeyDifference, KeyFault, key_differences};
use meterd_store::{clients, deployment, partitions, usage};
use sqlx::PgPool;
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
    /// Succeed where there is nothing to verify, as in a new database
    #[arg(long)]
    pub allow_empty: bool,
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

/// Client ids that are compared with one that is not there.
const CLIENTS_COMPARED_MAX: i64 = 10_000;
/// Months that are named where there is nothing in the one that was asked for.
const MONTHS_SHOWN_MAX: i64 = 6;

impl Verified {
    /// Whether there was nothing to compare: that proves nothing.
    fn is_empty(&self) -> bool {
        self.client_months == 0 && self.closed_client_months == 0 && self.differences == 0
    }
}

/// Verifies, prints every difference, and exits with 1 if there is one. To verify nothing is an error, unless it is allowed.
pub async fn run(args: VerifyArgs) -> anyhow::Result<ExitCode> {
    let stop = signals::asked_to_stop()?;
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
        "the database has no tables of meterd: check --database-url (DATABASE_URL) and --data-dir (METERD_DATA_DIR)"
    );
    let verified = verify_all(pool, args.client.as_deref(), args.month).await?;
    if verified.is_empty() && !args.allow_empty {
        return Err(nothing_to_verify(pool, args.client.as_deref(), args.month).await?);
    }
    Ok(verified)
}

/// Why there is nothing, and what there is instead.
async fn nothing_to_verify(pool: &PgPool, client: Option<&str>, month: Option<Month>) -> anyhow::Result<anyhow::Error> {
    if let Some(client) = client
        && clients::find(pool, client).await?.is_none()
    {
        let known = clients::list(pool, "", CLIENTS_COMPARED_MAX).await?;
        let ids: Vec<String> = known.into_iter().map(|client| client.client_id).collect();
        return Ok(anyhow!("--client: no client {client:?}; {}", hints::suggestion(client, &ids)));
    }
    let months = usage::latest_months(pool, client, MONTHS_SHOWN_MAX).await?;
    let whose = client.map_or("no client".to_owned(), |client| format!("client {client:?}"));
    let has = if client.is_some() { "has no usage" } else { "has usage" };
    let when = month.map_or(String::new(), |month| format!(" in {month}"));
    Ok(anyhow!(
        "nothing to verify: {whose} {has}{when}; {}. --allow-empty makes this no error",
        hints::elsewhere(&hints::month_texts(&months))
    ))
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
    while let Some((compared, keys)) = compared.try_next().await? {
        progress.inc(1);
        verified.client_months += usize::try_from(compared.client_months)?;
        verified.events += compared.events;
        verified.differences += compared.differences.len() + keys.len();
        progress.suspend(|| {
            compared.differences.iter().for_each(print_difference);
            keys.iter().for_each(print_key);
        });
        if print::has_failed() {
            break;
        }
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
async fn verify_lot(pool: &PgPool, lot: Scope) -> anyhow::Result<(Compared, Vec<KeyDifference>)> {
    let mut tx = pool.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
    allow_long_statements(&mut tx).await?;
    plan_for_values(&mut tx).await?;
    // Before the snapshot: what is open in it has its events.
    partitions::keep(&mut tx).await?;
    let open = deployment::closed_through(&mut tx).await?.map(Month::next);
    let lot = Scope { first: lot.first.max(open), ..lot };
    let compared = verify::compare(&mut tx, &lot).await?;
    let keys = key_differences(&mut tx, &lot).await?;
    tx.commit().await?;
    Ok((compared, keys))
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

fn print_key(difference: &KeyDifference) {
    let KeyDifference { client_id, month, idempotency_key, event, fault } = difference;
    let fault = match fault {
        KeyFault::KeyMissing => {
            format!("event {event} has no row in idempotency_keys: sent again, it would count again")
        }
        KeyFault::KeyOfAnother => format!("event {event} has the key of another event: one of the two counts twice"),
        KeyFault::EventMissing => {
            format!("names event {event}, which is not there: sent again, it would not be recorded")
        }
    };
    println!("{client_id:?} {month}, key {idempotency_key:?}: {fault}");
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
    let differing = differing.collect::<Vec<_>>().join("; ");
    match (expected.request_count, differing.is_empty()) {
        (0, true) => "a row of zeros that no event is of".into(),
        (0, false) => format!("a row that no event is of: {differing}"),
        _ => differing,
    }
}
