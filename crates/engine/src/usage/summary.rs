//! A client's usage in a range of days.

use super::{ServiceUsage, services};
use crate::engine::Engine;
use crate::fields::Fields;
use crate::refusal::Refusal;
use chrono::{DateTime, NaiveDate, Utc};
use meterd_domain::decimal::Total;
use meterd_domain::event::ID_BYTES_MAX;
pub use meterd_domain::rollup::OperationSums;
use meterd_domain::rollup::{Sums, by_cost};
use meterd_store::usage::{self, AsOf, OfClient, ServiceSums};
use std::collections::BTreeMap;

/// Maximum number of days of a summary: ten years.
pub const SUMMARY_DAYS_MAX: i64 = 3_660;
const TOP_OPERATIONS_DEFAULT: usize = 10;
const TOP_OPERATIONS_MAX: i32 = 1_000;

/// Which summary to return.
#[derive(Clone, Copy, Debug, Default)]
pub struct SummaryInput<'a> {
    pub client_id: &'a str,
    /// The client's own days, both included.
    pub start_date: &'a str,
    pub end_date: &'a str,
    /// Number of operations. 0: 10.
    pub top_operation_count: i32,
}

/// The usage of a client in a range of days.
#[derive(Debug)]
pub struct Summary {
    /// IANA name.
    pub time_zone: String,
    pub sums: Sums,
    /// Ordered by cost, the highest first.
    pub services: Vec<ServiceUsage>,
    /// The days with usage, in order.
    pub days: Vec<DaySums>,
    /// The operations with the highest cost.
    pub operations: Vec<OperationSums>,
    /// Sums of measures that are not in `sums`.
    pub measures: BTreeMap<String, Total>,
    pub complete_as_of: DateTime<Utc>,
}

/// The usage of a day.
#[derive(Debug)]
pub struct DaySums {
    pub day: NaiveDate,
    pub sums: Sums,
}

/// Returns the usage of a client in a range of days.
pub async fn summary(engine: &Engine, input: SummaryInput<'_>) -> Result<Summary, Refusal> {
    let SummaryInput { client_id, start_date, end_date, top_operation_count } = input;
    let mut fields = Fields::default();
    fields.required("client_id", client_id, ID_BYTES_MAX);
    let (start, end) = fields.days(start_date, end_date, SUMMARY_DAYS_MAX);
    if !(0..=TOP_OPERATIONS_MAX).contains(&top_operation_count) {
        fields.wrong("top_operation_count", format!("must be from 1 to {TOP_OPERATIONS_MAX}, or 0 for 10"));
    }
    fields.finish()?;
    let top = match top_operation_count {
        0 => TOP_OPERATIONS_DEFAULT,
        count => count.unsigned_abs() as usize,
    };
    let read = engine.reads.read(|mut conn| async move {
        let read = usage::range(&mut conn, client_id, start, end, top).await;
        (conn, read)
    });
    let AsOf { complete_as_of, rows: OfClient { time_zone, usage: mut range } } =
        read.await?.ok_or_else(|| Refusal::client_not_found(client_id))?;
    let (sums, operations) = (range.total(), range.take_operations());
    let days = range.days.into_iter().map(|(day, sums)| DaySums { day, sums }).collect();
    let of_services = range.services.into_iter().map(|(service, sums)| ServiceSums { service, sums }).collect();
    let of_services = by_cost(of_services, |row: &ServiceSums| &row.sums);
    let services = services(&engine.catalog.current(), of_services);
    Ok(Summary { time_zone, sums, services, days, operations, measures: range.measures, complete_as_of })
}
