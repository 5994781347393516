//! Monthly summaries, and rebuilding what they stand on.

use crate::grpc::Context;
use crate::grpc::wire::convert::timestamp;
use crate::proto::{
    ListMonthlySummariesRequest, ListMonthlySummariesResponse, MonthlySummary, MonthlySummaryTotals,
    RebuildRollupsRequest, RebuildRollupsResponse, UpdateMonthlySummariesRequest, UpdateMonthlySummariesResponse,
};
use meterd_domain::period::Month;
use meterd_engine::paging::{Page, PageRequest};
use meterd_engine::rebuild::{RebuildInput, rebuild};
use meterd_engine::refusal::Refusal;
use meterd_engine::usage::{self, ClientMonth, MonthTotals, MonthlySummariesInput};
use std::sync::Arc;

/// Lists a month's clients.
pub async fn list(
    context: Arc<Context>,
    mut request: ListMonthlySummariesRequest,
) -> Result<ListMonthlySummariesResponse, Refusal> {
    // A token belongs to one month, even if the request does not name it.
    if request.month.is_empty() {
        request.month = usage::default_month(&context.engine).to_string();
    }
    let (page, next_token) = context.page::<(String, String)>(&mut request);
    let after = page.after.map(|after| after.and_then(|(cost, client_id)| Some((cost.parse().ok()?, client_id))));
    let page = PageRequest { size: page.size, after };
    let input = MonthlySummariesInput { client_id: &request.client_id, month: &request.month };
    let list = usage::list_monthly_summaries(&context.engine, input, page).await?;
    let Page { rows, next } = list.clients;
    Ok(ListMonthlySummariesResponse {
        summaries: rows.into_iter().map(|client| context.summary(list.month, client)).collect(),
        next_page_token: next_token.of(next.map(|(cost, client_id)| (cost.to_string(), client_id))),
        totals: Some(context.summary_totals(list.totals)),
        complete_as_of_time: Some(timestamp(list.complete_as_of)),
    })
}

/// Refreshes summaries.
pub async fn update(
    context: Arc<Context>,
    request: UpdateMonthlySummariesRequest,
) -> Result<UpdateMonthlySummariesResponse, Refusal> {
    let updated = usage::refresh_monthly_summaries(&context.engine, &request.client_id, &request.month).await?;
    Ok(UpdateMonthlySummariesResponse { updated_count: updated as i64 })
}

impl Context {
    fn summary(&self, month: Month, client: ClientMonth) -> MonthlySummary {
        MonthlySummary {
            projected_cost: client.projected_cost.map(|cost| self.money(cost)),
            month: month.to_string(),
            totals: Some(self.totals(&client.sums)),
            services: self.services(client.services),
            messages: client.counts.messages.to_string(),
            ai_calls: client.counts.ai_calls,
            voice_minutes: client.counts.voice_minutes.to_string(),
            last_month_cost: Some(self.money(client.last_month_cost)),
            change_percent: client.change_percent.map(|change| change.to_string()),
            client_id: client.client_id,
            display_name: client.display_name,
        }
    }

    fn summary_totals(&self, totals: MonthTotals) -> MonthlySummaryTotals {
        MonthlySummaryTotals {
            client_count: totals.client_count,
            totals: Some(self.totals(&totals.sums)),
            messages: totals.counts.messages.to_string(),
            ai_calls: totals.counts.ai_calls,
            voice_minutes: totals.counts.voice_minutes.to_string(),
            last_month_cost: Some(self.money(totals.last_month_cost)),
            change_percent: totals.change_percent.map(|change| change.to_string()),
        }
    }
}

/// Computes months again from their events.
pub async fn rebuild_rollups(
    context: Arc<Context>,
    request: RebuildRollupsRequest,
) -> Result<RebuildRollupsResponse, Refusal> {
    let RebuildRollupsRequest { client_id, start_date, end_date, rezone } = request;
    let input = RebuildInput { client_id, start_date, end_date, rezone };
    let rebuilt = rebuild(&context.engine, input).await?;
    Ok(RebuildRollupsResponse {
        month_count: rebuilt.month_count,
        corrected_row_count: rebuilt.corrected_row_count,
        rezoned_event_count: rebuilt.rezoned_event_count,
    })
}
