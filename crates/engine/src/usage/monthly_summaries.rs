//! The clients of a month, ordered by cost.

use super::{ServiceUsage, month_or_default, recurring_cost, services};
use crate::clients;
use crate::engine::Engine;
use crate::fields::Fields;
use crate::jobs;
use crate::paging::{Page, PageRequest};
use crate::refusal::Refusal;
use chrono::{DateTime, Utc};
use meterd_domain::decimal::Total;
use meterd_domain::event::ID_BYTES_MAX;
use meterd_domain::period::{Month, day_of, elapsed_and_remaining};
use meterd_domain::projection::{change_percent, month_end};
use meterd_domain::rollup::Sums;
use meterd_store::clients::zone;
use meterd_store::usage::AsOf;
use meterd_store::usage::summaries::{self, Summary};
use meterd_store::usage::summary_totals::{Counts, SummaryTotals};

/// Which clients to list.
#[derive(Clone, Copy, Debug, Default)]
pub struct MonthlySummariesInput<'a> {
    /// Empty: all clients.
    pub client_id: &'a str,
    /// Empty: the current month in the default time zone.
    pub month: &'a str,
}

/// A page of the clients of a month.
#[derive(Debug)]
pub struct MonthlySummaries {
    pub month: Month,
    /// Ordered by cost, the highest first. The cursor is the cost and the id of the last client.
    pub clients: Page<ClientMonth, (Total, String)>,
    /// Of all clients, not only of the page.
    pub totals: MonthTotals,
    pub complete_as_of: DateTime<Utc>,
}

/// A month of a client.
#[derive(Debug)]
pub struct ClientMonth {
    pub client_id: String,
    pub display_name: String,
    pub sums: Sums,
    /// Ordered by cost, the highest first.
    pub services: Vec<ServiceUsage>,
    pub counts: Counts,
    pub last_month_cost: Total,
    /// The change from the cost of the month before, in percent. `None` if that was zero.
    pub change_percent: Option<Total>,
    /// The expected cost at the end of the month, if usage continues at the same rate. `None` unless it is the client's current month.
    pub projected_cost: Option<Total>,
}

/// The totals of the clients of a month.
#[derive(Debug)]
pub struct MonthTotals {
    pub client_count: i64,
    pub sums: Sums,
    pub counts: Counts,
    pub last_month_cost: Total,
    /// The change from the cost of the month before, in percent. `None` if that was zero.
    pub change_percent: Option<Total>,
}

/// Lists the clients of a month. One client is read from its rollups, all clients from summaries that a job refreshes.
pub async fn list_monthly_summaries(
    engine: &Engine,
    input: MonthlySummariesInput<'_>,
    page: PageRequest<(Total, String)>,
) -> Result<MonthlySummaries, Refusal> {
    let MonthlySummariesInput { client_id, month } = input;
    let mut fields = Fields::default();
    fields.text("client_id", client_id, ID_BYTES_MAX);
    let month = month_or_default(engine, &mut fields, month);
    let size = page.check_size(&mut fields);
    fields.finish()?;
    let after = page.after?;
    let AsOf { complete_as_of, rows: summaries::Page { summaries, totals } } = if client_id.is_empty() {
        let after = after.as_ref().map(|(cost, client_id)| (*cost, client_id.as_str()));
        summaries::page(&engine.pool, month, after, size + 1).await?
    } else {
        summaries::live(&engine.pool, client_id, month).await?
    };
    let Page { rows, next } = Page::of(summaries, size, |last| (last.sums.cost, last.client_id.clone()));
    let rows = rows.into_iter().map(|row| client_month(engine, month, row)).collect::<Result<_, _>>()?;
    Ok(MonthlySummaries { month, clients: Page { rows, next }, totals: totals.into(), complete_as_of })
}

/// Refreshes the summaries that are not up to date, of one client or month, or of all if they are empty. Returns how many were
/// refreshed.
pub async fn refresh_monthly_summaries(engine: &Engine, client_id: &str, month: &str) -> Result<usize, Refusal> {
    let mut fields = Fields::default();
    fields.text("client_id", client_id, ID_BYTES_MAX);
    let month = (!month.is_empty()).then(|| fields.month("month", month)).flatten();
    fields.finish()?;
    let client_id = (!client_id.is_empty()).then_some(client_id);
    if let Some(client_id) = client_id {
        clients::existing(engine, client_id).await?;
    }
    Ok(jobs::summaries::refresh(&engine.pool, client_id, month).await?)
}

fn client_month(engine: &Engine, month: Month, summary: Summary) -> Result<ClientMonth, Refusal> {
    let catalog = engine.catalog.current();
    let cost = summary.sums.cost;
    let today = day_of(engine.clock.now(), zone(&summary.time_zone)?);
    let projected = || {
        let (days_elapsed, _) = elapsed_and_remaining(today);
        month_end(cost, recurring_cost(&catalog, &summary.services), days_elapsed, month.days())
    };
    Ok(ClientMonth {
        projected_cost: (Month::of(today) == month).then(projected),
        client_id: summary.client_id,
        display_name: summary.display_name,
        sums: summary.sums,
        services: services(&catalog, summary.services),
        counts: summary.counts,
        last_month_cost: summary.last_month_cost,
        change_percent: change_percent(cost, summary.last_month_cost),
    })
}

impl From<SummaryTotals> for MonthTotals {
    fn from(totals: SummaryTotals) -> Self {
        let SummaryTotals { client_count, sums, counts, last_month_cost } = totals;
        let change_percent = change_percent(sums.cost, last_month_cost);
        Self { client_count, sums, counts, last_month_cost, change_percent }
    }
}
