//! When jobs run, and how long data is kept.

use super::schedule::Schedule;
use std::time::Duration;

/// When each job runs.
#[derive(Clone, Debug)]
pub struct Schedules {
    pub alert_checks: Schedule,
    pub key_generations: Schedule,
    pub key_pruning: Schedule,
    pub monthly_summaries: Schedule,
    pub partitions: Schedule,
    pub pending_usage: Schedule,
    pub retention: Schedule,
}

/// When jobs run, and how long data is kept.
#[derive(Clone, Debug)]
pub struct JobConfig {
    pub schedules: Schedules,
    /// Maximum duration of one run. The next run continues.
    pub run_timeout: Duration,
    /// Number of whole months before the current month that stay open. 0: no month is closed.
    pub retention_months: u32,
    /// Whether the tables with the events of closed months are dropped. Otherwise they are detached and kept.
    pub drop_closed_months: bool,
    /// How many days the idempotency key of an event is kept after the event was received.
    pub key_retention_days: u32,
    /// The size on the disk at which a generation of idempotency keys is closed. 0: a share of PostgreSQL's memory.
    pub key_generation_bytes: u64,
    /// How many days changes of alerts and finished notifications are kept.
    pub alert_feed_days: u32,
}
