//! Exports all events of a range, one after another.

use crate::clients;
use crate::engine::Engine;
use crate::fields::{Fields, UnixTime};
use crate::refusal::{Reason, Refusal};
use meterd_domain::event::{ID_BYTES_MAX, Labels};
use meterd_store::usage::export::{ExportFilter, ExportRow, Snapshot};
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;

/// How long a caller should wait before it retries to get a slot.
const RETRY_DELAY: Duration = Duration::from_secs(5);

/// The format of an exported file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExportFormat {
    Csv,
    Ndjson,
}

/// Which events to export. Empty filters select everything.
#[derive(Debug)]
pub struct ExportInput {
    /// Empty: all clients.
    pub client_id: String,
    /// The earliest time, included.
    pub start_time: Option<UnixTime>,
    /// The latest time, not included.
    pub end_time: Option<UnixTime>,
    /// The clients' own days, both included.
    pub start_date: String,
    pub end_date: String,
    pub services: Vec<String>,
    /// Only events that have all of these labels.
    pub labels: Labels,
    /// `Err` has the text of a value that is not a format.
    pub format: Result<ExportFormat, String>,
}

/// A checked export.
#[derive(Debug)]
pub struct Export {
    pub filter: ExportFilter,
    pub format: ExportFormat,
    /// Counts in [`EngineConfig::exports_max`](crate::EngineConfig).
    _permit: OwnedSemaphorePermit,
}

/// Returns the refusal of an export. `whose` ends with a space, or is empty for the exports of all callers.
pub fn too_many_exports(whose: &str) -> Refusal {
    let message = format!("too many exports {whose}run at once; retry later");
    Refusal::exhausted(Reason::TooManyExports, message, RETRY_DELAY)
}

impl Export {
    /// Checks the input of an export. The export counts as running from then on.
    ///
    /// # Errors
    /// `TOO_MANY_EXPORTS` if the maximum number of exports is running.
    pub async fn check(engine: &Engine, input: ExportInput) -> Result<Self, Refusal> {
        let mut fields = Fields::default();
        fields.text("client_id", &input.client_id, ID_BYTES_MAX);
        let (start_time, end_time) = fields.times(input.start_time, input.end_time);
        let (start_day, end_day) = fields.optional_days(&input.start_date, &input.end_date);
        fields.filter("services", &input.services);
        fields.labels("labels", &input.labels);
        let format = input.format.unwrap_or_else(|value| {
            fields.wrong("format", format!("{value} is no format"));
            ExportFormat::Csv
        });
        fields.finish()?;
        let client_id = (!input.client_id.is_empty()).then_some(input.client_id);
        if let Some(client_id) = &client_id {
            clients::existing(engine, client_id).await?;
        }
        let ExportInput { services, labels, .. } = input;
        let filter = ExportFilter { client_id, start_time, end_time, start_day, end_day, services, labels };
        let permit = engine.exports.clone().try_acquire_owned().map_err(|_| too_many_exports(""))?;
        Ok(Self { filter, format, _permit: permit })
    }

    /// Begins the snapshot that the events are read from.
    pub async fn begin(&self, engine: &Engine) -> Result<Snapshot, Refusal> {
        Ok(Snapshot::begin(&engine.pool).await?)
    }

    /// Returns the tally of an export without events.
    pub fn tally(&self) -> ExportTally {
        ExportTally { event_count: 0, empty_services: self.filter.services.clone() }
    }
}

/// The counts of an export so far.
#[derive(Clone, Debug)]
pub struct ExportTally {
    pub event_count: i64,
    /// The services of the filter that no event had.
    pub empty_services: Vec<String>,
}

impl ExportTally {
    /// Adds an event.
    pub fn add(&mut self, event: &ExportRow) {
        self.event_count += 1;
        if !self.empty_services.is_empty() {
            self.empty_services.retain(|service| *service != event.service);
        }
    }
}
