//! Background jobs, one file each, with a function `run_once` that tests and commands can call. Pricing runs after changes of the
//! catalogue. All other jobs run by a schedule, on one replica at a time.

mod alert_checks;
mod config;
mod key_generations;
mod key_pruning;
mod lease;
mod manage;
mod partitions;
mod pending_usage;
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
use crate::corrections::reprice;
use chrono::{DateTime, Utc};
use futures_util::future::BoxFuture;
use meterd_store::StoreError;
use meterd_store::database::connect;
use meterd_store::usage::summary_totals;
use sqlx::PgPool;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

/// How often a replica looks for pricing tasks, for example one that another replica has not finished.
const PRICING_EVERY: Duration = Duration::from_secs(5);
/// Timeout of a run of pricing, because its connection may be dead. The next run continues where this one began.
const PRICING_TIMEOUT: Duration = Duration::from_secs(120);

/// The state that all scheduled jobs share.
pub struct Work {
    /// A pool that only jobs use. Its statement timeout is shorter than a lease, so transactions must be short.
    pub pool: PgPool,
    pub clock: Clock,
    pub config: JobConfig,
    pub alert_settings: AlertSettings,
}

impl Work {
    /// Returns the current time for deletions: the earlier of the clocks of the database and of this machine. A deletion cannot
    /// be undone, so one wrong clock must not cause it.
    async fn data_time(&self) -> meterd_store::Result<DateTime<Utc>> {
        Ok(connect::now(&self.pool).await?.min(Clock::system().now()))
    }
}

/// A scheduled job.
pub struct Job {
    /// The name in the setting `schedule_<name>`, in the metrics, and in JobService.
    pub name: &'static str,
    schedule: fn(&Schedules) -> &Schedule,
    /// Runs the job and returns a short sentence about what was done. It may be dropped at any await, and is then run again.
    run: fn(Arc<Work>) -> BoxFuture<'static, anyhow::Result<String>>,
}

/// The name of the job that checks the alerts of all clients.
pub const ALERT_CHECKS: &str = "alert_checks";

/// All scheduled jobs, sorted by name.
pub static JOBS: [Job; 7] = [
    Job {
        name: ALERT_CHECKS,
        schedule: |schedules| &schedules.alert_checks,
        run: |work| Box::pin(async move { alert_checks::run_once(&work).await }),
    },
    Job {
        name: "key_generations",
        schedule: |schedules| &schedules.key_generations,
        run: |work| Box::pin(async move { key_generations::run_once(&work).await }),
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
        name: "pending_usage",
        schedule: |schedules| &schedules.pending_usage,
        run: |work| Box::pin(async move { pending_usage::run_once(&work).await }),
    },
    Job {
        name: "retention",
        schedule: |schedules| &schedules.retention,
        run: |work| Box::pin(async move { retention::run_once(&work).await }),
    },
];

/// Starts a task that prices waiting events after each change of the catalogue, and charges recorded events again if it is asked
/// to, until `stopping` is true.
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
            let run = async {
                Ok(pricing::run_once(&pool, &catalog, &alert_settings).await?
                    || reprice::run_once(&pool, &catalog, &alert_settings).await?)
            };
            match tokio::time::timeout(PRICING_TIMEOUT, run).await.unwrap_or(Err(StoreError::Timeout)) {
                Ok(true) => continue,
                Ok(false) => {
                    // Reads take names and categories from the snapshot, which has to be up to date even if nothing is recorded.
                    drop(tokio::time::timeout(PRICING_TIMEOUT, catalog.refresh(&pool)).await);
                    let unpriced =
                        tokio::time::timeout(PRICING_TIMEOUT, summary_totals::unpriced_event_count(&pool)).await;
                    if let Ok(Ok(count)) = unpriced {
                        metrics::gauge!("meterd_unpriced_events").set(count as f64);
                    }
                }
                Err(error) => tracing::warn!(%error, "pricing of waiting events failed and will be retried"),
            }
            tokio::select! {
                () = wanted.notified() => {}
                () = tokio::time::sleep(PRICING_EVERY) => {}
                _ = stopping.changed() => {}
            }
        }
    })
}

/// Returns a count with its noun, such as "1 key" or "2 keys".
fn counted(count: u64, noun: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{plural}")
}
