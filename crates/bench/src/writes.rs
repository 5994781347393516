//! The write side: a server over a scratch database, alternating workloads, and the check of what was recorded.

use super::args::LoadArgs;
use super::commits::Commits;
use super::cpu::{self, Watch};
use super::events::Events;
use super::load::{self, Load};
use super::machine::Machine;
use super::meterd_binary::MeterdBinary;
use super::plan::{Call, Mix, Workload};
use super::postgres::Postgres;
use super::rows::{Round, Rows};
use super::server::Server;
use super::window::{Measurement, Window, measure_paced};
use super::{FLOOR_CLIENTS, LOAD_CLIENTS, floor};
use crate::connection::Connection;
use crate::product::{CatalogCache, Verified, command_pool, verify_all};
use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use meterd_domain::catalog::Catalog;
use meterd_store::bench::floor::Facts;
use meterd_store::database::connect;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Connection as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Samples per round of a commit and of a round trip, and the longest time for all of them.
const COMMIT_SAMPLES: usize = 100;
const COMMIT_SAMPLING_MAX: Duration = Duration::from_secs(1);
/// Pause after the start of the server before its memory is read.
const SETTLE: Duration = Duration::from_secs(1);

/// A measured server and what every measurement needs.
pub struct Bench<'a> {
    args: &'a LoadArgs,
    options: PgConnectOptions,
    server: Server,
    conn: PgConnection,
    facts: Facts,
    catalog: Arc<Catalog>,
    channels: Vec<Connection>,
    watch: Watch,
    of_floor: Events,
    of_load: Events,
    idle_memory_bytes: Option<u64>,
    load_average_before: Option<String>,
    commit_us: Vec<u32>,
    round_trip_us: Vec<u32>,
    recorded: Recorded,
}

/// Events that the database must have.
#[derive(Clone, Copy, Debug, Default)]
pub struct Recorded {
    /// In the database before the run.
    pub before: u64,
    /// Acknowledged as new.
    pub acknowledged: u64,
    /// Sent again and acknowledged as duplicates.
    pub duplicates: u64,
}

/// The state after all measurements.
pub struct Ended {
    pub machine: Machine,
    pub idle_memory_bytes: Option<u64>,
    pub peak_memory_bytes: Option<u64>,
    pub verified: Verified,
    pub recorded: Recorded,
}

impl Ended {
    /// Whether no event is lost or counted twice, and all sums are right.
    pub fn is_exact(&self) -> bool {
        let expected = self.recorded.before + self.recorded.acknowledged;
        self.verified.differences == 0 && u64::try_from(self.verified.events) == Ok(expected)
    }
}

impl<'a> Bench<'a> {
    /// Starts a server over a database and creates all clients and their rows.
    pub async fn start(
        args: &'a LoadArgs,
        meterd: &MeterdBinary,
        postgres: &Postgres,
        url: &str,
    ) -> anyhow::Result<Self> {
        // The table shows what is slow.
        let options = connect::options(url)?.disable_statement_logging();
        let server = Server::start(meterd, url).await?;
        let mut conn = options.connect().await?;
        let facts = meterd_store::bench::floor::facts(&mut conn).await?;
        let before = meterd_store::bench::floor::counted_events(&mut conn).await?;
        let watch = Watch::new(server.pid().context("the server has ended")?, facts.backend_pid, postgres.database());
        tokio::time::sleep(SETTLE).await;
        let idle_memory_bytes = watch.server_memory();
        let mut channels = vec![];
        for _ in 0..args.connections {
            channels.push(Connection::open(&server.address).await?);
        }
        let pool = command_pool(&options);
        let catalog = CatalogCache::default().refresh(&pool).await?;
        pool.close().await;
        let events =
            |prefix| Events::new(prefix, Mix::Many, args.clients, 0).with_contents(args.services, args.payload_bytes);
        let mut bench = Self {
            args,
            options,
            server,
            conn,
            facts,
            catalog,
            channels,
            watch,
            of_floor: events(FLOOR_CLIENTS),
            of_load: events(LOAD_CLIENTS),
            idle_memory_bytes,
            load_average_before: cpu::load_average(),
            commit_us: vec![],
            round_trip_us: vec![],
            recorded: Recorded { before, ..Recorded::default() },
        };
        bench.recorded.acknowledged += floor::prepare(&bench.options, &bench.catalog, &bench.of_floor).await?;
        bench.recorded.acknowledged += load::prepare(bench.channels[0].clone(), &bench.of_load).await?;
        Ok(bench)
    }

    /// Measures a workload for one round.
    pub async fn measure(&mut self, workload: Workload) -> anyhow::Result<Round> {
        if workload.call == Call::Copy {
            meterd_store::bench::floor::create_copied(&mut self.conn).await?;
        }
        let wal_before = meterd_store::bench::floor::wal_position(&mut self.conn).await?;
        let commits_before = Commits::read(&self.server.http_address).await?;
        let measured = self.run(workload).await?;
        let commits = Commits::read(&self.server.http_address).await?.since(commits_before);
        let wal_bytes = meterd_store::bench::floor::wal_position(&mut self.conn).await?.saturating_sub(wal_before);
        let events = measured.acknowledged + measured.duplicates;
        if workload.call == Call::Copy {
            floor::check_copied(&mut self.conn, measured.acknowledged).await?;
        } else {
            self.recorded.acknowledged += measured.acknowledged;
            self.recorded.duplicates += measured.duplicates;
        }
        let wal_bytes = (events > 0).then(|| wal_bytes as f64 / events as f64);
        Ok(Round { measured, wal_bytes, commits: commits.filter(|_| !workload.call.is_floor()) })
    }

    async fn run(&self, workload: Workload) -> anyhow::Result<Measurement> {
        let Workload { call, batch, mix, at_once } = workload;
        let (length, rate, watch) = (Duration::from_secs(self.args.seconds), self.args.rate, &self.watch);
        let load =
            |events: &Events| Load { events: events.mixed(mix, self.args.hot), duplicates: self.args.duplicates };
        let (to_floor, to_server) = (load(&self.of_floor), load(&self.of_load));
        let channels = self.channels.iter().cycle().take(at_once as usize).cloned();
        match call {
            Call::HealthCheck => {
                let worker = |channel| move |window: Arc<Window>| floor::health_checks(channel, window);
                measure_paced(length, rate, watch, channels.map(worker)).await
            }
            Call::Transaction => {
                let pool = floor::pool(&self.options, at_once.min(self.args.floor_connections)).await?;
                let worker = |_| {
                    let (pool, catalog, load) = (pool.clone(), self.catalog.clone(), to_floor.clone());
                    move |window: Arc<Window>| floor::transactions(pool, catalog, load, window)
                };
                let measured = measure_paced(length, rate, watch, (0..at_once).map(worker)).await;
                pool.close().await;
                measured
            }
            Call::Statements => {
                let connections = floor::connections(&self.options, at_once).await?;
                let worker = |conn| {
                    let (catalog, load) = (self.catalog.clone(), to_floor.clone());
                    move |window: Arc<Window>| floor::statements(conn, catalog, load, batch, window)
                };
                measure_paced(length, rate, watch, connections.into_iter().map(worker)).await
            }
            Call::Copy => {
                let connections = floor::connections(&self.options, at_once).await?;
                let worker = |conn| {
                    let (catalog, events) = (self.catalog.clone(), to_floor.events.clone());
                    move |window: Arc<Window>| floor::copies(conn, catalog, events, batch, window)
                };
                measure_paced(length, rate, watch, connections.into_iter().map(worker)).await
            }
            Call::TrackUsage => {
                let worker = |channel| {
                    let load = to_server.clone();
                    move |window: Arc<Window>| load::lone_events(channel, load, window)
                };
                measure_paced(length, rate, watch, channels.map(worker)).await
            }
            Call::BatchTrackUsage => {
                let worker = |channel| {
                    let load = to_server.clone();
                    move |window: Arc<Window>| load::batches(channel, load, batch as usize, window)
                };
                measure_paced(length, rate, watch, channels.map(worker)).await
            }
            Call::StreamUsage => {
                let worker = |channel| {
                    let load = to_server.clone();
                    move |window: Arc<Window>| load::stream(channel, load, batch, window)
                };
                measure_paced(length, rate, watch, channels.map(worker)).await
            }
        }
    }

    /// Times durable commits and round trips without a commit while nothing else runs.
    async fn sample(&mut self) -> anyhow::Result<()> {
        let begin = Instant::now();
        for number in 0..=COMMIT_SAMPLES {
            let at = Instant::now();
            meterd_store::bench::floor::round_trip(&mut self.conn).await?;
            let between = Instant::now();
            meterd_store::bench::floor::durable_commit(&mut self.conn).await?;
            let micros = |time: Duration| u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
            // The first sample also prepares the statements.
            if number > 0 {
                self.round_trip_us.push(micros(between - at));
                self.commit_us.push(micros(between.elapsed()));
                if begin.elapsed() > COMMIT_SAMPLING_MAX {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Stops the server and compares what it acknowledged with the database.
    pub async fn end(self) -> anyhow::Result<Ended> {
        let Self { mut commit_us, mut round_trip_us, .. } = self;
        self.conn.close().await?;
        let load_average_after = cpu::load_average();
        let peak_memory_bytes = self.watch.server_peak_memory();
        self.server.stop().await?;
        let pool = command_pool(&self.options);
        let verified = verify_all(&pool, None, None).await;
        pool.close().await;
        commit_us.sort_unstable();
        round_trip_us.sort_unstable();
        let machine = Machine {
            cores: std::thread::available_parallelism()?.get(),
            load_average_before: self.load_average_before,
            load_average_after,
            database: self.facts,
            commit_us,
            round_trip_us,
        };
        Ok(Ended {
            machine,
            idle_memory_bytes: self.idle_memory_bytes,
            peak_memory_bytes,
            verified: verified?,
            recorded: self.recorded,
        })
    }
}

/// Measures all workloads in each round, alternating between the servers. Returns the rows of each server.
pub async fn measure_rounds(
    benches: &mut [&mut Bench<'_>],
    mut workloads: Vec<Workload>,
    rounds: u32,
) -> anyhow::Result<Vec<Rows>> {
    let mut rows = vec![Rows::new(&workloads); benches.len()];
    let mut order: Vec<usize> = (0..benches.len()).collect();
    let steps = (workloads.len() * benches.len()) as u64 * u64::from(rounds);
    // Drawn only on a terminal.
    let progress = ProgressBar::new(steps).with_style(ProgressStyle::with_template("{bar:40} {pos}/{len} {msg}")?);
    for _ in 0..rounds {
        for bench in &mut *benches {
            bench.sample().await?;
        }
        for &workload in &workloads {
            let Workload { call, batch, mix, at_once } = workload;
            progress.set_message(format!("{call:?} of {batch} {mix:?} {at_once}"));
            for &server in &order {
                let measured = benches[server].measure(workload).await;
                rows[server].add(workload, measured.with_context(|| format!("{call:?} of {batch} {mix:?} {at_once}"))?);
                progress.inc(1);
            }
        }
        // Every other round runs backwards, so that a drift over time favours no workload.
        workloads.reverse();
        order.reverse();
    }
    progress.finish_and_clear();
    Ok(rows)
}
