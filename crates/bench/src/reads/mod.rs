//! `meterd-bench reads`: each read over gRPC, compared with the SQL of the same read, in a preloaded database.
//!
//! In reading order: `calls` (one read), `cases` (all reads, alternately), `bulk` (exports, imports, verification), `under_load`
//! (reads while the server records events), `report`.

mod bulk;
mod calls;
mod cases;
mod report;
mod under_load;

use super::LOAD_CLIENTS;
use super::args::SetupArgs;
use super::cpu::Watch;
use super::goals::Outcome;
use super::meterd_binary::MeterdBinary;
use super::postgres::Postgres;
use super::preload::{DAYS_MIN, EVENTS_MIN, Preload};
use super::server::Server;
use crate::connection::Connection;
use anyhow::Context;
use bulk::Export;
use calls::Reader;
use cases::{Case, Figures, Readers};
use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use indicatif::{ProgressBar, ProgressStyle};
use meterd_domain::period::day_of;
use meterd_store::database::connect;
pub use report::Report;
use sqlx::postgres::PgConnection;
use sqlx::{ConnectOptions, Connection as _};
use std::time::Duration;
use under_load::UnderLoad;

/// Events and clients of the small database that months are compared with.
const SMALL_EVENTS: u64 = 10_000;
const SMALL_CLIENTS: u32 = 100;
/// gRPC connections of exports and events.
const CONNECTIONS: usize = 4;

/// Arguments of `meterd-bench reads`.
#[derive(clap::Args, Clone, Debug)]
pub struct ReadsArgs {
    /// Number of events to write before the measurement
    #[arg(long, default_value_t = 20_000_000, value_parser = clap::value_parser!(u64).range(EVENTS_MIN..=10_000_000_000))]
    pub preload: u64,
    /// Number of clients of the preloaded events
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub clients: u32,
    /// Number of days that the preloaded events cover, up to now
    #[arg(long, default_value_t = 35, value_parser = clap::value_parser!(u32).range(i64::from(DAYS_MIN)..=3_650))]
    pub days: u32,
    /// Number of events of an export and of an import
    #[arg(long, default_value_t = 500_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub bulk: u32,
    /// Duration of each measurement of a read, in seconds
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=60))]
    pub seconds: u64,
    /// Number of rounds; each round repeats all measurements
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: u32,
    /// Parts to measure; separate several with commas
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Part::Calls, Part::Export, Part::Import, Part::UnderLoad, Part::Verify])]
    pub parts: Vec<Part>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub setup: SetupArgs,
}

/// What is measured together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// Months, summaries and queries, one call at a time
    Calls,
    /// ExportUsage, compared with COPY
    Export,
    /// `meterd import`, compared with BatchTrackUsage
    Import,
    /// Reads while the server records events
    #[value(name = "beside")]
    UnderLoad,
    /// `meterd verify`
    Verify,
}

/// What every measurement needs.
struct Bench<'a> {
    args: &'a ReadsArgs,
    meterd: &'a MeterdBinary,
    /// Address of the server over the large database.
    address: String,
    channels: Vec<Connection>,
    conn: PgConnection,
    watch: Watch,
    readers: Readers,
    prefix: &'static str,
    /// Time of the last preloaded event.
    preloaded_by: DateTime<Utc>,
    /// Events acknowledged in this run.
    acknowledged: u64,
}

/// A database with a server over it.
struct Served {
    url: String,
    server: Server,
    preloaded_by: DateTime<Utc>,
    /// Preloaded events.
    events: u64,
}

impl Served {
    async fn reader(&self, clients: u32) -> anyhow::Result<Reader> {
        let conn = connect::options(&self.url)?.disable_statement_logging().connect().await?;
        let channel = Connection::open(&self.server.address).await?;
        Ok(Reader::new(&channel, conn, LOAD_CLIENTS, clients, day_of(self.preloaded_by, Tz::UTC)))
    }
}

/// Preloads a database if that is needed, and starts a server over it.
async fn serve(meterd: &MeterdBinary, url: String, preloaded: bool, preload: &Preload) -> anyhow::Result<Served> {
    let options = connect::options(&url)?.disable_statement_logging();
    if !preloaded {
        preload.fill_new(&url, meterd).await?;
    }
    let mut conn = options.connect().await?;
    let preloaded_by = meterd_store::bench::preload::last_event_time(&mut conn, preload.prefix)
        .await?
        .context("no events are there")?;
    conn.close().await?;
    let server = Server::start(meterd, &url).await?;
    Ok(Served { url, server, preloaded_by, events: preload.events })
}

/// Measures the parts that `args` names.
pub async fn measure_all(args: &ReadsArgs, meterd: &MeterdBinary, postgres: &Postgres) -> anyhow::Result<Report> {
    let preload = Preload { events: args.preload, prefix: LOAD_CLIENTS, clients: args.clients, days: args.days };
    let (url, was_there) = postgres.find_or_create_database().await?;
    let large = serve(meterd, url, was_there, &preload).await?;
    let small = match args.parts.contains(&Part::Calls) {
        true => {
            let preload = Preload { events: SMALL_EVENTS, clients: SMALL_CLIENTS, ..preload };
            let url = postgres.create_second_database().await?;
            Some(serve(meterd, url, false, &preload).await?)
        }
        false => None,
    };
    let options = connect::options(&large.url)?.disable_statement_logging();
    let mut conn = options.connect().await?;
    let facts = meterd_store::bench::floor::facts(&mut conn).await?;
    let pid = large.server.pid().context("the server has ended")?;
    let readers = Readers {
        small: match &small {
            Some(small) => Some(small.reader(SMALL_CLIENTS).await?),
            None => None,
        },
        large: large.reader(args.clients).await?,
    };
    let mut channels = vec![];
    for _ in 0..CONNECTIONS {
        channels.push(Connection::open(&large.server.address).await?);
    }
    let mut bench = Bench {
        args,
        meterd,
        address: large.server.address.clone(),
        channels,
        conn,
        watch: Watch::new(pid, facts.backend_pid, postgres.database()),
        readers,
        prefix: LOAD_CLIENTS,
        preloaded_by: large.preloaded_by,
        acknowledged: 0,
    };
    let measured = bench.measure().await?;
    let Bench { conn, readers, acknowledged, .. } = bench;
    drop(readers);
    conn.close().await?;
    large.server.stop().await?;
    if let Some(small) = small {
        small.server.stop().await?;
    }
    let verification = match args.parts.contains(&Part::Verify) {
        true => Some(bulk::verify(meterd, &large.url).await?),
        false => None,
    };
    let expected = (!was_there).then_some(large.events + acknowledged);
    Ok(Report::new(measured, verification, expected, facts))
}

/// What was measured while the servers ran.
pub struct Measured {
    reads: Option<Figures>,
    exports: Vec<Export>,
    /// Events per second of BatchTrackUsage and of `meterd import`, in each round.
    imports: Vec<(f64, f64)>,
    under_load: Vec<UnderLoad>,
}

impl Bench<'_> {
    async fn measure(&mut self) -> anyhow::Result<Measured> {
        let (args, rounds) = (self.args, self.args.rounds);
        let has = |part| args.parts.contains(&part);
        // Drawn only on a terminal.
        let progress = ProgressBar::new_spinner().with_style(ProgressStyle::with_template("{spinner} {msg}")?);
        let reads = match has(Part::Calls) {
            true => {
                let length = Duration::from_secs(args.seconds);
                let show = |case: &Case| {
                    progress.set_message(format!("{case:?}"));
                    progress.tick();
                };
                let cases = report::cases();
                Some(Figures::measure(&mut self.readers, cases, rounds, length, show).await.context("reads")?)
            }
            false => None,
        };
        let (mut exports, mut imports, mut under_load) = (vec![], vec![], vec![]);
        for round in 0..rounds {
            // Every other round runs backwards, so that a drift over time favours no side.
            let first = round % 2 == 0;
            progress.set_message(format!("export, import and reads beside writers, round {}", round + 1));
            progress.tick();
            if has(Part::Export) {
                exports.push(bulk::export(self, first).await.context("export")?);
            }
            if has(Part::Import) {
                let batches_first = if first { Some(bulk::batches(self).await?) } else { None };
                let import = bulk::import(self).await.context("import")?;
                let batches = match batches_first {
                    Some(batches) => batches,
                    None => bulk::batches(self).await?,
                };
                imports.push((batches, import));
            }
            if has(Part::UnderLoad) {
                let top = match imports.last() {
                    Some((batches, _)) => *batches,
                    None => bulk::batches(self).await?,
                };
                under_load.push(under_load::measure(self, top).await.context("reads under load")?);
            }
        }
        progress.finish_and_clear();
        Ok(Measured { reads, exports, imports, under_load })
    }
}
