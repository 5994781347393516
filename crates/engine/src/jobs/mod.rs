//! Work beside the calls: one job a file, each with a `run_once` that tests and commands can step. Pricing follows changes
//! of the catalogue; all others run by a schedule, on one replica at a time.

mod alert_checks;
mod config;
mod key_pruning;
mod lease;
mod manage;
mod partitions;
pub mod pricing;
mod retention;
mod schedule;
mod scheduler;
pub mod summaries;

pub use config::{JobConfig, Schedules};
pub use manage::{list, run};
pub use schedule::Schedule;
pub use scheduler::{Scheduler, names};

use crate::alerts::raise::AlertSettings;
use crate::catalog::CatalogCache;
use crate::clock::Clock;
use chrono::{DateTime, Utc};
use futures_util::future::BoxFuture;
use meterd_store::StoreError;
use meterd_store::{connect, summary_totals};
use sqlx::PgPool;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

/// How often a replica looks for pricing that another one left.
const PRICING_EVERY: Duration = Duration::from_secs(5);
/// A run of pricing that takes longer hangs on a connection that is dead; the next one begins where it was.
const PRICING_TIMEOUT: Duration = Duration::from_secs(120);

/// What scheduled jobs work with.
pub struct Work {
    /// Of the jobs alone: its statements end before the lease that they run under does. So transactions are short.
    pub pool: PgPool,
    pub clock: Clock,
    pub config: JobConfig,
    pub alert_settings: AlertSettings,
}

impl Work {
    /// The time by which rows that carry the database's time are old enough to be deleted: the earlier of the database's clock
    /// and this machine's. No one clock is trusted with what cannot be undone.
    async fn data_time(&self) -> meterd_store::Result<DateTime<Utc>> {
        Ok(connect::now(&self.pool).await?.min(Clock::system().now()))
    }
}

/// A scheduled job.
pub struct Job {
    /// As in `schedule_<name>`, the metrics, and JobService.
    pub name: &'static str,
    schedule: fn(&Schedules) -> &Schedule,
    /// Does it, and says in a short sentence what was done. May be cut off anywhere, and is then run again.
    run: fn(Arc<Work>) -> BoxFuture<'static, anyhow::Result<String>>,
}

/// The job that checks the alerts of all clients.
pub const ALERT_CHECKS: &str = "alert_checks";

/// All scheduled jobs, by name.
pub static JOBS: [Job; 5] = [
    Job {
        name: ALERT_CHECKS,
        schedule: |schedules| &schedules.alert_checks,
        run: |work| Box::pin(async move { alert_checks::run_once(&work).await }),
    },
    Job {
        name: "key_pruning",
        schedule: |schedules| &schedules.key_pruning,
        run: |work| Box::pin(async move { key_pruning::run_once(&work).await }),
    },
    Job {
        name: "monthly_summaries",
        schedule: |schedules| &schedules.monthly_summaries,
        run: |work| Box::pin(async move { summaries::run_once(&work).await }),
    },
    Job {
        name: "partitions",
        schedule: |schedules| &schedules.partitions,
        run: |work| Box::pin(async move { partitions::run_once(&work).await }),
    },
    Job {
        name: "retention",
        schedule: |schedules| &schedules.retention,
        run: |work| Box::pin(async move { retention::run_once(&work).await }),
    },
];

/// Prices waiting events whenever the catalogue has changed, until `stopping` turns true.
pub fn start_pricing(
    pool: &PgPool,
    catalog: &Arc<CatalogCache>,
    alert_settings: &AlertSettings,
    wanted: &Arc<Notify>,
    stopping: &watch::Receiver<bool>,
) -> JoinHandle<()> {
    let (pool, catalog, alert_settings) = (pool.clone(), catalog.clone(), alert_settings.clone());
    let (wanted, mut stopping) = (wanted.clone(), stopping.clone());
    tokio::spawn(async move {
        while !*stopping.borrow() {
            let run = pricing::run_once(&pool, &catalog, &alert_settings);
            match tokio::time::timeout(PRICING_TIMEOUT, run).await.unwrap_or(Err(StoreError::Timeout)) {
                Ok(true) => continue,
                Ok(false) => {
                    // Reads show names and categories by the snapshot in memory, also where nothing is recorded.
                    drop(tokio::time::timeout(PRICING_TIMEOUT, catalog.refresh(&pool)).await);
                    let unpriced =
                        tokio::time::timeout(PRICING_TIMEOUT, summary_totals::unpriced_event_count(&pool)).await;
                    if let Ok(Ok(count)) = unpriced {
                        metrics::gauge!("meterd_unpriced_events").set(count as f64);
                    }
                }
                Err(error) => tracing::warn!(%error, "pricing of waiting events failed and goes on later"),
            }
            tokio::select! {
                () = wanted.notified() => {}
                () = tokio::time::sleep(PRICING_EVERY) => {}
                _ = stopping.changed() => {}
            }
        }
    })
}

/// A count with its noun, such as "1 key" or "2 keys".
fn counted(count: u64, noun: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{plural}")
}
