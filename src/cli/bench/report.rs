//! What is printed: a table for people, or JSON. Every figure is one that was measured.

use super::args::BenchArgs;
use super::plan::{Call, Mix, Workload};
use super::rows::{Row, Rows};
use super::window::percentile;
use super::writes::{Ended, Recorded};
use crate::cli::chart::{grouped, table};
use crate::cli::verify::Verified;
use meterd_store::floor::Facts;
use serde_json::{Value, json};

/// The floors that calls are compared with, as the table names them, and as JSON does.
const FLOORS: [(Call, &str, &str); 4] = [
    (Call::Transaction, "× (b)", "ratio_to_transaction"),
    (Call::HealthCheck, "× (g)", "ratio_to_health_check"),
    (Call::Statements, "× (d)", "ratio_to_statements"),
    (Call::Copy, "× (e)", "ratio_to_copy"),
];

/// Everything that was measured.
pub struct Report {
    pub rows: Rows,
    pub ended: Ended,
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

impl Machine {
    /// For people.
    pub fn lines(&self) -> [String; 2] {
        let Self { cores, database, commit_us, round_trip_us, .. } = self;
        let ms = |samples: &[u32], percent| format!("{:.2} ms", f64::from(percentile(samples, percent)) / 1e3);
        let shown = |load: &Option<String>| load.clone().unwrap_or_else(|| "unknown".into());
        [
            format!(
                "{cores} cores, load {} before and {} after; PostgreSQL {}, fsync = {}, synchronous_commit = {}, \
                 full_page_writes = {}, wal_sync_method = {}",
                shown(&self.load_average_before),
                shown(&self.load_average_after),
                database.version,
                database.fsync,
                database.synchronous_commit,
                database.full_page_writes,
                database.wal_sync_method
            ),
            format!(
                "durable commit alone p50 {}, p99 {}; round trip without one p50 {}",
                ms(commit_us, 50),
                ms(commit_us, 99),
                ms(round_trip_us, 50)
            ),
        ]
    }

    /// For machines.
    pub fn json(&self) -> Value {
        let Self { database, commit_us, round_trip_us, .. } = self;
        json!({
            "cores": self.cores,
            "load_average_before": self.load_average_before,
            "load_average_after": self.load_average_after,
            "postgresql_version": database.version,
            "fsync": database.fsync,
            "synchronous_commit": database.synchronous_commit,
            "full_page_writes": database.full_page_writes,
            "wal_sync_method": database.wal_sync_method,
            "commit_us": { "p50": percentile(commit_us, 50), "p99": percentile(commit_us, 99) },
            "round_trip_us": { "p50": percentile(round_trip_us, 50), "p99": percentile(round_trip_us, 99) },
        })
    }
}

impl Report {
    /// Throughput beside that of a floor. In open loop it is what was asked for, and says nothing.
    fn ratio(&self, row: &Row, floor: Call, args: &BenchArgs) -> Option<Spread> {
        self.rows.ratio(row, floor).filter(|_| args.load.rate.is_none())
    }

    /// For people.
    pub fn text(&self, args: &BenchArgs) -> String {
        let heads = ["workload", "clients", "at once", "events/s", "min–max", "p50 ms", "p99 ms"];
        let floors = FLOORS.map(|(_, head, _)| head);
        let costs = ["server", "database", "load: CPU µs/event", "WAL B/event", "commit ms", "events/commit"];
        let heads = heads.into_iter().chain(floors).chain(costs).map(str::to_owned);
        let mut lines = vec![heads.collect::<Vec<_>>()];
        lines.extend(self.rows.0.iter().map(|row| self.cells(row, args)));
        let right: Vec<bool> = (0..lines[0].len()).map(|column| column > 1).collect();
        let mut text = table(&lines, &right);
        text.push(String::new());
        text.extend(self.notes(args));
        text.join("\n")
    }

    fn cells(&self, row: &Row, args: &BenchArgs) -> Vec<String> {
        let ms = |us: f64| format!("{:.2}", us / 1e3);
        let shown = |spread: Option<Spread>, decimals: usize| {
            spread.map_or_else(String::new, |spread| format!("{:.decimals$}", spread.median))
        };
        let rate = row.spread(|round| round.per_second);
        let mut cells = vec![
            workload_text(row.workload),
            mix_text(row.workload.mix, args),
            row.workload.at_once.to_string(),
            grouped(rate.median.round()),
            format!("{}–{}", grouped(rate.min.round()), grouped(rate.max.round())),
            ms(row.spread(|round| round.p50_us.into()).median),
            ms(row.spread(|round| round.p99_us.into()).median),
        ];
        cells.extend(FLOORS.map(|(floor, ..)| shown(self.ratio(row, floor, args), 2)));
        // Below ten microseconds tenths matter.
        let cpu = |us: Option<Spread>| shown(us, us.is_some_and(|us| us.median < 10.0).into());
        cells.extend(row.cpu_us().map(cpu));
        cells.push(shown(row.spread_of(|round| round.wal_bytes), 0));
        cells.push(shown(row.spread_of(|round| Some(round.commits?.mean_ms())), 2));
        cells.push(shown(row.spread_of(|round| Some(round.commits?.mean_events())), 0));
        cells
    }

    fn notes(&self, args: &BenchArgs) -> Vec<String> {
        let Ended { idle_memory_bytes, peak_memory_bytes, verified, recorded, machine } = &self.ended;
        let Verified { client_months, events, differences, .. } = verified;
        let Recorded { before, acknowledged, duplicates } = *recorded;
        let mib = |bytes: &Option<u64>| bytes.map_or_else(|| "unknown".into(), |b| format!("{} MiB", b >> 20));
        let load = &args.load;
        let [place, commit] = machine.lines();
        let loop_text = match load.rate {
            Some(rate) => format!("open loop, {} events/s due, latency from then", grouped(rate)),
            None => "closed loop".into(),
        };
        vec![
            format!(
                "(b) a transaction an event, through at most {} connections; (g) an empty gRPC call; (d) multi-row statements, \
                 a transaction a batch; (e) binary COPY into one table with the same unique key; ratios are medians of each \
                 round's own",
                load.floor_connections
            ),
            format!(
                "{} rounds of {} s a row, in turns, {loop_text}; medians; latency is of a call, with StreamUsage of an event; \
                 commit is the mean time from taking a batch to its commit",
                load.rounds, load.seconds
            ),
            format!(
                "{} kinds of usage, {} bytes of metadata, {} % sent again, except to (e)",
                load.services, load.payload_bytes, load.duplicates
            ),
            place,
            commit,
            format!(
                "server: memory {} idle, {} at most{}{}",
                mib(idle_memory_bytes),
                mib(peak_memory_bytes),
                flags_text(&args.place.server),
                build_text()
            ),
            format!(
                "verified: {} events before, {} acknowledged, {} in the database, {} sent again and not counted, {differences} \
                 differences in {} client-months{}",
                grouped(before),
                grouped(acknowledged),
                grouped(events),
                grouped(duplicates),
                grouped(client_months),
                if self.ended.is_exact() { "" } else { ": WRONG, so the figures above mean nothing" }
            ),
        ]
    }

    /// For machines.
    pub fn json(&self, args: &BenchArgs) -> Value {
        let Ended { idle_memory_bytes, peak_memory_bytes, verified, recorded, machine } = &self.ended;
        let load = &args.load;
        json!({
            "rows": self.rows.0.iter().map(|row| self.row_json(row, args)).collect::<Vec<_>>(),
            "settings": {
                "seconds": load.seconds,
                "rounds": load.rounds,
                "clients": load.clients,
                "hot_percent": load.hot,
                "services": load.services,
                "payload_bytes": load.payload_bytes,
                "duplicates_percent": load.duplicates,
                "events_due_per_second": load.rate,
                "preload": args.preload,
                "days": args.days,
                "connections": load.connections,
                "floor_connections": load.floor_connections,
                "server_flags": args.place.server,
                "optimized": !cfg!(debug_assertions),
            },
            "machine": machine.json(),
            "server_idle_memory_bytes": idle_memory_bytes,
            "server_peak_memory_bytes": peak_memory_bytes,
            "verification": {
                "before": recorded.before,
                "acknowledged": recorded.acknowledged,
                "duplicates": recorded.duplicates,
                "events": verified.events,
                "client_months": verified.client_months,
                "differences": verified.differences,
                "exact": self.ended.is_exact(),
            },
        })
    }

    fn row_json(&self, row: &Row, args: &BenchArgs) -> Value {
        let json = |spread: Option<Spread>| spread.map(Spread::json);
        let [server, database, load] = row.cpu_us().map(json);
        let mut value = json!({
            "workload": row.workload.call,
            "batch_events": row.workload.batch,
            "clients": row.workload.mix,
            "at_once": row.workload.at_once,
            "events_per_second": row.spread(|round| round.per_second).json(),
            "p50_us": row.spread(|round| round.p50_us.into()).json(),
            "p99_us": row.spread(|round| round.p99_us.into()).json(),
            "cpu_us_per_event": { "server": server, "database": database, "load": load },
            "wal_bytes_per_event": json(row.spread_of(|round| round.wal_bytes)),
            "commit_ms": json(row.spread_of(|round| Some(round.commits?.mean_ms()))),
            "events_per_commit": json(row.spread_of(|round| Some(round.commits?.mean_events()))),
        });
        for (floor, _, name) in FLOORS {
            value[name] = json!(json(self.ratio(row, floor, args)));
        }
        value
    }
}

fn workload_text(Workload { call, batch, .. }: Workload) -> String {
    match call {
        Call::HealthCheck => "(g) empty gRPC call".into(),
        Call::Transaction => "(b) SQL transaction".into(),
        Call::Statements => format!("(d) SQL of {}", grouped(batch)),
        Call::Copy => format!("(e) COPY of {}", grouped(batch)),
        Call::TrackUsage => "TrackUsage".into(),
        Call::BatchTrackUsage => format!("BatchTrackUsage of {}", grouped(batch)),
        Call::StreamUsage => format!("StreamUsage, {} unsettled", grouped(batch)),
    }
}

fn mix_text(mix: Mix, args: &BenchArgs) -> String {
    match mix {
        Mix::None => String::new(),
        Mix::Many => args.load.clients.to_string(),
        Mix::Hot if args.load.hot == 100 => "1 hot".into(),
        Mix::Hot => format!("{}% hot", args.load.hot),
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
