//! The report of `meterd-bench alerts`, as tables or as JSON.

use super::AlertsArgs;
use super::crossings::{Crossings, Latency};
use super::fan_out::FanOut;
use super::idle::Idle;
use crate::goals::{Bound, Goal, Outcome, lines};
use crate::meterd_binary::MeterdBinary;
use crate::product::{Verified, grouped, table};
use crate::spread::Spread;
use meterd_store::bench::floor::Facts;
use serde_json::{Value, json};

const SUBSCRIBER_KIB_MAX: f64 = 16.0;

/// Everything that was measured.
pub struct Report {
    pub fan_out: Option<FanOut>,
    pub crossings: Crossings,
    pub idle: Option<Idle>,
    /// Memory of the server per idle subscriber.
    pub bytes_per_subscriber: Option<f64>,
    pub cores: usize,
    pub load_average_before: Option<String>,
    pub load_average_after: Option<String>,
    pub database: Facts,
    pub server_peak_memory_bytes: Option<u64>,
    pub verified: Verified,
    pub acknowledged: u64,
    /// Events that crossed a line, and their alerts in the feed.
    pub crossed: u64,
    pub in_feed: u64,
}

impl Report {
    /// Whether every event is in the sums, and every crossing is one alert in the feed that subscribers received.
    pub fn is_exact(&self) -> bool {
        let Verified { events, differences, .. } = self.verified;
        // The subscriber of the crossings received each of them, an idle subscriber one per round, one of the fan-out all.
        let alerts = self.crossings.received
            + self.idle.as_ref().map_or(0, |idle| idle.rounds)
            + self.fan_out.as_ref().map_or(0, |fan_out| fan_out.received / u64::from(fan_out.subscribers));
        differences == 0
            && u64::try_from(events) == Ok(self.acknowledged)
            && self.in_feed == self.crossed
            && alerts == self.crossed
    }

    /// Latency of the alert divided by the latency of a plain answer, at p99.
    fn p99_ratio(&self) -> f64 {
        f64::from(self.crossings.alert.p99_us) / f64::from(self.crossings.plain.p99_us.max(1))
    }

    /// Each goal with what was measured.
    pub fn outcome(&self) -> Outcome {
        let mut goals = self.fan_out.as_ref().map(FanOut::goals).unwrap_or_default();
        let each = Spread::of(self.bytes_per_subscriber.map(|bytes| bytes / 1024.0));
        goals.extend(each.map(|measured| Goal {
            what: "memory of an idle subscriber".into(),
            figures: String::new(),
            measured,
            unit: "KiB",
            bound: Bound::AtMost(SUBSCRIBER_KIB_MAX),
        }));
        Outcome { goals, notes: vec![], is_exact: self.is_exact() }
    }

    /// As text.
    pub fn text(&self, args: &AlertsArgs, meterd: &MeterdBinary) -> String {
        let Crossings { plain, crossing, alert, per_second, .. } = &self.crossings;
        let heads = ["from the start of the call", "samples", "p50 ms", "p90 ms", "p99 ms", "max ms"];
        let row = |name: &str, of: &Latency| {
            let ms = |us: u32| format!("{:.2}", f64::from(us) / 1e3);
            vec![name.into(), grouped(of.samples), ms(of.p50_us), ms(of.p90_us), ms(of.p99_us), ms(of.max_us)]
        };
        let rows = [
            heads.map(str::to_owned).to_vec(),
            row("TrackUsage, to its answer", plain),
            row("TrackUsage that crosses, to its answer", crossing),
            row("TrackUsage that crosses, to the alert", alert),
        ];
        let mut text = table(&rows, &[false, true, true, true, true, true]);
        text.push(format!(
            "alert beside plain answer at p99: × {:.2}; {} crossings a second beside {} other events a second",
            self.p99_ratio(),
            args.crossings_per_second,
            grouped(per_second.round())
        ));
        if let Some(idle) = &self.idle {
            text.push(String::new());
            text.extend(self.idle_lines(idle, args));
        }
        let goals = self.outcome().goals;
        if !goals.is_empty() {
            text.push(String::new());
            text.extend(lines(&goals));
        }
        text.push(String::new());
        text.extend(self.notes(meterd));
        text.join("\n")
    }

    fn notes(&self, meterd: &MeterdBinary) -> [String; 3] {
        let shown = |load: &Option<String>| load.clone().unwrap_or_else(|| "unknown".into());
        let peak = self.server_peak_memory_bytes.map_or_else(|| "unknown".into(), |b| format!("{} MiB", b >> 20));
        [
            format!(
                "{} cores, load {} before and {} after; PostgreSQL {}, fsync = {}, synchronous_commit = {}",
                self.cores,
                shown(&self.load_average_before),
                shown(&self.load_average_after),
                self.database.version,
                self.database.fsync,
                self.database.synchronous_commit
            ),
            format!("server: peak memory {peak}{}", meterd.text()),
            format!(
                "verified: {} events acknowledged, {} in the database, {} differences; {} lines crossed, {} alerts in the \
                 feed, {} received{}",
                grouped(self.acknowledged),
                grouped(self.verified.events),
                self.verified.differences,
                grouped(self.crossed),
                grouped(self.in_feed),
                grouped(
                    self.crossings.received
                        + self.idle.as_ref().map_or(0, |idle| idle.received)
                        + self.fan_out.as_ref().map_or(0, |fan_out| fan_out.received)
                ),
                if self.is_exact() { "" } else { ": WRONG, so the figures above mean nothing" }
            ),
        ]
    }

    /// As JSON.
    pub fn json(&self, args: &AlertsArgs, meterd: &MeterdBinary) -> Value {
        let Crossings { plain, crossing, alert, per_second, received } = &self.crossings;
        let latency = |of: &Latency| json!({ "samples": of.samples, "p50_us": of.p50_us, "p90_us": of.p90_us, "p99_us": of.p99_us, "max_us": of.max_us });
        json!({
            "goals": self.outcome().goals.iter().map(Goal::json).collect::<Vec<_>>(),
            "latency": {
                "plain_answer": latency(plain),
                "crossing_answer": latency(crossing),
                "alert": latency(alert),
                "p99_ratio": self.p99_ratio(),
                "other_events_per_second": per_second,
            },
            "idle": self.idle.as_ref().map(|idle| json!({
                "bytes_per_subscriber": self.bytes_per_subscriber,
                "events_per_second_without": idle.without.json(),
                "events_per_second_with": idle.with.json(),
                "ratio": idle.ratio.json(),
                "last_alert_ms": idle.last_alert_ms.json(),
                "received": idle.received,
            })),
            "settings": {
                "crossings": args.crossings,
                "crossings_per_second": args.crossings_per_second,
                "load": args.load,
                "subscribers": args.subscribers,
                "streams_per_connection": args.streams_per_connection,
                "rounds": args.rounds,
                "seconds": args.seconds,
                "concurrency": args.concurrency,
                "clients": args.clients,
                "connections": args.connections,
                "server_flags": meterd.flags,
                "optimized": meterd.is_optimized(),
            },
            "machine": {
                "cores": self.cores,
                "load_average_before": self.load_average_before,
                "load_average_after": self.load_average_after,
                "postgresql_version": self.database.version,
                "fsync": self.database.fsync,
                "synchronous_commit": self.database.synchronous_commit,
            },
            "server_peak_memory_bytes": self.server_peak_memory_bytes,
            "verification": {
                "acknowledged": self.acknowledged,
                "events": self.verified.events,
                "differences": self.verified.differences,
                "crossed": self.crossed,
                "in_feed": self.in_feed,
                "received": received,
                "exact": self.is_exact(),
            },
        })
    }

    fn idle_lines(&self, idle: &Idle, args: &AlertsArgs) -> Vec<String> {
        let heads = ["TrackUsage", "events/s", "min–max"].map(str::to_owned).to_vec();
        let row = |name: String, of: Spread| {
            let between = format!("{}–{}", grouped(of.min.round()), grouped(of.max.round()));
            vec![name, grouped(of.median.round()), between]
        };
        let rows = [
            heads,
            row("without subscribers".into(), idle.without),
            row(format!("beside {} idle ones", grouped(args.subscribers)), idle.with),
        ];
        let each =
            self.bytes_per_subscriber.map_or_else(|| "unknown".into(), |bytes| format!("{:.1} KiB", bytes / 1024.0));
        let mut lines = table(&rows, &[false, true, true]);
        lines.push(format!(
            "with beside without: × {:.2} ({:.2}–{:.2}), {} rounds of {} s in turns, {} calls at once; memory a subscriber: {each}, \
             {} a connection; all of them have an alert after {:.0} ms",
            idle.ratio.median,
            idle.ratio.min,
            idle.ratio.max,
            args.rounds,
            args.seconds,
            args.concurrency,
            args.streams_per_connection,
            idle.last_alert_ms.median
        ));
        lines
    }
}
