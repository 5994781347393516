//! The workloads, in the order of their measurement.

use super::args::LoadArgs;
use serde::Serialize;

/// Connections of the floors of batches. More were no faster on two cores.
const FLOOR_BATCH_CONNECTIONS: u32 = 2;

/// A call of meterd or of a floor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Call {
    /// An empty gRPC call: the floor (g).
    HealthCheck,
    /// One transaction per event: the floor (b).
    Transaction,
    /// Multi-row statements, one transaction per batch: the floor (d).
    Statements,
    /// Binary COPY into one table with the same unique key: the floor (e).
    Copy,
    TrackUsage,
    BatchTrackUsage,
    StreamUsage,
}

impl Call {
    /// Whether this is a floor, and not a call of meterd.
    pub fn is_floor(self) -> bool {
        matches!(self, Self::HealthCheck | Self::Transaction | Self::Statements | Self::Copy)
    }
}

/// The clients of the events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mix {
    None,
    Many,
    Hot,
}

/// One workload. Sorted in the order of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Workload {
    pub call: Call,
    /// Events of a call, or most unsettled events of a stream.
    pub batch: u32,
    pub mix: Mix,
    /// Concurrent calls.
    pub at_once: u32,
}

impl Workload {
    /// Calls with one event or none.
    pub fn lone(call: Call, mix: Mix, at_once: u32) -> Self {
        Self { call, batch: 1, mix, at_once }
    }

    /// Calls with this many events each.
    pub fn of_batch(call: Call, batch: u32, mix: Mix, args: &LoadArgs) -> Self {
        let at_once = if call.is_floor() { FLOOR_BATCH_CONNECTIONS } else { args.batch_calls };
        Self { call, batch, mix, at_once }
    }
}

/// All workloads. Those that are compared follow each other.
pub fn workloads(args: &LoadArgs) -> Vec<Workload> {
    let mixes: &[Mix] = if args.hot > 0 { &[Mix::Many, Mix::Hot] } else { &[Mix::Many] };
    let is_wanted = |call| args.calls.iter().any(|calls| calls.call() == call);
    let mut workloads = vec![];
    if is_wanted(Call::TrackUsage) {
        for at_once in sorted(&args.concurrency) {
            workloads.push(Workload::lone(Call::HealthCheck, Mix::None, at_once));
            for &mix in mixes {
                workloads.push(Workload::lone(Call::Transaction, mix, at_once));
                workloads.push(Workload::lone(Call::TrackUsage, mix, at_once));
            }
        }
    }
    for batch in sorted(&args.batch) {
        for &mix in mixes {
            // Each call next to its floor. The floors are the same for both calls.
            let calls = [Call::Statements, Call::BatchTrackUsage, Call::Copy, Call::StreamUsage];
            let both = [Call::BatchTrackUsage, Call::StreamUsage];
            let is_wanted =
                |call: &Call| if call.is_floor() { both.into_iter().any(is_wanted) } else { is_wanted(*call) };
            workloads
                .extend(calls.into_iter().filter(is_wanted).map(|call| Workload::of_batch(call, batch, mix, args)));
        }
    }
    workloads
}

fn sorted(numbers: &[u32]) -> Vec<u32> {
    let mut numbers = numbers.to_vec();
    numbers.sort_unstable();
    numbers.dedup();
    numbers
}
