//! What is measured, in which order.

use super::args::LoadArgs;
use serde::Serialize;

/// Connections of the floors of batches: more were no faster on two cores.
const FLOOR_BATCH_CONNECTIONS: u32 = 2;

/// What is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Call {
    /// An empty gRPC call: the floor (g).
    HealthCheck,
    /// A transaction an event: the floor (b).
    Transaction,
    /// Multi-row statements, a transaction a batch: the floor (d).
    Statements,
    /// Binary COPY into one table with the same unique key: the floor (e).
    Copy,
    TrackUsage,
    BatchTrackUsage,
    StreamUsage,
}

impl Call {
    /// Whether it is measured only to be compared with.
    pub fn is_floor(self) -> bool {
        matches!(self, Self::HealthCheck | Self::Transaction | Self::Statements | Self::Copy)
    }
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
    /// Events of a call; of a stream, how many may be unsettled.
    pub batch: u32,
    pub mix: Mix,
    /// Calls under way at once.
    pub at_once: u32,
}

impl Workload {
    /// A call with one event, or none.
    pub fn lone(call: Call, mix: Mix, at_once: u32) -> Self {
        Self { call, batch: 1, mix, at_once }
    }

    /// Calls with so many events each.
    pub fn of_batch(call: Call, batch: u32, mix: Mix, args: &LoadArgs) -> Self {
        let at_once = if call.is_floor() { FLOOR_BATCH_CONNECTIONS } else { args.batch_calls };
        Self { call, batch, mix, at_once }
    }
}

/// Everything once, what is compared side by side.
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
            // Each call beside the floors, which are there once for both.
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
