//! Recording usage and reading it.
//!
//! Inputs are unchecked texts and numbers. Empty texts and zeros select defaults. The use cases check them and report all wrong
//! fields together.

mod current_month;
mod events;
mod export;
pub mod export_file;
mod forecast;
mod monthly_summaries;
mod platform;
mod preview;
mod query;
mod record;
mod stream;
mod summary;

pub use current_month::{MonthToDate, current_month};
pub use events::{EventListInput, get_event, list_events};
pub use export::{Export, ExportFormat, ExportInput, ExportTally, too_many_exports};
pub use forecast::{ForecastLine, ForecastLineKind, MonthForecast};
pub use meterd_store::usage::AsOf;
pub use meterd_store::usage::export::ExportRow;
pub use meterd_store::usage::query::QueryKey;
pub use meterd_store::usage::summary_totals::Counts;
pub use monthly_summaries::{
    ClientMonth, MonthTotals, MonthlySummaries, MonthlySummariesInput, list_monthly_summaries,
    refresh_monthly_summaries,
};
pub use platform::{PlatformMonth, platform};
pub use preview::{BatchPreview, PreviewedEvent, preview_batch};
pub use query::{Dimension, QueryInput, UsageRow, query};
pub use record::{BATCH_EVENTS_MAX, DIFFERING_FIELDS, check_batch_size, conflict, record, record_batch};
pub use stream::{EventStream, InOrder};
pub use summary::{DaySums, OperationSums, SUMMARY_DAYS_MAX, Summary, SummaryInput, summary};

use crate::engine::Engine;
use crate::fields::Fields;
use meterd_domain::catalog::Catalog;
use meterd_domain::decimal::Total;
use meterd_domain::period::{Month, day_of};
use meterd_domain::rollup::Sums;
use meterd_store::usage::ServiceSums;

/// Usage of a service, with its entry in the catalogue.
#[derive(Clone, Debug)]
pub struct ServiceUsage {
    pub service: String,
    /// The name of the service if it is not in the catalogue.
    pub display_name: String,
    /// Number of the proto enum ServiceCategory. `None` if the service is not in the catalogue.
    pub category: Option<i16>,
    pub sums: Sums,
}

pub(crate) fn services(catalog: &Catalog, rows: Vec<ServiceSums>) -> Vec<ServiceUsage> {
    let service = |ServiceSums { service, sums }| {
        let known = catalog.service(&service);
        let display_name = known.map_or_else(|| service.clone(), |known| known.display_name.clone());
        ServiceUsage { display_name, category: known.map(|known| known.category), service, sums }
    };
    rows.into_iter().map(service).collect()
}

/// Returns the cost of the services that are charged once a period. Projections do not scale it.
fn recurring_cost(catalog: &Catalog, rows: &[ServiceSums]) -> Total {
    let recurs = |row: &&ServiceSums| catalog.service(&row.service).is_some_and(|service| service.recurring);
    rows.iter().filter(recurs).map(|row| row.sums.cost).sum()
}

/// Returns the current month in the default time zone.
pub fn default_month(engine: &Engine) -> Month {
    Month::of(day_of(engine.clock.now(), engine.config.ingest.default_zone))
}

/// Checks a month. If it is empty, returns the default month.
fn month_or_default(engine: &Engine, fields: &mut Fields, month: &str) -> Month {
    let default = default_month(engine);
    if month.is_empty() { default } else { fields.month("month", month).unwrap_or(default) }
}
