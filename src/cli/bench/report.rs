//! What is printed: a table for people, or JSON. Every figure is one that was measured.

use super::BenchArgs;
use super::load::STREAM_WINDOW_EVENTS;
use super::plan::{Call, Mix, Workload};
use super::window::{Measurement, percentile};
use crate::cli::chart::{grouped, table};
use crate::cli::verify::Verified;
use crate::store::floor::Facts;
use serde_json::{Value, json};

/// Everything that was measured.
pub struct Report {
    pub rows: Vec<Row>,
    pub machine: Machine,
    pub server_peak_memory_bytes: Option<u64>,
    pub verified: Verified,
    pub acknowledged: u64,
}

/// Where it was measured.
pub struct Machine {
    pub cores: usize,
    pub load_average_before: Option<String>,
    pub load_average_after: Option<String>,
    pub database: Facts,
    /// Samples, sorted: a durable commit, and a round trip without one.
    pub commit_us: Vec<u32>,
    pub round_trip_us: Vec<u32>,
}

/// A workload, a measurement a round.
pub struct Row {
    pub workload: Workload,
    pub rounds: Vec<Measurement>,
}

/// Of one figure over the rounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Spread {
    /// Of these values; nothing where there are none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (&min, &max) = (values.first()?, values.last()?);
        let middle = (values[(values.len() - 1) / 2], values[values.len() / 2]);
        Some(Self { median: (middle.0 + middle.1) / 2.0, min, max })
    }

    /// For machines.
    pub fn json(self) -> Value {
        json!({ "median": self.median, "min": self.min, "max": self.max })
    }
}

impl Row {
    fn spread(&self, figure: impl Fn(&Measurement) -> f64) -> Spread {
        Spread::of(self.rounds.iter().map(figure)).expect("there is at least one round")
    }

    /// Server, database, load generator: medians.
    fn cpu(&self) -> [Option<f64>; 3] {
        [0, 1, 2].map(|party| {
            let figures = self.rounds.iter().map(|round| round.cpu_us.and_then(|cpu| cpu[party]));
            Some(Spread::of(figures.collect::<Option<Vec<f64>>>()?)?.median)
        })
    }
}

impl Report {
    /// Nothing is lost, nothing is counted twice, and all sums are right.
    pub fn is_exact(&self) -> bool {
        self.verified.differences == 0 && u64::try_from(self.verified.events) == Ok(self.acknowledged)
    }

    /// Throughput beside that of a floor, round by round: lone calls beside the floor at the same concurrency, what
    /// brings many events at once beside the best of the floor.
    fn ratio(&self, row: &Row, floor: Call) -> Option<Spread> {
        let Workload { call, mix, at_once } = row.workload;
        let lone = match call {
            Call::HealthCheck | Call::Transaction => return None,
            Call::TrackUsage => true,
            Call::BatchTrackUsage | Call::StreamUsage if floor == Call::HealthCheck => return None,
            Call::BatchTrackUsage | Call::StreamUsage => false,
        };
        let mix = if floor == Call::HealthCheck { Mix::None } else { mix };
        let is_floor = |of: &Workload| of.call == floor && of.mix == mix && (!lone || of.at_once == at_once);
        let floors: Vec<&Row> = self.rows.iter().filter(|row| is_floor(&row.workload)).collect();
        let best = |round: usize| floors.iter().map(|floor| floor.rounds[round].per_second).reduce(f64::max);
        let ratios = row.rounds.iter().enumerate().map(|(round, of)| Some(of.per_second / best(round)?));
        Spread::of(ratios.collect::<Option<Vec<f64>>>()?)
    }

    /// For people.
    pub fn text(&self, args: &BenchArgs) -> String {
        let heads = ["workload", "clients", "at once", "events/s", "min–max", "p50 ms", "p99 ms", "× (b)", "× (g)"];
        let cpu_heads = ["server", "database", "load: CPU µs/event"];
        let mut lines = vec![heads.iter().chain(&cpu_heads).map(|head| head.to_string()).collect::<Vec<_>>()];
        let ms = |us: f64| format!("{:.2}", us / 1e3);
        let ratio = |ratio: Option<Spread>| ratio.map_or_else(String::new, |ratio| format!("{:.2}", ratio.median));
        for row in &self.rows {
            let rate = row.spread(|round| round.per_second);
            let mut cells = vec![
                workload_text(row.workload.call, args),
                mix_text(row.workload.mix, args),
                row.workload.at_once.to_string(),
                grouped(rate.median.round()),
                format!("{}–{}", grouped(rate.min.round()), grouped(rate.max.round())),
                ms(row.spread(|round| round.p50_us.into()).median),
                ms(row.spread(|round| round.p99_us.into()).median),
                ratio(self.ratio(row, Call::Transaction)),
                ratio(self.ratio(row, Call::HealthCheck)),
            ];
            cells.extend(row.cpu().map(|us| us.map_or_else(|| "-".into(), |us| format!("{us:.0}"))));
            lines.push(cells);
        }
        let mut right = [true; 12];
        (right[0], right[1]) = (false, false);
        let mut text = table(&lines, &right);
        text.push(String::new());
        text.extend(self.notes(args));
        text.join("\n")
    }

    fn notes(&self, args: &BenchArgs) -> Vec<String> {
        let Machine { cores, database, commit_us, round_trip_us, .. } = &self.machine;
        let Verified { client_months, events, differences, .. } = self.verified;
        let ms = |samples: &[u32], percent| format!("{:.2} ms", f64::from(percentile(samples, percent)) / 1e3);
        let shown = |load: &Option<String>| load.clone().unwrap_or_else(|| "unknown".into());
        let peak = self.server_peak_memory_bytes.map_or_else(|| "unknown".into(), |b| format!("{} MiB", b >> 20));
        let mut notes = vec![
            format!(
                "(b) a transaction an event, through at most {} connections; (g) an empty gRPC call; ratios are medians of \
                 each round's own",
                args.floor_connections
            ),
            format!(
                "{} rounds of {} s a row, in turns; medians; latency is of a call, with StreamUsage of an event",
                args.rounds, args.seconds
            ),
            format!(
                "{cores} cores, load {} before and {} after; PostgreSQL {}, fsync = {}, synchronous_commit = {}, \
                 full_page_writes = {}, wal_sync_method = {}",
                shown(&self.machine.load_average_before),
                shown(&self.machine.load_average_after),
                database.version,
                database.fsync,
                database.synchronous_commit,
                database.full_page_writes,
                database.wal_sync_method
            ),
            format!(
                "durable commit p50 {}, p99 {}; round trip without one p50 {}",
                ms(commit_us, 50),
                ms(commit_us, 99),
                ms(round_trip_us, 50)
            ),
            format!("server: peak memory {peak}{}{}", flags_text(&args.place.server), build_text()),
            format!(
                "verified: {} events acknowledged, {} in the database, {differences} differences in {} client-months{}",
                grouped(self.acknowledged),
                grouped(events),
                grouped(client_months),
                if self.is_exact() { "" } else { ": WRONG, so the figures above mean nothing" }
            ),
        ];
        notes.retain(|note| !note.is_empty());
        notes
    }

    /// For machines.
    pub fn json(&self, args: &BenchArgs) -> Value {
        let rows = self.rows.iter().map(|row| {
            let [server, database, load] = row.cpu();
            json!({
                "workload": row.workload.call,
                "clients": row.workload.mix,
                "at_once": row.workload.at_once,
                "events_per_second": row.spread(|round| round.per_second).json(),
                "p50_us": row.spread(|round| round.p50_us.into()).json(),
                "p99_us": row.spread(|round| round.p99_us.into()).json(),
                "ratio_to_transaction": self.ratio(row, Call::Transaction).map(Spread::json),
                "ratio_to_health_check": self.ratio(row, Call::HealthCheck).map(Spread::json),
                "cpu_us_per_event": { "server": server, "database": database, "load": load },
            })
        });
        let Machine { database, commit_us, round_trip_us, .. } = &self.machine;
        json!({
            "rows": rows.collect::<Vec<_>>(),
            "settings": {
                "seconds": args.seconds,
                "rounds": args.rounds,
                "clients": args.clients,
                "hot_percent": args.hot,
                "batch_events": args.batch,
                "stream_window_events": STREAM_WINDOW_EVENTS,
                "connections": args.connections,
                "floor_connections": args.floor_connections,
                "server_flags": args.place.server,
                "optimized": !cfg!(debug_assertions),
            },
            "machine": {
                "cores": self.machine.cores,
                "load_average_before": self.machine.load_average_before,
                "load_average_after": self.machine.load_average_after,
                "postgresql_version": database.version,
                "fsync": database.fsync,
                "synchronous_commit": database.synchronous_commit,
                "full_page_writes": database.full_page_writes,
                "wal_sync_method": database.wal_sync_method,
                "commit_us": { "p50": percentile(commit_us, 50), "p99": percentile(commit_us, 99) },
                "round_trip_us": { "p50": percentile(round_trip_us, 50), "p99": percentile(round_trip_us, 99) },
            },
            "server_peak_memory_bytes": self.server_peak_memory_bytes,
            "verification": {
                "acknowledged": self.acknowledged,
                "events": self.verified.events,
                "client_months": self.verified.client_months,
                "differences": self.verified.differences,
                "exact": self.is_exact(),
            },
        })
    }
}

fn workload_text(call: Call, args: &BenchArgs) -> String {
    match call {
        Call::HealthCheck => "(g) empty gRPC call".into(),
        Call::Transaction => "(b) SQL transaction".into(),
        Call::TrackUsage => "TrackUsage".into(),
        Call::BatchTrackUsage => format!("BatchTrackUsage of {}", args.batch),
        Call::StreamUsage => format!("StreamUsage, {STREAM_WINDOW_EVENTS} unsettled"),
    }
}

fn mix_text(mix: Mix, args: &BenchArgs) -> String {
    match mix {
        Mix::None => String::new(),
        Mix::Many => args.clients.to_string(),
        Mix::Hot if args.hot == 100 => "1 hot".into(),
        Mix::Hot => format!("{}% hot", args.hot),
    }
}

pub fn flags_text(flags: &[String]) -> String {
    if flags.is_empty() { String::new() } else { format!(", flags {}", flags.join(" ")) }
}

pub fn build_text() -> &'static str {
    if cfg!(debug_assertions) { "; a debug build, many times slower than a release one" } else { "" }
}

#[cfg(test)]
mod tests {
    use super::Spread;

    #[test]
    fn a_spread_is_median_least_and_most() {
        let spread = Spread::of([3.0, 1.0, 2.0]).unwrap();
        assert_eq!((spread.median, spread.min, spread.max), (2.0, 1.0, 3.0));
        assert_eq!(Spread::of([1.0, 2.0]).unwrap().median, 1.5);
        assert_eq!(Spread::of([]), None);
    }
}
