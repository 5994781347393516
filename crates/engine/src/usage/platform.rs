//! The usage of all clients together.

use super::{ServiceUsage, month_or_default, services};
use crate::engine::Engine;
use crate::fields::Fields;
use crate::refusal::Refusal;
use chrono::{DateTime, Utc};
use meterd_domain::period::Month;
use meterd_domain::rollup::Sums;
use meterd_store::usage::{self, AsOf, Platform};

/// The usage of all clients in a month.
#[derive(Debug)]
pub struct PlatformMonth {
    pub month: Month,
    pub client_count: i64,
    /// Number of clients with usage in the month.
    pub active_client_count: i64,
    pub sums: Sums,
    /// Ordered by cost, the highest first.
    pub services: Vec<ServiceUsage>,
    pub complete_as_of: DateTime<Utc>,
}

/// Returns the usage of all clients in a month. If the month is empty, returns the current one in the default time zone.
pub async fn platform(engine: &Engine, month: &str) -> Result<PlatformMonth, Refusal> {
    let mut fields = Fields::default();
    let month = month_or_default(engine, &mut fields, month);
    fields.finish()?;
    let AsOf { complete_as_of, rows: Platform { client_count, active_client_count, services: rows } } =
        usage::platform(&engine.pool, month).await?;
    let sums: Sums = rows.iter().map(|row| row.sums).sum();
    let services = services(&engine.catalog.current(), rows);
    Ok(PlatformMonth { month, client_count, active_client_count, sums, services, complete_as_of })
}
