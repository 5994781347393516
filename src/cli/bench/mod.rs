//! `meterd bench`: throughput and latency, measured in turns with the database's own floor.
//!
//! In reading order: `plan` (what is measured), `place` (the database), `server` (the measured process), `window` (one
//! measurement), `events`, `floor` and `load` (what runs in it), `cpu`, `report`. `alerts` measures the live stream of
//! alerts instead.

mod alerts;
mod cpu;
mod events;
mod floor;
mod goals;
mod load;
mod place;
mod plan;
mod preload;
mod reads;
mod report;
mod server;
mod window;

use crate::catalog::CatalogCache;
use crate::cli::connect::ConnectArgs;
use crate::cli::connect::Connection;
use crate::cli::verify::verify_all;
use crate::database::command_pool;
use crate::domain::catalog::Catalog;
use crate::store;
use crate::store::connect;
use anyhow::Context;
use cpu::Watch;
use events::Events;
use indicatif::{ProgressBar, ProgressStyle};
use place::Place;
use plan::{Call, Mix, Workload};
use report::{Machine, Report, Row};
use server::Server;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Connection as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};
use window::{Measurement, Window, measure};

/// Samples a round of a commit and of a round trip, and how long they may take.
const COMMIT_SAMPLES: usize = 100;
const COMMIT_SAMPLING_MAX: Duration = Duration::from_secs(1);
/// Prefixes of the clients.
const FLOOR_CLIENTS: &str = "floor";
const LOAD_CLIENTS: &str = "load";

/// Arguments of `bench`.
#[derive(clap::Args, Clone, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub struct BenchArgs {
    #[command(subcommand)]
    only: Option<Only>,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=60))]
    pub seconds: u64,
    /// How often everything is measured, in turns
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: u32,
    /// How many clients the events are spread over
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub clients: u32,
    /// Percent of the events that one hot client has, where there is one; 0 measures without
    #[arg(long, alias = "skew", default_value_t = 100, value_parser = clap::value_parser!(u32).range(0..=100))]
    pub hot: u32,
    /// Calls under way at once; several with commas between them
    #[arg(long, value_delimiter = ',', default_values_t = [1, 8, 64, 256], value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub concurrency: Vec<u32>,
    /// Events of a BatchTrackUsage call
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub batch: u32,
    /// gRPC connections
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub connections: u32,
    /// Most database connections of the floor. More than the default were slower with a hot client and no faster without
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub floor_connections: u32,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub place: PlaceArgs,
}

/// What is measured in place of throughput and latency.
#[derive(clap::Subcommand, Clone, Debug)]
enum Only {
    /// Measure how soon an alert is at a subscriber, and what idle subscribers cost
    Alerts(alerts::AlertsArgs),
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
pub async fn run(args: BenchArgs) -> anyhow::Result<ExitCode> {
    let (text, exact) = match &args.only {
        Some(Only::Alerts(args)) => {
            let report = in_place(&args.place, async |place| alerts::measure_all(args, place).await).await?;
            (if args.json { format!("{:#}", report.json(args)) } else { report.text(args) }, report.is_exact())
        }
        Some(Only::Broadcast) => return alerts::broadcast::run().await,
        Some(Only::Reads(args)) => {
            let report = in_place(&args.place, async |place| reads::measure_all(args, place).await).await?;
            (if args.json { format!("{:#}", report.json(args)) } else { report.text(args) }, report.is_exact())
        }
        None => {
            let report = in_place(&args.place, async |place| measure_all(&args, place).await).await?;
            (if args.json { format!("{:#}", report.json(&args)) } else { report.text(&args) }, report.is_exact())
        }
    };
    println!("{text}");
    Ok(if exact { ExitCode::SUCCESS } else { ExitCode::FAILURE })
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

async fn measure_all(args: &BenchArgs, place: &Place) -> anyhow::Result<Report> {
    let url = place.create_database().await?;
    // What is slow shows in the table.
    let options = connect::options(&url)?.disable_statement_logging();
    let server = Server::start(&url, &args.place.server).await?;
    let mut conn = options.connect().await?;
    let facts = store::floor::facts(&mut conn).await?;
    let watch = Watch::new(server.pid().context("the server has ended")?, facts.backend_pid, place.database());
    let load_average_before = cpu::load_average();
    let mut bench = Bench::prepare(args, &options, &server.address, watch).await?;

    let mut workloads = plan::workloads(args);
    let steps = workloads.len() as u64 * u64::from(args.rounds);
    let mut rows: Vec<Row> =
        workloads.iter().map(|&workload| Row { workload, rounds: Vec::with_capacity(args.rounds as usize) }).collect();
    rows.sort_by_key(|row| row.workload);
    // Draws on a terminal only.
    let progress = ProgressBar::new(steps).with_style(ProgressStyle::with_template("{bar:40} {pos}/{len} {msg}")?);
    let (mut commit_us, mut round_trip_us) = (vec![], vec![]);
    for _ in 0..args.rounds {
        sample(&mut conn, &mut commit_us, &mut round_trip_us).await?;
        for &workload in &workloads {
            let Workload { call, mix, at_once } = workload;
            progress.set_message(format!("{call:?} {mix:?} {at_once}"));
            let measured = bench.measure(workload).await.with_context(|| format!("{call:?} {mix:?} {at_once}"))?;
            let row = rows.iter_mut().find(|row| row.workload == workload).expect("every workload has its row");
            row.rounds.push(measured);
            progress.inc(1);
        }
        // There and back, so that what changes with time does not favour anyone.
        workloads.reverse();
    }
    progress.finish_and_clear();
    conn.close().await?;
    let load_average_after = cpu::load_average();
    let server_peak_memory_bytes = watch.server_peak_memory();
    server.stop().await?;
    let pool = command_pool(&options);
    let verified = verify_all(&pool, None, None).await;
    pool.close().await;
    commit_us.sort_unstable();
    round_trip_us.sort_unstable();
    let cores = std::thread::available_parallelism()?.get();
    Ok(Report {
        rows,
        machine: Machine { cores, load_average_before, load_average_after, database: facts, commit_us, round_trip_us },
        server_peak_memory_bytes,
        verified: verified?,
        acknowledged: bench.acknowledged,
    })
}

/// What every measurement needs.
struct Bench<'a> {
    args: &'a BenchArgs,
    options: &'a PgConnectOptions,
    catalog: Arc<Catalog>,
    channels: Vec<Connection>,
    watch: Watch,
    /// Events acknowledged so far.
    acknowledged: u64,
}

impl<'a> Bench<'a> {
    /// Connects, and makes all clients and their rows.
    async fn prepare(
        args: &'a BenchArgs,
        options: &'a PgConnectOptions,
        address: &str,
        watch: Watch,
    ) -> anyhow::Result<Self> {
        let connect = ConnectArgs::to(address);
        let mut channels = vec![];
        for _ in 0..args.connections {
            channels.push(connect.channel().await?);
        }
        let pool = floor::pool(options, args.floor_connections).await?;
        let catalog = CatalogCache::default().refresh(&pool).await?;
        let mut bench = Self { args, options, catalog, channels, watch, acknowledged: 0 };
        let (of_floor, of_load) = (bench.events(FLOOR_CLIENTS, Mix::Many), bench.events(LOAD_CLIENTS, Mix::Many));
        bench.acknowledged += floor::prepare(&pool, &bench.catalog, &of_floor).await?;
        bench.acknowledged += load::prepare(bench.channels[0].clone(), &of_load).await?;
        pool.close().await;
        Ok(bench)
    }

    fn events(&self, prefix: &'static str, mix: Mix) -> Events {
        Events::new(prefix, mix, self.args.clients, self.args.hot)
    }

    /// Measures one workload, once.
    async fn measure(&mut self, workload: Workload) -> anyhow::Result<Measurement> {
        let Workload { call, mix, at_once } = workload;
        let length = Duration::from_secs(self.args.seconds);
        let channels = || self.channels.iter().cycle().take(at_once as usize).cloned();
        let events = self.events(LOAD_CLIENTS, mix);
        let measured = match call {
            Call::HealthCheck => {
                let worker = |channel| move |window: Arc<Window>| floor::health_checks(channel, window);
                measure(length, &self.watch, channels().map(worker)).await
            }
            Call::Transaction => {
                let pool = floor::pool(self.options, at_once.min(self.args.floor_connections)).await?;
                let worker = |_| {
                    let (pool, catalog) = (pool.clone(), self.catalog.clone());
                    let events = self.events(FLOOR_CLIENTS, mix);
                    move |window: Arc<Window>| floor::transactions(pool, catalog, events, window)
                };
                let measured = measure(length, &self.watch, (0..at_once).map(worker)).await;
                pool.close().await;
                measured
            }
            Call::TrackUsage => {
                let worker = |channel| {
                    let events = events.clone();
                    move |window: Arc<Window>| load::lone_events(channel, events, window)
                };
                measure(length, &self.watch, channels().map(worker)).await
            }
            Call::BatchTrackUsage => {
                let size = self.args.batch as usize;
                let worker = |channel| {
                    let events = events.clone();
                    move |window: Arc<Window>| load::batches(channel, events, size, window)
                };
                measure(length, &self.watch, channels().map(worker)).await
            }
            Call::StreamUsage => {
                let worker = |channel| {
                    let events = events.clone();
                    move |window: Arc<Window>| load::stream(channel, events, window)
                };
                measure(length, &self.watch, channels().map(worker)).await
            }
        }?;
        self.acknowledged += measured.acknowledged;
        Ok(measured)
    }
}

/// Times durable commits and bare round trips, while nothing else runs.
async fn sample(conn: &mut PgConnection, commits: &mut Vec<u32>, round_trips: &mut Vec<u32>) -> anyhow::Result<()> {
    let begin = Instant::now();
    for number in 0..=COMMIT_SAMPLES {
        let at = Instant::now();
        store::floor::round_trip(conn).await?;
        let between = Instant::now();
        store::floor::durable_commit(conn).await?;
        let micros = |time: Duration| u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
        // The first one prepares the statements.
        if number > 0 {
            round_trips.push(micros(between - at));
            commits.push(micros(between.elapsed()));
            if begin.elapsed() > COMMIT_SAMPLING_MAX {
                break;
            }
        }
    }
    Ok(())
}
