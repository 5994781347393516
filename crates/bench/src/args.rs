//! The flags of the write side and of the setup, and which of them do not go together.

use super::events::{KINDS_MAX, PAYLOAD_BYTES_MIN};
use super::plan::Call;
use super::preload::{DAYS_MIN, EVENTS_MIN};
use crate::postgres;
use crate::product::MESSAGE_BYTES_MAX;
use meterd_domain::event::METADATA_BYTES_MAX;
use std::path::PathBuf;

/// Most bytes of an event on the wire without its metadata, with the framing.
const EVENT_BYTES_MAX: usize = 256;

/// Most preloaded events, and the default number of days that they are spread over.
pub const PRELOAD_MAX: u64 = 10_000_000_000;
pub const PRELOAD_DAYS: u32 = 35;

/// What is measured.
#[derive(clap::Args, Clone, Debug)]
pub struct LoadArgs {
    /// Seconds of each measurement
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=60))]
    pub seconds: u64,
    /// Number of rounds. Each round measures everything
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: u32,
    /// Calls to measure, with their floors; separate several with commas
    #[arg(long, value_delimiter = ',', default_values_t = [Calls::Track, Calls::Batch, Calls::Stream])]
    pub calls: Vec<Calls>,
    /// Number of clients of the events
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub clients: u32,
    /// Percentage of the events that belong to one hot client, in the workloads with a hot client; 0 leaves these out
    #[arg(long, alias = "skew", default_value_t = 100, value_parser = clap::value_parser!(u32).range(0..=100))]
    pub hot: u32,
    /// Number of kinds of usage: services, operations and models of the built-in catalogue
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=i64::from(KINDS_MAX)))]
    pub services: u32,
    /// Bytes of metadata per event, as JSON
    #[arg(long, default_value_t = 0, value_parser = payload_bytes)]
    pub payload_bytes: u32,
    /// Percentage of the events that are sent again with the same key after their acknowledgement
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=90))]
    pub duplicates: u32,
    /// Events per second, in open loop: events become due independent of earlier answers, and their latency counts from the
    /// time when they are due. Without it, each caller sends its next event as soon as it has an answer
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub rate: Option<u32>,
    /// Concurrent TrackUsage calls; separate several numbers with commas
    #[arg(long, value_delimiter = ',', default_values_t = [1, 8, 32, 64, 256], value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub concurrency: Vec<u32>,
    /// Events of a BatchTrackUsage call, and most unsettled events of a stream; separate several numbers with commas
    #[arg(long, value_delimiter = ',', default_values_t = [1_000, 5_000], value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub batch: Vec<u32>,
    /// Concurrent BatchTrackUsage calls or streams
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub batch_calls: u32,
    /// gRPC connections
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub connections: u32,
    /// Most database connections of floor (b). More than the default were slower with a hot client and no faster without one
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub floor_connections: u32,
}

/// Arguments of `meterd-bench` without a subcommand.
#[derive(clap::Args, Clone, Debug)]
pub struct WritesArgs {
    #[command(flatten)]
    pub load: LoadArgs,
    /// Events to write before the measurement, with their keys, of the same clients; 0 starts with an empty database
    #[arg(long, default_value_t = 0, value_parser = preload)]
    pub preload: u64,
    /// Number of days of the preloaded events, up to now
    #[arg(long, default_value_t = PRELOAD_DAYS, requires = "preload", value_parser = clap::value_parser!(u32).range(i64::from(DAYS_MIN)..=3_650))]
    pub days: u32,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub setup: SetupArgs,
}

/// The database and the measured server.
#[derive(clap::Args, Clone, Debug)]
pub struct SetupArgs {
    /// Program to measure [default: the meterd next to meterd-bench]
    #[arg(long, env = "METERD_BIN", value_name = "PATH")]
    pub meterd: Option<PathBuf>,
    /// PostgreSQL to use, with the right to create databases; not taken from the environment, because the load is heavy.
    /// Without it, a durable embedded PostgreSQL runs during the measurement
    #[arg(long, id = "bench_database_url", value_name = "URL")]
    pub database_url: Option<String>,
    /// Name of a database to keep there: it is created if it does not exist, and later runs use its preloaded events
    #[arg(long, value_name = "NAME", requires = "bench_database_url", value_parser = postgres::parse_name)]
    pub keep: Option<String>,
    /// Directory for the embedded PostgreSQL, on the disk to measure; it gets a new directory there, which is removed at the
    /// end [default: the system's temporary directory]
    #[arg(long, id = "bench_data_dir", value_name = "DIRECTORY")]
    pub data_dir: Option<PathBuf>,
    /// Directory of initdb and postgres. Without it they are searched for
    #[arg(long, env = "METERD_POSTGRES_BIN_DIR")]
    pub postgres_bin_dir: Option<PathBuf>,
    /// Whether PostgreSQL may be downloaded if none is found
    #[arg(long, env = "METERD_POSTGRES_DOWNLOAD", num_args = 0..=1, default_missing_value = "true", default_value = "true", action = clap::ArgAction::Set)]
    pub postgres_download: bool,
    /// Where to download PostgreSQL from
    #[arg(long, env = "METERD_POSTGRES_DOWNLOAD_URL")]
    pub postgres_download_url: Option<String>,
    /// Flags of the measured server, after `--`, such as `-- --writers 4`
    #[arg(last = true, value_name = "FLAGS OF SERVE")]
    pub server: Vec<String>,
}

/// Calls that can be measured with their floors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Calls {
    /// TrackUsage
    Track,
    /// BatchTrackUsage
    Batch,
    /// StreamUsage
    Stream,
}

impl Calls {
    /// The workload's call.
    pub fn call(self) -> Call {
        match self {
            Self::Track => Call::TrackUsage,
            Self::Batch => Call::BatchTrackUsage,
            Self::Stream => Call::StreamUsage,
        }
    }
}

impl std::fmt::Display for Calls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Track => "track",
            Self::Batch => "batch",
            Self::Stream => "stream",
        })
    }
}

fn preload(text: &str) -> Result<u64, String> {
    let events = text.parse().ok().filter(|events| *events == 0 || (EVENTS_MIN..=PRELOAD_MAX).contains(events));
    events.ok_or_else(|| format!("must be 0, or from {EVENTS_MIN} to {PRELOAD_MAX}"))
}

fn payload_bytes(text: &str) -> Result<u32, String> {
    let range = PAYLOAD_BYTES_MIN..=METADATA_BYTES_MAX as u32;
    let bytes = text.parse().ok().filter(|bytes| *bytes == 0 || range.contains(bytes));
    bytes.ok_or_else(|| format!("must be 0, or from {} to {}", range.start(), range.end()))
}

impl LoadArgs {
    /// Rejects flags that do not go together, all at once.
    pub fn check(&self) -> anyhow::Result<()> {
        let mut wrong = vec![];
        let batch = self.batch.iter().copied().max().unwrap_or_default();
        let measured = |calls| self.calls.contains(&calls);
        if measured(Calls::Batch) {
            let bytes = batch as usize * (self.payload_bytes as usize + EVENT_BYTES_MAX);
            if bytes > MESSAGE_BYTES_MAX {
                wrong.push(format!(
                    "--batch {batch} with --payload-bytes {} may need {} MiB a call, and a message has at most {}",
                    self.payload_bytes,
                    bytes.div_ceil(1 << 20),
                    MESSAGE_BYTES_MAX >> 20
                ));
            }
        }
        if let Some(rate) = self.rate {
            let due = u64::from(rate) * self.seconds;
            if measured(Calls::Batch) && due < u64::from(batch) {
                wrong.push(format!(
                    "--rate {rate} makes {due} events due in --seconds {}, fewer than one --batch of {batch}",
                    self.seconds
                ));
            }
        }
        anyhow::ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        Ok(())
    }
}
