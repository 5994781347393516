//! The current month of a client.

use super::forecast::{MonthForecast, history_days, recurring_services};
use super::{ServiceUsage, recurring_cost, services};
use crate::engine::Engine;
use crate::fields::Fields;
use crate::refusal::Refusal;
use chrono::{DateTime, TimeDelta, Utc};
use chrono_tz::Tz;
use meterd_domain::decimal::Total;
use meterd_domain::event::ID_BYTES_MAX;
use meterd_domain::period::{Month, day_of, elapsed_and_remaining};
use meterd_domain::projection::month_end;
use meterd_domain::rollup::Sums;
use meterd_store::clients::zone;
use meterd_store::usage::{self, AsOf, OfClient, ServiceSums};
use std::collections::BTreeMap;
use std::slice;

/// The usage of a client in its current month.
#[derive(Debug)]
pub struct MonthToDate {
    pub month: Month,
    /// IANA name.
    pub time_zone: String,
    pub sums: Sums,
    /// The expected cost at the end of the month, if usage continues at the same rate.
    pub projected_cost: Total,
    /// `None` if it was not asked for.
    pub forecast: Option<MonthForecast>,
    pub days_elapsed: u32,
    pub days_remaining: u32,
    /// Ordered by cost, the highest first, each with its projected cost.
    pub services: Vec<(ServiceUsage, Total)>,
    /// Sums of measures that are not in `sums`.
    pub measures: BTreeMap<String, Total>,
    pub complete_as_of: DateTime<Utc>,
}

/// Returns the usage of a client in its current month.
pub async fn current_month(engine: &Engine, client_id: &str, with_forecast: bool) -> Result<MonthToDate, Refusal> {
    let mut fields = Fields::default();
    fields.required("client_id", client_id, ID_BYTES_MAX);
    fields.finish()?;
    let now = engine.clock.now();
    // The current month of a client in any time zone is one of these two. So one statement reads the time zone and the usage.
    let day_around = |days| day_of(now + TimeDelta::days(days), Tz::UTC);
    let (first, last) = (Month::of(day_around(-1)), Month::of(day_around(1)));
    let catalog = engine.catalog.current();
    let recurring = recurring_services(&catalog);
    let days = with_forecast.then(|| history_days(now, &recurring));
    let read = engine.reads.read(|mut conn| async move {
        let read = usage::months(&mut conn, client_id, first, last, days).await;
        (conn, read)
    });
    let AsOf { complete_as_of, rows: OfClient { time_zone, usage } } =
        read.await?.ok_or_else(|| Refusal::client_not_found(client_id))?;
    let zone = zone(&time_zone)?;
    let today = day_of(now, zone);
    let month = Month::of(today);
    let (days_elapsed, days_remaining) = elapsed_and_remaining(today);
    let rows: Vec<ServiceSums> =
        usage.services.into_iter().filter_map(|(of, row)| (of == month).then_some(row)).collect();
    let measures =
        usage.measures.into_iter().filter_map(|((of, name), sum)| (of == month).then_some((name, sum))).collect();
    let sums: Sums = rows.iter().map(|row| row.sums).sum();
    let forecast = with_forecast.then(|| MonthForecast::of(&usage.history, &usage.policy, now, zone));
    let projected =
        |cost, rows: &[ServiceSums]| month_end(cost, recurring_cost(&catalog, rows), days_elapsed, month.days());
    let projected_cost = projected(sums.cost, &rows);
    let of_services: Vec<Total> = rows.iter().map(|row| projected(row.sums.cost, slice::from_ref(row))).collect();
    let services = services(&catalog, rows).into_iter().zip(of_services).collect();
    Ok(MonthToDate {
        month,
        time_zone,
        sums,
        projected_cost,
        forecast,
        days_elapsed,
        days_remaining,
        services,
        measures,
        complete_as_of,
    })
}
