//! The flags of the write side and of the setup, and the check of their combinations.

use super::events::{KINDS_MAX, PAYLOAD_BYTES_MIN};
use super::plan::Call;
use super::preload::{DAYS_MIN, EVENTS_MIN};
use crate::postgres;
use crate::product::MESSAGE_BYTES_MAX;
use meterd_domain::event::METADATA_BYTES_MAX;
use std::path::PathBuf;

/// Maximum number of bytes of an encoded event without its metadata, including the framing.
const EVENT_BYTES_MAX: usize = 256;

/// Maximum number of preloaded events, and the default number of days that they cover.
pub const PRELOAD_MAX: u64 = 10_000_000_000;
pub const PRELOAD_DAYS: u32 = 35;

/// What is measured.
#[derive(clap::Args, Clone, Debug)]
pub struct LoadArgs {
    /// Duration of each measurement, in seconds
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=60))]
    pub seconds: u64,
    /// Number of rounds; each round repeats all measurements
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: u32,
    /// Calls to measure, each with the programs that it is compared with (floors); separate several calls with commas
    #[arg(long, value_delimiter = ',', default_values_t = [Calls::Track, Calls::Batch, Calls::Stream])]
    pub calls: Vec<Calls>,
    /// Number of clients of the events
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub clients: u32,
    /// Percentage of the events that belong to one hot client, in the workloads with a hot client; 0 skips these
    /// workloads
    #[arg(long, alias = "skew", default_value_t = 100, value_parser = clap::value_parser!(u32).range(0..=100))]
    pub hot: u32,
    /// Number of kinds of usage: services, operations and models of the built-in catalogue
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=i64::from(KINDS_MAX)))]
    pub services: u32,
    /// Number of bytes of metadata per event, as JSON
    #[arg(long, default_value_t = 0, value_parser = payload_bytes)]
    pub payload_bytes: u32,
    /// Percentage of the events that are sent again with the same key after their acknowledgement
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=90))]
    pub duplicates: u32,
    /// Number of events that become due per second, independent of earlier answers (open loop). Latency counts from the time
    /// when an event is due [default: each caller sends its next event as soon as it has an answer]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub rate: Option<u32>,
    /// Number of concurrent TrackUsage calls; separate several numbers with commas
    #[arg(long, value_delimiter = ',', default_values_t = [1, 8, 32, 64, 256], value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub concurrency: Vec<u32>,
    /// Number of events in a BatchTrackUsage call, and maximum number of unsettled events of a stream; separate several numbers
    /// with commas
    #[arg(long, value_delimiter = ',', default_values_t = [1_000, 5_000], value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub batch: Vec<u32>,
    /// Number of concurrent BatchTrackUsage calls or streams
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub batch_calls: u32,
    /// Number of gRPC connections
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub connections: u32,
    /// Maximum number of database connections of floor (b), which runs one transaction per event. More than the default was
    /// slower with a hot client and not faster without one
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub floor_connections: u32,
}

/// Arguments of `meterd-bench` without a subcommand.
#[derive(clap::Args, Clone, Debug)]
pub struct WritesArgs {
    #[command(flatten)]
    pub load: LoadArgs,
    /// Number of events to write before the measurement, with keys and for the same clients; 0 starts with an empty database
    #[arg(long, default_value_t = 0, value_parser = preload)]
    pub preload: u64,
    /// Number of days that the preloaded events cover, up to now
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
    /// URL of a PostgreSQL whose user may create databases; not read from the environment, because the load is heavy [default: a
    /// durable embedded PostgreSQL that runs during the measurement]
    #[arg(long, id = "bench_database_url", value_name = "URL")]
    pub database_url: Option<String>,
    /// Name of a database to keep in this PostgreSQL: it is created if it does not exist, and later runs use its preloaded
    /// events; needs --database-url
    #[arg(long, value_name = "NAME", requires = "bench_database_url", value_parser = postgres::parse_name)]
    pub keep: Option<String>,
    /// Directory on the disk to measure; the embedded PostgreSQL gets a new directory in it, which is removed at the end
    /// [default: the system's temporary directory]
    #[arg(long, id = "bench_data_dir", value_name = "DIRECTORY")]
    pub data_dir: Option<PathBuf>,
    /// Directory that contains initdb and postgres [default: search the PATH and the usual directories]
    #[arg(long, env = "METERD_POSTGRES_BIN_DIR")]
    pub postgres_bin_dir: Option<PathBuf>,
    /// Whether meterd-bench may download PostgreSQL if it finds none
    #[arg(long, env = "METERD_POSTGRES_DOWNLOAD", num_args = 0..=1, default_missing_value = "true", default_value = "true", action = clap::ArgAction::Set)]
    pub postgres_download: bool,
    /// URL to download PostgreSQL from [default: GitHub, then Maven Central]
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
    /// Returns the call of the workload.
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
    events.ok_or_else(|| format!("must be 0, or {EVENTS_MIN} to {PRELOAD_MAX} events"))
}

fn payload_bytes(text: &str) -> Result<u32, String> {
    let range = PAYLOAD_BYTES_MIN..=METADATA_BYTES_MAX as u32;
    let bytes = text.parse().ok().filter(|bytes| *bytes == 0 || range.contains(bytes));
    bytes.ok_or_else(|| format!("must be 0, or {} to {} bytes", range.start(), range.end()))
}

impl LoadArgs {
    /// Checks the combinations of flags. The error lists all faults.
    pub fn check(&self) -> anyhow::Result<()> {
        let mut wrong = vec![];
        let batch = self.batch.iter().copied().max().unwrap_or_default();
        let measured = |calls| self.calls.contains(&calls);
        if measured(Calls::Batch) {
            let bytes = batch as usize * (self.payload_bytes as usize + EVENT_BYTES_MAX);
            if bytes > MESSAGE_BYTES_MAX {
                wrong.push(format!(
                    "--batch {batch} with --payload-bytes {} may need {} MiB in a call, but a message has at most {} MiB: lower one \
                     of the two",
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
                    "--rate {rate} makes only {due} events due in --seconds {}, but a call of --batch {batch} needs {batch}: raise \
                     --rate or --seconds, or lower --batch",
                    self.seconds
                ));
            }
        }
        anyhow::ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        Ok(())
    }
}
