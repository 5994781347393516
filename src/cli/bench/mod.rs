//! `meterd bench`: throughput and latency, measured in turns with the database's own floors.
//!
//! In reading order: `args` (flags), `plan` (what is measured), `place` (the database), `server` (the measured process),
//! `window` and `pace` (one measurement), `events`, `repeats`, `floor` and `load` (what runs in it), `cpu` and `commits` (what
//! it took), `writes` (all of it), `rows` and `report`. `preload` fills a database before. `alerts` measures the live stream
//! of alerts instead, `reads` the reads; `goals` holds what is measured against what it is meant to be.

mod alerts;
mod args;
mod commits;
mod cpu;
mod events;
mod floor;
mod goals;
mod load;
mod pace;
mod place;
mod plan;
mod preload;
mod reads;
mod repeats;
mod report;
mod rows;
mod server;
mod window;
mod writes;

pub use args::{BenchArgs, LoadArgs};

use place::Place;
use preload::Preload;
use report::Report;
use std::path::PathBuf;
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};
use writes::{Bench, measure_rounds};

/// Prefixes of the clients.
const FLOOR_CLIENTS: &str = "floor";
const LOAD_CLIENTS: &str = "load";

/// `bench`, and what it measures in place of the write side.
#[derive(clap::Args, Clone, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub struct BenchCommand {
    #[command(subcommand)]
    only: Option<Only>,
    #[command(flatten)]
    writes: BenchArgs,
}

/// What is measured in place of throughput and latency.
#[derive(clap::Subcommand, Clone, Debug)]
enum Only {
    /// Measure how soon an alert is at a subscriber, and what idle subscribers cost
    Alerts(alerts::AlertsArgs),
    /// Hold what is measured against how fast it is meant to be
    Goals(goals::GoalsArgs),
    /// The floor of alerts to many subscribers
    #[command(hide = true)]
    Broadcast,
    /// Measure reads in a database that is full already, exports, imports and verification
    Reads(reads::ReadsArgs),
}

/// Where it is measured, and with which server.
#[derive(clap::Args, Clone, Debug)]
pub struct PlaceArgs {
    /// PostgreSQL to use, with the right to make a scratch database; not taken from the environment, as the load is heavy.
    /// Without it, a durable one is started for the while
    #[arg(long, id = "bench_database_url", value_name = "URL")]
    pub database_url: Option<String>,
    /// Name of a database there that is made if it is not there, and kept: what is preloaded is used again
    #[arg(long, value_name = "NAME", requires = "bench_database_url", value_parser = place::parse_name)]
    pub keep: Option<String>,
    /// Where the database of the while is made, in a directory of its own; on the disk that is to be measured [default:
    /// the system's temporary directory]
    #[arg(long, id = "bench_data_dir", value_name = "DIRECTORY")]
    pub data_dir: Option<PathBuf>,
    /// Where initdb and postgres are. Without it they are searched for
    #[arg(long, env = "METERD_POSTGRES_BIN_DIR")]
    pub postgres_bin_dir: Option<PathBuf>,
    /// Whether PostgreSQL may be downloaded when none is found
    #[arg(long, env = "METERD_POSTGRES_DOWNLOAD", num_args = 0..=1, default_missing_value = "true", default_value = "true", action = clap::ArgAction::Set)]
    pub postgres_download: bool,
    /// Where to download PostgreSQL from
    #[arg(long, env = "METERD_POSTGRES_DOWNLOAD_URL")]
    pub postgres_download_url: Option<String>,
    /// Flags of the measured server, after `--`, such as `-- --writers 4`
    #[arg(last = true, value_name = "FLAGS OF SERVE")]
    pub server: Vec<String>,
}

/// Measures, verifies, prints, and leaves nothing behind. Exits with 1 if what was recorded is not what was acknowledged.
pub async fn run(command: BenchCommand) -> anyhow::Result<ExitCode> {
    let (text, exact) = match &command.only {
        Some(Only::Alerts(args)) => {
            let report = in_place(&args.place, async |place| alerts::measure_all(args, place).await).await?;
            (if args.json { format!("{:#}", report.json(args)) } else { report.text(args) }, report.is_exact())
        }
        Some(Only::Goals(args)) => {
            let report = goals::measure_all(args).await?;
            (if args.json { format!("{:#}", report.json(args)) } else { report.text(args) }, report.is_exact())
        }
        Some(Only::Broadcast) => return alerts::broadcast::run().await,
        Some(Only::Reads(args)) => {
            let report = in_place(&args.place, async |place| reads::measure_all(args, place).await).await?;
            (if args.json { format!("{:#}", report.json(args)) } else { report.text(args) }, report.is_exact())
        }
        None => {
            let args = &command.writes;
            args.load.check()?;
            let report = in_place(&args.place, async |place| measure_writes(args, place).await).await?;
            (if args.json { format!("{:#}", report.json(args)) } else { report.text(args) }, report.ended.is_exact())
        }
    };
    println!("{text}");
    Ok(if exact { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn measure_writes(args: &BenchArgs, place: &Place) -> anyhow::Result<Report> {
    let (url, was_there) = place.find_or_create_database().await?;
    if args.preload > 0 && !was_there {
        let BenchArgs { preload: events, days, ref load, .. } = *args;
        let preload = Preload { events, prefix: LOAD_CLIENTS, clients: load.clients, days };
        preload.fill_new(&url, &args.place.server).await?;
    }
    let mut bench = Bench::start(&args.load, &args.place.server, place, &url).await?;
    let mut rows = measure_rounds(&mut [&mut bench], plan::workloads(&args.load), args.load.rounds).await?;
    let rows = rows.pop().expect("a server has its rows");
    Ok(Report { rows, ended: bench.end().await? })
}

/// Measures in a place made for it, and leaves nothing of it, also where it is interrupted.
async fn in_place<T>(args: &PlaceArgs, measure: impl AsyncFnOnce(&Place) -> anyhow::Result<T>) -> anyhow::Result<T> {
    // Taken first, so that a signal during the start cleans up too.
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let mut hang_up = signal(SignalKind::hangup())?;
    let place = Place::open(args).await?;
    let measured = tokio::select! {
        biased;
        _ = interrupt.recv() => Err(anyhow::anyhow!("interrupted")),
        _ = terminate.recv() => Err(anyhow::anyhow!("terminated")),
        _ = hang_up.recv() => Err(anyhow::anyhow!("hung up")),
        // Dropped, it ends its server and all connections.
        measured = measure(&place) => measured,
    };
    let closed = place.close().await;
    let report = measured?;
    closed?;
    Ok(report)
}
