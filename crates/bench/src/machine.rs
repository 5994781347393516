//! The machine and the database of a run.

use super::window::percentile;
use meterd_store::bench::floor::Facts;
use serde_json::{Value, json};

/// The machine and the settings of its PostgreSQL.
pub struct Machine {
    pub cores: usize,
    pub load_average_before: Option<String>,
    pub load_average_after: Option<String>,
    pub database: Facts,
    /// Sorted samples of a durable commit, and of a round trip without a commit.
    pub commit_us: Vec<u32>,
    pub round_trip_us: Vec<u32>,
}

impl Machine {
    /// As lines of text.
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

    /// As JSON.
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
