//! Measures throughput and latency of meterd, alternately with baselines (floors) on the same database.
//!
//! In reading order: `args` (flags), `plan` (workloads), `postgres` (the database), `meterd_binary` and `server` (the measured
//! process), `window` and `pace` (one measurement), `events`, `repeats`, `floor` and `load` (its work), `connection` (its calls), `cpu` and `commits` (its
//! cost), `writes` (all measurements of the write side), `spread`, `rows`, `machine` and `report` (the result). `preload` fills a
//! database first. `alerts` measures the stream of alerts, `reads` the reads. `goals` compares figures with goals.
//! `product` names everything that the bench uses of meterd's library.

mod alerts;
mod args;
mod commits;
mod connection;
mod cpu;
mod events;
mod floor;
mod goals;
mod load;
mod machine;
mod meterd_binary;
mod pace;
mod plan;
mod postgres;
mod preload;
mod product;
mod reads;
mod repeats;
mod report;
mod rows;
mod server;
mod spread;
mod window;
mod writes;

use args::{SetupArgs, WritesArgs};
use clap::{CommandFactory, Parser, Subcommand};
use meterd_binary::MeterdBinary;
use postgres::Postgres;
use preload::Preload;
use product::entry::{self, CommandLine, Common, fail};
use product::{MeterdCommand, help, print};
use report::Report;
use serde_json::Value;
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};
use writes::{Bench, measure_rounds};

/// The allocator of meterd: with the system's allocator the load generator would be slower than the server.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Prefixes of the clients.
const FLOOR_CLIENTS: &str = "floor";
const LOAD_CLIENTS: &str = "load";
/// The name of this program among the commands whose settings a settings file may hold.
const COMMAND: &str = "bench";

/// Measure throughput and latency of meterd, compared with plain PostgreSQL programs in the same run
#[derive(Parser)]
#[command(name = "meterd-bench", version, long_version = entry::LONG_VERSION, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    only: Option<Only>,
    #[command(flatten)]
    writes: WritesArgs,
}

/// What is measured instead of the write side.
#[derive(Subcommand)]
enum Only {
    /// Measure how soon a subscriber receives an alert, and what idle subscribers cost
    Alerts(alerts::AlertsArgs),
    /// Compare measured figures with their goals
    Goals(goals::GoalsArgs),
    /// Serve the floor of alerts to many subscribers
    #[command(hide = true)]
    Broadcast,
    /// Measure reads in a preloaded database, exports, imports and verification
    Reads(reads::ReadsArgs),
}

/// Parses the arguments over the settings file and the environment. Returns an exit code if nothing is left to do.
fn parse() -> anyhow::Result<Result<Cli, ExitCode>> {
    let command = help::arranged_flags(Cli::command());
    let settings = MeterdCommand::augment_subcommands(clap::Command::new("meterd"));
    let line = CommandLine::read(std::env::args_os().collect(), settings.subcommand(command.clone().name(COMMAND)))?;
    let (cli, matches) = match line.parse::<Cli>(command) {
        Ok(parsed) => parsed,
        Err(code) => return Ok(Err(code)),
    };
    line.check(COMMAND, &matches, &cli.common)?;
    for note in line.notes(COMMAND, &matches)? {
        print::note(format_args!("note: {note}"));
    }
    Ok(Ok(cli))
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = match parse() {
        Ok(Ok(cli)) => cli,
        Ok(Err(code)) => return print::finish(code),
        Err(error) => return fail(&error, None),
    };
    let _log = cli.common.start_log(false);
    match run(&cli).await {
        Ok(code) => print::finish(code),
        Err(error) => fail(&error, None),
    }
}

/// Measures, verifies, prints and removes what it made. Exits with 1 if the database does not have exactly what the server
/// acknowledged.
async fn run(cli: &Cli) -> anyhow::Result<ExitCode> {
    match &cli.only {
        Some(Only::Broadcast) => alerts::broadcast::run().await,
        Some(Only::Alerts(args)) => {
            let meterd = find_meterd(&args.setup).await?;
            let measure = async |postgres: &Postgres| alerts::measure_all(args, &meterd, postgres).await;
            let report = with_postgres(&args.setup, measure).await?;
            let json = args.json.then(|| report.json(args, &meterd));
            Ok(finish(json, || report.text(args, &meterd), report.is_exact()))
        }
        Some(Only::Goals(args)) => {
            let meterd = find_meterd(&args.setup).await?;
            let report = goals::measure_all(args, &meterd).await?;
            let json = args.json.then(|| report.json(args, &meterd));
            Ok(finish(json, || report.text(args, &meterd), report.is_exact()))
        }
        Some(Only::Reads(args)) => {
            let meterd = find_meterd(&args.setup).await?;
            let measure = async |postgres: &Postgres| reads::measure_all(args, &meterd, postgres).await;
            let report = with_postgres(&args.setup, measure).await?;
            let json = args.json.then(|| report.json(args, &meterd));
            Ok(finish(json, || report.text(args, &meterd), report.is_exact()))
        }
        None => {
            let args = &cli.writes;
            args.load.check()?;
            let meterd = find_meterd(&args.setup).await?;
            let measure = async |postgres: &Postgres| measure_writes(args, &meterd, postgres).await;
            let report = with_postgres(&args.setup, measure).await?;
            let json = args.json.then(|| report.json(args, &meterd));
            Ok(finish(json, || report.text(args, &meterd), report.ended.is_exact()))
        }
    }
}

/// Prints a report, as JSON or as text, and chooses the exit code.
fn finish(json: Option<Value>, text: impl FnOnce() -> String, is_exact: bool) -> ExitCode {
    match json {
        Some(json) => print::line(format_args!("{json:#}")),
        None => print::line(format_args!("{}", text())),
    }
    if is_exact { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Finds the program to measure before anything is started, and warns if it is of another version.
async fn find_meterd(args: &SetupArgs) -> anyhow::Result<MeterdBinary> {
    let meterd = MeterdBinary::find(args.meterd.as_deref(), &args.server).await?;
    if let Some(text) = meterd.other_version() {
        print::note(format_args!("warning: {text}"));
    }
    Ok(meterd)
}

async fn measure_writes(args: &WritesArgs, meterd: &MeterdBinary, postgres: &Postgres) -> anyhow::Result<Report> {
    let (url, was_there) = postgres.find_or_create_database().await?;
    if args.preload > 0 && !was_there {
        let WritesArgs { preload: events, days, ref load, .. } = *args;
        let preload = Preload { events, prefix: LOAD_CLIENTS, clients: load.clients, days };
        preload.fill_new(&url, meterd).await?;
    }
    let mut bench = Bench::start(&args.load, meterd, postgres, &url).await?;
    let mut rows = measure_rounds(&mut [&mut bench], plan::workloads(&args.load), args.load.rounds).await?;
    let rows = rows.pop().expect("a server has its rows");
    Ok(Report { rows, ended: bench.end().await? })
}

/// Opens the PostgreSQL, measures, and removes what was made, also after a signal.
async fn with_postgres<T>(
    args: &SetupArgs,
    measure: impl AsyncFnOnce(&Postgres) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    // Before the start, so that a signal during the start cleans up too.
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let mut hang_up = signal(SignalKind::hangup())?;
    let postgres = Postgres::open(args).await?;
    let measured = tokio::select! {
        biased;
        _ = interrupt.recv() => Err(anyhow::anyhow!("interrupted")),
        _ = terminate.recv() => Err(anyhow::anyhow!("terminated")),
        _ = hang_up.recv() => Err(anyhow::anyhow!("hung up")),
        // Dropping it ends its server and all connections.
        measured = measure(&postgres) => measured,
    };
    let closed = postgres.close().await;
    let report = measured?;
    closed?;
    Ok(report)
}
