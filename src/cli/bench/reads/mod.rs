//! `meterd bench reads`: each read over gRPC beside the bare SQL of the same read, in a database that is full already.
//!
//! In reading order: `calls` (one read), `turns` (reads in turns), `bulk` (exports, imports, verification), `beside` (reads
//! while others write), `report`.

mod beside;
mod bulk;
mod calls;
mod report;
mod turns;

use super::cpu::Watch;
use super::goals::Outcome;
use super::place::Place;
use super::preload::{DAYS_MIN, EVENTS_MIN, Preload};
use super::server::Server;
use super::{LOAD_CLIENTS, PlaceArgs};
use crate::cli::connect::{ConnectArgs, Connection};
use anyhow::Context;
use beside::Beside;
use bulk::Export;
use calls::Reader;
use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use indicatif::{ProgressBar, ProgressStyle};
use meterd_domain::period::day_of;
use meterd_store::connect;
pub use report::Report;
use sqlx::postgres::PgConnection;
use sqlx::{ConnectOptions, Connection as _};
use std::time::Duration;
use turns::{Turn, Turns};

/// Events of the small database that months are compared with, and its clients.
const SMALL_EVENTS: u64 = 10_000;
const SMALL_CLIENTS: u32 = 100;
/// Where turns are taken: in the small database and in the large one.
const SMALL: usize = 0;
const LARGE: usize = 1;

/// Arguments of `bench reads`.
#[derive(clap::Args, Clone, Debug)]
pub struct ReadsArgs {
    /// Events that are there before anything is measured
    #[arg(long, default_value_t = 20_000_000, value_parser = clap::value_parser!(u64).range(EVENTS_MIN..=10_000_000_000))]
    pub preload: u64,
    /// How many clients they are spread over
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub clients: u32,
    /// How many days they are spread over, up to now
    #[arg(long, default_value_t = 35, value_parser = clap::value_parser!(u32).range(i64::from(DAYS_MIN)..=3_650))]
    pub days: u32,
    /// Events of an export and of an import
    #[arg(long, default_value_t = 500_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub bulk: u32,
    /// Seconds of each measurement of a read
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=60))]
    pub seconds: u64,
    /// How often everything is measured, in turns
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: u32,
    /// Only these parts
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Part::Calls, Part::Export, Part::Import, Part::Beside, Part::Verify])]
    pub parts: Vec<Part>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub place: PlaceArgs,
}

/// What is measured together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// Months, summaries and queries, one call after the other
    Calls,
    /// ExportUsage beside COPY
    Export,
    /// `meterd import` beside BatchTrackUsage
    Import,
    /// Reads while events come in
    Beside,
    /// `meterd verify`
    Verify,
}

/// What every measurement needs.
struct Bench<'a> {
    args: &'a ReadsArgs,
    /// Of the server over the large database.
    address: String,
    channels: Vec<Connection>,
    conn: PgConnection,
    watch: Watch,
    /// The last one reads in the large database.
    readers: Vec<Reader>,
    prefix: &'static str,
    /// When the preloaded events end.
    preloaded_by: DateTime<Utc>,
    /// Events acknowledged since.
    acknowledged: u64,
}

/// A database with a server over it.
struct Served {
    url: String,
    server: Server,
    preloaded_by: DateTime<Utc>,
    /// Events that the database had before the server.
    events: u64,
}

/// Preloads a database, unless it is, and starts a server over it.
async fn serve(url: String, preloaded: bool, preload: &Preload, flags: &[String]) -> anyhow::Result<Served> {
    let options = connect::options(&url)?.disable_statement_logging();
    if !preloaded {
        preload.fill_new(&url, flags).await?;
    }
    let mut conn = options.connect().await?;
    let preloaded_by =
        meterd_store::preload::last_event_time(&mut conn, preload.prefix).await?.context("no events are there")?;
    conn.close().await?;
    let server = Server::start(&url, flags).await?;
    Ok(Served { url, server, preloaded_by, events: preload.events })
}

/// Measures all parts that are asked for.
pub async fn measure_all(args: &ReadsArgs, place: &Place) -> anyhow::Result<Report> {
    let preload = Preload { events: args.preload, prefix: LOAD_CLIENTS, clients: args.clients, days: args.days };
    let (url, was_there) = place.find_or_create_database().await?;
    let large = serve(url, was_there, &preload, &args.place.server).await?;
    let small = match args.parts.contains(&Part::Calls) {
        true => {
            let preload = Preload { events: SMALL_EVENTS, clients: SMALL_CLIENTS, ..preload };
            let url = place.create_second_database().await?;
            Some(serve(url, false, &preload, &args.place.server).await?)
        }
        false => None,
    };
    let options = connect::options(&large.url)?.disable_statement_logging();
    let mut conn = options.connect().await?;
    let facts = meterd_store::floor::facts(&mut conn).await?;
    let pid = large.server.pid().context("the server has ended")?;
    let mut readers = vec![];
    for (served, clients) in small.iter().map(|small| (small, SMALL_CLIENTS)).chain([(&large, args.clients)]) {
        let conn = connect::options(&served.url)?.disable_statement_logging().connect().await?;
        let channel = ConnectArgs::to(&served.server.address).channel().await?;
        readers.push(Reader::new(channel, conn, LOAD_CLIENTS, clients, day_of(served.preloaded_by, Tz::UTC)));
    }
    let mut channels = vec![];
    for _ in 0..CONNECTIONS {
        channels.push(ConnectArgs::to(&large.server.address).channel().await?);
    }
    let mut bench = Bench {
        args,
        address: large.server.address.clone(),
        channels,
        conn,
        watch: Watch::new(pid, facts.backend_pid, place.database()),
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
        true => Some(bulk::verify(&large.url).await?),
        false => None,
    };
    let expected = (!was_there).then_some(large.events + acknowledged);
    Ok(Report::new(measured, verification, expected, facts))
}

/// gRPC connections of exports and events.
const CONNECTIONS: usize = 4;

/// What was measured while the servers ran.
pub struct Measured {
    turns: Option<Turns>,
    exports: Vec<Export>,
    /// Events a second of BatchTrackUsage and of `meterd import`, round by round.
    imports: Vec<(f64, f64)>,
    besides: Vec<Beside>,
}

impl Bench<'_> {
    async fn measure(&mut self) -> anyhow::Result<Measured> {
        let (args, rounds) = (self.args, self.args.rounds);
        let has = |part| args.parts.contains(&part);
        // Draws on a terminal only.
        let progress = ProgressBar::new_spinner().with_style(ProgressStyle::with_template("{spinner} {msg}")?);
        let turns = match has(Part::Calls) {
            true => {
                let length = Duration::from_secs(args.seconds);
                let told = |turn: &Turn| {
                    progress.set_message(format!("{turn:?}"));
                    progress.tick();
                };
                let turns = report::turns();
                Some(Turns::take(&mut self.readers, turns, rounds, length, told).await.context("reads")?)
            }
            false => None,
        };
        let (mut exports, mut imports, mut besides) = (vec![], vec![], vec![]);
        for round in 0..rounds {
            // There and back, so that what changes with time favours nobody.
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
            if has(Part::Beside) {
                let top = match imports.last() {
                    Some((batches, _)) => *batches,
                    None => bulk::batches(self).await?,
                };
                besides.push(beside::measure(self, top).await.context("reads beside writers")?);
            }
        }
        progress.finish_and_clear();
        Ok(Measured { turns, exports, imports, besides })
    }
}
