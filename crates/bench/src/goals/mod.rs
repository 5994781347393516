//! `meterd-bench goals`: compares the measured speed of meterd with its goals.
//!
//! `goal` is a row of the table, `writes` measures the sections of the write side.

mod goal;
mod writes;

pub use goal::{Bound, Goal, Outcome, lines};

use super::alerts::{self, AlertsArgs};
use super::args::{Calls, LoadArgs, PRELOAD_DAYS, PRELOAD_MAX, SetupArgs};
use super::meterd_binary::MeterdBinary;
use super::postgres::Postgres;
use super::preload::{DAYS_MIN, EVENTS_MIN};
use super::reads::{self, Part, ReadsArgs};
use clap::ValueEnum;
use serde_json::{Value, json};
use std::time::Instant;

/// Arguments of `meterd-bench goals`.
#[derive(clap::Args, Clone, Debug)]
pub struct GoalsArgs {
    /// Sections to measure; separate several with commas
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = Section::ALL)]
    pub only: Vec<Section>,
    /// Duration of each measurement, in seconds
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=60))]
    pub seconds: u64,
    /// Number of rounds; each round repeats all measurements
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: u32,
    /// Number of clients of the events
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub clients: u32,
    /// Number of concurrent BatchTrackUsage calls or streams
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub batch_calls: u32,
    /// Number of events to write before the measurement, in the sections with a preloaded database
    #[arg(long, default_value_t = 20_000_000, value_parser = clap::value_parser!(u64).range(EVENTS_MIN..=PRELOAD_MAX))]
    pub preload: u64,
    /// Number of days that the preloaded events cover, up to now
    #[arg(long, default_value_t = PRELOAD_DAYS, value_parser = clap::value_parser!(u32).range(i64::from(DAYS_MIN)..=3_650))]
    pub days: u32,
    /// Number of gRPC connections
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub connections: u32,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub setup: SetupArgs,
}

/// A part of the table that can be measured alone, over its own database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Section {
    /// TrackUsage, compared with one transaction per event and an empty call
    Track,
    /// BatchTrackUsage and StreamUsage, compared with multi-row statements and COPY
    Batch,
    /// Calls for 100,000 random clients in a preloaded database, compared with COPY there and with an empty one
    Preloaded,
    /// Reads in a preloaded database, compared with their SQL
    Reads,
    /// Alerts to many subscribers, compared with a plain stream, and the memory of the server
    Alerts,
}

impl Section {
    const ALL: [Self; 5] = [Self::Track, Self::Batch, Self::Preloaded, Self::Reads, Self::Alerts];

    fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }

    async fn measure(self, args: &GoalsArgs, meterd: &MeterdBinary) -> anyhow::Result<Outcome> {
        super::with_postgres(&args.setup, async |postgres: &Postgres| match self {
            Self::Track => writes::track(args, meterd, postgres).await,
            Self::Batch => writes::batch(args, meterd, postgres).await,
            Self::Preloaded => writes::preloaded(args, meterd, postgres).await,
            Self::Reads => Ok(reads::measure_all(&args.reads(), meterd, postgres).await?.outcome()),
            Self::Alerts => Ok(alerts::measure_all(&args.alerts(), meterd, postgres).await?.outcome()),
        })
        .await
    }
}

impl GoalsArgs {
    fn reads(&self) -> ReadsArgs {
        ReadsArgs {
            preload: self.preload,
            clients: READ_CLIENTS,
            days: self.days,
            bulk: BULK_EVENTS,
            seconds: self.seconds,
            rounds: self.rounds,
            parts: Part::value_variants().to_vec(),
            json: self.json,
            setup: self.setup.clone(),
        }
    }

    fn alerts(&self) -> AlertsArgs {
        AlertsArgs {
            crossings: CROSSINGS,
            crossings_per_second: CROSSINGS,
            load: CROSSINGS,
            subscribers: IDLE_SUBSCRIBERS,
            streams_per_connection: 100,
            fan_out: SUBSCRIBERS,
            fan_out_alerts: ALERTS,
            rounds: self.rounds,
            seconds: self.seconds,
            concurrency: 64,
            clients: self.clients,
            connections: self.connections,
            json: self.json,
            setup: self.setup.clone(),
        }
    }

    /// The load of a section of the write side.
    fn load(&self, batch: &[u32]) -> LoadArgs {
        LoadArgs {
            seconds: self.seconds,
            rounds: self.rounds,
            calls: vec![Calls::Track, Calls::Batch, Calls::Stream],
            clients: self.clients,
            hot: 100,
            services: 1,
            payload_bytes: 0,
            duplicates: 0,
            rate: None,
            concurrency: vec![],
            batch: batch.to_vec(),
            batch_calls: self.batch_calls,
            connections: self.connections,
            floor_connections: FLOOR_CONNECTIONS,
        }
    }
}

/// Clients of the reads; events of an export and of an import.
const READ_CLIENTS: u32 = 100_000;
const BULK_EVENTS: u32 = 500_000;
/// Subscribers of the fan-out and alerts of each; idle subscribers; crossings, which have no goal of their own.
const SUBSCRIBERS: u32 = 1_000;
const ALERTS: u32 = 500;
const IDLE_SUBSCRIBERS: u32 = 10_000;
const CROSSINGS: u32 = 50;
/// Maximum number of connections of floor (b). More are slower with a hot client and not faster without one.
const FLOOR_CONNECTIONS: u32 = 16;

/// The outcome of each section.
pub struct Report {
    sections: Vec<(Section, Outcome)>,
    seconds: u64,
}

/// Measures the sections that `args` names.
pub async fn measure_all(args: &GoalsArgs, meterd: &MeterdBinary) -> anyhow::Result<Report> {
    let begin = Instant::now();
    let mut sections = vec![];
    for section in Section::ALL.into_iter().filter(|section| args.only.contains(section)) {
        sections.push((section, section.measure(args, meterd).await?));
    }
    Ok(Report { sections, seconds: begin.elapsed().as_secs() })
}

impl Report {
    /// Whether everything that was recorded and read is right.
    pub fn is_exact(&self) -> bool {
        self.sections.iter().all(|(_, outcome)| outcome.is_exact)
    }

    fn goals(&self) -> Vec<Goal> {
        self.sections.iter().flat_map(|(_, outcome)| outcome.goals.clone()).collect()
    }

    /// As text.
    pub fn text(&self, args: &GoalsArgs, meterd: &MeterdBinary) -> String {
        let goals = self.goals();
        let reached = goals.iter().filter(|goal| goal.is_reached()).count();
        let mut text = lines(&goals);
        text.push(String::new());
        text.push(format!(
            "{reached} of {} goals reached; medians of {} rounds of {} s, in turns, each ratio within its round; (b) a \
             transaction an event; (g) an empty gRPC call; (d) multi-row statements; (e) binary COPY",
            goals.len(),
            args.rounds,
            args.seconds
        ));
        for (section, outcome) in &self.sections {
            text.extend(outcome.notes.iter().map(|note| format!("{}: {note}", section.name())));
        }
        text.push(format!("measured in {} s{}", self.seconds, meterd.text()));
        if !self.is_exact() {
            text.push(
                "WRONG: what was recorded is not what was acknowledged, so the figures above mean nothing".into(),
            );
        }
        text.join("\n")
    }

    /// As JSON.
    pub fn json(&self, args: &GoalsArgs, meterd: &MeterdBinary) -> Value {
        let sections = self.sections.iter().map(|(section, outcome)| {
            json!({
                "section": section.name(),
                "goals": outcome.goals.iter().map(Goal::json).collect::<Vec<_>>(),
                "notes": outcome.notes,
                "exact": outcome.is_exact,
            })
        });
        json!({
            "sections": sections.collect::<Vec<_>>(),
            "settings": {
                "seconds": args.seconds,
                "rounds": args.rounds,
                "clients": args.clients,
                "batch_calls": args.batch_calls,
                "preload": args.preload,
                "days": args.days,
                "connections": args.connections,
                "server_flags": meterd.flags,
                "optimized": meterd.is_optimized(),
            },
            "exact": self.is_exact(),
        })
    }
}
