//! The report of the write side, as a table or as JSON.

use super::args::WritesArgs;
use super::meterd_binary::MeterdBinary;
use super::plan::{Call, Mix, Workload};
use super::rows::{Row, Rows};
use super::spread::Spread;
use super::writes::{Ended, Recorded};
use crate::product::{Verified, grouped, table};
use serde_json::{Value, json};

/// The floors that calls are compared with, and their names in the table and in JSON.
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

impl Report {
    /// Throughput divided by the throughput of a floor. `None` in open loop, where the flags set the throughput.
    fn ratio(&self, row: &Row, floor: Call, args: &WritesArgs) -> Option<Spread> {
        self.rows.ratio(row, floor).filter(|_| args.load.rate.is_none())
    }

    /// As text.
    pub fn text(&self, args: &WritesArgs, meterd: &MeterdBinary) -> String {
        let heads = ["workload", "clients", "at once", "events/s", "min–max", "p50 ms", "p99 ms"];
        let floors = FLOORS.map(|(_, head, _)| head);
        let costs = ["server", "database", "load: CPU µs/event", "WAL B/event", "commit ms", "events/commit"];
        let heads = heads.into_iter().chain(floors).chain(costs).map(str::to_owned);
        let mut lines = vec![heads.collect::<Vec<_>>()];
        lines.extend(self.rows.0.iter().map(|row| self.cells(row, args)));
        let right: Vec<bool> = (0..lines[0].len()).map(|column| column > 1).collect();
        let mut text = table(&lines, &right);
        text.push(String::new());
        text.extend(self.notes(args, meterd));
        text.join("\n")
    }

    fn cells(&self, row: &Row, args: &WritesArgs) -> Vec<String> {
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
        // One decimal below ten microseconds.
        let cpu = |us: Option<Spread>| shown(us, us.is_some_and(|us| us.median < 10.0).into());
        cells.extend(row.cpu_us().map(cpu));
        cells.push(shown(row.spread_of(|round| round.wal_bytes), 0));
        cells.push(shown(row.spread_of(|round| Some(round.commits?.mean_ms())), 2));
        cells.push(shown(row.spread_of(|round| Some(round.commits?.mean_events())), 0));
        cells
    }

    fn notes(&self, args: &WritesArgs, meterd: &MeterdBinary) -> Vec<String> {
        let Ended { idle_memory_bytes, peak_memory_bytes, verified, recorded, machine } = &self.ended;
        let Verified { client_months, events, differences, .. } = verified;
        let Recorded { before, acknowledged, duplicates } = *recorded;
        let mib = |bytes: &Option<u64>| bytes.map_or_else(|| "unknown".into(), |b| format!("{} MiB", b >> 20));
        let load = &args.load;
        let [machine, commit] = machine.lines();
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
            machine,
            commit,
            format!(
                "server: memory {} idle, {} at most{}",
                mib(idle_memory_bytes),
                mib(peak_memory_bytes),
                meterd.text()
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

    /// As JSON.
    pub fn json(&self, args: &WritesArgs, meterd: &MeterdBinary) -> Value {
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
                "server_flags": meterd.flags,
                "optimized": meterd.is_optimized(),
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

    fn row_json(&self, row: &Row, args: &WritesArgs) -> Value {
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

fn mix_text(mix: Mix, args: &WritesArgs) -> String {
    match mix {
        Mix::None => String::new(),
        Mix::Many => args.load.clients.to_string(),
        Mix::Hot if args.load.hot == 100 => "1 hot".into(),
        Mix::Hot => format!("{}% hot", args.load.hot),
    }
}
