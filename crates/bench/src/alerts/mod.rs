//! `meterd-bench alerts`: how soon a subscriber receives an alert, and the cost of subscribers.
//!
//! `crossings` measures the latency, `fan_out` the throughput to many subscribers, with `broadcast` as its floor, and `idle` the
//! cost of idle subscribers. `subscribers` follows streams of alerts.

pub mod broadcast;
mod crossings;
mod fan_out;
mod idle;
mod report;
mod subscribers;

use super::LOAD_CLIENTS;
use super::args::SetupArgs;
use super::cpu::{self, Watch};
use super::events::Events;
use super::load;
use super::meterd_binary::MeterdBinary;
use super::plan::Mix;
use super::postgres::Postgres;
use super::server::Server;
use crate::connection::Connection;
use crate::product::{command_pool, verify_all};
use anyhow::Context;
use meterd_store::database::connect;
use report::Report;
use sqlx::{ConnectOptions, Connection as _};

/// Arguments of `meterd-bench alerts`.
#[derive(clap::Args, Clone, Debug)]
pub struct AlertsArgs {
    /// Number of events that raise an alert, each of a different client
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub crossings: u32,
    /// Number of these events per second
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub crossings_per_second: u32,
    /// Number of other events per second at the same time
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub load: u32,
    /// Number of idle subscribers; 0 skips their measurement
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    pub subscribers: u32,
    /// Number of idle subscribers per connection
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub streams_per_connection: u32,
    /// Number of subscribers that receive every alert of a burst; 0 skips this measurement
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(0..=100_000))]
    pub fan_out: u32,
    /// Number of alerts in a burst
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(2..=fan_out::ALERTS_MAX))]
    pub fan_out_alerts: u32,
    /// Number of rounds; each round measures the throughput with and without idle subscribers
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: u32,
    /// Duration of each of these measurements of throughput, in seconds
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=60))]
    pub seconds: u64,
    /// Number of concurrent TrackUsage calls in these measurements
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub concurrency: u32,
    /// Number of clients of the other events
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub clients: u32,
    /// Number of gRPC connections for the events
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub connections: u32,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub setup: SetupArgs,
}

/// What every measurement needs.
struct Bench<'a> {
    args: &'a AlertsArgs,
    /// Address of the server.
    address: String,
    /// Connections for the events.
    channels: Vec<Connection>,
    watch: Watch,
    /// Events acknowledged so far, and those of them that crossed a line.
    acknowledged: u64,
    crossed: u64,
}

impl Bench<'_> {
    fn events(&self) -> Events {
        Events::new(LOAD_CLIENTS, Mix::Many, self.args.clients, 0)
    }
}

/// Measures everything and compares what was acknowledged and received with the database.
pub async fn measure_all(args: &AlertsArgs, meterd: &MeterdBinary, postgres: &Postgres) -> anyhow::Result<Report> {
    let url = postgres.create_database().await?;
    let options = connect::options(&url)?.disable_statement_logging();
    let server = Server::start(meterd, &url).await?;
    let mut conn = options.connect().await?;
    let database = meterd_store::bench::floor::facts(&mut conn).await?;
    conn.close().await?;
    let watch = Watch::new(server.pid().context("the server has ended")?, database.backend_pid, postgres.database());
    let load_average_before = cpu::load_average();
    let address = server.address.clone();
    let mut channels = vec![];
    for _ in 0..args.connections {
        channels.push(Connection::open(&address).await?);
    }
    let mut bench = Bench { args, address, channels, watch, acknowledged: 0, crossed: 0 };
    bench.acknowledged += load::prepare(bench.channels[0].clone(), &bench.events()).await?;
    let idle_bytes = watch.server_memory();
    // First, before other calls leave free memory that subscribers would use.
    let bytes_per_subscriber = match args.subscribers {
        0 => None,
        _ => idle::memory(&bench).await.context("memory of idle subscribers")?,
    };
    let fan_out = match args.fan_out {
        0 => None,
        _ => Some(fan_out::measure(&mut bench, idle_bytes).await.context("alerts to many subscribers")?),
    };
    let crossings = crossings::measure(&mut bench).await.context("alerts under load")?;
    let idle = match args.subscribers {
        0 => None,
        _ => Some(idle::measure(&mut bench).await.context("idle subscribers")?),
    };
    let load_average_after = cpu::load_average();
    let server_peak_memory_bytes = watch.server_peak_memory();
    server.stop().await?;
    let pool = command_pool(&options);
    let verified = verify_all(&pool, None, None).await;
    let in_feed = crossings::in_feed(&pool).await;
    pool.close().await;
    Ok(Report {
        fan_out,
        crossings,
        idle,
        bytes_per_subscriber,
        cores: std::thread::available_parallelism()?.get(),
        load_average_before,
        load_average_after,
        database,
        server_peak_memory_bytes,
        verified: verified?,
        acknowledged: bench.acknowledged,
        crossed: bench.crossed,
        in_feed: in_feed?,
    })
}
