//! What is measured, in which order.

use super::BenchArgs;
use serde::Serialize;

/// BatchTrackUsage calls under way at once.
const BATCH_CALLS: u32 = 4;
/// StreamUsage calls at once.
const STREAMS: u32 = 4;

/// What is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Call {
    /// An empty gRPC call: the floor (g).
    HealthCheck,
    /// A transaction an event: the floor (b).
    Transaction,
    TrackUsage,
    BatchTrackUsage,
    StreamUsage,
}

/// Whose events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mix {
    None,
    Many,
    Hot,
}

/// One thing to measure. Ordered as the report shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Workload {
    pub call: Call,
    pub mix: Mix,
    /// Calls under way at once.
    pub at_once: u32,
}

/// Everything once, what is compared side by side.
pub fn workloads(args: &BenchArgs) -> Vec<Workload> {
    let mixes: &[Mix] = if args.hot > 0 { &[Mix::Many, Mix::Hot] } else { &[Mix::Many] };
    let mut concurrency = args.concurrency.clone();
    concurrency.sort_unstable();
    concurrency.dedup();
    let mut workloads = vec![];
    for at_once in concurrency {
        workloads.push(Workload { call: Call::HealthCheck, mix: Mix::None, at_once });
        for &mix in mixes {
            workloads.push(Workload { call: Call::Transaction, mix, at_once });
            workloads.push(Workload { call: Call::TrackUsage, mix, at_once });
        }
    }
    for &mix in mixes {
        workloads.push(Workload { call: Call::BatchTrackUsage, mix, at_once: BATCH_CALLS });
        workloads.push(Workload { call: Call::StreamUsage, mix, at_once: STREAMS });
    }
    workloads
}
