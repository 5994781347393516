//! Work beside the calls: one job a file, each with a `run_once` that tests and commands can step.

pub mod pricing;
pub mod summaries;

use crate::alerts::raise::AlertSettings;
use crate::catalog::CatalogCache;
use sqlx::PgPool;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

/// How often summaries of changed clients are refreshed: well within the minute that is promised.
const SUMMARIES_EVERY: Duration = Duration::from_secs(20);
/// How often a replica looks for pricing that another one left.
const PRICING_EVERY: Duration = Duration::from_secs(5);

/// A run that takes longer hangs on a connection that is dead; the next one begins where it was.
const RUN_TIMEOUT: Duration = Duration::from_secs(120);

/// Starts the jobs. They end when `stopping` turns true.
pub fn start(
    pool: &PgPool,
    catalog: &Arc<CatalogCache>,
    alert_settings: &AlertSettings,
    pricing_wanted: &Arc<Notify>,
    stopping: &watch::Receiver<bool>,
) -> Vec<JoinHandle<()>> {
    let (pool_of_pricing, catalog, wanted) = (pool.clone(), catalog.clone(), pricing_wanted.clone());
    let (alert_settings, mut stopping_of_pricing) = (alert_settings.clone(), stopping.clone());
    let pricing = tokio::spawn(async move {
        while !*stopping_of_pricing.borrow() {
            let run = pricing::run_once(&pool_of_pricing, &catalog, &alert_settings);
            match tokio::time::timeout(RUN_TIMEOUT, run).await.unwrap_or(Err(sqlx::Error::PoolTimedOut)) {
                Ok(true) => continue,
                Ok(false) => {
                    // Reads show names and categories by the snapshot in memory, also where nothing is recorded.
                    drop(tokio::time::timeout(RUN_TIMEOUT, catalog.refresh(&pool_of_pricing)).await);
                }
                Err(error) => tracing::warn!(%error, "pricing of waiting events failed and goes on later"),
            }
            tokio::select! {
                () = wanted.notified() => {}
                () = tokio::time::sleep(PRICING_EVERY) => {}
                _ = stopping_of_pricing.changed() => {}
            }
        }
    });
    let pool = pool.clone();
    let mut stopping = stopping.clone();
    let summaries = tokio::spawn(async move {
        while !*stopping.borrow() {
            let run = tokio::time::timeout(RUN_TIMEOUT, summaries::refresh(&pool, None, None)).await;
            if let Err(error) = run.unwrap_or(Err(sqlx::Error::PoolTimedOut)) {
                tracing::warn!(%error, "refreshing summaries failed and is tried again");
            }
            tokio::select! {
                () = tokio::time::sleep(SUMMARIES_EVERY) => {}
                _ = stopping.changed() => {}
            }
        }
    });
    vec![pricing, summaries]
}
