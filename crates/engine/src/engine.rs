//! The state and the configuration that all use cases share.

use crate::alerts::notify::NotifyConfig;
use crate::alerts::raise::AlertSettings;
use crate::auth::KeyCache;
use crate::catalog::CatalogCache;
use crate::clock::Clock;
use crate::ingest::{Ingest, IngestConfig, KeyFilters};
use meterd_domain::decimal::Rate;
use meterd_store::database::reads::ReadPool;
use sqlx::PgPool;
use std::sync::Arc;
use tokio::sync::{Notify, Semaphore, watch};

/// The database, the state in memory and the configuration of one replica.
pub struct Engine {
    pub pool: PgPool,
    pub reads: ReadPool,
    pub catalog: Arc<CatalogCache>,
    pub ingest: Ingest,
    /// The filters of idempotency keys in memory.
    pub key_filters: Arc<KeyFilters>,
    /// The API keys in memory.
    pub keys: Arc<KeyCache>,
    pub clock: Clock,
    pub alert_settings: AlertSettings,
    /// The currency of the deployment, an ISO 4217 code.
    pub currency: String,
    pub config: EngineConfig,
    /// A permit for each export that may run at once.
    pub exports: Arc<Semaphore>,
    /// Wakes the pricing job of this replica.
    pub pricing_wanted: Arc<Notify>,
    /// Wakes the notifier of this replica.
    pub notifications_wanted: Arc<Notify>,
    /// Wakes the scheduler of this replica.
    pub jobs_wanted: Arc<Notify>,
    /// True if the server is stopping.
    pub stopping: watch::Receiver<bool>,
}

impl Engine {
    /// Returns whether the server is stopping.
    pub fn is_stopping(&self) -> bool {
        *self.stopping.borrow()
    }
}

/// The configuration of the use cases.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Maximum age of an event in days, except in a backfill.
    pub accept_past_days: u32,
    /// Maximum number of seconds that an event may be ahead of the clock.
    pub accept_future_seconds: u32,
    /// Up to how many days after its time a caller with the scope ingest may void or correct an event.
    pub correction_days: u32,
    /// Whether events of services that are not in the catalogue are recorded, without a charge. Otherwise they are refused.
    pub keep_unknown_services: bool,
    /// Rates per token above this need a confirmation.
    pub high_token_rate: Rate,
    /// Maximum number of exports that run at once.
    pub exports_max: usize,
    pub ingest: IngestConfig,
    pub notify: NotifyConfig,
}
