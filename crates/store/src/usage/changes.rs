//! The changes of sums that a transaction makes, and their encoding as rows.

use crate::rows::{Fields, Row};
use chrono::NaiveDate;
use meterd_domain::decimal::Total;
use meterd_domain::rollup::{DayKey, DayMeasureKey, Deltas, MonthKey, MonthServiceKey, NewSums, Sums};
use std::collections::BTreeSet;
use std::sync::Arc;

/// The changes of a month's sums, with a bound of the cost from which its alert rules must be evaluated.
#[derive(Clone, Debug)]
pub struct MonthChange {
    pub key: MonthKey,
    pub sums: Sums,
    pub bound: AlertBound,
}

/// The cost from which the alert rules of a month must be evaluated. Holds on one day of the client and for one version of policies
/// and time zones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AlertBound {
    /// `None`: no cost can raise an alert.
    pub cost: Option<Total>,
    /// The day, and the version of policies, time zones and rules. `None`: the next usage of the month replaces the
    /// bound.
    pub holds: Option<(NaiveDate, i64)>,
}

impl AlertBound {
    /// The rules must be evaluated, whatever the cost is.
    pub const UNKNOWN: Self = Self { cost: Some(Total::ZERO), holds: None };

    /// The version that is stored for a bound that holds for no version.
    const NO_VERSION: i64 = -1;
}

/// The sums of new events, in the order in which the rows of the months are locked.
#[derive(Debug)]
pub struct NewUsage {
    pub months: Vec<MonthChange>,
    pub days: Vec<(DayKey, Sums)>,
    pub day_measures: Vec<(DayMeasureKey, Total)>,
}

impl NewUsage {
    /// `bound` returns a bound of a month that holds for any content of its row.
    pub fn of(sums: NewSums, mut bound: impl FnMut(&MonthKey) -> AlertBound) -> Self {
        let NewSums { months, days, day_measures } = sums;
        let months = months.into_iter().map(|(key, sums)| MonthChange { bound: bound(&key), key, sums });
        Self { months: months.collect(), days, day_measures }
    }

    /// Returns the number of days' rows of each client.
    pub fn row_counts(&self) -> Vec<(Arc<str>, u32)> {
        let of_client = |rows: &[(DayKey, Sums)]| (rows[0].0.0.clone(), rows.len() as u32);
        self.days.chunk_by(|left, right| left.0.0 == right.0.0).map(of_client).collect()
    }
}

/// The changes of sums other than by new events, in the order in which their rows are locked.
#[derive(Debug, Default)]
pub struct Changes {
    pub months: Vec<MonthChange>,
    pub month_services: Vec<(MonthServiceKey, Sums)>,
    pub days: Vec<(DayKey, Sums)>,
    pub day_measures: Vec<(DayMeasureKey, Total)>,
}

impl Changes {
    /// Returns the changes that add these sums. The next usage of each month evaluates its alert rules.
    pub fn of(deltas: Deltas) -> Self {
        let Deltas { months, month_services, days, day_measures } = deltas;
        let months = months.into_iter().map(|(key, sums)| MonthChange { key, sums, bound: AlertBound::UNKNOWN });
        Self {
            months: months.collect(),
            month_services: month_services.into_iter().collect(),
            days: days.into_iter().collect(),
            day_measures: day_measures.into_iter().collect(),
        }
    }

    /// Returns the clients whose sums change, sorted.
    pub fn clients(&self) -> Vec<String> {
        let months = self.months.iter().map(|change| &change.key.0);
        let of_services = self.month_services.iter().map(|((client_id, ..), _)| client_id);
        let of_days = self.days.iter().map(|((client_id, ..), _)| client_id);
        let of_measures = self.day_measures.iter().map(|(((client_id, ..), _), _)| client_id);
        let all: BTreeSet<&Arc<str>> = months.chain(of_services).chain(of_days).chain(of_measures).collect();
        all.into_iter().map(|client_id| client_id.to_string()).collect()
    }

    /// Returns whether there is nothing to change.
    pub fn is_empty(&self) -> bool {
        self.months.is_empty() && self.month_services.is_empty() && self.days.is_empty() && self.day_measures.is_empty()
    }
}

fn put_sums(row: &mut Row<'_>, sums: &Sums) {
    row.int8(sums.request_count);
    row.total(sums.units);
    row.int8(sums.input_tokens);
    row.int8(sums.output_tokens);
    row.int8(sums.cached_input_tokens);
    row.total(sums.cost);
    row.int8(sums.unpriced_event_count);
}

impl Fields for &MonthChange {
    const TYPE: &'static str = "month_change";
    const COUNT: u16 = 12;

    fn put(&self, row: &mut Row<'_>) {
        let MonthChange { key: (client_id, month), sums, bound } = self;
        let (day, version) = bound.holds.unwrap_or((month.first_day(), AlertBound::NO_VERSION));
        row.text(client_id);
        row.date(month.first_day());
        put_sums(row, sums);
        row.total(bound.cost);
        row.date(day);
        row.int8(version);
    }
}

impl Fields for &(MonthServiceKey, Sums) {
    const TYPE: &'static str = "month_service_delta";
    const COUNT: u16 = 10;

    fn put(&self, row: &mut Row<'_>) {
        let ((client_id, month, service), sums) = self;
        row.text(client_id);
        row.date(month.first_day());
        row.text(service);
        put_sums(row, sums);
    }
}

impl Fields for &(DayKey, Sums) {
    const TYPE: &'static str = "day_delta";
    const COUNT: u16 = 12;

    fn put(&self, row: &mut Row<'_>) {
        let ((client_id, day, service, operation, model), sums) = self;
        row.text(client_id);
        row.date(*day);
        row.text(service);
        row.text(operation);
        row.text(model);
        put_sums(row, sums);
    }
}

impl Fields for &(DayMeasureKey, Total) {
    const TYPE: &'static str = "day_measure_delta";
    const COUNT: u16 = 7;

    fn put(&self, row: &mut Row<'_>) {
        let (((client_id, day, service, operation, model), measure), quantity) = self;
        row.text(client_id);
        row.date(*day);
        row.text(service);
        row.text(operation);
        row.text(model);
        row.text(measure);
        row.total(*quantity);
    }
}
